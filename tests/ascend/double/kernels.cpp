// Launches of kernels. A "binary" is a shared object of the kernel shim; its entries run on the CPU, with device addresses
// translated to where the host can touch the same bytes.
#include "double.h"
#include <cstring>
#include <dlfcn.h>

namespace dbl {

namespace {

using Has = int (*)(const char *kernel);
using CheckMemory = int (*)(const void *host, size_t bytes, int write);
using Launch = const char *(*)(const char *kernel, void **args, const size_t *sizes, int n, uint32_t blocks, CheckMemory check);

struct Binary {
    void *library = nullptr;
    Has has = nullptr;
    Launch launch = nullptr;
    std::string path;
    std::atomic<int> pending{0};
};
struct Function {
    std::shared_ptr<Binary> binary;
    std::string kernel;
    const void *binary_handle;
};
struct Args {
    std::shared_ptr<Function> function;
    std::vector<std::vector<uint8_t>> values;
    bool finished = false;
};

Table<Binary> &binaries = *new Table<Binary>;
Table<Function> &functions = *new Table<Function>;
Table<Args> &arguments = *new Table<Args>;
thread_local int launching = -1;

int check_memory(const void *host, size_t bytes, int write) {
    Lock lock(mu);
    uintptr_t at = address_of(host, launching);
    std::string why;
    const char *kind;
    if (!at || !translate(reinterpret_cast<void *>(at), bytes, launching, &why, &kind)) return 0;
    if (write) mark_written(at, bytes);
    return 1;
}

// Turns device addresses among the arguments into host ones, and notes what has to live until the launch.
int translate_args(std::vector<std::vector<uint8_t>> &values, int device, const std::string &kernel,
                   std::vector<Range> *ranges) {
    for (size_t i = 0; i < values.size(); i++) {
        if (values[i].size() != sizeof(void *)) continue;
        void *address;
        memcpy(&address, values[i].data(), sizeof(address));
        if (!address) continue;
        std::string why;
        const char *kind;
        uint8_t *host = translate(address, 1, device, &why, &kind);
        if (!host) return fault(RT_PARAM, kind, fmt("%s, argument %zu: %s", kernel.c_str(), i, why.c_str()));
        memcpy(values[i].data(), &host, sizeof(host));
        ranges->push_back({uintptr_t(address), 1, true, "argument"});
    }
    return OK;
}

int run(const Function &function, std::vector<std::vector<uint8_t>> &values, uint32_t blocks, int device) {
    std::vector<void *> pointers;
    std::vector<size_t> sizes;
    for (auto &value : values) pointers.push_back(value.data()), sizes.push_back(value.size());
    launching = device;
    const char *wrong = function.binary->launch(function.kernel.c_str(), pointers.data(), sizes.data(), int(sizes.size()),
                                                blocks, check_memory);
    launching = -1;
    return wrong ? fault(AICORE, "kernel", function.kernel + ": " + wrong) : int(OK);
}

} // namespace

void kernel_leaks(std::string &out) {
    for (auto &[handle, binary] : binaries.live) out += "kernel binary " + binary->path + "\n";
    for (auto &[handle, args] : arguments.live) out += "kernel arguments of " + args->function->kernel + "\n";
}

void kernel_reset() {
    Lock lock(mu);
    binaries.live.clear();
    functions.live.clear();
    arguments.live.clear();
}

} // namespace dbl

using namespace dbl;

ABI aclError aclrtBinaryLoadFromFile(const char *path, aclrtBinaryLoadOptions *options, aclrtBinHandle *out) {
    ENTER("%s", path ? path : "NULL");
    Lock lock(mu);
    int code;
    if (!current("aclrtBinaryLoadFromFile", &code)) return code;
    if (!path || !out) return fault(INVALID_PARAM, "null", "aclrtBinaryLoadFromFile: a NULL argument");
    if (options) return fault(INVALID_PARAM, "unsupported", "aclrtBinaryLoadFromFile: the double knows no options");
    if (path[0] != '/')
        return fault(INVALID_PARAM, "kernel-path", fmt("aclrtBinaryLoadFromFile: %s is no absolute path", path));
    auto binary = std::make_shared<Binary>();
    binary->path = path;
    binary->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!binary->library) return fail(RT_PARAM, fmt("aclrtBinaryLoadFromFile: %s", dlerror()));
    binary->has = reinterpret_cast<Has>(dlsym(binary->library, "yn_shim_has"));
    binary->launch = reinterpret_cast<Launch>(dlsym(binary->library, "yn_shim_launch"));
    if (!binary->has || !binary->launch)
        return fail(RT_PARAM, fmt("aclrtBinaryLoadFromFile: %s is no binary of the kernel shim", path));
    *out = binaries.add(BINARY, binary);
    return OK;
}

