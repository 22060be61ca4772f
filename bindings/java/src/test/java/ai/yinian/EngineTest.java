package ai.yinian;

import static ai.yinian.Checks.MODEL;
import static ai.yinian.Checks.TEXT;
import static ai.yinian.Checks.check;
import static ai.yinian.Checks.config;
import static ai.yinian.Checks.endless;
import static ai.yinian.Checks.fails;
import static ai.yinian.Checks.open;
import static ai.yinian.Checks.read;
import static ai.yinian.Checks.shortRequest;
import static ai.yinian.Checks.waitIdle;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Requests and their ends, against the real library. */
final class EngineTest {
    private EngineTest() {}

    public static void aStreamSaysWhatTheWholeAnswerSays() {
        streamsWhatItSaysWhole("mock:words", System.getenv("YINIAN_TEST_MOCK_TEXT"));
        streamsWhatItSaysWhole(MODEL, System.getenv("YINIAN_TEST_MODEL_TEXT"));
    }

    private static void streamsWhatItSaysWhole(String model, String expected) {
        try (Engine engine = open(model)) {
            Request r = Request.prompt("Once upon a time").maxTokens(48).temperature(0).ignoreEos().wantTokens();
            StringBuilder text = new StringBuilder();
            int tokens = 0;
            Finish last = Finish.NONE;
            Generation g = engine.generate(r);
            while (g.hasNext()) {
                Chunk c = g.next();
                check(c.choice() == 0 && last == Finish.NONE && c.logprobs().isEmpty() && c.promptLogprobs().isEmpty(), c);
                last = c.finish();
                text.append(c.text());
                tokens += c.tokens().length;
            }
            Result end = g.result();
            check(end.finish() == Finish.LENGTH && end.completionTokens() == 48 && tokens == 48 && last == Finish.LENGTH, end, tokens);
            check(!end.timeToFirst().isZero() && end.timeToFirst().compareTo(end.total()) <= 0, end);
            Result whole = engine.complete(r).join();
            check(whole.text().contentEquals(text) && !whole.text().isEmpty(), whole, text);
            check(expected == null || whole.text().equals(expected), whole, expected);
            check(!g.hasNext() && g.engine() == engine);
        }
    }

    public static void errorsHaveAStatusAndAMessage() throws Exception {
        YinianException e = fails(() -> Engine.open("{\"model\": \"mock:words\", \"max_num_seq\": 4}"));
        check(e.status() == Status.INVALID && e.getMessage().contains("max_num_seqs") && !e.mayRetry(), e);
        e = fails(() -> Engine.open("{\"model\": \"mock:words\", \"modél🦊\": 4}"));
        check(e.status() == Status.INVALID && e.getMessage().contains("modél🦊"), e);
        e = fails(() -> open("/no/such/model"));
        check(e.status() == Status.NOT_FOUND && e.getMessage().contains("/no/such/model"), e);
        String small = "{\"model\": \"mock:words,delay_us=1000\", \"max_num_seqs\": 1, \"max_waiting\": 1}";
        try (Engine engine = Engine.open(small)) {
            e = fails(() -> engine.generate(Request.prompt("x").maxTokens(0)));
            check(e.status() == Status.INVALID && e.getMessage().contains("max_tokens"), e);
            check(fails(() -> engine.generate(Request.chat("{"))).status() == Status.INVALID);
            check(fails(() -> engine.generate(Request.tokens())).status() == Status.INVALID);
            // Found by the library's threads, so it comes with the end of the request.
            e = fails(() -> engine.generate(Request.tokens(1, 99999)).next());
            check(e.status() == Status.INVALID && e.finish() == Finish.ERROR && e.getMessage().contains("99999"), e);
            List<Generation> running = new ArrayList<>();
            e = fails(() -> {
                while (true) {
                    running.add(engine.generate(endless()));
                }
            });
            check(e.status() == Status.BUSY && e.mayRetry() && !e.isUnusable(), e, running.size());
        }
    }

