//! A small fork-join pool owned by one device. A job is a number of chunks that the caller and the workers claim one by
//! one: the caller never waits for a worker that has not begun, so a busy machine slows a step down by no more than the
//! cores it took. Idle workers spin for a moment between the ops of a step and then park: an idle engine uses no CPU.

use crate::base::error::panic_text;
use crate::base::{Error, Result, threads};
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker looks for the next job before it parks: longer than the gap between two ops of a step.
const WORKER_SPIN: Duration = Duration::from_micros(50);
/// How long either looks without giving way to other threads.
const GIVE_WAY: Duration = Duration::from_micros(15);
/// How long the caller looks for the end of the last chunks before it parks.
const CALLER_SPIN: Duration = Duration::from_micros(200);
/// Chunks per thread that [`Pool::split`] makes at most.
const CHUNKS_PER_THREAD: usize = 4;

/// Work on one chunk: which thread it is, below [`Pool::threads`], and the chunk.
type Task<'a> = &'a (dyn Fn(usize, usize) + Sync + 'a);

/// Compute threads of one device.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time; two streams of a device take turns.
    turn: Mutex<()>,
}

struct Job {
    /// Lifetime erased: see `Pool::publish`.
    task: Task<'static>,
    chunks: usize,
    caller: Thread,
}

/// The job is open: workers may enter.
const OPEN: u64 = 1 << 31;
/// Workers inside the job.
const ACTIVE: u64 = OPEN - 1;
/// One more job.
const JOB: u64 = 1 << 32;

struct Shared {
    job: UnsafeCell<Option<Job>>,
    /// Number of the job, [`OPEN`], and the count of [`ACTIVE`] workers in one word.
    state: AtomicU64,
    /// The chunk to claim next.
    next: AtomicUsize,
    caller_parked: AtomicBool,
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
    panicked: Mutex<Option<String>>,
}

