package ai.yinian;

import static ai.yinian.Checks.check;
import static ai.yinian.Checks.config;
import static ai.yinian.Checks.until;
import static ai.yinian.Checks.waitIdle;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Flow;
import java.util.concurrent.Phaser;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * A thousand streams at a time, read whole or slowly, cancelled, abandoned, and closed under way, in rounds: nothing is lost, ends
 * twice or stays. The heap is to be of a fixed size and touched before, so that what grows is a leak. YINIAN_SOAK_SECONDS is for how
 * long, 6 unless set.
 */
final class SoakTest {
    private static final int STREAMS = 1000;
    private static final int READERS = 100;
    /** Of a machine that is busy with something else. */
    private static final int PATIENCE_SECONDS = 240;
    private static final long GROWTH_BYTES = 32 << 20;

    private SoakTest() {}

    /** What a round has seen. */
    private static final class Round {
        final Engine engine = Engine.open(config("mock:words,delay_us=300", ", \"max_num_seqs\": 256"), new Engine.Options().maxUnreadBytes(1 << 14));
        final AtomicInteger accepted = new AtomicInteger();
        final AtomicInteger ended = new AtomicInteger();
        /** Parties are requests whose end is not known yet. */
        final Phaser open = new Phaser(1);

        void begin() {
            accepted.incrementAndGet();
        }

        void end(YinianException e) {
            check(e == null || e.finish() == Finish.CANCELLED || e.finish() == Finish.OVERRUN || refused(e), e == null ? "" : e);
            ended.incrementAndGet();
        }

        /** By an engine that is closed. */
        static boolean refused(YinianException e) {
            return e.finish() == null && (e.status() == Status.BAD_HANDLE || e.status() == Status.SHUTDOWN);
        }
    }

    private static Request request(Random random) {
        Request r = Request.prompt("soak " + random.nextInt(50)).maxTokens(1 + random.nextInt(300)).ignoreEos();
        if (random.nextInt(4) == 0) {
            r.logprobs(random.nextInt(3)).choices(1 + random.nextInt(3));
        }
        return r;
    }

