package ai.yinian;

import static ai.yinian.Checks.check;
import static ai.yinian.Checks.config;
import static ai.yinian.Checks.endless;
import static ai.yinian.Checks.open;
import static ai.yinian.Checks.until;
import static ai.yinian.Checks.waitIdle;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Flow;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** The Flow.Publisher form. Its protocol is what the reactive streams TCK checks. */
final class PublisherTest {
    private PublisherTest() {}

    /** Asks for as much as it is told to, and keeps what it gets. */
    private static class Reader implements Flow.Subscriber<Chunk> {
        final ConcurrentLinkedQueue<Chunk> chunks = new ConcurrentLinkedQueue<>();
        final CompletableFuture<Void> end = new CompletableFuture<>();
        final CompletableFuture<Flow.Subscription> subscription = new CompletableFuture<>();
        private final long atFirst;

        Reader(long atFirst) {
            this.atFirst = atFirst;
        }

        @Override
        public void onSubscribe(Flow.Subscription s) {
            subscription.complete(s);
            if (atFirst > 0) {
                s.request(atFirst);
            }
        }

        @Override
        public void onNext(Chunk chunk) {
            chunks.add(chunk);
        }

        @Override
        public void onError(Throwable t) {
            end.completeExceptionally(t);
        }

        @Override
        public void onComplete() {
            end.complete(null);
        }

        String text() {
            StringBuilder text = new StringBuilder();
            chunks.forEach(c -> text.append(c.text()));
            return text.toString();
        }

        YinianException failure() throws Exception {
            return (YinianException) end.handle((v, e) -> e).get(20, TimeUnit.SECONDS);
        }
    }

    public static void aHundredSubscribersReadTheSame() throws Exception {
        try (Engine engine = open("mock:words")) {
            Request r = Checks.shortRequest(9).wantTokens();
            Flow.Publisher<Chunk> publisher = engine.publisher(r);
            r.maxTokens(1);
            List<Reader> readers = new ArrayList<>();
            for (int i = 0; i < 100; i++) {
                readers.add(new Reader(Long.MAX_VALUE));
                publisher.subscribe(readers.get(i));
            }
            String alone = engine.complete(Checks.shortRequest(9)).join().text();
            for (Reader reader : readers) {
                reader.end.get(20, TimeUnit.SECONDS);
                check(reader.text().equals(alone) && reader.chunks.stream().mapToInt(c -> c.tokens().length).sum() == 49, reader.chunks);
                check(reader.chunks.stream().filter(c -> c.finish() == Finish.LENGTH).count() == 1, reader.chunks);
            }
            waitIdle(engine);
        }
    }

    public static void theResultComesBeforeTheEnd() throws Exception {
        try (Engine engine = open("mock:words")) {
            ConcurrentLinkedQueue<String> order = new ConcurrentLinkedQueue<>();
            Reader reader = new Reader(Long.MAX_VALUE) {
                @Override
                public void onComplete() {
                    order.add("complete");
                    super.onComplete();
                }

                @Override
                public void onError(Throwable t) {
                    order.add("error");
                    super.onError(t);
                }
            };
            engine.publisher(Checks.shortRequest(3), ForkJoinPool.commonPool(), r -> order.add(r.finish() + " " + r.completionTokens())).subscribe(reader);
            reader.end.get(20, TimeUnit.SECONDS);
            check(List.copyOf(order).equals(List.of("LENGTH 43", "complete")), order);
            order.clear();
            Reader refused = new Reader(1);
            engine.publisher(Request.prompt("x").maxTokens(0), ForkJoinPool.commonPool(), r -> order.add("refused")).subscribe(refused);
            check(refused.failure().status() == Status.INVALID && order.isEmpty(), order);
        }
    }

    public static void whatIsNotRequestedMergesAndIsBounded() throws Exception {
        try (Engine engine = Engine.open(config("mock:words", ""), new Engine.Options().maxUnreadBytes(8192))) {
            Reader slow = new Reader(0);
            engine.publisher(endless().maxTokens(6000)).subscribe(slow);
            waitIdle(engine);
            check(slow.chunks.isEmpty() && !slow.end.isDone(), slow.chunks);
            slow.subscription.join().request(1);
            slow.end.get(20, TimeUnit.SECONDS);
            // End tokens have no text.
            check(slow.chunks.size() == 1 && slow.text().length() > 5900, slow.chunks.size(), slow.text().length());
            Reader stuck = new Reader(0);
            engine.publisher(endless()).subscribe(stuck);
            waitIdle(engine);
            check(!stuck.end.isDone(), "output is left");
            stuck.subscription.join().request(1);
            check(stuck.failure().finish() == Finish.OVERRUN, stuck.failure());
            // Where the machine is slow, the first record is more already, and nothing is kept.
            check(stuck.text().length() <= 8192, stuck.text().length());
        }
    }

