// Runs a kernel on so many blocks, one after the other, and tells what it did wrong.
#pragma once
#include <array>
#include <tuple>
#include <utility>

#include "tensor.h"

namespace shim {

// Null when all went well, else a text that lives until this thread's next launch.
template <typename F>
const char* run(uint32_t blocks, Launch::Check check, F&& kernel) {
  static thread_local std::string text;
  Launch launch;
  launch.check = check;
  if (blocks == 0) return "a launch of 0 blocks";
  for (uint32_t block = 0; block < blocks; block++) {
    Core core(launch, block, blocks);
    current = &core;
    try {
      kernel();
      core.end();
      current = nullptr;
    } catch (const Fault& fault) {
      current = nullptr;
      text = "block " + std::to_string(block) + " of " + std::to_string(blocks) + ": " + fault.text;
      return text.c_str();
    }
  }
  return nullptr;
}

// A kernel entry that takes its arguments as a launch by handle passes them.
struct Entry {
  const char* name;
  size_t arguments;
  const size_t* sizes;
  void (*call)(void** arguments);
};

template <typename... A>
struct Arguments {
  static constexpr std::array<size_t, sizeof...(A)> sizes = {sizeof(A)...};
  template <size_t I>
  static auto get(void** arguments) {
    typename std::tuple_element<I, std::tuple<A...>>::type value;
    std::memcpy(&value, arguments[I], sizeof(value));
    return value;
  }
  template <void (*KERNEL)(A...), size_t... I>
  static void call(void** arguments, std::index_sequence<I...>) {
    KERNEL(get<I>(arguments)...);
  }
  template <void (*KERNEL)(A...)>
  static void call(void** arguments) {
    call<KERNEL>(arguments, std::index_sequence_for<A...>());
  }
};

template <auto KERNEL, typename... A>
Entry entry(const char* name, void (*)(A...)) {
  return Entry{name, sizeof...(A), Arguments<A...>::sizes.data(), &Arguments<A...>::template call<KERNEL>};
}

// Launches one of `entries` by name.
inline const char* launch(const Entry* entries, size_t count, const char* name, void** arguments, const size_t* sizes, int n,
                          uint32_t blocks, Launch::Check check) {
  static thread_local std::string text;
  for (size_t i = 0; i < count; i++) {
    const Entry& entry = entries[i];
    if (std::string(entry.name) != name) continue;
    if (n < 0 || size_t(n) != entry.arguments) {
      text = std::string(name) + " takes " + std::to_string(entry.arguments) + " arguments, not " + std::to_string(n);
      return text.c_str();
    }
    for (size_t a = 0; a < entry.arguments; a++) {
      if (sizes[a] == entry.sizes[a]) continue;
      text = std::string(name) + ": argument " + std::to_string(a) + " has " + std::to_string(entry.sizes[a]) + " bytes, not " +
             std::to_string(sizes[a]);
      return text.c_str();
    }
    return run(blocks, check, [&] { entry.call(arguments); });
  }
  text = std::string("the binary has no kernel ") + name;
  return text.c_str();
}

}  // namespace shim
