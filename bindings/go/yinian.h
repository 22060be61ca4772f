/* Yinian: an LLM inference engine as a library. Generated from src/ffi: do not edit, BLESS=1 cargo test --test capi rewrites it.
 * Every function may be called from any thread at any time: with 32 KB of stack, while the thread ends, from exit handlers; not from a
 * signal handler. None is a cancellation point. In a child of fork every fallible call answers YN_E_FORKED.
 * Threads of the library are named yn-* and leave all signals to the host, but for those that a fault of their own raises.
 * exit without yn_engine_free is fine. dlclose leaves the library loaded: handles and threads stay as they are. */

#ifndef YINIAN_H
#define YINIAN_H

#include <stddef.h>
#include <stdint.h>

/*
 New tokens or text of a request. Unread deltas of one request are merged.
 */
#define YN_EV_OUTPUT 1

/*
 The last record of a request: exactly one per accepted request.
 */
#define YN_EV_DONE 2

/*
 Load progress or a change of state: `finish` is YN_STATE_*, `n_tokens` progress in permille, the text a message.
 */
#define YN_EV_ENGINE 3

/*
 A log line: `flags` is its level, 1 (error) to 5 (trace), the text its message.
 */
#define YN_EV_LOG 4

/*
 With YN_OUT_PROMPT_LOGPROBS: tokens of the prompt from its second on, in order, with their logprobs and no text. Of all
 choices once, before the first one's output. `prompt_tokens` counts the prompt up to the record's last token.
 */
#define YN_EV_PROMPT 5

#define YN_FINISH_NONE 0

/*
 The model ended its answer.
 */
#define YN_FINISH_EOS 1

/*
 A stop token or stop text.
 */
#define YN_FINISH_STOP 2

/*
 max_tokens or the model's length.
 */
#define YN_FINISH_LENGTH 3

#define YN_FINISH_CANCELLED 4

/*
 timeout_ms has passed.
 */
#define YN_FINISH_DEADLINE 5

/*
 The host did not read, and max_unread_bytes of a choice were reached.
 */
#define YN_FINISH_OVERRUN 6

/*
 `status` and the text say why.
 */
#define YN_FINISH_ERROR 7

#define YN_OUT_TEXT 1

#define YN_OUT_TOKENS 2

/*
 Tokens with their logprobs; see n_logprobs.
 */
#define YN_OUT_LOGPROBS 4

/*
 Output arrives at the end, right before DONE, instead of as it is made; but half of max_unread_bytes is the most that is
 held back of a choice.
 */
#define YN_OUT_FINAL_ONLY 8

/*
 YN_EV_PROMPT records; see n_prompt_logprobs. The prompt is then computed whole, whatever the prefix cache holds of it.
 */
#define YN_OUT_PROMPT_LOGPROBS 16

#define YN_REQ_IGNORE_EOS 1

/*
 `seed` counts; without it the engine draws one.
 */
#define YN_REQ_SEEDED 2

/*
 prompt_text is tokenized without the tokenizer's own begin and end tokens.
 */
#define YN_REQ_NO_SPECIAL_TOKENS 4

/*
 max_tokens: as many as the model's length allows.
 */
#define YN_MAX_TOKENS_MODEL 4294967295

#define YN_STATE_LOADING 0

#define YN_STATE_READY 1

#define YN_STATE_DRAINING 2

/*
 Final: submit answers the error that caused it; stats, info and free still work.
 */
#define YN_STATE_FAILED 3

/*
 yn_error.flags: a retry may succeed.
 */
#define YN_ERROR_RETRY 1

/*
 yn_error.flags: the engine cannot be used any more.
 */
#define YN_ERROR_UNUSABLE 2

/*
 yn_tokenize: without the tokenizer's own begin and end tokens.
 */
#define YN_TOKENIZE_NO_SPECIAL 1

/*
 yn_detokenize: special tokens are shown by name.
 */
#define YN_DETOKENIZE_SHOW_SPECIAL 1

/*
 Fewest bytes of a poll buffer.
 */
#define YN_POLL_MIN_BYTES 4096

