package ai.yinian;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.function.IntSupplier;

/** The natives, registered by yinian_jni.c. Statuses are YN_OK or YN_E_*; an {@code error} is a yn_error. */
final class Native {
    static final int OK = 0;
    static final int TIMEOUT = -5;
    static final int TOO_SMALL = -6;
    /** Before 1.0 each minor version of the library may change its ABI. */
    private static final int ABI_VERSION = 0x0001;
    /** For calls that tell a status alone. */
    private static final Map<Integer, String> WHY = Map.of(-2, "it is closed", -4, "the model still loads", -7, "the engine is draining");

    private Native() {}

    static {
        NativeLibrary.load();
        int version = version();
        if (version >>> 16 != ABI_VERSION) {
            throw new UnsatisfiedLinkError("ai.yinian is for libyinian 0.1, the loaded library is "
                + (version >>> 24) + "." + (version >>> 16 & 0xff));
        }
    }

    static native int version();

    static native byte[] buildInfo();

    static native String statusName(int status);

    static native int create(byte[] config, long[] engine, byte[] error);

    static native int free(long engine);

    static native int cancel(long engine, long request);

    static native int drain(long engine, int timeoutMs);

    /** Waits for records; the bytes used, or a negative status. */
    static native int poll(long engine, ByteBuffer buffer);

    /** {@code out} becomes a yn_stats. */
    static native int stats(long engine, byte[] out);

    /** Null with the error filled in; so are all that return bytes. */
    static native byte[] info(long engine, byte[] error);

    static native byte[] metrics(long engine, byte[] error);

    static native byte[] planMemory(byte[] config, byte[] error);

    static native int submit(byte[] fields, byte[] texts, int[] words, long[] request, byte[] error);

    static native int queueCreate(long[] queue, byte[] error);

    static native int queuePoll(long queue, ByteBuffer buffer);

    static native int queueFree(long queue);

    static native int logToQueue(long queue, int level);

    static native int tokenizer(long engine, long[] tokenizer);

    static native int tokenizerOpen(byte[] path, long[] tokenizer, byte[] error);

    static native int tokenizerFree(long tokenizer);

    static native int tokenize(long tokenizer, byte[] text, int flags, int[] ids, long[] count, byte[] error);

    static native byte[] detokenize(long tokenizer, int[] ids, int flags, byte[] error);

    static native byte[] chatRender(long tokenizer, byte[] chat, byte[] error);

    /**
     * A call that waits inside the library, made on a thread of its own: a virtual thread that waited there would hold its
     * carrier.
     */
    static int apart(IntSupplier call) {
        CompletableFuture<Integer> status = new CompletableFuture<>();
        Thread thread = new Thread(() -> {
            try {
                status.complete(call.getAsInt());
            } catch (Throwable t) {
                status.completeExceptionally(t);
            }
        }, "yinian-call");
        thread.setDaemon(true);
        thread.start();
        return status.join();
    }

    /** The text that a call returned, or its failure. */
    static String text(byte[] utf8, byte[] error) {
        if (utf8 == null) {
            throw failure(ByteBuffer.wrap(error).order(ByteOrder.nativeOrder()).getInt(0), error);
        }
        return new String(utf8, StandardCharsets.UTF_8);
    }

    static byte[] newError() {
        return new byte[512];
    }

    static void check(int status, byte[] error) {
        if (status != OK) {
            throw failure(status, error);
        }
    }

    static YinianException failure(int status, byte[] error) {
        ByteBuffer e = ByteBuffer.wrap(error).order(ByteOrder.nativeOrder());
        if (e.getInt(0) != status || error[8] == 0) {
            return new YinianException(Status.of(status), 0, WHY.getOrDefault(status, statusName(status)));
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
