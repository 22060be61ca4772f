// Process, devices and contexts.
#include "double.h"
#include <atomic>

namespace dbl {

namespace {

Table<Context> &contexts = *new Table<Context>;
std::map<int, void *> &default_contexts = *new std::map<int, void *>;
std::map<int, int> &set_counts = *new std::map<int, int>;
bool initialized = false;

struct Remembered {
    void *context = nullptr;
    int device = -1;
    uint64_t epoch = 0;
};
thread_local Remembered mine;
std::atomic<uint64_t> handles{1};

int need_init(const char *call) {
    return initialized ? OK : fault(UNINITIALIZED, "uninitialized", std::string(call) + " before aclInit");
}

int need_device(const char *call, int device) {
    if (device >= 0 && device < device_count()) return OK;
    return fault(BAD_DEVICE, "device", fmt("%s: device %d of %d", call, device, device_count()));
}

} // namespace

void *new_handle(uint32_t type) {
    return reinterpret_cast<void *>(0xA5CE000000000000ull | uint64_t(type) << 40 | handles.fetch_add(1) << 4);
}

int device_count() { return int(setting("YN_DOUBLE_DEVICES", 8)); }

int thread_device() { return mine.epoch == epoch ? mine.device : -1; }

std::shared_ptr<Context> current(const char *call, int *code) {
    if ((*code = need_init(call))) return nullptr;
    auto context = mine.epoch == epoch ? contexts.get(mine.context) : nullptr;
    if (!context) {
        *code = fault(NO_CONTEXT, "no-context", std::string(call) + " in a thread that has set no device");
        return nullptr;
    }
    return context;
}

void runtime_leaks(std::string &out) {
    for (auto &[handle, context] : contexts.live) {
        if (!context->by_default) out += fmt("context %p of device %d\n", handle, context->device);
    }
}

void runtime_reset() {
    Lock lock(mu);
    contexts.live.clear();
    default_contexts.clear();
    set_counts.clear();
    epoch++;
}

} // namespace dbl

using namespace dbl;

ABI aclError aclInit(const char *config) {
    ENTER("%s", config ? config : "");
    Lock lock(mu);
    if (initialized) return fail(REPEAT_INIT, "aclInit was called before");
    initialized = true;
    return OK;
}

ABI aclError aclFinalize() {
    ENTER("");
    Lock lock(mu);
    if (int code = need_init("aclFinalize")) return code;
    initialized = false;
    return OK;
}

ABI aclError aclrtGetDeviceCount(uint32_t *count) {
    ENTER("");
    Lock lock(mu);
    if (int code = need_init("aclrtGetDeviceCount")) return code;
    if (!count) return fault(INVALID_PARAM, "null", "aclrtGetDeviceCount: count is NULL");
    *count = uint32_t(device_count());
    return OK;
}

ABI aclError aclrtSetDevice(int32_t device) {
    ENTER("%d", device);
    Lock lock(mu);
    if (int code = need_init("aclrtSetDevice")) return code;
    if (int code = need_device("aclrtSetDevice", device)) return code;
    if (!default_contexts.count(device)) {
        default_contexts[device] = contexts.add(CONTEXT, std::make_shared<Context>(Context{device, true}));
    }
    set_counts[device]++;
    mine = {default_contexts[device], device, epoch};
    return OK;
}

ABI aclError aclrtResetDevice(int32_t device) {
    ENTER("%d", device);
    Lock lock(mu);
    if (int code = need_init("aclrtResetDevice")) return code;
    if (int code = need_device("aclrtResetDevice", device)) return code;
    if (!set_counts[device]) return fault(RT_PARAM, "reset-device", fmt("device %d is reset more often than set", device));
    if (--set_counts[device] == 0) {
        contexts.live.erase(default_contexts[device]);
        default_contexts.erase(device);
    }
    return OK;
}

ABI aclError aclrtGetDevice(int32_t *device) {
    ENTER("");
    Lock lock(mu);
    int code;
    auto context = current("aclrtGetDevice", &code);
    if (!context) return code;
    if (!device) return fault(INVALID_PARAM, "null", "aclrtGetDevice: device is NULL");
    *device = context->device;
    return OK;
}

ABI aclError aclrtCreateContext(aclrtContext *out, int32_t device) {
    ENTER("%d", device);
    Lock lock(mu);
    if (int code = need_init("aclrtCreateContext")) return code;
    if (int code = need_device("aclrtCreateContext", device)) return code;
    if (!out) return fault(INVALID_PARAM, "null", "aclrtCreateContext: context is NULL");
    *out = contexts.add(CONTEXT, std::make_shared<Context>(Context{device, false}));
    mine = {*out, device, epoch};
    return OK;
}

ABI aclError aclrtDestroyContext(aclrtContext handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    auto context = contexts.get(handle);
    if (!context || context->by_default) {
        return fault(RT_PARAM, "context", "aclrtDestroyContext: not a context that was created and still is");
    }
    contexts.live.erase(handle);
    return OK;
}

ABI aclError aclrtSetCurrentContext(aclrtContext handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    auto context = contexts.get(handle);
    if (!context) return fault(RT_PARAM, "context", "aclrtSetCurrentContext: no such context");
    mine = {handle, context->device, epoch};
    return OK;
}

ABI aclError aclrtGetCurrentContext(aclrtContext *out) {
    ENTER("");
    Lock lock(mu);
    int code;
    if (!out) return fault(INVALID_PARAM, "null", "aclrtGetCurrentContext: context is NULL");
    // A thread may ask whether it has one.
    if (initialized && (mine.epoch != epoch || !mine.context)) return NO_CONTEXT;
    auto context = current("aclrtGetCurrentContext", &code);
    if (!context) return code;
    *out = mine.context;
    return OK;
}

ABI const char *aclrtGetSocName() { return "AscendDouble"; }

ABI aclError aclrtGetVersion(int32_t *major, int32_t *minor, int32_t *patch) {
    ENTER("");
    if (!major || !minor || !patch) return fault(INVALID_PARAM, "null", "aclrtGetVersion: a NULL argument");
    *major = 1, *minor = 14, *patch = 0;
    return OK;
}
