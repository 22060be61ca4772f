//! Event queues: what hosts poll. Unread output of a request merges in place; Done always has its place.

use crate::base::{Error, RequestId, Token};
use crate::engine::{OutputMode, State};
use crate::plan::FinishReason;
use std::sync::Arc;

/// Wakes a host that sleeps on a descriptor. Rung on empty -> non-empty, cleared on non-empty -> empty.
pub trait Bell: Send + Sync + std::fmt::Debug {
    fn ring(&self);
    fn clear(&self);
}

/// Who ends a request when its queue is shut.
pub trait Cancel: Send + Sync + std::fmt::Debug {
    fn cancel(&self, id: RequestId);
}

/// A queue of events for one or more pollers.
#[derive(Debug)]
pub struct EventQueue {}

/// What a request streams into: its place in a queue.
#[derive(Debug)]
pub struct OutputStream {}

/// The fixed facts of a stream.
#[derive(Debug)]
pub struct StreamInfo {
    pub id: RequestId,
    pub user_data: u64,
    pub output: OutputMode,
    /// Unread text and token bytes before the stream is overrun.
    pub max_unread_bytes: usize,
    pub t_submit_ns: u64,
}

/// The end of a request.
#[derive(Debug)]
pub struct Done {
    pub finish: FinishReason,
    /// With [`FinishReason::Error`]: why.
    pub error: Option<Error>,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    /// 0 when no token was made.
    pub t_first_ns: u64,
    pub t_event_ns: u64,
}

/// A stream whose host does not read: its request ends with Overrun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

impl EventQueue {
    pub fn new(_bell: Option<Box<dyn Bell>>) -> Arc<Self> {
        todo!()
    }
    /// Reserves a request's place. `None` once the queue is shut.
    pub fn open(self: &Arc<Self>, _info: StreamInfo, _cancel: std::sync::Weak<dyn Cancel>) -> Option<OutputStream> {
        todo!()
    }
    /// Reports load progress (0..=1) or a change of state.
    pub fn engine_event(&self, _state: State, _progress: f32, _message: &str, _t_event_ns: u64) {
        todo!()
    }
    /// No stream may be opened any more; pollers drain what is left, then get `Shutdown`.
    pub fn shut(&self) {
        todo!()
    }
}

impl OutputStream {
    /// Appends tokens and whole code points of text, merged with what is still unread. `t_first_ns` is when the
    /// request's first token landed.
    pub fn push(&self, _tokens: &[Token], _text: &str, _t_first_ns: u64, _t_event_ns: u64) -> Result<(), Overrun> {
        todo!()
    }
    /// The last event of the request.
    pub fn done(self, _done: Done) {
        todo!()
    }
}
