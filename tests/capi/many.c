/* Two hundred requests at once, cancelled at random, read by several pollers and one slow reader.
   usage: many CONFIG PROMPT */
#include "check.h"

enum { N = 200, SUBMITTERS = 4 };
static yn_engine engine;
static yn_queue slow_queue;
static const char *prompt;
static tally seen;
static yn_request_id ids[N];
static pthread_mutex_t ids_lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned next(unsigned *state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

static void *submitter(void *arg) {
  unsigned first = (unsigned)(size_t)arg, state = first + 1, i;
  for (i = first; i < N; i += SUBMITTERS) {
    char text[512];
    yn_request r;
    yn_request_id id;
    snprintf(text, sizeof text, "%s %u", prompt, i % 7);
    r = request_of(engine, text, 1 + next(&state) % 120, i);
    if (i % 3 == 0) r.queue = slow_queue;
    if (i % 2 == 0) {
      r.temperature = 0.8f;
      r.flags |= YN_REQ_SEEDED;
      r.seed = i;
    }
    id = submit(engine, &r);
    pthread_mutex_lock(&ids_lock);
    ids[i] = id;
    pthread_mutex_unlock(&ids_lock);
  }
  return NULL;
}

static void *canceller(void *arg) {
  unsigned state = 99, rounds;
  (void)arg;
  for (rounds = 0; rounds < 150; rounds++) {
    yn_request_id id;
    pthread_mutex_lock(&ids_lock);
    id = ids[next(&state) % N];
    pthread_mutex_unlock(&ids_lock);
    if (id != 0) EXPECT(yn_engine_cancel(engine, id), YN_OK, NULL);
    sleep_us(200);
  }
  return NULL;
}

static int all_done(void) {
  int all;
  pthread_mutex_lock(&seen.lock);
  all = seen.done == N;
  pthread_mutex_unlock(&seen.lock);
  return all;
}

static void *poller(void *arg) {
  uint64_t buffer[1024];
  (void)arg;
  while (!all_done()) {
    size_t used = 0;
    yn_status s = yn_engine_poll(engine, buffer, sizeof buffer, 50, &used);
    CHECK(s == YN_OK || s == YN_E_TIMEOUT);
    if (s == YN_OK) tally_records(&seen, buffer, used);
  }
  return NULL;
}

/* Records of requests that one thread alone polls: nothing follows a request's DONE. */
static void tally_in_order(const void *buffer, size_t used) {
  size_t at;
  for (at = 0; at < used;) {
    const yn_event *e = (const yn_event *)((const char *)buffer + at);
    at += e->size;
    CHECK(e->kind != YN_EV_OUTPUT || (e->user_data < N && !seen.all[e->user_data].done));
    tally_event(&seen, e);
  }
}

static void *slow_reader(void *arg) {
  uint64_t buffer[512];
  (void)arg;
  while (!all_done()) {
    size_t used = 0;
    yn_status s = yn_queue_poll(slow_queue, buffer, sizeof buffer, 50, &used);
    CHECK(s == YN_OK || s == YN_E_TIMEOUT);
    if (s == YN_OK) tally_in_order(buffer, used);
    sleep_us(3000);
  }
  return NULL;
}

static void check_outcomes(void) {
  yn_stats s = stats_of(engine);
  uint64_t tokens = 0, prompt_tokens = 0;
  unsigned i, cancelled = 0;
  for (i = 0; i < N; i++) {
    const outcome *o = &seen.all[i];
    CHECK(o->done == 1 && o->status == YN_OK && o->id == ids[i]);
    CHECK(o->finish == YN_FINISH_LENGTH || o->finish == YN_FINISH_CANCELLED);
    CHECK(o->tokens == o->completion);
    CHECK(o->finish == YN_FINISH_CANCELLED || o->completion > 0);
    cancelled += o->finish == YN_FINISH_CANCELLED;
    tokens += o->completion;
    prompt_tokens += o->prompt;
  }
  CHECK(cancelled > 0 && cancelled < N);
  CHECK(s.finished == N && s.completion_tokens == tokens && s.prompt_tokens == prompt_tokens && s.rejected == 0);
  printf("%u of %d cancelled, %lu tokens in %lu steps\n", cancelled, N, (unsigned long)tokens, (unsigned long)s.steps);
}

int main(int argc, char **argv) {
  pthread_t threads[SUBMITTERS + 4];
  size_t i;
  CHECK(argc == 3);
  prompt = argv[2];
  engine = create(argv[1]);
  EXPECT(yn_queue_create(&slow_queue, NULL), YN_OK, NULL);
  tally_init(&seen, N, 0);
  for (i = 0; i < SUBMITTERS; i++) CHECK(pthread_create(&threads[i], NULL, submitter, (void *)i) == 0);
  CHECK(pthread_create(&threads[i++], NULL, canceller, NULL) == 0);
  CHECK(pthread_create(&threads[i++], NULL, poller, NULL) == 0);
  CHECK(pthread_create(&threads[i++], NULL, poller, NULL) == 0);
  CHECK(pthread_create(&threads[i++], NULL, slow_reader, NULL) == 0);
  while (i > 0) CHECK(pthread_join(threads[--i], NULL) == 0);
  EXPECT(yn_engine_drain(engine, 10000), YN_OK, NULL);
  check_outcomes();
  check_idle(engine);
  EXPECT(yn_queue_free(slow_queue), YN_OK, NULL);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  tally_free(&seen);
  return 0;
}
