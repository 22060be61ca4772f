/* One request from create to free, and what bad arguments and a forked child get. */
#include "yinian.h"
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x)                                                          \
  do {                                                                    \
    if (!(x)) {                                                           \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #x, e.message); \
      return 1;                                                           \
    }                                                                     \
  } while (0)

static yn_bytes bytes(const char *s) {
  yn_bytes b;
  b.data = (const uint8_t *)s;
  b.len = strlen(s);
  return b;
}

int main(void) {
  static uint64_t buffer[1024];
  yn_engine engine = {0}, none = {0};
  yn_request request;
  yn_request_id id = 0;
  yn_error e;
  size_t used = 0;
  int done = 0;
  unsigned tokens = 0;
  memset(&e, 0, sizeof e);
  CHECK(yn_engine_create(bytes("{\"model\": 1}"), &engine, &e) == YN_E_INVALID);
  CHECK(strstr(e.message, "model") != NULL);
  CHECK(yn_engine_free(none) == YN_E_BAD_HANDLE);
  CHECK(yn_engine_poll(none, buffer, sizeof buffer, 0, &used) == YN_E_BAD_HANDLE);
  CHECK(yn_request_init(none, NULL, sizeof request) == YN_E_INVALID);
  CHECK(yn_engine_create(bytes("{\"model\": \"mock:words\"}"), &engine, &e) == YN_OK);
  CHECK(yn_request_init(engine, &request, sizeof request) == YN_OK);
  CHECK(yn_engine_submit(engine, &request, &id, &e) == YN_E_INVALID);
  request.prompt_text = bytes("hello");
  request.max_tokens = 0;
  CHECK(yn_engine_submit(engine, &request, &id, &e) == YN_E_INVALID);
  request.max_tokens = 8;
  request.ttft_slo_ms = 2;
  CHECK(yn_engine_submit(engine, &request, &id, &e) == YN_E_UNSUPPORTED);
  request.ttft_slo_ms = 0;
  request.flags = YN_REQ_IGNORE_EOS;
  request.output = YN_OUT_TEXT | YN_OUT_TOKENS;
  request.user_data = 42;
  CHECK(yn_engine_submit(engine, &request, &id, &e) == YN_OK);
  while (!done) {
    size_t at;
    CHECK(yn_engine_poll(engine, buffer, sizeof buffer, 10000, &used) == YN_OK);
    for (at = 0; at < used;) {
      const yn_event *event = (const yn_event *)((const char *)buffer + at);
      at += event->size;
      if (event->kind == YN_EV_OUTPUT) tokens += event->n_tokens;
      if (event->kind != YN_EV_DONE) continue;
      CHECK(event->user_data == 42 && event->request_id == id);
      CHECK(event->status == YN_OK && event->finish == YN_FINISH_LENGTH);
      CHECK(event->completion_tokens == 8 && tokens == 8);
      done = 1;
    }
  }
  {
    int status = 0;
    pid_t child = fork();
    if (child == 0) _exit(yn_engine_wake(engine) == YN_E_FORKED ? 0 : 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
  CHECK(yn_engine_free(engine) == YN_OK);
  CHECK(yn_engine_free(engine) == YN_E_BAD_HANDLE);
  CHECK(yn_engine_poll(engine, buffer, sizeof buffer, 0, &used) == YN_E_SHUTDOWN);
  return 0;
}
