package ai.yinian;

/** How a request or one of its choices ended. */
public enum Finish {
    /** Not yet. */
    NONE,
    /** The model ended its answer. */
    EOS,
    /** A stop token or stop text. */
    STOP,
    /** The most tokens the request allows, or the model's length. */
    LENGTH,
    /** It was cancelled, or its engine closed. */
    CANCELLED,
    /** Its timeout has passed. */
    DEADLINE,
    /** Nobody read, and there was no room left. */
    OVERRUN,
    /** It failed. */
    ERROR;

    static Finish of(int code) {
        return code >= 0 && code < values().length ? values()[code] : NONE;
    }

    /** {@return whether the answer is whole: EOS, STOP or LENGTH} */
    public boolean isWhole() {
        return this == EOS || this == STOP || this == LENGTH;
    }
}
