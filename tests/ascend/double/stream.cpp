// Streams and events. Lazy streams run nothing before somebody waits, so that a missing wait always shows; threaded ones run
// on threads of their own, each task after a seeded random delay.
#include "stream.h"
#include <chrono>
#include <cstdlib>
#include <cstring>

namespace dbl {

namespace {

Table<Stream> &streams = *new Table<Stream>;
Table<Event> &events = *new Table<Event>;
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
                return fault(DRIVER, "host-free-pending", fmt("%s: its host memory at %#zx is gone", task.name.c_str(), range.at));
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

std::shared_ptr<Event> find_event(aclrtEvent handle, const char *call, int *code) {
    auto event = events.get(handle);
    *code = event ? int(OK) : fault(RT_PARAM, "event", std::string(call) + ": no such event");
    return event;
}

int add_event(aclrtEvent *out, uint32_t flags, EventKind kind, const char *call) {
    Lock lock(mu);
    int code;
    auto context = current(call, &code);
    if (!context) return code;
    if (!out || (flags & ~0x2Bu)) return fault(INVALID_PARAM, "event", fmt("%s: flags %#x", call, flags));
    auto event = std::make_shared<Event>();
    event->flags = flags, event->kind = kind, event->device = context->device;
    *out = events.add(EVENT, event);
    return OK;
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

void enqueue(const std::shared_ptr<Stream> &stream, Task task) {
    stream->queue.push_back(std::move(task));
    stream->enqueued++;
    cv.notify_all();
}

int stream_device(const std::shared_ptr<Stream> &stream) { return stream->context->device; }

uint64_t tasks_enqueued(const std::shared_ptr<Stream> &stream) { return stream->enqueued; }

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
    for (auto &[handle, event] : events.live) out += fmt("event %p of device %d\n", handle, event->device);
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
    events.live.clear();
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
    if ((code = query(*stream, stream->enqueued, &stream->asked, &done, lock))) return fail(code, "aclrtStreamQuery: a task failed");
    *status = done ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
    return OK;
}

ABI aclError aclrtCreateEvent(aclrtEvent *out) {
    ENTER("");
    return add_event(out, 0, EventKind::Plain, "aclrtCreateEvent");
}

ABI aclError aclrtCreateEventWithFlag(aclrtEvent *out, uint32_t flag) {
    ENTER("%#x", flag);
    return add_event(out, flag, EventKind::WithFlag, "aclrtCreateEventWithFlag");
}

ABI aclError aclrtCreateEventExWithFlag(aclrtEvent *out, uint32_t flag) {
    ENTER("%#x", flag);
    if (flag & ACL_EVENT_EXTERNAL) return fault(INVALID_PARAM, "event", "aclrtCreateEventExWithFlag knows no EXTERNAL");
    return add_event(out, flag, EventKind::Ex, "aclrtCreateEventExWithFlag");
}

ABI aclError aclrtDestroyEvent(aclrtEvent handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    int code;
    if (!current("aclrtDestroyEvent", &code) || !find_event(handle, "aclrtDestroyEvent", &code)) return code;
    events.live.erase(handle);
    return OK;
}

ABI aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
    ENTER("%p, %p", handle, stream_handle);
    Lock lock(mu);
    int code;
    auto event = find_event(handle, "aclrtRecordEvent", &code);
    auto stream = event ? find_stream(stream_handle, "aclrtRecordEvent", &code) : nullptr;
    if (!stream) return code;
    if (event->device != stream->context->device) {
        return fault(RT_PARAM, "wrong-device", fmt("aclrtRecordEvent: an event of device %d on a stream of device %d",
                                                   event->device, stream->context->device));
    }
    bool again = event->kind == EventKind::Ex && event->flags & ACL_EVENT_SYNC;
    if (event->point && !again) {
        return fault(RT_PARAM, "event-reuse", "aclrtRecordEvent: an event that cannot be recorded twice, and was recorded");
    }
    auto point = std::make_shared<Point>();
    point->stream = stream;
    Task task{"event record", {}, [point] { return point->at = std::chrono::steady_clock::now(), int(OK); }};
    enqueue(stream, std::move(task));
    point->n = stream->enqueued;
    event->point = point;
    return OK;
}

ABI aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream_handle) {
    ENTER("%p, %p", handle, stream_handle);
    Lock lock(mu);
    int code;
    auto event = find_event(handle, "aclrtResetEvent", &code);
    if (!event || !find_stream(stream_handle, "aclrtResetEvent", &code)) return code;
    if (event->kind != EventKind::WithFlag) {
        return fault(NOT_SUPPORTED, "event-reset", "aclrtResetEvent: only events of aclrtCreateEventWithFlag can be reset");
    }
    event->point = nullptr;
    return OK;
}