/*
 Bytes borrowed for a call; not NUL-terminated. {NULL, 0} is empty.
 */
typedef struct yn_bytes {
  const uint8_t *data;
  size_t len;
} yn_bytes;

/*
 Result of every fallible call: 0 is success, negative is an error. Numbers are never reused.
 */
typedef int32_t yn_status;

/*
 An engine: a checked number, not a pointer. {0} is none.
 */
typedef struct yn_engine {
  uint64_t id;
} yn_engine;

/*
 Where a failed call writes why. Owned by the caller, may be NULL, written only on failure.
 */
typedef struct yn_error {
  int32_t status;
  /*
   YN_ERROR_*.
   */
  uint32_t flags;
  /*
   NUL-terminated UTF-8, cut at a code point.
   */
  char message[504];
} yn_error;

/*
 Never reused, never 0. Nothing to free.
 */
typedef uint64_t yn_request_id;

/*
 Counters since creation, and gauges. Set struct_size first.
 */
typedef struct yn_stats {
  uint32_t struct_size;
  /*
   YN_STATE_*.
   */
  uint32_t state;
  uint64_t waiting;
  uint64_t running;
  uint64_t finished;
  uint64_t rejected;
  uint64_t preempted;
  uint64_t blocks_total;
  uint64_t blocks_free;
  uint64_t prefix_hit_tokens;
  uint64_t prompt_tokens;
  uint64_t completion_tokens;
  uint64_t steps;
} yn_stats;

/*
 Bytes the library allocated: give them back with yn_buf_free.
 */
typedef struct yn_buf {
  uint8_t *data;
  size_t len;
  void *opaque;
} yn_buf;

/*
 An event queue. {0} is none.
 */
typedef struct yn_queue {
  uint64_t id;
} yn_queue;

/*
 A request. Call yn_request_init first, then change fields; new fields are only ever appended. Everything behind
 its pointers is copied before yn_engine_submit returns.
 */
typedef struct yn_request {
  uint32_t struct_size;
  /*
   YN_OUT_*, or-ed.
   */
  uint32_t output;
  /*
   Echoed in every record, never dereferenced.
   */
  uint64_t user_data;
  /*
   Where events go; {0} is the engine's own queue.
   */
  struct yn_queue queue;
  /*
   Exactly one of prompt_tokens, prompt_text and chat_json is given; none is longer than 2^24 tokens or bytes.
   */
  const uint32_t *prompt_tokens;
  size_t n_prompt_tokens;
  struct yn_bytes prompt_text;
  /*
   {"messages": [...], "tools": [...], ...}, rendered with the model's chat template.
   */
  struct yn_bytes chat_json;
  /*
   Choices, 1 to 128. The prompt is computed once; each choice's last OUTPUT record carries its `finish`, one DONE closes
   the request.
   */
  uint32_t n;
  /*
   YN_REQ_*, or-ed.
   */
  uint32_t flags;
  /*
   1 to 2^30, or YN_MAX_TOKENS_MODEL.
   */
  uint32_t max_tokens;
  uint32_t min_tokens;
  /*
   0 to 100; 0 is greedy. Order of processors: logit_bias (of extra_json), penalties, min_tokens, temperature, top_k,
   top_p, min_p.
   */
  float temperature;
  /*
   Above 0, at most 1; 1 keeps all.
   */
  float top_p;
  /*
   0 to 1: tokens less probable than this share of the most probable one are dropped; 0 keeps all.
   */
  float min_p;
  /*
   0 or -1 keeps all.
   */
  int32_t top_k;
  /*
   Above 0, at most 100; 1 is none. Over prompt and output: divides logits above 0, multiplies others (Hugging Face).
   */
  float repetition_penalty;
  /*
   -2 to 2; taken off the logits of tokens that the output has (OpenAI).
   */
  float presence_penalty;
  /*
   -2 to 2; taken off once for every time the output has the token (OpenAI).
   */
  float frequency_penalty;
  /*
   0 to 20: with YN_OUT_LOGPROBS the most probable tokens reported beside each token.
   */
  uint32_t n_logprobs;
  /*
   0 to 20: with YN_OUT_PROMPT_LOGPROBS the most probable tokens reported beside each token of the prompt.
   */
  uint32_t n_prompt_logprobs;
  /*
   Keeps the struct without holes; 0.
   */
  uint32_t reserved;
  /*
   Counts with YN_REQ_SEEDED.
   */
  uint64_t seed;
  /*
   Ids that end the output, at most 64 with the model's own; they are reported, their text is not.
   */
  const uint32_t *stop_tokens;
  size_t n_stop_tokens;
  /*
   At most 64 texts of at most 1024 bytes that end the output; none of their text is delivered.
   */
  const struct yn_bytes *stop_texts;
  size_t n_stop_texts;
  /*
   Smaller is more urgent; other than 0 only with {"scheduling_policy": "priority"}.
   */
  int32_t priority;
  /*
   From submit to DONE, waiting included; 0 takes the config's default_timeout_ms.
   */
  uint32_t timeout_ms;
  uint32_t ttft_slo_ms;
  uint32_t tpot_slo_ms;
  /*
   Cached prefixes are shared only between equal salts. Any bytes, at most 1024.
   */
  struct yn_bytes cache_salt;
  /*
   A JSON object of rare parameters: {"logit_bias": {"token id": -100 to 100, ...}}, at most 300 ids. An unknown key is
   an error.
   */
  struct yn_bytes extra_json;
} yn_request;

