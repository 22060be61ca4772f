//! The structs and constants of the C API. Layouts are fixed: fields and numbers are only ever appended.

use std::ffi::{c_char, c_void};

/// Result of every fallible call: 0 is success, negative is an error. Numbers are never reused.
pub type yn_status = i32;
pub const YN_OK: yn_status = 0;
/// An argument, a config value, a model file or a template is wrong; the same call cannot succeed later.
pub const YN_E_INVALID: yn_status = -1;
/// The handle was never made, is freed, or is of another kind. Never a crash.
pub const YN_E_BAD_HANDLE: yn_status = -2;
/// Well-formed, but this build lacks the feature.
pub const YN_E_UNSUPPORTED: yn_status = -3;
/// Too many requests wait or have ended unread, or the model still loads: poll, retry later or shed load.
pub const YN_E_BUSY: yn_status = -4;
/// Nothing happened before the timeout.
pub const YN_E_TIMEOUT: yn_status = -5;
/// The caller's buffer is too small.
pub const YN_E_TOO_SMALL: yn_status = -6;
/// The engine or queue is draining or freed.
pub const YN_E_SHUTDOWN: yn_status = -7;
/// A named thing does not exist.
pub const YN_E_NOT_FOUND: yn_status = -8;
/// The operating system refused to read, map or open something.
pub const YN_E_IO: yn_status = -9;
/// Host or device memory did not suffice.
pub const YN_E_NO_MEMORY: yn_status = -10;
/// The device or its driver failed.
pub const YN_E_DEVICE: yn_status = -11;
/// A bug of the library; please report it.
pub const YN_E_INTERNAL: yn_status = -12;
/// The process forked; the child has no engine threads.
pub const YN_E_FORKED: yn_status = -13;

/// New tokens or text of a request. Unread deltas of one request are merged.
pub const YN_EV_OUTPUT: u32 = 1;
/// The last record of a request: exactly one per accepted request.
pub const YN_EV_DONE: u32 = 2;
/// Load progress or a change of state: `finish` is YN_STATE_*, `n_tokens` progress in permille, the text a message.
pub const YN_EV_ENGINE: u32 = 3;
/// A log line: `flags` is its level, 1 (error) to 5 (trace), the text its message.
pub const YN_EV_LOG: u32 = 4;
/// With YN_OUT_PROMPT_LOGPROBS: tokens of the prompt from its second on, in order, with their logprobs and no text. Of all
/// choices once, before the first one's output. `prompt_tokens` counts the prompt up to the record's last token.
pub const YN_EV_PROMPT: u32 = 5;

pub const YN_FINISH_NONE: u32 = 0;
/// The model ended its answer.
pub const YN_FINISH_EOS: u32 = 1;
/// A stop token or stop text.
pub const YN_FINISH_STOP: u32 = 2;
/// max_tokens or the model's length.
pub const YN_FINISH_LENGTH: u32 = 3;
pub const YN_FINISH_CANCELLED: u32 = 4;
/// timeout_ms has passed.
pub const YN_FINISH_DEADLINE: u32 = 5;
/// The host did not read, and max_unread_bytes of a choice were reached.
pub const YN_FINISH_OVERRUN: u32 = 6;
/// `status` and the text say why.
pub const YN_FINISH_ERROR: u32 = 7;

pub const YN_OUT_TEXT: u32 = 1;
pub const YN_OUT_TOKENS: u32 = 2;
/// Tokens with their logprobs; see n_logprobs.
pub const YN_OUT_LOGPROBS: u32 = 4;
/// Output arrives at the end, right before DONE, instead of as it is made; but half of max_unread_bytes is the most that is
/// held back of a choice.
pub const YN_OUT_FINAL_ONLY: u32 = 8;
/// YN_EV_PROMPT records; see n_prompt_logprobs. The prompt is then computed whole, whatever the prefix cache holds of it.
pub const YN_OUT_PROMPT_LOGPROBS: u32 = 16;

