//! Whether what runs still fits when it has grown. Sequences that start together grow together, and those that then find no block
//! give way and compute all they had again. So a sequence starts only if the most blocks that all will hold at one time fit, as far
//! as that can be told: by how long outputs were lately, and by what each may generate at most. The peak over sequences sorted by
//! what is left of them is that of the Past-Future scheduler (Gong et al., ASPLOS 2025).

use crate::sched::SchedConfig;
use crate::sched::draft::Draft;
use crate::sched::scheduler::{NOBODY, Scheduler};
use crate::sched::sequence::Sequence;

/// What an output is taken for before any has ended, at most, and how many of the last ones count.
const FIRST: u64 = 1024;
const WINDOW: u64 = 64;
/// Parts of a logarithm's unit.
const PARTS: u64 = 1 << 16;

/// How long outputs were lately: the mean of their logarithms, which a few very long ones do not carry away.
#[derive(Debug)]
pub(super) struct Outputs {
    mean: u64,
    seen: u64,
}

/// To base 2, on a line between powers of two.
fn log(x: u64) -> u64 {
    let whole = x.max(1).ilog2();
    u64::from(whole) * PARTS + (((x.max(1) - (1 << whole)) * PARTS) >> whole)
}

/// What [`log`] was made of.
fn power(log: u64) -> u64 {
    let (whole, part) = (log / PARTS, log % PARTS);
    (1 << whole) + ((part << whole) / PARTS)
}

impl Outputs {
    /// At first an output is taken to leave as much room to as many others as may run.
    pub(super) fn new(cfg: &SchedConfig) -> Self {
        let all = u64::from(cfg.num_blocks) * u64::from(cfg.block_size);
        Self { mean: log(FIRST.min(all / cfg.max_seqs as u64)), seen: 1 }
    }

    pub(super) fn ended(&mut self, tokens: u32) {
        self.seen = (self.seen + 1).min(WINDOW);
        self.mean = (self.mean * (self.seen - 1) + log(u64::from(tokens))) / self.seen;
    }

    /// Tokens that a sequence is still taken to generate: somewhat more than the mean, as giving way costs more than waiting. One
    /// that has passed it goes on for a quarter of what it has.
    fn left(&self, s: &Sequence) -> u64 {
        let (generated, mean) = (u64::from(s.generated()), power(self.mean));
        (mean + mean / 8).max(generated + generated / 4).min(u64::from(s.limit)).saturating_sub(generated)
    }
}

/// A sequence that runs or will.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grower {
    /// Tokens.
    left: u64,
    /// Blocks that come back when it ends.
    held: u64,
}

impl Scheduler {
    /// Most blocks that this sequence, which starts with `held` of its own, and all who run will take beyond those that they hold then.
    /// None where nobody runs: whatever it grows to, it is in nobody's way.
    pub(super) fn growth(&mut self, slot: u32, held: u32, draft: &mut Draft) -> u32 {
        let own = Grower { left: self.outputs.left(&self.seqs[slot]), held: u64::from(held) };
        let running = || self.running.iter().map(|r| r.1).filter(|slot| *slot != NOBODY);
        let left = |slot| self.outputs.left(&self.seqs[slot]);
        let size = u64::from(self.cfg.block_size);
        if running().next().is_none() {
            return 0;
        }
        let all = *draft.growth.get_or_insert_with(|| running().map(left).sum());
        let most = (all + own.left).div_ceil(size);
        if most + u64::from(held) <= u64::from(self.pool.num_free()) {
            // They fit even if nobody ends.
            return most as u32;
        }
        let mut all = std::mem::take(&mut self.growers);
        all.clear();
        all.extend(running().map(|slot| Grower { left: left(slot), held: self.returning(slot) }));
        all.push(own);
        let peak = peak(&mut all, size);
        self.growers = all;
        u32::try_from(peak).unwrap_or(u32::MAX)
    }

    /// A sequence joins those that run.
    pub(super) fn grows(&self, slot: u32, draft: &mut Draft) {
        draft.growth.iter_mut().for_each(|all| *all += self.outputs.left(&self.seqs[slot]));
    }

    /// Blocks that come back when a sequence ends: those behind what it shares with others.
    fn returning(&self, slot: u32) -> u64 {
        let blocks = &self.seqs[slot].rest.blocks;
        (blocks.len() - blocks.partition_point(|b| self.pool.refs(*b) > 1)) as u64
    }
}

/// Most blocks that they take beyond what they hold now, at the moments when one ends. Each grows by a token a step, and gives back what
/// it has when it ends.
fn peak(all: &mut [Grower], size: u64) -> u64 {
    all.sort_unstable_by_key(|g| g.left);
    let (mut most, mut back) = (0, 0);
    for (ended, g) in all.iter().enumerate() {
        let alive = (all.len() - ended) as u64;
        most = most.max((alive * g.left).div_ceil(size).saturating_sub(back));
        back += g.held;
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_where_growth_outruns_what_comes_back() {
        let of = |all: &[(u64, u64)]| {
            let mut all: Vec<_> = all.iter().map(|&(left, held)| Grower { left, held }).collect();
            peak(&mut all, 16)
        };
        assert_eq!(of(&[]), 0);
        // All at once: each takes ten blocks.
        assert_eq!(of(&[(160, 5), (160, 5), (160, 5)]), 30);
        // One after the other: what the first gives back is enough for the second.
        assert_eq!(of(&[(16, 20), (320, 1)]), 2);
        assert_eq!(of(&[(320, 1), (16, 4)]), 16);
    }

    #[test]
    fn outputs_are_taken_for_what_they_were_lately() {
        let mut outputs = Outputs { mean: log(FIRST), seen: 1 };
        assert_eq!(power(outputs.mean), FIRST);
        (0..300).for_each(|_| outputs.ended(100));
        assert!((99..=103).contains(&power(outputs.mean)), "{outputs:?}");
        // One in ten is very long.
        (0..300).for_each(|i| outputs.ended(if i % 10 == 0 { 32_000 } else { 200 }));
        assert!((200..600).contains(&power(outputs.mean)), "{outputs:?}");
    }

    #[test]
    fn powers_undo_logarithms() {
        for x in (1..100).chain([1000, 1023, 1024, 1025, 65_535, 131_072, u64::from(u32::MAX)]) {
            assert!(power(log(x)).abs_diff(x) <= x >> 15, "{x}: {}", power(log(x)));
        }
    }
}