// SAFETY: `job` is written only by the holder of `turn` while the state is closed with no active worker, and read by
// workers only while they are counted active.
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
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            caller_parked: AtomicBool::new(false),
            parked: (0..n).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panicked: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(n), turn: Mutex::new(()) };
        for index in 0..n {
            let shared = Arc::clone(&pool.shared);
            let spawned = threads::named(format!("yn-cpu-{}", index + 1))
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

    /// Splits `0..n` into ranges of at least about `grain` and runs `task(thread, range)` on each. Which thread takes
    /// which range is chance, so a task's result must not depend on it.
    pub(super) fn split(&self, n: usize, grain: usize, task: &(dyn Fn(usize, Range<usize>) + Sync)) -> Result<()> {
        let threads = self.threads();
        let most = (n / grain.max(1)).clamp(1, threads * CHUNKS_PER_THREAD);
        let chunks = if most > threads { most / threads * threads } else { most };
        self.run(chunks, &|thread, chunk| task(thread, n * chunk / chunks..n * (chunk + 1) / chunks))
    }

    /// Runs `task(thread, chunk)` once for every chunk and returns when all have ended. A single chunk runs right here
    /// without waking anyone. A panic in any chunk is an `Internal` error; chunks nobody had claimed may then be left out.
    pub(super) fn run(&self, chunks: usize, task: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
        let text = |payload: Box<dyn Any + Send>| panic_text(payload.as_ref());
        if chunks <= 1 || self.workers.is_empty() {
            let all = || (0..chunks).for_each(|chunk| task(0, chunk));
            return catch_unwind(AssertUnwindSafe(all)).map_err(|payload| failure(&text(payload)));
        }
        let _turn = lock(&self.turn);
        self.publish(chunks, task);
        let mine = catch_unwind(AssertUnwindSafe(|| self.shared.claim(0, chunks, task))).map_err(text);
        self.shared.state.fetch_and(!OPEN, SeqCst);
        self.shared.wait_for_workers();
        let theirs = lock(&self.shared.panicked).take();
        match mine.err().or(theirs) {
            None => Ok(()),
            Some(text) => Err(failure(&text)),
        }
    }

    fn publish(&self, chunks: usize, task: Task<'_>) {
        // SAFETY: only the lifetime changes. `run` neither returns nor unwinds before the state is closed and no worker is
        // active, after which none touches the task.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let shared = &self.shared;
        // SAFETY: `turn` is held and the previous job was left closed with no active worker.
        unsafe { *shared.job.get() = Some(Job { task, chunks, caller: std::thread::current() }) };
        shared.next.store(0, SeqCst);
        shared.state.fetch_add(JOB | OPEN, SeqCst);
        for (parked, worker) in shared.parked.iter().zip(&self.workers).take(chunks - 1) {
            if parked.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches every panic of its tasks; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn claim(&self, thread: usize, chunks: usize, task: Task<'_>) {
        loop {
            let chunk = self.next.fetch_add(1, SeqCst);
            if chunk >= chunks {
                return;
            }
            task(thread, chunk);
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(number) = self.wait_for_job(index, seen) {
            seen = number;
            if !self.enter(number) {
                continue;
            }
            // SAFETY: this worker is counted active, so the job stays.
            if let Some(job) = unsafe { &*self.job.get() } {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.claim(index + 1, job.chunks, job.task))) {
                    *lock(&self.panicked) = Some(panic_text(payload.as_ref()));
                }
                let caller = job.caller.clone();
                let left = self.state.fetch_sub(1, SeqCst) - 1;
                if left & (OPEN | ACTIVE) == 0 && self.caller_parked.swap(false, SeqCst) {
                    caller.unpark();
                }
            }
        }
    }

    /// Counts the caller active in job `number`; false when that job is closed.
    fn enter(&self, number: u64) -> bool {
        let open = |state: u64| (state / JOB == number && state & OPEN != 0).then_some(state + 1);
        self.state.fetch_update(SeqCst, SeqCst, open).is_ok()
    }

    /// Spins, then parks, until a job other than `seen` is open, and returns its number; `None` at the end.
    fn wait_for_job(&self, index: usize, seen: u64) -> Option<u64> {
        let fresh = || {
            let state = self.state.load(SeqCst);
            (state & OPEN != 0 && state / JOB != seen).then_some(state / JOB)
        };
        let ready = || if self.stop.load(SeqCst) { Some(None) } else { fresh().map(Some) };
        if let Some(found) = spin(WORKER_SPIN, ready) {
            return found;
        }
        loop {
            self.parked[index].store(true, SeqCst);
            if let Some(found) = ready() {
                self.parked[index].store(false, SeqCst);
                return found;
            }
            std::thread::park();
        }
    }

    fn wait_for_workers(&self) {
        let done = || (self.state.load(SeqCst) & ACTIVE == 0).then_some(());
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

/// Looks again and again; after [`GIVE_WAY`] whoever else wants the core goes first.
fn spin<T>(limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if let Some(value) = ready() {
                return Some(value);
            }
            std::hint::spin_loop();
        }
        match start.elapsed() {
            long if long > limit => return None,
            long if long > GIVE_WAY => std::thread::yield_now(),
            _ => {}
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
    fn every_chunk_runs_once() {
        for threads in 1..=3 {
            let pool = Pool::new(threads).unwrap();
            for chunks in 0..=9 {
                let hits: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..200 {
                    let task = |thread: usize, chunk: usize| {
                        assert!(thread < threads);
                        hits[chunk].fetch_add(1, SeqCst);
                    };
                    pool.run(chunks, &task).unwrap();
                }
                assert!(hits.iter().all(|h| h.load(SeqCst) == 200));
            }
        }
    }

    #[test]
    fn ranges_cover_everything_once() {
        let pool = Pool::new(3).unwrap();
        for n in [0, 1, 2, 7, 30, 1536] {
            for grain in [1, 4, 1000] {
                let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.split(n, grain, &|_, range| {
                    range.for_each(|i| {
                        hits[i].fetch_add(1, SeqCst);
                    })
                })
                .unwrap();
                assert!(hits.iter().all(|h| h.load(SeqCst) == 1), "{n} by {grain}");
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for bad in 0..4 {
            let e = pool.run(4, &|_, chunk| assert!(chunk != bad, "chunk {chunk} broke")).unwrap_err();
            assert!(e.message.contains(&format!("chunk {bad} broke")), "{e}");
            pool.run(4, &|_, _| ()).unwrap();
        }
    }

    #[test]
    fn idle_workers_park_and_wake() {
        let pool = Pool::new(2).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        for _ in 0..5 {
            while !pool.shared.parked[0].load(SeqCst) {
                assert!(Instant::now() < deadline, "an idle worker keeps spinning");
                std::thread::sleep(Duration::from_millis(1));
            }
            // The first chunk waits for the second, which only the other thread can take.
            let both = std::sync::Barrier::new(2);
            pool.run(2, &|_, _| {
                both.wait();
            })
            .unwrap();
        }
    }
}
