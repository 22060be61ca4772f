//! Event queues: what hosts poll. Unread output of a request merges in place; Done always has its place.

use crate::base::hash::NumberMap;
use crate::base::{Error, ErrorKind, RequestId, Result};
use crate::engine::State;
use crate::engine::stream::Stream;
pub use crate::engine::stream::{Done, Output, OutputStream, Overrun, Piece, PromptTokens, StreamInfo};
use std::collections::VecDeque;
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

/// One event as a poller sees it, borrowed from the queue.
#[derive(Debug)]
pub enum Record<'a> {
    Prompt(PromptTokens<'a>),
    Output(Output<'a>),
    Done { info: &'a StreamInfo, done: &'a Done },
    Engine(&'a EngineEvent),
    Log { level: u16, message: &'a str, t_event_ns: u64 },
}

/// How much of an output or a prompt a sink wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub tokens: usize,
    /// Bytes, at a code point border.
    pub text: usize,
}

/// Where a poll writes records.
pub trait RecordSink {
    /// Writes one whole record, of an output or a prompt as much as fits. `None`: there is no room, nothing was written.
    fn write(&mut self, record: &Record<'_>) -> Option<Taken>;
}

#[derive(Debug)]
enum Entry {
    Stream(u64),
    Engine(EngineEvent),
    Log { level: u16, message: String, t_event_ns: u64 },
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    ready: VecDeque<Entry>,
    streams: NumberMap<u64, Stream>,
    /// Of `streams`, those that are done.
    ended: usize,
    next_key: u64,
    logs: usize,
    lost_logs: u64,
    woken: bool,
    shut: bool,
    bell: Option<Box<dyn Bell>>,
    rung: bool,
    /// Pollers that sleep, or were notified and have not got hold of the lock yet.
    sleeping: usize,
    /// At most as many of them as were notified. To notify is a call of the kernel, so nobody is notified twice.
    notified: usize,
}

/// A queue of events for one or more pollers.
#[derive(Debug)]
pub struct EventQueue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl EventQueue {
    pub fn new(bell: Option<Box<dyn Bell>>) -> Arc<Self> {
        let inner = Mutex::new(Inner { bell, ..Inner::default() });
        Arc::new(Self { inner, changed: Condvar::new() })
    }

    /// Reserves a request's place. `Shutdown` once the queue is shut, `Busy` while `most_ended` requests have ended and not
    /// been read.
    pub fn open(
        self: &Arc<Self>,
        info: StreamInfo,
        cancel: Weak<dyn Cancel>,
        most_ended: usize,
    ) -> Result<OutputStream> {
        let mut inner = self.lock();
        if inner.shut {
            return Err(Error::new(ErrorKind::Shutdown, "the request's queue has been freed"));
        }
        if inner.ended >= most_ended {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} requests have ended and are not read (max_waiting); poll their queue", inner.ended),
            ));
        }
        let key = inner.next_key;
        inner.next_key += 1;
        let stream = Stream::new(info, cancel);
        inner.streams.insert(key, stream);
        Ok(OutputStream::new(Arc::clone(self), key))
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
                    self.notify(&mut inner);
                } else if inner.shut && inner.streams.is_empty() {
                    // Other pollers wait for something that will not come any more.
                    self.changed.notify_all();
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
            inner.sleeping += 1;
            inner = match (timeout, deadline) {
                (Some(_), Some(at)) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        inner.sleeping -= 1;
                        return Err(timed_out());
                    }
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
                _ => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
            inner.sleeping -= 1;
            inner.notified = inner.notified.saturating_sub(1);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every critical section leaves its data whole, so a poisoned lock is still good.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something became ready.
    pub(super) fn announce(&self, inner: &mut Inner) {
        self.settle(inner);
        self.notify(inner);
    }

    /// Wakes a poller that nobody has woken.
    fn notify(&self, inner: &mut Inner) {
        if inner.notified < inner.sleeping {
            inner.notified += 1;
            self.changed.notify_one();
        }
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
        let Stream { info, prompt, choices, .. } = stream;
        if !prompt.drain(info, sink, wrote) {
            return false;
        }
        for (i, choice) in choices.iter_mut().enumerate() {
            if !choice.drain(info, i as u32, sink, wrote) {
                return false;
            }
        }
        if let Some(done) = &stream.done {
            if sink.write(&Record::Done { info: &stream.info, done }).is_none() {
                return false;
            }
            *wrote = true;
            self.streams.remove(&key);
            self.ended -= 1;
            return true;
        }
        stream.listed = false;
        true
    }

    pub(super) fn stream(&mut self, key: u64) -> Option<&mut Stream> {
        self.streams.get_mut(&key)
    }

    pub(super) fn end(&mut self, key: u64, done: Done) {
        if let Some(stream) = self.streams.get_mut(&key) {
            self.ended += usize::from(stream.done.is_none());
            stream.done = Some(done);
        }
    }

    /// Puts a stream in line; false when it already stands there.
    pub(super) fn list(&mut self, key: u64) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        if stream.listed {
            return false;
        }
        stream.listed = true;
        self.ready.push_back(Entry::Stream(key));
        true
    }
}

#[cfg(test)]
mod tests;
