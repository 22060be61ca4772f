// What both translation units of the test share.
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

inline yinian::Request endless(std::string prompt) {
  return yinian::Request::text(std::move(prompt)).max_tokens(30000).flags(YN_REQ_IGNORE_EOS);
}

inline yinian::Request short_request(int i) {
  return yinian::Request::text("prompt " + std::to_string(i)).max_tokens(40 + i).flags(YN_REQ_IGNORE_EOS);
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
