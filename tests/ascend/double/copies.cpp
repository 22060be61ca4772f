// Copies and fills, at once and on streams.
#include "stream.h"
#include <cstring>

namespace dbl {

namespace {

struct Ends {
    bool device_to, device_from;
};

int ends_of(aclrtMemcpyKind kind, const void *to, const void *from, const char *call, Ends *out) {
    switch (int(kind)) {
    case 0: *out = {false, false}; break;
    case 1: *out = {true, false}; break;
    case 2: *out = {false, true}; break;
    case 3: *out = {true, true}; break;
    case 4: *out = {is_device(to), is_device(from)}; break;
    default: return fault(INVALID_PARAM, "copy-kind", fmt("%s: kind %d", call, int(kind)));
    }
    if (out->device_to == is_device(to) && out->device_from == is_device(from)) return OK;
    auto side = [](const void *at) { return is_device(at) ? "device" : "host"; };
    return fault(RT_PARAM, "copy-kind",
                 fmt("%s: kind %d of a copy from %s to %s memory", call, int(kind), side(from), side(to)));
}

// One side of a copy, where the host can touch it.
uint8_t *reach(const void *at, size_t bytes, bool device, int number, const char *call, int *code) {
    if (!device) return static_cast<uint8_t *>(const_cast<void *>(at));
    std::string why;
    const char *kind = "";
    uint8_t *found = translate(at, bytes, number, &why, &kind);
    if (!found) *code = fault(RT_PARAM, kind, std::string(call) + ": " + why);
    return found;
}

int check_sizes(const void *to, size_t room, const void *from, size_t bytes, const char *call) {
    if (!to || !from || !bytes) return fault(INVALID_PARAM, "copy", fmt("%s: %zu bytes from %p to %p", call, bytes, from, to));
    if (bytes > room) return fault(INVALID_PARAM, "copy-size", fmt("%s: %zu bytes into %zu", call, bytes, room));
    return OK;
}

// A copy that does not ask streams meets nothing that they still have to do.
int check_pending(const void *at, size_t bytes, bool write, const char *call) {
    std::string task = pending_conflict(uintptr_t(at), bytes, write);
    if (task.empty()) return OK;
    return fault(OK, "missing-sync",
                 fmt("%s %s memory that a pending %s uses", call, write ? "writes" : "reads", task.c_str()));
}

} // namespace

} // namespace dbl

using namespace dbl;

ABI aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind) {
    ENTER("%p, %zu, %p, %zu, kind %d", to, room, from, bytes, int(kind));
    Lock lock(mu);
    int code;
    auto context = current("aclrtMemcpy", &code);
    if (!context) return code;
    Ends ends;
    if ((code = check_sizes(to, room, from, bytes, "aclrtMemcpy"))) return code;
    if ((code = ends_of(kind, to, from, "aclrtMemcpy", &ends))) return code;
    uint8_t *target = reach(to, bytes, ends.device_to, context->device, "aclrtMemcpy", &code);
    const uint8_t *source = target ? reach(from, bytes, ends.device_from, context->device, "aclrtMemcpy", &code) : nullptr;
    if (!source) return code;
    check_pending(to, bytes, true, "aclrtMemcpy");
    check_pending(from, bytes, false, "aclrtMemcpy");
    memmove(target, source, bytes);
    if (ends.device_to) mark_written(uintptr_t(to), bytes);
    return OK;
}

ABI aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind, aclrtStream handle) {
    ENTER("%p, %zu, %p, %zu, kind %d, %p", to, room, from, bytes, int(kind), handle);
    Lock lock(mu);
    int code;
    auto stream = find_stream(handle, "aclrtMemcpyAsync", &code);
    if (!stream) return code;
    int device = stream->context->device;
    Ends ends;
    if ((code = check_sizes(to, room, from, bytes, "aclrtMemcpyAsync"))) return code;
    if ((code = ends_of(kind, to, from, "aclrtMemcpyAsync", &ends))) return code;
    if (!ends.device_to && !ends.device_from) return fault(NOT_SUPPORTED, "copy-kind", "aclrtMemcpyAsync from host to host");
    uint8_t *target = reach(to, bytes, ends.device_to, device, "aclrtMemcpyAsync", &code);
    const uint8_t *source = target ? reach(from, bytes, ends.device_from, device, "aclrtMemcpyAsync", &code) : nullptr;
    if (!source) return code;
    Task task{fmt("copy of %zu bytes, kind %d", bytes, int(kind)), {}, [=] { return memmove(target, source, bytes), int(OK); }};
    const void *host = !ends.device_to ? to : !ends.device_from ? from : nullptr;
    bool blocks = host && !is_pinned(host, bytes);
    if (ends.device_to) task.ranges.push_back({uintptr_t(to), bytes, true, "target"});
    if (ends.device_from) task.ranges.push_back({uintptr_t(from), bytes, false, "source"});
    if (host && !blocks) task.ranges.push_back({uintptr_t(host), bytes, !ends.device_to, "host buffer", true});
    if (host && !blocks && ends.device_to) {
        task.source = from, task.source_bytes = bytes, task.source_sum = checksum(from, bytes);
    }
    // Whoever reads before waiting reads this. An upload from the same place may still be to come.
    if (host && !blocks && !ends.device_to && pending_conflict(uintptr_t(to), bytes, true).empty()) memset(to, 0xFF, bytes);
    enqueue(stream, std::move(task));
    // Host memory that is not page-locked makes the call wait.
    return blocks ? drain(stream, lock) : int(OK);
}

ABI aclError aclrtMemset(void *at, size_t room, int32_t value, size_t bytes) {
    ENTER("%p, %zu, %d, %zu", at, room, value, bytes);
    Lock lock(mu);
    int code;
    auto context = current("aclrtMemset", &code);
    if (!context) return code;
    if (!bytes || bytes > room) return fault(INVALID_PARAM, "copy-size", fmt("aclrtMemset: %zu bytes into %zu", bytes, room));
    uint8_t *target = reach(at, bytes, true, context->device, "aclrtMemset", &code);
    if (!target) return code;
    check_pending(at, bytes, true, "aclrtMemset");
    memset(target, value, bytes);
    return OK;
}

ABI aclError aclrtMemsetAsync(void *at, size_t room, int32_t value, size_t bytes, aclrtStream handle) {
    ENTER("%p, %zu, %d, %zu, %p", at, room, value, bytes, handle);
    Lock lock(mu);
    int code;
    auto stream = find_stream(handle, "aclrtMemsetAsync", &code);
    if (!stream) return code;
    if (!bytes || bytes > room)
        return fault(INVALID_PARAM, "copy-size", fmt("aclrtMemsetAsync: %zu bytes into %zu", bytes, room));
    uint8_t *target = reach(at, bytes, true, stream->context->device, "aclrtMemsetAsync", &code);
    if (!target) return code;
    Task task{fmt("fill of %zu bytes", bytes), {{uintptr_t(at), bytes, true, "target"}}, [=] {
                  return memset(target, value, bytes), int(OK);
              }};
    task.marks = false;
    enqueue(stream, std::move(task));
    return OK;
}
