/* Two engines in one process do not know each other; one queue may serve both; logs go to a callback or a queue.
   usage: two_engines MODEL_DIRECTORY [FEATURES], a mask of the CPU */
#include "check.h"

static const char *story =
    "Once upon a time, there was a young fox named Biscuit who lived in the meadow. Biscuit had a brown map.";
static int lines, of_mock, of_demo;

static void on_log(void *user, uint32_t level, yn_bytes target, yn_bytes text) {
  CHECK(user == &lines && level >= 1 && level <= 5 && target.len > 0);
  __sync_fetch_and_add(&lines, 1);
  if (text.len > 10 && memcmp(text.data, "mock:words", 10) == 0) __sync_fetch_and_add(&of_mock, 1);
  if (text.len > 4 && memcmp(text.data, "tiny", 4) == 0) __sync_fetch_and_add(&of_demo, 1);
}

static void serve(yn_engine engine, const char *prompt, outcome *out) {
  yn_request r = request_of(engine, prompt, 30, 0);
  tally t;
  tally_init(&t, 1, 1);
  submit(engine, &r);
  read_until(engine, &t, 1);
  *out = t.all[0];
  CHECK(out->status == YN_OK && out->completion == 30);
  tally_free(&t);
}

int main(int argc, char **argv) {
  static outcome mock_alone, demo_alone, shared[2];
  static uint64_t buffer[8192];
  char config[1024];
  yn_engine mock, demo, failing = {0};
  yn_queue q = {0}, log_queue = {0};
  yn_request r;
  tally t;
  size_t used = 0, at;
  int logged = 0;
  CHECK(argc == 2 || argc == 3);
  EXPECT(yn_log_to_callback((yn_log_fn)on_log, &lines, 5), YN_OK, NULL);
  mock = create("{\"model\": \"mock:words\", \"log_level\": \"trace\"}");
  snprintf(config, sizeof config, "{\"model\": \"%s\", \"served_model_name\": \"tiny\", \"log_level\": \"off\"%s%s%s}", argv[1],
           argc == 3 ? ", \"cpu_features\": \"" : "", argc == 3 ? argv[2] : "", argc == 3 ? "\"" : "");
  demo = create(config);
  CHECK(of_mock >= 1 && of_demo == 0);
  CHECK(mock.id != demo.id);
  serve(mock, "hello", &mock_alone);
  serve(demo, story, &demo_alone);

  /* One queue for both, and a failure of one in between. */
  EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
  EXPECT(yn_queue_create(&log_queue, NULL), YN_OK, NULL);
  EXPECT(yn_log_to_queue(log_queue, 1), YN_OK, NULL);
  failing = create("{\"model\": \"mock:words,panic_step=0\"}");
  tally_init(&t, 3, 1);
  r = request_of(failing, "bad luck", 5, 2);
  r.queue = q;
  submit(failing, &r);
  r = request_of(mock, "hello", 30, 0);
  r.queue = q;
  submit(mock, &r);
  r = request_of(demo, story, 30, 1);
  r.queue = q;
  submit(demo, &r);
  while (t.done < 3) {
    EXPECT(yn_queue_poll(q, buffer, sizeof buffer, PATIENCE_MS, &used), YN_OK, NULL);
    tally_records(&t, buffer, used);
  }
  CHECK(t.all[2].finish == YN_FINISH_ERROR && t.all[2].status == YN_E_INTERNAL);
  shared[0] = t.all[0];
  shared[1] = t.all[1];
  CHECK(shared[0].id != shared[1].id);
  CHECK(shared[0].text_len == mock_alone.text_len && memcmp(shared[0].text, mock_alone.text, mock_alone.text_len) == 0);
  CHECK(shared[1].text_len == demo_alone.text_len && memcmp(shared[1].text, demo_alone.text, demo_alone.text_len) == 0);
  CHECK(shared[1].cached > 0);

  EXPECT(yn_queue_poll(log_queue, buffer, sizeof buffer, 5000, &used), YN_OK, NULL);
  for (at = 0; at < used; at += ((yn_event *)((char *)buffer + at))->size) {
    const yn_event *e = (const yn_event *)((const char *)buffer + at);
    CHECK(e->kind == YN_EV_LOG && e->flags == 1 && e->text_len > 10 && e->request_id == 0);
    logged++;
  }
  CHECK(logged >= 1);
  EXPECT(yn_log_to_callback(NULL, NULL, 0), YN_OK, NULL);
  EXPECT(yn_engine_free(failing), YN_OK, NULL);
  EXPECT(yn_engine_free(mock), YN_OK, NULL);
  serve(demo, story, &shared[1]);
  CHECK(shared[1].text_len == demo_alone.text_len);
  EXPECT(yn_engine_free(demo), YN_OK, NULL);
  EXPECT(yn_queue_free(q), YN_OK, NULL);
  EXPECT(yn_queue_free(log_queue), YN_OK, NULL);
  tally_free(&t);
  return 0;
}