/*
 A tokenizer. {0} is none.
 */
typedef struct yn_tokenizer {
  uint64_t id;
} yn_tokenizer;

/*
 Receives log lines, possibly on several threads at once. Must not block, call the library, throw or longjmp.
 */
typedef void (*yn_log_fn)(void *user, uint32_t level, struct yn_bytes target, struct yn_bytes message);

/*
 A record in a poll buffer. Step by `size`; offsets count from the record's start; records are 8-byte aligned.
 Skip kinds you do not know. Times are CLOCK_MONOTONIC nanoseconds, 0 is none.
 */
typedef struct yn_event {
  uint32_t size;
  /*
   YN_EV_*.
   */
  uint16_t kind;
  uint16_t flags;
  yn_request_id request_id;
  uint64_t user_data;
  int32_t status;
  /*
   YN_FINISH_*; of YN_EV_ENGINE YN_STATE_*.
   */
  uint32_t finish;
  uint32_t n_tokens;
  uint32_t tokens_off;
  /*
   Bytes of UTF-8, always whole code points; may contain NUL.
   */
  uint32_t text_len;
  uint32_t text_off;
  /*
   n_tokens times the same number: for each token itself, then the most probable ones (see yn_logprob).
   */
  uint32_t n_logprobs;
  uint32_t logprobs_off;
  uint32_t prompt_tokens;
  uint32_t cached_tokens;
  uint32_t completion_tokens;
  uint32_t choice;
  uint64_t t_submit_ns;
  uint64_t t_first_ns;
  uint64_t t_event_ns;
} yn_event;

/*
 How probable a token was by the model alone: before temperature, penalties and every other processor.
 */
typedef struct yn_logprob {
  uint32_t token;
  /*
   1 is the most probable.
   */
  uint32_t rank;
  /*
   Natural logarithm.
   */
  float logprob;
  /*
   Where the text of the token of the record ends, in bytes of the record's text; 0 in YN_EV_PROMPT.
   */
  uint32_t text_end;
} yn_logprob;

#define YN_OK 0

/*
 An argument, a config value, a model file or a template is wrong; the same call cannot succeed later.
 */
#define YN_E_INVALID -1

/*
 The handle was never made, is freed, or is of another kind. Never a crash.
 */
#define YN_E_BAD_HANDLE -2

/*
 Well-formed, but this build lacks the feature.
 */
#define YN_E_UNSUPPORTED -3

/*
 Too many requests wait or have ended unread, or the model still loads: poll, retry later or shed load.
 */
#define YN_E_BUSY -4

/*
 Nothing happened before the timeout.
 */
#define YN_E_TIMEOUT -5

