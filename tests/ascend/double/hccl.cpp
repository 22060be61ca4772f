// Ranks of one process that meet: each on its device and stream. Sums are taken in float32 in the order of ranks.
#include "stream.h"
#include "numbers.h"
#include <algorithm>
#include <chrono>
#include <cstring>

namespace dbl {

namespace {

enum class Kind { AllReduce, AllGather, Broadcast, Send };

// What one rank brings to a meeting.
struct Call {
    Kind kind;
    uint64_t count;
    HcclDataType dtype;
    int detail; // the reduction, or the root
    const uint8_t *send;
    uint8_t *recv;
};
struct Meeting {
    std::map<uint32_t, Call> arrived;
    // Where those that have enqueued it stand.
    std::map<uint32_t, std::pair<std::shared_ptr<Stream>, uint64_t>> places;
    std::vector<uint32_t> ranks;
    bool done = false;
    int error = OK;
};
struct Group {
    uint32_t size = 0;
    std::map<uint32_t, int> devices;
    std::map<std::string, std::shared_ptr<Meeting>> meetings;
    std::set<uint32_t> gone;
    bool ended = false;
};
struct Comm {
    std::shared_ptr<Group> group;
    uint32_t rank;
    int device;
    // Calls so far: collective ones, and those between two ranks.
    std::map<std::string, uint64_t> calls;
    HcclResult error = HCCL_SUCCESS;
    std::atomic<int> pending{0};
};

Table<Comm> &comms = *new Table<Comm>;
std::map<uint64_t, std::shared_ptr<Group>> &groups = *new std::map<uint64_t, std::shared_ptr<Group>>;
uint64_t next_group = 1;

std::chrono::milliseconds patience() { return std::chrono::milliseconds(setting("YN_DOUBLE_HCCL_TIMEOUT_MS", 20000)); }

size_t size_of(HcclDataType dtype) {
    switch (int(dtype)) {
    case HCCL_DATA_TYPE_INT8:
    case HCCL_DATA_TYPE_UINT8: return 1;
    case HCCL_DATA_TYPE_INT16:
    case HCCL_DATA_TYPE_FP16:
    case HCCL_DATA_TYPE_BFP16: return 2;
    case HCCL_DATA_TYPE_INT32:
    case HCCL_DATA_TYPE_FP32: return 4;
    case HCCL_DATA_TYPE_INT64:
    case HCCL_DATA_TYPE_UINT64: return 8;
    default: return 0;
    }
}

float get(const uint8_t *at, HcclDataType dtype) {
    uint16_t half;
    float value;
    if (dtype == HCCL_DATA_TYPE_FP32) return memcpy(&value, at, 4), value;
    memcpy(&half, at, 2);
    return dtype == HCCL_DATA_TYPE_FP16 ? from_f16(half) : from_bf16(half);
}

void set(uint8_t *at, HcclDataType dtype, float value) {
    uint16_t half = dtype == HCCL_DATA_TYPE_FP16 ? to_f16(value) : to_bf16(value);
    if (dtype == HCCL_DATA_TYPE_FP32) memcpy(at, &value, 4);
    else memcpy(at, &half, 2);
}

template <typename T> T combine(T a, T b, int op) {
    return op == HCCL_REDUCE_SUM    ? a + b
           : op == HCCL_REDUCE_PROD ? a * b
           : op == HCCL_REDUCE_MAX  ? std::max(a, b)
                                    : std::min(a, b);
}

void reduce(const Meeting &meeting) {
    const Call &first = meeting.arrived.begin()->second;
    size_t size = size_of(first.dtype);
    std::vector<uint8_t> out(size_t(first.count) * size);
    for (size_t i = 0; i < first.count; i++) {
        uint8_t *to = &out[i * size];
        if (first.dtype == HCCL_DATA_TYPE_INT32) {
            int32_t sum = 0, next;
            for (auto &[rank, call] : meeting.arrived) {
                memcpy(&next, call.send + i * size, 4);
                sum = &call == &first ? next : combine(sum, next, first.detail);
            }
            memcpy(to, &sum, 4);
            continue;
        }
        float sum = 0;
        for (auto &[rank, call] : meeting.arrived) {
            float next = get(call.send + i * size, first.dtype);
            sum = &call == &first ? next : combine(sum, next, first.detail);
        }
        set(to, first.dtype, sum);
    }
    for (auto &[rank, call] : meeting.arrived) memcpy(call.recv, out.data(), out.size());
}

void gather(const Meeting &meeting) {
    const Call &first = meeting.arrived.begin()->second;
    size_t bytes = size_t(first.count) * size_of(first.dtype);
    std::vector<uint8_t> all;
    for (auto &[rank, call] : meeting.arrived) all.insert(all.end(), call.send, call.send + bytes);
    for (auto &[rank, call] : meeting.arrived) memcpy(call.recv, all.data(), all.size());
}

// Everybody is here and waits: one moves the data of all.
int settle(const Meeting &meeting) {
    const Call &first = meeting.arrived.begin()->second;
    for (auto &[rank, call] : meeting.arrived) {
        bool same =
            call.kind == first.kind && call.count == first.count && call.dtype == first.dtype && call.detail == first.detail;
        if (same) continue;
        return fault(DRIVER, "hccl-mismatch",
                     fmt("rank %u brings call %d of %zu elements of dtype %d, rank %u call %d of %zu of dtype %d", rank,
                         int(call.kind), size_t(call.count), int(call.dtype), meeting.arrived.begin()->first, int(first.kind),
                         size_t(first.count), int(first.dtype)));
    }
    size_t bytes = size_t(first.count) * size_of(first.dtype);
    if (first.kind == Kind::AllReduce) reduce(meeting);
    if (first.kind == Kind::AllGather) gather(meeting);
    if (first.kind == Kind::Broadcast || first.kind == Kind::Send) {
        const uint8_t *from = meeting.arrived.at(uint32_t(first.detail)).send;
        for (auto &[rank, call] : meeting.arrived) {
            if (rank != uint32_t(first.detail)) memcpy(call.recv, from, bytes);
        }
    }
    return OK;
}

// A rank that will not come: its communicator is gone or its stream failed.
const char *lost(const Group &group, const Meeting &meeting, uint32_t *who) {
    if (group.ended) return *who = 0, "the group was ended";
    for (uint32_t rank : meeting.ranks) {
        if (meeting.arrived.count(rank)) continue;
        *who = rank;
        if (group.gone.count(rank)) return "its communicator was destroyed";
        auto place = meeting.places.find(rank);
        if (place != meeting.places.end() && place->second.first->done >= place->second.second)
            return "its stream failed before";
    }
    return nullptr;
}

// In lazy mode whoever waits lets the others' streams come as far as he is.
bool help(const Meeting &meeting, Lock &lock) {
    for (auto &[rank, place] : meeting.places) {
        auto [stream, n] = place;
        if (meeting.arrived.count(rank) || !stream->lazy || stream->running || stream->done >= n) continue;
        lock.unlock();
        run_until(stream, n);
        lock.lock();
        return true;
    }
    return false;
}

int meet(const std::shared_ptr<Comm> &comm, const std::shared_ptr<Meeting> &meeting, const std::string &place,
         const Call &call) {
    Lock lock(mu);
    meeting->arrived[comm->rank] = call;
    cv.notify_all();
    if (meeting->arrived.size() == meeting->ranks.size()) {
        lock.unlock();
        int code = settle(*meeting);
        lock.lock();
        meeting->error = code, meeting->done = true;
        comm->group->meetings.erase(place);
        cv.notify_all();
    }
    auto until = std::chrono::steady_clock::now() + patience();
    while (!meeting->done) {
        uint32_t who;
        if (const char *why = lost(*comm->group, *meeting, &who)) {
            meeting->error = fail(DRIVER, fmt("rank %u waits in vain for rank %u: %s", comm->rank, who, why));
            meeting->done = true;
            cv.notify_all();
        } else if (!help(*meeting, lock) && cv.wait_until(lock, until) == std::cv_status::timeout) {
            meeting->error = fault(DRIVER, "hccl-timeout", fmt("rank %u waited for others in vain", comm->rank));
            meeting->done = true;
            cv.notify_all();
        }
    }
    if (meeting->error) comm->error = HCCL_E_REMOTE;
    return meeting->error;
}

HcclResult refuse(HcclResult code, const char *kind, const std::string &text) { return HcclResult(fault(code, kind, text)); }

struct Buffer {
    const void *at;
    uint64_t count;
    bool write;
};

// Checks a call and enqueues it. `key` says who else is to come.
HcclResult join(const char *name, HcclComm handle, aclrtStream stream_handle, const std::string &key,
                std::vector<uint32_t> ranks, Call call, Buffer send, Buffer recv) {
    auto comm = comms.get(handle);
    int code;
    auto stream = find_stream(stream_handle, name, &code);
    if (!stream) return HCCL_E_RUNTIME;
    if (stream->context->device != comm->device) {
        return refuse(
            HCCL_E_PARA, "wrong-device",
            fmt("%s: a communicator of device %d on a stream of device %d", name, comm->device, stream->context->device));
    }
    size_t size = size_of(call.dtype);
    if (!size || !call.count)
        return refuse(HCCL_E_PARA, "hccl", fmt("%s: %zu elements of dtype %d", name, size_t(call.count), int(call.dtype)));
    Task task;
    task.name = name;
    for (Buffer *buffer : {&send, &recv}) {
        if (!buffer->at) continue;
        std::string why;
        const char *kind = "";
        uint8_t *at = translate(buffer->at, buffer->count * size, comm->device, &why, &kind);
        if (!at) return refuse(HCCL_E_PARA, kind, std::string(name) + ": " + why);
        if (uintptr_t(buffer->at) % size)
            return refuse(HCCL_E_PARA, "alignment", fmt("%s: %p for dtype %d", name, buffer->at, int(call.dtype)));
        (buffer->write ? call.recv : (uint8_t *&)call.send) = at;
        task.ranges.push_back(
            {uintptr_t(buffer->at), buffer->count * size, buffer->write, buffer->write ? "recvBuf" : "sendBuf"});
    }
    std::string place = key + ":" + std::to_string(comm->calls[key]++);
    auto &meeting = comm->group->meetings[place];
    if (!meeting) meeting = std::make_shared<Meeting>();
    meeting->ranks = std::move(ranks);
    std::shared_ptr<void> pending(comm.get(), [comm](void *) { comm->pending--; });
    comm->pending++;
    task.run = [comm, meeting = meeting, place, call, pending] { return meet(comm, meeting, place, call); };
    enqueue(stream, std::move(task));
    meeting->places[comm->rank] = {stream, stream->enqueued};
    return HCCL_SUCCESS;
}

std::vector<uint32_t> everybody(const Group &group) {
    std::vector<uint32_t> ranks(group.size);
    for (uint32_t i = 0; i < group.size; i++) ranks[i] = i;
    return ranks;
}

std::shared_ptr<Comm> find_comm(HcclComm handle, const char *call) {
    auto comm = comms.get(handle);
    if (!comm) fault(HCCL_E_PARA, "comm", std::string(call) + ": no such communicator");
    return comm;
}

} // namespace

void hccl_leaks(std::string &out) {
    for (auto &[handle, comm] : comms.live) out += fmt("communicator of rank %u of device %d\n", comm->rank, comm->device);
}

void hccl_reset() {
    Lock lock(mu);
    for (auto &[id, group] : groups) group->ended = true;
    groups.clear();
    comms.live.clear();
    cv.notify_all();
}

} // namespace dbl

