//! What the threads of one engine share: the mailbox to the engine thread, the register of live requests, counters.

use crate::base::clock::Clock;
use crate::base::metrics::Cell;
use crate::base::signal::Signal;
use crate::base::{Error, ErrorKind, RequestId, Result, SeqId};
use crate::engine::State;
use crate::engine::logging::Logger;
use crate::engine::metrics::Histograms;
use crate::engine::queue::{EngineEvent, EventQueue};
use crate::plan::{FinishReason, Request};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An accepted request that has not ended.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: RequestId,
    /// The sequence of choice 0; those of the others follow.
    pub(crate) first_seq: SeqId,
    pub(crate) t_submit_ns: u64,
    /// Absolute time on the engine's clock; `u64::MAX` is none.
    pub(crate) deadline_ns: u64,
    /// Set before the command that ends the request is sent, so that an `Add` still on its way sees it.
    pub(crate) cancelled: AtomicBool,
    /// By choice: generated tokens the output thread has turned into text.
    pub(crate) detokenized: Vec<AtomicU32>,
    /// Still counted as waiting.
    pub(crate) waiting: AtomicBool,
}

impl Live {
    pub(crate) fn choices(&self) -> u32 {
        self.detokenized.len() as u32
    }

    pub(crate) fn seq(&self, choice: u32) -> SeqId {
        SeqId(self.first_seq.0 + u64::from(choice))
    }

    /// Why it need not be started any more.
    pub(crate) fn over(&self, now_ns: u64) -> Option<FinishReason> {
        if self.cancelled.load(Ordering::Acquire) {
            return Some(FinishReason::Cancelled);
        }
        (self.deadline_ns <= now_ns).then_some(FinishReason::Deadline)
    }
}

/// What the engine thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    Add(Box<Request>, Arc<Live>),
    End(SeqId, FinishReason),
    /// End everything, then the thread.
    Close,
}

/// Counters behind `Stats`.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) waiting: Cell,
    pub(crate) running: Cell,
    pub(crate) finished: Cell,
    pub(crate) rejected: Cell,
    pub(crate) preempted: Cell,
    pub(crate) blocks_total: Cell,
    pub(crate) blocks_free: Cell,
    pub(crate) prefix_hit_tokens: Cell,
    pub(crate) prompt_tokens: Cell,
    pub(crate) completion_tokens: Cell,
    pub(crate) steps: Cell,
    pub(crate) failed_steps: Cell,
    pub(crate) prefix_lookup_tokens: Cell,
    pub(crate) lost_tokens: Cell,
    pub(crate) blocks_cached: Cell,
    /// By [`FinishReason::ALL`].
    pub(crate) ends: [Cell; FinishReason::ALL.len()],
}

#[derive(Debug)]
struct Life {
    state: State,
    /// Why the engine failed.
    error: Option<Error>,
    closing: bool,
    live: HashMap<RequestId, Arc<Live>>,
}

