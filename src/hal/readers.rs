//! Threads that read files of weights side by side: pieces, errors and ends. Where the bytes go is the backend's business.

use crate::base::config::Placement;
use crate::base::error::panic_text;
use crate::base::{Error, Result, threads};
use crate::hal::Allocation;
use crate::hal::load::FilePart;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of a piece: enough for the cost of a copy to vanish, few enough for a core's cache and for page-locking to be quick.
pub(super) const PIECE_BYTES: usize = 2 << 20;
/// One thread copies some 5 GB/s out of the system's page cache.
const MOST_READERS: usize = 16;
/// Bytes that are worth a thread of their own.
const READER_BYTES: usize = 64 << 20;

/// At most [`PIECE_BYTES`] of a file, and where they go.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) from: FilePart,
    pub(super) bytes: usize,
    pub(super) to: Arc<dyn Allocation>,
    /// First byte of `to`.
    pub(super) at: usize,
    /// Whose memory `to` is.
    pub(super) placement: Placement,
}

/// What one thread reads with; made, used and dropped on it.
pub(super) trait Reader {
    fn read(&mut self, piece: &Piece) -> Result<()>;
    /// Waits until all that was read is where it belongs.
    fn finish(&mut self) -> Result<()>;
}

type Make = dyn Fn() -> Result<Box<dyn Reader>> + Send + Sync;

#[derive(Debug)]
struct State {
    /// Threads that have not ended.
    live: usize,
    /// The first one's.
    error: Option<Error>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
    pending_bytes: AtomicUsize,
    /// Nothing more is read: something failed, or nobody wants it.
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, pieces: &Receiver<Piece>, make: &Make) -> Result<()> {
        let mut reader = make()?;
        for piece in pieces {
            if self.stop.load(Relaxed) {
                return Ok(());
            }
            reader.read(&piece)?;
            self.pending_bytes.fetch_sub(piece.bytes, Relaxed);
        }
        reader.finish()
    }

    fn end(&self, outcome: Result<()>) {
        let mut state = self.lock();
        if let Err(e) = outcome {
            self.stop.store(true, Relaxed);
            state.error.get_or_insert(e);
        }
        state.live -= 1;
        self.ended.notify_all();
    }
}

/// The threads. They end with it.
#[derive(Debug)]
pub(super) struct Readers {
    /// `None` once nothing more comes.
    pieces: Option<Sender<Piece>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// How many threads reading `bytes` is worth.
    pub(super) fn threads_for(bytes: usize) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        bytes.div_ceil(READER_BYTES).clamp(1, MOST_READERS).min(cores)
    }

    /// So many threads, each with a reader that it makes.
    pub(super) fn start(
        count: usize,
        make: impl Fn() -> Result<Box<dyn Reader>> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (sender, pieces) = unbounded::<Piece>();
        let shared = Arc::new(Shared {
            state: Mutex::new(State { live: 0, error: None }),
            ended: Condvar::new(),
            pending_bytes: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut readers =
            Self { pieces: Some(sender), shared: Arc::clone(&shared), threads: Vec::with_capacity(count) };
        let make: Arc<Make> = Arc::new(make);
        for i in 0..count {
            let (pieces, shared, make) = (pieces.clone(), Arc::clone(&shared), Arc::clone(&make));
            readers.shared.lock().live += 1;
            let body = move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| shared.run(&pieces, make.as_ref())));
                shared.end(outcome.unwrap_or_else(|panic| {
                    let text = panic_text(panic.as_ref());
                    Err(Error::internal(format!("a thread that reads weights panicked: {text}")))
                }));
            };
            match threads::named(format!("yn-load-{i}")).spawn(body) {
                Ok(thread) => readers.threads.push(thread),
                Err(e) => {
                    readers.shared.lock().live -= 1;
                    return Err(Error::io(format!("the thread yn-load-{i} does not start: {e}")));
                }
            }
        }
        Ok(readers)
    }

    /// Has `bytes` of a file read to `to`, from its byte `at` on. What goes wrong is told by [`Self::finish`].
    pub(super) fn read(
        &self,
        from: &FilePart,
        bytes: usize,
        (to, at): (&Arc<dyn Allocation>, usize),
        placement: Placement,
    ) {
        assert!(at + bytes <= to.bytes(), "{bytes} bytes at {at} of {}", to.bytes());
        let Some(pieces) = &self.pieces else { return };
        for done in (0..bytes).step_by(PIECE_BYTES) {
            let bytes = PIECE_BYTES.min(bytes - done);
            self.shared.pending_bytes.fetch_add(bytes, Relaxed);
            // Nobody listens once all have failed.
            let _ = pieces.send(Piece { from: from.skip(done), bytes, to: Arc::clone(to), at: at + done, placement });
        }
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.shared.pending_bytes.load(Relaxed)
    }

    /// Waits up to `at_most` for all pieces, and takes no more. True when all are where they belong.
    pub(super) fn finish(&mut self, at_most: Duration) -> Result<bool> {
        self.pieces = None;
        let waited = self.shared.ended.wait_timeout_while(self.shared.lock(), at_most, |s| s.live > 0);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(e) = state.error.take() {
            return Err(e);
        }
        Ok(state.live == 0)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.pieces = None;
        for thread in self.threads.drain(..) {
            // A panic was caught on the thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "readers_tests.rs"]
mod tests;
