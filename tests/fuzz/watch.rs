//! Whatever an input does to the process, it can be found: it lies in a file while it runs, and a thread looks for those that
//! take too long.

use crate::say;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Longest time one input may take.
const SLOWEST: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Facts {
    name: &'static str,
    seed: u64,
    file: PathBuf,
    start: Instant,
    inputs: AtomicU64,
    /// Nanoseconds from `start` to the begin of the input that runs; 0 when none does.
    since_ns: AtomicU64,
}

impl Facts {
    fn which(&self) -> String {
        let inputs = self.inputs.load(Ordering::Relaxed);
        format!("{}: FUZZ_SEED={}, input {inputs}, FUZZ_INPUT={}", self.name, self.seed, self.file.display())
    }
}

/// The input that runs now.
#[derive(Debug)]
pub(crate) struct Watch {
    facts: Arc<Facts>,
    file: File,
}

impl Watch {
    pub(crate) fn new(name: &'static str, seed: u64) -> Self {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
        let facts = Facts {
            name,
            seed,
            start: Instant::now(),
            inputs: AtomicU64::new(0),
            since_ns: AtomicU64::new(0),
            file: file.clone(),
        };
        let facts = Arc::new(facts);
        let weak = Arc::downgrade(&facts);
        std::thread::spawn(move || look(&weak));
        Self { facts, file: File::create(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())) }
    }

    pub(crate) fn begin(&mut self, input: &[u8]) {
        self.file.set_len(input.len() as u64).unwrap();
        self.file.write_all_at(input, 0).unwrap();
        self.facts.inputs.fetch_add(1, Ordering::Relaxed);
        self.facts.since_ns.store(self.facts.start.elapsed().as_nanos() as u64, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.facts.since_ns.store(0, Ordering::Release);
    }

    /// Names the input for a complaint.
    pub(crate) fn which(&self) -> String {
        self.facts.which()
    }
}

/// Until the run is over.
fn look(facts: &Weak<Facts>) {
    while let Some(facts) = facts.upgrade() {
        let since_ns = facts.since_ns.load(Ordering::Acquire);
        let now_ns = facts.start.elapsed().as_nanos() as u64;
        if since_ns != 0 && now_ns > since_ns + SLOWEST.as_nanos() as u64 {
            say(&format!("{} takes more than {} s", facts.which(), SLOWEST.as_secs()));
            // It may never end, and a test cannot be stopped otherwise.
            std::process::exit(1);
        }
        drop(facts);
        std::thread::sleep(Duration::from_millis(100));
    }
}
