/* More than a thousand live requests of every kind, cancelled, late, unread, in queues that are freed, beside engines that
   come and go: every answer is whole, and nothing is left.
   usage: soak MODEL SECONDS [FEATURES], MODEL being "mock:words..." or a model directory, FEATURES a mask of the CPU */
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <sys/epoll.h>
#include <unistd.h>

/* Memory checkers keep what is freed for a while. */
#ifndef SLACK_MB
#define SLACK_MB 8
#endif

enum { PROMPTS = 12, CHOICES = 4, MOST_TOKENS = 96, PROMPT_BYTES = 400 };
/* Slots of requests and who reads them: an epoll loop, a slow reader, and one whose queues are freed under them. */
enum { FAST = 1000, SLOW = 150, FREED = 100, SLOTS = FAST + SLOW + FREED };

/* What the model says to a prompt, alone and greedily. */
typedef struct {
  char prompt[PROMPT_BYTES];
  uint32_t tokens[CHOICES][MOST_TOKENS], n[CHOICES];
} reference;

/* A request as its reader sees it. */
typedef struct {
  yn_request_id id;
  uint32_t generation, prompt, choices, output, n_logprobs, max_tokens, timeout_ms;
  int live, cancelled, stops, greedy, wrong;
  uint32_t tokens[CHOICES][MOST_TOKENS], n[CHOICES];
  char text[CHOICES][MOST_TOKENS * 16];
  size_t text_len[CHOICES];
  int finished[CHOICES];
} slot;

static const char *model;
static int is_mock;
static char config[1024];
static yn_engine engine;
static reference references[PROMPTS];
static slot *slots;
/* Ids for the canceller, and who asked for what. */
static pthread_mutex_t ids_lock = PTHREAD_MUTEX_INITIALIZER;
static volatile int stop;
static uint64_t submitted, finishes[8], cycles, freed_queues, unread_queues;

static uint32_t draw(uint64_t *state, uint32_t below) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(*state >> 33) % below;
}

static void count(uint64_t *what) { __sync_fetch_and_add(what, 1); }

static void bad(const slot *s, const yn_event *e, const char *what, int line) {
  fprintf(stderr, "soak.c:%d: %s: request %llu, prompt %u, n %u, output %x, finish %u, status %s, tokens %u, text \"%.*s\"\n",
          line, what, (unsigned long long)e->request_id, s->prompt, s->choices, s->output, e->finish,
          yn_status_name(e->status), e->completion_tokens, (int)s->text_len[0], s->text[0]);
  _Exit(1);
}
#define WHOLE(x) do { if (!(x)) bad(s, e, #x, __LINE__); } while (0)

