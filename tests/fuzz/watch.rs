//! Whatever an input does to the process, it can be found: it lies in a file while it runs, and a thread looks for those that
//! take too long.

use crate::say;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Longest time one input may take: of computing, as machines that run tests are busy, and in all.
const SLOWEST: Duration = Duration::from_secs(5);
const SLOWEST_IN_ALL: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Facts {
    name: &'static str,
    seed: u64,
    file: PathBuf,
    /// Where the system tells how long the thread of the target has computed.
    computed: PathBuf,
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
            computed: Path::new("/proc").join(std::fs::read_link("/proc/thread-self").unwrap()).join("schedstat"),
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

/// Time the target's thread has computed so far; none when the system does not say.
fn computed_ns(facts: &Facts) -> u64 {
    let told = std::fs::read_to_string(&facts.computed).unwrap_or_default();
    told.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or_default()
}

/// The input that ran at the last look, and what the thread had computed when it was first seen.
#[derive(Debug, Default)]
struct Seen {
    input: u64,
    computed_ns: u64,
}

/// Which input takes too long.
fn complaint(facts: &Facts, seen: &mut Seen, (slowest, in_all): (Duration, Duration)) -> Option<String> {
    let since_ns = facts.since_ns.load(Ordering::Acquire);
    let (input, now_ns) = (facts.inputs.load(Ordering::Relaxed), facts.start.elapsed().as_nanos() as u64);
    let computed_ns = computed_ns(facts);
    if seen.input != input {
        *seen = Seen { input, computed_ns };
    }
    let computed = Duration::from_nanos(computed_ns.saturating_sub(seen.computed_ns));
    let all = Duration::from_nanos(if since_ns == 0 { 0 } else { now_ns.saturating_sub(since_ns) });
    let late = all > slowest && (computed > slowest || all > in_all);
    late.then(|| format!("{} takes {computed:?}, waits included {all:?}", facts.which()))
}

/// Until the run is over.
fn look(facts: &Weak<Facts>) {
    let mut seen = Seen::default();
    while let Some(facts) = facts.upgrade() {
        if let Some(complaint) = complaint(&facts, &mut seen, (SLOWEST, SLOWEST_IN_ALL)) {
            say(&complaint);
            // It may never end, and a test cannot be stopped otherwise.
            std::process::exit(1);
        }
        drop(facts);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn slow_inputs_are_named() {
    let (mut watch, mut seen) = (Watch::new("watch-test", 7), Seen::default());
    let ms = Duration::from_millis;
    assert_eq!(complaint(&watch.facts, &mut seen, (ms(0), ms(0))), None, "nothing runs");
    watch.begin(b"slow");
    assert_eq!(complaint(&watch.facts, &mut seen, (ms(5), ms(60_000))), None);
    let end = Instant::now() + ms(50);
    while Instant::now() < end {}
    let said = complaint(&watch.facts, &mut seen, (ms(5), ms(60_000))).unwrap();
    assert!(said.starts_with("watch-test: FUZZ_SEED=7, input 1, FUZZ_INPUT="), "{said}");
    assert_eq!(std::fs::read(&watch.facts.file).unwrap(), b"slow");
    watch.begin(b"w");
    assert_eq!(complaint(&watch.facts, &mut seen, (ms(5), ms(60_000))), None, "the next input has just begun");
    std::thread::sleep(ms(30));
    assert_eq!(complaint(&watch.facts, &mut seen, (ms(5), ms(60_000))), None, "it does not compute");
    assert!(complaint(&watch.facts, &mut seen, (ms(5), ms(20))).is_some());
    watch.end();
    assert_eq!(complaint(&watch.facts, &mut seen, (ms(0), ms(0))), None, "it has ended");
}