/*
 The caller's buffer is too small.
 */
#define YN_E_TOO_SMALL -6

/*
 The engine or queue is draining or freed.
 */
#define YN_E_SHUTDOWN -7

/*
 A named thing does not exist.
 */
#define YN_E_NOT_FOUND -8

/*
 The operating system refused to read, map or open something.
 */
#define YN_E_IO -9

/*
 Host or device memory did not suffice.
 */
#define YN_E_NO_MEMORY -10

/*
 The device or its driver failed.
 */
#define YN_E_DEVICE -11

/*
 A bug of the library; please report it.
 */
#define YN_E_INTERNAL -12

/*
 The process forked; the child has no engine threads.
 */
#define YN_E_FORKED -13

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The version of the loaded library: major << 24 | minor << 16 | patch << 8. Never blocks, also fine after fork.

 # Safety
 Always safe to call.
 */
uint32_t yn_version(void);

/*
 What this build is, as a JSON object: its version, and as `devices` the kinds of devices that it has code for, whether or
 not this machine has them. Static, never freed. Also fine after fork.

 # Safety
 Always safe to call.
 */
struct yn_bytes yn_build_info(void);

/*
 The name of a status, "YN_E_BUSY"; "YN_E_UNKNOWN" for a number this library does not know. Static; never blocks.

 # Safety
 Always safe to call.
 */
const char *yn_status_name(int32_t status);

/*
 Loads a model. `config_json` is a JSON object; the README lists its keys. Blocks while loading; with {"async_load": true} it
 returns at once and progress arrives as YN_EV_ENGINE records. Free the engine with yn_engine_free. Errors: INVALID,
 UNSUPPORTED, NOT_FOUND, IO, NO_MEMORY, DEVICE.

 # Safety
 `config_json` is readable, `out_engine` writable, `err` null or writable.
 */
yn_status yn_engine_create(struct yn_bytes config_json,
                           struct yn_engine *out_engine,
                           struct yn_error *err);

/*
 Fills `buf` with as many whole records as fit: step by yn_event.size until *used. A long payload is split over several
 OUTPUT records. Waits for at most `timeout_ms`; 0 does not wait, below 0 waits on. Several threads may poll one engine. After
 yn_engine_free what is unread can still be polled. OK if and only if *used > 0. Errors: BAD_HANDLE, INVALID, TOO_SMALL,
 TIMEOUT (also when woken), SHUTDOWN (freed, and everything was read).

 # Safety
 `buf` points to `cap` writable bytes, at least 4096, 8-byte aligned; `used` to a writable size_t.
 */
yn_status yn_engine_poll(struct yn_engine engine,
                         void *buf,
                         size_t cap,
                         int32_t timeout_ms,
                         size_t *used);

/*
 Asks a request to end; its DONE still arrives. Idempotent; OK also for finished and unknown ids. Never blocks. Errors:
 BAD_HANDLE.

 # Safety
 Always safe to call.
 */
yn_status yn_engine_cancel(struct yn_engine engine, yn_request_id id);

/*
 A new non-blocking CLOEXEC descriptor that the caller owns and closes: readable while the engine's queue is not empty,
 and for ever once the engine is freed.
 Do not read it, polling clears it. Errors: BAD_HANDLE, INVALID, IO.

 # Safety
 `out_fd` points to a writable int32_t.
 */
yn_status yn_engine_fd(struct yn_engine engine, int32_t *out_fd);

/*
 Makes one current poll of the engine's queue, or the next one, return TIMEOUT at once. Never blocks. Errors: BAD_HANDLE.

 # Safety
 Always safe to call.
 */
yn_status yn_engine_wake(struct yn_engine engine);

/*
 Refuses new requests from now on and waits until the accepted ones have ended; below 0 waits on. Their records must still be
 polled. Errors: BAD_HANDLE, TIMEOUT (drain again or free).

 # Safety
 Always safe to call.
 */
yn_status yn_engine_drain(struct yn_engine engine,
                          int32_t timeout_ms);

