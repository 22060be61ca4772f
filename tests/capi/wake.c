/* Descriptors in poll(2) and epoll, wake, timeouts, blocked signals, and what a forked child gets. */
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t buffer[1024];

static int readable(int fd, int timeout_ms) {
  struct pollfd p = {0};
  p.fd = fd;
  p.events = POLLIN;
  return poll(&p, 1, timeout_ms) == 1 && (p.revents & POLLIN) != 0;
}

static int open_fds(void) {
  DIR *d = opendir("/proc/self/fd");
  int n = 0;
  CHECK(d != NULL);
  while (readdir(d) != NULL) n++;
  closedir(d);
  return n;
}

static void descriptors(yn_engine engine) {
  int32_t a = -1, b = -1;
  tally t;
  yn_request r = request_of(engine, "wake me", 4, 0);
  size_t used = 0;
  EXPECT(yn_engine_fd(engine, &a), YN_OK, NULL);
  EXPECT(yn_engine_fd(engine, &b), YN_OK, NULL);
  CHECK(a != b && (fcntl(a, F_GETFD) & FD_CLOEXEC) && (fcntl(b, F_GETFL) & O_NONBLOCK));
  while (yn_engine_poll(engine, buffer, sizeof buffer, 0, &used) == YN_OK) {
  }
  CHECK(!readable(a, 0) && !readable(b, 0));
  tally_init(&t, 2, 1);
  submit(engine, &r);
  CHECK(readable(a, 5000) && readable(b, 5000));
  CHECK(close(b) == 0);
  read_until(engine, &t, 1);
  CHECK(!readable(a, 20));
  r.user_data = 1;
  submit(engine, &r);
  CHECK(readable(a, 5000));
  read_until(engine, &t, 2);
  CHECK(!readable(a, 0));
  CHECK(close(a) == 0);
  tally_free(&t);
}

/* A host that sleeps in epoll only, and polls when told: edge triggered, until TIMEOUT. */
static void epoll_loop(yn_engine engine) {
  enum { N = 60 };
  struct epoll_event ev;
  int ep = epoll_create1(EPOLL_CLOEXEC);
  int32_t fd = -1;
  unsigned i, rounds = 0;
  tally t;
  CHECK(ep >= 0);
  EXPECT(yn_engine_fd(engine, &fd), YN_OK, NULL);
  memset(&ev, 0, sizeof ev);
  ev.events = EPOLLIN | EPOLLET;
  CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) == 0);
  tally_init(&t, N, 1);
  for (i = 0; i < N; i++) {
    yn_request r = request_of(engine, "in a loop", 1 + i % 40, i);
    submit(engine, &r);
  }
  while (t.done < N) {
    size_t used = 0;
    CHECK(epoll_wait(ep, &ev, 1, 5000) == 1);
    while (yn_engine_poll(engine, buffer, sizeof buffer, 0, &used) == YN_OK) tally_records(&t, buffer, used);
    rounds++;
  }
  CHECK(rounds > 1);
  close(fd);
  close(ep);
  tally_free(&t);
}

static void *waker(void *arg) {
  sleep_us(20000);
  EXPECT(yn_engine_wake(*(yn_engine *)arg), YN_OK, NULL);
  return NULL;
}

static void wakes(yn_engine engine) {
  pthread_t thread;
  size_t used = 1;
  double from;
  /* The news that the engine is ready. */
  EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, 0, &used), YN_OK, NULL);
  CHECK(((yn_event *)buffer)->kind == YN_EV_ENGINE);
  from = now_s();
  EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, 30, &used), YN_E_TIMEOUT, NULL);
  CHECK(used == 0 && now_s() - from >= 0.028);
  CHECK(pthread_create(&thread, NULL, waker, &engine) == 0);
  EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, -1, &used), YN_E_TIMEOUT, NULL);
  CHECK(pthread_join(thread, NULL) == 0);
  EXPECT(yn_engine_wake(engine), YN_OK, NULL);
  from = now_s();
  EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, 10000, &used), YN_E_TIMEOUT, NULL);
  CHECK(now_s() - from < 5);
}

/* Every thread of the library blocks the signals that hosts handle. */
static void signals(void) {
  static const int handled[] = {SIGINT, SIGTERM, SIGUSR1, SIGPROF, SIGCHLD};
  unsigned long long mask = 0;
  size_t i;
  for (i = 0; i < sizeof handled / sizeof *handled; i++) mask |= 1ull << (handled[i] - 1);
  CHECK(threads_that_block(mask) >= 4);
}

