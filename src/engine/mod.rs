//! F5: the engine: intake of requests, the step loop, output streams, statistics; `build` assembles the floors below.
//!
//! Threads of one engine: `yn-loader` (until loaded), `yn-intake-N` (templates, tokens), `yn-engine` (scheduling),
//! `yn-output-N` (text), and the executor's own.

mod build;
mod core;
mod deadlines;
mod describe;
mod intake;
mod logging;
mod metrics;
mod output;
mod place;
pub mod queue;
mod shared;
mod stream;
pub mod submission;
mod threads;

pub use queue::EventQueue;
pub use submission::{OutputMode, Prompt, Submission};

use crate::base::clock::Clock;
use crate::base::config::EngineConfig;
use crate::base::error::panic_text;
use crate::base::{Error, ErrorKind, RequestId, Result, SeqId};
use crate::plan::StopCriteria;
use crate::plan::params::MAX_LOGPROBS;
use crate::text::TextModel;
use intake::Job;
use logging::Logger;
use queue::{Cancel, StreamInfo};
use shared::{Live, Shared};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use threads::Threads;

/// Most choices of one request.
const MAX_CHOICES: u32 = 128;

/// Where an engine is in its life. `Failed` is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Loading,
    Ready,
    Draining,
    Failed,
}

/// Counters since creation, and gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub state: State,
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

/// What a request gets when it says nothing: the model's generation config.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    pub temperature: f32,
    pub top_k: i32,
    pub top_p: f32,
}

/// What is known once the model is loaded.
#[derive(Debug)]
struct Loaded {
    text: Arc<TextModel>,
    defaults: SamplingDefaults,
    info: serde_json::Value,
    block_size: u32,
}

/// One engine. All methods may be called from any thread; none but `drain` and `close` waits for the device.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    queue: Arc<EventQueue>,
    shared: Arc<Shared>,
    loaded: OnceLock<Loaded>,
    threads: Threads,
    next_seq: AtomicU64,
    /// High bits of request ids: random, so that ids of several engines do not meet.
    id_base: u64,
    this: Weak<Self>,
}

impl Engine {
    /// Loads a model and starts its threads. With `async_load` returns at once; progress goes to `queue` as engine events.
    pub fn start(config: EngineConfig, queue: Arc<EventQueue>, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let log = Logger::new(config.log_level, describe::served_name(&config));
        let shared = Arc::new(Shared::new(clock, Arc::clone(&queue), log, config.max_waiting));
        let async_load = config.async_load;
        let engine = Arc::new_cyclic(|this| Self {
            threads: Threads::new(config.max_waiting),
            config,
            queue,
            shared,
            loaded: OnceLock::new(),
            next_seq: AtomicU64::new(1),
            id_base: build::entropy() << 40 & !(1 << 63),
            this: Weak::clone(this),
        });
        if async_load {
            let loading = Arc::clone(&engine);
            // A failed load is reported as an engine event and kept as the engine's state.
            engine.threads.spawn_loader(move || drop(loading.load()))?;
        } else if let Err(e) = engine.load() {
            engine.close();
            return Err(e);
        }
        Ok(engine)
    }

