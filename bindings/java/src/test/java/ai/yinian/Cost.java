package ai.yinian;

import java.lang.management.ManagementFactory;
import java.util.Arrays;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Flow;
import java.util.concurrent.atomic.AtomicLong;

/**
 * What a token costs a host that uses this wrapper: a twin of tests/bindings/cost.c, with its load and its lines, for cost.py.
 * The argument is the form: publisher, threads or virtual. Warms up first, as a server is warm.
 */
public final class Cost {
    private static final int STREAMS = 256;
    private static final int TOKENS = 400;
    private static final String STEPS = "{\"model\": \"mock:words,delay_us=2000\", \"max_num_seqs\": 256, \"log_level\": \"off\"}";
    private static final int PINGS = 500;
    private static final int WARM_PINGS = 2000;
    private static final String PING = "{\"model\": \"mock:words\", \"log_level\": \"off\"}";

    private final AtomicLong records = new AtomicLong();
    private final AtomicLong chars = new AtomicLong();
    private final AtomicLong tokens = new AtomicLong();

    private Cost() {}

    /** How a host gets its tokens. */
    private interface Form {
        /** Reads all streams to their end. */
        void read(Engine engine, Cost cost) throws Exception;
    }

    private static Request request(int maxTokens) {
        return Request.prompt("hello").maxTokens(maxTokens).ignoreEos();
    }

    private void count(Chunk chunk) {
        records.incrementAndGet();
        chars.addAndGet(chunk.text().length());
    }

    private static void publisher(Engine engine, Cost cost) throws InterruptedException {
        CountDownLatch left = new CountDownLatch(STREAMS);
        Request r = request(TOKENS);
        for (int i = 0; i < STREAMS; i++) {
            engine.publisher(r, java.util.concurrent.ForkJoinPool.commonPool(), end -> cost.tokens.addAndGet(end.completionTokens()))
                .subscribe(new Flow.Subscriber<>() {
                    @Override
                    public void onSubscribe(Flow.Subscription s) {
                        s.request(Long.MAX_VALUE);
                    }

                    @Override
                    public void onNext(Chunk chunk) {
                        cost.count(chunk);
                    }

                    @Override
                    public void onError(Throwable t) {
                        throw new IllegalStateException(t);
                    }

                    @Override
                    public void onComplete() {
                        left.countDown();
                    }
                });
        }
        left.await();
    }

    private static Form iterators(ExecutorService threads) {
        return (engine, cost) -> {
            CountDownLatch left = new CountDownLatch(STREAMS);
            for (int i = 0; i < STREAMS; i++) {
                Generation g = engine.generate(request(TOKENS));
                threads.execute(() -> {
                    g.forEachRemaining(cost::count);
                    cost.tokens.addAndGet(g.result().completionTokens());
                    left.countDown();
                });
            }
            left.await();
        };
    }

    private static Form form(String name) throws ReflectiveOperationException {
        return switch (name) {
            case "publisher" -> Cost::publisher;
            case "threads" -> iterators(Executors.newCachedThreadPool(task -> {
                Thread thread = new Thread(task);
                thread.setDaemon(true);
                return thread;
            }));
            case "virtual" -> iterators((ExecutorService) Executors.class.getMethod("newVirtualThreadPerTaskExecutor").invoke(null));
            default -> throw new IllegalArgumentException(name + ": expected publisher, threads or virtual");
        };
    }

    private static long processNs() {
        return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
    }

    private static long pollerNs() {
        long ns = 0;
        for (Thread thread : Thread.getAllStackTraces().keySet()) {
            if (thread.getName().equals("yinian-poll")) {
                ns += ManagementFactory.getThreadMXBean().getThreadCpuTime(thread.getId());
            }
        }
        return ns;
    }

    private static void tokens(Form form, int rounds) throws Exception {
        try (Engine engine = Engine.open(STEPS)) {
            for (int round = 1; round <= rounds; round++) {
                Cost cost = new Cost();
                long poller = pollerNs();
                long began = processNs();
                form.read(engine, cost);
                long took = processNs() - began;
                long of = pollerNs() - poller;
                long expected = (long) STREAMS * TOKENS;
                // Of the mock's end tokens, which have no text, there are a few.
                if (cost.tokens.get() != expected || cost.chars.get() > expected || cost.chars.get() < expected * 0.99) {
                    throw new IllegalStateException(cost.tokens + " tokens, " + cost.chars + " chars");
                }
                if (round == rounds) {
                    System.out.printf("tokens: %d in %d records%n", expected, cost.records.get());
                    System.out.printf("CPU ns per token: %.1f%n", (double) took / expected);
                    System.out.printf("CPU ns per token of the poller: %.1f%n", (double) of / expected);
                }
            }
        }
    }

    private static void wakeups() throws InterruptedException {
        try (Engine engine = Engine.open(PING)) {
            long[] took = new long[PINGS];
            Request r = request(1);
            for (int i = -WARM_PINGS; i < PINGS; i++) {
                Thread.sleep(0, 500_000);
                long began = System.nanoTime();
                Generation g = engine.generate(r);
                g.next();
                if (i >= 0) {
                    took[i] = System.nanoTime() - began;
                }
                g.close();
            }
            Arrays.sort(took);
            System.out.printf("wake-up us: p50 %.1f p99 %.1f%n", took[PINGS / 2] / 1e3, took[PINGS * 99 / 100] / 1e3);
        }
    }

    public static void main(String[] args) throws Exception {
        Form form = form(args.length == 0 ? "publisher" : args[0]);
        tokens(form, Integer.getInteger("rounds", 12));
        wakeups();
        System.exit(0);
    }
}
