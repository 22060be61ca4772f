package ai.yinian.server;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.jr.ob.JSON;
import java.io.IOException;
import java.util.Map;

/** JSON as maps, lists and values; numbers keep their digits, and nulls are written. */
final class Json {
    private static final JSON JR = JSON.std.with(JSON.Feature.WRITE_NULL_PROPERTIES).with(JSON.Feature.USE_BIG_DECIMAL_FOR_FLOATS);

    private Json() {}

    static Map<String, Object> object(byte[] text) throws IOException {
        try (JsonParser parser = JR.createParser(text)) {
            Map<String, Object> object = JR.mapFrom(parser);
            if (object == null || parser.nextToken() != null) {
                throw new IOException(object == null ? "it is empty" : "something follows it");
            }
            return object;
        }
    }

    static String text(Object value) {
        try {
            return JR.asString(value);
        } catch (IOException e) {
            throw new IllegalStateException("maps, lists and values are always written", e);
        }
    }

    static byte[] bytes(Object value) {
        try {
            return JR.asBytes(value);
        } catch (IOException e) {
            throw new IllegalStateException("maps, lists and values are always written", e);
        }
    }
}
