package ai.yinian;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;

/** What an engine's poll thread knows. It does not know the Engine, so that a forgotten one can be cleaned up. */
final class Core implements Runnable {
    /** Where the records of one request go. Called on the poll thread, so nothing here may wait or run code of users. */
    interface Sink {
        /** OUTPUT or PROMPT. False: there is no room left, the request is to be cancelled. */
        boolean output(Event event);

        /** Wakes whoever waits for what output and end have brought. */
        void wake();

        /** The end. A status other than OK has a message. */
        void end(Result result, Status status, String message);
    }

    private static final int AWAKE = 64;

    final long engine;
    private final Loading loading;
    private final AtomicLong lastKey = new AtomicLong();
    private final Map<Long, Sink> sinks = new ConcurrentHashMap<>();
    private final Event event = new Event();
    /** Those that have something new. Woken together, they find fewer threads asleep, so a wake-up costs less. */
    private final List<Sink> awake = new ArrayList<>(AWAKE);
    private final CountDownLatch ended = new CountDownLatch(1);
    private final Thread poller = new Thread(this, "yinian-poll");

    Core(long engine, Loading loading) {
        this.engine = engine;
        this.loading = loading;
        poller.setDaemon(true);
        poller.start();
    }

    /** Hands a request in; its id. */
    long submit(Request.Encoded request, Sink sink) {
        long key = lastKey.incrementAndGet();
        // The end may be polled before submit returns.
        sinks.put(key, sink);
        try {
            return request.submit(engine, key);
        } catch (Throwable t) {
            sinks.remove(key);
            throw t;
        }
    }

    void cancel(long id) {
        Native.cancel(engine, id);
    }

    /** Ends every request; the poll thread then comes to its end. Waits for about a step. */
    void free() {
        Native.free(engine);
    }

    void awaitEnd() {
        boolean interrupted = false;
        while (Thread.currentThread() != poller) {
            try {
                ended.await();
                break;
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
            int used = Native.poll(engine, event.buffer);
            while (used > 0 || used == Native.TIMEOUT) {
                for (int at = 0; at < used;) {
                    at = event.seek(at);
                    route();
                }
                wakeAll();
                used = Native.poll(engine, event.buffer);
            }
            why = Status.of(used);
            message = "the engine is closed";
        } catch (Throwable t) {
            message = t.toString();
            free();
        } finally {
            // None are left unless the library broke its word or this thread failed.
            for (Sink sink : sinks.values()) {
                end(sink, Result.failed(), why, message);
            }
            sinks.clear();
            wakeAll();
            loading.end(why, message);
            ended.countDown();
        }
    }

    private void route() {
        int kind = event.kind();
        if (kind == Event.ENGINE) {
            loading.event(new EngineEvent(EngineState.of(event.finish()), event.nTokens(), event.text()), Status.of(event.status()));
        } else if (kind == Event.DONE) {
            Sink sink = sinks.remove(event.key());
            if (sink != null) {
                end(sink, event.result(), Status.of(event.status()), event.text());
            }
        } else if (kind == Event.OUTPUT || kind == Event.PROMPT) {
            output();
        }
    }

    private void output() {
        Sink sink = sinks.get(event.key());
        if (sink == null) {
            return;
        }
        try {
            if (!sink.output(event)) {
                cancel(event.request());
            }
            wake(sink);
        } catch (Throwable t) {
            // Of this request alone, memory most likely.
            sinks.remove(event.key());
            cancel(event.request());
            end(sink, Result.failed(), Status.INTERNAL, t.toString());
        }
    }

    private void end(Sink sink, Result result, Status status, String message) {
        try {
            sink.end(result, status, message);
        } catch (Throwable t) {
            Serial.report(t);
        }
        wake(sink);
    }

    private void wake(Sink sink) {
        awake.add(sink);
        if (awake.size() == AWAKE) {
            wakeAll();
        }
    }

    private void wakeAll() {
        for (Sink sink : awake) {
            try {
                sink.wake();
            } catch (Throwable t) {
                Serial.report(t);
            }
        }
        awake.clear();
    }
}
