//! Time as a value that is passed in, so that tests own it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A source of monotonic time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Nanoseconds on a monotonic scale; the origin is the clock's own.
    fn now_ns(&self) -> u64;
}

/// The machine's monotonic clock, counted from an origin that ffi aligns with `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub struct MonotonicClock {
    start: Instant,
    origin_ns: u64,
}

impl MonotonicClock {
    /// A clock that reads `origin_ns` now.
    pub fn starting_at(origin_ns: u64) -> Self {
        Self { start: Instant::now(), origin_ns }
    }
}

impl Clock for MonotonicClock {
    fn now_ns(&self) -> u64 {
        self.origin_ns + u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A clock that stands still until told otherwise.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn set_ns(&self, now_ns: u64) {
        self.0.store(now_ns, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}
