package ai.yinian;

/** What kind of failure it was. */
public enum Status {
    /** None. */
    OK(0),
    /** An argument, a config value, a model file or a template is wrong; the same call cannot succeed later. */
    INVALID(-1),
    /** The engine or tokenizer is closed. */
    BAD_HANDLE(-2),
    /** Well-formed, but this build of the library lacks the feature. */
    UNSUPPORTED(-3),
    /** Too many requests wait, or the model still loads: retry later or shed load. */
    BUSY(-4),
    /** Nothing happened in time. */
    TIMEOUT(-5),
    /** A buffer is too small. */
    TOO_SMALL(-6),
    /** The engine is draining or closed. */
    SHUTDOWN(-7),
    /** A named thing does not exist. */
    NOT_FOUND(-8),
    /** The operating system refused to read, map or open something. */
    IO(-9),
    /** Host or device memory did not suffice. */
    NO_MEMORY(-10),
    /** The device or its driver failed. */
    DEVICE(-11),
    /** A bug of the library; please report it. */
    INTERNAL(-12),
    /** The process forked; the child has no engine threads. */
    FORKED(-13),
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

    /** The library's own name, YN_E_BUSY. */
    String nativeName() {
        return Native.statusName(code);
    }
}
