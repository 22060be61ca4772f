package ai.yinian;

import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ForkJoinPool;
import java.util.function.Consumer;

/** How an engine comes up, for those who wait for it and those who watch. Filled by the poll thread. */
final class Loading {
    private final CompletableFuture<Void> ready = new CompletableFuture<>();
    private final Consumer<EngineEvent> listener;
    private final Serial serial = new Serial();

    Loading(Consumer<EngineEvent> listener) {
        this.listener = listener;
    }

    void event(EngineEvent event, Status status) {
        if (listener != null) {
            serial.execute(() -> listener.accept(event));
        }
        if (event.state() == EngineState.READY) {
            ready.completeAsync(() -> null);
        } else if (event.state() == EngineState.FAILED) {
            fail(status, event.message());
        }
    }

    void isReady() {
        ready.complete(null);
    }

    /** The engine is gone. */
    void end(Status status, String message) {
        fail(status, message);
    }

    private void fail(Status status, String message) {
        YinianException e = new YinianException(status, YinianException.UNUSABLE, message);
        ForkJoinPool.commonPool().execute(() -> ready.completeExceptionally(e));
    }

    /** A copy: nobody but the poll thread completes the real one. */
    CompletableFuture<Void> ready() {
        return ready.copy();
    }
}