/* A request of a random kind in a free slot. */
static void fill(slot *s, yn_request *r, uint64_t *rng) {
  static const yn_bytes stops[2] = {{(const uint8_t *)"e", 1}, {(const uint8_t *)"qu", 2}};
  static const uint32_t stop_ids[1] = {'z'}, unknown[1] = {0x7fffffff};
  static const uint32_t outputs[] = {YN_OUT_TEXT, YN_OUT_TOKENS, YN_OUT_TEXT | YN_OUT_TOKENS, YN_OUT_TEXT | YN_OUT_TOKENS,
                                     YN_OUT_TEXT | YN_OUT_TOKENS | YN_OUT_FINAL_ONLY};
  uint32_t kind = draw(rng, 100);
  s->prompt = draw(rng, PROMPTS);
  s->choices = draw(rng, 5) == 0 ? 1 + draw(rng, CHOICES) : 1;
  s->output = outputs[draw(rng, 5)];
  s->max_tokens = 1 + draw(rng, MOST_TOKENS);
  s->n_logprobs = s->timeout_ms = 0;
  s->stops = s->wrong = s->cancelled = 0;
  s->greedy = 1;
  memset(s->n, 0, sizeof s->n);
  memset(s->text_len, 0, sizeof s->text_len);
  memset(s->finished, 0, sizeof s->finished);
  EXPECT(yn_request_init(engine, r, sizeof *r), YN_OK, NULL);
  r->prompt_text = bytes(references[s->prompt].prompt);
  r->temperature = 0;
  if (kind < 10) {
    s->output |= YN_OUT_TOKENS | YN_OUT_LOGPROBS;
    r->n_logprobs = s->n_logprobs = draw(rng, 6);
  } else if (kind < 25) {
    s->stops = 1;
    r->stop_texts = stops;
    r->n_stop_texts = 1 + draw(rng, 2);
  } else if (kind < 30) {
    s->stops = 1;
    r->stop_tokens = stop_ids;
    r->n_stop_tokens = 1;
  } else if (kind < 40) {
    r->timeout_ms = s->timeout_ms = 1 + draw(rng, 60);
  } else if (kind < 50) {
    r->timeout_ms = 3600000;
  } else if (kind < 52) {
    memset(&r->prompt_text, 0, sizeof r->prompt_text);
    r->prompt_tokens = unknown;
    r->n_prompt_tokens = 1;
    s->wrong = 1;
  } else if (kind < 62) {
    s->greedy = 0;
    r->temperature = 0.9f;
    r->top_p = 0.9f;
    r->top_k = 20;
    r->seed = draw(rng, 1000);
    r->flags |= YN_REQ_SEEDED;
  } else if (kind < 68) {
    s->greedy = 0;
    r->repetition_penalty = 1.1f;
    r->presence_penalty = 0.5f;
    r->extra_json = bytes("{\"logit_bias\": {\"97\": 1.5, \"101\": -100}}");
  } else if (kind < 74) {
    r->cache_salt = bytes(kind % 2 ? "tenant a" : "tenant b");
  }
  if (draw(rng, 4) != 0) r->flags |= YN_REQ_IGNORE_EOS;
  r->n = s->choices;
  r->output = s->output;
  r->max_tokens = s->max_tokens;
}

static void start(slot *s, yn_queue q, uint64_t *rng) {
  yn_request r;
  yn_request_id id;
  fill(s, &r, rng);
  s->generation++;
  r.user_data = (uint64_t)s->generation << 32 | (uint64_t)(s - slots);
  r.queue = q;
  id = submit(engine, &r);
  count(&submitted);
  pthread_mutex_lock(&ids_lock);
  s->id = id;
  s->live = 1;
  pthread_mutex_unlock(&ids_lock);
}

/* The tokens are those the model gives alone, and the text is what they say. */
static void check_choice(const slot *s, const yn_event *e, uint32_t choice) {
  const reference *ref = &references[s->prompt];
  uint32_t i, n = s->n[choice];
  size_t len = 0;
  WHOLE(n <= s->max_tokens);
  if (s->greedy || is_mock)
    for (i = 0; i < n && i < ref->n[choice]; i++) WHOLE(s->tokens[choice][i] == ref->tokens[choice][i]);
  if (!is_mock || (s->output & 3) != 3 || e->finish == YN_FINISH_OVERRUN) return;
  /* A token of the mock model is a byte, but for its end. */
  for (i = 0; i < n; i++) {
    if (s->tokens[choice][i] > 255) continue;
    if (len == s->text_len[choice]) break;
    WHOLE((unsigned char)s->text[choice][len] == s->tokens[choice][i]);
    len++;
  }
  WHOLE(len == s->text_len[choice]);
  WHOLE(i == n || s->stops);
}

static void on_done(slot *s, const yn_event *e) {
  uint32_t i, total = 0;
  WHOLE(e->finish >= YN_FINISH_EOS && e->finish <= YN_FINISH_ERROR);
  WHOLE((e->status == YN_OK) == (e->finish != YN_FINISH_ERROR));
  WHOLE((e->finish == YN_FINISH_ERROR) == s->wrong || (s->wrong && s->cancelled));
  WHOLE(!s->wrong || e->status == YN_E_INVALID || s->cancelled);
  WHOLE(e->finish != YN_FINISH_CANCELLED || s->cancelled);
  WHOLE(e->finish != YN_FINISH_DEADLINE || s->timeout_ms);
  WHOLE(e->finish != YN_FINISH_STOP || s->stops);
  WHOLE(e->finish != YN_FINISH_LENGTH || s->choices > 1 || e->completion_tokens == s->max_tokens);
  WHOLE(e->t_event_ns >= e->t_submit_ns && (e->t_first_ns != 0) == (e->completion_tokens != 0));
  for (i = 0; i < s->choices; i++) {
    WHOLE(s->choices == 1 || s->finished[i]);
    check_choice(s, e, i);
    total += s->n[i];
  }
  if (s->output & YN_OUT_TOKENS) WHOLE(total == e->completion_tokens || e->finish == YN_FINISH_OVERRUN);
  count(&finishes[e->finish]);
  pthread_mutex_lock(&ids_lock);
  s->live = 0;
  s->id = 0;
  pthread_mutex_unlock(&ids_lock);
}

