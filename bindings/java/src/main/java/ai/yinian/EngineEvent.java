package ai.yinian;

/**
 * Load progress, or a change of state.
 *
 * @param state what the engine is up to
 * @param permille how much is loaded, 0 to 1000, while it is {@link EngineState#LOADING}
 * @param message for people; of {@link EngineState#FAILED} the reason
 */
public record EngineEvent(EngineState state, int permille, String message) {}
