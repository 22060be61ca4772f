package ai.yinian;

/** A call that failed, or a request that ended before its answer was whole. */
public final class YinianException extends RuntimeException {
    static final int RETRY = 1;
    static final int UNUSABLE = 2;
    private static final long serialVersionUID = 1;

    /** What kind of failure it was. */
    private final Status status;
    /** RETRY, UNUSABLE. */
    private final int flags;
    /** The library's message. */
    private final String reason;
    private final transient Result result;

    YinianException(Status status, int flags, String reason) {
        super(status + ": " + reason);
        this.status = status;
        this.flags = flags;
        this.reason = reason;
        this.result = null;
    }

    YinianException(Status status, String reason, Result result) {
        super(status == Status.OK ? "the request ended early: " + result.finish() : status + ": " + reason);
        this.status = status;
        this.flags = 0;
        this.reason = status == Status.OK ? getMessage() : reason;
        this.result = result;
    }

    YinianException with(Result result) {
        return new YinianException(status, reason, result);
    }

    /** {@return the kind of failure; {@link Status#OK} for a request that was cancelled, late or overrun} */
    public Status status() {
        return status;
    }

    /** {@return the library's message alone, where {@link #getMessage} has the status in front} */
    public String reason() {
        return reason;
    }

    /** {@return what there is of the answer; null for a failed call} */
    public Result result() {
        return result;
    }

    /** {@return how the request ended; null for a failed call} */
    public Finish finish() {
        return result == null ? null : result.finish();
    }

    /** {@return whether the same call may succeed later} */
    public boolean mayRetry() {
        return (flags & RETRY) != 0;
    }

    /** {@return whether the engine cannot be used any more} */
    public boolean isUnusable() {
        return (flags & UNUSABLE) != 0;
    }
}
