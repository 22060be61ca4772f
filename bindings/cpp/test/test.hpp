// What the translation units of the test share.
#ifndef YINIAN_TEST_HPP
#define YINIAN_TEST_HPP

#include "../yinian.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#define CHECK(x)                                                   \
  do {                                                             \
    if (!(x)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
      std::exit(1);                                                \
    }                                                              \
  } while (0)

void nothrow_tests();
void wide_tests();
void dispatcher_tests();

inline std::string env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

inline yinian::Engine open(const std::string& config) {
  auto engine = yinian::Engine::try_open(config);
  if (!engine) std::fprintf(stderr, "%s\n", engine.error().what());
  CHECK(engine);
  return *std::move(engine);
}

inline yinian::Request endless(std::string prompt) {
  return yinian::Request::text(std::move(prompt)).max_tokens(30000).flags(YN_REQ_IGNORE_EOS);
}

inline yinian::Request short_request(int i) {
  return yinian::Request::text("prompt " + std::to_string(i)).max_tokens(40 + i).flags(YN_REQ_IGNORE_EOS);
}

template <class F>
void until(F met) {
  for (int ms = 0; !met(); ms++) {
    CHECK(ms < 20000);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

inline void wait_idle(const yinian::Engine& engine) {
  for (int ms = 0;; ms++) {
    const auto stats = engine.try_stats();
    CHECK(stats && ms < 10000);
    if (stats->waiting + stats->running == 0 && stats->blocks_free == stats->blocks_total) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

#endif
