package ai.yinian;

/**
 * A line of the library's log.
 *
 * @param level how much it matters
 * @param message what it says, with the name of its engine in front
 */
public record LogLine(LogLevel level, String message) {}
