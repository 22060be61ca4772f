// Events: places on streams that others ask about and wait for.
#include "stream.h"
#include <algorithm>

namespace dbl {

namespace {

Table<Event> &events = *new Table<Event>;

// An event of the current context's device, or a fault in `*code`.
std::shared_ptr<Event> find_event(aclrtEvent handle, const char *call, int *code) {
    auto context = current(call, code);
    if (!context) return nullptr;
    auto event = events.get(handle);
    if (!event) return *code = fault(RT_PARAM, "event", std::string(call) + ": no such event"), nullptr;
    if (event->device == context->device) return event;
    *code = fault(RT_PARAM, "wrong-device",
                  fmt("%s: an event of device %d in a context of device %d", call, event->device, context->device));
    return nullptr;
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

} // namespace

void event_leaks(std::string &out) {
    for (auto &[handle, event] : events.live) out += fmt("event %p of device %d\n", handle, event->device);
}

void event_reset() { events.live.clear(); }

} // namespace dbl

using namespace dbl;

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
    if (!find_event(handle, "aclrtDestroyEvent", &code)) return code;
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
    bool again = event->kind == EventKind::Ex && event->flags & ACL_EVENT_SYNC;
    if (event->point && !again) {
        return fault(RT_PARAM, "event-reuse", "aclrtRecordEvent: an event that cannot be recorded twice, and was recorded");
    }
    auto point = std::make_shared<Point>();
    point->stream = stream;
    Task task{"event record", {}, [point] { return point->at = std::chrono::steady_clock::now(), int(OK); }};
    enqueue(stream, std::move(task));
    point->n = stream->enqueued;
    point->behind = stream->behind;
    point->behind[stream->handle] = point->n;
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
    for (auto &[other, n] : point->behind) stream->behind[other] = std::max(stream->behind[other], n);
    // Whether the other stream failed is its own affair.
    Task task{"event wait", {}, [point] { return run_until(point->stream, point->n), int(OK); }};
    enqueue(stream, std::move(task));
    return OK;
}

ABI aclError aclrtSynchronizeEvent(aclrtEvent handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    int code;
    auto event = find_event(handle, "aclrtSynchronizeEvent", &code);
    if (!event) return code;
    if (!event->point) return fault(RT_PARAM, "event-unrecorded", "aclrtSynchronizeEvent: the event was never recorded");
    auto point = event->point;
    if ((code = run_locked(*point->stream, point->n, lock)))
        return fail(code, "aclrtSynchronizeEvent: a task of its stream failed");
    return OK;
}

ABI aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus *status) {
    ENTER("%p", handle);
    Lock lock(mu);
    int code;
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
    if (!ms || !timed(*a) || !timed(*b))
        return fault(RT_PARAM, "event-time", "aclrtEventElapsedTime: an event without TIME_LINE");
    if (!passed(*a) || !passed(*b)) return fault(RT_PARAM, "event-time", "aclrtEventElapsedTime: an event that has not passed");
    *ms = std::chrono::duration<float, std::milli>(b->point->at - a->point->at).count();
    return OK;
}
