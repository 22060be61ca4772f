package ai.yinian;

import java.util.ArrayDeque;
import java.util.Queue;
import java.util.concurrent.ForkJoinPool;

/** Runs code of users on the common pool, one task after the other and in order, off the poll thread. */
final class Serial {
    private final Queue<Runnable> tasks = new ArrayDeque<>();
    private boolean running;

    synchronized void execute(Runnable task) {
        tasks.add(task);
        if (!running) {
            running = true;
            ForkJoinPool.commonPool().execute(this::run);
        }
    }

    private void run() {
        for (Runnable task = next(); task != null; task = next()) {
            try {
                task.run();
            } catch (Throwable t) {
                report(t);
            }
        }
    }

    private synchronized Runnable next() {
        Runnable task = tasks.poll();
        running = task != null;
        return task;
    }

    /** As a thread that ended with it would. */
    static void report(Throwable t) {
        Thread thread = Thread.currentThread();
        thread.getUncaughtExceptionHandler().uncaughtException(thread, t);
    }
}
