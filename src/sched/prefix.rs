//! What is in the blocks: an index from hashes of full blocks to the block that holds them, and the blocks that are
//! being computed right now.
//!
//! A block is found by the hash of its whole prefix, but believed only when its own tokens, its salt and its parent
//! are the ones asked for. Parents are named by a serial number that is never reused, so a match proves the whole
//! prefix by induction, whatever the hash does.

use crate::base::hash::NumberMap;
use crate::base::rng::mix;
use crate::base::{BlockId, Token};
use std::collections::hash_map::Entry;

/// Parent of a first block.
pub const ROOT: u64 = 0;

#[derive(Debug, Clone, Copy, Default)]
struct Node {
    /// Names this content; 0 when the block is not published.
    serial: u64,
    parent: u64,
    salt: u64,
    hash: u64,
}

/// The content of one full block, with everything that came before it.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    /// Of the prefix up to and with this block; see [`PrefixCache::extend_chain`].
    pub hash: u64,
    /// Serial of the block before, or [`ROOT`].
    pub parent: u64,
    pub salt: u64,
    /// Exactly one block of tokens.
    pub tokens: &'a [Token],
}

/// Index of published blocks and of announced ones.
#[derive(Debug)]
pub struct PrefixCache {
    block_size: usize,
    mask: u64,
    nodes: Vec<Node>,
    /// Tokens of all blocks, flat; meaningful for published ones.
    tokens: Vec<Token>,
    index: NumberMap<u64, BlockId>,
    last_serial: u64,
    /// Hash of a block that a running sequence is computing, and the sequence's slot.
    announced: NumberMap<u64, u32>,
    /// Whether a hit compares what it found. Always, but for a planted bug.
    pub(super) verify: bool,
}

impl PrefixCache {
    /// `hash_bits` is 1 to 64.
    pub fn new(num_blocks: u32, block_size: u32, hash_bits: u32) -> Self {
        Self {
            block_size: block_size as usize,
            mask: if hash_bits >= 64 { u64::MAX } else { (1 << hash_bits) - 1 },
            nodes: vec![Node::default(); num_blocks as usize],
            tokens: vec![0; num_blocks as usize * block_size as usize],
            index: NumberMap::default(),
            last_serial: ROOT,
            announced: NumberMap::default(),
            verify: true,
        }
    }

    /// Appends to `chain` the hash of every full block of `tokens` that it lacks.
    pub fn extend_chain(&self, salt: u64, tokens: &[Token], chain: &mut Vec<u64>) {
        let mut hash = chain.last().copied().unwrap_or(salt);
        for block in tokens.chunks_exact(self.block_size).skip(chain.len()) {
            hash = self.link(hash, block);
            chain.push(hash);
        }
    }

    /// The hash of a block of these tokens behind a prefix of this hash.
    pub(super) fn link(&self, before: u64, tokens: &[Token]) -> u64 {
        let (pairs, odd) = tokens.as_chunks::<2>();
        let both = |a: Token, b: Token| u64::from(a) | (u64::from(b) + 1) << 32;
        let hash = pairs.iter().fold(mix(before, 1), |hash, [a, b]| mix(hash, both(*a, *b)));
        odd.iter().fold(hash, |hash, token| mix(hash, u64::from(*token))) & self.mask
    }

    /// The block that holds `key`, and its serial. Takes no reference.
    pub fn find(&self, key: &Key<'_>) -> Option<(BlockId, u64)> {
        let block = *self.index.get(&key.hash)?;
        let node = &self.nodes[block.0 as usize];
        let same = node.parent == key.parent && node.salt == key.salt && self.tokens_of(block) == key.tokens;
        (same || !self.verify).then_some((block, node.serial))
    }

    /// Makes a full block findable and returns the serial of its content. When another block already holds that
    /// content, that one stays and `block` remains private; `None` when the hash is taken by different content.
    pub fn publish(&mut self, block: BlockId, key: &Key<'_>) -> Option<u64> {
        let Entry::Vacant(place) = self.index.entry(key.hash) else {
            return self.find(key).map(|(_, serial)| serial);
        };
        place.insert(block);
        debug_assert!(self.nodes[block.0 as usize].serial == 0, "{block:?} published twice");
        self.last_serial += 1;
        self.nodes[block.0 as usize] =
            Node { serial: self.last_serial, parent: key.parent, salt: key.salt, hash: key.hash };
        let at = block.0 as usize * self.block_size;
        self.tokens[at..at + self.block_size].copy_from_slice(key.tokens);
        Some(self.last_serial)
    }

    /// Reads what publishing a block of this hash will look at.
    pub(super) fn glimpse(&self, hash: u64, block: BlockId) -> u64 {
        let at = block.0 as usize;
        self.nodes[at].serial ^ u64::from(self.tokens[at * self.block_size]) ^ u64::from(self.index.contains_key(&hash))
    }

