package ai.yinian;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;

/** What an engine's poll thread knows. It does not know the Engine, so that a forgotten one can be cleaned up. */
final class Core implements Runnable {
    private static final int EV_OUTPUT = 1;
    private static final int EV_DONE = 2;

    /** Where the records of one request go. Called on the poll thread, so nothing here may wait or run code of users. */
    interface Sink {
        /** False: there is no room left, the request is to be cancelled. */
        boolean output(String text, int bytes, int[] tokens);

        /** The end; {@code error} is null when it came by itself. */
        void end(Result result, Status status, String message);
    }

    final long engine;
    private final AtomicLong lastKey = new AtomicLong();
    private final Map<Long, Sink> sinks = new ConcurrentHashMap<>();
    private final ByteBuffer buffer = ByteBuffer.allocateDirect(65536 + 8).alignedSlice(8).order(ByteOrder.nativeOrder());
    private final Thread poller = new Thread(this, "yinian-poll");

    Core(long engine) {
        this.engine = engine;
        poller.setDaemon(true);
        poller.start();
    }

    /** Hands a request in; its id. */
    long submit(Request request, Sink sink, boolean finalOnly) {
        long key = lastKey.incrementAndGet();
        // The end may be polled before submit returns.
        sinks.put(key, sink);
        try {
            return request.submit(engine, key, finalOnly);
        } catch (Throwable t) {
            sinks.remove(key);
            throw t;
        }
    }

    void cancel(long id) {
        Native.cancel(engine, id);
    }

    /** Ends every request; the poll thread then comes to its end. */
    void free() {
        Native.free(engine);
    }

    void awaitEnd() {
        boolean interrupted = false;
        while (poller.isAlive() && Thread.currentThread() != poller) {
            try {
                poller.join();
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    int openRequests() {
        return sinks.size();
    }

    @Override
    public void run() {
        Status why = Status.INTERNAL;
        String message = "the poll thread failed";
        try {
            int used = Native.poll(engine, buffer);
            while (used > 0 || used == Native.TIMEOUT) {
                for (int at = 0; at < used; at += buffer.getInt(at)) {
                    route(at);
                }
                used = Native.poll(engine, buffer);
            }
            why = Status.of(used);
            message = "the engine is gone";
        } catch (Throwable t) {
            message = t.toString();
            free();
        } finally {
            // None are left unless the library broke its word or this thread failed.
            for (Sink sink : sinks.values()) {
                sink.end(Result.failed(), why, message);
            }
            sinks.clear();
        }
    }

    private void route(int at) {
        int kind = buffer.getShort(at + 4);
        if (kind != EV_OUTPUT && kind != EV_DONE) {
            return;
        }
        long key = buffer.getLong(at + 16);
        Sink sink = kind == EV_DONE ? sinks.remove(key) : sinks.get(key);
        if (sink == null) {
            return;
        }
        byte[] bytes = new byte[buffer.getInt(at + 40)];
        buffer.get(at + buffer.getInt(at + 44), bytes);
        String text = new String(bytes, StandardCharsets.UTF_8);
        if (kind == EV_DONE) {
            sink.end(result(at), Status.of(buffer.getInt(at + 24)), text);
            return;
        }
        int[] tokens = new int[buffer.getInt(at + 32)];
        for (int i = 0; i < tokens.length; i++) {
            tokens[i] = buffer.getInt(at + buffer.getInt(at + 36) + 4 * i);
        }
        if (!sink.output(text, bytes.length, tokens)) {
            cancel(buffer.getLong(at + 8));
        }
    }

    private Result result(int at) {
        long submit = buffer.getLong(at + 72);
        long first = buffer.getLong(at + 80);
        return new Result(Finish.of(buffer.getInt(at + 28)), "", buffer.getInt(at + 56), buffer.getInt(at + 60),
            buffer.getInt(at + 64), first == 0 ? Duration.ZERO : Duration.ofNanos(first - submit),
            Duration.ofNanos(buffer.getLong(at + 88) - submit));
    }
}
