package ai.yinian.server;

import com.fasterxml.jackson.core.JsonProcessingException;
import java.io.IOException;
import java.math.BigInteger;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/** The fields of a JSON object, each taken by its type. Null says as much as nothing. What nobody took has no effect and is refused. */
final class Fields {
    private final Map<String, Object> values;
    private final String prefix;
    private final Set<String> taken = new HashSet<>();

    /** {@code prefix}: what stands before the names in errors. */
    Fields(Map<String, Object> values, String prefix) {
        this.values = values;
        this.prefix = prefix;
    }

    static Fields of(byte[] body) throws ApiError {
        try {
            return new Fields(Json.object(body), "");
        } catch (JsonProcessingException e) {
            throw ApiError.invalid(null, "the body is not a JSON object: %s", e.getOriginalMessage());
        } catch (IOException e) {
            throw ApiError.invalid(null, "the body is not a JSON object: %s", e.getMessage());
        }
    }

    Object any(String name) {
        taken.add(name);
        return values.get(name);
    }

    private <T> T typed(String name, Class<T> type, String expected) throws ApiError {
        Object value = any(name);
        if (value != null && !type.isInstance(value)) {
            throw ApiError.invalid(prefix + name, "field \"%s\" is a JSON %s; expected %s", prefix + name, kind(value), expected);
        }
        return type.cast(value);
    }

    String text(String name) throws ApiError {
        return typed(name, String.class, "a string");
    }

    boolean flag(String name) throws ApiError {
        return Boolean.TRUE.equals(typed(name, Boolean.class, "true or false"));
    }

    Double number(String name) throws ApiError {
        Number n = typed(name, Number.class, "a number");
        return n == null ? null : n.doubleValue();
    }

    Long whole(String name) throws ApiError {
        Number n = typed(name, Number.class, "an integer");
        if (n == null || n instanceof Integer || n instanceof Long) {
            return n == null ? null : n.longValue();
        }
        throw ApiError.invalid(prefix + name, "field \"%s\" is %s; expected an integer of 64 bits", prefix + name, n);
    }

    Integer small(String name) throws ApiError {
        Long n = whole(name);
        if (n != null && n.intValue() != n) {
            throw ApiError.invalid(prefix + name, "field \"%s\" is %d; expected an integer of 32 bits", prefix + name, n);
        }
        return n == null ? null : n.intValue();
    }

    /** One string or a list of them; null when there is none. */
    List<String> texts(String name) throws ApiError {
        Object value = any(name);
        if (value == null) {
            return null;
        }
        List<String> all = new ArrayList<>();
        for (Object one : value instanceof List<?> list ? list : List.of(value)) {
            if (!(one instanceof String text)) {
                throw ApiError.invalid(name, "%s is not a string or a list of strings", name);
            }
            all.add(text);
        }
        return all;
    }

    /** Null when there is none. */
    @SuppressWarnings("unchecked")
    Fields object(String name) throws ApiError {
        Object value = any(name);
        if (value != null && !(value instanceof Map)) {
            throw ApiError.invalid(name, "%s is not an object", name);
        }
        return value == null ? null : new Fields((Map<String, Object>) value, name + ".");
    }

    /** Behind the last field that counts. */
    void refuseOthers() throws ApiError {
        for (String name : new TreeSet<>(values.keySet())) {
            if (!taken.contains(name) && values.get(name) != null) {
                throw ApiError.invalid(prefix + name, "field \"%s\" is unknown, or not supported by this server", prefix + name);
            }
        }
    }

    private static String kind(Object value) {
        if (value instanceof Map) {
            return "object";
        }
        if (value instanceof List) {
            return "array";
        }
        return value instanceof Number n ? "number " + (n instanceof BigInteger ? "" : n) : value instanceof Boolean ? "bool" : "string";
    }
}