static void on_output(slot *s, const yn_event *e) {
  const char *text = (const char *)e + e->text_off;
  const uint32_t *tokens = (const uint32_t *)(const void *)((const char *)e + e->tokens_off);
  const yn_logprob *l = (const yn_logprob *)(const void *)((const char *)e + e->logprobs_off);
  uint32_t c = e->choice, i, per = 1 + s->n_logprobs;
  WHOLE(c < s->choices && !s->finished[c]);
  WHOLE(e->text_off + (size_t)e->text_len <= e->size && whole_utf8((const unsigned char *)text, e->text_len) == e->text_len);
  WHOLE(e->tokens_off + 4 * (size_t)e->n_tokens <= e->size && s->n[c] + e->n_tokens <= MOST_TOKENS);
  WHOLE(s->text_len[c] + e->text_len <= sizeof s->text[c]);
  WHOLE((s->output & YN_OUT_TEXT) || e->text_len == 0);
  WHOLE(e->n_logprobs == (s->output & YN_OUT_LOGPROBS ? per * e->n_tokens : 0));
  WHOLE(e->logprobs_off + sizeof *l * (size_t)e->n_logprobs <= e->size);
  for (i = 0; i < e->n_logprobs; i++) WHOLE(l[i].text_end <= e->text_len && l[i].rank >= 1 && l[i].logprob <= 0);
  for (i = 0; i < e->n_tokens && e->n_logprobs > 0; i++) WHOLE(l[i * per].token == tokens[i]);
  memcpy(s->text[c] + s->text_len[c], text, e->text_len);
  memcpy(s->tokens[c] + s->n[c], tokens, 4 * (size_t)e->n_tokens);
  s->text_len[c] += e->text_len;
  s->n[c] += e->n_tokens;
  if (e->finish != YN_FINISH_NONE) {
    WHOLE(s->choices > 1);
    s->finished[c] = 1;
  }
}

/* How many requests ended in these records; each begins anew in `again`, unless that is NULL or the test ends. */
static unsigned take(const void *buffer, size_t used, const yn_queue *again, uint64_t *rng) {
  unsigned ended = 0;
  size_t at;
  for (at = 0; at < used;) {
    const yn_event *e = (const yn_event *)(const void *)((const char *)buffer + at);
    slot *s = &slots[(uint32_t)e->user_data % SLOTS];
    at += e->size;
    if (e->kind == YN_EV_ENGINE) continue;
    WHOLE(e->kind == YN_EV_OUTPUT || e->kind == YN_EV_DONE);
    /* Nothing follows a DONE. */
    WHOLE(s->live && e->user_data >> 32 == s->generation && e->request_id == s->id);
    if (e->kind == YN_EV_OUTPUT) {
      on_output(s, e);
      continue;
    }
    on_done(s, e);
    ended++;
    if (again != NULL && !stop) {
      start(s, *again, rng);
      ended--;
    }
  }
  return ended;
}

