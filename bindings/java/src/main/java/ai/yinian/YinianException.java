package ai.yinian;

/** A call that failed, or a request that ended before its answer was whole. The message is the library's. */
public final class YinianException extends RuntimeException {
    private static final long serialVersionUID = 1;
    private final Status status;
    private final int flags;
    private final transient Result result;

    YinianException(Status status, int flags, String message) {
        super(status + ": " + message);
        this.status = status;
        this.flags = flags;
        this.result = null;
    }

    YinianException(Status status, String message, Result result) {
        super(status == Status.OK ? "the request ended early: " + result.finish() : status + ": " + message);
        this.status = status;
        this.flags = 0;
        this.result = result;
    }

    /** {@link Status#OK} for a request that was cancelled, late or overrun. */
    public Status status() {
        return status;
    }

    /** What there is of the answer; null for a failed call. */
    public Result result() {
        return result;
    }

    /** How the request ended; null for a failed call. */
    public Finish finish() {
        return result == null ? null : result.finish();
    }

    /** The same call may succeed later. */
    public boolean mayRetry() {
        return (flags & 1) != 0;
    }

    /** The engine cannot be used any more. */
    public boolean isUnusable() {
        return (flags & 2) != 0;
    }
}
