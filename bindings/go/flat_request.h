/* A request without pointers, for hosts whose memory moves or may not be pointed to: Go and Java. */
#ifndef YINIAN_FLAT_REQUEST_H
#define YINIAN_FLAT_REQUEST_H

#include "yinian.h"

#include <stdlib.h>

/* Bits of yn_flat_request.set: fields that do not keep the model's default. */
enum {
  YN_SET_MAX_TOKENS = 1,
  YN_SET_TEMPERATURE = 2,
  YN_SET_TOP_P = 4,
  YN_SET_MIN_P = 8,
  YN_SET_TOP_K = 16,
  YN_SET_REPETITION = 32,
  YN_SET_PRESENCE = 64,
  YN_SET_FREQUENCY = 128
};

typedef struct yn_flat_request {
  uint64_t engine, user_data, seed;
  uint32_t set, output, flags, max_tokens, min_tokens, timeout_ms;
  int32_t top_k, priority;
  float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  /* Lengths of what follows each other in `bytes`, before the stop texts. */
  uint32_t prompt_len, chat_len, salt_len, extra_len;
  /* Lengths of what follows each other in `words`: tokens of the prompt, stop tokens, lengths of the stop texts. */
  uint32_t n_prompt_tokens, n_stop_tokens, n_stop_texts;
  /* 0 choices are one. */
  uint16_t choices, n_logprobs, n_prompt_logprobs, reserved[3];
} yn_flat_request;

static inline yn_bytes yn_flat_bytes(const uint8_t **at, uint32_t len) {
  yn_bytes b = {len == 0 ? NULL : *at, len};
  *at += len;
  return b;
}

static inline void yn_flat_fields(yn_request *r, const yn_flat_request *f) {
  r->user_data = f->user_data;
  r->output = f->output;
  r->flags = f->flags;
  r->seed = f->seed;
  r->min_tokens = f->min_tokens;
  r->priority = f->priority;
  r->timeout_ms = f->timeout_ms;
  if (f->choices != 0) r->n = f->choices;
  r->n_logprobs = f->n_logprobs;
  r->n_prompt_logprobs = f->n_prompt_logprobs;
  if (f->set & YN_SET_MAX_TOKENS) r->max_tokens = f->max_tokens;
  if (f->set & YN_SET_TEMPERATURE) r->temperature = f->temperature;
  if (f->set & YN_SET_TOP_P) r->top_p = f->top_p;
  if (f->set & YN_SET_MIN_P) r->min_p = f->min_p;
  if (f->set & YN_SET_TOP_K) r->top_k = f->top_k;
  if (f->set & YN_SET_REPETITION) r->repetition_penalty = f->repetition_penalty;
  if (f->set & YN_SET_PRESENCE) r->presence_penalty = f->presence_penalty;
  if (f->set & YN_SET_FREQUENCY) r->frequency_penalty = f->frequency_penalty;
}

/* yn_engine_submit. The lengths in `f` must add up to no more than what is at `bytes` and `words`. */
static inline yn_status yn_flat_submit(yn_flat_request f, const uint8_t *bytes, const uint32_t *words, yn_request_id *id,
                                       yn_error *err) {
  yn_engine engine = {f.engine};
  yn_request r;
  yn_bytes *stops = NULL;
  uint32_t i;
  yn_status status = yn_request_init(engine, &r, sizeof r);
  if (status != YN_OK) return status;
  yn_flat_fields(&r, &f);
  r.prompt_text = yn_flat_bytes(&bytes, f.prompt_len);
  r.chat_json = yn_flat_bytes(&bytes, f.chat_len);
  r.cache_salt = yn_flat_bytes(&bytes, f.salt_len);
  r.extra_json = yn_flat_bytes(&bytes, f.extra_len);
  r.prompt_tokens = f.n_prompt_tokens == 0 ? NULL : words;
  r.n_prompt_tokens = f.n_prompt_tokens;
  words += f.n_prompt_tokens;
  r.stop_tokens = f.n_stop_tokens == 0 ? NULL : words;
  r.n_stop_tokens = f.n_stop_tokens;
  words += f.n_stop_tokens;
  if (f.n_stop_texts != 0) {
    stops = (yn_bytes *)calloc(f.n_stop_texts, sizeof *stops);
    if (stops == NULL) return YN_E_NO_MEMORY;
    for (i = 0; i < f.n_stop_texts; i++) {
      stops[i].data = bytes;
      stops[i].len = words[i];
      bytes += words[i];
    }
  }
  r.stop_texts = stops;
  r.n_stop_texts = f.n_stop_texts;
  status = yn_engine_submit(engine, &r, id, err);
  free(stops);
  return status;
}

#endif
