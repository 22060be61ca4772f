/* Requests with one thing wrong, or at the edge of right, in every field: a typed answer that names it, and the engine serves on.
   usage: requests CONFIG VOCABULARY */
#include "rows.h"
#include <float.h>
#include <limits.h>
#include <malloc.h>
#include <math.h>
#include <stddef.h>

#define AT(field) offsetof(yn_request, field)
#define MODEL_LEN 100
#define MIB ((size_t)1 << 20)

static uint32_t vocabulary;
static char anywhere[2048];

static yn_request good(void) { return request_of(engine, "hello", 3, 7); }

static void floats(void) {
  static const struct { const char *name; size_t at; float value; int when; } table[] = {
#define BAD(f, x) {#f, AT(f), x, AT_ONCE}
#define EDGE(f, x) {#f, AT(f), x, TAKEN}
#define NEVER(f) BAD(f, NAN), BAD(f, -NAN), BAD(f, INFINITY), BAD(f, -INFINITY), BAD(f, FLT_MAX), BAD(f, -FLT_MAX)
      NEVER(temperature), BAD(temperature, -0.5f), BAD(temperature, -1e-45f), BAD(temperature, 100.00001f),
      EDGE(temperature, 0), EDGE(temperature, -0.0f), EDGE(temperature, 1e-45f), EDGE(temperature, 100),
      NEVER(top_p), BAD(top_p, 0), BAD(top_p, -0.0f), BAD(top_p, -1), BAD(top_p, 1.0000001f),
      EDGE(top_p, 1e-45f), EDGE(top_p, 1),
      NEVER(min_p), BAD(min_p, -1e-45f), BAD(min_p, 1.0000001f), EDGE(min_p, 0), EDGE(min_p, -0.0f), EDGE(min_p, 1),
      NEVER(repetition_penalty), BAD(repetition_penalty, 0), BAD(repetition_penalty, -0.0f),
      BAD(repetition_penalty, -1), BAD(repetition_penalty, 100.00001f), EDGE(repetition_penalty, 1e-45f),
      EDGE(repetition_penalty, 100),
      NEVER(presence_penalty), BAD(presence_penalty, 2.0000003f), BAD(presence_penalty, -2.0000003f),
      EDGE(presence_penalty, 2), EDGE(presence_penalty, -2),
      NEVER(frequency_penalty), BAD(frequency_penalty, 2.0000003f), BAD(frequency_penalty, -2.0000003f),
      EDGE(frequency_penalty, 2), EDGE(frequency_penalty, -2),
  };
  size_t i, sampled;
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    /* Greedy, then sampled. */
    for (sampled = 0; sampled < 2; sampled++) {
      yn_request r = good();
      r.temperature = (float)sampled;
      memcpy((char *)&r + table[i].at, &table[i].value, sizeof table[i].value);
      try_request(table[i].name, &r, table[i].when, YN_E_INVALID, table[i].name);
    }
  }
}

