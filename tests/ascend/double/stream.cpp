// Streams. Lazy streams run nothing before somebody waits, so that a missing wait always shows; threaded ones run
// on threads of their own, each task after a seeded random delay.
#include "stream.h"
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

namespace dbl {

namespace {

Table<Stream> &streams = *new Table<Stream>;
std::map<const Context *, std::shared_ptr<Stream>> &default_streams = *new std::map<const Context *, std::shared_ptr<Stream>>;
int mode = -1;
uint64_t seed = 1;

constexpr auto DEADLOCK = std::chrono::seconds(60);

void read_mode() {
    if (mode >= 0) return;
    const char *text = getenv("YN_DOUBLE_MODE");
    mode = text && !strncmp(text, "threaded", 8);
    if (mode && text[8] == ':') seed = strtoull(text + 9, nullptr, 10);
}

// All that a task touches is alive. With the world's lock.
int check_ranges(const Task &task, int device) {
    for (const Range &range : task.ranges) {
        std::string why;
        const char *kind = "";
        if (range.host) {
            if (!is_pinned(reinterpret_cast<void *>(range.at), range.bytes)) {
                return fault(DRIVER, "host-free-pending",
                             fmt("%s: its host memory at %#zx is gone", task.name.c_str(), range.at));
            }
        } else if (range.bytes && !translate(reinterpret_cast<void *>(range.at), range.bytes, device, &why, &kind)) {
            return fault(AICORE, kind, task.name + ", " + range.what + ": " + why);
        }
    }
    if (task.source && checksum(task.source, task.source_bytes) != task.source_sum) {
        return fault(OK, "host-buffer-changed", task.name + ": the host changed the source before the copy had run");
    }
    return OK;
}

int execute(const Stream &stream, Task &task) {
    int code = planted_task_error(stream.context->device, task.name);
    if (!code) {
        Lock lock(mu);
        code = check_ranges(task, stream.context->device);
    }
    if (!code) code = task.run();
    Lock lock(mu);
    for (const Range &range : task.ranges) {
        if (range.write && !range.host && task.marks && !code) mark_written(range.at, range.bytes);
    }
    return code;
}

// Takes the lock away while the first task runs.
void run_one(Stream &stream, Lock &lock) {
    stream.running = true;
    // The task stays in front until it has run: what it touches is pending.
    Task &task = stream.queue.front();
    int code = OK;
    if (!stream.error && !stream.dropped) {
        lock.unlock();
        code = execute(stream, task);
        lock.lock();
    }
    if (code && !stream.error) {
        stream.error = code;
        fail(code, fmt("task %llu of a stream of device %d: %s", (unsigned long long)(stream.done + 1), stream.context->device,
                       task.name.c_str()));
    }
    stream.queue.pop_front();
    stream.done++;
    stream.running = false;
    cv.notify_all();
}

void work(std::shared_ptr<Stream> stream) {
    uint64_t state = seed * 0x9E3779B97F4A7C15ull + uintptr_t(stream->handle);
    Lock lock(mu);
    for (;;) {
        cv.wait(lock, [&] { return stream->stop || !stream->queue.empty(); });
        if (stream->queue.empty()) return;
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        lock.unlock();
        // Most tasks follow at once; some wait longer than a step of the host takes.
        uint64_t draw = state >> 33;
        if (draw % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(draw / 4 % 400));
        lock.lock();
        run_one(*stream, lock);
    }
}

int add_stream(aclrtStream *out, const char *call) {
    Lock lock(mu);
    int code;
    auto context = current(call, &code);
    if (!context) return code;
    if (!out) return fault(INVALID_PARAM, "null", std::string(call) + ": stream is NULL");
    auto stream = new_stream(context);
    *out = stream->handle = streams.add(STREAM, stream);
    if (!stream->lazy) stream->worker = std::thread(work, stream);
    return OK;
}

} // namespace

int run_locked(Stream &stream, uint64_t n, Lock &lock) {
    while (stream.done < n) {
        if (stream.lazy && !stream.running) {
            run_one(stream, lock);
        } else if (cv.wait_for(lock, DEADLOCK) == std::cv_status::timeout) {
            return fault(TIMEOUT, "deadlock", "a stream has come no further for a minute");
        }
    }
    return stream.error;
}

int query(Stream &stream, uint64_t n, bool *asked, bool *done, Lock &lock) {
    if (stream.done < n && stream.lazy) {
        bool first = !*asked;
        *asked = true;
        if (!first) run_locked(stream, n, lock);
    }
    *done = stream.done >= n;
    return *done ? stream.error : int(OK);
}

uint64_t checksum(const void *at, size_t bytes) {
    uint64_t sum = 1469598103934665603ull;
    const uint8_t *from = static_cast<const uint8_t *>(at);
    for (; bytes >= 8; from += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, from, 8);
        sum = (sum ^ word) * 1099511628211ull;
    }
    for (; bytes; from++, bytes--) sum = (sum ^ *from) * 1099511628211ull;
    return sum;
}

