//! Full blocks become findable. A step fills a block of every sixteenth sequence or so, and what is to be read and written for
//! each stands far from everything else, so all of a step's are published together: what they need is read side by side before
//! it is used. Nobody looks for them before the next admission, which publishes them first if nobody has.

use crate::sched::prefix::Key;
use crate::sched::scheduler::Scheduler;

impl Scheduler {
    /// Makes the blocks findable that landed steps have filled. Done by itself before anything depends on it; a caller who feeds
    /// the device first calls it after that.
    pub fn publish_all(&mut self) {
        if self.full.is_empty() {
            return;
        }
        let full = std::mem::take(&mut self.full);
        let mut hashes = std::mem::take(&mut self.hashes);
        if self.cfg.prefix_cache {
            self.hash_full(&full, &mut hashes);
        }
        for (i, &slot) in full.iter().enumerate() {
            self.publish(slot, hashes.get(i).copied());
        }
        (self.full, self.hashes) = (full, hashes);
        self.full.clear();
        self.hashes.clear();
    }

    /// The hash of the next block of each, after a look at what publishing it needs.
    fn hash_full(&mut self, full: &[u32], hashes: &mut Vec<u64>) {
        std::hint::black_box(full.iter().fold(0, |seen, &slot| seen ^ self.seqs[slot].glimpse_rest()));
        let (size, mut seen) = (self.cfg.block_size, 0);
        for &slot in full {
            let s = &mut self.seqs[slot];
            let block = s.next_full(size);
            let hash = block.map_or(0, |_| s.next_hash(&self.prefix, size));
            seen ^= block.map_or(0, |block| self.prefix.glimpse(hash, block));
            hashes.push(hash);
        }
        std::hint::black_box(seen);
    }

    /// Makes the full blocks of a sequence findable that have landed since the last time. The hash of the first may be known.
    pub(super) fn publish(&mut self, slot: u32, mut first: Option<u64>) {
        let (s, size) = (&mut self.seqs[slot], self.cfg.block_size);
        if !self.cfg.prefix_cache {
            s.published = s.done.min(s.tokens.len()) / size;
            return;
        }
        while let Some(block) = s.next_full(size) {
            let hash = first.take().unwrap_or_else(|| s.next_hash(&self.prefix, size));
            self.prefix.withdraw(hash, slot);
            let from = s.published * size;
            let (rest, tokens) = (&mut *s.rest, s.tokens.part(from..from + size));
            rest.link = hash;
            if let Some(parent) = rest.serial {
                let key = Key { hash, parent, salt: rest.salt, tokens };
                rest.serial = self.prefix.publish(block, &key);
            }
            s.published += 1;
        }
    }

    /// Reads what sequences need that get a block now, and what is known of the blocks they get, as [`Scheduler::publish_all`]
    /// does.
    pub(super) fn warm_short(&mut self) {
        let blocks = self.short.iter().filter_map(|&slot| self.seqs.get(slot)?.rest.blocks.last());
        let seen = blocks.fold(0, |seen, block| seen ^ u64::from(block.0));
        let next = self.pool.next_free().take(self.short.len());
        std::hint::black_box(next.fold(seen, |seen, block| seen ^ self.prefix.glimpse_held(block)));
        self.short.clear();
    }
}