    public static void cancelEndsAStream() throws Exception {
        try (Engine engine = open("mock:words,delay_us=1000")) {
            Generation g = engine.generate(endless());
            check(!g.next().text().isEmpty());
            g.cancel();
            YinianException e = fails(() -> read(g));
            check(e.finish() == Finish.CANCELLED && e.status() == Status.OK, e);
            check(g.result().finish() == Finish.CANCELLED && g.result().completionTokens() < 20_000, g.result());
            try (Generation closed = engine.generate(endless())) {
                closed.next();
                closed.close();
                check(closed.result().finish() == Finish.CANCELLED);
            }
            CompletableFuture<Result> future = engine.complete(endless());
            check(future.cancel(true) && future.isCancelled());
            try {
                future.join();
                throw new AssertionError("a cancelled future has no result");
            } catch (CancellationException expected) {
                waitIdle(engine);
            }
            future = engine.complete(endless()).orTimeout(20, TimeUnit.MILLISECONDS);
            check(future.handle((result, error) -> error).join() instanceof TimeoutException);
            waitIdle(engine);
        }
    }

    public static void aThousandRequestsWithCancelsAmongThem() throws Exception {
        try (Engine engine = Engine.open("{\"model\": \"mock:words\", \"max_num_seqs\": 64}")) {
            List<Generation> streams = new ArrayList<>();
            List<CompletableFuture<Result>> futures = new ArrayList<>();
            for (int i = 0; i < 500; i++) {
                streams.add(engine.generate(shortRequest(i % 50)));
                futures.add(engine.complete(shortRequest(i % 50)));
                if (i % 3 == 0) {
                    streams.get(i / 2).cancel();
                    futures.get(i / 2).cancel(true);
                }
            }
            for (int i = 0; i < 500; i++) {
                Finish finish = streams.get(i).result().finish();
                check(finish == Finish.LENGTH || finish == Finish.CANCELLED && i < 250, i, finish);
                check(finish == Finish.CANCELLED || read(streams.get(i)).length() == 40 + i % 50, i);
                check(futures.get(i).isCancelled() && i < 250 || futures.get(i).join().text().length() == 40 + i % 50, i);
            }
            waitIdle(engine);
        }
    }

    public static void aFailedEngineSaysSo() throws Exception {
        try (Engine engine = Engine.open("{\"model\": \"mock:words,hang_step=20\", \"watchdog_ms\": 50}")) {
            YinianException e = fails(() -> read(engine.generate(endless())));
            check(e.status() == Status.DEVICE && e.finish() == Finish.ERROR && !e.getMessage().isEmpty(), e);
            e = fails(() -> engine.generate(endless()));
            check(e.status() == Status.DEVICE && e.isUnusable() && e.finish() == null, e);
        }
    }

    public static void aDeadlineEndsAStream() throws Exception {
        try (Engine engine = open("mock:words,delay_us=1000")) {
            Generation g = engine.generate(endless().timeout(Duration.ofMillis(40)));
            check(fails(() -> read(g)).finish() == Finish.DEADLINE);
            try {
                engine.complete(endless().timeout(Duration.ofNanos(1))).join();
                throw new AssertionError("too fast");
            } catch (CompletionException e) {
                check(((YinianException) e.getCause()).finish() == Finish.DEADLINE, e);
            }
            waitIdle(engine);
        }
    }

