package ai.yinian;

import static ai.yinian.Checks.check;
import static ai.yinian.Checks.config;
import static ai.yinian.Checks.endless;
import static ai.yinian.Checks.open;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/** Callers on virtual threads, on a JDK that has them. The suite gives them one carrier between them. */
final class VirtualThreadTest {
    private VirtualThreadTest() {}

    /** Null where there are none. */
    private static ExecutorService virtualThreads() throws Exception {
        return Runtime.version().feature() < 21 ? null
            : (ExecutorService) Executors.class.getMethod("newVirtualThreadPerTaskExecutor").invoke(null);
    }

    public static void waitingGivesTheCarrierAway() throws Exception {
        ExecutorService threads = virtualThreads();
        if (threads == null) {
            return;
        }
        // A step takes so long that each of these waits whenever it is looked at.
        try (Engine engine = open("mock:words,delay_us=20000");
             Engine loading = Engine.open(config("mock:words,load_ms=30000", ", \"async_load\": true"))) {
            List<Generation> streams = new ArrayList<>();
            List<Future<?>> waits = new ArrayList<>();
            CountDownLatch begun = new CountDownLatch(100);
            for (int i = 0; i < 100; i++) {
                Generation g = engine.generate(endless());
                streams.add(g);
                waits.add(threads.submit(() -> {
                    begun.countDown();
                    g.forEachRemaining(chunk -> {});
                }));
            }
            streams.add(engine.generate(endless()));
            waits.add(threads.submit(() -> streams.get(100).result()));
            waits.add(threads.submit(() -> loading.ready().join()));
            loading.generate(endless());
            waits.add(threads.submit(() -> loading.drain(Duration.ofSeconds(20))));
            Future<?> opens = threads.submit(() -> Engine.open(config("mock:words,load_ms=1000", "")).close());
            check(begun.await(10, TimeUnit.SECONDS), "virtual threads do not start while others wait", begun.getCount());
            long began = System.nanoTime();
            for (int i = 0; i < 100; i++) {
                threads.submit(() -> {}).get(10, TimeUnit.SECONDS);
            }
            long took = (System.nanoTime() - began) / 1_000_000;
            // Were they pinned, each task would stand behind a hundred steps.
            check(took < 10_000, "others hold the carrier: 100 short tasks took", took, "ms");
            check(waits.stream().noneMatch(Future::isDone), "none should have ended yet");
            opens.get(20, TimeUnit.SECONDS);
            streams.forEach(Generation::cancel);
            loading.close();
            for (Future<?> wait : waits) {
                try {
                    wait.get(20, TimeUnit.SECONDS);
                } catch (ExecutionException e) {
                    check(e.getCause() instanceof YinianException || e.getCause() instanceof CompletionException, e);
                }
            }
        } finally {
            threads.shutdown();
        }
    }
}