ABI aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle) {
    ENTER("%p, %p", stream_handle, handle);
    Lock lock(mu);
    int code;
    auto event = find_event(handle, "aclrtStreamWaitEvent", &code);
    auto stream = event ? find_stream(stream_handle, "aclrtStreamWaitEvent", &code) : nullptr;
    if (!stream) return code;
    if (!event->point) return fault(RT_PARAM, "event-unrecorded", "aclrtStreamWaitEvent: the event was never recorded");
    auto point = event->point;
    // Whether the other stream failed is its own affair.
    Task task{"event wait", {}, [point] { return run_until(point->stream, point->n), int(OK); }};
    enqueue(stream, std::move(task));
    return OK;
}

ABI aclError aclrtSynchronizeEvent(aclrtEvent handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    int code;
    if (!current("aclrtSynchronizeEvent", &code)) return code;
    auto event = find_event(handle, "aclrtSynchronizeEvent", &code);
    if (!event) return code;
    if (!event->point) return fault(RT_PARAM, "event-unrecorded", "aclrtSynchronizeEvent: the event was never recorded");
    auto point = event->point;
    if ((code = run_locked(*point->stream, point->n, lock))) return fail(code, "aclrtSynchronizeEvent: a task of its stream failed");
    return OK;
}

ABI aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus *status) {
    ENTER("%p", handle);
    Lock lock(mu);
    int code;
    if (!current("aclrtQueryEventStatus", &code)) return code;
    auto event = find_event(handle, "aclrtQueryEventStatus", &code);
    if (!event) return code;
    if (!status) return fault(INVALID_PARAM, "null", "aclrtQueryEventStatus: status is NULL");
    if (!event->point) return fault(RT_PARAM, "event-unrecorded", "aclrtQueryEventStatus: the event was never recorded");
    auto point = event->point;
    bool done;
    code = query(*point->stream, point->n, &point->asked, &done, lock);
    if (code) return fail(code, "aclrtQueryEventStatus: a task of its stream failed");
    *status = done ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
    return OK;
}

ABI aclError aclrtEventElapsedTime(float *ms, aclrtEvent start, aclrtEvent end) {
    ENTER("%p, %p", start, end);
    Lock lock(mu);
    int code;
    auto a = find_event(start, "aclrtEventElapsedTime", &code);
    auto b = a ? find_event(end, "aclrtEventElapsedTime", &code) : nullptr;
    if (!b) return code;
    auto timed = [](const Event &e) { return e.kind == EventKind::Plain || e.flags & ACL_EVENT_TIME_LINE; };
    auto passed = [](const Event &e) { return e.point && e.point->stream->done >= e.point->n; };
    if (!ms || !timed(*a) || !timed(*b)) return fault(RT_PARAM, "event-time", "aclrtEventElapsedTime: an event without TIME_LINE");
    if (!passed(*a) || !passed(*b)) return fault(RT_PARAM, "event-time", "aclrtEventElapsedTime: an event that has not passed");
    *ms = std::chrono::duration<float, std::milli>(b->point->at - a->point->at).count();
    return OK;
}
