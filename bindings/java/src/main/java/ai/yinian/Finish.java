package ai.yinian;

/** How a request ended. */
public enum Finish {
    NONE, EOS, STOP, LENGTH, CANCELLED, DEADLINE,
    /** Nobody read, and there was no room left. */
    OVERRUN, ERROR;

    static Finish of(int code) {
        return code >= 0 && code < values().length ? values()[code] : NONE;
    }

    /** The answer is whole. */
    public boolean isWhole() {
        return this == EOS || this == STOP || this == LENGTH;
    }
}
