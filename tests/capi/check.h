/* What the C tests share: checks that name the line, engines and requests, and a tally of what was polled. */
#ifndef CHECK_H
#define CHECK_H
#include "yinian.h"
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What a test waits for comes much sooner; tools that slow it down set more. */
#ifndef PATIENCE_MS
#define PATIENCE_MS 20000
#endif

#define CHECK(x)                                                   \
  do {                                                             \
    if (!(x)) {                                                    \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);      \
      _Exit(1);                                                    \
    }                                                              \
  } while (0)

/* The call answers `want`; `e` is the yn_error it was given, or NULL. */
#define EXPECT(call, want, e) expect(__FILE__, __LINE__, #call, (call), (want), (e))

static inline void expect(const char *file, int line, const char *what, yn_status got, yn_status want, const yn_error *e) {
  if (got == want) return;
  fprintf(stderr, "%s:%d: %s: %s instead of %s: %s\n", file, line, what, yn_status_name(got), yn_status_name(want),
          e != NULL ? e->message : "");
  _Exit(1);
}

static inline yn_bytes bytes(const char *s) {
  yn_bytes b;
  b.data = (const uint8_t *)s;
  b.len = strlen(s);
  return b;
}

static inline void sleep_us(long us) {
  struct timespec t;
  t.tv_sec = us / 1000000;
  t.tv_nsec = us % 1000000 * 1000;
  nanosleep(&t, NULL);
}

static inline double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline yn_engine create(const char *config) {
  yn_engine engine = {0};
  yn_error e;
  memset(&e, 0, sizeof e);
  EXPECT(yn_engine_create(bytes(config), &engine, &e), YN_OK, &e);
  CHECK(engine.id != 0);
  return engine;
}

/* A request of text and tokens that does not end by itself. */
static inline yn_request request_of(yn_engine engine, const char *prompt, uint32_t max_tokens, uint64_t user) {
  yn_request r;
  EXPECT(yn_request_init(engine, &r, sizeof r), YN_OK, NULL);
  r.prompt_text = bytes(prompt);
  r.max_tokens = max_tokens;
  r.flags |= YN_REQ_IGNORE_EOS;
  r.output = YN_OUT_TEXT | YN_OUT_TOKENS;
  r.user_data = user;
  return r;
}

static inline yn_request_id submit(yn_engine engine, const yn_request *r) {
  yn_request_id id = 0;
  yn_error e;
  memset(&e, 0, sizeof e);
  EXPECT(yn_engine_submit(engine, r, &id, &e), YN_OK, &e);
  CHECK(id != 0);
  return id;
}

/* What one request came to; its user_data is its index in the tally. */
typedef struct {
  yn_request_id id;
  int done, status;
  uint32_t finish, tokens, completion, cached, prompt;
  size_t text_len;
  char text[8192];
} outcome;

typedef struct {
  outcome *all;
  size_t n, done;
  /* 1: events of a request are seen in order, because one thread polls. */
  int ordered;
  pthread_mutex_t lock;
} tally;

static inline void tally_init(tally *t, size_t n, int ordered) {
  t->all = (outcome *)calloc(n, sizeof *t->all);
  CHECK(t->all != NULL);
  t->n = n;
  t->done = 0;
  t->ordered = ordered;
  CHECK(pthread_mutex_init(&t->lock, NULL) == 0);
}

static inline void tally_free(tally *t) {
  free(t->all);
  pthread_mutex_destroy(&t->lock);
}

/* Length of the longest prefix that is whole UTF-8. */
static inline size_t whole_utf8(const unsigned char *s, size_t n) {
  size_t i = 0;
  while (i < n) {
    size_t k, len = s[i] < 0x80 ? 1 : s[i] >= 0xC2 && s[i] < 0xE0 ? 2 : s[i] >= 0xE0 && s[i] < 0xF0 ? 3
                  : s[i] >= 0xF0 && s[i] < 0xF5 ? 4 : 0;
    if (len == 0 || i + len > n) return i;
    for (k = 1; k < len; k++)
      if ((s[i + k] & 0xC0) != 0x80) return i;
    i += len;
  }
  return i;
}