/* Reads half of its slots from the engine's own queue and half from one of its own, both when epoll says so. */
static void *fast_reader(void *arg) {
  static uint64_t buffer[2048];
  uint64_t rng = 1;
  yn_queue q[2] = {{0}, {0}};
  int ep = epoll_create1(EPOLL_CLOEXEC), i;
  int32_t fd[2] = {-1, -1};
  unsigned live = FAST;
  (void)arg;
  CHECK(ep >= 0);
  EXPECT(yn_queue_create(&q[1], NULL), YN_OK, NULL);
  EXPECT(yn_engine_fd(engine, &fd[0]), YN_OK, NULL);
  EXPECT(yn_queue_fd(q[1], &fd[1]), YN_OK, NULL);
  for (i = 0; i < 2; i++) {
    struct epoll_event ev;
    memset(&ev, 0, sizeof ev);
    ev.events = EPOLLIN;
    ev.data.u32 = (uint32_t)i;
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd[i], &ev) == 0);
  }
  for (i = 0; i < FAST; i++) start(&slots[i], q[i % 2], &rng);
  while (live > 0) {
    struct epoll_event ev[2];
    int n = epoll_wait(ep, ev, 2, PATIENCE_MS);
    CHECK(n > 0 || (n < 0 && errno == EINTR));
    while (n-- > 0) {
      size_t used = 0;
      uint32_t from = ev[n].data.u32;
      yn_status s = from == 0 ? yn_engine_poll(engine, buffer, sizeof buffer, 0, &used)
                              : yn_queue_poll(q[1], buffer, sizeof buffer, 0, &used);
      CHECK(s == YN_OK && used > 0);
      live -= take(buffer, used, &q[from], &rng);
    }
  }
  for (i = 0; i < 2; i++) close(fd[i]);
  close(ep);
  EXPECT(yn_queue_free(q[1]), YN_OK, NULL);
  return NULL;
}

static void *slow_reader(void *arg) {
  static uint64_t buffer[512];
  uint64_t rng = 2;
  yn_queue q = {0};
  unsigned live = SLOW, i;
  (void)arg;
  EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
  for (i = 0; i < SLOW; i++) start(&slots[FAST + i], q, &rng);
  while (live > 0) {
    size_t used = 0;
    if (!stop) sleep_us(1000 * (long)draw(&rng, 900));
    while (live > 0 && yn_queue_poll(q, buffer, sizeof buffer, stop ? PATIENCE_MS : 0, &used) == YN_OK)
      live -= take(buffer, used, &q, &rng);
  }
  EXPECT(yn_queue_free(q), YN_OK, NULL);
  return NULL;
}

/* Frees queues with live requests and records in them. Every other one is read to its end, the others never again. */
static void *queue_freer(void *arg) {
  static uint64_t buffer[1024];
  uint64_t rng = 3;
  unsigned round;
  (void)arg;
  for (round = 0; !stop; round++) {
    yn_queue q = {0};
    /* The library keeps what is unread in the last 256. */
    unsigned i, unread = round % 2, live = unread ? 5 : FREED;
    size_t used = 0;
    yn_status s;
    EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
    for (i = 0; i < live; i++) start(&slots[FAST + SLOW + i], q, &rng);
    sleep_us(1000 * (long)draw(&rng, 300));
    if (draw(&rng, 2) && yn_queue_poll(q, buffer, sizeof buffer, 0, &used) == YN_OK) live -= take(buffer, used, NULL, &rng);
    for (i = 0; i < FREED; i++) slots[FAST + SLOW + i].cancelled = 1;
    EXPECT(yn_queue_free(q), YN_OK, NULL);
    count(&freed_queues);
    if (!unread) {
      while ((s = yn_queue_poll(q, buffer, sizeof buffer, PATIENCE_MS, &used)) == YN_OK) live -= take(buffer, used, NULL, &rng);
      CHECK(s == YN_E_SHUTDOWN && live == 0);
    } else {
      count(&unread_queues);
    }
  }
  return NULL;
}

static void cancel(slot *s) {
  yn_request_id id;
  pthread_mutex_lock(&ids_lock);
  id = s->live ? s->id : 0;
  if (id != 0) s->cancelled = 1;
  pthread_mutex_unlock(&ids_lock);
  if (id != 0) EXPECT(yn_engine_cancel(engine, id), YN_OK, NULL);
}

static void *canceller(void *arg) {
  uint64_t rng = 4;
  unsigned i;
  (void)arg;
  while (!stop) {
    cancel(&slots[draw(&rng, SLOTS)]);
    sleep_us(500 + draw(&rng, 1500));
  }
  for (i = 0; i < SLOTS; i++) cancel(&slots[i]);
  return NULL;
}