static void integers(void) {
  static const struct { const char *name; size_t at; uint32_t value; int when; yn_status want; } table[] = {
#define INVALID(f, x) {#f, AT(f), (uint32_t)(x), AT_ONCE, YN_E_INVALID}
#define LATER(f, x) {#f, AT(f), (uint32_t)(x), AT_ONCE, YN_E_UNSUPPORTED}
#define FINE(f, x) {#f, AT(f), (uint32_t)(x), TAKEN, YN_OK}
      INVALID(max_tokens, 0), INVALID(max_tokens, (1u << 30) + 1), INVALID(max_tokens, 1u << 31),
      INVALID(max_tokens, UINT32_MAX - 1), FINE(max_tokens, 1), FINE(max_tokens, 1u << 30),
      FINE(max_tokens, YN_MAX_TOKENS_MODEL),
      INVALID(min_tokens, 4), INVALID(min_tokens, 1u << 31), INVALID(min_tokens, UINT32_MAX), FINE(min_tokens, 3),
      INVALID(n, 0), INVALID(n, 129), INVALID(n, 1u << 31), INVALID(n, UINT32_MAX), FINE(n, 1), FINE(n, 128),
      INVALID(top_k, -2), INVALID(top_k, INT32_MIN), FINE(top_k, -1), FINE(top_k, 0), FINE(top_k, 1), FINE(top_k, INT32_MAX),
      INVALID(n_logprobs, 1), INVALID(n_logprobs, UINT32_MAX), INVALID(n_prompt_logprobs, 1),
      INVALID(n_prompt_logprobs, UINT32_MAX),
      INVALID(priority, 1), INVALID(priority, -1), INVALID(priority, INT32_MAX), INVALID(priority, INT32_MIN),
      FINE(timeout_ms, 100000), FINE(timeout_ms, UINT32_MAX), FINE(timeout_ms, -1),
      LATER(ttft_slo_ms, 1), LATER(ttft_slo_ms, UINT32_MAX), LATER(tpot_slo_ms, 1), LATER(tpot_slo_ms, UINT32_MAX),
      LATER(reserved, 1), LATER(reserved, UINT32_MAX),
      INVALID(struct_size, 0), INVALID(struct_size, 4), INVALID(struct_size, 7), INVALID(struct_size, 13),
      INVALID(struct_size, sizeof(yn_request) - 4), INVALID(struct_size, 4104), INVALID(struct_size, 1u << 30),
      INVALID(struct_size, UINT32_MAX), INVALID(struct_size, UINT32_MAX & ~7u),
      FINE(output, 0), FINE(output, YN_OUT_TOKENS | YN_OUT_FINAL_ONLY), FINE(seed, UINT32_MAX),
  };
  size_t i;
  uint32_t bit;
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    yn_request r = good();
    memcpy((char *)&r + table[i].at, &table[i].value, sizeof table[i].value);
    try_request(table[i].name, &r, table[i].when, table[i].want, table[i].name);
  }
  for (bit = 5; bit < 32; bit++) {
    yn_request r = good();
    r.output |= 1u << bit;
    try_request("an unknown bit of output", &r, AT_ONCE, YN_E_UNSUPPORTED, "output");
  }
  for (bit = 3; bit < 32; bit++) {
    yn_request r = good();
    r.flags |= 1u << bit;
    try_request("an unknown bit of flags", &r, AT_ONCE, YN_E_UNSUPPORTED, "flags");
  }
  for (bit = 0; bit < 2; bit++) {
    yn_request r = good();
    r.output |= bit ? YN_OUT_PROMPT_LOGPROBS : YN_OUT_LOGPROBS;
    *(bit ? &r.n_prompt_logprobs : &r.n_logprobs) = 20;
    try_request("most logprobs", &r, TAKEN, YN_OK, "");
    *(bit ? &r.n_prompt_logprobs : &r.n_logprobs) = 21;
    try_request("too many logprobs", &r, AT_ONCE, YN_E_INVALID, bit ? "n_prompt_logprobs" : "n_logprobs");
  }
}

/* Text with a NUL inside is text; these are not. */
static const char *const broken[] = {"\xff", "a\x80", "\xc3(", "\xc0\x80", "\xed\xa0\x80", "\xf0\x9f\xa6", "\xf4\x90\x80\x80", "ok \xe4\xb8"};
#define BROKEN (sizeof broken / sizeof *broken)

static void place(yn_request *r, size_t at, yn_bytes b) {
  yn_bytes none = {NULL, 0};
  if (at != AT(prompt_text) && (at == AT(chat_json))) r->prompt_text = none;
  memcpy((char *)r + at, &b, sizeof b);
}

