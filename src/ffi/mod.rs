//! F6: the C ABI: the only `extern "C"`. `include/yinian.h` is generated from here.
//!
//! Every function may be called from any thread at any time. Errors are statuses, panics are caught, and in a child of
//! fork every fallible call answers FORKED.
#![allow(non_camel_case_types)]

mod args;
mod engine;
mod extra;
mod guard;
mod handle;
mod log;
mod queue;
mod record;
mod request;
mod status;
mod tokenizer;
mod types;
mod version;

pub use args::yn_buf_free;
pub use engine::{
    yn_engine_cancel, yn_engine_create, yn_engine_drain, yn_engine_fd, yn_engine_free, yn_engine_info,
    yn_engine_metrics, yn_engine_poll, yn_engine_stats, yn_engine_wake, yn_plan_memory,
};
pub use log::{yn_log_to_callback, yn_log_to_queue};
pub use queue::{yn_queue_create, yn_queue_fd, yn_queue_free, yn_queue_poll, yn_queue_wake};
pub use request::{yn_engine_submit, yn_request_init};
pub use status::yn_status_name;
pub use tokenizer::{
    yn_chat_render, yn_detokenize, yn_engine_tokenizer, yn_tokenize, yn_tokenizer_free, yn_tokenizer_open,
};
pub use types::*;
pub use version::{yn_build_info, yn_version};