std::shared_ptr<Stream> new_stream(const std::shared_ptr<Context> &context) {
    read_mode();
    auto stream = std::make_shared<Stream>();
    stream->context = context;
    stream->lazy = mode == 0;
    return stream;
}

std::shared_ptr<Stream> find_stream(aclrtStream handle, const char *call, int *code) {
    auto context = current(call, code);
    if (!context) return nullptr;
    if (!handle) {
        auto &stream = default_streams[context.get()];
        if (!stream) {
            stream = new_stream(context);
            stream->lazy = true;
        }
        return stream;
    }
    auto stream = streams.get(handle);
    if (!stream) {
        *code = fault(RT_PARAM, "stream", std::string(call) + ": no such stream");
    } else if (stream->context != context) {
        *code = fault(STREAM_CONTEXT, "stream-context",
                      fmt("%s: the stream is of a context of device %d, the thread's is another of device %d", call,
                          stream->context->device, context->device));
        return nullptr;
    }
    return stream;
}

namespace {

bool collide(const Task &a, const Task &b) {
    for (const Range &x : a.ranges) {
        for (const Range &y : b.ranges) {
            bool apart = x.at + x.bytes <= y.at || y.at + y.bytes <= x.at;
            if (!apart && x.host == y.host && (x.write || y.write)) return true;
        }
    }
    return false;
}

// Work of another stream that is still pending and that no event puts before or behind this.
void check_race(const Stream &own, const Task &task) {
    for (auto &[handle, other] : streams.live) {
        if (other.get() == &own || other->error) continue;
        auto found = own.behind.find(handle);
        uint64_t ordered = found == own.behind.end() ? 0 : found->second;
        for (size_t i = 0; i < other->queue.size(); i++) {
            if (other->done + i + 1 <= ordered || !collide(task, other->queue[i])) continue;
            fault(OK, "race",
                  fmt("%s uses memory that %s of another stream uses, and no event orders them", task.name.c_str(),
                      other->queue[i].name.c_str()));
            return;
        }
    }
}

} // namespace

void enqueue(const std::shared_ptr<Stream> &stream, Task task) {
    check_race(*stream, task);
    stream->queue.push_back(std::move(task));
    stream->enqueued++;
    cv.notify_all();
}

int stream_device(const std::shared_ptr<Stream> &stream) { return stream->context->device; }

int run_until(const std::shared_ptr<Stream> &stream, uint64_t n) {
    Lock lock(mu);
    return run_locked(*stream, n, lock);
}

int drain(const std::shared_ptr<Stream> &stream, Lock &lock) { return run_locked(*stream, stream->enqueued, lock); }

std::string pending_conflict(uintptr_t at, size_t bytes, bool write) {
    auto in = [&](const Stream &stream) -> std::string {
        for (const Task &task : stream.queue) {
            for (const Range &range : task.ranges) {
                bool apart = at + bytes <= range.at || range.at + range.bytes <= at;
                if (!apart && (write || range.write)) return task.name;
            }
        }
        return {};
    };
    for (auto &[handle, stream] : streams.live) {
        if (auto name = in(*stream); !name.empty()) return name;
    }
    for (auto &[context, stream] : default_streams) {
        if (auto name = in(*stream); !name.empty()) return name;
    }
    return {};
}

void stream_leaks(std::string &out) {
    for (auto &[handle, stream] : streams.live) {
        out += fmt("stream %p of device %d, %zu tasks pending\n", handle, stream->context->device, stream->queue.size());
    }
    event_leaks(out);
}