/* Pointers, lengths and encodings of every text. */
static void texts(void) {
  static const struct { const char *name; size_t at, most; int utf8; } table[] = {
      {"prompt_text", AT(prompt_text), 16 * MIB, 1},
      {"chat_json", AT(chat_json), 16 * MIB, 1},
      {"cache_salt", AT(cache_salt), 1024, 0},
      {"extra_json", AT(extra_json), MIB, 1},
  };
  size_t i, k;
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    const yn_bytes bad[] = {{NULL, 1}, {NULL, SIZE_MAX}, {(const uint8_t *)anywhere, SIZE_MAX},
                            {(const uint8_t *)anywhere, (size_t)1 << 62}, {(const uint8_t *)anywhere, table[i].most + 1}};
    for (k = 0; k < sizeof bad / sizeof *bad; k++) {
      yn_request r = good();
      place(&r, table[i].at, bad[k]);
      try_request(k < 2 ? "NULL with a length" : "a length from nowhere", &r, AT_ONCE, YN_E_INVALID, table[i].name);
    }
    for (k = 0; k < BROKEN; k++) {
      yn_request r = good();
      place(&r, table[i].at, bytes(broken[k]));
      try_request("broken UTF-8", &r, table[i].utf8 ? AT_ONCE : TAKEN, YN_E_INVALID, table[i].name);
    }
    for (k = 0; k < BROKEN && table[i].at != AT(cache_salt) && table[i].at != AT(prompt_text); k++) {
      char json[64];
      yn_request r = good();
      snprintf(json, sizeof json, "{\"a\": \"%s\"}", broken[k]);
      place(&r, table[i].at, bytes(json));
      try_request("broken UTF-8 in a JSON string", &r, AT_ONCE, YN_E_INVALID, table[i].name);
    }
  }
}

static void stops(void) {
  static const yn_bytes nul = {(const uint8_t *)"a\0b", 3};
  yn_bytes many[65];
  const yn_bytes bad[] = {{NULL, 0}, {(const uint8_t *)"", 0}, {NULL, 5}, {(const uint8_t *)anywhere, 1025},
                          {(const uint8_t *)anywhere, SIZE_MAX}};
  size_t i;
  yn_request r;
  for (i = 0; i < 65; i++) many[i] = bytes("\x7f");
  for (i = 0; i < sizeof bad / sizeof *bad; i++) {
    r = good();
    many[2] = bad[i];
    r.stop_texts = many;
    r.n_stop_texts = 4;
    try_request("a stop text that is none", &r, AT_ONCE, YN_E_INVALID, "stop_texts[2]");
  }
  for (i = 0; i < BROKEN; i++) {
    r = good();
    many[2] = bytes(broken[i]);
    r.stop_texts = many;
    r.n_stop_texts = 64;
    try_request("a stop text of broken UTF-8", &r, AT_ONCE, YN_E_INVALID, "stop_texts[2]");
  }
  many[2] = nul;
  r = good();
  r.stop_texts = many;
  r.n_stop_texts = 64;
  try_request("a stop text with NUL", &r, TAKEN, YN_OK, "");
  for (i = 0; i < 3; i++) {
    static const size_t counts[] = {65, 1u << 20, SIZE_MAX};
    r.n_stop_texts = counts[i];
    try_request("too many stop texts", &r, AT_ONCE, YN_E_INVALID, "n_stop_texts");
  }
  r.stop_texts = NULL;
  r.n_stop_texts = 2;
  try_request("NULL for stop texts", &r, AT_ONCE, YN_E_INVALID, "stop_texts");
  r.stop_texts = (const yn_bytes *)(const void *)(anywhere + 1);
  try_request("misaligned stop texts", &r, AT_ONCE, YN_E_INVALID, "stop_texts");
}

