//! Faults that tests plant in the device of an engine. Nothing of the C API or of a config's JSON reaches them.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Armed by a test at any time, asked by `hal::planted`.
#[derive(Debug, Default)]
pub struct Planted {
    /// Allocations until one fails, that one included; 0 fails none.
    allocations: AtomicUsize,
    /// Products and replays that fail from now on.
    work: AtomicUsize,
}

impl Planted {
    /// The `nth` allocation from now on finds no memory, counted from 1; 0 disarms.
    pub fn fail_allocation(&self, nth: usize) {
        self.allocations.store(nth, Ordering::Release);
    }

    /// The next `n` matrix products and replays find no memory.
    pub fn fail_work(&self, n: usize) {
        self.work.store(n, Ordering::Release);
    }

    /// Whether the allocation under way is to fail.
    pub fn allocation_fails(&self) -> bool {
        Self::count_down(&self.allocations) == 1
    }

    /// Whether the work under way is to fail.
    pub fn work_fails(&self) -> bool {
        Self::count_down(&self.work) > 0
    }

    /// What was left before.
    fn count_down(counter: &AtomicUsize) -> usize {
        let counted = counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| Some(n.saturating_sub(1)));
        counted.unwrap_or(0)
    }
}
