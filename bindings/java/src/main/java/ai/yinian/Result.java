package ai.yinian;

import java.time.Duration;
import java.util.List;

/**
 * A request that has ended.
 *
 * @param finish how; of several choices' ends the worst
 * @param choices of {@link Engine#complete} the whole output of each choice; otherwise empty, the chunks had it
 * @param promptTokens tokens of the prompt
 * @param cachedTokens those of them that the prefix cache had
 * @param completionTokens tokens that were made, of all choices
 * @param timeToFirst from handing in to the first token; zero when none was made
 * @param total from handing in to the end
 */
public record Result(Finish finish, List<Chunk> choices, int promptTokens, int cachedTokens, int completionTokens,
                     Duration timeToFirst, Duration total) {
    static final List<Chunk> NO_CHOICES = List.of();

    static Result failed() {
        return new Result(Finish.ERROR, NO_CHOICES, 0, 0, 0, Duration.ZERO, Duration.ZERO);
    }

    Result with(Finish finish) {
        return new Result(finish, choices, promptTokens, cachedTokens, completionTokens, timeToFirst, total);
    }

    Result with(List<Chunk> choices) {
        return new Result(finish, choices, promptTokens, cachedTokens, completionTokens, timeToFirst, total);
    }

    /** {@return the text of the first choice; empty when there are no choices} */
    public String text() {
        return choices.isEmpty() ? "" : choices.get(0).text();
    }
}
