package ai.yinian;

import java.time.Duration;

/**
 * A request that has ended.
 *
 * @param text the answer of {@link Engine#complete}; empty for a {@link Generation}, whose chunks had it
 * @param timeToFirst zero when no token was made
 */
public record Result(Finish finish, String text, int promptTokens, int cachedTokens, int completionTokens,
                     Duration timeToFirst, Duration total) {
    static Result failed() {
        return new Result(Finish.ERROR, "", 0, 0, 0, Duration.ZERO, Duration.ZERO);
    }

    Result with(Finish finish, String text) {
        return new Result(finish, text, promptTokens, cachedTokens, completionTokens, timeToFirst, total);
    }
}
