//! Handles: numbers with a kind, a slot and a generation, so that a stale one is an error and never a crash.

use crate::base::{Error, ErrorKind, Result};
use std::sync::{Arc, PoisonError, RwLock};

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 32;

#[derive(Debug)]
struct Slot<T> {
    /// Of the current or, when empty, the next object.
    generation: u32,
    object: Option<Arc<T>>,
}

#[derive(Debug)]
struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

/// All objects of one kind in this process.
#[derive(Debug)]
pub(crate) struct Table<T> {
    kind: u8,
    name: &'static str,
    slots: RwLock<Slots<T>>,
}

impl<T> Table<T> {
    /// `kind` is not 0 and differs between tables.
    pub(crate) const fn new(kind: u8, name: &'static str) -> Self {
        Self { kind, name, slots: RwLock::new(Slots { slots: Vec::new(), free: Vec::new() }) }
    }

    pub(crate) fn insert(&self, object: Arc<T>) -> Result<u64> {
        let mut s = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let index = match s.free.pop() {
            Some(index) => index,
            None if s.slots.len() >> INDEX_BITS == 0 => {
                s.slots.push(Slot { generation: 1, object: None });
                s.slots.len() - 1
            }
            None => return Err(Error::no_memory(format!("too many live {} handles", self.name))),
        };
        let slot = &mut s.slots[index];
        slot.object = Some(object);
        let kind = u64::from(self.kind) << (INDEX_BITS + GENERATION_BITS);
        Ok(kind | u64::from(slot.generation) << INDEX_BITS | index as u64)
    }

    pub(crate) fn get(&self, id: u64) -> Result<Arc<T>> {
        let s = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        self.split(id)
            .and_then(|(index, generation)| s.slots.get(index).filter(|slot| slot.generation == generation))
            .and_then(|slot| slot.object.clone())
            .ok_or_else(|| self.bad(id))
    }

    /// Takes an object out; `last` sees it before the handle goes bad.
    pub(crate) fn remove(&self, id: u64, last: impl FnOnce(&Arc<T>)) -> Result<Arc<T>> {
        let mut s = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let (index, generation) = self.split(id).ok_or_else(|| self.bad(id))?;
        let slot = s.slots.get_mut(index).filter(|slot| slot.generation == generation);
        let (slot, object) = slot.and_then(|s| s.object.take().map(|o| (s, o))).ok_or_else(|| self.bad(id))?;
        last(&object);
        // A slot whose generations are used up is never used again.
        if let Some(next) = generation.checked_add(1) {
            slot.generation = next;
            s.free.push(index);
        }
        Ok(object)
    }

    /// Whether `id` once was a handle and is not any more.
    pub(crate) fn is_stale(&self, id: u64) -> bool {
        let s = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        self.split(id).is_some_and(|(index, generation)| {
            let slot = s.slots.get(index);
            slot.is_some_and(|s| generation < s.generation || generation == s.generation && s.object.is_none())
                && generation != 0
        })
    }

    fn split(&self, id: u64) -> Option<(usize, u32)> {
        let kind = id >> (INDEX_BITS + GENERATION_BITS);
        let index = id & ((1 << INDEX_BITS) - 1);
        (kind == u64::from(self.kind)).then_some((index as usize, (id >> INDEX_BITS) as u32))
    }

    fn bad(&self, id: u64) -> Error {
        let what = if id == 0 { "is {0}" } else { "was never made, is freed, or is of another kind" };
        Error::new(ErrorKind::BadHandle, format!("the {} handle {what}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_foreign_and_zero_handles_are_errors() {
        let (a, b) = (Table::new(1, "a"), Table::new(2, "b"));
        let id = a.insert(Arc::new(5)).unwrap();
        b.insert(Arc::new(6)).unwrap();
        assert_eq!(*a.get(id).unwrap(), 5);
        assert_eq!(b.get(id).unwrap_err().kind, ErrorKind::BadHandle);
        assert!(!a.is_stale(id));
        assert_eq!(*a.remove(id, |_| ()).unwrap(), 5);
        assert!(a.is_stale(id) && !b.is_stale(id) && !a.is_stale(0));
        let again = a.insert(Arc::new(7)).unwrap();
        assert_ne!(again, id);
        for bad in [id, 0, u64::MAX, again + 1] {
            assert!(a.get(bad).is_err() && a.remove(bad, |_| ()).is_err(), "{bad:x}");
        }
        assert_eq!(*a.get(again).unwrap(), 7);
    }
}
