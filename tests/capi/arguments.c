/* Bad arguments for every export but those of configs.c and requests.c: a typed answer with a message, and the engine serves on.
   usage: arguments MODEL_DIRECTORY */
#include "rows.h"
#include <stddef.h>

/* A row: a call that answers `want`; where it has an error, with a message. */
#define ROW(call, want, err)                                           \
  do {                                                                 \
    rows++;                                                            \
    fresh_error();                                                     \
    EXPECT(call, want, err);                                           \
    CHECK((err) == NULL || (e.status == (want) && e.message[0] != 0)); \
    serves(#call);                                                     \
  } while (0)
#define NO_ERROR ((yn_error *)NULL)

static uint32_t some_ids[] = {104, 105, 400};

static void engine_handles(void) {
  static uint64_t buffer[1024];
  yn_request r = request_of(engine, "x", 1, 0);
  yn_engine none = {0}, stale = {engine.id ^ (1ull << 40)};
  yn_stats s;
  yn_buf buf = {0};
  size_t used = 7;
  int32_t fd = -1;
  ROW(yn_engine_submit(engine, NULL, NULL, &e), YN_E_INVALID, &e);
  ROW(yn_engine_submit(engine, (const yn_request *)((const char *)&r + 1), NULL, &e), YN_E_INVALID, &e);
  ROW(yn_engine_submit(none, &r, NULL, &e), YN_E_BAD_HANDLE, &e);
  ROW(yn_engine_submit(stale, &r, NULL, NULL), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_request_init(engine, NULL, sizeof r), YN_E_INVALID, NO_ERROR);
  ROW(yn_request_init(engine, &r, 3), YN_E_INVALID, NO_ERROR);
  ROW(yn_request_init(engine, &r, 0), YN_E_INVALID, NO_ERROR);
  ROW(yn_request_init(engine, &r, sizeof r + 4), YN_E_INVALID, NO_ERROR);
  ROW(yn_request_init(engine, &r, 4104), YN_E_INVALID, NO_ERROR);
  ROW(yn_request_init(engine, &r, UINT32_MAX), YN_E_INVALID, NO_ERROR);
  ROW(yn_request_init(stale, &r, sizeof r), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_poll(engine, NULL, 4096, 0, &used), YN_E_INVALID, NO_ERROR);
  ROW(yn_engine_poll(engine, (char *)buffer + 4, 4096, 0, &used), YN_E_INVALID, NO_ERROR);
  ROW(yn_engine_poll(engine, buffer, 4095, 0, &used), YN_E_TOO_SMALL, NO_ERROR);
  ROW(yn_engine_poll(engine, buffer, 0, 0, &used), YN_E_TOO_SMALL, NO_ERROR);
  ROW(yn_engine_poll(engine, buffer, SIZE_MAX, 0, &used), YN_E_INVALID, NO_ERROR);
  ROW(yn_engine_poll(engine, buffer, 4096, 0, NULL), YN_E_INVALID, NO_ERROR);
  ROW(yn_engine_poll(stale, buffer, 4096, 0, &used), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_cancel(stale, 1), YN_E_BAD_HANDLE, NO_ERROR);
  EXPECT(yn_engine_cancel(engine, 0), YN_OK, NULL);
  EXPECT(yn_engine_cancel(engine, (yn_request_id)-1), YN_OK, NULL);
  ROW(yn_engine_fd(engine, NULL), YN_E_INVALID, NO_ERROR);
  ROW(yn_engine_fd(none, &fd), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_wake(none), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_drain(none, 0), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_free(stale), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_stats(engine, NULL), YN_E_INVALID, NO_ERROR);
  memset(&s, 0, sizeof s);
  ROW(yn_engine_stats(engine, &s), YN_E_INVALID, NO_ERROR);
  s.struct_size = 7;
  ROW(yn_engine_stats(engine, &s), YN_E_INVALID, NO_ERROR);
  CHECK(s.state == 0);
  s.struct_size = sizeof s;
  ROW(yn_engine_stats(stale, &s), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_info(engine, NULL, &e), YN_E_INVALID, &e);
  ROW(yn_engine_info(none, &buf, &e), YN_E_BAD_HANDLE, &e);
  ROW(yn_engine_metrics(engine, NULL), YN_E_INVALID, NO_ERROR);
  ROW(yn_engine_metrics(none, &buf), YN_E_BAD_HANDLE, NO_ERROR);
}

static void queue_handles(void) {
  static uint64_t buffer[1024];
  yn_queue no_queue = {0}, q = {0};
  size_t used = 7;
  int32_t fd = -1;
  ROW(yn_queue_create(NULL, &e), YN_E_INVALID, &e);
  ROW(yn_queue_poll(no_queue, buffer, 4096, 0, &used), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_queue_fd(no_queue, &fd), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_queue_wake(no_queue), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_queue_free(no_queue), YN_E_BAD_HANDLE, NO_ERROR);
  EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
  ROW(yn_queue_poll(q, buffer, 16, 0, &used), YN_E_TOO_SMALL, NO_ERROR);
  ROW(yn_queue_fd(q, NULL), YN_E_INVALID, NO_ERROR);
  ROW(yn_queue_poll(q, buffer, 4096, 0, &used), YN_E_TIMEOUT, NO_ERROR);
  CHECK(used == 0);
  EXPECT(yn_queue_free(q), YN_OK, NULL);
  ROW(yn_log_to_queue(q, 3), YN_E_BAD_HANDLE, NO_ERROR);
}

static void tokenizer_handles(void) {
  const yn_bytes info = yn_build_info();
  char text[256] = "";
  yn_engine none = {0};
  yn_tokenizer t = {0}, no_tokenizer = {0};
  yn_buf buf = {0};
  size_t n = 4;
  uint32_t ids[4];
  ROW(yn_tokenizer_free(no_tokenizer), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_tokenizer(none, &t), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_engine_tokenizer(engine, NULL), YN_E_INVALID, NO_ERROR);
  EXPECT(yn_engine_tokenizer(engine, &t), YN_OK, NULL);
  ROW(yn_tokenize(no_tokenizer, bytes("x"), 0, ids, &n, &e), YN_E_BAD_HANDLE, &e);
  ROW(yn_tokenize(t, bytes("x"), 0, ids, NULL, &e), YN_E_INVALID, &e);
  ROW(yn_tokenize(t, bytes("x"), 0, NULL, &n, &e), YN_E_INVALID, &e);
  ROW(yn_tokenize(t, bytes("x"), 0, (uint32_t *)(void *)((char *)ids + 1), &n, &e), YN_E_INVALID, &e);
  ROW(yn_tokenize(t, bytes("x"), 1u << 30, ids, &n, &e), YN_E_UNSUPPORTED, &e);
  ROW(yn_tokenize(t, bytes("12345"), 0, ids, &n, &e), YN_E_TOO_SMALL, &e);
  CHECK(n == 5);
  ROW(yn_detokenize(t, some_ids, 3, 0, &buf, &e), YN_E_INVALID, &e);
  ROW(yn_detokenize(t, NULL, 3, 0, &buf, &e), YN_E_INVALID, &e);
  ROW(yn_detokenize(t, some_ids, SIZE_MAX, 0, &buf, &e), YN_E_INVALID, &e);
  ROW(yn_detokenize(t, some_ids, ((size_t)1 << 24) + 1, 0, &buf, &e), YN_E_INVALID, &e);
  ROW(yn_detokenize(t, (const uint32_t *)(const void *)((const char *)some_ids + 2), 1, 0, &buf, &e), YN_E_INVALID, &e);
  ROW(yn_detokenize(t, some_ids, 2, 1u << 30, &buf, &e), YN_E_UNSUPPORTED, &e);
  ROW(yn_detokenize(t, some_ids, 2, 0, NULL, &e), YN_E_INVALID, &e);
  ROW(yn_detokenize(no_tokenizer, some_ids, 2, 0, &buf, &e), YN_E_BAD_HANDLE, &e);
  ROW(yn_chat_render(t, bytes("{}"), NULL, &e), YN_E_INVALID, &e);
  ROW(yn_chat_render(no_tokenizer, bytes("{}"), &buf, &e), YN_E_BAD_HANDLE, &e);
  CHECK(buf.data == NULL && buf.opaque == NULL);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  ROW(yn_tokenizer_free(t), YN_E_BAD_HANDLE, NO_ERROR);
  ROW(yn_log_to_callback(NULL, NULL, 6), YN_E_INVALID, NO_ERROR);
  ROW(yn_log_to_callback(NULL, NULL, UINT32_MAX), YN_E_INVALID, NO_ERROR);
  CHECK(strcmp(yn_status_name(YN_E_BUSY), "YN_E_BUSY") == 0);
  CHECK(strcmp(yn_status_name(1), "YN_E_UNKNOWN") == 0 && strcmp(yn_status_name(-1000), "YN_E_UNKNOWN") == 0);
  CHECK(yn_version() >> 16 == 1);
  CHECK(info.len < sizeof text);
  memcpy(text, info.data, info.len);
  CHECK(strstr(text, "\"devices\":[\"cpu\"") != NULL);
}

/* Texts that are none, for every function that takes one. */
static void tokenizer_texts(yn_tokenizer t) {
  static char anywhere[64];
  static const char *const bad[] = {"\xff", "a\x80", "\xc3(", "\xc0\x80", "\xed\xa0\x80", "\xf0\x9f\xa6"};
  static const char *const no_chats[] = {"", "{", "[]", "7", "{}", "{\"messages\": []}", "{\"messages\": [7]}",
                                         "{\"message\": [{\"role\": \"user\"}]}", "{\"messages\": [], \"messages\": []}"};
  const yn_bytes nowhere[] = {{NULL, 1}, {NULL, SIZE_MAX}, {(const uint8_t *)anywhere, SIZE_MAX},
                              {(const uint8_t *)anywhere, ((size_t)16 << 20) + 1}};
  const yn_bytes nul = {(const uint8_t *)"a\0b", 3}, no_file = {(const uint8_t *)"/no\0such", 8};
  yn_tokenizer out = {77};
  yn_buf buf = {0};
  uint32_t ids[64];
  size_t i, n = 64;
  for (i = 0; i < sizeof nowhere / sizeof *nowhere; i++) {
    ROW(yn_tokenize(t, nowhere[i], 0, ids, &n, &e), YN_E_INVALID, &e);
    ROW(yn_chat_render(t, nowhere[i], &buf, &e), YN_E_INVALID, &e);
    ROW(yn_tokenizer_open(nowhere[i], &out, &e), YN_E_INVALID, &e);
  }
  for (i = 0; i < sizeof bad / sizeof *bad; i++) {
    char chat[80];
    snprintf(chat, sizeof chat, "{\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}]}", bad[i]);
    ROW(yn_tokenize(t, bytes(bad[i]), 0, ids, &n, &e), YN_E_INVALID, &e);
    ROW(yn_chat_render(t, bytes(chat), &buf, &e), YN_E_INVALID, &e);
    ROW(yn_tokenizer_open(bytes(bad[i]), &out, &e), YN_E_INVALID, &e);
  }
  for (i = 0; i < sizeof no_chats / sizeof *no_chats; i++) ROW(yn_chat_render(t, bytes(no_chats[i]), &buf, &e), YN_E_INVALID, &e);
  n = 64;
  EXPECT(yn_tokenize(t, nul, 0, ids, &n, &e), YN_OK, &e);
  CHECK(n > 0);
  n = 64;
  EXPECT(yn_tokenize(t, bytes(""), YN_TOKENIZE_NO_SPECIAL, NULL, &n, &e), YN_OK, &e);
  CHECK(n == 0);
  ROW(yn_tokenizer_open(bytes(""), &out, &e), YN_E_NOT_FOUND, &e);
  ROW(yn_tokenizer_open(bytes("/no/such/file"), &out, &e), YN_E_NOT_FOUND, &e);
  ROW(yn_tokenizer_open(bytes("/dev/null"), &out, &e), YN_E_INVALID, &e);
  ROW(yn_tokenizer_open(bytes("/"), &out, &e), YN_E_NOT_FOUND, &e);
  ROW(yn_tokenizer_open(no_file, &out, &e), YN_E_INVALID, &e);
  ROW(yn_tokenizer_open(no_file, NULL, &e), YN_E_INVALID, &e);
  CHECK(out.id == 77 && buf.data == NULL && buf.opaque == NULL);
}

int main(int argc, char **argv) {
  yn_tokenizer t = {0};
  CHECK(argc == 2);
  engine = create("{\"model\": \"mock:words\"}");
  engine_handles();
  queue_handles();
  tokenizer_handles();
  EXPECT(yn_engine_tokenizer(engine, &t), YN_OK, NULL);
  tokenizer_texts(t);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  EXPECT(yn_tokenizer_open(bytes(argv[1]), &t, &e), YN_OK, &e);
  tokenizer_texts(t);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  check_idle(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  printf("%u rows of calls, %u wrong\n", rows, wrong);
  CHECK(wrong == 0);
  return 0;
}
