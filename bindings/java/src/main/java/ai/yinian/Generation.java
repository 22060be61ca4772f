package ai.yinian;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.concurrent.CancellationException;

/**
 * One request's output as it is made. Iterating ends when the answer is whole, and throws a {@link YinianException} when it
 * was cancelled, late, overrun or failed. What is not read is kept up to the engine's
 * {@link Engine.Options#maxUnreadBytes maxUnreadBytes}. Closing, or forgetting it, cancels the request. Waiting threads may be
 * interrupted: the wait then ends with a {@link CancellationException}, and the request goes on.
 *
 * <p>A thread of the platform is woken for about every token. Where there are hundreds of streams, virtual threads, or
 * {@link Engine#publisher(Request) a publisher}, cost a fraction of that.
 */
public final class Generation implements Iterator<Chunk>, AutoCloseable {
    private final Inbox inbox;
    private final Core core;
    private final long id;
    /** Keeps the engine from being cleaned up. */
    private final Engine engine;
    private final Cleaner.Cleanable cleanable;

    Generation(Engine engine, Core core, Request.Encoded request, int maxUnreadBytes) {
        this.engine = engine;
        this.core = core;
        inbox = new Inbox(request.choices(), request.finalOnly(), maxUnreadBytes, () -> {});
        id = core.submit(request, inbox);
        long requestId = id;
        cleanable = Engine.CLEANER.register(this, () -> core.cancel(requestId));
    }

    /** Asks the request to end; what was made until then can still be read. Idempotent. */
    public void cancel() {
        core.cancel(id);
    }

    /** Cancels what is left. Idempotent. */
    @Override
    public void close() {
        cleanable.clean();
    }

    /**
     * Waits for output or the end.
     *
     * @return false when all was read and the answer is whole
     * @throws YinianException when all was read and the answer is not whole
     */
    @Override
    public boolean hasNext() {
        try {
            return inbox.await();
        } finally {
            // The wait is on the inbox alone; collected meanwhile, this object would cancel the request.
            Reference.reachabilityFence(this);
        }
    }

    /**
     * Waits for output: all there is of one choice, of several choices in turn.
     *
     * @return the output
     * @throws NoSuchElementException when all was read and the answer is whole
     * @throws YinianException when all was read and the answer is not whole
     */
    @Override
    public Chunk next() {
        try {
            while (inbox.await()) {
                // Another reader may have been faster.
                Chunk chunk = inbox.poll();
                if (chunk != null) {
                    return chunk;
                }
            }
            throw new NoSuchElementException("the answer has ended");
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /** {@return how the request ended, waiting for it; never throws for how it came} */
    public Result result() {
        try {
            return inbox.result();
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /** {@return the engine it runs on} */
    public Engine engine() {
        return engine;
    }
}
