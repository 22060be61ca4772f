/* What hosts do to a library: signals, forks, cancelled threads, no descriptors and no room left.
   usage: hazards MODEL_DIRECTORY */
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static const char *model;
static yn_engine engine;
static volatile int stop;

/* A child that hangs dies of this alarm. */
static void ended_well(pid_t pid) {
  int status = -1;
  while (waitpid(pid, &status, 0) < 0) CHECK(errno == EINTR);
  if (status != 0) fprintf(stderr, "child: status %x\n", (unsigned)status);
  CHECK(status == 0);
}

static void serves(yn_engine e, uint32_t tokens) {
  yn_request r = request_of(e, "still there", tokens, 0);
  tally t;
  tally_init(&t, 1, 1);
  submit(e, &r);
  read_until(e, &t, 1);
  CHECK(t.all[0].status == YN_OK && t.all[0].completion == tokens && t.all[0].tokens == tokens);
  tally_free(&t);
}

/* Before its first object a process may fork as it likes: parent and child each make their own. */
/* The crash handler of a host that wants to see where a thread of the library has faulted. */
static void on_fault(int s) {
  char name[32] = {0};
  int fd = open("/proc/thread-self/comm", O_RDONLY);
  _exit(s == SIGSEGV && fd >= 0 && read(fd, name, 31) > 0 && strncmp(name, "yn-", 3) == 0 ? 0 : 98);
}

static void faults(void *user, uint32_t level, yn_bytes target, yn_bytes message) {
  (void)user, (void)level, (void)message;
  if (target.len == 13 && memcmp(target.data, "yinian::panic", 13) == 0) raise(SIGSEGV);
}

static void crash_handler(void) {
  pid_t pid = fork();
  if (pid == 0) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_fault;
    alarm(30);
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    EXPECT(yn_log_to_callback((yn_log_fn)faults, NULL, 5), YN_OK, NULL);
    serves(create("{\"model\": \"mock:words,panic_step=1\"}"), 50);
    _exit(97);
  }
  ended_well(pid);
}

static void fork_before_first_use(void) {
  pid_t pid;
  CHECK(yn_version() != 0);
  pid = fork();
  if (pid == 0) alarm(30);
  engine = create("{\"model\": \"mock:words\"}");
  serves(engine, 20);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  if (pid == 0) _exit(0);
  ended_well(pid);
}

/* Forks while other threads submit and poll. */

enum { BUSY_THREADS = 3, EACH = 200, PER_FORK = 12 };
static tally busy;
static volatile size_t forks;

static void *busy_submitter(void *arg) {
  size_t first = (size_t)arg, i;
  for (i = first; i < BUSY_THREADS * EACH; i += BUSY_THREADS) {
    yn_request r = request_of(engine, "in between", 1 + i % 50, i);
    submit(engine, &r);
    /* So that there is traffic until the last fork. */
    while (i > PER_FORK * (forks + 1)) sleep_us(100);
  }
  return NULL;
}

static void *busy_poller(void *arg) {
  (void)arg;
  read_until(engine, &busy, BUSY_THREADS * EACH);
  return NULL;
}

static int exits_normally;
static pid_t parent;

static void at_exit(void) {
  if (!exits_normally || getpid() == parent) return;
  if (yn_engine_free(engine) != YN_E_FORKED) _exit(99);
}

static void forked_child(int round, const yn_request *r) {
  static uint64_t buffer[512];
  yn_engine other;
  yn_error e;
  size_t used;
  alarm(30);
  if (yn_engine_submit(engine, r, NULL, &e) != YN_E_FORKED || strstr(e.message, "fork") == NULL) _exit(2);
  if (yn_engine_poll(engine, buffer, sizeof buffer, -1, &used) != YN_E_FORKED) _exit(3);
  if (yn_engine_create(bytes("{\"model\": \"mock:words\"}"), &other, &e) != YN_E_FORKED) _exit(4);
  if (round % 4 == 0) {
    /* The child's child. */
    pid_t pid = fork();
    if (pid == 0) _exit(yn_engine_cancel(engine, 1) == YN_E_FORKED ? 0 : 5);
    ended_well(pid);
  }
  exits_normally = 1;
  if (round % 2 == 0) exit(0);
  /* What a subprocess call does. */
  execl("/bin/true", "true", (char *)NULL);
  _exit(6);
}