static inline void tally_event(tally *t, const yn_event *e) {
  const unsigned char *text = (const unsigned char *)e + e->text_off;
  outcome *o;
  CHECK(e->size >= sizeof *e && e->size % 8 == 0);
  CHECK(e->text_off + (size_t)e->text_len <= e->size);
  CHECK(whole_utf8(text, e->text_len) == e->text_len);
  CHECK(e->kind != YN_EV_OUTPUT || e->tokens_off + 4 * (size_t)e->n_tokens <= e->size);
  if (e->kind != YN_EV_OUTPUT && e->kind != YN_EV_DONE) return;
  pthread_mutex_lock(&t->lock);
  CHECK(e->user_data < t->n);
  o = &t->all[e->user_data];
  CHECK(o->id == 0 || o->id == e->request_id);
  o->id = e->request_id;
  if (e->kind == YN_EV_OUTPUT) {
    CHECK(!t->ordered || !o->done);
    CHECK(o->text_len + e->text_len <= sizeof o->text);
    memcpy(o->text + o->text_len, text, e->text_len);
    o->text_len += e->text_len;
    o->tokens += e->n_tokens;
  } else {
    CHECK(!o->done);
    o->done = 1;
    o->status = e->status;
    o->finish = e->finish;
    o->completion = e->completion_tokens;
    o->cached = e->cached_tokens;
    o->prompt = e->prompt_tokens;
    CHECK((e->finish == YN_FINISH_ERROR) == (e->status != YN_OK));
    CHECK(e->t_submit_ns != 0 && e->t_event_ns >= e->t_submit_ns);
    CHECK((e->t_first_ns != 0) == (e->completion_tokens != 0));
    t->done++;
  }
  pthread_mutex_unlock(&t->lock);
}

static inline void tally_records(tally *t, const void *buffer, size_t used) {
  size_t at;
  for (at = 0; at < used; at += ((const yn_event *)((const char *)buffer + at))->size)
    tally_event(t, (const yn_event *)((const char *)buffer + at));
}

/* Reads an engine's own queue until `n` requests have ended. */
static inline void read_until(yn_engine engine, tally *t, size_t n) {
  static uint64_t buffer[8192];
  while (t->done < n) {
    size_t used = 0;
    EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, PATIENCE_MS, &used), YN_OK, NULL);
    CHECK(used > 0);
    tally_records(t, buffer, used);
  }
}

static inline yn_stats stats_of(yn_engine engine) {
  yn_stats s;
  memset(&s, 0, sizeof s);
  s.struct_size = sizeof s;
  EXPECT(yn_engine_stats(engine, &s), YN_OK, NULL);
  return s;
}

/* Nothing runs, nothing waits, all blocks are free. */
static inline void check_idle(yn_engine engine) {
  double end = now_s() + 10;
  for (;;) {
    yn_stats s = stats_of(engine);
    if (s.waiting + s.running == 0 && s.blocks_free == s.blocks_total) return;
    CHECK(now_s() < end);
    sleep_us(1000);
  }
}

/* Of a directory: what the process has open (/proc/self/fd), or its threads (/proc/self/task), and two. */
static inline int entries(const char *directory) {
  DIR *d = opendir(directory);
  int n = 0;
  CHECK(d != NULL);
  while (readdir(d) != NULL) n++;
  closedir(d);
  return n;
}

/* Threads of the library; each of them must block every signal of the mask. */
static inline int threads_that_block(unsigned long long want) {
  DIR *d = opendir("/proc/self/task");
  struct dirent *entry;
  int seen = 0;
  CHECK(d != NULL);
  while ((entry = readdir(d)) != NULL) {
    char path[300], line[256];
    int ours = 0;
    FILE *f;
    snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
    if (entry->d_name[0] == '.' || (f = fopen(path, "r")) == NULL) continue;
    while (fgets(line, sizeof line, f) != NULL) {
      unsigned long long mask;
      if (strncmp(line, "Name:\tyn-", 9) == 0) ours = 1;
      if (!ours || sscanf(line, "SigBlk: %llx", &mask) != 1) continue;
      if ((mask & want) != want) fprintf(stderr, "%s: SigBlk %llx lacks %llx\n", path, mask, want & ~mask);
      CHECK((mask & want) == want);
      seen++;
    }
    fclose(f);
  }
  closedir(d);
  return seen;
}
#endif
