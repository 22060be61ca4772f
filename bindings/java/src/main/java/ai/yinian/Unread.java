package ai.yinian;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What a choice has made since it was last read, as it came from the library. Whoever reads it makes objects of it. */
final class Unread {
    private static final byte[] NO_BYTES = {};
    private static final int[] NO_INTS = {};

    /** Finish.NONE until its last chunk is complete. */
    Finish finish = Finish.NONE;
    private byte[] text = NO_BYTES;
    private int nText;
    private int[] tokens = NO_INTS;
    private int nTokens;
    private final Probabilities logprobs = new Probabilities();
    private final Probabilities prompt = new Probabilities();

    /** Bytes that an OUTPUT or PROMPT record would add. */
    static long size(Event event) {
        return event.textBytes() + 4L * event.nTokens() + 4L * Event.LOGPROB_INTS * event.nLogprobs();
    }

    long size() {
        return nText + 4L * nTokens + 4L * logprobs.n + 4L * prompt.n;
    }

    boolean isEmpty() {
        return nText == 0 && nTokens == 0 && prompt.n == 0 && finish == Finish.NONE;
    }

    void addOutput(Event event) {
        logprobs.add(event, nText);
        int bytes = event.textBytes();
        if (bytes > 0) {
            if (nText + bytes > text.length) {
                text = Arrays.copyOf(text, room(text.length, nText + bytes));
            }
            event.copyText(text, nText);
            nText += bytes;
        }
        int more = event.nTokens();
        if (more > 0) {
            if (nTokens + more > tokens.length) {
                tokens = Arrays.copyOf(tokens, room(tokens.length, nTokens + more));
            }
            event.copyTokens(tokens, nTokens);
            nTokens += more;
        }
    }

    void addPrompt(Event event) {
        prompt.add(event, 0);
    }

    private static int room(int now, int wanted) {
        return Math.max(wanted, now > Integer.MAX_VALUE / 2 ? Integer.MAX_VALUE - 8 : 2 * now);
    }

    Chunk take(int choice) {
        String said = nText == 0 ? "" : new String(text, 0, nText, StandardCharsets.UTF_8);
        Chunk chunk = new Chunk(choice, said, nTokens == 0 ? NO_INTS : Arrays.copyOf(tokens, nTokens), logprobs.take(text, said.length() == nText),
            prompt.take(NO_BYTES, true), finish);
        nText = 0;
        nTokens = 0;
        finish = Finish.NONE;
        return chunk;
    }

    /** yn_logprobs, for each token its own and then the most probable ones. */
    private static final class Probabilities {
        private int[] raw = NO_INTS;
        private int n;
        private int each;

        void add(Event event, int textBefore) {
            int ints = event.nLogprobs() * Event.LOGPROB_INTS;
            if (ints == 0) {
                return;
            }
            if (n + ints > raw.length) {
                raw = Arrays.copyOf(raw, room(raw.length, n + ints));
            }
            event.copyLogprobs(raw, n);
            each = ints / event.nTokens();
            for (int at = n; at < n + ints; at += each) {
                raw[at + 3] += textBefore;
            }
            n += ints;
        }

        /** {@code ascii}: a byte of the text is a char of it. */
        List<Logprob> take(byte[] text, boolean ascii) {
            if (n == 0) {
                return List.of();
            }
            List<Logprob> all = new ArrayList<>(n / each);
            int bytes = 0;
            int chars = 0;
            for (int at = 0; at < n; at += each) {
                List<Logprob.Alternative> top = new ArrayList<>(each / Event.LOGPROB_INTS - 1);
                for (int other = at + Event.LOGPROB_INTS; other < at + each; other += Event.LOGPROB_INTS) {
                    top.add(new Logprob.Alternative(raw[other], raw[other + 1], Float.intBitsToFloat(raw[other + 2])));
                }
                for (; bytes < raw[at + 3]; bytes++) {
                    chars += ascii ? 1 : chars(text[bytes]);
                }
                all.add(new Logprob(raw[at], raw[at + 1], Float.intBitsToFloat(raw[at + 2]), chars, List.copyOf(top)));
            }
            n = 0;
            return List.copyOf(all);
        }

        /** Chars of UTF-16 that a byte of UTF-8 begins. */
        private static int chars(byte b) {
            return (b & 0xc0) == 0x80 ? 0 : (b & 0xf8) == 0xf0 ? 2 : 1;
        }
    }
}
