/* A host that loads the library at run time, closes it under running threads, and ends in every way there is.
   usage: loader LIBRARY ENDING; it is not linked with the library. What it prints last says how far it came. */
#include "yinian.h"
#include <dlfcn.h>

#define EACH(do)                                                                                              \
  do(yn_engine_create) do(yn_engine_submit) do(yn_engine_poll) do(yn_engine_free) do(yn_engine_stats)         \
  do(yn_engine_drain) do(yn_engine_metrics) do(yn_engine_cancel) do(yn_request_init) do(yn_status_name)       \
  do(yn_tokenize) do(yn_engine_tokenizer) do(yn_buf_free)
#define POINTER(f) static __typeof__(f) *p_##f;
EACH(POINTER)
#define yn_engine_create p_yn_engine_create
#define yn_engine_submit p_yn_engine_submit
#define yn_engine_poll p_yn_engine_poll
#define yn_engine_free p_yn_engine_free
#define yn_engine_stats p_yn_engine_stats
#define yn_engine_drain p_yn_engine_drain
#define yn_engine_metrics p_yn_engine_metrics
#define yn_engine_cancel p_yn_engine_cancel
#define yn_request_init p_yn_request_init
#define yn_status_name p_yn_status_name
#define yn_tokenize p_yn_tokenize
#define yn_engine_tokenizer p_yn_engine_tokenizer
#define yn_buf_free p_yn_buf_free
#include "check.h"
#include <sys/wait.h>
#include <unistd.h>

static const char *path;
static yn_engine engine;
static pid_t parent;

static void *resolved(void *library, const char *name) {
  void *f = dlsym(library, name);
  if (f == NULL) fprintf(stderr, "%s: %s\n", name, dlerror());
  CHECK(f != NULL);
  return f;
}

static void *load(void) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fprintf(stderr, "%s\n", dlerror());
  CHECK(library != NULL);
#define RESOLVE(f) *(void **)(void *)&p_##f = resolved(library, names[i++]);
  {
    static const char *const names[] = {
        "yn_engine_create", "yn_engine_submit", "yn_engine_poll",  "yn_engine_free",      "yn_engine_stats",
        "yn_engine_drain",  "yn_engine_metrics", "yn_engine_cancel", "yn_request_init",   "yn_status_name",
        "yn_tokenize",      "yn_engine_tokenizer", "yn_buf_free"};
    size_t i = 0;
    EACH(RESOLVE)
  }
  return library;
}

static void say(const char *what) {
  CHECK(write(STDOUT_FILENO, what, strlen(what)) > 0 && write(STDOUT_FILENO, "\n", 1) == 1);
}

/* Requests that take longer than the process lives. */
static void long_requests(unsigned n) {
  unsigned i;
  for (i = 0; i < n; i++) {
    yn_request r = request_of(engine, "to be continued", 100000, i);
    r.output = YN_OUT_TEXT;
    submit(engine, &r);
  }
}

static void *poller(void *arg) {
  uint64_t buffer[512];
  size_t used;
  (void)arg;
  for (;;) (void)yn_engine_poll(engine, buffer, sizeof buffer, -1, &used);
  return NULL;
}

static void *submitter(void *arg) {
  yn_request r = request_of(engine, "more", 50, 0);
  for (;;) {
    (void)yn_engine_submit(engine, &r, NULL, NULL);
    sleep_us(500);
  }
  return arg;
}

static void traffic(void) {
  pthread_t threads[3];
  (void)load();
  engine = create("{\"model\": \"mock:words,delay_us=300\", \"max_model_len\": 200000}");
  long_requests(30);
  CHECK(pthread_create(&threads[0], NULL, poller, NULL) == 0 && pthread_create(&threads[1], NULL, poller, NULL) == 0);
  CHECK(pthread_create(&threads[2], NULL, submitter, NULL) == 0);
  sleep_us(20000);
}

/* dlclose while threads of the library and of the host run inside it. */
static void *uses_and_closes(void *library) {
  yn_stats s = stats_of(engine);
  CHECK(s.state == YN_STATE_READY && dlclose(library) == 0);
  /* What the library keeps for this thread is dropped when it ends, after dlclose. */
  return NULL;
}

static void closed_while_it_runs(void) {
  enum { N = 40 };
  void *library = load(), *again;
  void *submit_at = resolved(library, "yn_engine_submit");
  pthread_t thread;
  unsigned i;
  tally t;
  engine = create("{\"model\": \"mock:words,delay_us=300\"}");
  tally_init(&t, N, 1);
  for (i = 0; i < N; i++) {
    yn_request r = request_of(engine, "after all", 200, i);
    submit(engine, &r);
  }
  CHECK(pthread_create(&thread, NULL, uses_and_closes, library) == 0 && pthread_join(thread, NULL) == 0);
  read_until(engine, &t, N);
  for (i = 0; i < N; i++) CHECK(t.all[i].finish == YN_FINISH_LENGTH && t.all[i].completion == 200);
  /* It is the same library with the same handles. */
  again = load();
  CHECK(resolved(again, "yn_engine_submit") == submit_at);
  check_idle(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  CHECK(dlclose(again) == 0);
  tally_free(&t);
  say("closed");
}

/* Nothing holds the library any more, and it stays. */
static void *loads_and_closes(void *arg) {
  void *library = load();
  engine = create("{\"model\": \"mock:words\"}");
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  CHECK(dlclose(library) == 0);
  return arg;
}

static void stays(void) {
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, loads_and_closes, NULL) == 0 && pthread_join(thread, NULL) == 0);
  /* The loader unloads at the next dlclose what threads held until they ended. */
  CHECK(dlclose(dlopen(path, RTLD_NOW)) == 0);
  CHECK(dlopen(path, RTLD_NOW | RTLD_NOLOAD) != NULL);
  EXPECT(yn_engine_free(engine), YN_E_BAD_HANDLE, NULL);
  say("stays");
}

