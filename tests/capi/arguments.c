/* Bad arguments for every export: a typed answer with a message, and the engine serves on. */
#include "check.h"
#include <math.h>

static yn_engine engine;
static yn_error e;
static uint64_t served;

/* The engine still answers. */
static void serves(void) {
  yn_request r = request_of(engine, "still there", 3, 0);
  tally t;
  tally_init(&t, 1, 1);
  submit(engine, &r);
  read_until(engine, &t, 1);
  CHECK(t.all[0].status == YN_OK && t.all[0].completion == 3);
  tally_free(&t);
  served++;
}

/* The message is there, ends in the struct and mentions `says`. */
static void message(const char *says) {
  CHECK(e.message[0] != 0 && memchr(e.message, 0, sizeof e.message) != NULL);
  if (strstr(e.message, says) != NULL) return;
  fprintf(stderr, "no %s in: %s\n", says, e.message);
  _Exit(1);
}

static void configs(void) {
  static const struct { const char *json; yn_status want; const char *says; } table[] = {
      {"", YN_E_INVALID, "JSON"},
      {"{", YN_E_INVALID, "JSON"},
      {"[]", YN_E_INVALID, "object"},
      {"{}", YN_E_INVALID, "model"},
      {"{\"model\": 7}", YN_E_INVALID, "model"},
      {"{\"model\": \"\"}", YN_E_INVALID, "model"},
      {"{\"model\": \"mock:nothing\"}", YN_E_INVALID, "mock:words"},
      {"{\"model\": \"mock:words,x=1\"}", YN_E_INVALID, "x=1"},
      {"{\"model\": \"/no/such/directory\"}", YN_E_NOT_FOUND, "/no/such/directory"},
      {"{\"model\": \"mock:words\", \"max_num_seq\": 4}", YN_E_INVALID, "max_num_seqs"},
      {"{\"model\": \"mock:words\", \"max_num_seqs\": 0}", YN_E_INVALID, "max_num_seqs"},
      {"{\"model\": \"mock:words\", \"max_num_seqs\": -1}", YN_E_INVALID, "max_num_seqs"},
      {"{\"model\": \"mock:words\", \"max_num_seqs\": 1e99}", YN_E_INVALID, "max_num_seqs"},
      {"{\"model\": \"mock:words\", \"max_num_seqs\": \"4\"}", YN_E_INVALID, "max_num_seqs"},
      {"{\"model\": \"mock:words\", \"block_size\": 17}", YN_E_INVALID, "block_size"},
      {"{\"model\": \"mock:words\", \"pipeline_depth\": 9}", YN_E_INVALID, "pipeline_depth"},
      {"{\"model\": \"mock:words\", \"device\": \"toaster\"}", YN_E_INVALID, "device"},
      {"{\"model\": \"mock:words,fault_rank=2\", \"tensor_parallel_size\": 2}", YN_E_INVALID, "fault_rank"},
      {"{\"model\": \"mock:words\", \"kv_tiers\": []}", YN_E_UNSUPPORTED, "kv_tiers"},
      {"{\"model\": \"mock:words\", \"device\": \"cpu:1\"}", YN_E_INVALID, "device"},
  };
  size_t i;
  yn_bytes broken = {(const uint8_t *)"{\"model\": \"\xff\"}", 13}, missing = {NULL, 3};
  yn_engine out = {7};
  yn_buf plan = {0};
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    memset(&e, 0x7f, sizeof e);
    if (yn_engine_create(bytes(table[i].json), &out, &e) != table[i].want || e.status != table[i].want) {
      fprintf(stderr, "%s: %s %s\n", table[i].json, yn_status_name(e.status), e.message);
      _Exit(1);
    }
    CHECK(out.id == 0 || out.id == 7);
    message(table[i].says);
  }
  EXPECT(yn_engine_create(broken, &out, &e), YN_E_INVALID, &e);
  EXPECT(yn_engine_create(missing, &out, &e), YN_E_INVALID, &e);
  EXPECT(yn_engine_create(bytes("{\"model\": \"mock:words\"}"), NULL, &e), YN_E_INVALID, &e);
  EXPECT(yn_engine_create(bytes("{"), &out, NULL), YN_E_INVALID, NULL);
  EXPECT(yn_plan_memory(bytes("{\"model\": \"/no/such/directory\"}"), &plan, &e), YN_E_NOT_FOUND, &e);
  EXPECT(yn_plan_memory(bytes("{\"model\": \"mock:words\"}"), NULL, &e), YN_E_INVALID, &e);
}

typedef void (*edit)(yn_request *);
static uint32_t some_ids[] = {104, 105, 400};
static yn_bytes stops[65];
static char long_stop[2000];

