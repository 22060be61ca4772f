// Faults, trace and plants: what tests say to the double and ask of it (yn_double_*).
#include "double.h"
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace dbl {

// What threads of streams use lives as long as the process, past its destructors.
std::mutex &mu = *new std::mutex;
std::condition_variable &cv = *new std::condition_variable;
std::atomic<uint64_t> epoch{1};

namespace {

struct Plant {
    std::string call;
    int device, nth, code;
};
struct TaskPlant {
    int device, nth, code;
};

// Behind a lock of its own: a fault may be found with or without the world's.
std::mutex &notes = *new std::mutex;
std::vector<std::string> &faults = *new std::vector<std::string>;
std::deque<std::string> &lines = *new std::deque<std::string>;
std::map<std::string, uint64_t> &calls = *new std::map<std::string, uint64_t>;
std::vector<Plant> &plants = *new std::vector<Plant>;
std::vector<TaskPlant> &task_plants = *new std::vector<TaskPlant>;
std::map<std::string, bool> &options = *new std::map<std::string, bool>;
size_t oom_left = SIZE_MAX;
constexpr size_t MAX_LINES = 8192;

void add_line(const std::string &line) {
    lines.push_back(line);
    if (lines.size() > MAX_LINES) lines.pop_front();
}

std::string &error_text() {
    static thread_local std::string text;
    return text;
}

const char *answer(std::string text) {
    static thread_local std::string kept;
    kept = std::move(text);
    return kept.c_str();
}

} // namespace

std::string fmt(const char *format, ...) {
    va_list args;
    va_start(args, format);
    char *text = nullptr;
    int length = vasprintf(&text, format, args);
    va_end(args);
    if (length < 0) return format;
    std::string result(text, size_t(length));
    free(text);
    return result;
}

int fault(int code, const char *kind, const std::string &text) {
    std::string line = std::string(kind) + ": " + text;
    std::lock_guard<std::mutex> lock(notes);
    faults.push_back(line);
    add_line("  fault " + line);
    error_text() = "[AscendDouble " + std::to_string(code) + "] " + line;
    return code;
}

int fail(int code, const std::string &text) {
    std::lock_guard<std::mutex> lock(notes);
    add_line("  failed " + text);
    error_text() = "[AscendDouble " + std::to_string(code) + "] " + text;
    return code;
}

void trace(const std::string &line) {
    std::lock_guard<std::mutex> lock(notes);
    add_line(line);
}

int enter(const char *call, const std::string &arguments) {
    int device = thread_device();
    std::lock_guard<std::mutex> lock(notes);
    calls[call]++;
    add_line(std::string(call) + "(" + arguments + ") on device " + std::to_string(device));
    for (size_t i = 0; i < plants.size(); i++) {
        Plant &plant = plants[i];
        if (plant.call != call || (plant.device >= 0 && plant.device != device) || --plant.nth > 0) continue;
        int code = plant.code;
        plants.erase(plants.begin() + long(i));
        add_line("  planted failure of " + std::string(call));
        error_text() = "[AscendDouble " + std::to_string(code) + "] planted failure of " + call;
        return code;
    }
    return OK;
}

int planted_task_error(int device, const std::string &name) {
    std::lock_guard<std::mutex> lock(notes);
    for (size_t i = 0; i < task_plants.size(); i++) {
        TaskPlant &plant = task_plants[i];
        if ((plant.device >= 0 && plant.device != device) || --plant.nth > 0) continue;
        int code = plant.code;
        task_plants.erase(task_plants.begin() + long(i));
        add_line("  planted error of task " + name);
        return code;
    }
    return OK;
}

bool planted_oom(size_t bytes) {
    std::lock_guard<std::mutex> lock(notes);
    if (oom_left == SIZE_MAX) return false;
    if (bytes > oom_left) return true;
    oom_left -= bytes;
    return false;
}

bool option(const char *name) {
    std::lock_guard<std::mutex> lock(notes);
    auto at = options.find(name);
    if (at != options.end()) return at->second;
    std::string variable = "YN_DOUBLE_" + std::string(name);
    for (char &c : variable) c = char(toupper(c));
    const char *text = getenv(variable.c_str());
    return text && strcmp(text, "0") != 0;
}

long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

} // namespace dbl