/// Shared by callers, text threads, the engine thread and output threads. No lock is held while another is taken.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Arc<dyn Clock>,
    /// The engine's own: told of every change of state.
    queue: Arc<EventQueue>,
    pub(crate) log: Logger,
    pub(crate) signal: Arc<Signal>,
    pub(crate) counters: Counters,
    pub(crate) histograms: Histograms,
    mailbox: Mutex<Vec<Command>>,
    life: Mutex<Life>,
    /// Notified when a request ends or the state changes.
    changed: Condvar,
    max_waiting: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section below leaves its data whole, so a poisoned lock is still good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(clock: Arc<dyn Clock>, queue: Arc<EventQueue>, log: Logger, max_waiting: usize) -> Self {
        Self {
            clock,
            queue,
            log,
            signal: Arc::new(Signal::default()),
            counters: Counters::default(),
            histograms: Histograms::new(),
            mailbox: Mutex::default(),
            life: Mutex::new(Life { state: State::Loading, error: None, closing: false, live: HashMap::new() }),
            changed: Condvar::new(),
            max_waiting: max_waiting as u64,
        }
    }

    /// Bounded by what is live: one `Add` and a few `End`s per choice.
    pub(crate) fn send(&self, command: Command) {
        lock(&self.mailbox).push(command);
        self.signal.notify();
    }

    /// Moves all commands to `into`.
    pub(crate) fn receive(&self, into: &mut Vec<Command>) {
        into.append(&mut lock(&self.mailbox));
    }

    /// Takes a request in, or says why not.
    pub(crate) fn register(&self, live: Arc<Live>) -> Result<()> {
        let mut life = lock(&self.life);
        if life.closing || life.state == State::Draining {
            return Err(Error::new(ErrorKind::Shutdown, "the engine is draining or being freed; it takes no requests"));
        }
        if let (State::Failed, Some(e)) = (life.state, &life.error) {
            return Err(e.clone().within("the engine has failed"));
        }
        if self.counters.waiting.get() >= self.max_waiting {
            self.counters.rejected.add(1);
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{} requests are waiting (max_waiting); retry later or shed load", self.max_waiting),
            ));
        }
        self.counters.waiting.add(1);
        life.live.insert(live.id, live);
        Ok(())
    }

    /// The request is not waiting any more.
    pub(crate) fn left_waiting(&self, live: &Live) {
        if live.waiting.swap(false, Ordering::AcqRel) {
            self.counters.waiting.sub(1);
        }
    }

    /// The request's Done comes next: who reads it finds the request counted.
    pub(crate) fn ends(&self, live: &Live) {
        self.left_waiting(live);
        self.counters.finished.add(1);
    }

    /// The request's Done is out.
    pub(crate) fn ended(&self, live: &Live) {
        lock(&self.life).live.remove(&live.id);
        self.changed.notify_all();
    }

    /// Undoes `register` for a request whose stream could not be opened for a reason of `kind`.
    pub(crate) fn unregister(&self, live: &Live, kind: ErrorKind) {
        self.counters.rejected.add(u64::from(kind == ErrorKind::Busy));
        self.left_waiting(live);
        lock(&self.life).live.remove(&live.id);
        self.changed.notify_all();
    }

    pub(crate) fn cancel(&self, id: RequestId) {
        let live = lock(&self.life).live.get(&id).cloned();
        if let Some(live) = live
            && !live.cancelled.swap(true, Ordering::AcqRel)
        {
            for choice in 0..live.choices() {
                self.send(Command::End(live.seq(choice), FinishReason::Cancelled));
            }
        }
    }

    pub(crate) fn cancel_all(&self) {
        let ids: Vec<_> = lock(&self.life).live.keys().copied().collect();
        for id in ids {
            self.cancel(id);
        }
    }

    pub(crate) fn state(&self) -> State {
        lock(&self.life).state
    }

    pub(crate) fn error(&self) -> Option<Error> {
        lock(&self.life).error.clone()
    }

    /// Failed is final, and a draining engine does not become ready.
    pub(crate) fn set_state(&self, state: State) {
        let mut life = lock(&self.life);
        let (old, message) = (life.state, if state == State::Ready { "ready" } else { "draining: no new requests" });
        if old == State::Failed || old == state || (old == State::Draining && state == State::Ready) {
            return;
        }
        life.state = state;
        drop(life);
        self.changed.notify_all();
        self.tell(state, 1000, message, None);
    }

    pub(crate) fn fail(&self, error: Error) {
        let mut life = lock(&self.life);
        if life.state == State::Failed {
            return;
        }
        life.state = State::Failed;
        life.error = Some(error.clone());
        // A host's log function may call back into the engine.
        drop(life);
        self.log.error(format_args!("failed: {error}"));
        self.changed.notify_all();
        self.tell(State::Failed, 0, &error.message, Some(error.kind));
    }

    /// Tells the host how far loading is, from 0 to 1.
    pub(crate) fn progress(&self, share: f32) {
        self.tell(State::Loading, (share.clamp(0.0, 1.0) * 1000.0) as u32, "loading", None);
    }

    fn tell(&self, state: State, permille: u32, message: &str, error: Option<ErrorKind>) {
        let (message, t_event_ns) = (message.to_owned(), self.clock.now_ns());
        self.queue.engine_event(EngineEvent { state, permille, message, error, t_event_ns });
    }

    /// From here on nothing is accepted. False when somebody else has begun to close.
    pub(crate) fn begin_close(&self) -> bool {
        let mut life = lock(&self.life);
        !std::mem::replace(&mut life.closing, true)
    }

    pub(crate) fn is_closing(&self) -> bool {
        lock(&self.life).closing
    }

    /// Waits until no request is live; false when `timeout` passed first.
    pub(crate) fn wait_idle(&self, timeout: Option<Duration>) -> bool {
        let life = lock(&self.life);
        let busy = |life: &mut Life| !life.live.is_empty();
        match timeout {
            None => {
                drop(self.changed.wait_while(life, busy).unwrap_or_else(PoisonError::into_inner));
                true
            }
            Some(t) => {
                let (_guard, result) =
                    self.changed.wait_timeout_while(life, t, busy).unwrap_or_else(PoisonError::into_inner);
                !result.timed_out()
            }
        }
    }
}
