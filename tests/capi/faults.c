/* Steps that fail, panic and hang, as a C host sees them; the process lives and other engines serve. */
#include "check.h"

/* Polls until the engine says it has failed; its status. */
static int failure(yn_engine engine, tally *t) {
  static uint64_t buffer[1024];
  double end = now_s() + 20;
  for (;;) {
    size_t used = 0, at;
    int found = 0, status = 0;
    EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, PATIENCE_MS, &used), YN_OK, NULL);
    tally_records(t, buffer, used);
    for (at = 0; at < used; at += ((yn_event *)((char *)buffer + at))->size) {
      const yn_event *e = (const yn_event *)((const char *)buffer + at);
      if (e->kind != YN_EV_ENGINE || e->finish != YN_STATE_FAILED) continue;
      CHECK(e->text_len > 10);
      found = 1;
      status = e->status;
    }
    if (found) return status;
    CHECK(now_s() < end);
  }
}

static void fails(const char *config, int status) {
  enum { N = 20 };
  yn_engine engine = create(config);
  yn_request r;
  yn_buf info = {0};
  yn_error e;
  tally t;
  unsigned i;
  double from;
  tally_init(&t, N, 1);
  for (i = 0; i < N; i++) {
    r = request_of(engine, "to the bitter end", 10000, i);
    /* The failure may come in between. */
    if (yn_engine_submit(engine, &r, NULL, NULL) != YN_OK) break;
  }
  CHECK(i > 0);
  CHECK(failure(engine, &t) == status);
  EXPECT(yn_engine_submit(engine, &r, NULL, &e), status, &e);
  CHECK(strlen(e.message) > 10 && e.status == status && e.flags == YN_ERROR_UNUSABLE);
  read_until(engine, &t, i);
  while (i-- > 0) CHECK(t.all[i].finish == YN_FINISH_ERROR && t.all[i].status == status);
  CHECK(stats_of(engine).state == YN_STATE_FAILED);
  EXPECT(yn_engine_info(engine, &info, NULL), YN_OK, NULL);
  yn_buf_free(&info);
  EXPECT(yn_engine_drain(engine, 1000), YN_OK, NULL);
  from = now_s();
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  CHECK(now_s() - from < 5);
  tally_free(&t);
}

int main(void) {
  yn_engine other = create("{\"model\": \"mock:words\"}"), engine;
  yn_request r = request_of(other, "alive", 5, 0);
  tally t;
  fails("{\"model\": \"mock:words,panic_step=3\"}", YN_E_INTERNAL);
  fails("{\"model\": \"mock:words,hang_step=3\", \"watchdog_ms\": 50}", YN_E_DEVICE);
  /* A step that fails once is run again; nobody notices. */
  engine = create("{\"model\": \"mock:words,fail_step=3\"}");
  r = request_of(engine, "again", 50, 0);
  tally_init(&t, 2, 1);
  submit(engine, &r);
  read_until(engine, &t, 1);
  CHECK(t.all[0].finish == YN_FINISH_LENGTH && t.all[0].completion == 50);
  CHECK(stats_of(engine).state == YN_STATE_READY);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  r.user_data = 1;
  submit(other, &r);
  read_until(other, &t, 2);
  CHECK(t.all[1].finish == YN_FINISH_LENGTH);
  EXPECT(yn_engine_free(other), YN_OK, NULL);
  tally_free(&t);
  return 0;
}