static void no_prompt(yn_request *r) { memset(&r->prompt_text, 0, sizeof r->prompt_text); }
static void two_prompts(yn_request *r) { r->chat_json = bytes("{\"messages\": []}"); }
static void null_prompt(yn_request *r) { r->prompt_text.data = NULL; }
static void huge_prompt(yn_request *r) { r->prompt_text.len = (size_t)-1; }
static void broken_prompt(yn_request *r) { r->prompt_text = bytes("\xc3("); }
static void no_tokens(yn_request *r) { no_prompt(r); r->prompt_tokens = some_ids; }
static void bad_json(yn_request *r) { no_prompt(r); r->chat_json = bytes("{\"messages\": ["); }
static void json_array(yn_request *r) { no_prompt(r); r->chat_json = bytes("[1]"); }
static void none_wanted(yn_request *r) { r->max_tokens = 0; }
static void too_many_wanted(yn_request *r) { r->max_tokens = 0x80000000u; }
static void min_above_max(yn_request *r) { r->min_tokens = r->max_tokens + 1; }
static void nan_temperature(yn_request *r) { r->temperature = NAN; }
static void cold(yn_request *r) { r->temperature = -0.5f; }
static void infinite(yn_request *r) { r->temperature = INFINITY; }
static void zero_top_p(yn_request *r) { r->top_p = 0; }
static void large_top_p(yn_request *r) { r->top_p = 1.5f; }
static void negative_top_k(yn_request *r) { r->top_k = -2; }
static void negative_min_p(yn_request *r) { r->min_p = -0.1f; }
static void zero_repetition(yn_request *r) { r->repetition_penalty = 0; }
static void large_presence(yn_request *r) { r->presence_penalty = 2.5f; }
static void nan_frequency(yn_request *r) { r->frequency_penalty = NAN; }
static void many_choices(yn_request *r) { r->n = 129; }
static void no_choice(yn_request *r) { r->n = 0; }
static void some_priority(yn_request *r) { r->priority = 1; }
static void some_logprobs(yn_request *r) { r->n_logprobs = 1; }
static void prompt_logprobs(yn_request *r) { r->n_prompt_logprobs = 1; }
static void many_prompt_logprobs(yn_request *r) { r->output |= YN_OUT_PROMPT_LOGPROBS; r->n_prompt_logprobs = 21; }
static void many_logprobs(yn_request *r) { r->output |= YN_OUT_LOGPROBS; r->n_logprobs = 21; }
static void unknown_output(yn_request *r) { r->output |= 1u << 20; }
static void unknown_flag(yn_request *r) { r->flags |= 1u << 20; }
static void some_slo(yn_request *r) { r->ttft_slo_ms = 5; }
static void some_reserve(yn_request *r) { r->reserved = 5; }
static void foreign_queue(yn_request *r) { r->queue.id = 12345; }
static void null_stops(yn_request *r) { r->n_stop_texts = 2; }
static void empty_stop(yn_request *r) { stops[0] = bytes(""); r->stop_texts = stops; r->n_stop_texts = 1; }
static void broken_stop(yn_request *r) { stops[0] = bytes("\xff"); r->stop_texts = stops; r->n_stop_texts = 1; }
static void huge_stop(yn_request *r) { stops[0] = bytes(long_stop); r->stop_texts = stops; r->n_stop_texts = 1; }
static void many_stops(yn_request *r) {
  size_t i;
  for (i = 0; i < 65; i++) stops[i] = bytes("x");
  r->stop_texts = stops;
  r->n_stop_texts = 65;
}
static void null_stop_tokens(yn_request *r) { r->n_stop_tokens = 3; }
static void extra_array(yn_request *r) { r->extra_json = bytes("[]"); }
static void extra_typo(yn_request *r) { r->extra_json = bytes("{\"logit_bia\": {}}"); }
static void extra_later(yn_request *r) { r->extra_json = bytes("{\"json_schema\": {}}"); }
static void extra_wrong(yn_request *r) { r->extra_json = bytes("{\"logit_bias\": {\"5\": 101}}"); }
static void extra_broken(yn_request *r) { r->extra_json = bytes("{\"logit_bias\""); }
static void size_zero(yn_request *r) { r->struct_size = 0; }
static void size_odd(yn_request *r) { r->struct_size = 13; }
static void size_huge(yn_request *r) { r->struct_size = 1u << 30; }

