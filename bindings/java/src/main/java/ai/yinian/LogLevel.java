package ai.yinian;

/** How much a log line matters, or how many are wanted: a level stands for itself and all before it. */
public enum LogLevel {
    /** None. */
    OFF,
    /** Something failed. */
    ERROR,
    /** Something may not be as meant. */
    WARN,
    /** What happens, in large. */
    INFO,
    /** What happens, in detail. */
    DEBUG,
    /** Everything. */
    TRACE;

    static LogLevel of(int code) {
        return values()[Math.min(Math.max(code, 0), values().length - 1)];
    }
}