    /// Reads what evicting a block will look at.
    pub(super) fn glimpse_held(&self, block: BlockId) -> u64 {
        let node = &self.nodes[block.0 as usize];
        if node.serial == 0 { 0 } else { u64::from(self.index.contains_key(&node.hash)) }
    }

    /// Forgets what `block` holds, because it is about to hold something else.
    pub fn evict(&mut self, block: BlockId) {
        let node = std::mem::take(&mut self.nodes[block.0 as usize]);
        if node.serial != 0 {
            self.index.remove(&node.hash);
        }
    }

    pub fn is_published(&self, block: BlockId) -> bool {
        self.nodes[block.0 as usize].serial != 0
    }
    pub fn num_published(&self) -> usize {
        self.index.len()
    }

    /// The sequence in `slot` is going to compute the block of this hash. The first to announce keeps it.
    pub fn announce(&mut self, hash: u64, slot: u32) {
        self.announced.entry(hash).or_insert(slot);
    }
    /// The sequence in `slot` has computed the block of this hash, or never will.
    pub fn withdraw(&mut self, hash: u64, slot: u32) {
        if self.announced.get(&hash) == Some(&slot) {
            self.announced.remove(&hash);
        }
    }
    /// Slot of the sequence that is computing the block of this hash.
    pub fn announced(&self, hash: u64) -> Option<u32> {
        self.announced.get(&hash).copied()
    }
    pub(super) fn announcements(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.announced.iter().map(|(&h, &s)| (h, s))
    }

    fn tokens_of(&self, block: BlockId) -> &[Token] {
        let at = block.0 as usize * self.block_size;
        &self.tokens[at..at + self.block_size]
    }

    /// Whether index and published blocks name each other. For checks.
    pub(super) fn index_is_exact(&self) -> bool {
        self.index.iter().all(|(h, b)| self.is_published(*b) && self.nodes[b.0 as usize].hash == *h)
            && self.nodes.iter().filter(|n| n.serial != 0).count() == self.index.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 9;

    fn chain(cache: &PrefixCache, salt: u64, tokens: &[Token]) -> Vec<u64> {
        let mut chain = Vec::new();
        cache.extend_chain(salt, tokens, &mut chain);
        chain
    }

    #[test]
    fn the_chain_grows_without_starting_over() {
        let cache = PrefixCache::new(4, 3, 64);
        let tokens: Vec<Token> = (0..11).collect();
        let mut grown = chain(&cache, SALT, &tokens[..5]);
        assert_eq!(grown.len(), 1);
        cache.extend_chain(SALT, &tokens, &mut grown);
        assert_eq!(grown, chain(&cache, SALT, &tokens));
        assert_eq!(grown.len(), 3);
        assert_ne!(grown, chain(&cache, SALT + 1, &tokens));
        assert_ne!(chain(&cache, SALT, &[1, 2, 3])[0], chain(&cache, SALT, &[1, 2, 4])[0]);
        assert_ne!(chain(&cache, SALT, &[1, 2, 0])[0], chain(&cache, SALT, &[1, 2, 1])[0]);
    }

    #[test]
    fn a_hit_must_match_tokens_parent_and_salt_even_when_every_hash_collides() {
        let mut cache = PrefixCache::new(4, 2, 1);
        let key = Key { hash: 0, parent: ROOT, salt: SALT, tokens: &[5, 6] };
        let serial = cache.publish(BlockId(2), &key).unwrap();
        assert_eq!(cache.find(&key), Some((BlockId(2), serial)));
        assert_eq!(cache.find(&Key { tokens: &[5, 7], ..key }), None);
        assert_eq!(cache.find(&Key { parent: serial, ..key }), None);
        assert_eq!(cache.find(&Key { salt: 0, ..key }), None);
        assert_eq!(cache.publish(BlockId(3), &Key { tokens: &[5, 7], ..key }), None);
        assert_eq!(cache.publish(BlockId(3), &key), Some(serial));
        assert!(!cache.is_published(BlockId(3)) && cache.index_is_exact());
    }

    #[test]
    fn evicted_content_is_gone_and_its_serial_is_not_reused() {
        let mut cache = PrefixCache::new(2, 1, 64);
        let key = Key { hash: 1, parent: ROOT, salt: 0, tokens: &[4] };
        let first = cache.publish(BlockId(0), &key).unwrap();
        cache.evict(BlockId(0));
        assert_eq!((cache.find(&key), cache.num_published()), (None, 0));
        cache.evict(BlockId(1));
        assert_ne!(cache.publish(BlockId(1), &key), Some(first));
        assert!(cache.index_is_exact());
    }

    #[test]
    fn only_the_announcer_withdraws() {
        let mut cache = PrefixCache::new(1, 1, 64);
        cache.announce(7, 1);
        cache.announce(7, 2);
        cache.withdraw(7, 2);
        assert_eq!(cache.announced(7), Some(1));
        cache.withdraw(7, 1);
        assert_eq!(cache.announced(7), None);
    }
}