/*
 Cancels what is left, delivers every DONE, joins the threads, frees the device and retires the handle. Blocks for about a
 step; where the device hangs for at most watchdog_ms and 10 seconds (1 when the watchdog had fired before), after which the
 device's thread is left behind with what it holds, and the log says so. Safe while other threads are inside calls of this
 engine. What is unread can still be polled (of the last 256 freed). Errors: BAD_HANDLE.

 # Safety
 Always safe to call.
 */
yn_status yn_engine_free(struct yn_engine engine);

/*
 Fills a yn_stats whose struct_size the caller has set. Never blocks. Errors: BAD_HANDLE, INVALID.

 # Safety
 `inout` points to struct_size writable bytes.
 */
yn_status yn_engine_stats(struct yn_engine engine, struct yn_stats *inout);

/*
 Model, limits, memory and device as a JSON object. Free it with yn_buf_free. Never blocks. Errors: BAD_HANDLE, INVALID.

 # Safety
 `out_json` is writable, `err` null or writable.
 */
yn_status yn_engine_info(struct yn_engine engine, struct yn_buf *out_json, struct yn_error *err);

/*
 Prometheus text exposition. Free it with yn_buf_free. Never blocks. Errors: BAD_HANDLE, INVALID.

 # Safety
 `out_text` is writable.
 */
yn_status yn_engine_metrics(struct yn_engine engine, struct yn_buf *out_text);

/*
 What a config would load where, before loading, as a JSON object in bytes. Reads the model's headers. Free the result with
 yn_buf_free. Errors: as yn_engine_create.

 # Safety
 `config_json` is readable, `out_json` writable, `err` null or writable.
 */
yn_status yn_plan_memory(struct yn_bytes config_json,
                         struct yn_buf *out_json,
                         struct yn_error *err);

/*
 Fills a request with the defaults of this engine's model, or with the library's for {0}. `struct_size` is
 sizeof(yn_request) of the caller. Never blocks. Errors: BAD_HANDLE, INVALID.

 # Safety
 `r` points to `struct_size` writable bytes.
 */
yn_status yn_request_init(struct yn_engine engine, struct yn_request *r, uint32_t struct_size);

/*
 Hands in a request. Never waits for the device. On OK exactly one DONE follows on the request's queue, possibly polled by
 another thread before this call returns: route records by user_data. Struct, handles and JSON syntax are checked here;
 lengths, templates and token ids come back as DONE with a status. Errors: BAD_HANDLE, INVALID, UNSUPPORTED, BUSY,
 SHUTDOWN, NO_MEMORY, and of a failed engine its own error.

 # Safety
 `r` points to struct_size readable bytes and what they point to is readable; `out_id` is null or writable; `err` too.
 */
yn_status yn_engine_submit(struct yn_engine engine,
                           const struct yn_request *r,
                           yn_request_id *out_id,
                           struct yn_error *err);

/*
 Makes an event queue, for hosts that want one per thread; requests name it in `queue`. Never blocks. Free it with
 yn_queue_free. Errors: INVALID, IO (no descriptors left), NO_MEMORY.

 # Safety
 `out_queue` points to a writable yn_queue; `err` is null or points to a writable yn_error.
 */
yn_status yn_queue_create(struct yn_queue *out_queue, struct yn_error *err);

/*
 As yn_engine_poll, for a queue of the host's own.

 # Safety
 As yn_engine_poll.
 */
yn_status yn_queue_poll(struct yn_queue queue, void *buf, size_t cap, int32_t timeout_ms, size_t *used);

/*
 As yn_engine_fd; from yn_queue_free on readable for ever. Errors: BAD_HANDLE, INVALID, IO.

 # Safety
 `out_fd` points to a writable int32_t.
 */
yn_status yn_queue_fd(struct yn_queue queue, int32_t *out_fd);

/*
 Makes one current poll of the queue, or the next one, return TIMEOUT at once. Never blocks. Errors: BAD_HANDLE.

 # Safety
 Always safe to call.
 */
yn_status yn_queue_wake(struct yn_queue queue);

