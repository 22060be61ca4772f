//! Counters and gauges that any thread may touch.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that other threads read while its owner changes it. Relaxed: readers get a recent value, not an order.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of values under fixed bounds, with their sum. Any thread may observe; readers get a recent value.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds, rising; a value counts under the first that is not below it.
    bounds: &'static [u64],
    /// One per bound, and one for what is above all of them.
    counts: Vec<Cell>,
    sum: Cell,
}

impl Histogram {
    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| Cell::default()).collect(), sum: Cell::default() }
    }

    pub fn observe(&self, value: u64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)].add(1);
        self.sum.add(value);
    }

    /// Bounds with the number of values up to each; the last, without a bound, is the number of all. Then their sum.
    pub fn read(&self) -> (Vec<(Option<u64>, u64)>, u64) {
        let bounds = self.bounds.iter().map(|b| Some(*b)).chain([None]);
        let mut total = 0;
        let cumulative = bounds.zip(&self.counts).map(|(bound, count)| {
            total += count.get();
            (bound, total)
        });
        (cumulative.collect(), self.sum.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_count_under_their_bounds() {
        let h = Histogram::new(&[1, 10]);
        [0, 1, 2, 10, 11, 500].into_iter().for_each(|v| h.observe(v));
        assert_eq!(h.read(), (vec![(Some(1), 2), (Some(10), 4), (None, 6)], 524));
    }
}