static void ids(void) {
  static uint32_t list[MODEL_LEN * 100];
  yn_bytes none = {NULL, 0};
  size_t i;
  yn_request r;
  for (i = 0; i < sizeof list / sizeof *list; i++) list[i] = 104;
  for (i = 0; i < 4; i++) {
    static const size_t counts[] = {1, 65, 1u << 20, SIZE_MAX};
    r = good();
    r.n_stop_tokens = counts[i];
    try_request("NULL for stop tokens", &r, AT_ONCE, YN_E_INVALID, "stop_tokens");
    r.stop_tokens = list;
    if (i > 0) try_request("too many stop tokens", &r, AT_ONCE, YN_E_INVALID, "n_stop_tokens");
    r = good();
    r.prompt_text = none;
    r.n_prompt_tokens = counts[i];
    try_request("NULL for prompt tokens", &r, AT_ONCE, YN_E_INVALID, "prompt_tokens");
    r.prompt_tokens = list;
    r.n_prompt_tokens = counts[i] - 1;
    if (i == 0) try_request("no prompt tokens", &r, AT_ONCE, YN_E_INVALID, "no tokens");
    if (i == 3) try_request("a length from nowhere", &r, AT_ONCE, YN_E_INVALID, "prompt_tokens");
  }
  r.n_prompt_tokens = (1u << 24) + 1;
  try_request("a length from nowhere", &r, AT_ONCE, YN_E_INVALID, "prompt_tokens");
  r.n_prompt_tokens = MODEL_LEN - 1;
  try_request("the longest prompt", &r, TAKEN, YN_OK, "");
  r.n_prompt_tokens = MODEL_LEN;
  try_request("a prompt too long by one", &r, AT_DONE, YN_E_INVALID, "max_model_len");
  r.n_prompt_tokens = MODEL_LEN * 100;
  try_request("a prompt too long by far", &r, AT_DONE, YN_E_INVALID, "max_model_len");
  r.prompt_tokens = (const uint32_t *)(const void *)(anywhere + 2);
  try_request("misaligned prompt tokens", &r, AT_ONCE, YN_E_INVALID, "prompt_tokens");
  for (i = 0; i < 3; i++) {
    uint32_t beyond[3];
    const uint32_t values[] = {vocabulary, 1u << 31, UINT32_MAX};
    beyond[0] = beyond[1] = 104;
    beyond[2] = values[i];
    r = good();
    r.stop_tokens = beyond;
    r.n_stop_tokens = 3;
    try_request("a stop token beyond the vocabulary", &r, AT_DONE, YN_E_INVALID, "stop_tokens[2]");
    r = good();
    r.prompt_text = none;
    r.prompt_tokens = beyond;
    r.n_prompt_tokens = 3;
    try_request("a prompt token beyond the vocabulary", &r, AT_DONE, YN_E_INVALID, "prompt_tokens[2]");
  }
}

typedef struct { const char *json; int when; yn_status want; const char *says; } json_row;

