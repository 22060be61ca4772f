package ai.yinian;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.Arrays;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.concurrent.CancellationException;

/**
 * One request's output as it is made. Iterating ends when the answer is whole, and throws a {@link YinianException} when it
 * was cancelled, late, overrun or failed. What is not read is kept up to the engine's {@code maxUnreadBytes}. Closing, or
 * forgetting it, cancels the request.
 */
public final class Generation implements Iterator<Chunk>, AutoCloseable {
    private final State state;
    private final Core core;
    private final long id;
    /** Keeps the engine from being cleaned up. */
    private final Engine engine;
    private final Cleaner.Cleanable cleanable;

    Generation(Engine engine, Core core, Request request, int maxUnreadBytes) {
        this.engine = engine;
        this.core = core;
        State s = new State(maxUnreadBytes);
        state = s;
        id = core.submit(request, s, false);
        long requestId = id;
        cleanable = Engine.CLEANER.register(this, () -> core.cancel(requestId));
    }

    /** Asks the request to end; what was made until then can still be read. Idempotent. */
    public void cancel() {
        core.cancel(id);
    }

    /** Cancels what is left. */
    @Override
    public void close() {
        cleanable.clean();
    }

    /** Waits for output or the end. */
    @Override
    public boolean hasNext() {
        try {
            return state.await();
        } finally {
            // The wait is on the state alone; collected meanwhile, this object would cancel the request.
            Reference.reachabilityFence(this);
        }
    }

    @Override
    public Chunk next() {
        try {
            return state.take();
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /** Waits for the end; never throws for how it came. */
    public Result result() {
        try {
            return state.result();
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /** The engine it runs on. */
    public Engine engine() {
        return engine;
    }

    /** What the poll thread fills. */
    private static final class State implements Core.Sink {
        private final int limit;
        private final StringBuilder text = new StringBuilder();
        private int[] tokens = {};
        private int nTokens;
        private int unreadBytes;
        private boolean overrun;
        private Result result;
        private YinianException error;

        State(int limit) {
            this.limit = limit;
        }

        @Override
        public synchronized boolean output(String more, int bytes, int[] moreTokens) {
            if (overrun) {
                return true;
            }
            if (unreadBytes + bytes + 4L * moreTokens.length > limit) {
                overrun = true;
                return false;
            }
            unreadBytes += bytes + 4 * moreTokens.length;
            text.append(more);
            if (nTokens + moreTokens.length > tokens.length) {
                tokens = Arrays.copyOf(tokens, Math.max(2 * tokens.length, nTokens + moreTokens.length));
            }
            System.arraycopy(moreTokens, 0, tokens, nTokens, moreTokens.length);
            nTokens += moreTokens.length;
            notifyAll();
            return true;
        }

        @Override
        public synchronized void end(Result ended, Status status, String message) {
            result = overrun ? ended.with(Finish.OVERRUN, "") : ended;
            if (!result.finish().isWhole()) {
                error = new YinianException(overrun ? Status.OK : status, message, result);
            }
            notifyAll();
        }

        private boolean unread() {
            return text.length() > 0 || nTokens > 0;
        }

        synchronized boolean await() {
            while (!unread() && result == null) {
                pause();
            }
            if (!unread() && error != null) {
                throw error;
            }
            return unread();
        }

        synchronized Chunk take() {
            if (!await()) {
                throw new NoSuchElementException("the answer has ended");
            }
            Chunk chunk = new Chunk(text.toString(), Arrays.copyOf(tokens, nTokens));
            text.setLength(0);
            nTokens = 0;
            unreadBytes = 0;
            return chunk;
        }

        synchronized Result result() {
            while (result == null) {
                pause();
            }
            return result;
        }

        private void pause() {
            try {
                wait();
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
                throw (CancellationException) new CancellationException("interrupted while waiting for output").initCause(e);
            }
        }
    }
}
