//! Hashing of keys that are one number: ids of ours, and hashes already.

use crate::base::rng::mix;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map by numbers. Where a key is found depends on a secret, as with the standard one, and takes a few cycles.
pub type NumberMap<K, V> = HashMap<K, V, Seeded>;

/// Makes hashers of one secret.
#[derive(Debug, Clone)]
pub struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u64))
    }
}

impl BuildHasher for Seeded {
    type Hasher = Mixer;

    fn build_hasher(&self) -> Mixer {
        Mixer(self.0)
    }
}

#[derive(Debug)]
pub struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_again_and_secrets_differ() {
        let map: NumberMap<u64, u64> = (0..1000).map(|n| (n * n, n)).collect();
        assert!((0..1000).all(|n| map.get(&(n * n)) == Some(&n)) && !map.contains_key(&2));
        assert_ne!(Seeded::default().hash_one(1_u64), Seeded::default().hash_one(1_u64));
        assert_ne!(map.hasher().hash_one([1_u8, 2]), map.hasher().hash_one([2_u8, 1]));
    }
}