static void chats(void) {
#define USER "{\"role\": \"user\", \"content\": \"x\"}"
#define WITH(rest) "{\"messages\": [" USER "], " rest "}"
  static const json_row table[] = {
      {"", AT_ONCE, YN_E_INVALID, "chat_json"}, {"{", AT_ONCE, YN_E_INVALID, "chat_json"},
      {"[1]", AT_ONCE, YN_E_INVALID, "chat_json"}, {"7", AT_ONCE, YN_E_INVALID, "chat_json"},
      {"null", AT_ONCE, YN_E_INVALID, "chat_json"}, {"\"x\"", AT_ONCE, YN_E_INVALID, "chat_json"},
      {"{} {}", AT_ONCE, YN_E_INVALID, "chat_json"}, {"\xef\xbb\xbf{}", AT_ONCE, YN_E_INVALID, "chat_json"},
      {"{'messages': []}", AT_ONCE, YN_E_INVALID, "chat_json"}, {"{\"messages\": [],}", AT_ONCE, YN_E_INVALID, "chat_json"},
      {WITH("\"a\": NaN"), AT_ONCE, YN_E_INVALID, "chat_json"}, {WITH("\"a\": 1e999"), AT_ONCE, YN_E_INVALID, "chat_json"},
      {WITH("\"messages\": []"), AT_ONCE, YN_E_INVALID, "twice"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"content\": \"b\"}]}", AT_ONCE, YN_E_INVALID, "twice"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}", AT_ONCE, YN_E_INVALID, "chat_json"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"\n\"}]}", AT_ONCE, YN_E_INVALID, "chat_json"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"\\u0000\"}]}", TAKEN, YN_OK, ""},
      {"{}", AT_DONE, YN_E_INVALID, "messages"}, {"{\"messages\": []}", AT_DONE, YN_E_INVALID, "messages"},
      {"{\"messages\": null}", AT_DONE, YN_E_INVALID, "messages"}, {"{\"messages\": {}}", AT_DONE, YN_E_INVALID, "messages"},
      {"{\"messages\": [7]}", AT_DONE, YN_E_INVALID, "messages[0]"}, {"{\"messages\": [{}]}", AT_DONE, YN_E_INVALID, "messages[0]"},
      {"{\"messages\": [" USER ", {\"role\": 7}]}", AT_DONE, YN_E_INVALID, "messages[1]"},
      {"{\"message\": [" USER "]}", AT_DONE, YN_E_INVALID, "did you mean \"messages\""},
      {WITH("\"frobnicate\": 1"), AT_DONE, YN_E_INVALID, "frobnicate"}, {WITH("\"\": 1"), AT_DONE, YN_E_INVALID, "unknown"},
      {WITH("\"\\u0000\": 1"), AT_DONE, YN_E_INVALID, "unknown"}, {WITH("\"tools\": 7"), AT_DONE, YN_E_INVALID, "tools"},
      {WITH("\"documents\": {}"), AT_DONE, YN_E_INVALID, "documents"}, {WITH("\"date_string\": 7"), AT_DONE, YN_E_INVALID, "date_string"},
      {WITH("\"add_generation_prompt\": \"yes\""), AT_DONE, YN_E_INVALID, "add_generation_prompt"},
      {WITH("\"continue_final_message\": 7"), AT_DONE, YN_E_INVALID, "continue_final_message"},
      {WITH("\"chat_template_kwargs\": []"), AT_DONE, YN_E_INVALID, "chat_template_kwargs"},
      {WITH("\"chat_template_kwargs\": {\"messages\": []}"), AT_DONE, YN_E_INVALID, "chat_template_kwargs"},
      {WITH("\"chat_template_kwargs\": {\"a\": null}, \"tools\": null, \"add_generation_prompt\": false"), TAKEN, YN_OK, ""},
  };
  static char deep[2000];
  yn_bytes nul = {(const uint8_t *)"{\"messages\": [{\"role\": \"user\", \"content\": \"\0\"}]}", 48};
  size_t i;
  yn_request r;
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    r = good();
    place(&r, AT(chat_json), bytes(table[i].json));
    if (table[i].json[0] == 0) r.chat_json.len = 0;
    try_request(table[i].json, &r, table[i].when, table[i].want, table[i].says);
  }
  place(&r, AT(chat_json), nul);
  try_request("a NUL in a JSON string", &r, AT_ONCE, YN_E_INVALID, "chat_json");
  memset(deep, '[', sizeof deep - 1);
  place(&r, AT(chat_json), bytes(deep));
  try_request("a deep chat", &r, AT_ONCE, YN_E_INVALID, "chat_json");
}