static void opened_and_closed_in_turns(void) {
  int fds = 0, tasks = 0, round;
  for (round = 0; round < 30; round++) {
    void *library = load();
    double end = now_s() + 10;
    tally t;
    yn_request r;
    engine = create("{\"model\": \"mock:words\"}");
    r = request_of(engine, "again", 10, 0);
    tally_init(&t, 1, 1);
    submit(engine, &r);
    read_until(engine, &t, 1);
    tally_free(&t);
    EXPECT(yn_engine_free(engine), YN_OK, NULL);
    CHECK(dlclose(library) == 0);
    if (round == 0) fds = entries("/proc/self/fd"), tasks = entries("/proc/self/task");
    while (entries("/proc/self/task") != tasks) CHECK(now_s() < end);
    CHECK(entries("/proc/self/fd") == fds);
  }
  say("turns");
}

/* Frees the engine in a handler of exit: what is unread can be read there, too. */
static void freed_at_exit(void) {
  static uint64_t buffer[512];
  size_t used = 0, at, done = 0;
  yn_status s;
  if (engine.id == 0) return;
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  while ((s = yn_engine_poll(engine, buffer, sizeof buffer, PATIENCE_MS, &used)) == YN_OK)
    for (at = 0; at < used; at += ((yn_event *)(void *)((char *)buffer + at))->size)
      done += ((yn_event *)(void *)((char *)buffer + at))->kind == YN_EV_DONE;
  CHECK(s == YN_E_SHUTDOWN && done == 30);
  say("freed");
}

/* In a handler of exit everything still works. */
static void used_at_exit(void) {
  yn_tokenizer t = {0};
  yn_engine late;
  yn_buf text = {0};
  yn_request r;
  tally seen;
  size_t n = 0;
  CHECK(stats_of(engine).state == YN_STATE_READY);
  EXPECT(yn_engine_metrics(engine, &text), YN_OK, NULL);
  yn_buf_free(&text);
  late = create("{\"model\": \"mock:words\"}");
  EXPECT(yn_engine_tokenizer(late, &t), YN_OK, NULL);
  EXPECT(yn_tokenize(t, bytes("late"), 0, NULL, &n, NULL), YN_E_TOO_SMALL, NULL);
  r = request_of(late, "late", 10, 0);
  tally_init(&seen, 1, 1);
  submit(late, &r);
  read_until(late, &seen, 1);
  tally_free(&seen);
  EXPECT(yn_engine_free(late), YN_OK, NULL);
  say("used");
}

static int in_destructor;
__attribute__((destructor)) static void destructor(void) {
  if (!in_destructor) return;
  EXPECT(yn_engine_drain(engine, 0), YN_E_TIMEOUT, NULL);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  say("destroyed");
}

static void *exits(void *arg) {
  (void)arg;
  sleep_us(5000);
  exit(0);
}

static void *returns_later(void *arg) {
  (void)arg;
  sleep_us(30000);
  CHECK(stats_of(engine).state == YN_STATE_READY);
  say("outlived main");
  exit(0);
}

/* A child that ends as processes do, handlers included; the parent goes on. */
static void child_at_exit(void) {
  if (getpid() != parent && yn_engine_free(engine) != YN_E_FORKED) _Exit(9);
}

static void forked(void) {
  unsigned i;
  CHECK(atexit(child_at_exit) == 0);
  for (i = 0; i < 20; i++) {
    int status = -1;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      alarm(30);
      exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  }
  CHECK(stats_of(engine).state == YN_STATE_READY);
  say("forked");
}

int main(int argc, char **argv) {
  pthread_t thread;
  const char *ending;
  CHECK(argc == 3);
  path = argv[1];
  ending = argv[2];
  parent = getpid();
#define ENDING(name) (strcmp(ending, name) == 0)
  if (ENDING("close")) return stays(), closed_while_it_runs(), opened_and_closed_in_turns(), 0;
  /* Registered before the library is loaded: runs after whatever it may register itself. */
  if (ENDING("early handler")) CHECK(atexit(freed_at_exit) == 0);
  if (ENDING("early handler") || ENDING("late handler")) {
    (void)load();
    engine = create("{\"model\": \"mock:words,delay_us=300\", \"max_model_len\": 200000}");
    long_requests(30);
    if (ENDING("late handler")) CHECK(atexit(freed_at_exit) == 0);
    return 0;
  }
  traffic();
  if (ENDING("return")) return say("returned"), 0;
  if (ENDING("exit")) say("exited"), exit(0);
  if (ENDING("_exit")) say("exited"), _exit(0);
  if (ENDING("used")) return atexit(used_at_exit);
  if (ENDING("destructor")) return in_destructor = 1, 0;
  if (ENDING("fork")) return forked(), 0;
  if (ENDING("thread")) {
    CHECK(pthread_create(&thread, NULL, exits, NULL) == 0);
    say("exited");
    for (;;) sleep_us(1000000);
  }
  if (ENDING("main ends")) {
    CHECK(pthread_create(&thread, NULL, returns_later, NULL) == 0);
    pthread_exit(NULL);
  }
  fprintf(stderr, "no ending %s\n", ending);
  return 1;
}