pub const YN_REQ_IGNORE_EOS: u32 = 1;
/// `seed` counts; without it the engine draws one.
pub const YN_REQ_SEEDED: u32 = 2;
/// prompt_text is tokenized without the tokenizer's own begin and end tokens.
pub const YN_REQ_NO_SPECIAL_TOKENS: u32 = 4;

/// max_tokens: as many as the model's length allows.
pub const YN_MAX_TOKENS_MODEL: u32 = 0xFFFF_FFFF;

pub const YN_STATE_LOADING: u32 = 0;
pub const YN_STATE_READY: u32 = 1;
pub const YN_STATE_DRAINING: u32 = 2;
/// Final: submit answers the error that caused it; stats, info and free still work.
pub const YN_STATE_FAILED: u32 = 3;

/// yn_error.flags: a retry may succeed.
pub const YN_ERROR_RETRY: u32 = 1;
/// yn_error.flags: the engine cannot be used any more.
pub const YN_ERROR_UNUSABLE: u32 = 2;

/// yn_tokenize: without the tokenizer's own begin and end tokens.
pub const YN_TOKENIZE_NO_SPECIAL: u32 = 1;
/// yn_detokenize: special tokens are shown by name.
pub const YN_DETOKENIZE_SHOW_SPECIAL: u32 = 1;

/// Fewest bytes of a poll buffer.
pub const YN_POLL_MIN_BYTES: u32 = 4096;

/// An engine: a checked number, not a pointer. {0} is none.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct yn_engine {
    pub id: u64,
}

/// An event queue. {0} is none.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct yn_queue {
    pub id: u64,
}

/// A tokenizer. {0} is none.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct yn_tokenizer {
    pub id: u64,
}

/// Never reused, never 0. Nothing to free.
pub type yn_request_id = u64;

/// Bytes borrowed for a call; not NUL-terminated. {NULL, 0} is empty.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct yn_bytes {
    pub data: *const u8,
    pub len: usize,
}

/// Bytes the library allocated: give them back with yn_buf_free.
#[repr(C)]
#[derive(Debug)]
pub struct yn_buf {
    pub data: *mut u8,
    pub len: usize,
    pub opaque: *mut c_void,
}

/// Where a failed call writes why. Owned by the caller, may be NULL, written only on failure.
#[repr(C)]
#[derive(Debug)]
pub struct yn_error {
    pub status: i32,
    /// YN_ERROR_*.
    pub flags: u32,
    /// NUL-terminated UTF-8, cut at a code point.
    pub message: [c_char; 504],
}