    fn load(&self) -> Result<()> {
        let since_ns = self.shared.clock.now_ns();
        let mut progress = |share: f32| {
            if self.shared.is_closing() {
                return Err(Error::new(ErrorKind::Shutdown, "the engine was freed while it loaded"));
            }
            self.shared.progress(share);
            self.threads.sweep(self.shared.clock.now_ns());
            Ok(())
        };
        let built = catch_unwind(AssertUnwindSafe(|| build::parts(&self.config, &self.shared.signal, &mut progress)));
        let built = built.unwrap_or_else(|payload| {
            Err(Error::internal(format!("loading panicked: {}; please report it", panic_text(&*payload))))
        });
        let result = built.and_then(|parts| {
            let loaded = Loaded {
                text: Arc::clone(&parts.limits.text),
                defaults: parts.defaults,
                info: parts.info.clone(),
                block_size: parts.block_size,
            };
            self.threads.start(parts, &self.shared, self.config.watchdog_ms)?;
            // Only this thread loads, and it loads once.
            let _ = self.loaded.set(loaded);
            Ok(())
        });
        match &result {
            Ok(()) => {
                self.shared.set_state(State::Ready);
                let ms = (self.shared.clock.now_ns() - since_ns) / 1_000_000;
                let info = self.loaded.get().map(|loaded| &loaded.info);
                self.shared.log.info(format_args!("loaded in {ms} ms: {}", info.unwrap_or(&serde_json::Value::Null)));
            }
            Err(e) => {
                self.shared.fail(e.clone());
                self.threads.refuse_jobs(e);
            }
        }
        result
    }

    /// The queue given to `start`.
    pub fn queue(&self) -> &Arc<EventQueue> {
        &self.queue
    }

    /// Accepts a request: on `Ok` exactly one Done event follows on its queue. `Busy` when `max_waiting` requests wait, or have
    /// ended and are not read.
    pub fn submit(&self, submission: Submission) -> Result<RequestId> {
        check_ranges(&submission)?;
        if submission.priority != 0 && self.config.scheduling_policy != "priority" {
            return Err(Error::invalid(format!(
                "priority is {}, but the engine's scheduling_policy is {:?}; leave it 0, or configure \"priority\"",
                submission.priority, self.config.scheduling_policy
            )));
        }
        let first_seq = SeqId(self.next_seq.fetch_add(u64::from(submission.n), Ordering::Relaxed));
        let id = RequestId(self.id_base + first_seq.0);
        let t_submit_ns = self.shared.clock.now_ns();
        let timeout_ms =
            if submission.timeout_ms == 0 { self.config.default_timeout_ms } else { submission.timeout_ms };
        let deadline_ns = match timeout_ms {
            0 => u64::MAX,
            ms => t_submit_ns + u64::from(ms) * 1_000_000,
        };
        let live = Arc::new(Live {
            id,
            first_seq,
            t_submit_ns,
            deadline_ns,
            cancelled: AtomicBool::new(false),
            detokenized: (0..submission.n).map(|_| AtomicU32::new(0)).collect(),
            waiting: AtomicBool::new(true),
        });
        self.shared.register(Arc::clone(&live))?;
        let stream_info = StreamInfo {
            id,
            user_data: submission.user_data,
            output: submission.output,
            choices: submission.n,
            max_unread_bytes: self.config.max_unread_bytes,
            t_submit_ns,
        };
        let cancel: Weak<dyn Cancel> = self.this.clone();
        let stream = submission
            .queue
            .open(stream_info, cancel, self.config.max_waiting)
            .inspect_err(|e| self.shared.unregister(&live, e.kind))?;
        let seats = place::seats(stream, &self.shared, &live);
        self.threads.send(Job { submission, seats });
        Ok(id)
    }

    /// Asks a request to end. Idempotent; unknown and finished ids are fine.
    pub fn cancel(&self, id: RequestId) {
        self.shared.cancel(id);
    }