#define CHILD(call) if ((call) != YN_E_FORKED) _exit(__LINE__ % 200 + 1)
static void child(yn_engine engine, yn_queue q, yn_tokenizer t, const yn_request *r) {
  yn_engine other = {0};
  yn_queue other_q = {0};
  yn_tokenizer other_t = {0};
  yn_request copy = *r;
  yn_stats s;
  yn_buf buf = {0};
  yn_error e;
  size_t used = 0;
  int32_t fd;
  uint32_t ids[8];
  memset(&s, 0, sizeof s);
  s.struct_size = sizeof s;
  CHILD(yn_engine_create(bytes("{\"model\": \"mock:words\"}"), &other, &e));
  if (e.status != YN_E_FORKED || e.message[0] == 0) _exit(250);
  CHILD(yn_engine_submit(engine, r, NULL, &e));
  CHILD(yn_request_init(engine, &copy, sizeof copy));
  CHILD(yn_engine_poll(engine, buffer, sizeof buffer, -1, &used));
  CHILD(yn_engine_cancel(engine, 1));
  CHILD(yn_engine_fd(engine, &fd));
  CHILD(yn_engine_wake(engine));
  CHILD(yn_engine_drain(engine, -1));
  CHILD(yn_engine_stats(engine, &s));
  CHILD(yn_engine_info(engine, &buf, &e));
  CHILD(yn_engine_metrics(engine, &buf));
  CHILD(yn_plan_memory(bytes("{}"), &buf, &e));
  CHILD(yn_queue_create(&other_q, &e));
  CHILD(yn_queue_poll(q, buffer, sizeof buffer, -1, &used));
  CHILD(yn_queue_fd(q, &fd));
  CHILD(yn_queue_wake(q));
  CHILD(yn_queue_free(q));
  CHILD(yn_tokenizer_open(bytes("/"), &other_t, &e));
  CHILD(yn_engine_tokenizer(engine, &other_t));
  used = 8;
  CHILD(yn_tokenize(t, bytes("x"), 0, ids, &used, &e));
  CHILD(yn_detokenize(t, ids, 1, 0, &buf, &e));
  CHILD(yn_chat_render(t, bytes("{}"), &buf, &e));
  CHILD(yn_tokenizer_free(t));
  CHILD(yn_log_to_callback(NULL, NULL, 0));
  CHILD(yn_log_to_queue(q, 0));
  CHILD(yn_engine_free(engine));
  if (yn_version() == 0 || yn_build_info().len == 0 || yn_status_name(0) == NULL) _exit(251);
  _exit(0);
}

/* Forked in the middle of traffic, so that locks may be held by threads the child does not have. */
static void forks(yn_engine engine) {
  yn_request r = request_of(engine, "parent", 2000, 0);
  yn_queue q = {0};
  yn_tokenizer t = {0};
  tally seen;
  int i;
  EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
  EXPECT(yn_engine_tokenizer(engine, &t), YN_OK, NULL);
  tally_init(&seen, 1, 1);
  submit(engine, &r);
  for (i = 0; i < 5; i++) {
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) child(engine, q, t, &r);
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status != 0) fprintf(stderr, "child: exit %d (line %% 200 + 1)\n", WEXITSTATUS(status));
    CHECK(status == 0);
  }
  EXPECT(yn_engine_cancel(engine, seen.all[0].id), YN_OK, NULL);
  EXPECT(yn_queue_free(q), YN_OK, NULL);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  read_until(engine, &seen, 1);
  CHECK(seen.all[0].finish == YN_FINISH_LENGTH);
  tally_free(&seen);
}

int main(void) {
  int before = open_fds(), i;
  yn_engine engine = create("{\"model\": \"mock:words,delay_us=300\"}");
  wakes(engine);
  descriptors(engine);
  epoll_loop(engine);
  signals();
  forks(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  /* Engines and queues that were freed hold no descriptors, also when nobody read them to the end. */
  for (i = 0; i < 50; i++) {
    yn_queue q = {0};
    yn_engine e = create("{\"model\": \"mock:words\"}");
    EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
    EXPECT(yn_queue_free(q), YN_OK, NULL);
    EXPECT(yn_engine_free(e), YN_OK, NULL);
  }
  printf("descriptors: %d before, %d after\n", before, open_fds());
  CHECK(open_fds() <= before + 4);
  return 0;
}