static void forks_under_traffic(void) {
  pthread_t threads[BUSY_THREADS + 1];
  yn_request r;
  size_t i;
  engine = create("{\"model\": \"mock:words,delay_us=100\"}");
  r = request_of(engine, "child", 5, 0);
  tally_init(&busy, BUSY_THREADS * EACH, 1);
  fflush(NULL);
  for (i = 0; i < BUSY_THREADS; i++) CHECK(pthread_create(&threads[i], NULL, busy_submitter, (void *)i) == 0);
  CHECK(pthread_create(&threads[i], NULL, busy_poller, NULL) == 0);
  for (;;) {
    int over;
    pid_t pid;
    char *args[] = {(char *)"true", NULL};
    pthread_mutex_lock(&busy.lock);
    over = busy.done == busy.n;
    pthread_mutex_unlock(&busy.lock);
    if (over) break;
    pid = fork();
    if (pid == 0) forked_child((int)forks, &r);
    CHECK(pid > 0);
    ended_well(pid);
    CHECK(posix_spawn(&pid, "/bin/true", NULL, NULL, args, environ) == 0);
    ended_well(pid);
    forks++;
  }
  for (i = 0; i <= BUSY_THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (i = 0; i < busy.n; i++) {
    const outcome *o = &busy.all[i];
    CHECK(o->finish == YN_FINISH_LENGTH && o->completion == 1 + i % 50 && o->tokens == o->completion);
  }
  check_idle(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  tally_free(&busy);
  CHECK(forks >= BUSY_THREADS * EACH / PER_FORK - 2);
  printf("%lu forks under traffic\n", (unsigned long)forks);
}

/* Signals of hosts never run on a thread of the library, but a fault there reaches the host's crash handler. */
static void blocked_signals(void) {
  /* All but those nobody can block, the two the C library keeps to itself, the one valgrind does, and faults. */
  static const int open[] = {SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
  unsigned long long all = ~0ull & ~(3ull << 31) & ~(1ull << 63);
  char config[1024];
  yn_engine e;
  sigset_t before, after;
  size_t i;
  int seen, s;
  for (i = 0; i < sizeof open / sizeof *open; i++) all &= ~(1ull << (open[i] - 1));
  snprintf(config, sizeof config, "{\"model\": \"%s\", \"threads\": 3}", model);
  CHECK(pthread_sigmask(SIG_SETMASK, NULL, &before) == 0);
  e = create(config);
  serves(e, 3);
  CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
  for (s = 1; s < 64; s++) CHECK(sigismember(&before, s) == sigismember(&after, s));
  seen = threads_that_block(all);
  CHECK(seen >= 6);
  EXPECT(yn_engine_free(e), YN_OK, NULL);
  e = create("{\"model\": \"mock:words,load_ms=60000\", \"async_load\": true}");
  CHECK(threads_that_block(all) >= 1);
  EXPECT(yn_engine_free(e), YN_OK, NULL);
  printf("%d threads block all signals\n", seen);
}

/* A storm of signals without SA_RESTART on the threads that poll and wait. */

static volatile sig_atomic_t handled;
static pthread_t stormed[2];

static void on_signal(int s) {
  (void)s;
  handled++;
}

static void *storm(void *arg) {
  unsigned i = 0;
  (void)arg;
  while (!stop) {
    pthread_kill(stormed[i % 2], i % 3 == 0 ? SIGPROF : SIGURG);
    i++;
    sleep_us(150);
  }
  return NULL;
}

enum { STORM_REQUESTS = 300 };

/* Waits on the descriptor, edge triggered; polls only when told. */
static void *stormed_epoll(void *arg) {
  static uint64_t buffer[1024];
  yn_engine e = create("{\"model\": \"mock:words,delay_us=200\"}");
  struct epoll_event ev;
  int ep = epoll_create1(EPOLL_CLOEXEC);
  int32_t fd = -1;
  size_t i, used = 0;
  yn_status s;
  tally t;
  (void)arg;
  CHECK(ep >= 0);
  EXPECT(yn_engine_fd(e, &fd), YN_OK, NULL);
  memset(&ev, 0, sizeof ev);
  ev.events = EPOLLIN | EPOLLET;
  CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) == 0);
  tally_init(&t, STORM_REQUESTS, 1);
  for (i = 0; i < STORM_REQUESTS; i++) {
    yn_request r = request_of(e, "edge", 1 + i % 5, i);
    submit(e, &r);
    while (t.done <= i) {
      int n = epoll_wait(ep, &ev, 1, PATIENCE_MS);
      CHECK(n == 1 || (n < 0 && errno == EINTR));
      if (n < 0) continue;
      while ((s = yn_engine_poll(e, buffer, sizeof buffer, 0, &used)) == YN_OK) tally_records(&t, buffer, used);
      CHECK(s == YN_E_TIMEOUT);
    }
  }
  close(fd);
  close(ep);
  EXPECT(yn_engine_drain(e, -1), YN_OK, NULL);
  EXPECT(yn_engine_free(e), YN_OK, NULL);
  tally_free(&t);
  return NULL;
}

static void storm_on_polls(yn_engine e) {
  static uint64_t buffer[1024];
  size_t i, used = 0;
  tally t;
  while (yn_engine_poll(e, buffer, sizeof buffer, 0, &used) == YN_OK) {
  }
  for (i = 0; i < 5; i++) {
    double from = now_s();
    EXPECT(yn_engine_poll(e, buffer, sizeof buffer, 40, &used), YN_E_TIMEOUT, NULL);
    CHECK(now_s() - from >= 0.039 && now_s() - from < 5);
  }
  tally_init(&t, STORM_REQUESTS, 1);
  for (i = 0; i < STORM_REQUESTS; i++) {
    yn_request r = request_of(e, "storm", 1 + i % 5, i);
    submit(e, &r);
    while (t.done <= i) {
      EXPECT(yn_engine_poll(e, buffer, sizeof buffer, -1, &used), YN_OK, NULL);
      tally_records(&t, buffer, used);
    }
  }
  tally_free(&t);
}

static void signal_storm(void) {
  struct sigaction action;
  struct itimerval every = {{0, 700}, {0, 700}}, never = {{0, 0}, {0, 0}};
  pthread_t storming;
  char config[1024];
  unsigned i;
  snprintf(config, sizeof config, "{\"model\": \"%s\"}", model);
  memset(&action, 0, sizeof action);
  action.sa_handler = on_signal;
  CHECK(sigaction(SIGURG, &action, NULL) == 0 && sigaction(SIGPROF, &action, NULL) == 0);
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  stop = 0;
  stormed[0] = pthread_self();
  CHECK(pthread_create(&stormed[1], NULL, stormed_epoll, NULL) == 0);
  CHECK(pthread_create(&storming, NULL, storm, NULL) == 0);
  CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0 && setitimer(ITIMER_PROF, &every, NULL) == 0);
  engine = create("{\"model\": \"mock:words,delay_us=200\"}");
  storm_on_polls(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  for (i = 0; i < 3; i++) {
    yn_tokenizer t = {0};
    yn_error e;
    memset(&e, 0, sizeof e);
    EXPECT(yn_tokenizer_open(bytes(model), &t, &e), YN_OK, &e);
    EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
    engine = create(config);
    serves(engine, 10);
    EXPECT(yn_engine_free(engine), YN_OK, NULL);
  }
  stop = 1;
  CHECK(pthread_join(storming, NULL) == 0);
  CHECK(pthread_join(stormed[1], NULL) == 0);
  CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0 && setitimer(ITIMER_PROF, &never, NULL) == 0);
  CHECK(handled > 1000);
  printf("%d signals handled\n", (int)handled);
}