static void extras(void) {
  static const json_row table[] = {
      {" ", AT_ONCE, YN_E_INVALID, "extra_json"}, {"{", AT_ONCE, YN_E_INVALID, "extra_json"},
      {"[]", AT_ONCE, YN_E_INVALID, "extra_json"}, {"7", AT_ONCE, YN_E_INVALID, "extra_json"},
      {"null", AT_ONCE, YN_E_INVALID, "extra_json"}, {"{}x", AT_ONCE, YN_E_INVALID, "extra_json"},
      {"{\"logit_bia\": {}}", AT_ONCE, YN_E_INVALID, "\"logit_bias\""}, {"{\"frobnicate\": 1}", AT_ONCE, YN_E_INVALID, "frobnicate"},
      {"{\"\": 1}", AT_ONCE, YN_E_INVALID, "unknown"}, {"{\"temperature\": 1}", AT_ONCE, YN_E_INVALID, "temperature"},
      {"{\"json_schema\": {}}", AT_ONCE, YN_E_UNSUPPORTED, "json_schema"}, {"{\"regex\": \"a\"}", AT_ONCE, YN_E_UNSUPPORTED, "regex"},
      {"{\"grammar\": \"a\"}", AT_ONCE, YN_E_UNSUPPORTED, "grammar"}, {"{\"lora\": \"a\"}", AT_ONCE, YN_E_UNSUPPORTED, "lora"},
      {"{\"images\": []}", AT_ONCE, YN_E_UNSUPPORTED, "images"}, {"{\"best_of\": 2}", AT_ONCE, YN_E_UNSUPPORTED, "best_of"},
      {"{\"logit_bias\": []}", AT_ONCE, YN_E_INVALID, "logit_bias"}, {"{\"logit_bias\": 7}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5\": \"1\"}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5\": null}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5\": {\"a\": 1}}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"x\": 1}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"\": 1}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"-1\": 1}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5.0\": 1}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"4294967296\": 1}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5\": 100.1}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5\": -100.1}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5\": 1e300}}", AT_ONCE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5\": 1e999}}", AT_ONCE, YN_E_INVALID, "extra_json"},
      {"{\"logit_bias\": {\"5\": 1, \"5\": 2}}", AT_ONCE, YN_E_INVALID, "twice"},
      {"{\"logit_bias\": {\"5\": 1, \"05\": 2}}", AT_ONCE, YN_E_INVALID, "twice"},
      {"{\"logit_bias\": {}, \"logit_bias\": {}}", AT_ONCE, YN_E_INVALID, "twice"},
      {"{\"logit_bias\": {\"4294967295\": 1}}", AT_DONE, YN_E_INVALID, "logit_bias"},
      {"{\"logit_bias\": {\"5\": 100, \"6\": -100, \"7\": 0}}", TAKEN, YN_OK, ""},
      {"{\"logit_bias\": null, \"lora\": null}", TAKEN, YN_OK, ""}, {"{}", TAKEN, YN_OK, ""},
  };
  static char many[8000];
  size_t i, at = (size_t)snprintf(many, sizeof many, "{\"logit_bias\": {\"0\": 1");
  yn_request r;
  for (i = 0; i < sizeof table / sizeof *table; i++) {
    r = good();
    r.extra_json = bytes(table[i].json);
    try_request(table[i].json, &r, table[i].when, table[i].want, table[i].says);
  }
  for (i = 1; i <= 300; i++) at += (size_t)snprintf(many + at, sizeof many - at, ", \"%u\": 1", (unsigned)i);
  snprintf(many + at, sizeof many - at, "}}");
  r.extra_json = bytes(many);
  try_request("301 biases", &r, AT_ONCE, YN_E_INVALID, "at most 300");
}

static void prompts_and_queues(yn_queue freed) {
  static const char *const no_prompt = "expected exactly one of prompt_tokens, prompt_text and chat_json";
  static uint32_t list[] = {104, 105};
  yn_request r = good();
  yn_bytes none = {NULL, 0};
  r.prompt_text = none;
  try_request("no prompt", &r, AT_ONCE, YN_E_INVALID, no_prompt);
  r.prompt_tokens = list;
  r.n_prompt_tokens = 2;
  r.chat_json = bytes("{\"messages\": []}");
  try_request("tokens and a chat", &r, AT_ONCE, YN_E_INVALID, no_prompt);
  r.prompt_text = bytes("x");
  try_request("three prompts", &r, AT_ONCE, YN_E_INVALID, no_prompt);
  r.chat_json = none;
  try_request("tokens and text", &r, AT_ONCE, YN_E_INVALID, no_prompt);
  r = good();
  r.prompt_text.len = 0;
  r.flags |= YN_REQ_NO_SPECIAL_TOKENS;
  try_request("an empty prompt", &r, AT_DONE, YN_E_INVALID, "no tokens");
  r.prompt_text.data = (const uint8_t *)"a\0b";
  r.prompt_text.len = 3;
  try_request("a prompt with NUL", &r, TAKEN, YN_OK, "");
  r = good();
  r.max_tokens = YN_MAX_TOKENS_MODEL;
  r.min_tokens = UINT32_MAX;
  try_request("min_tokens beyond the model", &r, AT_DONE, YN_E_INVALID, "min_tokens");
  r = good();
  r.queue.id = 12345;
  try_request("no queue", &r, AT_ONCE, YN_E_BAD_HANDLE, "queue");
  r.queue.id = engine.id;
  try_request("an engine as a queue", &r, AT_ONCE, YN_E_BAD_HANDLE, "queue");
  r.queue = freed;
  try_request("a freed queue", &r, AT_ONCE, YN_E_BAD_HANDLE, "queue");
}

