// Tests of the kernels and of their emulation: `tests KERNEL_DIR [NAME]`, KERNEL_DIR being what shim/build.sh was given. Prints
// a line per group and what failed; ends with 1 when anything did.
#include <dlfcn.h>

#include "harness.h"

static std::string kernel_dir;

std::string test::launch(const char* file, const std::string& entry, uint32_t blocks, const Arguments& arguments) {
  using Has = int (*)(const char*);
  using Launch = const char* (*)(const char*, void**, const size_t*, int, uint32_t, void*);
  static std::map<std::string, void*> opened;
  void*& library = opened[file];
  if (library == nullptr) library = dlopen((kernel_dir + "/AscendDouble/" + file + ".o").c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  const auto has = reinterpret_cast<Has>(dlsym(library, "yn_shim_has"));
  const auto run = reinterpret_cast<Launch>(dlsym(library, "yn_shim_launch"));
  if (has == nullptr || run == nullptr) return "not a kernel of the emulation";
  if (has(entry.c_str()) != 1) return "the binary has no entry " + entry;
  std::vector<void*> pointers;
  std::vector<size_t> sizes;
  arguments.split(pointers, sizes);
  const char* fault = run(entry.c_str(), pointers.data(), sizes.data(), int(sizes.size()), blocks,
                          reinterpret_cast<void*>(&test::gm_check));
  return fault == nullptr ? "" : fault;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s KERNEL_DIR [NAME]\n", argv[0]);
    return 2;
  }
  kernel_dir = argv[1];
  const struct {
    const char* name;
    void (*run)();
  } groups[] = {{"numbers", test_numbers}, {"shim", test_shim}, {"launch", test_launch}, {"norm", test_norm},
                {"silu_mul", test_silu_mul}, {"rope", test_rope}, {"penalty", test_penalty}};
  for (const auto& group : groups) {
    if (argc > 2 && std::string(argv[2]) != group.name) continue;
    const int before = test::failures;
    group.run();
    std::printf("%s %s\n", test::failures == before ? "ok" : "FAILED", group.name);
    std::fflush(stdout);
  }
  return test::failures == 0 ? 0 : 1;
}