/* Threads of hosts that are cancelled take the library's locks with them to nowhere, or do they? */

static void *victim(void *arg) {
  static uint64_t buffer[BUSY_THREADS][512];
  size_t me = (size_t)arg, used = 0;
  for (;;) {
    yn_request r = request_of(engine, "victim", 3, me);
    yn_queue q = {0};
    yn_buf text = {0};
    int32_t fd = -1;
    yn_status s;
    (void)yn_engine_submit(engine, &r, NULL, NULL);
    s = yn_engine_poll(engine, buffer[me], sizeof buffer[me], 2, &used);
    CHECK(s == YN_OK || s == YN_E_TIMEOUT);
    EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
    EXPECT(yn_queue_fd(q, &fd), YN_OK, NULL);
    EXPECT(yn_queue_free(q), YN_OK, NULL);
    EXPECT(yn_engine_metrics(engine, &text), YN_OK, NULL);
    yn_buf_free(&text);
    close(fd);
  }
  return NULL;
}

static void cancelled_threads(void) {
  unsigned round;
  size_t i;
  engine = create("{\"model\": \"mock:words\"}");
  for (round = 0; round < 60; round++) {
    pthread_t threads[BUSY_THREADS];
    for (i = 0; i < BUSY_THREADS; i++) CHECK(pthread_create(&threads[i], NULL, victim, (void *)i) == 0);
    sleep_us(500 + 37 * (long)round);
    for (i = 0; i < BUSY_THREADS; i++) CHECK(pthread_cancel(threads[i]) == 0);
    for (i = 0; i < BUSY_THREADS; i++) {
      void *result = NULL;
      CHECK(pthread_join(threads[i], &result) == 0);
      CHECK(result == PTHREAD_CANCELED);
    }
  }
  EXPECT(yn_engine_drain(engine, 10000), YN_OK, NULL);
  check_idle(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
}

/* No descriptor left: typed errors, and what is there serves on. */
static void no_descriptors(void) {
  struct rlimit before, none;
  yn_engine other = {0};
  yn_queue q = {0};
  yn_error e;
  int32_t fd = -1;
  int lowest;
  engine = create("{\"model\": \"mock:words\"}");
  CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
  lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);
  CHECK(lowest >= 0 && close(lowest) == 0);
  none = before;
  none.rlim_cur = (rlim_t)lowest;
  CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
  EXPECT(yn_engine_create(bytes("{\"model\": \"mock:words\"}"), &other, &e), YN_E_IO, &e);
  CHECK(strstr(e.message, "descriptor") != NULL);
  EXPECT(yn_queue_create(&q, &e), YN_E_IO, &e);
  EXPECT(yn_engine_fd(engine, &fd), YN_E_IO, NULL);
  serves(engine, 30);
  CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
  EXPECT(yn_engine_fd(engine, &fd), YN_OK, NULL);
  close(fd);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
}

