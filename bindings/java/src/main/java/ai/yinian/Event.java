package ai.yinian;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;

/** The yn_event records of a poll buffer, one at a time and read in place. For one thread. */
final class Event {
    static final int OUTPUT = 1;
    static final int DONE = 2;
    static final int ENGINE = 3;
    static final int LOG = 4;
    static final int PROMPT = 5;
    /** Ints of a yn_logprob: token, rank, the float's bits, text_end. */
    static final int LOGPROB_INTS = 4;
    private static final int BUFFER_BYTES = 1 << 17;

    final ByteBuffer buffer = ByteBuffer.allocateDirect(BUFFER_BYTES + 8).alignedSlice(8).order(ByteOrder.nativeOrder());
    private int at;

    /** Goes to the record at a place; the place behind it. */
    int seek(int place) {
        at = place;
        return place + buffer.getInt(place);
    }

    int kind() {
        return buffer.getShort(at + 4);
    }

    int flags() {
        return buffer.getShort(at + 6);
    }

    long request() {
        return buffer.getLong(at + 8);
    }

    long key() {
        return buffer.getLong(at + 16);
    }

    int status() {
        return buffer.getInt(at + 24);
    }

    int finish() {
        return buffer.getInt(at + 28);
    }

    int nTokens() {
        return buffer.getInt(at + 32);
    }

    int textBytes() {
        return buffer.getInt(at + 40);
    }

    int nLogprobs() {
        return buffer.getInt(at + 48);
    }

    int choice() {
        return buffer.getInt(at + 68);
    }

    void copyText(byte[] to, int offset) {
        buffer.get(at + buffer.getInt(at + 44), to, offset, textBytes());
    }

    String text() {
        byte[] bytes = new byte[textBytes()];
        copyText(bytes, 0);
        return new String(bytes, StandardCharsets.UTF_8);
    }

    void copyTokens(int[] to, int offset) {
        copyInts(at + buffer.getInt(at + 36), to, offset, nTokens());
    }

    void copyLogprobs(int[] to, int offset) {
        copyInts(at + buffer.getInt(at + 52), to, offset, nLogprobs() * LOGPROB_INTS);
    }

    private void copyInts(int from, int[] to, int offset, int n) {
        for (int i = 0; i < n; i++) {
            to[offset + i] = buffer.getInt(from + 4 * i);
        }
    }

    /** What a DONE record says of its request. */
    Result result() {
        long submit = buffer.getLong(at + 72);
        long first = buffer.getLong(at + 80);
        return new Result(Finish.of(finish()), Result.NO_CHOICES, buffer.getInt(at + 56), buffer.getInt(at + 60),
            buffer.getInt(at + 64), first == 0 ? Duration.ZERO : Duration.ofNanos(first - submit),
            Duration.ofNanos(buffer.getLong(at + 88) - submit));
    }
}
