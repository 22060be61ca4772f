//! What the allocations of one opened device add up to, and whether there may be more.

use crate::base::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// The driver hands memory out in pieces of this size, of which small allocations share one.
pub(super) const PIECE: usize = 2 << 20;
const SMALL: usize = 1 << 20;
const SMALL_ALIGN: usize = 512;

/// What the driver takes for an allocation of `bytes`.
pub(super) fn rounded(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(if bytes < SMALL { SMALL_ALIGN } else { PIECE })
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    bytes: AtomicUsize,
    sealed: AtomicBool,
}

/// A live allocation.
#[derive(Debug)]
pub(super) struct Entry {
    ledger: Arc<Ledger>,
    bytes: usize,
}

impl Ledger {
    /// Counts an allocation that is about to be made, until the result is dropped. `Internal` once sealed.
    pub(super) fn enter(self: &Arc<Self>, bytes: usize) -> Result<Entry> {
        if self.sealed.load(Relaxed) {
            return Err(Error::internal(format!(
                "{bytes} bytes of device memory are asked for after the warm-up, which is to leave nothing to allocate"
            )));
        }
        self.bytes.fetch_add(bytes, Relaxed);
        Ok(Entry { ledger: Arc::clone(self), bytes })
    }

    pub(super) fn seal(&self) {
        self.sealed.store(true, Relaxed);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;

    #[test]
    fn live_allocations_are_counted_and_none_come_behind_the_seal() {
        let ledger = Arc::new(Ledger::default());
        let first = ledger.enter(rounded(5)).unwrap();
        let second = ledger.enter(rounded(PIECE + 1)).unwrap();
        assert_eq!(ledger.bytes(), 512 + 2 * PIECE);
        drop(first);
        ledger.seal();
        let e = ledger.enter(7).unwrap_err();
        assert!(e.kind == ErrorKind::Internal && e.message.contains("7 bytes"), "{e}");
        drop(second);
        assert_eq!(ledger.bytes(), 0);
    }
}
