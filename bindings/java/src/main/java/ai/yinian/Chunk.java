package ai.yinian;

import java.util.List;

/**
 * New output of one choice.
 *
 * @param choice which of the request's choices, from 0
 * @param text whole code points; may be empty
 * @param tokens ids of the tokens behind it; empty unless the request wants them or logprobs. The array is the holder's
 * @param logprobs one for each token; empty unless the request asks for them
 * @param promptLogprobs tokens of the prompt from its second on, with their ids; empty unless the request asks for them. They come
 *     once, with choice 0 and before any output
 * @param finish how the choice ended, in its last chunk: {@link Finish#EOS}, {@link Finish#STOP} or {@link Finish#LENGTH}; otherwise
 *     {@link Finish#NONE}. A choice that ended early has no last chunk: an exception tells
 */
public record Chunk(int choice, String text, int[] tokens, List<Logprob> logprobs, List<Logprob> promptLogprobs, Finish finish) {}
