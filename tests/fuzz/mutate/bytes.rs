//! Changes of bytes, whatever they mean.

use yinian::base::rng::SplitMix64;

/// A few flips, cuts, repetitions, words and a splice with `other`.
pub(crate) fn mutate(rng: &mut SplitMix64, input: &mut Vec<u8>, other: &[u8], words: &[String]) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(input.len() as u64 + 1) as usize;
        let end = (at + rng.below(32) as usize).min(input.len());
        match rng.below(8) {
            0 if at < input.len() => input[at] ^= 1 << rng.below(8),
            1 if at < input.len() => input[at] = rng.next_u64() as u8,
            2 => input.truncate(at),
            3 => drop(input.drain(at..end)),
            4 => {
                let from = rng.below(other.len() as u64 + 1) as usize;
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            5 => {
                let piece = input[at..end].repeat(rng.below(40) as usize);
                drop(input.splice(at..at, piece));
            }
            _ if !words.is_empty() => {
                let word = &words[rng.below(words.len() as u64) as usize];
                drop(input.splice(at..end.min(at + rng.below(6) as usize), word.bytes()));
            }
            _ => {}
        }
    }
}