using namespace dbl;

// The text of this thread's last error, which is forgotten by asking; null where there is none.
ABI const char *aclGetRecentErrMsg() {
    static thread_local std::string kept;
    std::lock_guard<std::mutex> lock(notes);
    kept.swap(error_text());
    error_text().clear();
    return kept.empty() ? nullptr : kept.c_str();
}

// Ends all objects and forgets faults, trace and plants. That aclInit was called stays.
ABI void yn_double_reset() {
    hccl_reset();
    stream_reset();
    tensor_reset();
    kernel_reset();
    runtime_reset();
    memory_reset();
    std::lock_guard<std::mutex> lock(notes);
    faults.clear();
    lines.clear();
    calls.clear();
    plants.clear();
    task_plants.clear();
    options.clear();
    oom_left = SIZE_MAX;
}

// The nth call from now on (1 is the next one) fails with `code` before it does anything.
ABI void yn_double_fail(const char *call, int nth, int code) {
    std::lock_guard<std::mutex> lock(notes);
    plants.push_back({call, -1, nth, code});
}

// The same, counting only calls of threads whose context is of `device`.
ABI void yn_double_fail_on(int device, const char *call, int nth, int code) {
    std::lock_guard<std::mutex> lock(notes);
    plants.push_back({call, device, nth, code});
}

// Allocations of device memory fail once `bytes` more were taken; SIZE_MAX ends that.
ABI void yn_double_oom_after(size_t bytes) {
    std::lock_guard<std::mutex> lock(notes);
    oom_left = bytes;
}

// The nth task that runs from now on (1 is the next one) ends its stream with `code`.
ABI void yn_double_async_error(int nth_task, int code) {
    std::lock_guard<std::mutex> lock(notes);
    task_plants.push_back({-1, nth_task, code});
}

ABI void yn_double_async_error_on(int device, int nth_task, int code) {
    std::lock_guard<std::mutex> lock(notes);
    task_plants.push_back({device, nth_task, code});
}

// Forgets plants that nothing has met; objects and faults stay.
ABI void yn_double_forget_plants() {
    std::lock_guard<std::mutex> lock(notes);
    plants.clear();
    task_plants.clear();
}

// Switches by name; the README beside this lists them.
ABI void yn_double_option(const char *name, int on) {
    std::lock_guard<std::mutex> lock(notes);
    options[name] = on != 0;
}

// Plants that nothing has met yet.
ABI int yn_double_planted() {
    std::lock_guard<std::mutex> lock(notes);
    return int(plants.size() + task_plants.size());
}

ABI uint64_t yn_double_calls(const char *call) {
    std::lock_guard<std::mutex> lock(notes);
    auto at = calls.find(call);
    return at == calls.end() ? 0 : at->second;
}

// What is still held, a line each; empty when clean.
ABI const char *yn_double_leaks() {
    std::string out;
    {
        Lock lock(mu);
        memory_leaks(out);
        stream_leaks(out);
        runtime_leaks(out);
        tensor_leaks(out);
        kernel_leaks(out);
        hccl_leaks(out);
    }
    return answer(out);
}

ABI const char *yn_double_trace() {
    std::string out;
    {
        std::lock_guard<std::mutex> lock(notes);
        for (const std::string &line : lines) out += line + "\n";
    }
    return answer(out);
}

// Misuses so far, a line "kind: text" each.
ABI const char *yn_double_faults() {
    std::string out;
    {
        std::lock_guard<std::mutex> lock(notes);
        for (const std::string &line : faults) out += line + "\n";
    }
    return answer(out);
}
