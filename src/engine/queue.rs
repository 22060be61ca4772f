//! Event queues: what hosts poll. Unread output of a request merges in place; Done always has its place.

use crate::base::{Error, ErrorKind, RequestId, Result, Token};
use crate::engine::{OutputMode, State};
use crate::plan::FinishReason;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Unread log lines of a queue; later ones are counted instead.
const MAX_LOGS: usize = 1024;

/// Wakes a host that sleeps on a descriptor. Rung on empty -> non-empty, cleared on non-empty -> empty.
pub trait Bell: Send + Sync + std::fmt::Debug {
    fn ring(&self);
    fn clear(&self);
}

/// Who ends a request when its queue is shut.
pub trait Cancel: Send + Sync + std::fmt::Debug {
    fn cancel(&self, id: RequestId);
}

/// The fixed facts of a stream.
#[derive(Debug)]
pub struct StreamInfo {
    pub id: RequestId,
    pub user_data: u64,
    pub output: OutputMode,
    /// Unread text and token bytes before the stream is overrun. Streams read only at the end are not counted.
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

/// Load progress or a change of state.
#[derive(Debug)]
pub struct EngineEvent {
    pub state: State,
    /// How far loading is, in thousandths.
    pub permille: u32,
    pub message: String,
    /// Of a failure.
    pub error: Option<ErrorKind>,
    pub t_event_ns: u64,
}

/// A stream whose host does not read: its request ends with Overrun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

/// One event as a poller sees it, borrowed from the queue.
#[derive(Debug)]
pub enum Record<'a> {
    /// `completion_tokens` counts the stream's tokens so far, those that are not shown included.
    Output {
        info: &'a StreamInfo,
        tokens: &'a [Token],
        text: &'a str,
        completion_tokens: u32,
        t_ns: (u64, u64),
    },
    Done {
        info: &'a StreamInfo,
        done: &'a Done,
    },
    Engine(&'a EngineEvent),
    Log {
        level: u16,
        message: &'a str,
        t_event_ns: u64,
    },
}

/// How much of an output record a sink wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub tokens: usize,
    /// Bytes, at a code point border.
    pub text: usize,
}

/// Where a poll writes records.
pub trait RecordSink {
    /// Writes one whole record, of an output as much as fits. `None`: there is no room, nothing was written.
    fn write(&mut self, record: &Record<'_>) -> Option<Taken>;
}

#[derive(Debug)]
struct Stream {
    info: StreamInfo,
    cancel: Weak<dyn Cancel>,
    tokens: Vec<Token>,
    text: String,
    completion_tokens: u32,
    t_first_ns: u64,
    t_event_ns: u64,
    done: Option<Done>,
    /// In `ready`.
    listed: bool,
}

impl Stream {
    fn has_output(&self) -> bool {
        !self.tokens.is_empty() || !self.text.is_empty()
    }
}

#[derive(Debug)]
enum Entry {
    Stream(u64),
    Engine(EngineEvent),
    Log { level: u16, message: String, t_event_ns: u64 },
}

#[derive(Debug, Default)]
struct Inner {
    ready: VecDeque<Entry>,
    streams: HashMap<u64, Stream>,
    next_key: u64,
    logs: usize,
    lost_logs: u64,
    woken: bool,
    shut: bool,
    bell: Option<Box<dyn Bell>>,
    rung: bool,
}

/// A queue of events for one or more pollers.
#[derive(Debug)]
pub struct EventQueue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// What a request streams into: its place in a queue.
#[derive(Debug)]
pub struct OutputStream {
    queue: Arc<EventQueue>,
    key: u64,
    ended: bool,
}

impl EventQueue {
    pub fn new(bell: Option<Box<dyn Bell>>) -> Arc<Self> {
        let inner = Mutex::new(Inner { bell, ..Inner::default() });
        Arc::new(Self { inner, changed: Condvar::new() })
    }

    /// Reserves a request's place. `None` once the queue is shut.
    pub fn open(self: &Arc<Self>, info: StreamInfo, cancel: Weak<dyn Cancel>) -> Option<OutputStream> {
        let mut inner = self.lock();
        if inner.shut {
            return None;
        }
        let key = inner.next_key;
        inner.next_key += 1;
        let stream = Stream {
            info,
            cancel,
            tokens: Vec::new(),
            text: String::new(),
            completion_tokens: 0,
            t_first_ns: 0,
            t_event_ns: 0,
            done: None,
            listed: false,
        };
        inner.streams.insert(key, stream);
        Some(OutputStream { queue: Arc::clone(self), key, ended: false })
    }

