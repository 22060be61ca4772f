package ai.yinian.server;

import ai.yinian.Finish;
import ai.yinian.YinianException;
import java.util.LinkedHashMap;
import java.util.Map;

/** A failure in OpenAI's shape, with its HTTP status. */
final class ApiError extends Exception {
    private static final long serialVersionUID = 1;
    private static final String BAD_REQUEST = "invalid_request_error";
    final int status;
    private final String type;
    private final String param;
    private final String code;

    ApiError(int status, String type, String param, String code, String message) {
        super(message, null, false, false);
        this.status = status;
        this.type = type;
        this.param = param;
        this.code = code;
    }

    /** {@code param} may be null. */
    static ApiError invalid(String param, String format, Object... args) {
        return new ApiError(400, BAD_REQUEST, param, null, args.length == 0 ? format : String.format(format, args));
    }

    static ApiError noSuchModel(String message) {
        return new ApiError(404, BAD_REQUEST, "model", "model_not_found", message);
    }

    static ApiError http(int status, String message) {
        return new ApiError(status, BAD_REQUEST, null, null, message);
    }

    static ApiError unavailable(String message) {
        return new ApiError(503, "server_error", null, null, message);
    }

    /** Says in HTTP what the engine said. */
    static ApiError of(Throwable t) {
        if (t instanceof ApiError e) {
            return e;
        }
        if (!(t instanceof YinianException e)) {
            return new ApiError(500, "server_error", null, null, t.toString());
        }
        if (e.finish() == Finish.DEADLINE) {
            return new ApiError(504, "timeout_error", null, "deadline_exceeded", e.reason());
        }
        if (e.finish() == Finish.CANCELLED) {
            return unavailable(e.reason());
        }
        return switch (e.status()) {
            case INVALID, UNSUPPORTED -> http(400, e.reason());
            case BUSY -> new ApiError(429, "rate_limit_error", null, "queue_full", e.reason());
            case SHUTDOWN, BAD_HANDLE -> unavailable(e.reason());
            default -> new ApiError(500, "server_error", null, null, e.reason());
        };
    }

    boolean mayRetry() {
        return status == 429 || status == 503;
    }

    Map<String, Object> body() {
        Map<String, Object> error = new LinkedHashMap<>();
        error.put("message", getMessage());
        error.put("type", type);
        error.put("param", param);
        error.put("code", code);
        return Map.of("error", error);
    }
}
