//! Fuzzing of everything that is parsed from outside: mutated inputs must give an answer or a typed error, soon, in bounded
//! memory and without a panic. `FUZZ_SECONDS` for all targets together (60 with CI set, otherwise 15). `FUZZ_SEED` begins
//! as the run that printed it; `FUZZ_INPUT` is a file that one target alone shall read: the one a crash has left behind.

mod arguments;
mod corpus;
mod jinja;
mod memory;
mod mutate;
mod targets;
mod watch;

use corpus::{Corpus, Shape};
use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};
use watch::Watch;
use yinian::base::error::MAX_MESSAGE;
use yinian::base::rng::{SplitMix64, mix};

/// How many targets share the time; [`fuzz`] checks it against `tests/fuzz/corpus`.
const TARGETS: u32 = 7;
/// Most memory one input may have the target's thread take.
const MOST_BYTES: isize = 256 << 20;
/// Inputs with a new answer that are kept to be mutated further.
const MOST_KEPT: usize = 500;

/// What is fuzzed.
pub(crate) struct Target<'a> {
    /// Also the folder of its corpus.
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    /// What mutations put in.
    pub(crate) words: &'a [&'a str],
    /// `Err`: why the input was refused.
    pub(crate) run: &'a dyn Fn(&[u8]) -> Result<(), String>,
    /// Share of generated inputs, in percent, that must be taken: else nothing behind the first check is reached.
    pub(crate) least_taken: u64,
    /// Bytes that all inputs together may leave allocated on the target's thread.
    pub(crate) most_left: isize,
}

/// What caches of the parsers may keep: the tokenizer's has ten thousand words.
pub(crate) const CACHES: isize = 16 << 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|s| s.parse().unwrap_or_else(|e| panic!("{name}={s}: {e}")))
}

fn time() -> Duration {
    let all = number("FUZZ_SECONDS").unwrap_or(if std::env::var_os("CI").is_some() { 60 } else { 15 });
    Duration::from_secs(all) / TARGETS
}

/// To standard error as it stands: what a test prints is lost when the process dies.
pub(crate) fn say(line: &str) {
    // There is nowhere to report that standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

thread_local! {
    /// While an input runs: the last panic. Those that the library catches shall not fill the output.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics on a thread whose input runs are kept, others printed as always.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let kept = PANIC.with_borrow_mut(|last| last.as_mut().map(|last| *last = info.to_string()));
            if kept.is_none() {
                others(info);
            }
        }));
    });
}

/// What an answer is about, without the values in it: inputs with a new one are worth mutating.
fn kind_of(answer: &Result<(), String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    if let Err(message) = answer {
        let (mut quoted, mut depth) = (false, 0);
        for c in message.chars() {
            quoted ^= c == '"';
            depth += i32::from("[{(".contains(c)) - i32::from("]})".contains(c));
            if !quoted && depth == 0 && c.is_ascii_lowercase() {
                c.hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}

struct Answer {
    taken: bool,
    /// There was none of its kind before.
    new: bool,
}

/// The run of one target.
struct Run<'a> {
    target: &'a Target<'a>,
    watch: Watch,
    taken: u64,
    kinds: HashSet<u64>,
    /// Bytes that inputs left allocated on this thread.
    left: isize,
}

impl Run<'_> {
    /// Gives one input to the target.
    fn one(&mut self, input: &[u8]) -> Answer {
        self.watch.begin(input);
        PANIC.set(Some(String::new()));
        let before = memory::mark();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let panic = PANIC.take().unwrap_or_default();
        let used = memory::since(before);
        self.watch.end();
        let answer = outcome.unwrap_or_else(|_| panic!("{}: {panic}", self.watch.which()));
        assert!(used.peak <= MOST_BYTES, "{} takes {} bytes", self.watch.which(), used.peak);
        if let Err(message) = &answer {
            let text = !message.is_empty() && message.len() <= MAX_MESSAGE;
            assert!(text, "{} has a message of {} bytes: {message}", self.watch.which(), message.len());
        }
        self.taken += u64::from(answer.is_ok());
        self.left += used.left - memory::held_by(&answer) - panic.capacity() as isize;
        Answer { taken: answer.is_ok(), new: self.kinds.insert(kind_of(&answer)) }
    }
}

/// Runs a target until its share of the time is over.
pub(crate) fn fuzz(target: &Target<'_>) {
    assert_eq!(corpus::folders(), TARGETS as usize, "TARGETS");
    keep_panics();
    let seed = number("FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 16);
    let mut run = Run { target, watch: Watch::new(target.name, seed), taken: 0, kinds: HashSet::new(), left: 0 };
    if let Ok(file) = std::env::var("FUZZ_INPUT") {
        let input = std::fs::read(&file).unwrap_or_else(|e| panic!("FUZZ_INPUT={file}: {e}"));
        run.one(&input);
        return say(&format!("{}: {file} is {}", target.name, if run.taken > 0 { "taken" } else { "refused" }));
    }
    let mut corpus = Corpus::read(target.name, target.shape, target.words);
    say(&format!("{}: FUZZ_SEED={seed}, {} files of corpus", target.name, corpus.len()));
    for (i, input) in corpus.files().iter().enumerate() {
        if run.one(input).taken {
            corpus.prefer(i);
        }
    }
    let (of_corpus, first) = (run.taken, corpus.len());
    // What is built on first use is built by now.
    run.left = 0;
    let (start, mut inputs) = (Instant::now(), 0);
    while start.elapsed() < time() {
        inputs += 1;
        let input = corpus.mutated(&mut SplitMix64(mix(seed, inputs)));
        if run.one(&input).new && corpus.len() < first + MOST_KEPT {
            corpus.keep(&input);
        }
    }
    let (taken, kinds) = (run.taken - of_corpus, run.kinds.len());
    say(&format!(
        "{}: {inputs} inputs, {:.0} a second, {} % taken, {kinds} kinds of answer, {} KiB left",
        target.name,
        inputs as f64 / start.elapsed().as_secs_f64(),
        taken * 100 / inputs,
        run.left.max(0) >> 10
    ));
    assert!(inputs > 100, "{}: {inputs} inputs only", target.name);
    assert!(taken * 100 >= inputs * target.least_taken, "{}: {taken} of {inputs} inputs are taken", target.name);
    assert!(run.left <= target.most_left, "{}: {} bytes are left after {inputs} inputs", target.name, run.left);
}