static void struct_sizes(void) {
  union { yn_request r; uint64_t words[512]; } longer;
  size_t i;
  memset(&longer, 0, sizeof longer);
  longer.r = good();
  longer.r.struct_size = sizeof longer;
  try_request("a longer struct", &longer.r, TAKEN, YN_OK, "");
  for (i = sizeof(yn_request) / 8; i < 512; i += 40) {
    longer.words[i] = 1ull << 63;
    try_request("a field of a later version", &longer.r, AT_ONCE, YN_E_UNSUPPORTED, "does not know");
    longer.words[i] = 0;
  }
  /* A caller of an early version: every length that ends behind a field. */
  for (i = 8; i < sizeof(yn_request); i += 8) {
    yn_request r;
    memset(&r, 0xff, sizeof r);
    EXPECT(yn_request_init(engine, &r, (uint32_t)i), YN_OK, NULL);
    if (i >= AT(chat_json)) r.prompt_text = bytes("shorter");
    if (i >= AT(temperature)) r.max_tokens = 2;
    if (i >= AT(queue)) r.user_data = 7;
    if (i < AT(chat_json)) try_request("a short struct", &r, AT_ONCE, YN_E_INVALID, i > AT(n_prompt_tokens) ? "prompt" : "");
    else try_request("a shorter struct", &r, TAKEN, YN_OK, "");
  }
}

static void all(yn_queue freed) {
  floats();
  integers();
  texts();
  stops();
  ids();
  chats();
  extras();
  prompts_and_queues(freed);
  struct_sizes();
}

/* Priorities where they count. */
static void priorities(void) {
  static const int32_t extremes[] = {INT32_MIN, -1, 0, 1, INT32_MAX};
  size_t i;
  engine = create("{\"model\": \"mock:words\", \"scheduling_policy\": \"priority\"}");
  for (i = 0; i < sizeof extremes / sizeof *extremes; i++) {
    yn_request r = good();
    r.priority = extremes[i];
    try_request("a priority", &r, TAKEN, YN_OK, "");
  }
  check_idle(engine);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
}

int main(int argc, char **argv) {
  yn_queue freed = {0};
  struct mallinfo2 before, after;
  unsigned once;
  yn_stats s;
  CHECK(argc == 3);
  vocabulary = (uint32_t)strtoul(argv[2], NULL, 10);
  memset(anywhere, 'x', sizeof anywhere);
  EXPECT(yn_queue_create(&freed, NULL), YN_OK, NULL);
  EXPECT(yn_queue_free(freed), YN_OK, NULL);
  engine = create(argv[1]);
  all(freed);
  once = rows;
  check_idle(engine);
  before = mallinfo2();
  all(freed);
  check_idle(engine);
  after = mallinfo2();
  printf("%u rows of requests, %u wrong; the second time took %ld bytes\n", once, wrong,
         (long)after.uordblks - (long)before.uordblks);
  CHECK(after.uordblks < before.uordblks + 256 * 1024);
  s = stats_of(engine);
  CHECK(s.state == YN_STATE_READY && s.waiting == 0 && s.running == 0 && s.rejected == 0);
  EXPECT(yn_engine_free(engine), YN_OK, NULL);
  priorities();
  CHECK(wrong == 0);
  return 0;
}
