package ai.yinian;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.Flow;
import java.util.concurrent.ForkJoinPool;
import java.util.function.Consumer;

/**
 * A loaded model. All methods may be called from any thread at any time. Close it; one that is forgotten is cleaned up when
 * it is collected and none of its requests is in use.
 */
public final class Engine implements AutoCloseable {
    static final Cleaner CLEANER = Cleaner.create();

    private final Core core;
    private final Loading loading;
    private final int maxUnreadBytes;
    private final Cleaner.Cleanable cleanable;

    private Engine(long id, Options options) {
        loading = new Loading(options.listener);
        maxUnreadBytes = options.maxUnreadBytes;
        Core c = new Core(id, loading);
        core = c;
        cleanable = CLEANER.register(this, c::free);
    }

    /** How this wrapper serves an engine; what the engine does is in its config. */
    public static final class Options {
        private int maxUnreadBytes = 1 << 20;
        private Consumer<EngineEvent> listener;

        /** The defaults. */
        public Options() {}

        /**
         * How much output of a choice may be unread; more ends its request with {@link Finish#OVERRUN}. The library itself always
         * sees its output read at once, so its own {@code max_unread_bytes} is never reached.
         *
         * @param n bytes, more than 0; 1 MiB unless set
         * @return this
         */
        public Options maxUnreadBytes(int n) {
            if (n <= 0) {
                throw new YinianException(Status.INVALID, 0, "maxUnreadBytes is " + n + "; expected more than 0");
            }
            maxUnreadBytes = n;
            return this;
        }

        /**
         * Is told of load progress and changes of state, on the common pool, one after the other.
         *
         * @param listener what to call
         * @return this
         */
        public Options onEvent(Consumer<EngineEvent> listener) {
            this.listener = listener;
            return this;
        }
    }

    /**
     * As {@link #open(String, Options)}, with the defaults.
     *
     * @param configJson the config
     * @return the engine
     */
    public static Engine open(String configJson) {
        return open(configJson, new Options());
    }

    /**
     * Loads a model. Returns when it is loaded, or at once with {@code "async_load": true}: requests are then accepted and wait,
     * {@link #ready} tells when they run, and closing ends the load.
     *
     * @param configJson an object; its keys are in the project's README
     * @param options how this wrapper serves the engine
     * @return the engine
     * @throws YinianException INVALID, UNSUPPORTED, NOT_FOUND, IO, NO_MEMORY, DEVICE
     */
    public static Engine open(String configJson, Options options) {
        byte[] config = Native.utf8("the config", configJson);
        byte[] error = Native.newError();
        long[] id = new long[1];
        Native.check(Native.apart(() -> Native.create(config, id, error)), error);
        Engine engine = new Engine(id[0], options);
        if (engine.stats().state() == EngineState.READY) {
            engine.loading.isReady();
        }
        return engine;
    }

    /** {@return a future that ends when the model is loaded; it fails when that fails, or when the engine is closed before} */
    public CompletableFuture<Void> ready() {
        return loading.ready();
    }

