//! What is in the blocks: an index from hashes of full blocks to the block that holds them, and the blocks that are
//! being computed right now.
//!
//! A block is found by the hash of its whole prefix, but believed only when its own tokens, its salt and its parent
//! are the ones asked for. Parents are named by a serial number that is never reused, so a match proves the whole
//! prefix by induction, whatever the hash does.

use crate::base::hash::NumberMap;
use crate::base::rng::mix;
use crate::base::{BlockId, Token};
use crate::sched::index::Index;

/// Parent of a first block.
pub const ROOT: u64 = 0;

/// Words of a block's record. The serial names this content.
const SERIAL: usize = 0;
const PARENT: usize = 1;
const SALT: usize = 2;
const HASH: usize = 3;
/// Its tokens follow, two a word.
const TOKENS: usize = 4;
/// The serial of a block that is not published. All words are this at first: memory of zeros would be the process's only once a
/// step touches it, and the step would wait for that.
const NONE: u64 = u64::MAX;

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
    /// Of all blocks, one after another.
    records: Vec<u64>,
    index: Index,
    last_serial: u64,
    /// Hash of a block that a running sequence is computing, and the sequence's slot.
    announced: NumberMap<u64, u32>,
    /// Whether a hit compares what it found. Always, but for a planted bug.
    pub(super) verify: bool,
}

impl PrefixCache {
    /// `hash_bits` is 1 to 64.
    pub fn new(num_blocks: u32, block_size: u32, hash_bits: u32) -> Self {
        let words = words(block_size as usize);
        Self {
            block_size: block_size as usize,
            mask: if hash_bits >= 64 { u64::MAX } else { (1 << hash_bits) - 1 },
            records: vec![NONE; num_blocks as usize * words],
            index: Index::default(),
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
        pairs(tokens).fold(mix(before, 1), mix) & self.mask
    }

    /// The block that holds `key`, and its serial. Takes no reference.
    pub fn find(&self, key: &Key<'_>) -> Option<(BlockId, u64)> {
        let block = self.block_of(key.hash)?;
        let record = self.record(block);
        let same = record[PARENT] == key.parent
            && record[SALT] == key.salt
            && pairs(key.tokens).eq(record[TOKENS..].iter().copied());
        (same || !self.verify).then_some((block, record[SERIAL]))
    }

    /// Makes a full block findable and returns the serial of its content. When another block already holds that
    /// content, that one stays and `block` remains private; `None` when the hash is taken by different content.
    pub fn publish(&mut self, block: BlockId, key: &Key<'_>) -> Option<u64> {
        if self.block_of(key.hash).is_some() {
            return self.find(key).map(|(_, serial)| serial);
        }
        debug_assert!(!self.is_published(block), "{block:?} published twice");
        self.last_serial += 1;
        self.index.insert(key.hash, block);
        let range = self.range(block);
        let record = &mut self.records[range];
        (record[SERIAL], record[PARENT]) = (self.last_serial, key.parent);
        (record[SALT], record[HASH]) = (key.salt, key.hash);
        pairs(key.tokens).enumerate().for_each(|(i, pair)| record[TOKENS + i] = pair);
        Some(self.last_serial)
    }

    /// Reads what publishing a block of this hash will look at.
    pub(super) fn glimpse(&self, hash: u64, block: BlockId) -> u64 {
        let record = self.record(block);
        record[SERIAL] ^ record[record.len() - 1] ^ u64::from(self.block_of(hash).is_some())
    }

    /// Reads what evicting a block will look at.
    pub(super) fn glimpse_held(&self, block: BlockId) -> u64 {
        let record = self.record(block);
        if record[SERIAL] == NONE { 0 } else { u64::from(self.block_of(record[HASH]).is_some()) }
    }

    /// Forgets what `block` holds, because it is about to hold something else.
    pub fn evict(&mut self, block: BlockId) {
        let range = self.range(block);
        let record = &mut self.records[range];
        if std::mem::replace(&mut record[SERIAL], NONE) != NONE {
            self.index.remove(record[HASH], block);
        }
    }

    pub fn is_published(&self, block: BlockId) -> bool {
        self.record(block)[SERIAL] != NONE
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

    fn block_of(&self, hash: u64) -> Option<BlockId> {
        self.index.find(hash, |block| self.record(block)[HASH] == hash)
    }

    fn range(&self, block: BlockId) -> std::ops::Range<usize> {
        let words = words(self.block_size);
        let from = block.0 as usize * words;
        from..from + words
    }

    fn record(&self, block: BlockId) -> &[u64] {
        &self.records[self.range(block)]
    }

    /// Whether index and published blocks name each other. For checks.
    pub(super) fn index_is_exact(&self) -> bool {
        let words = words(self.block_size);
        let found = |b: BlockId| self.is_published(b) && self.block_of(self.record(b)[HASH]) == Some(b);
        self.index.blocks().all(found)
            && self.records.chunks_exact(words).filter(|r| r[SERIAL] != NONE).count() == self.index.len()
    }
}

/// Words of a record of so many tokens.
fn words(block_size: usize) -> usize {
    TOKENS + block_size.div_ceil(2)
}

/// Tokens two by two. To be folded: taken one by one they cost more.
fn pairs(tokens: &[Token]) -> impl Iterator<Item = u64> + '_ {
    let (pairs, odd) = tokens.as_chunks::<2>();
    let pair = |[a, b]: &[Token; 2]| u64::from(*a) | (u64::from(*b) + 1) << 32;
    pairs.iter().map(pair).chain(odd.iter().map(|token| u64::from(*token)))
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
