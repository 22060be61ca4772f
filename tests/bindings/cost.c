/* What a token costs a host that uses the C API as it is, one thread polling: what the wrappers are measured against.
   Prints lines that cost.py reads. */
#define _POSIX_C_SOURCE 200809L
#include "cost.h"
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

typedef struct {
  uint64_t records, text_bytes;
  uint32_t tokens;
} stream;

typedef struct {
  yn_engine engine;
  stream streams[COST_STREAMS];
  /* When a ping's token came, 0 before. */
  atomic_ullong came_ns;
  uint64_t thread_ns;
  size_t left;
} host;

static yn_bytes bytes(const char *s) {
  yn_bytes b = {(const uint8_t *)s, strlen(s)};
  return b;
}

static yn_engine create(const char *config) {
  yn_engine engine;
  yn_error e;
  if (yn_engine_create(bytes(config), &engine, &e) != YN_OK) {
    fprintf(stderr, "%s\n", e.message);
    exit(1);
  }
  return engine;
}

static void submit(yn_engine engine, uint32_t max_tokens, uint64_t user) {
  yn_request r;
  COST_CHECK(yn_request_init(engine, &r, sizeof r) == YN_OK);
  r.prompt_text = bytes("hello");
  r.max_tokens = max_tokens;
  r.flags |= YN_REQ_IGNORE_EOS;
  r.output = YN_OUT_TEXT;
  r.user_data = user;
  COST_CHECK(yn_engine_submit(engine, &r, NULL, NULL) == YN_OK);
}

static void receive(host *h, const yn_event *e) {
  stream *s = &h->streams[e->user_data];
  if (e->kind == YN_EV_OUTPUT) {
    s->records++;
    s->text_bytes += e->text_len;
    if (h->came_ns == 0) h->came_ns = cost_now_ns();
  } else if (e->kind == YN_EV_DONE) {
    s->tokens = e->completion_tokens;
    h->left--;
  }
}

/* Polls until `left` requests have ended. */
static void *poll_all(void *arg) {
  static uint64_t buffer[65536 / 8];
  host *h = arg;
  const uint64_t began = cost_thread_ns();
  while (h->left > 0) {
    size_t used = 0;
    COST_CHECK(yn_engine_poll(h->engine, buffer, sizeof buffer, -1, &used) == YN_OK);
    for (size_t at = 0; at < used;) {
      const yn_event *e = (const yn_event *)((const char *)buffer + at);
      receive(h, e);
      at += e->size;
    }
  }
  h->thread_ns = cost_thread_ns() - began;
  return NULL;
}

static void tokens(void) {
  static host h;
  pthread_t poller;
  uint64_t counted = 0, records = 0;
  h.engine = create(COST_STEPS_CONFIG);
  h.left = COST_STREAMS;
  h.came_ns = 1;
  const uint64_t began = cost_process_ns();
  COST_CHECK(pthread_create(&poller, NULL, poll_all, &h) == 0);
  for (uint64_t i = 0; i < COST_STREAMS; i++) submit(h.engine, COST_TOKENS, i);
  COST_CHECK(pthread_join(poller, NULL) == 0);
  const uint64_t took = cost_process_ns() - began;
  for (size_t i = 0; i < COST_STREAMS; i++) {
    counted += h.streams[i].tokens;
    records += h.streams[i].records;
    COST_CHECK(h.streams[i].text_bytes == COST_TOKENS);
  }
  cost_print_tokens(counted, records, took, h.thread_ns);
  COST_CHECK(yn_engine_free(h.engine) == YN_OK);
}

static void wakeups(void) {
  static host h;
  static uint64_t took[COST_PINGS];
  pthread_t poller;
  h.engine = create(COST_PING_CONFIG);
  h.left = COST_PINGS;
  h.came_ns = 1;
  COST_CHECK(pthread_create(&poller, NULL, poll_all, &h) == 0);
  for (size_t i = 0; i < COST_PINGS; i++) {
    cost_pause();
    h.came_ns = 0;
    const uint64_t began = cost_now_ns();
    submit(h.engine, 1, 0);
    while (h.came_ns == 0) cost_pause();
    took[i] = h.came_ns - began;
  }
  COST_CHECK(pthread_join(poller, NULL) == 0);
  cost_print_wakeups(took, COST_PINGS);
  COST_CHECK(yn_engine_free(h.engine) == YN_OK);
}

int main(void) {
  tokens();
  wakeups();
  return 0;
}