    /// Reports load progress (0..=1) or a change of state. Unread progress is replaced by newer progress.
    pub fn engine_event(&self, event: EngineEvent) {
        let mut inner = self.lock();
        if inner.shut {
            return;
        }
        if event.state == State::Loading
            && let Some(Entry::Engine(last @ EngineEvent { state: State::Loading, .. })) = inner.ready.back_mut()
        {
            *last = event;
            return;
        }
        inner.ready.push_back(Entry::Engine(event));
        self.announce(&mut inner);
    }

    /// Adds a log line; `level` 1 is error, 5 is trace. When nobody reads, further lines are dropped and counted.
    pub fn log(&self, level: u16, message: String, t_event_ns: u64) {
        let mut inner = self.lock();
        if inner.shut {
            return;
        }
        if inner.logs >= MAX_LOGS {
            inner.lost_logs += 1;
            return;
        }
        let message = match std::mem::take(&mut inner.lost_logs) {
            0 => message,
            lost => format!("[{lost} log lines were lost, because the queue was not read] {message}"),
        };
        inner.logs += 1;
        inner.ready.push_back(Entry::Log { level, message, t_event_ns });
        self.announce(&mut inner);
    }

    /// No stream may be opened any more and open ones are cancelled; pollers drain what is left, then get `Shutdown`. The
    /// bell rings for the last time and is dropped: what is heard from now on is that the queue is shut.
    pub fn shut(&self) {
        let mut inner = self.lock();
        inner.shut = true;
        inner.woken = true;
        self.settle(&mut inner);
        inner.woken = false;
        inner.bell = None;
        let open: Vec<_> =
            inner.streams.values().filter(|s| s.done.is_none()).map(|s| (Weak::clone(&s.cancel), s.info.id)).collect();
        self.changed.notify_all();
        drop(inner);
        for (cancel, id) in open {
            if let Some(engine) = cancel.upgrade() {
                engine.cancel(id);
            }
        }
    }

    /// Makes one current poll, or the next one, return `Timeout` at once.
    pub fn wake(&self) {
        let mut inner = self.lock();
        inner.woken = true;
        self.announce(&mut inner);
    }

    /// Shut, with nothing left to read or to come.
    pub fn is_drained(&self) -> bool {
        let inner = self.lock();
        inner.shut && inner.ready.is_empty() && inner.streams.is_empty()
    }

    /// Writes what is unread, after waiting for it for at most `timeout` (`None` waits on). `Ok`: at least one record
    /// was written. `Timeout`, also when woken; `Shutdown` when shut and drained; `TooSmall` when not even one record fits.
    pub fn poll(&self, timeout: Option<Duration>, sink: &mut dyn RecordSink) -> Result<()> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut inner = self.lock();
        loop {
            if !inner.ready.is_empty() {
                inner.woken = false;
                let wrote = inner.drain(sink);
                self.settle(&mut inner);
                if !inner.ready.is_empty() {
                    self.changed.notify_one();
                }
                let small = "not even one record fits into the buffer; use the documented minimum size";
                return if wrote { Ok(()) } else { Err(Error::new(ErrorKind::TooSmall, small)) };
            }
            if inner.shut && inner.streams.is_empty() {
                self.changed.notify_all();
                return Err(Error::new(ErrorKind::Shutdown, "the queue has been freed and everything in it was read"));
            }
            if std::mem::take(&mut inner.woken) {
                self.settle(&mut inner);
                return Err(timed_out());
            }
            inner = match (timeout, deadline) {
                (Some(_), Some(at)) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(timed_out());
                    }
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
                _ => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every critical section leaves its data whole, so a poisoned lock is still good.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something became ready.
    fn announce(&self, inner: &mut Inner) {
        self.settle(inner);
        self.changed.notify_one();
    }

    /// Brings the bell in line with the queue.
    fn settle(&self, inner: &mut Inner) {
        let wanted = !inner.ready.is_empty() || inner.woken;
        let Inner { bell: Some(bell), rung, .. } = inner else { return };
        if wanted != *rung {
            *rung = wanted;
            if wanted { bell.ring() } else { bell.clear() }
        }
    }
}

fn timed_out() -> Error {
    Error::new(ErrorKind::Timeout, "nothing happened before the timeout, or the poll was woken")
}

impl Inner {
    /// Moves records into `sink` until it is full; true when at least one was written.
    fn drain(&mut self, sink: &mut dyn RecordSink) -> bool {
        let mut wrote = false;
        while let Some(entry) = self.ready.front() {
            let whole = match entry {
                Entry::Stream(key) => {
                    let key = *key;
                    self.drain_stream(key, sink, &mut wrote)
                }
                Entry::Engine(event) => sink.write(&Record::Engine(event)).is_some(),
                Entry::Log { level, message, t_event_ns } => {
                    let whole = sink.write(&Record::Log { level: *level, message, t_event_ns: *t_event_ns }).is_some();
                    self.logs -= usize::from(whole);
                    whole
                }
            };
            if !whole {
                return wrote;
            }
            wrote = true;
            self.ready.pop_front();
        }
        wrote
    }

