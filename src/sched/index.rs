//! Blocks by the hash of what they hold: a table without a list of its own for each place, never more than half full. A look-up
//! reads one line of memory where a general map reads two or three; as few of them are in any cache, that is what it costs.

use crate::base::BlockId;
use crate::base::hash::Seeded;
use std::hash::BuildHasher;

#[derive(Debug)]
pub(super) struct Index {
    /// In each place a block's number plus one, and above it its tag; 0 is free. A block stands where the first bits of its tag say
    /// or, if that place was taken, in the next free one.
    places: Vec<u64>,
    /// Bits of a tag that say nothing of the place.
    shift: u32,
    /// Makes tags of hashes that nobody can foresee.
    secret: Seeded,
    len: usize,
}

/// Places at the start, as a power of two.
const FEW: u32 = 6;

impl Default for Index {
    fn default() -> Self {
        Self { places: vec![0; 1 << FEW], shift: u32::BITS - FEW, secret: Seeded::default(), len: 0 }
    }
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.places.iter().filter(|place| **place != 0).map(|&place| block(place))
    }

    /// The block of this hash, which `is_it` knows of a few that it may be.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(BlockId) -> bool) -> Option<BlockId> {
        let tag = self.tag(hash);
        let mut at = self.home(tag);
        while self.places[at] != 0 {
            let place = self.places[at];
            if (place >> 32) as u32 == tag && is_it(block(place)) {
                return Some(block(place));
            }
            at = self.after(at);
        }
        None
    }

    /// Adds a block whose hash no other has.
    pub(super) fn insert(&mut self, hash: u64, block: BlockId) {
        if 2 * self.len >= self.places.len() && self.shift > 0 {
            self.grow();
        }
        self.put(u64::from(self.tag(hash)) << 32 | (u64::from(block.0) + 1));
        self.len += 1;
    }

    fn grow(&mut self) {
        self.shift -= 1;
        let places = vec![0; 2 * self.places.len()];
        for place in std::mem::replace(&mut self.places, places) {
            if place != 0 {
                self.put(place);
            }
        }
    }

    fn put(&mut self, place: u64) {
        let mut at = self.home((place >> 32) as u32);
        while self.places[at] != 0 {
            at = self.after(at);
        }
        self.places[at] = place;
    }

    /// Takes a block out that was added with this hash.
    pub(super) fn remove(&mut self, hash: u64, removed: BlockId) {
        let mut hole = self.home(self.tag(hash));
        while self.places[hole] != 0 && block(self.places[hole]) != removed {
            hole = self.after(hole);
        }
        if self.places[hole] == 0 {
            return;
        }
        self.len -= 1;
        // Those behind it that would be looked for from before the hole move up.
        let mask = self.places.len() - 1;
        let mut at = self.after(hole);
        while self.places[at] != 0 {
            let home = self.home((self.places[at] >> 32) as u32);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.places[hole] = self.places[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.places[hole] = 0;
    }

    fn tag(&self, hash: u64) -> u32 {
        (self.secret.hash_one(hash) >> 32) as u32
    }

    fn home(&self, tag: u32) -> usize {
        (tag >> self.shift) as usize
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }
}

fn block(place: u64) -> BlockId {
    BlockId((place as u32).wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::SplitMix64;
    use std::collections::HashMap;

    #[test]
    fn an_index_is_a_map_whatever_comes_and_goes() {
        let mut rng = SplitMix64(3);
        for num_blocks in [1_u32, 2, 30, 150] {
            let (mut index, mut map) = (Index::default(), HashMap::new());
            let mut hash_of = vec![None; num_blocks as usize];
            for _ in 0..5000 {
                let block = BlockId(rng.below(num_blocks.into()) as u32);
                match hash_of[block.0 as usize].take() {
                    Some(hash) => {
                        index.remove(hash, block);
                        map.remove(&hash);
                    }
                    None => {
                        let hash = rng.next_u64();
                        index.insert(hash, block);
                        map.insert(hash, block);
                        hash_of[block.0 as usize] = Some(hash);
                    }
                }
                let find = |hash| index.find(hash, |found| hash_of[found.0 as usize] == Some(hash));
                assert!(map.iter().all(|(&hash, &block)| find(hash) == Some(block)) && find(rng.next_u64()).is_none());
                assert_eq!((index.len(), index.blocks().count()), (map.len(), map.len()));
            }
        }
    }
}