using namespace dbl;

#define ENTER_HCCL(...)                                                                                                        \
    if (int planted = dbl::enter(__func__, dbl::fmt(__VA_ARGS__))) return HcclResult(planted);                                 \
    Lock lock(mu)

ABI HcclResult HcclGetRootInfo(HcclRootInfo *info) {
    ENTER_HCCL("");
    int code;
    if (!current("HcclGetRootInfo", &code)) return HCCL_E_RUNTIME;
    if (!info) return refuse(HCCL_E_PTR, "null", "HcclGetRootInfo: rootInfo is NULL");
    memset(info, 0, sizeof(*info));
    uint64_t id = next_group++;
    groups[id] = std::make_shared<Group>();
    memcpy(info->internal, "double:", 7);
    memcpy(info->internal + 8, &id, sizeof(id));
    return HCCL_SUCCESS;
}

ABI HcclResult HcclCommInitRootInfo(uint32_t size, const HcclRootInfo *info, uint32_t rank, HcclComm *out) {
    ENTER_HCCL("%u ranks, rank %u", size, rank);
    int code;
    auto context = current("HcclCommInitRootInfo", &code);
    if (!context) return HCCL_E_RUNTIME;
    if (!info || !out) return refuse(HCCL_E_PTR, "null", "HcclCommInitRootInfo: a NULL argument");
    uint64_t id;
    memcpy(&id, info->internal + 8, sizeof(id));
    auto found = groups.find(id);
    if (memcmp(info->internal, "double:", 7) || found == groups.end())
        return refuse(HCCL_E_PARA, "comm", "HcclCommInitRootInfo: no root info of HcclGetRootInfo");
    auto group = found->second;
    if (!size || rank >= size || (group->size && group->size != size) || group->devices.count(rank)) {
        return refuse(HCCL_E_PARA, "comm",
                      fmt("HcclCommInitRootInfo: rank %u of %u, where %zu of %u came before", rank, size, group->devices.size(),
                          group->size));
    }
    for (auto &[other, device] : group->devices) {
        if (device == context->device)
            return refuse(HCCL_E_PARA, "comm", fmt("HcclCommInitRootInfo: ranks %u and %u on device %d", other, rank, device));
    }
    group->size = size;
    group->devices[rank] = context->device;
    cv.notify_all();
    auto complete = [&] { return group->ended || group->devices.size() == group->size; };
    if (!cv.wait_for(lock, patience(), complete) || group->ended) {
        group->devices.erase(rank);
        return HcclResult(
            fail(HCCL_E_TIMEOUT, fmt("HcclCommInitRootInfo: %zu of %u ranks came", group->devices.size() + 1, size)));
    }
    auto comm = std::make_shared<Comm>();
    comm->group = group, comm->rank = rank, comm->device = context->device;
    *out = comms.add(COMM, comm);
    return HCCL_SUCCESS;
}

