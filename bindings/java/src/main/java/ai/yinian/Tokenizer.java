package ai.yinian;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** Text to token ids and back. */
public final class Tokenizer implements AutoCloseable {
    private static final int NO_SPECIAL = 1;

    private final long id;
    private final Cleaner.Cleanable cleanable;

    Tokenizer(long id) {
        this.id = id;
        cleanable = Engine.CLEANER.register(this, () -> Native.tokenizerFree(id));
    }

    /** Opens the tokenizer of a model directory, or a tokenizer.json. */
    public static Tokenizer open(String path) {
        byte[] error = Native.newError();
        long[] id = new long[1];
        Native.check(Native.tokenizerOpen(Native.utf8("the path", path), id, error), error);
        return new Tokenizer(id[0]);
    }

    /** Token ids, with the tokenizer's own begin and end tokens when {@code special}. */
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
        Native.check(status, error);
        Reference.reachabilityFence(this);
        return Arrays.copyOf(ids, (int) n[0]);
    }

    public String decode(int... ids) {
        byte[] error = Native.newError();
        byte[] text = Native.detokenize(id, ids, error);
        Reference.reachabilityFence(this);
        if (text == null) {
            throw Native.failure(error);
        }
        return new String(text, StandardCharsets.UTF_8);
    }

    @Override
    public void close() {
        cleanable.clean();
    }
}