    public static void aReaderThatAsksOneByOneGetsOneByOne() throws Exception {
        try (Engine engine = open("mock:words,delay_us=500")) {
            Reader reader = new Reader(0);
            engine.publisher(endless().maxTokens(200)).subscribe(reader);
            for (int n = 1; !reader.end.isDone(); n++) {
                int most = n;
                reader.subscription.join().request(1);
                until(() -> reader.chunks.size() == most || reader.end.isDone(), n, reader.chunks.size());
                check(reader.chunks.size() <= n, n, reader.chunks.size());
            }
            check(reader.text().length() == 200, reader.text());
        }
    }

    public static void cancellingEndsTheRequest() throws Exception {
        try (Engine engine = open("mock:words,delay_us=500")) {
            Reader reader = new Reader(Long.MAX_VALUE);
            engine.publisher(endless()).subscribe(reader);
            until(() -> reader.chunks.size() > 3, "no output");
            reader.subscription.join().cancel();
            waitIdle(engine);
            int read = reader.chunks.size();
            Thread.sleep(20);
            check(reader.chunks.size() == read && !reader.end.isDone(), "signals behind the end");
            // Before it is handed in, and from inside onNext.
            Flow.Subscriber<Chunk> early = new Reader(0) {
                @Override
                public void onSubscribe(Flow.Subscription s) {
                    s.cancel();
                }
            };
            engine.publisher(endless()).subscribe(early);
            AtomicInteger got = new AtomicInteger();
            engine.publisher(endless()).subscribe(new Reader(Long.MAX_VALUE) {
                @Override
                public void onNext(Chunk chunk) {
                    got.incrementAndGet();
                    subscription.join().cancel();
                }
            });
            until(() -> got.get() == 1, got);
            waitIdle(engine);
            check(got.get() == 1, got);
        }
    }

    public static void failuresReachOnError() throws Exception {
        Engine engine = open("mock:words");
        Reader refused = new Reader(1);
        engine.publisher(Request.prompt("x").maxTokens(0)).subscribe(refused);
        check(refused.failure().status() == Status.INVALID && refused.failure().reason().contains("max_tokens"), refused.failure());
        Reader late = new Reader(1);
        engine.publisher(Request.tokens(1, 99999)).subscribe(late);
        check(late.failure().finish() == Finish.ERROR, late.failure());
        Reader running = new Reader(Long.MAX_VALUE);
        engine.publisher(endless()).subscribe(running);
        engine.close();
        check(running.failure().finish() == Finish.CANCELLED, running.failure());
        Reader closed = new Reader(0);
        engine.publisher(endless()).subscribe(closed);
        check(closed.failure().status() == Status.BAD_HANDLE, closed.failure());
    }

    public static void codeThatThrowsHarmsItsOwnRequestAlone() throws Exception {
        AtomicInteger reported = new AtomicInteger();
        Thread.UncaughtExceptionHandler before = Thread.getDefaultUncaughtExceptionHandler();
        Thread.setDefaultUncaughtExceptionHandler((t, e) -> reported.incrementAndGet());
        try (Engine engine = open("mock:words,delay_us=500")) {
            Reader good = new Reader(Long.MAX_VALUE);
            engine.publisher(endless().maxTokens(100)).subscribe(good);
            engine.publisher(endless()).subscribe(new Reader(Long.MAX_VALUE) {
                @Override
                public void onNext(Chunk chunk) {
                    throw new IllegalStateException("a subscriber's bug");
                }
            });
            engine.publisher(endless(), task -> {
                throw new RejectedExecutionException("an executor that is shut down");
            }, result -> {}).subscribe(new Reader(1));
            good.end.get(20, TimeUnit.SECONDS);
            check(good.text().length() == 100, good.text());
            waitIdle(engine);
            check(reported.get() >= 2, reported);
        } finally {
            Thread.setDefaultUncaughtExceptionHandler(before);
        }
    }
}
