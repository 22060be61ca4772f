package ai.yinian;

import java.util.Objects;
import java.util.concurrent.Executor;
import java.util.concurrent.Flow;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Consumer;

/** Hands in its request anew for each subscriber. */
final class ChunkPublisher implements Flow.Publisher<Chunk> {
    /** Keeps the engine from being cleaned up. */
    @SuppressWarnings("unused")
    private final Engine engine;
    private final Core core;
    private final Request.Encoded request;
    private final int maxUnreadBytes;
    private final Executor executor;
    private final Consumer<Result> ended;

    ChunkPublisher(Engine engine, Core core, Request.Encoded request, int maxUnreadBytes, Executor executor, Consumer<Result> ended) {
        this.engine = engine;
        this.core = core;
        this.request = request;
        this.maxUnreadBytes = maxUnreadBytes;
        this.executor = Objects.requireNonNull(executor);
        this.ended = Objects.requireNonNull(ended);
    }

    @Override
    public void subscribe(Flow.Subscriber<? super Chunk> subscriber) {
        new Subscription(Objects.requireNonNull(subscriber)).start();
    }

    /** Signals come from {@link #run}, of which one at a time is on the executor. The poll thread's table holds this. */
    private final class Subscription implements Flow.Subscription, Runnable {
        private static final long NONE = 0;
        private final AtomicLong demand = new AtomicLong();
        private final AtomicInteger missed = new AtomicInteger();
        private final AtomicLong id = new AtomicLong(NONE);
        private final Inbox inbox = new Inbox(request.choices(), request.finalOnly(), maxUnreadBytes, this::schedule);
        private volatile Flow.Subscriber<? super Chunk> subscriber;
        private volatile Throwable failure;
        private volatile boolean cancelled;

        Subscription(Flow.Subscriber<? super Chunk> subscriber) {
            this.subscriber = subscriber;
        }

        void start() {
            // Held back until onSubscribe has returned.
            missed.set(1);
            try {
                subscriber.onSubscribe(this);
            } catch (Throwable t) {
                cancel();
                Serial.report(t);
            }
            if (!cancelled) {
                try {
                    id.set(core.submit(request, inbox));
                } catch (Throwable t) {
                    failure = t;
                }
            }
            if (cancelled) {
                stop();
            }
            dispatch();
        }

        @Override
        public void request(long n) {
            if (n <= 0) {
                failure = new IllegalArgumentException("request(" + n + "): expected more than 0 (rule 3.9)");
            } else {
                demand.accumulateAndGet(n, (a, b) -> a + b < 0 ? Long.MAX_VALUE : a + b);
            }
            schedule();
        }

        @Override
        public void cancel() {
            cancelled = true;
            stop();
            schedule();
        }

        private void stop() {
            if (id.get() != NONE) {
                core.cancel(id.get());
            }
        }

        private void schedule() {
            if (missed.getAndIncrement() == 0) {
                dispatch();
            }
        }

        private void dispatch() {
            try {
                executor.execute(this);
            } catch (Throwable t) {
                // Nobody is left to be told on.
                cancelled = true;
                stop();
                subscriber = null;
                Serial.report(t);
            }
        }

        @Override
        public void run() {
            int seen;
            do {
                seen = missed.get();
                try {
                    deliver();
                } catch (Throwable t) {
                    // A subscriber that throws breaks rule 2.13 and counts as cancelled.
                    cancelled = true;
                    stop();
                    Serial.report(t);
                }
                if (cancelled) {
                    subscriber = null;
                }
            } while (missed.addAndGet(-seen) != 0);
        }

        private void deliver() {
            long delivered = 0;
            while (!cancelled) {
                if (failure != null) {
                    fail(failure);
                    return;
                }
                Chunk chunk = delivered < demand.get() ? inbox.poll() : null;
                if (chunk == null) {
                    if (inbox.isExhausted()) {
                        end();
                    }
                    break;
                }
                delivered++;
                subscriber.onNext(chunk);
            }
            if (delivered > 0) {
                long taken = delivered;
                demand.updateAndGet(d -> d == Long.MAX_VALUE ? d : d - taken);
            }
        }

        private void end() {
            Flow.Subscriber<? super Chunk> s = subscriber;
            cancelled = true;
            ended.accept(inbox.result());
            YinianException error = inbox.error();
            if (error != null) {
                s.onError(error);
            } else {
                s.onComplete();
            }
        }

        private void fail(Throwable t) {
            Flow.Subscriber<? super Chunk> s = subscriber;
            cancelled = true;
            stop();
            s.onError(t);
        }
    }
}