static void refused_requests(void) {
  static const struct { edit edit; yn_status want; const char *says; } table[] = {
      {no_prompt, YN_E_INVALID, "prompt"}, {two_prompts, YN_E_INVALID, "prompt"},
      {null_prompt, YN_E_INVALID, "prompt_text"}, {huge_prompt, YN_E_INVALID, "prompt_text"},
      {broken_prompt, YN_E_INVALID, "UTF-8"}, {no_tokens, YN_E_INVALID, "token"},
      {bad_json, YN_E_INVALID, "chat_json"}, {json_array, YN_E_INVALID, "chat_json"},
      {none_wanted, YN_E_INVALID, "max_tokens"}, {too_many_wanted, YN_E_INVALID, "max_tokens"},
      {min_above_max, YN_E_INVALID, "min_tokens"}, {nan_temperature, YN_E_INVALID, "temperature"},
      {cold, YN_E_INVALID, "temperature"}, {infinite, YN_E_INVALID, "temperature"},
      {zero_top_p, YN_E_INVALID, "top_p"}, {large_top_p, YN_E_INVALID, "top_p"},
      {negative_top_k, YN_E_INVALID, "top_k"}, {negative_min_p, YN_E_INVALID, "min_p"},
      {zero_repetition, YN_E_INVALID, "repetition_penalty"}, {large_presence, YN_E_INVALID, "presence_penalty"},
      {nan_frequency, YN_E_INVALID, "frequency_penalty"}, {many_choices, YN_E_INVALID, "n is 129"},
      {no_choice, YN_E_INVALID, "n is 0"}, {some_priority, YN_E_INVALID, "priority"},
      {some_logprobs, YN_E_INVALID, "n_logprobs"}, {prompt_logprobs, YN_E_INVALID, "n_prompt_logprobs"},
      {many_prompt_logprobs, YN_E_INVALID, "n_prompt_logprobs"},
      {many_logprobs, YN_E_INVALID, "n_logprobs"}, {unknown_output, YN_E_UNSUPPORTED, "output"},
      {unknown_flag, YN_E_UNSUPPORTED, "flags"}, {some_slo, YN_E_UNSUPPORTED, "ttft_slo_ms"},
      {some_reserve, YN_E_UNSUPPORTED, "reserved"}, {foreign_queue, YN_E_BAD_HANDLE, "queue"},
      {null_stops, YN_E_INVALID, "stop_texts"}, {empty_stop, YN_E_INVALID, "stop_texts[0]"},
      {broken_stop, YN_E_INVALID, "stop_texts[0]"}, {huge_stop, YN_E_INVALID, "stop_texts[0]"},
      {many_stops, YN_E_INVALID, "n_stop_texts"}, {null_stop_tokens, YN_E_INVALID, "stop_tokens"},
      {extra_array, YN_E_INVALID, "extra_json"}, {extra_typo, YN_E_INVALID, "logit_bias"},
      {extra_later, YN_E_UNSUPPORTED, "json_schema"}, {extra_wrong, YN_E_INVALID, "logit_bias"},
      {extra_broken, YN_E_INVALID, "extra_json"}, {size_zero, YN_E_INVALID, "struct_size"},
      {size_odd, YN_E_INVALID, "struct_size"}, {size_huge, YN_E_INVALID, "struct_size"},
  };
  size_t i;
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    yn_request r = request_of(engine, "hello", 5, 0);
    yn_request_id id = 99;
    yn_status got;
    table[i].edit(&r);
    memset(&e, 0x7f, sizeof e);
    got = yn_engine_submit(engine, &r, &id, &e);
    if (got != table[i].want || e.status != got) {
      fprintf(stderr, "row %u (%s): %s: %s\n", (unsigned)i, table[i].says, yn_status_name(got), e.message);
      _Exit(1);
    }
    message(table[i].says);
    CHECK(id == 99 || id == 0);
  }
  printf("%u configs and requests refused\n", (unsigned)i + 20);
}

/* Taken, and answered by DONE with a status. */
static void late_answers(void) {
  static char long_prompt[40000];
  yn_request r[5];
  tally t;
  size_t i;
  memset(long_prompt, 'x', sizeof long_prompt - 1);
  for (i = 0; i < 5; i++) r[i] = request_of(engine, "hello", 5, i);
  r[0].prompt_text = bytes(long_prompt);
  no_prompt(&r[1]);
  r[1].prompt_tokens = some_ids;
  r[1].n_prompt_tokens = 3;
  r[2].stop_tokens = some_ids;
  r[2].n_stop_tokens = 3;
  r[3].extra_json = bytes("{\"logit_bias\": {\"300\": 1}}");
  r[4].prompt_text = bytes("");
  r[4].prompt_text.data = (const uint8_t *)"";
  tally_init(&t, 5, 1);
  for (i = 0; i < 5; i++) {
    yn_status s = yn_engine_submit(engine, &r[i], NULL, &e);
    CHECK(s == YN_OK || (i == 4 && s == YN_E_INVALID));
    if (s != YN_OK) t.done++;
  }
  read_until(engine, &t, 5);
  for (i = 0; i < 5; i++) CHECK(!t.all[i].done || (t.all[i].status == YN_E_INVALID && t.all[i].text_len == 0));
  CHECK(t.all[0].done && t.all[1].done && t.all[2].done && t.all[3].done);
  tally_free(&t);
}

