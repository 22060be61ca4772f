/* Every function on threads with stacks of 32 KB, and from destructors that run while a thread ends.
   usage: stacks MODEL_DIRECTORY */
#include "check.h"
#include <limits.h>
#include <unistd.h>

#ifndef STACK_KB
#define STACK_KB 32
#endif
enum { STACK = STACK_KB << 10, DEEP = 100000 };
static const char *model;
static yn_engine engine;
static yn_tokenizer tokenizer;
static yn_error e;
static int passed;

/* A template that nests as deep as it may, and one that walks its data. */
static const char *templates =
    "{% macro deep(n) %}{% if n > 0 %}[{{ deep(n - 1) }}]{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }} {{ deep(8) }}{% endfor %}";

static char *nested(const char *head, size_t depth, const char *tail) {
  size_t h = strlen(head), t = strlen(tail);
  char *s = (char *)malloc(h + 2 * depth + t + 1);
  CHECK(s != NULL);
  memcpy(s, head, h);
  memset(s + h, '[', depth);
  memset(s + h + depth, ']', depth);
  memcpy(s + h + 2 * depth, tail, t + 1);
  return s;
}

static void escaped(char *to, const char *s) {
  for (; *s; s++) {
    if (*s == '"') *to++ = '\\';
    *to++ = *s;
  }
  *to = 0;
}

static void serve_one(yn_engine with, yn_request r) {
  tally t;
  tally_init(&t, 1, 1);
  submit(with, &r);
  read_until(with, &t, 1);
  tally_free(&t);
}

static void engines(void) {
  static char config[2048], text[1024];
  yn_buf out = {0};
  escaped(text, templates);
  snprintf(config, sizeof config, "{\"model\": \"mock:words\", \"chat_template\": \"%s\"}", text);
  engine = create(config);
  EXPECT(yn_engine_tokenizer(engine, &tokenizer), YN_OK, NULL);
  snprintf(config, sizeof config, "{\"model\": \"%s\"}", model);
  EXPECT(yn_plan_memory(bytes(config), &out, &e), YN_OK, &e);
  yn_buf_free(&out);
  {
    yn_engine real = create(config);
    yn_tokenizer t = {0};
    size_t n = 0;
    serve_one(real, request_of(real, "Once upon a time", 5, 0));
    EXPECT(yn_engine_tokenizer(real, &t), YN_OK, NULL);
    EXPECT(yn_tokenize(t, bytes("Once upon a time there was a fox."), 0, NULL, &n, &e), YN_E_TOO_SMALL, &e);
    EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
    EXPECT(yn_engine_free(real), YN_OK, NULL);
  }
}

static void requests(void) {
  yn_request r = request_of(engine, "small", 5, 0);
  yn_buf out = {0};
  size_t n = 0;
  static uint32_t ids[4096];
  serve_one(engine, r);
  memset(&r.prompt_text, 0, sizeof r.prompt_text);
  r.chat_json = bytes("{\"messages\": [{\"role\": \"user\", \"content\": {\"a\": [1, 2]}}]}");
  serve_one(engine, r);
  r.extra_json = bytes("{\"logit_bias\": {\"5\": 1}}");
  serve_one(engine, r);
  EXPECT(yn_chat_render(tokenizer, r.chat_json, &out, &e), YN_OK, &e);
  CHECK(strstr((const char *)out.data, "[[[[[[[[]]]]]]]]") != NULL);
  yn_buf_free(&out);
  n = 4096;
  EXPECT(yn_tokenize(tokenizer, bytes("abc"), 0, ids, &n, &e), YN_OK, &e);
  EXPECT(yn_detokenize(tokenizer, ids, n, 0, &out, &e), YN_OK, &e);
  CHECK(out.len == 3);
  yn_buf_free(&out);
  EXPECT(yn_engine_info(engine, &out, &e), YN_OK, &e);
  yn_buf_free(&out);
  EXPECT(yn_engine_metrics(engine, &out), YN_OK, NULL);
  yn_buf_free(&out);
}

