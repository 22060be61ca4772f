package ai.yinian;

/** What an engine is up to. */
public enum EngineState {
    /** The model loads; requests are accepted and wait. */
    LOADING,
    /** Requests run. */
    READY,
    /** New requests are refused, the accepted ones run on. */
    DRAINING,
    /** Final: requests fail with what caused it; stats, info and closing still work. */
    FAILED,
    /** A state of a later library. */
    UNKNOWN;

    static EngineState of(int code) {
        return code >= 0 && code < UNKNOWN.ordinal() ? values()[code] : UNKNOWN;
    }
}