static void struct_sizes(void) {
  union { yn_request r; uint64_t words[64]; } longer, shorter;
  tally t;
  memset(&longer, 0, sizeof longer);
  longer.r = request_of(engine, "longer", 2, 0);
  longer.r.struct_size = sizeof longer;
  tally_init(&t, 2, 1);
  submit(engine, &longer.r);
  longer.words[63] = 1;
  EXPECT(yn_engine_submit(engine, &longer.r, NULL, &e), YN_E_UNSUPPORTED, &e);
  /* A caller of an early version: no stop strings, no extra_json. */
  memset(&shorter, 0xff, sizeof shorter);
  EXPECT(yn_request_init(engine, &shorter.r, (uint32_t)offsetof(yn_request, stop_tokens)), YN_OK, NULL);
  CHECK(shorter.r.struct_size == offsetof(yn_request, stop_tokens) && shorter.r.n_stop_tokens == (size_t)-1);
  shorter.r.prompt_text = bytes("shorter");
  shorter.r.max_tokens = 2;
  shorter.r.user_data = 1;
  submit(engine, &shorter.r);
  read_until(engine, &t, 2);
  CHECK(t.all[0].status == YN_OK && t.all[1].status == YN_OK);
  tally_free(&t);
}

static void engine_handles(void) {
  static uint64_t buffer[1024];
  yn_request r = request_of(engine, "x", 1, 0);
  yn_engine none = {0}, stale = {engine.id ^ (1ull << 40)};
  yn_stats s;
  yn_buf buf = {0};
  size_t used = 7;
  int32_t fd = -1;
  EXPECT(yn_engine_submit(engine, NULL, NULL, &e), YN_E_INVALID, &e);
  EXPECT(yn_engine_submit(engine, (const yn_request *)((const char *)&r + 1), NULL, &e), YN_E_INVALID, &e);
  EXPECT(yn_engine_submit(none, &r, NULL, &e), YN_E_BAD_HANDLE, &e);
  EXPECT(yn_engine_submit(stale, &r, NULL, NULL), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_request_init(engine, NULL, sizeof r), YN_E_INVALID, NULL);
  EXPECT(yn_request_init(engine, &r, 3), YN_E_INVALID, NULL);
  EXPECT(yn_request_init(stale, &r, sizeof r), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_poll(engine, NULL, 4096, 0, &used), YN_E_INVALID, NULL);
  EXPECT(yn_engine_poll(engine, (char *)buffer + 4, 4096, 0, &used), YN_E_INVALID, NULL);
  EXPECT(yn_engine_poll(engine, buffer, 4095, 0, &used), YN_E_TOO_SMALL, NULL);
  EXPECT(yn_engine_poll(engine, buffer, 4096, 0, NULL), YN_E_INVALID, NULL);
  EXPECT(yn_engine_poll(stale, buffer, 4096, 0, &used), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_cancel(stale, 1), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_cancel(engine, 0), YN_OK, NULL);
  EXPECT(yn_engine_cancel(engine, (yn_request_id)-1), YN_OK, NULL);
  EXPECT(yn_engine_fd(engine, NULL), YN_E_INVALID, NULL);
  EXPECT(yn_engine_fd(none, &fd), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_wake(none), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_drain(none, 0), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_free(stale), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_stats(engine, NULL), YN_E_INVALID, NULL);
  memset(&s, 0, sizeof s);
  EXPECT(yn_engine_stats(engine, &s), YN_E_INVALID, NULL);
  s.struct_size = sizeof s;
  EXPECT(yn_engine_stats(stale, &s), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_info(engine, NULL, &e), YN_E_INVALID, &e);
  EXPECT(yn_engine_info(none, &buf, &e), YN_E_BAD_HANDLE, &e);
  EXPECT(yn_engine_metrics(engine, NULL), YN_E_INVALID, NULL);
  EXPECT(yn_engine_metrics(none, &buf), YN_E_BAD_HANDLE, NULL);
}