static void rest(void) {
  static uint64_t buffer[512];
  size_t used = 0;
  yn_queue q = {0};
  yn_tokenizer t = {0};
  int32_t fd = -1;
  EXPECT(yn_queue_create(&q, &e), YN_OK, &e);
  EXPECT(yn_queue_wake(q), YN_OK, NULL);
  EXPECT(yn_queue_fd(q, &fd), YN_OK, NULL);
  close(fd);
  EXPECT(yn_log_to_queue(q, 5), YN_OK, NULL);
  EXPECT(yn_log_to_callback(NULL, NULL, 0), YN_OK, NULL);
  EXPECT(yn_queue_free(q), YN_OK, NULL);
  EXPECT(yn_engine_fd(engine, &fd), YN_OK, NULL);
  close(fd);
  EXPECT(yn_engine_wake(engine), YN_OK, NULL);
  EXPECT(yn_engine_poll(engine, buffer, sizeof buffer, -1, &used), YN_E_TIMEOUT, NULL);
  EXPECT(yn_engine_cancel(engine, 1), YN_OK, NULL);
  EXPECT(yn_tokenizer_open(bytes(model), &t, &e), YN_OK, &e);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  (void)stats_of(engine);
  CHECK(yn_version() != 0 && yn_build_info().len > 0);
}

/* Nested far deeper than any stack could take, and exactly as deep as a parser takes. */
static void depth_of(size_t depth) {
  char *chat = nested("{\"messages\": [{\"role\": \"user\", \"content\": ", depth, "}]}");
  char *extra = nested("{\"logit_bias\": ", depth, "}");
  char *config = nested("{\"model\": \"mock:words\", \"kv_tiers\": ", depth, "}");
  yn_request r = request_of(engine, "deep", 5, 0);
  yn_engine none = {0};
  yn_buf out = {0};
  yn_status s = yn_engine_create(bytes(config), &none, &e);
  CHECK(s == YN_E_INVALID || s == YN_E_UNSUPPORTED);
  r.extra_json = bytes(extra);
  EXPECT(yn_engine_submit(engine, &r, NULL, &e), YN_E_INVALID, &e);
  memset(&r.extra_json, 0, sizeof r.extra_json);
  memset(&r.prompt_text, 0, sizeof r.prompt_text);
  r.chat_json = bytes(chat);
  s = yn_chat_render(tokenizer, r.chat_json, &out, &e);
  CHECK(s == (depth < 120 ? YN_OK : YN_E_INVALID));
  yn_buf_free(&out);
  if (s == YN_OK) serve_one(engine, r);
  free(chat);
  free(extra);
  free(config);
}

/* A deep chat that waits for a model which never comes. */
static void left_behind(void) {
  yn_engine loading = create("{\"model\": \"mock:words,load_ms=60000\", \"async_load\": true}");
  char *chat = nested("{\"messages\": [{\"role\": \"user\", \"content\": ", 119, "}]}");
  yn_request r = request_of(loading, "", 5, 0);
  memset(&r.prompt_text, 0, sizeof r.prompt_text);
  r.chat_json = bytes(chat);
  submit(loading, &r);
  free(chat);
  EXPECT(yn_engine_free(loading), YN_OK, NULL);
}

static void depths(void) {
  left_behind();
  depth_of(119);
  depth_of(126);
  depth_of(DEEP);
}

static void freed(void) {
  EXPECT(yn_tokenizer_free(tokenizer), YN_OK, NULL);
  EXPECT(yn_engine_drain(engine, -1), YN_OK, NULL);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
}

static void everything(void) {
  engines();
  requests();
  rest();
  depths();
  freed();
  passed++;
}

static void *small_thread(void *arg) {
  (void)arg;
  everything();
  return NULL;
}

static void on_small_stacks(void) {
  pthread_attr_t attr;
  pthread_t thread;
  CHECK(pthread_attr_init(&attr) == 0);
  CHECK(pthread_attr_setstacksize(&attr, STACK) == 0);
  CHECK(pthread_create(&thread, &attr, small_thread, NULL) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
  pthread_attr_destroy(&attr);
}

/* Destructors of keys run when the thread's own storage is gone already, the library's included. */
static void last_things(void *arg) {
  (void)arg;
  everything();
}

static void *ending_thread(void *arg) {
  CHECK(pthread_setspecific(*(pthread_key_t *)arg, arg) == 0);
  /* The library makes its storage of this thread, if it has any. */
  everything();
  return NULL;
}

static void from_destructors(void) {
  pthread_key_t key;
  pthread_t thread;
  CHECK(pthread_key_create(&key, last_things) == 0);
  CHECK(pthread_create(&thread, NULL, ending_thread, &key) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  model = argv[1];
  on_small_stacks();
  from_destructors();
  CHECK(passed == 3);
  return 0;
}
