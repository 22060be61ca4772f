//! Fuzzing of everything that is parsed from outside: mutated inputs must give an answer or a typed error, soon and without
//! a panic. `FUZZ_SECONDS` per target (10 with CI=true, otherwise 1), `FUZZ_SEED` to replay a run from its printed seed.

mod arguments;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use yinian::base::rng::SplitMix64;

/// Longest time one input may take.
const SLOWEST: Duration = Duration::from_secs(5);
const MAX_INPUT: usize = 1 << 16;

/// What a target is fuzzed with: whole inputs to start from, and words to put in.
pub(crate) struct Corpus {
    pub(crate) seeds: Vec<Vec<u8>>,
    pub(crate) words: &'static [&'static str],
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|s| s.parse().expect(name))
}

fn seconds() -> u64 {
    number("FUZZ_SECONDS").unwrap_or(if std::env::var_os("CI").is_some() { 10 } else { 1 })
}

/// One input: some seeds, cut, flipped, spliced and salted with words.
fn mutate(rng: &mut SplitMix64, corpus: &Corpus) -> Vec<u8> {
    let pick = |rng: &mut SplitMix64| corpus.seeds[rng.below(corpus.seeds.len() as u64) as usize].clone();
    let mut input = pick(rng);
    for _ in 0..rng.below(8) {
        let at = rng.below(input.len() as u64 + 1) as usize;
        let end = (at + rng.below(32) as usize).min(input.len());
        match rng.below(8) {
            0 if at < input.len() => input[at] ^= 1 << rng.below(8),
            1 if at < input.len() => input[at] = rng.next_u64() as u8,
            2 => input.truncate(at),
            3 => drop(input.drain(at..end)),
            4 => {
                let other = pick(rng);
                let from = rng.below(other.len() as u64 + 1) as usize;
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            5 => {
                let piece = input[at..end].to_vec();
                (0..rng.below(40)).for_each(|_| drop(input.splice(at..at, piece.iter().copied())));
            }
            _ => {
                let word = corpus.words[rng.below(corpus.words.len() as u64) as usize];
                input.splice(at..end.min(at + rng.below(6) as usize), word.bytes());
            }
        }
        input.truncate(MAX_INPUT);
    }
    input
}

/// Runs a target until its time is over.
pub(crate) fn fuzz(name: &str, corpus: &Corpus, target: impl Fn(&[u8])) {
    let start = Instant::now();
    let first = number("FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 32);
    let mut runs = 0;
    for input in &corpus.seeds {
        target(input);
    }
    while start.elapsed() < Duration::from_secs(seconds()) {
        let seed = first + runs;
        let input = mutate(&mut SplitMix64(seed), corpus);
        let from = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let shown = String::from_utf8_lossy(&input[..input.len().min(2000)]).into_owned();
        assert!(outcome.is_ok(), "{name}: FUZZ_SEED={seed} panics: {shown}");
        assert!(from.elapsed() < SLOWEST, "{name}: FUZZ_SEED={seed} takes {:?}: {shown}", from.elapsed());
        runs += 1;
    }
    println!("{name}: {runs} inputs, {:.0} a second, from seed {first}", runs as f64 / start.elapsed().as_secs_f64());
    assert!(runs > 10, "{name}: {runs} inputs only");
}
