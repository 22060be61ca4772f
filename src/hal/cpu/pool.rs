//! A small fork-join pool owned by one device. The caller takes part; workers spin for a moment between the ops of a step
//! and then park, so that an idle engine uses no CPU.

use crate::base::error::panic_text;
use crate::base::{Error, Result};
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker looks for the next job before it parks: longer than the gap between two ops of a step.
const WORKER_SPIN: Duration = Duration::from_micros(40);
/// How long the caller looks for the workers' end before it parks.
const CALLER_SPIN: Duration = Duration::from_micros(200);

type Task<'a> = &'a (dyn Fn(usize) + Sync + 'a);

/// Compute threads of one device.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time; two streams of a device take turns.
    turn: Mutex<()>,
}

struct Job {
    /// Lifetime erased: see `Pool::run`.
    task: Task<'static>,
    parts: usize,
    caller: Thread,
}

struct Shared {
    job: UnsafeCell<Option<Job>>,
    generation: AtomicU64,
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    caller_parked: AtomicBool,
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
    panicked: Mutex<Option<String>>,
}

// SAFETY: `job` is written only by the holder of `turn` while `pending` is 0, and read by workers only between the
// generation change that publishes it and their own decrement of `pending`.
unsafe impl Sync for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("workers", &self.parked.len()).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of `threads` including the caller. Errors with `NoMemory` when the system refuses a thread.
    pub(super) fn new(threads: usize) -> Result<Self> {
        let n = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            generation: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            caller_parked: AtomicBool::new(false),
            parked: (0..n).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panicked: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(n), turn: Mutex::new(()) };
        for index in 0..n {
            let shared = Arc::clone(&pool.shared);
            let spawned = std::thread::Builder::new()
                .name(format!("yn-cpu-{}", index + 1))
                .spawn(move || shared.work(index))
                .map_err(|e| Error::no_memory(format!("cannot start compute thread {} of {n}: {e}", index + 1)))?;
            pool.workers.push(spawned);
        }
        Ok(pool)
    }

    /// Threads that compute, the caller counted.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)`, ..., `task(parts - 1)`, at most one part per thread, and returns when all have ended. `parts` is
    /// capped at [`Pool::threads`]. A panic in any part is an `Internal` error here.
    pub(super) fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let parts = parts.clamp(1, self.threads());
        let outcome = if parts == 1 {
            catch_unwind(AssertUnwindSafe(|| task(0)))
        } else {
            let _turn = lock(&self.turn);
            self.publish(parts, task);
            let mine = catch_unwind(AssertUnwindSafe(|| task(0)));
            self.shared.wait_for_workers();
            mine
        };
        let theirs = if parts > 1 { lock(&self.shared.panicked).take() } else { None };
        match (outcome, theirs) {
            (Ok(()), None) => Ok(()),
            (Err(payload), _) => Err(failure(&panic_text(payload.as_ref()))),
            (Ok(()), Some(text)) => Err(failure(&text)),
        }
    }

    fn publish(&self, parts: usize, task: Task<'_>) {
        // SAFETY: only the lifetime changes. `run` does not return, and does not unwind, before every worker has
        // decremented `pending`, after which no worker touches the task.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let shared = &self.shared;
        // SAFETY: `turn` is held and the previous job ended with `pending` at 0, so no worker reads the cell now.
        unsafe { *shared.job.get() = Some(Job { task, parts, caller: std::thread::current() }) };
        shared.pending.store(self.workers.len(), SeqCst);
        shared.generation.fetch_add(1, SeqCst);
        for (parked, worker) in shared.parked.iter().zip(&self.workers) {
            if parked.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.generation.fetch_add(1, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches every panic of its tasks; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_generation(index, seen);
            if self.stop.load(SeqCst) {
                return;
            }
            // SAFETY: the generation changed, so `job` is published, and it stays until `pending` is 0.
            let Some(job) = (unsafe { &*self.job.get() }) else { return };
            if index + 1 < job.parts
                && let Err(payload) = catch_unwind(AssertUnwindSafe(|| (job.task)(index + 1)))
            {
                *lock(&self.panicked) = Some(panic_text(payload.as_ref()));
            }
            let caller = job.caller.clone();
            if self.pending.fetch_sub(1, SeqCst) == 1 && self.caller_parked.swap(false, SeqCst) {
                caller.unpark();
            }
        }
    }

    /// Spins, then parks, until the generation is not `seen`.
    fn next_generation(&self, index: usize, seen: u64) -> u64 {
        if let Some(now) = spin(WORKER_SPIN, || Some(self.generation.load(SeqCst)).filter(|g| *g != seen)) {
            return now;
        }
        loop {
            self.parked[index].store(true, SeqCst);
            let now = self.generation.load(SeqCst);
            if now != seen {
                self.parked[index].store(false, SeqCst);
                return now;
            }
            std::thread::park();
        }
    }

    fn wait_for_workers(&self) {
        let done = || (self.pending.load(SeqCst) == 0).then_some(());
        if spin(CALLER_SPIN, done).is_some() {
            return;
        }
        loop {
            self.caller_parked.store(true, SeqCst);
            if done().is_some() {
                self.caller_parked.store(false, SeqCst);
                return;
            }
            std::thread::park();
        }
    }
}

fn spin<T>(limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if let Some(value) = ready() {
                return Some(value);
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > limit {
            return None;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failure(text: &str) -> Error {
    Error::internal(format!("a compute thread of the CPU backend panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once() {
        let pool = Pool::new(3).unwrap();
        for parts in 1..=4 {
            let hits: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..200 {
                pool.run(parts, &|i| drop(hits[i].fetch_add(1, SeqCst))).unwrap();
            }
            let counts: Vec<usize> = hits.iter().map(|h| h.load(SeqCst)).collect();
            let expected: Vec<usize> = (0..4).map(|i| if i < parts.min(3) { 200 } else { 0 }).collect();
            assert_eq!(counts, expected);
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for bad in 0..2 {
            let e = pool.run(2, &|i| assert!(i != bad, "part {i} broke")).unwrap_err();
            assert!(e.message.contains(&format!("part {bad} broke")), "{e}");
            pool.run(2, &|_| ()).unwrap();
        }
    }

    #[test]
    fn idle_workers_park_and_wake() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !pool.shared.parked[0].load(SeqCst) {
                assert!(Instant::now() < deadline, "an idle worker keeps spinning");
                std::thread::sleep(Duration::from_millis(1));
            }
            let hits = AtomicUsize::new(0);
            pool.run(2, &|i| drop(hits.fetch_add(i, SeqCst))).unwrap();
            assert_eq!(hits.load(SeqCst), 1);
        }
    }
}
