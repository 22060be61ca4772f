package ai.yinian;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * What to generate. What is not set takes the model's defaults. Handing it in takes a copy, so it may be changed and handed in
 * again. Not for several threads at once. Values out of range are told by the engine when the request is handed in; what is marked so
 * here, and a lone surrogate in a text, are refused at once, with a {@link YinianException} of {@link Status#INVALID}.
 */
public final class Request {
    private static final int OUT_TEXT = 1;
    private static final int OUT_TOKENS = 2;
    private static final int OUT_LOGPROBS = 4;
    private static final int OUT_FINAL_ONLY = 8;
    private static final int OUT_PROMPT_LOGPROBS = 16;
    private static final int MAX_TOKENS_MODEL = -1;
    private static final int FLAT_BYTES = 120;
    private static final int FLAG_IGNORE_EOS = 1;
    private static final int FLAG_SEEDED = 2;
    private static final int FLAG_NO_SPECIAL_TOKENS = 4;
    private static final byte[] NO_BYTES = {};
    private static final int[] NO_INTS = {};

    private byte[] prompt = NO_BYTES;
    private byte[] chat = NO_BYTES;
    private byte[] salt = NO_BYTES;
    private byte[] extra = NO_BYTES;
    private int[] promptTokens = NO_INTS;
    private int[] stopTokens = NO_INTS;
    private byte[][] stopTexts = {};
    private int set;
    private int output = OUT_TEXT;
    private int flags;
    private int choices = 1;
    private int logprobs;
    private int promptLogprobs;
    private int maxTokens;
    private int minTokens;
    private int topK;
    private int priority;
    private long seed;
    private long timeoutMs;
    private float temperature;
    private float topP;
    private float minP;
    private float repetition;
    private float presence;
    private float frequency;

    private Request() {}

    /**
     * Continues a text.
     *
     * @param text the prompt; at most 2^24 bytes of UTF-8
     * @return a request to be refined
     */
    public static Request prompt(String text) {
        Request r = new Request();
        r.prompt = Native.utf8("the prompt", text);
        return r;
    }

    /**
     * Answers a conversation.
     *
     * @param json an object, {"messages": [...], "tools": [...], ...}, rendered with the model's chat template
     * @return a request to be refined
     */
    public static Request chat(String json) {
        Request r = new Request();
        r.chat = Native.utf8("the chat", json);
        return r;
    }

    /**
     * Continues a text that is tokenized already.
     *
     * @param ids token ids, at most 2^24
     * @return a request to be refined
     */
    public static Request tokens(int... ids) {
        Request r = new Request();
        r.promptTokens = ids.clone();
        return r;
    }

    /**
     * The most tokens a choice may have.
     *
     * @param n 1 to 2^30
     * @return this
     */
    public Request maxTokens(int n) {
        maxTokens = natural("maxTokens", n);
        return set(1);
    }

    /**
     * The fewest tokens a choice must have.
     *
     * @param n 0 or more
     * @return this
     */
    public Request minTokens(int n) {
        minTokens = natural("minTokens", n);
        return this;
    }

    /**
     * How much the less probable tokens get.
     *
     * @param t 0 to 100; 0 is greedy
     * @return this
     */
    public Request temperature(double t) {
        temperature = (float) t;
        return set(2);
    }

    /**
     * Keeps the most probable tokens whose probabilities add up to this.
     *
     * @param p above 0, at most 1; 1 keeps all
     * @return this
     */
    public Request topP(double p) {
        topP = (float) p;
        return set(4);
    }

    /**
     * Drops tokens that are less probable than this share of the most probable one.
     *
     * @param p 0 to 1; 0 keeps all
     * @return this
     */
    public Request minP(double p) {
        minP = (float) p;
        return set(8);
    }

    /**
     * Keeps as many most probable tokens.
     *
     * @param k 0 or -1 keeps all
     * @return this
     */
    public Request topK(int k) {
        topK = k;
        return set(16);
    }

    /**
     * Over prompt and output: divides logits above 0, multiplies others.
     *
     * @param p above 0, at most 100; 1 is none
     * @return this
     */
    public Request repetitionPenalty(double p) {
        repetition = (float) p;
        return set(32);
    }

    /**
     * Taken off the logits of tokens that the output has.
     *
     * @param p -2 to 2
     * @return this
     */
    public Request presencePenalty(double p) {
        presence = (float) p;
        return set(64);
    }

    /**
     * Taken off once for every time the output has the token.
     *
     * @param p -2 to 2
     * @return this
     */
    public Request frequencyPenalty(double p) {
        frequency = (float) p;
        return set(128);
    }

    /**
     * Repeats the random choices of a request with the same seed.
     *
     * @param s any 64 bits
     * @return this
     */
    public Request seed(long s) {
        seed = s;
        flags |= FLAG_SEEDED;
        return this;
    }

    /**
     * Who goes first, with {@code "scheduling_policy": "priority"} of the config.
     *
     * @param p smaller is more urgent
     * @return this
     */
    public Request priority(int p) {
        priority = p;
        return this;
    }

    /**
     * Texts that end the output; none of their text is delivered.
     *
     * @param texts at most 64, each at most 1024 bytes
     * @return this
     */
    public Request stopTexts(List<String> texts) {
        stopTexts = texts.stream().map(t -> Native.utf8("a stop text", t)).toArray(byte[][]::new);
        return this;
    }

    /**
     * Tokens that end the output; they are reported, their text is not.
     *
     * @param ids at most 64 with the model's own
     * @return this
     */
    public Request stopTokens(int... ids) {
        stopTokens = ids.clone();
        return this;
    }

    /**
     * The model's own end tokens do not end the output.
     *
     * @return this
     */
    public Request ignoreEos() {
        flags |= FLAG_IGNORE_EOS;
        return this;
    }

    /**
     * The prompt is tokenized without the tokenizer's own begin and end tokens.
     *
     * @return this
     */
    public Request noSpecialTokens() {
        flags |= FLAG_NO_SPECIAL_TOKENS;
        return this;
    }

    /**
     * As many tokens as the model's length allows.
     *
     * @return this
     */
    public Request maxTokensOfModel() {
        maxTokens = MAX_TOKENS_MODEL;
        return set(1);
    }

    /**
     * Several answers to the prompt, which is computed once.
     *
     * @param n 1 to 128
     * @return this
     */
    public Request choices(int n) {
        if (n < 1 || n > 128) {
            throw new YinianException(Status.INVALID, 0, "choices is " + n + "; expected 1 to 128");
        }
        choices = n;
        return this;
    }

    /**
     * Chunks carry their tokens.
     *
     * @return this
     */
    public Request wantTokens() {
        output |= OUT_TOKENS;
        return this;
    }

    /**
     * Chunks carry their tokens with their logprobs.
     *
     * @param top how many of the most probable tokens are reported beside each, 0 to 20
     * @return this
     */
    public Request logprobs(int top) {
        logprobs = alternatives("logprobs", top);
        output |= OUT_TOKENS | OUT_LOGPROBS;
        return this;
    }

    /**
     * The first chunks carry the logprobs of the prompt's tokens. The prompt is then computed whole, whatever the prefix cache
     * holds of it.
     *
     * @param top how many of the most probable tokens are reported beside each, 0 to 20
     * @return this
     */
    public Request promptLogprobs(int top) {
        promptLogprobs = alternatives("promptLogprobs", top);
        output |= OUT_PROMPT_LOGPROBS;
        return this;
    }

    /**
     * Each choice comes as one chunk, when it has ended, instead of as it is made. What is held back does not count as unread.
     *
     * @return this
     */
    public Request finalOnly() {
        output |= OUT_FINAL_ONLY;
        return this;
    }

    /**
     * From handing in to the end, waiting included, rounded up to milliseconds.
     *
     * @param d more than nothing, at most 49 days
     * @return this
     */
    public Request timeout(Duration d) {
        if (d.isZero() || d.isNegative()) {
            throw new YinianException(Status.INVALID, 0, "timeout is " + d + "; expected more than nothing");
        }
        long ms = d.compareTo(Duration.ofDays(49)) > 0 ? Long.MAX_VALUE : d.plusNanos(999_999).toMillis();
        if (ms > 0xffff_ffffL) {
            throw new YinianException(Status.INVALID, 0, "timeout is " + d + "; expected at most 49 days");
        }
        timeoutMs = ms;
        return this;
    }

    /**
     * Cached prefixes are shared only between equal salts.
     *
     * @param s any bytes, at most 1024
     * @return this
     */
    public Request cacheSalt(byte[] s) {
        salt = s.clone();
        return this;
    }

    /**
     * Rare parameters; one that the library does not know is an error.
     *
     * @param json an object, {"logit_bias": {"token id": -100 to 100, ...}}
     * @return this
     */
    public Request extraJson(String json) {
        extra = Native.utf8("extraJson", json);
        return this;
    }

    private Request set(int bit) {
        set |= bit;
        return this;
    }

    private static int natural(String name, int n) {
        if (n < 0) {
            throw new YinianException(Status.INVALID, 0, name + " is " + n + "; expected 0 or more");
        }
        return n;
    }

    private static int alternatives(String name, int n) {
        if (n < 0 || n > 20) {
            throw new YinianException(Status.INVALID, 0, name + " is " + n + "; expected 0 to 20");
        }
        return n;
    }

    /** The request as it is now, in the form in which it crosses. */
    Encoded encode(boolean finalOnly) {
        int out = finalOnly ? output | OUT_FINAL_ONLY : output;
        ByteBuffer b = ByteBuffer.allocate(FLAT_BYTES).order(ByteOrder.nativeOrder());
        b.putLong(0).putLong(0).putLong(seed);
        b.putInt(set).putInt(out).putInt(flags).putInt(maxTokens);
        b.putInt(minTokens).putInt((int) timeoutMs).putInt(topK).putInt(priority);
        b.putFloat(temperature).putFloat(topP).putFloat(minP).putFloat(repetition).putFloat(presence).putFloat(frequency);
        b.putInt(prompt.length).putInt(chat.length).putInt(salt.length).putInt(extra.length);
        b.putInt(promptTokens.length).putInt(stopTokens.length).putInt(stopTexts.length);
        b.putShort((short) choices).putShort((short) logprobs).putShort((short) promptLogprobs);
        ByteArrayOutputStream texts = new ByteArrayOutputStream();
        for (byte[] part : List.of(prompt, chat, salt, extra)) {
            texts.writeBytes(part);
        }
        for (byte[] stop : stopTexts) {
            texts.writeBytes(stop);
        }
        int[] words = promptTokens;
        if (stopTokens.length + stopTexts.length > 0) {
            IntStream lengths = Arrays.stream(stopTexts).mapToInt(s -> s.length);
            words = IntStream.concat(IntStream.concat(Arrays.stream(promptTokens), Arrays.stream(stopTokens)), lengths).toArray();
        }
        return new Encoded(b.array(), texts.toByteArray(), words, choices, (out & OUT_FINAL_ONLY) != 0);
    }

    /** A yn_flat_request with what follows it. It does not change, and may be handed in any number of times. */
    record Encoded(byte[] fields, byte[] texts, int[] words, int choices, boolean finalOnly) {
        /** Hands the request in under a key; its id. */
        long submit(long engine, long key) {
            byte[] addressed = fields.clone();
            ByteBuffer.wrap(addressed).order(ByteOrder.nativeOrder()).putLong(engine).putLong(key);
            long[] id = new long[1];
            byte[] error = Native.newError();
            Native.check(Native.submit(addressed, texts, words, id, error), error);
            return id[0];
        }
    }
}
