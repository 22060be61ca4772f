//! Full blocks become findable. A step fills a block of every sixteenth sequence or so, and what is to be read and written for
//! each stands far from everything else, so all of a step's are published together: what they need is read side by side before
//! it is used. Nobody looks for them before the next admission, which publishes them first if nobody has.

use crate::base::BlockId;
use crate::sched::prefix::{Key, PrefixCache};
use crate::sched::scheduler::{NOBODY, Scheduler};
use crate::sched::sequence::Sequence;

impl Scheduler {
    /// Makes the blocks findable that landed steps have filled. Done by itself before anything depends on it; a caller who feeds
    /// the device first calls it after that.
    pub fn publish_all(&mut self) {
        if self.full.is_empty() {
            return;
        }
        let full = std::mem::take(&mut self.full);
        if self.cfg.prefix_cache {
            self.warm_full(&full);
        }
        full.iter().for_each(|&slot| self.publish(slot));
        self.full = full;
        self.full.clear();
    }

    fn warm_full(&mut self, full: &[u32]) {
        std::hint::black_box(full.iter().fold(0, |seen, &slot| seen ^ self.seqs[slot].glimpse_rest()));
        let mut seen = 0;
        for &slot in full {
            let s = &mut self.seqs[slot];
            if let Some((hash, block, _)) = next_full(&self.prefix, s, self.cfg.block_size) {
                seen ^= self.prefix.glimpse(hash, block);
            }
        }
        std::hint::black_box(seen);
    }

    /// Makes the full blocks of a sequence findable that have landed since the last time.
    pub(super) fn publish(&mut self, slot: u32) {
        let (s, size) = (&mut self.seqs[slot], self.cfg.block_size);
        if !self.cfg.prefix_cache {
            s.published = s.done.min(s.tokens.len()) / size;
            return;
        }
        while let Some((hash, block, parent)) = next_full(&self.prefix, s, size) {
            self.prefix.withdraw(hash, slot);
            if let Some(parent) = parent {
                let from = s.published * size;
                let key = Key { hash, parent, salt: s.rest.salt, tokens: s.tokens.part(from..from + size) };
                s.rest.serial = self.prefix.publish(block, &key);
            }
            s.published += 1;
        }
    }

    /// Reads what sequences need that get a block now, and what is known of the blocks they get, as [`Scheduler::publish_all`]
    /// does.
    pub(super) fn warm_short(&self) {
        let (mut seen, mut short) = (0, 0);
        for &(_, slot) in self.running.iter().filter(|r| r.1 != NOBODY) {
            let s = &self.seqs[slot];
            if s.computed == s.num_blocks() * self.cfg.block_size {
                seen ^= s.rest.blocks.last().map_or(0, |b| u64::from(b.0));
                short += 1;
            }
        }
        let next = self.pool.next_free().take(short);
        std::hint::black_box(next.fold(seen, |seen, block| seen ^ self.prefix.glimpse_held(block)));
    }
}

/// The hash of a sequence's first full block that is not published, the block, and the serial of the one before.
fn next_full(prefix: &PrefixCache, s: &mut Sequence, size: u32) -> Option<(u64, BlockId, Option<u64>)> {
    let (at, end) = (s.published as usize, (s.published + 1) * size);
    let rest = &mut *s.rest;
    if end > s.done.min(s.tokens.len()) || at >= rest.blocks.len() {
        return None;
    }
    if at == rest.chain.len() {
        let before = rest.chain.last().copied().unwrap_or(rest.salt);
        rest.chain.push(prefix.link(before, s.tokens.part(end - size..end)));
    }
    Some((rest.chain[at], rest.blocks[at], rest.serial))
}
