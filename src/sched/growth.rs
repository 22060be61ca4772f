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
    pub(super) fn left(&self, s: &Sequence) -> u32 {
        let (generated, mean) = (u64::from(s.generated()), power(self.mean));
        (mean + mean / 8).max(generated + generated / 4).min(u64::from(s.limit)).saturating_sub(generated) as u32
    }
}

/// A sequence that runs or will.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grower {
    /// Tokens.
    pub(super) left: u32,
    /// Blocks that come back when it ends.
    pub(super) held: u32,
}

const NOBODY_ELSE: (Grower, u64) = (Grower { left: 0, held: 0 }, 0);

/// What all who run are taken to come to. [`Scheduler::growers`] has them one by one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth {
    /// Tokens they will generate.
    left: u64,
    /// What all blocks in use are of what all hold, in [`PARTS`]: blocks that several share come back with the last of them, so each is
    /// taken for as large a part of what it holds.
    share: u64,
    /// Of blocks in use those of sequences that their lead holds back, which give way to others.
    yielding: u32,
    /// Whether growers are in the order in which they end.
    sorted: bool,
    /// Most blocks that they will take at one time, once somebody asked; and with the sequence that was last looked at.
    peak: Option<u64>,
    joined: Option<u64>,
}

impl Growth {
    /// The part that does not go to others, too.
    pub(super) fn own(&self, amount: u64) -> u64 {
        amount * self.share / PARTS
    }
}

impl Scheduler {
    /// Blocks that this sequence, which starts with `held` of its own, and all who run will take beyond those that they hold then and
    /// those that give way: at most, where that is no more than `room`. None where nobody runs: whatever it grows to, it is in
    /// nobody's way.
    pub(super) fn growth(&mut self, slot: u32, (held, room): (u32, u32), draft: &mut Draft) -> u32 {
        if self.num_running() == 0 {
            return 0;
        }
        let (own, size) = (self.grower(slot, held), u64::from(self.cfg.block_size));
        let growth = Growth { joined: None, ..self.survey(draft) };
        draft.growth = Some(growth);
        let room = u64::from(room) + u64::from(growth.yielding);
        let beyond = |blocks: u64| u32::try_from(blocks.saturating_sub(growth.yielding.into())).unwrap_or(u32::MAX);
        // Should nobody end.
        let most = (growth.left + u64::from(own.left)).div_ceil(size);
        if most <= room {
            return beyond(most);
        }
        let alone = self.peak_of_running(draft);
        if alone > room {
            return beyond(alone);
        }
        let joined = peak(&self.growers, (own, 1), size);
        draft.growth.iter_mut().for_each(|growth| growth.joined = Some(joined));
        beyond(joined)
    }

    /// A sequence that took `held` blocks, the last that [`Scheduler::growth`] looked at, joins those that run.
    pub(super) fn grows(&mut self, slot: u32, held: u32, draft: &mut Draft) {
        let own = self.grower(slot, held);
        let Some(growth) = &mut draft.growth else { return };
        growth.left += u64::from(own.left);
        growth.peak = growth.joined.take();
        let at = if growth.sorted { self.growers.partition_point(|g| g.left < own.left) } else { self.growers.len() };
        self.growers.insert(at, own);
    }

    fn grower(&self, slot: u32, held: u32) -> Grower {
        Grower { left: self.outputs.left(&self.seqs[slot]), held }
    }

    /// Looks at all who run, once a step.
    pub(super) fn survey(&mut self, draft: &mut Draft) -> Growth {
        if let Some(growth) = draft.growth {
            return growth;
        }
        let mut growers = std::mem::take(&mut self.growers);
        growers.clear();
        let running = self.running.iter().map(|r| r.1).filter(|slot| *slot != NOBODY);
        let (mut held, mut yielding) = (0, 0);
        for slot in running {
            let (s, blocks) = (&self.seqs[slot], self.seqs[slot].num_blocks());
            held += u64::from(blocks);
            if s.is_held() {
                yielding += u64::from(blocks);
            } else {
                growers.push(self.grower(slot, blocks));
            }
        }
        let in_use = u64::from(self.cfg.num_blocks - self.pool.num_free());
        let share = (in_use * PARTS / held.max(1)).min(PARTS);
        let left = growers.iter().map(|g| u64::from(g.left)).sum();
        let mut growth = Growth { left, share, yielding: 0, sorted: false, peak: None, joined: None };
        growers.iter_mut().for_each(|g| g.held = growth.own(g.held.into()) as u32);
        growth.yielding = growth.own(yielding) as u32;
        self.growers = growers;
        *draft.growth.insert(growth)
    }

    /// Puts growers in order.
    pub(super) fn peak_of_running(&mut self, draft: &mut Draft) -> u64 {
        let mut growth = self.survey(draft);
        if !growth.sorted {
            self.growers.sort_unstable_by_key(|g| g.left);
            growth.sorted = true;
        }
        let size = u64::from(self.cfg.block_size);
        let most = *growth.peak.get_or_insert_with(|| peak(&self.growers, NOBODY_ELSE, size));
        draft.growth = Some(growth);
        most
    }
}

/// Most blocks that they and so many like another take beyond what they hold now, at the moments when one ends. Each grows by a token
/// a step, and gives back what it has when it ends. `all` are in the order in which they end.
pub(super) fn peak(all: &[Grower], (other, more): (Grower, u64), size: u64) -> u64 {
    let (before, behind) = all.split_at(all.partition_point(|g| g.left < other.left));
    let (mut most, mut back, mut alive) = (0, 0, all.len() as u64 + more);
    let mut end = |g: &Grower, count: u64| {
        most = most.max((alive * u64::from(g.left)).saturating_sub(back));
        back += count * u64::from(g.held) * size;
        alive -= count;
    };
    before.iter().for_each(|g| end(g, 1));
    end(&other, more);
    behind.iter().for_each(|g| end(g, 1));
    most.div_ceil(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_where_growth_outruns_what_comes_back() {
        let of = |all: &[(u32, u32)]| {
            let grower = |&(left, held): &(u32, u32)| Grower { left, held };
            let all: Vec<_> = all.iter().map(grower).collect();
            let nobody = peak(&all, NOBODY_ELSE, 16);
            // Whichever of them comes last, all come to the same.
            for i in 0..all.len() {
                let others = [&all[..i], &all[i + 1..]].concat();
                assert_eq!(peak(&others, (all[i], 1), 16), nobody);
            }
            nobody
        };
        assert_eq!(of(&[]), 0);
        // All at once: each takes ten blocks.
        assert_eq!(of(&[(160, 5), (160, 5), (160, 5)]), 30);
        // One after the other: what the first gives back is enough for the second.
        assert_eq!(of(&[(16, 20), (320, 1)]), 2);
        assert_eq!(of(&[(16, 4), (320, 1)]), 16);
        // As many alike are as many one by one.
        let one = Grower { left: 160, held: 5 };
        assert_eq!(peak(&[one], (one, 2), 16), 30);
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