    /// Refuses new requests and waits until the accepted ones have ended. `Timeout` when they have not; `None` waits on.
    pub fn drain(&self, timeout: Option<Duration>) -> Result<()> {
        self.shared.set_state(State::Draining);
        if self.shared.wait_idle(timeout) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, "requests are still running; drain again or free the engine"))
    }

    /// Cancels what is left, delivers every Done, joins all threads, frees the device, shuts the engine's queue.
    pub fn close(&self) {
        if !self.shared.begin_close() {
            return;
        }
        self.shared.cancel_all();
        self.threads.close(&self.shared);
        self.queue.shut();
        self.shared.log.info(format_args!("freed: {:?}", self.stats()));
    }

    pub fn stats(&self) -> Stats {
        let c = &self.shared.counters;
        Stats {
            state: self.shared.state(),
            waiting: c.waiting.get(),
            running: c.running.get(),
            finished: c.finished.get(),
            rejected: c.rejected.get(),
            preempted: c.preempted.get(),
            blocks_total: c.blocks_total.get(),
            blocks_free: c.blocks_free.get(),
            prefix_hit_tokens: c.prefix_hit_tokens.get(),
            prompt_tokens: c.prompt_tokens.get(),
            completion_tokens: c.completion_tokens.get(),
            steps: c.steps.get(),
        }
    }

    /// Model, limits, memory and device as a JSON object; while loading and after a failure, what is known.
    pub fn info(&self) -> serde_json::Value {
        let state = match self.shared.state() {
            State::Loading => "loading",
            State::Ready => "ready",
            State::Draining => "draining",
            State::Failed => "failed",
        };
        let mut info = self
            .loaded
            .get()
            .map_or_else(|| serde_json::json!({"model": {"path": self.config.model}}), |loaded| loaded.info.clone());
        info["state"] = state.into();
        if let Some(e) = self.shared.error() {
            info["error"] = e.message.into();
        }
        info
    }

    /// Prometheus text exposition.
    pub fn metrics(&self) -> String {
        let kv = self.loaded.get().map(|loaded| (loaded.block_size, self.config.enable_prefix_caching));
        let mode = self.loaded.get().and_then(|loaded| loaded.info["numeric_mode"].as_str());
        let facts = metrics::Facts {
            stats: self.stats(),
            kv,
            numeric_mode: mode.map(str::to_owned),
            model_name: describe::served_name(&self.config),
        };
        metrics::prometheus(&facts, &self.shared.counters, &self.shared.histograms)
    }

    /// The model's sampling defaults; the library's while loading.
    pub fn defaults(&self) -> SamplingDefaults {
        let library = SamplingDefaults { temperature: 1.0, top_k: 0, top_p: 1.0 };
        self.loaded.get().map_or(library, |loaded| loaded.defaults)
    }

    /// Tokenizer and chat template. `Busy` while loading.
    pub fn text(&self) -> Result<Arc<TextModel>> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(Arc::clone(&loaded.text));
        }
        Err(self.shared.error().unwrap_or_else(|| Error::new(ErrorKind::Busy, "the model is still loading; try later")))
    }
}

impl Cancel for Engine {
    fn cancel(&self, id: RequestId) {
        self.shared.cancel(id);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

/// What needs no model to be refused; the text threads check again with the model's lengths.
fn check_ranges(s: &Submission) -> Result<()> {
    StopCriteria::new(s.max_tokens.unwrap_or(u32::MAX), s.min_tokens, vec![], s.stop_tokens.clone())?;
    if !(1..=MAX_CHOICES).contains(&s.n) {
        return Err(Error::invalid(format!("n is {}; expected 1 to {MAX_CHOICES} choices", s.n)));
    }
    for (name, n) in [("n_logprobs", s.n_logprobs), ("n_prompt_logprobs", s.n_prompt_logprobs)] {
        if n > MAX_LOGPROBS {
            return Err(Error::invalid(format!("{name} is {n}; at most {MAX_LOGPROBS} are reported")));
        }
    }
    match &s.prompt {
        Prompt::Tokens(tokens) if tokens.is_empty() => {
            Err(Error::invalid("the prompt has no tokens; expected at least one"))
        }
        Prompt::Chat(chat) if !chat.is_object() => {
            Err(Error::invalid("chat_json is not a JSON object; expected {\"messages\": [...]}"))
        }
        _ => Ok(()),
    }
}

/// What `config` would load where, before loading: a JSON object in bytes.
pub fn plan_memory(config: &EngineConfig) -> Result<serde_json::Value> {
    build::plan_memory(config)
}
