package ai.yinian;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.Arrays;

/**
 * Text to token ids and back, and conversations to text. Needs no device. Every method may be called from any thread at any time.
 * Close it; one that is forgotten is cleaned up when it is collected.
 */
public final class Tokenizer implements AutoCloseable {
    private static final int NO_SPECIAL = 1;
    private static final int SHOW_SPECIAL = 1;

    private final long id;
    private final Cleaner.Cleanable cleanable;

    Tokenizer(long id) {
        this.id = id;
        cleanable = Engine.CLEANER.register(this, () -> Native.tokenizerFree(id));
    }

    /**
     * Opens the tokenizer and chat template of a model; needs no engine.
     *
     * @param path a model directory, or a tokenizer.json
     * @return the tokenizer
     * @throws YinianException INVALID, NOT_FOUND, IO, NO_MEMORY
     */
    public static Tokenizer open(String path) {
        byte[] error = Native.newError();
        byte[] raw = Native.utf8("the path", path);
        long[] id = new long[1];
        Native.check(Native.apart(() -> Native.tokenizerOpen(raw, id, error)), error);
        return new Tokenizer(id[0]);
    }

    /**
     * Text to token ids.
     *
     * @param text any text without lone surrogates
     * @param special whether the tokenizer's own begin and end tokens are put around it
     * @return token ids
     * @throws YinianException INVALID, BAD_HANDLE, UNSUPPORTED
     */
    public int[] encode(String text, boolean special) {
        byte[] raw = Native.utf8("the text", text);
        byte[] error = Native.newError();
        int[] ids = new int[raw.length + 8];
        long[] n = new long[1];
        int status = Native.tokenize(id, raw, special ? 0 : NO_SPECIAL, ids, n, error);
        if (status == Native.TOO_SMALL) {
            ids = new int[Math.toIntExact(n[0])];
            status = Native.tokenize(id, raw, special ? 0 : NO_SPECIAL, ids, n, error);
        }
        Reference.reachabilityFence(this);
        Native.check(status, error);
        return Arrays.copyOf(ids, (int) n[0]);
    }

    /**
     * Token ids to text, without special tokens.
     *
     * @param ids token ids
     * @return text; what is no whole code point is U+FFFD
     * @throws YinianException INVALID, BAD_HANDLE
     */
    public String decode(int... ids) {
        return decode(ids, 0);
    }

    /**
     * Token ids to text, with special tokens shown by name.
     *
     * @param ids token ids
     * @return text; what is no whole code point is U+FFFD
     * @throws YinianException INVALID, BAD_HANDLE
     */
    public String show(int... ids) {
        return decode(ids, SHOW_SPECIAL);
    }

    private String decode(int[] ids, int flags) {
        byte[] error = Native.newError();
        byte[] text = Native.detokenize(id, ids, flags, error);
        Reference.reachabilityFence(this);
        return Native.text(text, error);
    }

    /**
     * Renders a conversation with the model's chat template.
     *
     * @param json an object, {"messages": [...], ...}
     * @return the text that would be tokenized
     * @throws YinianException INVALID, BAD_HANDLE, UNSUPPORTED (the model has no template), NO_MEMORY
     */
    public String renderChat(String json) {
        byte[] error = Native.newError();
        byte[] text = Native.chatRender(id, Native.utf8("the chat", json), error);
        Reference.reachabilityFence(this);
        return Native.text(text, error);
    }

    /** Gives it back. Idempotent. */
    @Override
    public void close() {
        cleanable.clean();
    }
}