static void queue_handles(void) {
  static uint64_t buffer[1024];
  yn_queue no_queue = {0}, q = {0};
  size_t used = 7;
  int32_t fd = -1;
  EXPECT(yn_queue_create(NULL, &e), YN_E_INVALID, &e);
  EXPECT(yn_queue_poll(no_queue, buffer, 4096, 0, &used), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_queue_fd(no_queue, &fd), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_queue_wake(no_queue), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_queue_free(no_queue), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_queue_create(&q, NULL), YN_OK, NULL);
  EXPECT(yn_queue_poll(q, buffer, 16, 0, &used), YN_E_TOO_SMALL, NULL);
  EXPECT(yn_queue_fd(q, NULL), YN_E_INVALID, NULL);
  EXPECT(yn_queue_poll(q, buffer, 4096, 0, &used), YN_E_TIMEOUT, NULL);
  CHECK(used == 0);
  EXPECT(yn_queue_free(q), YN_OK, NULL);
  EXPECT(yn_log_to_queue(q, 3), YN_E_BAD_HANDLE, NULL);
}

static void tokenizer_handles(void) {
  yn_engine none = {0};
  yn_tokenizer t = {0}, no_tokenizer = {0};
  yn_buf buf = {0};
  size_t n = 0;
  uint32_t ids[4];
  EXPECT(yn_tokenizer_open(bytes("/no/such/file"), &t, &e), YN_E_NOT_FOUND, &e);
  EXPECT(yn_tokenizer_open(bytes("/dev/null"), &t, &e), YN_E_INVALID, &e);
  EXPECT(yn_tokenizer_open(bytes("/no\0such"), NULL, &e), YN_E_INVALID, &e);
  EXPECT(yn_tokenizer_free(no_tokenizer), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_tokenizer(none, &t), YN_E_BAD_HANDLE, NULL);
  EXPECT(yn_engine_tokenizer(engine, NULL), YN_E_INVALID, NULL);
  EXPECT(yn_engine_tokenizer(engine, &t), YN_OK, NULL);
  EXPECT(yn_tokenize(no_tokenizer, bytes("x"), 0, ids, &n, &e), YN_E_BAD_HANDLE, &e);
  EXPECT(yn_tokenize(t, bytes("x"), 0, ids, NULL, &e), YN_E_INVALID, &e);
  n = 4;
  EXPECT(yn_tokenize(t, bytes("x"), 0, NULL, &n, &e), YN_E_INVALID, &e);
  EXPECT(yn_tokenize(t, bytes("x"), 1u << 30, ids, &n, &e), YN_E_UNSUPPORTED, &e);
  EXPECT(yn_tokenize(t, bytes("\xff"), 0, ids, &n, &e), YN_E_INVALID, &e);
  EXPECT(yn_tokenize(t, bytes("12345"), 0, ids, &n, &e), YN_E_TOO_SMALL, &e);
  CHECK(n == 5);
  EXPECT(yn_detokenize(t, some_ids, 3, 0, &buf, &e), YN_E_INVALID, &e);
  EXPECT(yn_detokenize(t, NULL, 3, 0, &buf, &e), YN_E_INVALID, &e);
  EXPECT(yn_detokenize(t, some_ids, 2, 1u << 30, &buf, &e), YN_E_UNSUPPORTED, &e);
  EXPECT(yn_detokenize(t, some_ids, 2, 0, NULL, &e), YN_E_INVALID, &e);
  EXPECT(yn_chat_render(t, bytes("{"), &buf, &e), YN_E_INVALID, &e);
  EXPECT(yn_chat_render(t, bytes("{}"), NULL, &e), YN_E_INVALID, &e);
  EXPECT(yn_chat_render(no_tokenizer, bytes("{}"), &buf, &e), YN_E_BAD_HANDLE, &e);
  EXPECT(yn_tokenizer_free(t), YN_OK, NULL);
  EXPECT(yn_log_to_callback(NULL, NULL, 6), YN_E_INVALID, NULL);
  CHECK(strcmp(yn_status_name(YN_E_BUSY), "YN_E_BUSY") == 0);
  CHECK(strcmp(yn_status_name(1), "YN_E_UNKNOWN") == 0 && strcmp(yn_status_name(-1000), "YN_E_UNKNOWN") == 0);
  CHECK(yn_version() >> 16 == 1 && yn_build_info().len > 10);
}

int main(void) {
  memset(long_stop, 's', sizeof long_stop - 1);
  memset(&e, 0, sizeof e);
  configs();
  engine = create("{\"model\": \"mock:words\"}");
  serves();
  refused_requests();
  serves();
  late_answers();
  serves();
  struct_sizes();
  engine_handles();
  queue_handles();
  tokenizer_handles();
  serves();
  check_idle(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  CHECK(served == 4);
  return 0;
}
