//! Random numbers: a counter-based generator for sampling, a stream for everything else.

/// Philox 4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four 32-bit
/// words that depend on `key` and `counter` alone, so any backend can produce them in any order.
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    let (mut k, mut c) = (key, counter);
    for _ in 0..10 {
        let (p0, p1) = (M0 * u64::from(c[0]), M1 * u64::from(c[2]));
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Uniform in `[0, 1)` with 24 bits, keyed by a request's seed, its choice and the index of the output token.
/// Batch composition cannot change it.
pub fn uniform(seed: u64, choice: u32, index: u32) -> f32 {
    let r = philox([seed as u32, (seed >> 32) as u32], [index, choice, 0, 0]);
    (r[0] >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a small stream for tests, dummy weights and seeds.
#[derive(Debug, Clone)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// What one number adds to the state, so that the n-th number of a stream needs none before it.
    pub const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; 0 when `n` is 0. The modulo bias is below `n / 2^64`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n.max(1)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (1.0 / 16_777_216.0)
    }
}

/// Combines a hash with one more value.
pub fn mix(hash: u64, value: u64) -> u64 {
    SplitMix64(hash ^ value.wrapping_mul(0xD6E8_FEB8_6659_FD93)).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (philox4x32, 10 rounds).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn uniform_covers_the_unit_interval() {
        let n = 20_000;
        let mean = (0..n).map(|i| f64::from(uniform(7, 0, i))).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
        assert!((0..n).all(|i| (0.0..1.0).contains(&uniform(7, 0, i))));
        assert_ne!(uniform(7, 0, 1), uniform(7, 1, 1));
    }
}
