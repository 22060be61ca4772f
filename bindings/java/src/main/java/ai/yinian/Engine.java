package ai.yinian;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.concurrent.CompletableFuture;

/**
 * A loaded model. All methods may be called from any thread at any time. Close it; one that is forgotten is cleaned up when
 * it is collected and none of its requests is in use.
 */
public final class Engine implements AutoCloseable {
    static final Cleaner CLEANER = Cleaner.create();
    private static final int DEFAULT_MAX_UNREAD_BYTES = 1 << 20;

    private final Core core;
    private final int maxUnreadBytes;
    private final Cleaner.Cleanable cleanable;

    private Engine(long id, int maxUnreadBytes) {
        Core c = new Core(id);
        core = c;
        this.maxUnreadBytes = maxUnreadBytes;
        cleanable = CLEANER.register(this, c::free);
    }

    /** Loads a model; the keys of {@code configJson} are in the project's README. */
    public static Engine open(String configJson) {
        return open(configJson, DEFAULT_MAX_UNREAD_BYTES);
    }

    /** As {@link #open(String)}; a Generation with more unread output ends with {@link Finish#OVERRUN}. */
    public static Engine open(String configJson, int maxUnreadBytes) {
        byte[] error = Native.newError();
        long[] id = new long[1];
        Native.check(Native.create(Native.utf8("the config", configJson), id, error), error);
        return new Engine(id[0], maxUnreadBytes);
    }

    /** Hands in a request and streams its answer. Never waits for the device. */
    public Generation generate(Request request) {
        try {
            return new Generation(this, core, request, maxUnreadBytes);
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /**
     * Hands in a request for its whole answer. The future fails with a {@link YinianException} unless the answer is whole;
     * cancelling it, or orTimeout, cancels the request. What depends on it runs on the common pool, never on the poll thread.
     */
    public CompletableFuture<Result> complete(Request request) {
        Whole whole = new Whole(this);
        long id = core.submit(request, whole, true);
        // A future that is cancelled or timed out by its holder leaves nothing behind; after its own end this does nothing.
        whole.future.whenComplete((result, error) -> core.cancel(id));
        return whole.future;
    }

    /** Counters and gauges. */
    public Stats stats() {
        long[] v = new long[5];
        Native.check(Native.stats(core.engine, v), Native.newError());
        Reference.reachabilityFence(this);
        return new Stats(v[0], v[1], v[2], v[3], v[4]);
    }

    public record Stats(long waiting, long running, long finished, long blocksTotal, long blocksFree) {}

    /** The tokenizer of the model; it outlives the engine. */
    public Tokenizer tokenizer() {
        long[] id = new long[1];
        Native.check(Native.tokenizer(core.engine, id), Native.newError());
        Reference.reachabilityFence(this);
        return new Tokenizer(id[0]);
    }

    /** Cancels what is left and frees the engine; on return every request has ended. Idempotent. */
    @Override
    public void close() {
        cleanable.clean();
        core.awaitEnd();
    }

    int openRequests() {
        return core.openRequests();
    }

    /** Collects an answer. The poll thread's table holds it until its end, and it holds the engine. */
    private static final class Whole implements Core.Sink {
        private final Engine engine;
        private final CompletableFuture<Result> future = new CompletableFuture<>();
        private final StringBuilder text = new StringBuilder();

        Whole(Engine engine) {
            this.engine = engine;
        }

        @Override
        public boolean output(String more, int bytes, int[] tokens) {
            text.append(more);
            return true;
        }

        @Override
        public void end(Result ended, Status status, String message) {
            Result result = ended.with(ended.finish(), text.toString());
            future.completeAsync(() -> {
                if (!result.finish().isWhole()) {
                    throw new YinianException(status, message, result);
                }
                Reference.reachabilityFence(engine);
                return result;
            });
        }
    }
}