/* Engines that come and go: idle, busy, unread, still loading. */
static void *engine_cycles(void *arg) {
  static uint64_t buffer[512];
  uint64_t rng = 5;
  (void)arg;
  while (!stop) {
    uint32_t kind = draw(&rng, 4), i, requests = draw(&rng, 20);
    yn_engine e = create(kind == 3 ? "{\"model\": \"mock:words,load_ms=50\", \"async_load\": true}"
                         : draw(&rng, 8) == 0 ? config : "{\"model\": \"mock:words,delay_us=200\"}");
    size_t used = 0;
    yn_status s = YN_OK;
    for (i = 0; i < requests; i++) {
      yn_request r = request_of(e, "come and go", 1 + draw(&rng, 200), i);
      submit(e, &r);
    }
    if (kind == 0) EXPECT(yn_engine_drain(e, PATIENCE_MS), YN_OK, NULL);
    if (kind == 1) sleep_us((long)draw(&rng, 20000));
    EXPECT(yn_engine_free(e), YN_OK, NULL);
    for (i = 0; kind != 2 && s != YN_E_SHUTDOWN;) {
      size_t at;
      s = yn_engine_poll(e, buffer, sizeof buffer, PATIENCE_MS, &used);
      CHECK(s == YN_OK || s == YN_E_SHUTDOWN);
      for (at = 0; at < used; at += ((yn_event *)(void *)((char *)buffer + at))->size)
        i += ((yn_event *)(void *)((char *)buffer + at))->kind == YN_EV_DONE;
      CHECK(s == YN_OK || i == requests);
    }
    count(&cycles);
    sleep_us(20000);
  }
  return NULL;
}

static void make_references(void) {
  static uint64_t buffer[8192];
  unsigned p;
  for (p = 0; p < PROMPTS; p++) {
    reference *ref = &references[p];
    yn_request r;
    int done = 0;
    /* Prompts share beginnings of several lengths. */
    memset(ref->prompt, "onceuponatime"[p % 3], (size_t)(20 + 90 * (p % 4)));
    snprintf(ref->prompt + 20 + 90 * (p % 4), 20, " tale %u", p);
    r = request_of(engine, ref->prompt, MOST_TOKENS, p);
    r.temperature = 0;
    r.n = CHOICES;
    submit(engine, &r);
    while (!done) {
      size_t used = 0, at;
      EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, PATIENCE_MS, &used), YN_OK, NULL);
      for (at = 0; at < used; at += ((yn_event *)(void *)((char *)buffer + at))->size) {
        const yn_event *e = (const yn_event *)(const void *)((const char *)buffer + at);
        if (e->kind == YN_EV_OUTPUT) {
          memcpy(ref->tokens[e->choice] + ref->n[e->choice], (const char *)e + e->tokens_off, 4 * (size_t)e->n_tokens);
          ref->n[e->choice] += e->n_tokens;
        }
        done |= e->kind == YN_EV_DONE;
      }
    }
    CHECK(ref->n[0] == MOST_TOKENS && ref->n[CHOICES - 1] == MOST_TOKENS);
  }
}

