package ai.yinian;

import java.util.Objects;
import java.util.function.Consumer;

/** What concerns the library as a whole. */
public final class Yinian {
    /** The queue that log lines go to; 0 is none. Guarded by the class. */
    private static long logQueue;

    private Yinian() {}

    /** {@return the version of the loaded library, "0.1.0"} */
    public static String version() {
        int v = Native.version();
        return (v >>> 24) + "." + (v >>> 16 & 0xff) + "." + (v >>> 8 & 0xff);
    }

    /** {@return what the loaded library is, as a JSON object: its version, and as {@code devices} the kinds it has code for} */
    public static String buildInfo() {
        return Native.text(Native.buildInfo(), null);
    }

    /**
     * What a config would load where, before loading. Reads the model's headers.
     *
     * @param configJson as for {@link Engine#open(String)}
     * @return a JSON object, in bytes
     * @throws YinianException as of {@link Engine#open(String)}
     */
    public static String planMemory(String configJson) {
        byte[] config = Native.utf8("the config", configJson);
        byte[] error = Native.newError();
        byte[][] json = new byte[1][];
        Native.apart(() -> {
            json[0] = Native.planMemory(config, error);
            return Native.OK;
        });
        return Native.text(json[0], error);
    }

    /**
     * Sends the log lines of all engines of the process to a consumer, instead of where they went before. At the start they go
     * nowhere. The consumer is called on a thread of its own, line by line; while it is slow, lines are dropped, and the next one says
     * how many.
     *
     * @param level the least important lines that are wanted; {@link LogLevel#OFF} ends it. An engine's {@code log_level} limits
     *     what comes too
     * @param consumer what to call; not used with {@link LogLevel#OFF}
     * @throws YinianException IO (no descriptors left), NO_MEMORY
     */
    public static synchronized void logTo(LogLevel level, Consumer<LogLine> consumer) {
        long queue = 0;
        if (level != LogLevel.OFF) {
            Objects.requireNonNull(consumer);
            byte[] error = Native.newError();
            long[] made = new long[1];
            Native.check(Native.queueCreate(made, error), error);
            queue = made[0];
        }
        int status = Native.logToQueue(queue, level.ordinal());
        if (status == Native.OK && queue != 0) {
            LogReader.start(queue, consumer);
        } else if (queue != 0) {
            Native.queueFree(queue);
        }
        Native.check(status, Native.newError());
        if (logQueue != 0) {
            // Its reader gets what was logged, and ends.
            Native.queueFree(logQueue);
        }
        logQueue = queue;
    }

    /** The thread behind a log queue. */
    private record LogReader(long queue, Consumer<LogLine> consumer) implements Runnable {
        static void start(long queue, Consumer<LogLine> consumer) {
            Thread thread = new Thread(new LogReader(queue, consumer), "yinian-log");
            thread.setDaemon(true);
            thread.start();
        }

        @Override
        public void run() {
            Event event = new Event();
            int used = Native.queuePoll(queue, event.buffer);
            while (used > 0 || used == Native.TIMEOUT) {
                for (int at = 0; at < used;) {
                    at = event.seek(at);
                    if (event.kind() == Event.LOG) {
                        tell(new LogLine(LogLevel.of(event.flags()), event.text()));
                    }
                }
                used = Native.queuePoll(queue, event.buffer);
            }
        }

        private void tell(LogLine line) {
            try {
                consumer.accept(line);
            } catch (Throwable t) {
                Serial.report(t);
            }
        }
    }
}