    /// True when nothing of the stream is left unread.
    fn drain_stream(&mut self, key: u64, sink: &mut dyn RecordSink, wrote: &mut bool) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else { return true };
        while stream.has_output() {
            let record = Record::Output {
                info: &stream.info,
                tokens: &stream.tokens,
                text: &stream.text,
                completion_tokens: stream.completion_tokens,
                t_ns: (stream.t_first_ns, stream.t_event_ns),
            };
            let Some(taken) = sink.write(&record) else { return false };
            *wrote = true;
            stream.tokens.drain(..taken.tokens);
            stream.text.drain(..taken.text);
        }
        if let Some(done) = &stream.done {
            if sink.write(&Record::Done { info: &stream.info, done }).is_none() {
                return false;
            }
            *wrote = true;
            self.streams.remove(&key);
            return true;
        }
        stream.listed = false;
        true
    }

    /// Puts a stream in line; false when it already stands there.
    fn list(&mut self, key: u64) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        if stream.listed {
            return false;
        }
        stream.listed = true;
        self.ready.push_back(Entry::Stream(key));
        true
    }
}

impl OutputStream {
    /// Appends tokens and whole code points of text, merged with what is still unread. `t_first_ns` is when the
    /// request's first token landed.
    pub fn push(
        &self,
        tokens: &[Token],
        text: &str,
        t_first_ns: u64,
        t_event_ns: u64,
    ) -> std::result::Result<(), Overrun> {
        let mut inner = self.queue.lock();
        let Some(stream) = inner.streams.get_mut(&self.key) else { return Ok(()) };
        let mode = stream.info.output;
        stream.completion_tokens = stream.completion_tokens.saturating_add(tokens.len() as u32);
        let tokens = if mode.tokens { tokens } else { &[] };
        let text = if mode.text { text } else { "" };
        let unread = (stream.tokens.len() + tokens.len()) * size_of::<Token>() + stream.text.len() + text.len();
        if unread > stream.info.max_unread_bytes && !mode.final_only {
            return Err(Overrun);
        }
        stream.tokens.extend_from_slice(tokens);
        stream.text.push_str(text);
        (stream.t_first_ns, stream.t_event_ns) = (t_first_ns, t_event_ns);
        if stream.has_output() && !mode.final_only && inner.list(self.key) {
            self.queue.announce(&mut inner);
        }
        Ok(())
    }

    /// The last event of the request.
    pub fn done(mut self, done: Done) {
        self.end(done);
    }

    fn end(&mut self, done: Done) {
        self.ended = true;
        let mut inner = self.queue.lock();
        if let Some(stream) = inner.streams.get_mut(&self.key) {
            stream.done = Some(done);
        }
        if inner.list(self.key) {
            self.queue.announce(&mut inner);
        }
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Done {
                finish: FinishReason::Error,
                error: Some(Error::internal("the request was lost by the engine; this is a bug")),
                prompt_tokens: 0,
                cached_tokens: 0,
                completion_tokens: 0,
                t_first_ns: 0,
                t_event_ns: 0,
            });
        }
    }
}

#[cfg(test)]
mod tests;
