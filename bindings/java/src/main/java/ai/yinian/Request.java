package ai.yinian;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/** What to generate. What is not set takes the model's defaults. Not for several threads at once. */
public final class Request {
    private static final int OUT_TEXT = 1;
    private static final int OUT_TOKENS = 2;
    private static final int OUT_FINAL_ONLY = 8;
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

    public static Request prompt(String text) {
        Request r = new Request();
        r.prompt = Native.utf8("the prompt", text);
        return r;
    }

    /** {"messages": [...], ...}, rendered with the model's chat template. */
    public static Request chat(String json) {
        Request r = new Request();
        r.chat = Native.utf8("the chat", json);
        return r;
    }

    public static Request tokens(int... ids) {
        Request r = new Request();
        r.promptTokens = ids.clone();
        return r;
    }

    public Request maxTokens(int n) {
        maxTokens = natural("maxTokens", n);
        return set(1);
    }

    public Request minTokens(int n) {
        minTokens = natural("minTokens", n);
        return this;
    }

    /** 0 is greedy. */
    public Request temperature(double t) {
        temperature = (float) t;
        return set(2);
    }

    public Request topP(double p) {
        topP = (float) p;
        return set(4);
    }

    public Request minP(double p) {
        minP = (float) p;
        return set(8);
    }

    public Request topK(int k) {
        topK = k;
        return set(16);
    }

    public Request repetitionPenalty(double p) {
        repetition = (float) p;
        return set(32);
    }

    public Request presencePenalty(double p) {
        presence = (float) p;
        return set(64);
    }

    public Request frequencyPenalty(double p) {
        frequency = (float) p;
        return set(128);
    }

    public Request seed(long s) {
        seed = s;
        flags |= FLAG_SEEDED;
        return this;
    }

    public Request priority(int p) {
        priority = p;
        return this;
    }

    public Request stopTexts(List<String> texts) {
        stopTexts = texts.stream().map(t -> Native.utf8("a stop text", t)).toArray(byte[][]::new);
        return this;
    }

    public Request stopTokens(int... ids) {
        stopTokens = ids.clone();
        return this;
    }

    public Request ignoreEos() {
        flags |= FLAG_IGNORE_EOS;
        return this;
    }

    public Request noSpecialTokens() {
        flags |= FLAG_NO_SPECIAL_TOKENS;
        return this;
    }

    /** Chunks carry their tokens. */
    public Request wantTokens() {
        output |= OUT_TOKENS;
        return this;
    }

    /** From hand-in to end, waiting included, rounded up to milliseconds. */
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

    /** Cached prefixes are shared only between equal salts. */
    public Request cacheSalt(byte[] s) {
        salt = s.clone();
        return this;
    }

    /** A JSON object of rare parameters. */
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

    /** As yn_flat_request. */
    private byte[] fields(long engine, long key, boolean finalOnly) {
        ByteBuffer b = ByteBuffer.allocate(112).order(ByteOrder.nativeOrder());
        b.putLong(engine).putLong(key).putLong(seed);
        b.putInt(set).putInt(finalOnly ? OUT_TEXT | OUT_FINAL_ONLY : output).putInt(flags).putInt(maxTokens);
        b.putInt(minTokens).putInt((int) timeoutMs).putInt(topK).putInt(priority);
        b.putFloat(temperature).putFloat(topP).putFloat(minP).putFloat(repetition).putFloat(presence).putFloat(frequency);
        b.putInt(prompt.length).putInt(chat.length).putInt(salt.length).putInt(extra.length);
        b.putInt(promptTokens.length).putInt(stopTokens.length).putInt(stopTexts.length);
        return b.array();
    }

    /** Hands the request in under a key; its id. */
    long submit(long engine, long key, boolean finalOnly) {
        ByteArrayOutputStream texts = new ByteArrayOutputStream();
        for (byte[] part : List.of(prompt, chat, salt, extra)) {
            texts.writeBytes(part);
        }
        for (byte[] stop : stopTexts) {
            texts.writeBytes(stop);
        }
        int[] words = IntStream.of(promptTokens.length, stopTokens.length, stopTexts.length).sum() == 0 ? NO_INTS
            : IntStream.concat(IntStream.concat(Arrays.stream(promptTokens), Arrays.stream(stopTokens)),
                Arrays.stream(stopTexts).mapToInt(s -> s.length)).toArray();
        long[] id = new long[1];
        byte[] error = Native.newError();
        Native.check(Native.submit(fields(engine, key, finalOnly), texts.toByteArray(), words, id, error), error);
        return id[0];
    }
}