void stop(const std::shared_ptr<Stream> &stream, Lock &lock) {
    stream->dropped = stream->stop = true;
    cv.notify_all();
    if (stream->worker.joinable()) {
        lock.unlock();
        stream->worker.join();
        lock.lock();
    }
    // Somebody else may still run a lazy one.
    cv.wait_for(lock, DEADLOCK, [&] { return !stream->running; });
    stream->done = stream->enqueued;
    stream->queue.clear();
    cv.notify_all();
}

void stream_reset() {
    Lock lock(mu);
    auto ended = streams.live;
    streams.live.clear();
    for (auto &[handle, stream] : ended) stop(stream, lock);
    default_streams.clear();
    event_reset();
    mode = -1;
}

} // namespace dbl

using namespace dbl;

// Streams made from now on: 0 runs nothing before a wait, 1 runs on threads with delays from `seed`.
ABI void yn_double_mode(int threaded, uint64_t new_seed) {
    Lock lock(mu);
    mode = threaded != 0;
    seed = new_seed;
}

ABI aclError aclrtCreateStream(aclrtStream *out) {
    ENTER("");
    return add_stream(out, "aclrtCreateStream");
}

ABI aclError aclrtCreateStreamWithConfig(aclrtStream *out, uint32_t priority, uint32_t flag) {
    ENTER("priority %u, flag %#x", priority, flag);
    if (priority > 7 || flag & ~3u) return fault(INVALID_PARAM, "stream", fmt("priority %u, flag %#x", priority, flag));
    return add_stream(out, "aclrtCreateStreamWithConfig");
}

ABI aclError aclrtDestroyStream(aclrtStream handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    int code;
    auto stream = handle ? find_stream(handle, "aclrtDestroyStream", &code) : nullptr;
    if (!stream) return handle ? code : fault(RT_PARAM, "stream", "aclrtDestroyStream of NULL");
    if (!stream->queue.empty() && !stream->error) {
        fault(OK, "stream-destroyed-pending",
              fmt("a stream was destroyed with %zu tasks pending, the first is %s", stream->queue.size(),
                  stream->queue.front().name.c_str()));
    }
    streams.live.erase(handle);
    stop(stream, lock);
    return OK;
}

ABI aclError aclrtSynchronizeStream(aclrtStream handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    int code;
    auto stream = find_stream(handle, "aclrtSynchronizeStream", &code);
    if (!stream) return code;
    if ((code = drain(stream, lock))) return fail(code, "aclrtSynchronizeStream: a task of the stream failed");
    return OK;
}

ABI aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout_ms) {
    ENTER("%p, %d ms", handle, timeout_ms);
    Lock lock(mu);
    int code;
    auto stream = find_stream(handle, "aclrtSynchronizeStreamWithTimeout", &code);
    if (!stream) return code;
    uint64_t n = stream->enqueued;
    if (!stream->lazy && timeout_ms >= 0) {
        auto there = [&] { return stream->done >= n; };
        if (!cv.wait_for(lock, std::chrono::milliseconds(timeout_ms), there)) {
            return fail(TIMEOUT, fmt("aclrtSynchronizeStreamWithTimeout: not done after %d ms", timeout_ms));
        }
    }
    if ((code = drain(stream, lock))) return fail(code, "aclrtSynchronizeStreamWithTimeout: a task of the stream failed");
    return OK;
}

ABI aclError aclrtSynchronizeDevice() {
    ENTER("");
    Lock lock(mu);
    int code;
    auto context = current("aclrtSynchronizeDevice", &code);
    if (!context) return code;
    auto all = streams.live;
    if (auto own = default_streams.find(context.get()); own != default_streams.end()) all[nullptr] = own->second;
    int first = OK;
    for (auto &[handle, stream] : all) {
        if (stream->context->device != context->device) continue;
        code = drain(stream, lock);
        if (!first) first = code;
    }
    return first ? fail(first, "aclrtSynchronizeDevice: a task failed") : int(OK);
}

ABI aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus *status) {
    ENTER("%p", handle);
    Lock lock(mu);
    int code;
    auto stream = find_stream(handle, "aclrtStreamQuery", &code);
    if (!stream) return code;
    if (!status) return fault(INVALID_PARAM, "null", "aclrtStreamQuery: status is NULL");
    if (stream->asked_at != stream->enqueued) stream->asked = false;
    stream->asked_at = stream->enqueued;
    bool done;
    if ((code = query(*stream, stream->enqueued, &stream->asked, &done, lock)))
        return fail(code, "aclrtStreamQuery: a task failed");
    *status = done ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
    return OK;
}