    public static void fiftyStreamsAtOnceSayWhatOneSays() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(50);
        try (Engine engine = open("mock:words")) {
            List<Future<String>> streams = new ArrayList<>();
            List<CompletableFuture<String>> futures = new ArrayList<>();
            for (int i = 0; i < 50; i++) {
                int n = i;
                streams.add(pool.submit(() -> read(engine.generate(shortRequest(n)))));
                futures.add(engine.complete(shortRequest(i)).thenApply(Result::text));
            }
            for (int i = 0; i < 50; i++) {
                String alone = engine.complete(shortRequest(i)).join().text();
                check(alone.length() == 40 + i && alone.equals(streams.get(i).get()) && alone.equals(futures.get(i).get()), i);
            }
            waitIdle(engine);
        } finally {
            pool.shutdownNow();
        }
    }

    public static void closeUnderTrafficEndsEveryStream() throws Exception {
        Engine engine = Engine.open("{\"model\": \"mock:words,delay_us=1000\", \"max_num_seqs\": 8}");
        ExecutorService pool = Executors.newFixedThreadPool(20);
        CountDownLatch started = new CountDownLatch(20);
        List<Future<Status>> ends = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            ends.add(pool.submit(() -> {
                while (true) {
                    try {
                        Generation g = engine.generate(endless());
                        started.countDown();
                        read(g);
                    } catch (YinianException e) {
                        if (e.finish() != Finish.CANCELLED) {
                            return e.status();
                        }
                    }
                }
            }));
        }
        CompletableFuture<Result> future = engine.complete(endless());
        check(started.await(10, TimeUnit.SECONDS));
        Thread other = new Thread(engine::close);
        other.start();
        engine.close();
        check(engine.openRequests() == 0, engine.openRequests());
        other.join();
        for (Future<Status> end : ends) {
            Status status = end.get(10, TimeUnit.SECONDS);
            check(status == Status.BAD_HANDLE || status == Status.SHUTDOWN, status);
        }
        check(future.handle((r, e) -> ((YinianException) e.getCause()).finish()).join() == Finish.CANCELLED);
        pool.shutdown();
        check(fails(() -> engine.generate(endless())).status() == Status.BAD_HANDLE);
        check(fails(engine::stats).status() == Status.BAD_HANDLE);
    }

    public static void anUnreadStreamIsOverrun() throws Exception {
        try (Engine engine = Engine.open(config("mock:words", ""), new Engine.Options().maxUnreadBytes(4096))) {
            Generation g = engine.generate(endless());
            check(g.result().finish() == Finish.OVERRUN, g.result());
            StringBuilder text = new StringBuilder();
            check(fails(() -> g.forEachRemaining(chunk -> text.append(chunk.text()))).finish() == Finish.OVERRUN);
            // Where the machine is slow, the first record is more already, and nothing is kept.
            check(text.length() <= 4096, text.length());
            Result whole = engine.complete(endless().maxTokens(8000)).join();
            check(whole.text().length() > 7500, whole.text().length());
        }
    }

    public static void anyTextCrossesWhole() throws Exception {
        try (Engine engine = open("mock:words"); Tokenizer mock = engine.tokenizer(); Tokenizer demo = Tokenizer.open(MODEL)) {
            int[] ids = mock.encode(TEXT, true);
            check(ids.length == 11 && ids[0] == 0xf0 && ids[4] == 0, ids.length);
            check(mock.decode(ids).equals(TEXT) && mock.decode().isEmpty());
            check(fails(() -> mock.encode("\ud83e", true)).status() == Status.INVALID);
            check(demo.decode(demo.encode(TEXT, false)).equals(TEXT));
            Result a = engine.complete(Request.prompt(TEXT).maxTokens(5)).join();
            Result b = engine.complete(Request.tokens(ids).maxTokens(5)).join();
            check(a.promptTokens() == 11 && a.text().equals(b.text()), a, b);
            Result stopped = engine.complete(endless().stopTexts(List.of(TEXT, "e")).stopTokens('z')).join();
            check(a.choices().size() == 1 && a.choices().get(0).finish() == a.finish(), a);
            check(stopped.finish() == Finish.STOP && stopped.text().chars().noneMatch(c -> c == 'e' || c == 'z'), stopped);
            check(fails(() -> Request.prompt("lone \ud83e surrogate")).status() == Status.INVALID);
            check(fails(() -> Tokenizer.open("/no/such/model")).status() == Status.NOT_FOUND);
            demo.close();
            check(fails(() -> demo.decode(1)).status() == Status.BAD_HANDLE);
        }
    }

    public static void whatIsForgottenIsCleanedUp() throws Exception {
        try (Engine engine = open("mock:words,delay_us=1000")) {
            for (int i = 0; i < 1000; i++) {
                engine.generate(endless());
            }
            for (int round = 0; engine.openRequests() > 0; round++) {
                check(round < 1000, "abandoned streams run on", engine.openRequests());
                System.gc();
                Thread.sleep(20);
            }
            waitIdle(engine);
        }
        // The engine is forgotten at once, and is freed when its last request has ended.
        check(open("mock:words").complete(shortRequest(1)).join().text().length() == 41);
    }
}