    /**
     * Hands in a request and streams its answer. Never waits for the device.
     *
     * @param request what to generate
     * @return its output
     * @throws YinianException INVALID, UNSUPPORTED, BUSY, SHUTDOWN, BAD_HANDLE, NO_MEMORY, and of a failed engine its own error
     */
    public Generation generate(Request request) {
        try {
            return new Generation(this, core, request.encode(false), maxUnreadBytes);
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /**
     * Hands in a request for its whole answer. The future fails with a {@link YinianException} unless the answer is whole;
     * cancelling it, or orTimeout, cancels the request. What depends on it runs on the common pool, never on the poll thread.
     *
     * @param request what to generate
     * @return the answer to come, with its {@link Result#choices}
     * @throws YinianException as of {@link #generate}
     */
    public CompletableFuture<Result> complete(Request request) {
        Request.Encoded encoded = request.encode(true);
        Whole whole = new Whole(this, encoded.choices());
        long id = core.submit(encoded, whole.inbox);
        // A future that is cancelled or timed out by its holder leaves nothing behind; after its own end this does nothing.
        whole.future.whenComplete((result, error) -> core.cancel(id));
        return whole.future;
    }

    /**
     * A publisher that hands in the request anew for each subscriber, whose methods run on the common pool.
     *
     * @param request what to generate; later changes to it have no effect
     * @return a publisher of its output, as of {@link #publisher(Request, Executor, Consumer)}
     */
    public Flow.Publisher<Chunk> publisher(Request request) {
        return publisher(request, ForkJoinPool.commonPool(), result -> {});
    }

    /**
     * A publisher that hands in the request anew for each subscriber. What a subscriber has not requested merges into fewer, larger
     * chunks, which are kept up to {@link Options#maxUnreadBytes}; more ends the request. The model does not wait for its readers.
     * onError gives a {@link YinianException}, also for a request that is refused. Cancelling the subscription cancels the request.
     *
     * @param request what to generate; later changes to it have no effect
     * @param executor runs the subscribers' methods; those of one subscriber one after the other
     * @param ended is told on the executor how a request ended, right before onComplete or onError; not of one that was refused or
     *     cancelled by its subscriber
     * @return a publisher of its output
     */
    public Flow.Publisher<Chunk> publisher(Request request, Executor executor, Consumer<Result> ended) {
        return new ChunkPublisher(this, core, request.encode(false), maxUnreadBytes, executor, ended);
    }

    /**
     * Refuses new requests from now on and waits until the accepted ones have ended. May be called again.
     *
     * @param timeout how long to wait; zero does not wait
     * @return false when some were left as the time was over
     * @throws YinianException BAD_HANDLE
     */
    public boolean drain(Duration timeout) {
        long ms = timeout.isNegative() ? 0 : timeout.compareTo(Duration.ofDays(24)) > 0 ? Integer.MAX_VALUE : timeout.toMillis();
        int status = Native.apart(() -> Native.drain(core.engine, (int) ms));
        Reference.reachabilityFence(this);
        if (status != Native.TIMEOUT) {
            Native.check(status, Native.newError());
        }
        return status == Native.OK;
    }

    /**
     * Counters and gauges. Never waits.
     *
     * @return those of this moment
     * @throws YinianException BAD_HANDLE
     */
    public Stats stats() {
        byte[] raw = new byte[Stats.BYTES];
        int status = Native.stats(core.engine, raw);
        Reference.reachabilityFence(this);
        Native.check(status, Native.newError());
        return Stats.of(raw);
    }

    /**
     * What is loaded where. Never waits.
     *
     * @return model, limits, memory and device as a JSON object
     * @throws YinianException BAD_HANDLE
     */
    public String info() {
        byte[] error = Native.newError();
        byte[] json = Native.info(core.engine, error);
        Reference.reachabilityFence(this);
        return Native.text(json, error);
    }

    /**
     * Metrics for Prometheus. Never waits.
     *
     * @return its text format
     * @throws YinianException BAD_HANDLE
     */
    public String metrics() {
        byte[] error = Native.newError();
        byte[] text = Native.metrics(core.engine, error);
        Reference.reachabilityFence(this);
        return Native.text(text, error);
    }

    /**
     * The tokenizer of the model; it outlives the engine.
     *
     * @return a tokenizer, to be closed
     * @throws YinianException BAD_HANDLE, BUSY (the model still loads)
     */
    public Tokenizer tokenizer() {
        long[] id = new long[1];
        int status = Native.tokenizer(core.engine, id);
        Reference.reachabilityFence(this);
        Native.check(status, Native.newError());
        return new Tokenizer(id[0]);
    }

    /** Cancels what is left and frees the engine; on return every request has ended. Idempotent. */
    @Override
    public void close() {
        Native.apart(() -> {
            cleanable.clean();
            return Native.OK;
        });
        core.awaitEnd();
    }

    int openRequests() {
        return core.openRequests();
    }

    /** Collects an answer. The poll thread's table holds it until its end, and it holds the engine. */
    private static final class Whole {
        private final Engine engine;
        private final CompletableFuture<Result> future = new CompletableFuture<>();
        private final Inbox inbox;
        /** Of the poll thread. */
        private boolean told;

        Whole(Engine engine, int choices) {
            this.engine = engine;
            inbox = new Inbox(choices, true, 0, this::changed);
        }

        private void changed() {
            if (!told && inbox.hasEnded()) {
                told = true;
                future.completeAsync(this::result);
            }
        }

        private Result result() {
            List<Chunk> choices = new ArrayList<>();
            for (Chunk c = inbox.poll(); c != null; c = inbox.poll()) {
                choices.add(c);
            }
            Result result = inbox.result().with(List.copyOf(choices));
            YinianException error = inbox.error();
            Reference.reachabilityFence(engine);
            if (error != null) {
                throw error.with(result);
            }
            return result;
        }
    }
}
