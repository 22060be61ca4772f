package ai.yinian;

/** What kind of failure it was. */
public enum Status {
    OK(0), INVALID(-1), BAD_HANDLE(-2), UNSUPPORTED(-3), BUSY(-4), TIMEOUT(-5), TOO_SMALL(-6), SHUTDOWN(-7), NOT_FOUND(-8),
    IO(-9), NO_MEMORY(-10), DEVICE(-11), INTERNAL(-12), FORKED(-13),
    /** A status of a later library. */
    UNKNOWN(Integer.MIN_VALUE);

    private final int code;

    Status(int code) {
        this.code = code;
    }

    static Status of(int code) {
        for (Status s : values()) {
            if (s.code == code) {
                return s;
            }
        }
        return UNKNOWN;
    }
}
