//! Page-locked slots, which threads fill with pieces of files and from which the device copies while the next ones are read.
//!
//! To page-lock is to touch fresh memory, 20 to 40 ms for those of 16 readers, so that it is done while the device opens; and
//! they are given back while the engine warms up.

use super::driver::Context;
use super::memory::PinnedMemory;
use crate::base::{Result, threads};
use crate::hal::readers::{PIECE_BYTES, Readers};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Slots of a reader: one is read into while the device copies from the other.
pub(super) const SLOTS: usize = 2;
/// Threads that page-lock, beside those that open the device.
const MAKERS: usize = 4;

#[derive(Debug, Default)]
struct State {
    /// Those that nobody has.
    free: Vec<PinnedMemory>,
    /// That nobody has begun to make yet.
    wanted: usize,
    /// Makers that are at one.
    making: usize,
    /// What is given back is for nobody any more.
    closed: bool,
    /// How many there were before anybody needed them, and when the last one was.
    made: usize,
    ready: Duration,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    start: Instant,
}

/// A maker at work on a slot. Its end wakes those that wait, whatever came of it.
struct Making<'a>(&'a Shared);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.lock().making -= 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Option<Making<'_>> {
        let mut state = self.lock();
        state.wanted = state.wanted.checked_sub(1)?;
        state.making += 1;
        Some(Making(self))
    }

    /// Makes slots until enough are there or one cannot be made: who needs it finds out why.
    fn make(&self, context: &Arc<Context>) {
        while let Some(_making) = self.begin() {
            let Ok(memory) = PinnedMemory::unfilled(context, PIECE_BYTES) else {
                self.lock().wanted = 0;
                return;
            };
            let mut state = self.lock();
            state.made += 1;
            state.ready = self.start.elapsed();
            drop(state);
            self.give(memory);
        }
    }

    fn give(&self, memory: PinnedMemory) {
        let mut state = self.lock();
        if !state.closed {
            state.free.push(memory);
            drop(state);
            self.changed.notify_all();
        }
    }

    fn take(&self, context: &Arc<Context>) -> Result<PinnedMemory> {
        let mut state = self.lock();
        loop {
            if let Some(memory) = state.free.pop() {
                return Ok(memory);
            }
            if state.wanted > 0 || state.making == 0 {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.wanted = state.wanted.saturating_sub(1);
        drop(state);
        PinnedMemory::unfilled(context, PIECE_BYTES)
    }
}

/// The slots of a device's loader.
#[derive(Debug)]
pub(super) struct Slots {
    shared: Arc<Shared>,
    context: Arc<Context>,
}

impl Slots {
    /// Begins to make those for loading `bytes`.
    pub(super) fn start(context: &Arc<Context>, bytes: usize) -> Self {
        let wanted = if bytes == 0 { 0 } else { Readers::threads_for(bytes) * SLOTS };
        let state = Mutex::new(State { wanted, ..State::default() });
        let shared = Arc::new(Shared { state, changed: Condvar::new(), start: Instant::now() });
        for i in 0..MAKERS.min(wanted) {
            let (own, context) = (Arc::clone(&shared), Arc::clone(context));
            // Readers make what nobody makes.
            let Ok(thread) = threads::named(format!("yn-slots-{i}")).spawn(move || own.make(&context)) else { break };
            shared.lock().threads.push(thread);
        }
        Self { shared, context: Arc::clone(context) }
    }

    /// One that is there or under way, else a new one. `NoMemory` when there is none.
    pub(super) fn take(&self) -> Result<PinnedMemory> {
        self.shared.take(&self.context)
    }

    /// Takes back one that nothing copies from any more.
    pub(super) fn give(&self, memory: PinnedMemory) {
        self.shared.give(memory);
    }

    /// Frees all that were given back, on a thread of its own, and those to come at once.
    pub(super) fn close(&self) {
        let mut state = self.shared.lock();
        (state.closed, state.wanted) = (true, 0);
        let free = std::mem::take(&mut state.free);
        drop(state);
        if !free.is_empty() {
            // Where no thread starts, they are dropped here.
            let thread = threads::named("yn-slots-end").spawn(move || drop(free));
            self.shared.lock().threads.extend(thread);
        }
    }

    /// Waits for its threads to end: after [`Self::close`], until nothing is left.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut self.shared.lock().threads);
        for thread in threads {
            // A maker that panics leaves its slot to the readers.
            let _ = thread.join();
        }
    }

    /// How it went, for logs.
    pub(super) fn times(&self) -> String {
        let state = self.shared.lock();
        format!(
            "{} slots page-locked {:.1} ms after the device's context was there",
            state.made,
            state.ready.as_secs_f64() * 1e3
        )
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.close();
        self.join();
    }
}
