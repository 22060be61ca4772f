//! What a stream knows of the integers on its device: lengths, positions and block tables come from the host, and some operators
//! want them there too. Whatever is uploaded is remembered, in the order of the stream; what the device wrote is forgotten.

use super::context::Place;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes of one allocation.
#[derive(Debug)]
struct Shadow {
    /// Which one of those that began at this address.
    number: u64,
    bytes: Vec<u8>,
    /// What of it is known, in order and apart.
    known: Vec<Range<usize>>,
}

#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// By first address.
    shadows: HashMap<u64, Shadow>,
    version: u64,
}

impl Mirror {
    /// Changes with everything that is remembered or forgotten.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Byte `at` of `place` and those behind it are `bytes` from now on.
    pub(super) fn remember(&mut self, place: Place, at: usize, bytes: &[u8]) {
        self.version += 1;
        let fresh = || Shadow { number: place.number, bytes: vec![0; place.bytes], known: Vec::new() };
        let shadow = self.shadows.entry(place.addr).or_insert_with(fresh);
        if shadow.number != place.number {
            *shadow = fresh();
        }
        shadow.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        let mut added = at..at + bytes.len();
        shadow.known.retain(|known| {
            let apart = known.end < added.start || known.start > added.end;
            if !apart {
                added = added.start.min(known.start)..added.end.max(known.end);
            }
            apart
        });
        let index = shadow.known.partition_point(|known| known.start < added.start);
        shadow.known.insert(index, added);
    }

    /// Nothing is known any more of `range` of `place`.
    pub(super) fn forget(&mut self, place: Place, range: Range<usize>) {
        let Some(shadow) = self.shadows.get_mut(&place.addr) else { return };
        self.version += 1;
        if shadow.number != place.number {
            self.shadows.remove(&place.addr);
            return;
        }
        let rest =
            |known: &Range<usize>| [known.start..known.end.min(range.start), known.start.max(range.end)..known.end];
        shadow.known = shadow.known.iter().flat_map(rest).filter(|r| !r.is_empty()).collect();
    }

    /// The bytes of `range` of `place`, if all are known.
    pub(super) fn get(&self, place: Place, range: Range<usize>) -> Option<&[u8]> {
        let shadow = self.shadows.get(&place.addr).filter(|shadow| shadow.number == place.number)?;
        let covers = |known: &Range<usize>| known.start <= range.start && range.end <= known.end;
        if shadow.known.iter().any(covers) { shadow.bytes.get(range) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_uploaded_is_known_until_it_is_written_or_freed() {
        let place = Place { addr: 64, bytes: 40, number: 1 };
        let mut mirror = Mirror::default();
        assert_eq!(mirror.get(place, 0..4), None);
        mirror.remember(place, 0, &[1; 8]);
        mirror.remember(place, 12, &[3; 8]);
        assert_eq!((mirror.get(place, 4..8), mirror.get(place, 4..12)), (Some(&[1; 4][..]), None));
        mirror.remember(place, 8, &[2; 4]);
        assert_eq!(mirror.get(place, 4..16).unwrap(), [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
        let version = mirror.version();
        mirror.forget(place, 6..10);
        assert_ne!(mirror.version(), version);
        assert_eq!((mirror.get(place, 0..6), mirror.get(place, 0..8)), (Some(&[1; 6][..]), None));
        assert_eq!(mirror.get(place, 10..20).unwrap()[..2], [2, 2]);
        let other = Place { number: 2, ..place };
        assert_eq!(mirror.get(other, 0..1), None);
        mirror.remember(other, 4, &[9]);
        assert_eq!((mirror.get(place, 0..1), mirror.get(other, 0..1)), (None, None));
        assert_eq!(mirror.get(other, 4..5), Some(&[9][..]));
    }
}