/*
 Cancels the requests that stream into the queue and retires the handle. What is unread, and the DONE records of the
 cancelled requests, can still be polled through it (of the last 256 freed); then polls answer SHUTDOWN. Never blocks.
 Errors: BAD_HANDLE.

 # Safety
 Always safe to call, also while other threads poll.
 */
yn_status yn_queue_free(struct yn_queue queue);

/*
 Opens the tokenizer and chat template of a model directory, or a tokenizer.json. Reads files, needs no engine. Free it with
 yn_tokenizer_free. Errors: INVALID, NOT_FOUND, IO, NO_MEMORY.

 # Safety
 `path` is readable, `out_tokenizer` writable, `err` null or writable.
 */
yn_status yn_tokenizer_open(struct yn_bytes path,
                            struct yn_tokenizer *out_tokenizer,
                            struct yn_error *err);

/*
 The tokenizer of an engine's model; it outlives the engine. Free it with yn_tokenizer_free. Errors: BAD_HANDLE, INVALID,
 BUSY (the model still loads).

 # Safety
 `out_tokenizer` is writable.
 */
yn_status yn_engine_tokenizer(struct yn_engine engine,
                              struct yn_tokenizer *out_tokenizer);

/*
 Retires a tokenizer's handle; calls that are inside finish. Errors: BAD_HANDLE.

 # Safety
 Always safe to call.
 */
yn_status yn_tokenizer_free(struct yn_tokenizer tokenizer);

/*
 Text to token ids. *n_out is the room at `out_tokens` on the way in and the number of tokens on the way out; with TOO_SMALL
 nothing else is written. `flags`: YN_TOKENIZE_*. Errors: BAD_HANDLE, INVALID, UNSUPPORTED, TOO_SMALL.

 # Safety
 `text` is readable, `n_out` writable, `out_tokens` has room for *n_out ids, `err` is null or writable.
 */
yn_status yn_tokenize(struct yn_tokenizer tokenizer,
                      struct yn_bytes input,
                      uint32_t flags,
                      uint32_t *out_tokens,
                      size_t *n_out,
                      struct yn_error *err);

/*
 Token ids to text. `flags`: YN_DETOKENIZE_*. Free the result with yn_buf_free. Errors: BAD_HANDLE, INVALID, UNSUPPORTED.

 # Safety
 `tokens` points to `n` readable ids; `out_text` is writable, `err` null or writable.
 */
yn_status yn_detokenize(struct yn_tokenizer tokenizer,
                        const uint32_t *tokens,
                        size_t n,
                        uint32_t flags,
                        struct yn_buf *out_text,
                        struct yn_error *err);

/*
 Renders {"messages": [...], ...} with the chat template to the text that would be tokenized. Free the result with
 yn_buf_free. Errors: BAD_HANDLE, INVALID, UNSUPPORTED (the model has no template), NO_MEMORY.

 # Safety
 `chat_json` is readable; `out_text` is writable, `err` null or writable.
 */
yn_status yn_chat_render(struct yn_tokenizer tokenizer,
                         struct yn_bytes chat_json,
                         struct yn_buf *out_text,
                         struct yn_error *err);

/*
 Sends the log lines of all engines of the process to `log`, from any thread; NULL sends them nowhere, as at the start.
 `level`: 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace. On return the previous callback is not running any more; do not
 call this from a callback. Errors: INVALID.

 # Safety
 `log` is null or may be called with `user` from any thread until it is replaced.
 */
yn_status yn_log_to_callback(yn_log_fn log,
                             void *user,
                             uint32_t level);

/*
 Delivers log lines as YN_EV_LOG records of a queue instead; {0} stops it. Errors: BAD_HANDLE, INVALID.

 # Safety
 Always safe to call.
 */
yn_status yn_log_to_queue(struct yn_queue queue, uint32_t level);

/*
 Frees what a function of this library put into `buf` and empties it. NULL and empty buffers are fine. Any thread, any
 time, also after the engine is gone. Never blocks.

 # Safety
 `buf` is null or points to a yn_buf that is empty or was filled by this library and not copied since.
 */
void yn_buf_free(struct yn_buf *buf);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* YINIAN_H */
