package ai.yinian;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;

/** The natives, registered by yinian_jni.c. Statuses are YN_OK or YN_E_*; an {@code error} is a yn_error. */
final class Native {
    static final int OK = 0;
    static final int TIMEOUT = -5;
    static final int TOO_SMALL = -6;
    /** Before 1.0 each minor version of the library may change its ABI. */
    private static final int ABI_VERSION = 0x0001;

    private Native() {}

    static {
        String path = System.getProperty("ai.yinian.library");
        if (path == null) {
            System.loadLibrary("yinian_jni");
        } else {
            System.load(path);
        }
        int version = version();
        if (version >>> 16 != ABI_VERSION) {
            throw new UnsatisfiedLinkError("ai.yinian is for libyinian 0.1, the loaded library is "
                + (version >>> 24) + "." + (version >>> 16 & 0xff));
        }
    }

    static native int version();

    static native int create(byte[] config, long[] engine, byte[] error);

    static native int free(long engine);

    static native int cancel(long engine, long request);

    /** Waits for records; the bytes used, or a negative status. */
    static native int poll(long engine, ByteBuffer buffer);

    static native int stats(long engine, long[] out);

    static native int submit(byte[] fields, byte[] texts, int[] words, long[] request, byte[] error);

    static native int tokenizer(long engine, long[] tokenizer);

    static native int tokenizerOpen(byte[] path, long[] tokenizer, byte[] error);

    static native int tokenizerFree(long tokenizer);

    static native int tokenize(long tokenizer, byte[] text, int flags, int[] ids, long[] count, byte[] error);

    static native byte[] detokenize(long tokenizer, int[] ids, byte[] error);

    static byte[] newError() {
        return new byte[512];
    }

    static void check(int status, byte[] error) {
        if (status != OK) {
            throw failure(status, error);
        }
    }

    static YinianException failure(byte[] error) {
        return failure(ByteBuffer.wrap(error).order(ByteOrder.nativeOrder()).getInt(0), error);
    }

    private static YinianException failure(int status, byte[] error) {
        ByteBuffer e = ByteBuffer.wrap(error).order(ByteOrder.nativeOrder());
        if (e.getInt(0) != status) {
            return new YinianException(Status.of(status), 0, "no further message");
        }
        int end = 8;
        while (end < error.length && error[end] != 0) {
            end++;
        }
        return new YinianException(Status.of(status), e.getInt(4), new String(error, 8, end - 8, StandardCharsets.UTF_8));
    }

    /** Real UTF-8. A lone surrogate has none, so it is refused instead of replaced. */
    static byte[] utf8(String name, String text) {
        try {
            ByteBuffer bytes = StandardCharsets.UTF_8.newEncoder().onMalformedInput(CodingErrorAction.REPORT)
                .encode(CharBuffer.wrap(text));
            byte[] exact = new byte[bytes.remaining()];
            bytes.get(exact);
            return exact;
        } catch (CharacterCodingException e) {
            throw new YinianException(Status.INVALID, 0, name + " has a surrogate without its pair");
        }
    }
}
