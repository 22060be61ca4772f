/* What the benches of the C API and of its wrappers have in common: the load, the clocks and the lines that cost.py reads.
   C11 and C++17. */
#ifndef COST_H
#define COST_H
#include "yinian.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Every stream gets a token each step of two milliseconds, as from a model of a few billion weights. */
#define COST_STREAMS 256
#define COST_TOKENS 400
#define COST_STEPS_CONFIG "{\"model\": \"mock:words,delay_us=2000\", \"max_num_seqs\": 256, \"log_level\": \"off\"}"

/* Requests of one token to an engine that sleeps, one after the other. */
#define COST_PINGS 500
#define COST_PAUSE_US 500
#define COST_PING_CONFIG "{\"model\": \"mock:words\", \"log_level\": \"off\"}"

#define COST_CHECK(x)                                              \
  do {                                                             \
    if (!(x)) {                                                    \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);      \
      exit(1);                                                     \
    }                                                              \
  } while (0)

static inline uint64_t cost_clock_ns(clockid_t clock) {
  struct timespec t;
  COST_CHECK(clock_gettime(clock, &t) == 0);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* All threads of the process, the library's too. */
static inline uint64_t cost_process_ns(void) { return cost_clock_ns(CLOCK_PROCESS_CPUTIME_ID); }
static inline uint64_t cost_thread_ns(void) { return cost_clock_ns(CLOCK_THREAD_CPUTIME_ID); }
/* The clock of a record's times. */
static inline uint64_t cost_now_ns(void) { return cost_clock_ns(CLOCK_MONOTONIC); }

static inline void cost_pause(void) {
  struct timespec t = {0, COST_PAUSE_US * 1000};
  nanosleep(&t, NULL);
}

static inline int cost_order(const void *a, const void *b) {
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

/* `tokens` in `records` took `process_ns` of the process, of which the thread that polls `poller_ns`. */
static inline void cost_print_tokens(uint64_t tokens, uint64_t records, uint64_t process_ns, uint64_t poller_ns) {
  COST_CHECK(tokens == (uint64_t)COST_STREAMS * COST_TOKENS && records > 0);
  printf("tokens: %llu in %llu records\n", (unsigned long long)tokens, (unsigned long long)records);
  printf("CPU ns per token: %.1f\n", (double)process_ns / (double)tokens);
  printf("CPU ns per token of the poller: %.1f\n", (double)poller_ns / (double)tokens);
}

/* From before submit until the host has its token. */
static inline void cost_print_wakeups(uint64_t *ns, size_t n) {
  COST_CHECK(n > 0);
  qsort(ns, n, sizeof *ns, cost_order);
  printf("wake-up us: p50 %.1f p99 %.1f\n", (double)ns[n / 2] / 1e3, (double)ns[n * 99 / 100] / 1e3);
}

#endif
