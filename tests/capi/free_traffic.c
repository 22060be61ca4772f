/* Engines, queues and tokenizers freed while other threads use them, and used after they were freed. */
#include "check.h"

enum { WORKERS = 4, ROUNDS = 12 };
static yn_engine engine;
static yn_tokenizer tokenizer;
static tally seen;
static int accepted[WORKERS];

static void *worker(void *arg) {
  size_t me = (size_t)arg;
  unsigned i;
  for (i = 0; i < 5000; i++) {
    yn_request r;
    yn_request_id id = 0;
    yn_stats s;
    yn_status got;
    uint32_t ids[64];
    size_t n = 64;
    if (yn_request_init(engine, &r, sizeof r) != YN_OK) break;
    r.prompt_text = bytes("until the end");
    r.flags |= YN_REQ_IGNORE_EOS;
    r.max_tokens = 1 + i % 50;
    r.user_data = me * 5000 + i;
    got = yn_engine_submit(engine, &r, &id, NULL);
    CHECK(got == YN_OK || got == YN_E_BUSY || got == YN_E_SHUTDOWN || got == YN_E_BAD_HANDLE);
    accepted[me] += got == YN_OK;
    if (i % 5 == 0 && got == YN_OK) {
      got = yn_engine_cancel(engine, id);
      CHECK(got == YN_OK || got == YN_E_BAD_HANDLE);
    }
    memset(&s, 0, sizeof s);
    s.struct_size = sizeof s;
    got = yn_engine_stats(engine, &s);
    CHECK(got == YN_OK || got == YN_E_BAD_HANDLE);
    got = yn_tokenize(tokenizer, bytes("text"), 0, ids, &n, NULL);
    CHECK(got == YN_OK || got == YN_E_BAD_HANDLE);
    if (got == YN_E_BAD_HANDLE && i > 10) break;
  }
  return NULL;
}

static void *reader(void *arg) {
  uint64_t buffer[1024];
  size_t used = 0;
  yn_status s;
  (void)arg;
  do {
    s = yn_engine_poll(engine, buffer, sizeof buffer, -1, &used);
    if (s == YN_OK) tally_records(&seen, buffer, used);
  } while (s == YN_OK || s == YN_E_TIMEOUT);
  CHECK(s == YN_E_SHUTDOWN);
  return NULL;
}

static void round_of(unsigned round) {
  pthread_t threads[WORKERS + 1];
  size_t i, total = 0;
  engine = create("{\"model\": \"mock:words,delay_us=100\", \"max_waiting\": 64}");
  EXPECT(yn_engine_tokenizer(engine, &tokenizer), YN_OK, NULL);
  tally_init(&seen, WORKERS * 5000, 1);
  memset(accepted, 0, sizeof accepted);
  for (i = 0; i < WORKERS; i++) CHECK(pthread_create(&threads[i], NULL, worker, (void *)i) == 0);
  CHECK(pthread_create(&threads[i], NULL, reader, NULL) == 0);
  sleep_us(1500 * (long)round);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  EXPECT(yn_tokenizer_free(tokenizer), YN_OK, NULL);
  for (i = 0; i <= WORKERS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (i = 0; i < WORKERS; i++) total += (size_t)accepted[i];
  CHECK(seen.done == total);
  tally_free(&seen);
}

static void used_after_free(void) {
  static uint64_t buffer[512];
  yn_engine e = create("{\"model\": \"mock:words\"}");
  yn_request r = request_of(e, "unread", 5, 0);
  yn_queue q = {0};
  yn_tokenizer t = {0};
  yn_buf info = {0};
  tally mine;
  size_t used = 0, n = 0;
  int32_t fd = -1;
  yn_status s;
  EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
  EXPECT(yn_engine_tokenizer(e, &t), YN_OK, NULL);
  EXPECT(yn_engine_info(e, &info, NULL), YN_OK, NULL);
  tally_init(&mine, 2, 1);
  submit(e, &r);
  r.queue = q;
  r.user_data = 1;
  submit(e, &r);
  EXPECT(yn_engine_free(e), YN_OK, NULL);
  EXPECT(yn_engine_free(e), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_submit(e, &r, NULL, NULL), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_cancel(e, 1), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_wake(e), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_drain(e, 0), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_fd(e, &fd), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_request_init(e, &r, sizeof r), YN_E_BAD_HANDLE, NULL);
  /* The tokenizer, buffers and unread records outlive the engine. */
  EXPECT(yn_tokenize(t, bytes("abc"), 0, NULL, &n, NULL), YN_E_TOO_SMALL, NULL);
  CHECK(n == 3);
  CHECK(info.len > 2 && info.data[0] == '{');
  yn_buf_free(&info);
  yn_buf_free(&info);
  yn_buf_free(NULL);
  while ((s = yn_engine_poll(e, buffer, sizeof buffer, 5000, &used)) == YN_OK) tally_records(&mine, buffer, used);
  CHECK(s == YN_E_SHUTDOWN && mine.all[0].done);
  EXPECT(yn_queue_free(q), YN_OK, NULL);
  EXPECT(yn_queue_free(q), YN_E_BAD_HANDLE, NULL);
  while ((s = yn_queue_poll(q, buffer, sizeof buffer, 5000, &used)) == YN_OK) tally_records(&mine, buffer, used);
  CHECK(s == YN_E_SHUTDOWN && mine.all[1].done);
  EXPECT(yn_queue_wake(q), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  EXPECT(yn_tokenizer_free(t), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_tokenize(t, bytes("abc"), 0, NULL, &n, NULL), YN_E_BAD_HANDLE, NULL);
  tally_free(&mine);
}

static void freed_while_loading(void) {
  double from = now_s();
  yn_engine e = create("{\"model\": \"mock:words,load_ms=60000\", \"async_load\": true}");
  yn_request r = request_of(e, "early", 5, 0);
  yn_stats s = stats_of(e);
  tally mine;
  CHECK(s.state == YN_STATE_LOADING);
  tally_init(&mine, 1, 1);
  submit(e, &r);
  EXPECT(yn_engine_free(e), YN_OK, NULL);
  CHECK(now_s() - from < 10);
  read_until(e, &mine, 1);
  CHECK(mine.all[0].finish == YN_FINISH_CANCELLED);
  tally_free(&mine);
}

static void a_queue_freed_under_its_requests(void) {
  static uint64_t buffer[512];
  yn_engine e = create("{\"model\": \"mock:words,delay_us=1000\"}");
  yn_queue q = {0};
  yn_request r = request_of(e, "long", 5000, 0);
  tally mine;
  size_t used = 0;
  yn_status s;
  EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
  tally_init(&mine, 1, 1);
  r.queue = q;
  submit(e, &r);
  sleep_us(5000);
  EXPECT(yn_queue_free(q), YN_OK, NULL);
  EXPECT(yn_engine_submit(e, &r, NULL, NULL), YN_E_BAD_HANDLE, NULL);
  while ((s = yn_queue_poll(q, buffer, sizeof buffer, 5000, &used)) == YN_OK) tally_records(&mine, buffer, used);
  CHECK(s == YN_E_SHUTDOWN && mine.all[0].done && mine.all[0].finish == YN_FINISH_CANCELLED);
  check_idle(e);
  EXPECT(yn_engine_free(e), YN_OK, NULL);
  tally_free(&mine);
}

int main(void) {
  unsigned round;
  used_after_free();
  freed_while_loading();
  a_queue_freed_under_its_requests();
  for (round = 0; round < ROUNDS; round++) round_of(round);
  return 0;
}