ABI HcclResult HcclAllReduce(void *send, void *recv, uint64_t count, HcclDataType dtype, HcclReduceOp op, HcclComm handle,
                             aclrtStream stream) {
    ENTER_HCCL("%zu of dtype %d, op %d", size_t(count), int(dtype), int(op));
    auto comm = find_comm(handle, "HcclAllReduce");
    if (!comm) return HCCL_E_PARA;
    bool known = dtype == HCCL_DATA_TYPE_FP32 || dtype == HCCL_DATA_TYPE_FP16 || dtype == HCCL_DATA_TYPE_BFP16 ||
                 dtype == HCCL_DATA_TYPE_INT32;
    if (!known || int(op) < 0 || int(op) > 3)
        return refuse(HCCL_E_PARA, "hccl", fmt("HcclAllReduce: dtype %d, op %d", int(dtype), int(op)));
    if (!send || !recv) return refuse(HCCL_E_PTR, "null", "HcclAllReduce: a NULL buffer");
    return join("HcclAllReduce", handle, stream, "all", everybody(*comm->group),
                {Kind::AllReduce, count, dtype, int(op), nullptr, nullptr}, {send, count, false}, {recv, count, true});
}

ABI HcclResult HcclAllGather(void *send, void *recv, uint64_t count, HcclDataType dtype, HcclComm handle, aclrtStream stream) {
    ENTER_HCCL("%zu of dtype %d", size_t(count), int(dtype));
    auto comm = find_comm(handle, "HcclAllGather");
    if (!comm) return HCCL_E_PARA;
    if (!send || !recv) return refuse(HCCL_E_PTR, "null", "HcclAllGather: a NULL buffer");
    return join("HcclAllGather", handle, stream, "all", everybody(*comm->group),
                {Kind::AllGather, count, dtype, 0, nullptr, nullptr}, {send, count, false},
                {recv, count * comm->group->size, true});
}