/* What the process holds. */
static double rss_mb(void) {
  long size = 0, resident = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  CHECK(f != NULL && fscanf(f, "%ld %ld", &size, &resident) == 2);
  fclose(f);
  return (double)resident * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

/* A metric by its name; of those with further labels the first. */
static double metric(const char *name) {
  yn_buf text = {0};
  char line[128];
  const char *at;
  double value;
  EXPECT(yn_engine_metrics(engine, &text), YN_OK, NULL);
  snprintf(line, sizeof line, "\n%s{", name);
  at = strstr((const char *)text.data, line);
  CHECK(at != NULL && (at = strchr(at, '}')) != NULL);
  value = strtod(at + 1, NULL);
  yn_buf_free(&text);
  return value;
}

/* Prints a line per interval; the least resident megabytes of the second quarter and of the last one. */
static void watch(double seconds, double *early, double *late) {
  double from = now_s(), interval = seconds / 20 < 1 ? seconds / 20 : seconds / 20 > 30 ? 30 : seconds / 20, at;
  *early = *late = 1e9;
  while ((at = now_s() - from) < seconds) {
    double rss = rss_mb();
    printf("%7.1f s: %5.0f running, %5.0f waiting, %4.1f%% of blocks, %9llu submitted, %5llu engines, %6.1f MB, %d threads, "
           "%d fds\n", at, metric("vllm:num_requests_running"), metric("vllm:num_requests_waiting"),
           100 * metric("vllm:kv_cache_usage_perc"), (unsigned long long)submitted, (unsigned long long)cycles, rss,
           entries("/proc/self/task") - 2, entries("/proc/self/fd") - 3);
    fflush(stdout);
    if (at > seconds / 4 && at <= seconds / 2 && rss < *early) *early = rss;
    if (at > seconds * 3 / 4 && rss < *late) *late = rss;
    sleep_us((long)(interval * 1e6));
  }
  CHECK(*early < 1e9 && *late < 1e9);
}

static void nothing_is_left(int fds) {
  double end = now_s() + 10;
  EXPECT(yn_engine_drain(engine, PATIENCE_MS), YN_OK, NULL);
  check_idle(engine);
  CHECK(metric("vllm:num_requests_running") == 0 && metric("vllm:num_requests_waiting") == 0);
  CHECK(metric("vllm:kv_cache_usage_perc") == 0);
  CHECK(metric("yinian:requests_finished_total") == (double)(submitted + PROMPTS));
  CHECK(metric("yinian:requests_rejected_total") == 0);
  printf("ends: %llu eos, %llu stop, %llu length, %llu cancelled, %llu deadline, %llu overrun, %llu error; %.0f preemptions, "
         "%llu queues freed with requests, %llu of them never read\n",
         (unsigned long long)finishes[1], (unsigned long long)finishes[2], (unsigned long long)finishes[3],
         (unsigned long long)finishes[4], (unsigned long long)finishes[5], (unsigned long long)finishes[6],
         (unsigned long long)finishes[7], metric("vllm:num_preemptions_total"), (unsigned long long)freed_queues,
         (unsigned long long)unread_queues);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  while (entries("/proc/self/task") != 3) CHECK(now_s() < end);
  CHECK(entries("/proc/self/fd") == fds);
}

int main(int argc, char **argv) {
  static void *(*const bodies[])(void *) = {fast_reader, slow_reader, queue_freer, canceller, engine_cycles};
  pthread_t threads[5];
  double seconds, early, late;
  int fds = entries("/proc/self/fd");
  unsigned i;
  CHECK(argc == 3 || argc == 4);
  /* What is freed goes back at once, so that resident memory says what is held. */
  (void)(mallopt(M_ARENA_MAX, 2) && mallopt(M_MMAP_THRESHOLD, 128 << 10) && mallopt(M_TRIM_THRESHOLD, 0));
  model = argv[1];
  seconds = strtod(argv[2], NULL);
  is_mock = strncmp(model, "mock:", 5) == 0;
  CHECK(seconds >= 1 && (slots = (slot *)calloc(SLOTS, sizeof *slots)) != NULL);
  snprintf(config, sizeof config,
           "{\"model\": \"%s\", \"max_num_seqs\": 64, \"max_unread_bytes\": 4096, \"kv_cache_bytes\": %s%s%s%s}", model,
           is_mock ? "4096" : "12000000", argc == 4 ? ", \"cpu_features\": \"" : "", argc == 4 ? argv[3] : "",
           argc == 4 ? "\"" : "");
  engine = create(config);
  make_references();
  for (i = 0; i < 5; i++) CHECK(pthread_create(&threads[i], NULL, bodies[i], NULL) == 0);
  watch(seconds, &early, &late);
  stop = 1;
  for (i = 0; i < 5; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  nothing_is_left(fds);
  printf("resident: %.1f MB early, %.1f MB late\n", early, late);
  CHECK(late < early + SLACK_MB);
  for (i = 1; i <= YN_FINISH_ERROR; i++) CHECK(!is_mock || finishes[i] > 0);
  free(slots);
  return 0;
}
