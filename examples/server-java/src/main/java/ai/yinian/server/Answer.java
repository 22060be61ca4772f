package ai.yinian.server;

import ai.yinian.Chunk;
import ai.yinian.Finish;
import ai.yinian.Logprob;
import ai.yinian.Result;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Flow;

/** Writes what a request makes, as one answer or as events. All of it runs on the event loop of its exchange. */
final class Answer implements Flow.Subscriber<Chunk> {
    private final Job job;
    private final Model model;
    private final Exchange exchange;
    private final String id;
    private final long created = System.currentTimeMillis() / 1000;
    /** Of each choice the whole output, unless it is streamed. */
    private final Chunk[] whole;
    /** Of each choice the characters so far, for text_offset. */
    private final int[] offsets;
    private final boolean[] begun;
    private boolean started;
    private Result result;
    private Flow.Subscription subscription;

    Answer(Job job, Model model, Exchange exchange) {
        this.job = job;
        this.model = model;
        this.exchange = exchange;
        id = Exchange.newId(job.chat() ? "chatcmpl-" : "cmpl-");
        whole = new Chunk[job.choices()];
        offsets = new int[job.choices()];
        begun = new boolean[job.choices()];
    }

    /** Before the last signal. */
    void ended(Result result) {
        this.result = result;
    }

    @Override
    public void onSubscribe(Flow.Subscription s) {
        subscription = s;
        // The request ends with its connection.
        exchange.onClose(s::cancel);
        s.request(job.stream() ? 1 : Long.MAX_VALUE);
    }

    @Override
    public void onNext(Chunk chunk) {
        if (!job.stream()) {
            whole[chunk.choice()] = chunk;
            return;
        }
        try {
            stream(chunk);
        } catch (RuntimeException e) {
            subscription.cancel();
            onError(e);
        }
    }

    private void stream(Chunk chunk) {
        Map<String, Object> delta = new LinkedHashMap<>();
        if (!begun[chunk.choice()]) {
            begun[chunk.choice()] = true;
            delta.put("role", "assistant");
        }
        delta.put("content", chunk.text());
        event(body("chat.completion.chunk", List.of(choice(chunk, "delta", delta))));
        // A client that does not read leaves the rest with the engine, up to its limit.
        exchange.whenWritable(() -> subscription.request(1));
    }

    @Override
    public void onError(Throwable t) {
        if (!started) {
            exchange.fail(ApiError.of(t));
            return;
        }
        event(ApiError.of(t).body());
        exchange.end();
    }

    @Override
    public void onComplete() {
        try {
            if (job.stream()) {
                endEvents();
            } else {
                answerWhole();
            }
        } catch (RuntimeException e) {
            onError(e);
        }
    }

    private void endEvents() {
        if (job.includeUsage()) {
            Map<String, Object> last = body("chat.completion.chunk", List.of());
            last.put("usage", usage());
            event(last);
        }
        send("data: [DONE]\n\n".getBytes(StandardCharsets.UTF_8));
        exchange.end();
    }

    private void answerWhole() {
        List<Object> choices = new ArrayList<>();
        for (Chunk chunk : whole) {
            choices.add(choice(chunk, "message", Map.of("role", "assistant", "content", chunk.text())));
        }
        Map<String, Object> body = body("chat.completion", choices);
        body.put("usage", usage());
        exchange.answer(200, body);
    }

    private void event(Map<String, Object> value) {
        byte[] json = Json.bytes(value);
        byte[] event = new byte[json.length + 8];
        System.arraycopy("data: ".getBytes(StandardCharsets.US_ASCII), 0, event, 0, 6);
        System.arraycopy(json, 0, event, 6, json.length);
        event[json.length + 6] = '\n';
        event[json.length + 7] = '\n';
        send(event);
    }

    private void send(byte[] event) {
        if (!started) {
            started = true;
            exchange.beginEvents();
        }
        exchange.send(event);
    }

    private Map<String, Object> body(String chatObject, List<Object> choices) {
        Map<String, Object> body = new LinkedHashMap<>();
        body.put("id", id);
        body.put("object", job.chat() ? chatObject : "text_completion");
        body.put("created", created);
        body.put("model", model.name());
        body.put("choices", choices);
        if (job.includeUsage()) {
            body.put("usage", null);
        }
        return body;
    }

    /** One of an answer's or an event's; the text of a chat's is under {@code key}. */
    private Map<String, Object> choice(Chunk chunk, String key, Map<String, Object> text) {
        Map<String, Object> out = new LinkedHashMap<>();
        out.put("index", chunk.choice());
        out.put("finish_reason", switch (chunk.finish()) {
            case EOS, STOP -> "stop";
            case LENGTH -> "length";
            default -> null;
        });
        out.put("logprobs", !job.logprobs() ? null : job.chat() ? chatLogprobs(chunk) : textLogprobs(chunk));
        out.put(job.chat() ? key : "text", job.chat() ? text : chunk.text());
        return out;
    }

    private Map<String, Object> chatLogprobs(Chunk chunk) {
        List<Object> content = new ArrayList<>();
        for (Logprob p : chunk.logprobs()) {
            Map<String, Object> token = token(p.token(), p.logprob());
            token.put("top_logprobs", p.top().stream().map(other -> token(other.token(), other.logprob())).toList());
            content.add(token);
        }
        Map<String, Object> out = new LinkedHashMap<>();
        out.put("content", content);
        out.put("refusal", null);
        return out;
    }

    private Map<String, Object> token(int token, float logprob) {
        String text = model.tokenText(token);
        Map<String, Object> out = new LinkedHashMap<>();
        out.put("token", text);
        out.put("logprob", logprob);
        // A part of a character has no text, and so its bytes are not known either.
        out.put("bytes", text.indexOf('\ufffd') >= 0 ? null : unsigned(text.getBytes(StandardCharsets.UTF_8)));
        return out;
    }

    private static List<Integer> unsigned(byte[] bytes) {
        List<Integer> all = new ArrayList<>(bytes.length);
        for (byte b : bytes) {
            all.add(b & 0xff);
        }
        return all;
    }

    private Map<String, Object> textLogprobs(Chunk chunk) {
        List<Object> tokens = new ArrayList<>();
        List<Object> probs = new ArrayList<>();
        List<Object> offsetsOut = new ArrayList<>();
        List<Object> tops = new ArrayList<>();
        int begin = 0;
        for (Logprob p : chunk.logprobs()) {
            tokens.add(model.tokenText(p.token()));
            probs.add(p.logprob());
            offsetsOut.add(offsets[chunk.choice()] + begin);
            begin = chunk.text().codePointCount(0, p.textEnd());
            Map<String, Object> top = new LinkedHashMap<>();
            p.top().forEach(other -> top.put(model.tokenText(other.token()), other.logprob()));
            tops.add(top);
        }
        offsets[chunk.choice()] += chunk.text().codePointCount(0, chunk.text().length());
        Map<String, Object> out = new LinkedHashMap<>();
        out.put("tokens", tokens);
        out.put("token_logprobs", probs);
        out.put("top_logprobs", tops);
        out.put("text_offset", offsetsOut);
        return out;
    }

    private Map<String, Object> usage() {
        Map<String, Object> usage = new LinkedHashMap<>();
        usage.put("prompt_tokens", result.promptTokens());
        usage.put("completion_tokens", result.completionTokens());
        usage.put("total_tokens", result.promptTokens() + result.completionTokens());
        usage.put("prompt_tokens_details", Map.of("cached_tokens", result.cachedTokens()));
        return usage;
    }
}
