package ai.yinian;

import java.util.List;

/**
 * How probable a token was by the model alone: before temperature, penalties and every other processor.
 *
 * @param token its id
 * @param rank 1 is the most probable token of all
 * @param logprob the natural logarithm of its probability
 * @param textEnd where the token's text ends in the chunk's text, in chars; 0 for a token of the prompt
 * @param top the most probable tokens at this place, best first, as many as the request asked for
 */
public record Logprob(int token, int rank, float logprob, int textEnd, List<Alternative> top) {
    /**
     * A token that could have been at this place.
     *
     * @param token its id
     * @param rank 1 is the most probable token of all
     * @param logprob the natural logarithm of its probability
     */
    public record Alternative(int token, int rank, float logprob) {}
}
