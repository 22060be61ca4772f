package ai.yinian.server;

import ai.yinian.Request;
import java.time.Duration;
import java.util.List;
import java.util.Map;

/**
 * A request as the engine takes it, with how its answer is to be written.
 *
 * @param logprobs the answer has them
 */
record Job(Request request, boolean chat, boolean stream, boolean includeUsage, int choices, boolean logprobs) {
    private static final int COMPLETION_TOKENS = 16; // OpenAI's default

    /** {@code model} is the one that is served. */
    static Job chat(byte[] body, String model) throws ApiError {
        Fields f = Fields.of(body);
        Object messages = f.any("messages");
        Integer most = f.small("max_completion_tokens");
        Integer older = f.small("max_tokens");
        boolean wanted = f.flag("logprobs");
        Integer top = f.small("top_logprobs");
        Request r = Request.chat(Json.text(java.util.Collections.singletonMap("messages", messages)));
        Job job = common(f, r, true, wanted, model);
        if (messages == null) {
            throw ApiError.invalid("messages", "messages is missing");
        }
        if (most != null && older != null && !most.equals(older)) {
            throw ApiError.invalid("max_tokens", "max_tokens and max_completion_tokens are both given, and differ");
        }
        if (top != null && !wanted) {
            throw ApiError.invalid("top_logprobs", "top_logprobs is given, but logprobs is not true");
        }
        if (wanted) {
            r.logprobs(top == null ? 0 : top);
        }
        if (most != null || older != null) {
            r.maxTokens(most != null ? most : older);
        }
        return job;
    }

    static Job completion(byte[] body, String model) throws ApiError {
        Fields f = Fields.of(body);
        Request r = prompt(f.any("prompt"));
        Integer most = f.small("max_tokens");
        Integer logprobs = f.small("logprobs");
        Job job = common(f, r, false, logprobs != null, model);
        if (logprobs != null) {
            r.logprobs(logprobs);
        }
        r.maxTokens(most == null ? COMPLETION_TOKENS : most);
        return job;
    }

    private static Request prompt(Object prompt) throws ApiError {
        if (prompt instanceof List<?> list && list.size() == 1 && list.get(0) instanceof String) {
            prompt = list.get(0);
        }
        if (prompt instanceof String text) {
            return Request.prompt(text);
        }
        if (prompt instanceof List<?> list && list.stream().allMatch(Job::isToken)) {
            return Request.tokens(list.stream().mapToInt(id -> ((Number) id).intValue()).toArray());
        }
        throw ApiError.invalid("prompt", "prompt is missing, or is not one prompt: a string or a list of token ids");
    }

    private static boolean isToken(Object id) {
        return (id instanceof Integer || id instanceof Long) && ((Number) id).longValue() >>> 32 == 0;
    }

    /** What both endpoints take; the last lines are the engine's own. Refuses what is left. */
    private static Job common(Fields f, Request r, boolean chat, boolean logprobs, String model) throws ApiError {
        String asked = f.text("model");
        boolean stream = f.flag("stream");
        Fields options = f.object("stream_options");
        boolean includeUsage = options != null && options.flag("include_usage");
        Integer n = f.small("n");
        sampling(f, r);
        f.refuseOthers();
        if (options != null) {
            options.refuseOthers();
        }
        if (options != null && !stream) {
            throw ApiError.invalid("stream_options", "stream_options is given, but stream is not true");
        }
        if (n != null && (n < 1 || n > 128)) {
            throw ApiError.invalid("n", "n is %d; expected 1 to 128", n);
        }
        if (asked != null && !asked.isEmpty() && !asked.equals(model)) {
            throw ApiError.noSuchModel("model \"" + asked + "\" is not served here; this is \"" + model + "\"");
        }
        int choices = n == null ? 1 : n;
        r.choices(choices);
        if (!stream) {
            r.finalOnly();
        }
        return new Job(r, chat, stream, includeUsage, choices, logprobs);
    }

    private static void sampling(Fields f, Request r) throws ApiError {
        set(f.texts("stop"), r::stopTexts);
        set(f.whole("seed"), r::seed);
        set(f.number("temperature"), r::temperature);
        set(f.number("top_p"), r::topP);
        set(f.number("presence_penalty"), r::presencePenalty);
        set(f.number("frequency_penalty"), r::frequencyPenalty);
        set(f.any("logit_bias"), bias -> r.extraJson(Json.text(Map.of("logit_bias", bias))));
        set(f.small("top_k"), r::topK);
        set(f.number("min_p"), r::minP);
        set(f.number("repetition_penalty"), r::repetitionPenalty);
        set(f.small("min_tokens"), r::minTokens);
        if (f.flag("ignore_eos")) {
            r.ignoreEos();
        }
    }

    private static <T> void set(T value, java.util.function.Function<T, Request> how) {
        if (value != null) {
            how.apply(value);
        }
    }

    /** From the header x-request-timeout-ms, which may be null. */
    void timeout(String header) throws ApiError {
        if (header == null) {
            return;
        }
        int ms = 0;
        try {
            ms = Integer.parseInt(header);
        } catch (NumberFormatException e) {
            // Told below.
        }
        if (ms <= 0) {
            throw ApiError.invalid(null, "header x-request-timeout-ms is \"%s\"; expected milliseconds, 1 to 2147483647", header);
        }
        request.timeout(Duration.ofMillis(ms));
    }
}
