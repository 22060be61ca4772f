// What the files of the double share: the world's state, faults, handles, tasks of streams and views of tensors.
#pragma once
#include "acl_abi.h"
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace dbl {

using Lock = std::unique_lock<std::mutex>;

enum Code : int {
    OK = 0,
    INVALID_PARAM = 100000,
    UNINITIALIZED = 100001,
    REPEAT_INIT = 100002,
    RT_PARAM = 107000,
    BAD_DEVICE = 107001,
    NO_CONTEXT = 107002,
    STREAM_CONTEXT = 107003,
    NOT_SUPPORTED = 207000,
    DEVICE_OOM = 207001,
    AICORE = 507015,
    TIMEOUT = 507046,
    DRIVER = 507899,
    NN_NULLPTR = 161001,
    NN_PARAM = 161002,
    NN_RUNTIME = 361001,
    NN_INNER_NULL = 561103,
};

// Text without end of arguments: fmt("%d of %zu", ...).
std::string fmt(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Notes a misuse of `kind`, leaves `text` as this thread's error text and returns `code`. Needs no lock.
int fault(int code, const char *kind, const std::string &text);
// An error that is nobody's misuse (no memory, injected): text and trace only.
int fail(int code, const std::string &text);
void trace(const std::string &line);
// Begins an API call: counts and traces it. Not OK when a failure was planted for it.
int enter(const char *call, const std::string &arguments);

struct Context {
    int device;
    bool by_default;
};

constexpr uint32_t CONTEXT = 1, STREAM = 2, EVENT = 3, TENSOR = 4, SCALAR = 5, INTS = 6, LIST = 7, EXECUTOR = 8, BINARY = 9,
                   FUNCTION = 10, ARGS = 11, COMM = 12;

// Handles are numbers that no object ever shares and that nobody can dereference.
void *new_handle(uint32_t type);

// Objects of one type by handle.
template <typename T> struct Table {
    std::map<const void *, std::shared_ptr<T>> live;
    void *add(uint32_t type, std::shared_ptr<T> object) {
        void *handle = new_handle(type);
        live[handle] = std::move(object);
        return handle;
    }
    std::shared_ptr<T> get(const void *handle) const {
        auto at = live.find(handle);
        return at == live.end() ? nullptr : at->second;
    }
};

// ---- memory.cpp ----
// Bytes that a task reads or writes, on the device unless it says host.
struct Range {
    uintptr_t at;
    size_t bytes;
    bool write;
    const char *what;
    bool host = false;
};
struct Block {
    int device;
    uintptr_t base;
    size_t bytes;
    // One bit per 32 bytes: something but a memset wrote there. Made when first asked for.
    std::vector<bool> written;
};
// Where the host may touch device memory. Null and a text in `why` unless all bytes are live; `device` -1 is any.
uint8_t *translate(const void *at, size_t bytes, int device, std::string *why, const char **kind);
bool is_device(const void *at);
// The device address of what the host touches at `host`, or 0. With the world's lock.
uintptr_t address_of(const void *host, int device);
// The live block around `at`, or null. With the world's lock.
Block *block_of(uintptr_t at);
bool is_pinned(const void *at, size_t bytes);
void mark_written(uintptr_t at, size_t bytes);
bool all_written(uintptr_t at, size_t bytes);
void memory_leaks(std::string &out);
void memory_reset();

// ---- stream.cpp ----
struct Stream;
struct Task {
    std::string name;
    std::vector<Range> ranges;
    // Runs without the world's lock; not OK ends the stream.
    std::function<int()> run;
    // What it writes on the device counts as written, not as cleared.
    bool marks = true;
    // Bytes of the host that it reads, and what they added up to when it was enqueued.
    const void *source = nullptr;
    size_t source_bytes = 0;
    uint64_t source_sum = 0;
};
uint64_t checksum(const void *at, size_t bytes);
// The current context's stream, or a fault in `*code`. NULL is the default stream.
std::shared_ptr<Stream> find_stream(aclrtStream handle, const char *call, int *code);
void enqueue(const std::shared_ptr<Stream> &stream, Task task);
int stream_device(const std::shared_ptr<Stream> &stream);
// Runs a stream up to its n-th task, in lazy mode; waits for it otherwise. Not OK: the stream's error.
int run_until(const std::shared_ptr<Stream> &stream, uint64_t n);
// Of tasks not yet run, the name of one that collides with these bytes; empty if none.
std::string pending_conflict(uintptr_t at, size_t bytes, bool write);
void stream_leaks(std::string &out);
void stream_reset();

// ---- runtime.cpp ----
// The calling thread's context; null after a fault in `*code`.
std::shared_ptr<Context> current(const char *call, int *code);
int device_count();
// Of the calling thread; -1 where it has set none.
int thread_device();
void runtime_leaks(std::string &out);
void runtime_reset();

// ---- others ----
void tensor_leaks(std::string &out);
void tensor_reset();
void kernel_leaks(std::string &out);
void kernel_reset();
void hccl_leaks(std::string &out);
void hccl_reset();
// A planted error of the n-th task of a device, or OK.
int planted_task_error(int device, const std::string &name);
// Whether an allocation of these bytes is to fail.
bool planted_oom(size_t bytes);
bool option(const char *name);
long setting(const char *name, long otherwise);

// One lock for all tables; tasks run without it.
extern std::mutex &mu;
extern std::condition_variable &cv;
// Counts resets, so that what threads remember goes stale.
extern std::atomic<uint64_t> epoch;

} // namespace dbl

// First line of an API call.
#define ENTER(...)                                                                                                             \
    if (int planted = dbl::enter(__func__, dbl::fmt(__VA_ARGS__))) return planted
