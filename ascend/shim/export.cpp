// Makes a shared object of one kernel file: build.sh defines YN_KERNEL, the file, and YN_ENTRIES, its entries as YN_ENTRY(name).
#include YN_KERNEL

#define YN_EXPORT extern "C" __attribute__((visibility("default")))

namespace {
#define YN_ENTRY(name) shim::entry<&name>(#name, &name),
const shim::Entry entries[] = {YN_ENTRIES};
constexpr size_t count = sizeof(entries) / sizeof(entries[0]);
}  // namespace

// 1 when the binary has this entry.
YN_EXPORT int yn_shim_has(const char* kernel) {
  for (const shim::Entry& entry : entries) {
    if (std::string(entry.name) == kernel) return 1;
  }
  return 0;
}

// Runs a kernel on the CPU: `arguments[i]` points to `sizes[i]` bytes, addresses are of host memory. `gm_check`, if there is
// one, is `int (*)(const void* host, size_t bytes, int write)`: whether all of that is within one allocation. Returns null, or
// what the kernel did wrong, in a text that lives until this thread's next launch.
YN_EXPORT const char* yn_shim_launch(const char* kernel, void** arguments, const size_t* sizes, int n, uint32_t blocks,
                                     void* gm_check) {
  return shim::launch(entries, count, kernel, arguments, sizes, n, blocks, reinterpret_cast<shim::Launch::Check>(gm_check));
}
