//! F5: the engine: intake of requests, the step loop, output streams, statistics; `build` assembles the floors below.

pub mod queue;
pub mod submission;

pub use queue::EventQueue;
pub use submission::{OutputMode, Prompt, Submission};

use crate::base::clock::Clock;
use crate::base::config::EngineConfig;
use crate::base::{RequestId, Result};
use crate::text::TextModel;
use std::sync::Arc;
use std::time::Duration;

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

/// One engine. All methods may be called from any thread; none but `drain` and `close` waits for the device.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// Loads a model and starts its threads. With `async_load` returns at once; progress goes to `queue` as engine events.
    pub fn start(_config: EngineConfig, _queue: Arc<EventQueue>, _clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        todo!()
    }
    /// The queue given to `start`.
    pub fn queue(&self) -> &Arc<EventQueue> {
        todo!()
    }
    /// Accepts a request: on `Ok` exactly one Done event follows on its queue. `Busy` when `max_waiting` requests wait.
    pub fn submit(&self, _submission: Submission) -> Result<RequestId> {
        todo!()
    }
    /// Asks a request to end. Idempotent; unknown and finished ids are fine.
    pub fn cancel(&self, _id: RequestId) {
        todo!()
    }
    /// Refuses new requests and waits until the accepted ones have ended. `Timeout` when they have not; `None` waits on.
    pub fn drain(&self, _timeout: Option<Duration>) -> Result<()> {
        todo!()
    }
    /// Cancels what is left, delivers every Done, joins all threads, frees the device, shuts the engine's queue.
    pub fn close(&self) {
        todo!()
    }
    pub fn stats(&self) -> Stats {
        todo!()
    }
    /// Model, limits, effective config and device as a JSON object.
    pub fn info(&self) -> serde_json::Value {
        todo!()
    }
    /// Prometheus text exposition.
    pub fn metrics(&self) -> String {
        todo!()
    }
    pub fn defaults(&self) -> SamplingDefaults {
        todo!()
    }
    /// Tokenizer and chat template. `Busy` while loading.
    pub fn text(&self) -> Result<Arc<TextModel>> {
        todo!()
    }
}

/// What `config` would load where, before loading: a JSON object in bytes.
pub fn plan_memory(_config: &EngineConfig) -> Result<serde_json::Value> {
    todo!()
}