/// A request. Call yn_request_init first, then change fields; new fields are only ever appended. Everything behind
/// its pointers is copied before yn_engine_submit returns.
#[repr(C)]
#[derive(Debug)]
pub struct yn_request {
    pub struct_size: u32,
    /// YN_OUT_*, or-ed.
    pub output: u32,
    /// Echoed in every record, never dereferenced.
    pub user_data: u64,
    /// Where events go; {0} is the engine's own queue.
    pub queue: yn_queue,
    /// Exactly one of prompt_tokens, prompt_text and chat_json is given; none is longer than 2^24 tokens or bytes.
    pub prompt_tokens: *const u32,
    pub n_prompt_tokens: usize,
    pub prompt_text: yn_bytes,
    /// {"messages": [...], "tools": [...], ...}, rendered with the model's chat template.
    pub chat_json: yn_bytes,
    /// Choices, 1 to 128. The prompt is computed once; each choice's last OUTPUT record carries its `finish`, one DONE closes
    /// the request.
    pub n: u32,
    /// YN_REQ_*, or-ed.
    pub flags: u32,
    /// 1 to 2^30, or YN_MAX_TOKENS_MODEL.
    pub max_tokens: u32,
    pub min_tokens: u32,
    /// 0 to 100; 0 is greedy. Order of processors: logit_bias (of extra_json), penalties, min_tokens, temperature, top_k,
    /// top_p, min_p.
    pub temperature: f32,
    /// Above 0, at most 1; 1 keeps all.
    pub top_p: f32,
    /// 0 to 1: tokens less probable than this share of the most probable one are dropped; 0 keeps all.
    pub min_p: f32,
    /// 0 or -1 keeps all.
    pub top_k: i32,
    /// Above 0, at most 100; 1 is none. Over prompt and output: divides logits above 0, multiplies others (Hugging Face).
    pub repetition_penalty: f32,
    /// -2 to 2; taken off the logits of tokens that the output has (OpenAI).
    pub presence_penalty: f32,
    /// -2 to 2; taken off once for every time the output has the token (OpenAI).
    pub frequency_penalty: f32,
    /// 0 to 20: with YN_OUT_LOGPROBS the most probable tokens reported beside each token.
    pub n_logprobs: u32,
    /// 0 to 20: with YN_OUT_PROMPT_LOGPROBS the most probable tokens reported beside each token of the prompt.
    pub n_prompt_logprobs: u32,
    /// Keeps the struct without holes; 0.
    pub reserved: u32,
    /// Counts with YN_REQ_SEEDED.
    pub seed: u64,
    /// Ids that end the output, at most 64 with the model's own; they are reported, their text is not.
    pub stop_tokens: *const u32,
    pub n_stop_tokens: usize,
    /// At most 64 texts of at most 1024 bytes that end the output; none of their text is delivered.
    pub stop_texts: *const yn_bytes,
    pub n_stop_texts: usize,
    /// Smaller is more urgent; other than 0 only with {"scheduling_policy": "priority"}.
    pub priority: i32,
    /// From submit to DONE, waiting included; 0 takes the config's default_timeout_ms.
    pub timeout_ms: u32,
    pub ttft_slo_ms: u32,
    pub tpot_slo_ms: u32,
    /// Cached prefixes are shared only between equal salts. Any bytes, at most 1024.
    pub cache_salt: yn_bytes,
    /// A JSON object of rare parameters: {"logit_bias": {"token id": -100 to 100, ...}}, at most 300 ids. An unknown key is
    /// an error.
    pub extra_json: yn_bytes,
}

/// A record in a poll buffer. Step by `size`; offsets count from the record's start; records are 8-byte aligned.
/// Skip kinds you do not know. Times are CLOCK_MONOTONIC nanoseconds, 0 is none.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct yn_event {
    pub size: u32,
    /// YN_EV_*.
    pub kind: u16,
    pub flags: u16,
    pub request_id: yn_request_id,
    pub user_data: u64,
    pub status: i32,
    /// YN_FINISH_*; of YN_EV_ENGINE YN_STATE_*.
    pub finish: u32,
    pub n_tokens: u32,
    pub tokens_off: u32,
    /// Bytes of UTF-8, always whole code points; may contain NUL.
    pub text_len: u32,
    pub text_off: u32,
    /// n_tokens times the same number: for each token itself, then the most probable ones (see yn_logprob).
    pub n_logprobs: u32,
    pub logprobs_off: u32,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    pub choice: u32,
    pub t_submit_ns: u64,
    pub t_first_ns: u64,
    pub t_event_ns: u64,
}

/// How probable a token was by the model alone: before temperature, penalties and every other processor.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct yn_logprob {
    pub token: u32,
    /// 1 is the most probable.
    pub rank: u32,
    /// Natural logarithm.
    pub logprob: f32,
    /// Where the text of the token of the record ends, in bytes of the record's text; 0 in YN_EV_PROMPT.
    pub text_end: u32,
}

/// Counters since creation, and gauges. Set struct_size first.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct yn_stats {
    pub struct_size: u32,
    /// YN_STATE_*.
    pub state: u32,
    pub waiting: u64,
    pub running: u64,
    pub finished: u64,
    pub rejected: u64,
    pub preempted: u64,
    pub blocks_total: u64,
    pub blocks_free: u64,
    pub prefix_hit_tokens: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub steps: u64,
}

/// Receives log lines, possibly on several threads at once. Must not block, call the library, throw or longjmp.
pub type yn_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, level: u32, target: yn_bytes, message: yn_bytes)>;

const _: () = {
    assert!(size_of::<yn_error>() == 512);
    assert!(size_of::<yn_event>() == 96);
    assert!(size_of::<yn_stats>() == 96);
    assert!(size_of::<yn_bytes>() <= 16);
};