ABI HcclResult HcclBroadcast(void *buffer, uint64_t count, HcclDataType dtype, uint32_t root, HcclComm handle,
                             aclrtStream stream) {
    ENTER_HCCL("%zu of dtype %d from %u", size_t(count), int(dtype), root);
    auto comm = find_comm(handle, "HcclBroadcast");
    if (!comm) return HCCL_E_PARA;
    if (!buffer || root >= comm->group->size)
        return refuse(HCCL_E_PARA, "hccl", fmt("HcclBroadcast of %p from rank %u", buffer, root));
    bool reads = comm->rank == root;
    return join("HcclBroadcast", handle, stream, "all", everybody(*comm->group),
                {Kind::Broadcast, count, dtype, int(root), nullptr, nullptr}, {reads ? buffer : nullptr, count, false},
                {reads ? nullptr : buffer, count, true});
}

ABI HcclResult HcclSend(void *buffer, uint64_t count, HcclDataType dtype, uint32_t to, HcclComm handle, aclrtStream stream) {
    ENTER_HCCL("%zu of dtype %d to %u", size_t(count), int(dtype), to);
    auto comm = find_comm(handle, "HcclSend");
    if (!comm) return HCCL_E_PARA;
    if (!buffer || to >= comm->group->size || to == comm->rank)
        return refuse(HCCL_E_PARA, "hccl", fmt("HcclSend of %p to rank %u", buffer, to));
    return join("HcclSend", handle, stream, fmt("from %u to %u", comm->rank, to), {comm->rank, to},
                {Kind::Send, count, dtype, int(comm->rank), nullptr, nullptr}, {buffer, count, false}, {nullptr, 0, true});
}