    private static void iterate(Round round, Random random, boolean slow) {
        int stopAfter = random.nextInt(3) == 0 ? random.nextInt(20) : Integer.MAX_VALUE;
        round.begin();
        try (Generation g = round.engine.generate(request(random))) {
            for (int chunks = 0; g.hasNext(); chunks++) {
                g.next();
                if (chunks == stopAfter) {
                    g.cancel();
                }
                if (slow) {
                    Thread.sleep(random.nextInt(4));
                }
            }
            round.end(null);
        } catch (YinianException e) {
            round.end(e);
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    private static void complete(Round round, Random random) {
        round.begin();
        try {
            CompletableFuture<Result> future = round.engine.complete(request(random));
            round.open.register();
            future.whenComplete((result, error) -> {
                if (error == null || future.isCancelled()) {
                    round.end(null);
                } else {
                    round.end((YinianException) (error instanceof YinianException ? error : error.getCause()));
                }
                round.open.arriveAndDeregister();
            });
            if (random.nextInt(3) == 0) {
                future.cancel(true);
            }
        } catch (YinianException e) {
            round.end(e);
        }
    }

    private static void abandon(Round round, Random random) {
        try {
            Generation g = round.engine.generate(request(random).maxTokens(20_000));
            if (random.nextBoolean()) {
                g.hasNext();
            }
        } catch (YinianException e) {
            check(Round.refused(e) || e.finish() == Finish.CANCELLED, e);
        }
    }

    private static void subscribe(Round round, Random random) {
        int stopAfter = random.nextInt(3) == 0 ? random.nextInt(20) : Integer.MAX_VALUE;
        round.begin();
        round.open.register();
        round.engine.publisher(request(random)).subscribe(new Flow.Subscriber<>() {
            private final AtomicInteger ends = new AtomicInteger();
            private Flow.Subscription subscription;
            private int chunks;

            private void end(YinianException e) {
                check(ends.incrementAndGet() == 1, "a second end", e == null ? "" : e);
                round.end(e);
                round.open.arriveAndDeregister();
            }

            @Override
            public void onSubscribe(Flow.Subscription s) {
                subscription = s;
                s.request(1);
            }

            @Override
            public void onNext(Chunk chunk) {
                if (chunks++ == stopAfter) {
                    subscription.cancel();
                    end(null);
                } else {
                    subscription.request(1);
                }
            }

            @Override
            public void onError(Throwable t) {
                end((YinianException) t);
            }

            @Override
            public void onComplete() {
                end(null);
            }
        });
    }

    private static void one(Round round, Random random) {
        switch (random.nextInt(6)) {
            case 0 -> iterate(round, random, true);
            case 1 -> complete(round, random);
            case 2 -> subscribe(round, random);
            case 3 -> abandon(round, random);
            default -> iterate(round, random, false);
        }
    }

    /** All streams at once, over as many readers; half the rounds close the engine while they run. */
    private static void round(ExecutorService readers, long seed) throws Exception {
        Random random = new Random(seed);
        Round round = new Round();
        List<CompletableFuture<Void>> streams = new ArrayList<>();
        for (int i = 0; i < STREAMS; i++) {
            Random own = new Random(random.nextLong());
            streams.add(CompletableFuture.runAsync(() -> one(round, own), readers));
        }
        if (seed % 2 == 0) {
            Thread.sleep(random.nextInt(300));
            round.engine.close();
        }
        CompletableFuture.allOf(streams.toArray(new CompletableFuture<?>[0])).get(PATIENCE_SECONDS, TimeUnit.SECONDS);
        round.open.awaitAdvanceInterruptibly(round.open.arrive(), PATIENCE_SECONDS, TimeUnit.SECONDS);
        check(round.ended.get() == round.accepted.get(), "seed", seed, "ended", round.ended, "of", round.accepted);
        if (seed % 2 != 0) {
            until(() -> {
                System.gc();
                return round.engine.openRequests() == 0;
            }, "seed", seed, "abandoned streams run on", round.engine.openRequests());
            waitIdle(round.engine);
            round.engine.close();
        }
        check(round.engine.openRequests() == 0, "seed", seed, round.engine.openRequests());
    }

    private static long residentBytes() throws IOException {
        System.gc();
        return Long.parseLong(Files.readString(Path.of("/proc/self/statm")).split(" ")[1]) * 4096;
    }

    private static int threads() {
        return (int) Thread.getAllStackTraces().keySet().stream().filter(t -> t.getName().startsWith("yinian-")).count();
    }

    /** What is open, by descriptor. */
    private static List<String> files() throws IOException {
        List<String> open = new ArrayList<>();
        for (String fd : new File("/proc/self/fd").list()) {
            Path link = Path.of("/proc/self/fd", fd);
            open.add(Files.isSymbolicLink(link) ? fd + " " + Files.readSymbolicLink(link) : fd);
        }
        return open;
    }

    public static void aThousandStreamsInRoundsLeaveNothingBehind() throws Exception {
        String wanted = System.getenv("YINIAN_SOAK_SECONDS");
        long time = TimeUnit.SECONDS.toNanos(wanted == null ? 6 : Long.parseLong(wanted));
        long half = System.nanoTime() + time / 2;
        long end = half + time / 2;
        ExecutorService readers = Executors.newFixedThreadPool(READERS);
        try {
            // What the first half takes, compiled code above all, is no leak.
            long seed = 1;
            for (; System.nanoTime() < half || seed < 5; seed++) {
                round(readers, seed);
            }
            long resident = residentBytes();
            int threads = threads();
            List<String> files = files();
            for (long last = seed + 2; System.nanoTime() < end || seed < last; seed++) {
                round(readers, seed);
            }
            check(files().size() <= files.size(), "descriptors are left open", files, files());
            until(() -> threads() <= threads, "threads are left", threads, threads());
            long grown = residentBytes() - resident;
            check(grown < GROWTH_BYTES, "resident memory has grown by", grown >> 20, "MiB in half of the rounds", seed);
            if (wanted != null) {
                System.err.printf("soak: %d rounds of %d streams, resident %d MiB, %+d MiB in the second half%n", seed - 1, STREAMS, resident >> 20,
                    grown >> 20);
            }
        } finally {
            readers.shutdownNow();
        }
    }
}
