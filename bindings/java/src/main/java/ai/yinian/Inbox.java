package ai.yinian;

import java.util.concurrent.CancellationException;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;

/**
 * One request's unread output and its end. The poll thread fills it, any thread reads it. Waiting parks on a lock of
 * java.util.concurrent, so a virtual thread that waits gives its carrier away on every JDK that has them.
 */
final class Inbox implements Core.Sink {
    private final ReentrantLock lock = new ReentrantLock();
    private final Condition changed = lock.newCondition();
    private final Unread[] unread;
    private final long limit;
    /** A choice is there to be read when it has ended, not before. */
    private final boolean whole;
    /** Told of everything that changes, on the poll thread. */
    private final Runnable listener;
    private int next;
    private boolean overrun;
    private Result result;
    private YinianException error;

    /** More than {@code limit} unread bytes of a choice end the request. */
    Inbox(int choices, boolean whole, int limit, Runnable listener) {
        unread = new Unread[choices];
        for (int i = 0; i < choices; i++) {
            unread[i] = new Unread();
        }
        this.whole = whole;
        this.limit = whole ? Long.MAX_VALUE : limit;
        this.listener = listener;
    }

    @Override
    public boolean output(Event event) {
        boolean fits;
        lock.lock();
        try {
            Unread u = unread[event.choice()];
            fits = overrun || u.size() + Unread.size(event) <= limit;
            overrun |= !fits;
            if (!overrun) {
                if (event.kind() == Event.PROMPT) {
                    u.addPrompt(event);
                } else {
                    u.addOutput(event);
                    u.finish = Finish.of(event.finish());
                }
            }
        } finally {
            lock.unlock();
        }
        return fits;
    }

    @Override
    public void end(Result ended, Status status, String message) {
        lock.lock();
        try {
            result = overrun ? ended.with(Finish.OVERRUN) : ended;
            if (!result.finish().isWhole()) {
                error = new YinianException(overrun ? Status.OK : status, message, result);
            } else if (unread.length == 1) {
                // The library names the end of a choice only where there are several.
                unread[0].finish = result.finish();
            }
        } finally {
            lock.unlock();
        }
    }

    @Override
    public void wake() {
        lock.lock();
        try {
            changed.signalAll();
        } finally {
            lock.unlock();
        }
        listener.run();
    }

    private boolean isReady(Unread u) {
        return !u.isEmpty() && (!whole || u.finish != Finish.NONE || result != null);
    }

    /** What is there, of several choices in turn; null when nothing is. */
    Chunk poll() {
        lock.lock();
        try {
            for (int i = 0; i < unread.length; i++) {
                int choice = next;
                next = next + 1 == unread.length ? 0 : next + 1;
                if (isReady(unread[choice])) {
                    return unread[choice].take(choice);
                }
            }
            return null;
        } finally {
            lock.unlock();
        }
    }

    private boolean anyReady() {
        for (Unread u : unread) {
            if (isReady(u)) {
                return true;
            }
        }
        return false;
    }

    /** Waits for output, or the end. False when all was read and the answer is whole; when it is not, that is thrown. */
    boolean await() {
        lock.lock();
        try {
            while (!anyReady()) {
                if (result != null) {
                    if (error != null) {
                        throw error;
                    }
                    return false;
                }
                pause();
            }
            return true;
        } finally {
            lock.unlock();
        }
    }

    boolean hasEnded() {
        lock.lock();
        try {
            return result != null;
        } finally {
            lock.unlock();
        }
    }

    /** Everything was read, and nothing more will come. */
    boolean isExhausted() {
        lock.lock();
        try {
            return result != null && !anyReady();
        } finally {
            lock.unlock();
        }
    }

    /** Why the answer is not whole; null when it is, or has not ended. */
    YinianException error() {
        lock.lock();
        try {
            return error;
        } finally {
            lock.unlock();
        }
    }

    /** Waits for the end. */
    Result result() {
        lock.lock();
        try {
            while (result == null) {
                pause();
            }
            return result;
        } finally {
            lock.unlock();
        }
    }

    private void pause() {
        try {
            changed.await();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw (CancellationException) new CancellationException("interrupted while waiting for output").initCause(e);
        }
    }
}