ABI aclError aclrtBinaryGetFunction(const aclrtBinHandle handle, const char *kernel, aclrtFuncHandle *out) {
    ENTER("%p, %s", handle, kernel ? kernel : "NULL");
    Lock lock(mu);
    auto binary = binaries.get(handle);
    if (!binary) return fault(RT_PARAM, "binary", "aclrtBinaryGetFunction: no such binary");
    if (!kernel || !out) return fault(INVALID_PARAM, "null", "aclrtBinaryGetFunction: a NULL argument");
    if (!binary->has(kernel)) return fail(RT_PARAM, fmt("aclrtBinaryGetFunction: %s has no %s", binary->path.c_str(), kernel));
    *out = functions.add(FUNCTION, std::make_shared<Function>(Function{binary, kernel, handle}));
    return OK;
}

ABI aclError aclrtBinaryUnLoad(aclrtBinHandle handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    auto binary = binaries.get(handle);
    if (!binary) return fault(RT_PARAM, "binary", "aclrtBinaryUnLoad: no such binary");
    if (binary->pending) {
        return fault(RT_PARAM, "binary-pending",
                     fmt("aclrtBinaryUnLoad of %s, whose launches are pending", binary->path.c_str()));
    }
    for (auto at = functions.live.begin(); at != functions.live.end();) {
        at = at->second->binary_handle == handle ? functions.live.erase(at) : std::next(at);
    }
    binaries.live.erase(handle);
    return OK;
}

ABI aclError aclrtKernelArgsInit(aclrtFuncHandle handle, aclrtArgsHandle *out) {
    ENTER("%p", handle);
    Lock lock(mu);
    auto function = functions.get(handle);
    if (!function) return fault(RT_PARAM, "function", "aclrtKernelArgsInit: no such function, or its binary was unloaded");
    if (!out) return fault(INVALID_PARAM, "null", "aclrtKernelArgsInit: argsHandle is NULL");
    *out = arguments.add(ARGS, std::make_shared<Args>(Args{function, {}, false}));
    return OK;
}

ABI aclError aclrtKernelArgsAppend(aclrtArgsHandle handle, void *value, size_t bytes, aclrtParamHandle *out) {
    ENTER("%p, %zu", handle, bytes);
    Lock lock(mu);
    auto args = arguments.get(handle);
    if (!args || args->finished)
        return fault(RT_PARAM, "kernel-args", "aclrtKernelArgsAppend: no such arguments, or they are final");
    if (!value || !bytes || !out)
        return fault(INVALID_PARAM, "null", "aclrtKernelArgsAppend: no value or no place for its handle");
    const uint8_t *from = static_cast<const uint8_t *>(value);
    args->values.emplace_back(from, from + bytes);
    *out = new_handle(ARGS);
    return OK;
}

ABI aclError aclrtKernelArgsFinalize(aclrtArgsHandle handle) {
    ENTER("%p", handle);
    Lock lock(mu);
    auto args = arguments.get(handle);
    if (!args || args->finished)
        return fault(RT_PARAM, "kernel-args", "aclrtKernelArgsFinalize: no such arguments, or they are final");
    args->finished = true;
    return OK;
}

ABI aclError aclrtLaunchKernelWithConfig(aclrtFuncHandle handle, uint32_t blocks, aclrtStream stream_handle,
                                         aclrtLaunchKernelCfg *config, aclrtArgsHandle args_handle, void *reserve) {
    int planted = enter(__func__, fmt("%p, %u blocks, %p", handle, blocks, stream_handle));
    Lock lock(mu);
    auto function = functions.get(handle);
    auto args = arguments.get(args_handle);
    // Arguments serve one launch, whatever it answers.
    if (args) arguments.live.erase(args_handle);
    if (planted) return planted;
    if (!function)
        return fault(RT_PARAM, "function", "aclrtLaunchKernelWithConfig: no such function, or its binary was unloaded");
    if (!args || !args->finished || args->function != function) {
        return fault(RT_PARAM, "kernel-args",
                     "aclrtLaunchKernelWithConfig: arguments used before, not final, or of another function");
    }
    if (!blocks || blocks > 65535 || config || reserve) {
        return fault(INVALID_PARAM, "launch",
                     fmt("aclrtLaunchKernelWithConfig: %u blocks, config %p, reserve %p", blocks, (void *)config, reserve));
    }
    int code;
    auto stream = find_stream(stream_handle, "aclrtLaunchKernelWithConfig", &code);
    if (!stream) return code;
    int device = stream_device(stream);
    Task task;
    task.name = "kernel " + function->kernel;
    task.marks = false;
    if ((code = translate_args(args->values, device, function->kernel, &task.ranges))) return code;
    // Counts as long as the task lives, run or dropped.
    std::shared_ptr<void> pending(&function->binary->pending, [binary = function->binary](void *) { binary->pending--; });
    function->binary->pending++;
    task.run = [function, args, blocks, device, pending] { return run(*function, args->values, blocks, device); };
    enqueue(stream, std::move(task));
    return OK;
}