/* No room for one more stack: what needs a thread says so, and what is there serves on. */

static void *idle_thread(void *arg) {
  while (!stop) sleep_us(1000);
  return arg;
}

static void no_threads(void) {
#ifndef NO_LIMITS
  enum { MOST = 200 };
  static pthread_t idle[MOST];
  struct rlimit before, tight;
  pthread_attr_t attr;
  yn_engine other = {0};
  yn_tokenizer t = {0};
  yn_request chat;
  yn_error e;
  tally seen;
  long pages = 0;
  size_t n = 0, mb;
  FILE *f = fopen("/proc/self/statm", "r");
  engine = create("{\"model\": \"mock:words\", \"chat_template\": \"{{ messages[0].content }}\"}");
  CHECK(f != NULL && fscanf(f, "%ld", &pages) == 1 && fclose(f) == 0);
  CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  tight = before;
  tight.rlim_cur = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (3 << 20);
  /* The C library keeps stacks of threads that have ended: they are used up first. */
  stop = 0;
  CHECK(pthread_attr_init(&attr) == 0 && setrlimit(RLIMIT_AS, &tight) == 0);
  for (mb = 16; mb >= 1; mb /= 2) {
    CHECK(pthread_attr_setstacksize(&attr, mb << 20) == 0);
    while (n < MOST && pthread_create(&idle[n], &attr, idle_thread, NULL) == 0) n++;
  }
  CHECK(n < MOST);
  EXPECT(yn_engine_create(bytes("{\"model\": \"mock:words\"}"), &other, &e), YN_E_NO_MEMORY, &e);
  CHECK(strstr(e.message, "thread") != NULL);
  EXPECT(yn_tokenizer_open(bytes(model), &t, &e), YN_E_NO_MEMORY, &e);
  serves(engine, 30);
  tally_init(&seen, 1, 1);
  chat = request_of(engine, "", 5, 0);
  memset(&chat.prompt_text, 0, sizeof chat.prompt_text);
  chat.chat_json = bytes("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}");
  submit(engine, &chat);
  read_until(engine, &seen, 1);
  EXPECT(seen.all[0].status, YN_E_NO_MEMORY, NULL);
  CHECK(setrlimit(RLIMIT_AS, &before) == 0);
  stop = 1;
  while (n > 0) CHECK(pthread_join(idle[--n], NULL) == 0);
  EXPECT(yn_tokenizer_open(bytes(model), &t, &e), YN_OK, &e);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  serves(engine, 30);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  tally_free(&seen);
#endif
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  model = argv[1];
  parent = getpid();
  CHECK(atexit(at_exit) == 0);
  crash_handler();
  fork_before_first_use();
  forks_under_traffic();
  blocked_signals();
  signal_storm();
  cancelled_threads();
  no_descriptors();
  no_threads();
  return 0;
}