ABI HcclResult HcclRecv(void *buffer, uint64_t count, HcclDataType dtype, uint32_t from, HcclComm handle, aclrtStream stream) {
    ENTER_HCCL("%zu of dtype %d from %u", size_t(count), int(dtype), from);
    auto comm = find_comm(handle, "HcclRecv");
    if (!comm) return HCCL_E_PARA;
    if (!buffer || from >= comm->group->size || from == comm->rank)
        return refuse(HCCL_E_PARA, "hccl", fmt("HcclRecv into %p from rank %u", buffer, from));
    return join("HcclRecv", handle, stream, fmt("from %u to %u", from, comm->rank), {from, comm->rank},
                {Kind::Send, count, dtype, int(from), nullptr, nullptr}, {nullptr, 0, false}, {buffer, count, true});
}

ABI HcclResult HcclCommDestroy(HcclComm handle) {
    ENTER_HCCL("%p", handle);
    auto comm = find_comm(handle, "HcclCommDestroy");
    if (!comm) return HCCL_E_PARA;
    if (comm->pending && !comm->error)
        fault(OK, "hccl-pending", fmt("rank %u's communicator is destroyed before its calls have run", comm->rank));
    comm->group->gone.insert(comm->rank);
    comms.live.erase(handle);
    cv.notify_all();
    return HCCL_SUCCESS;
}

ABI HcclResult HcclGetCommAsyncError(HcclComm handle, HcclResult *error) {
    ENTER_HCCL("%p", handle);
    auto comm = find_comm(handle, "HcclGetCommAsyncError");
    if (!comm) return HCCL_E_PARA;
    if (!error) return refuse(HCCL_E_PTR, "null", "HcclGetCommAsyncError: asyncError is NULL");
    *error = comm->error;
    return HCCL_SUCCESS;
}
