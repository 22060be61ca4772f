//! Read-only memory maps of weight files: the only `unsafe` of this floor.

use crate::base::{Error, Result};
use crate::hal::{FilePart, WeightFile};
use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A mapped file. The file must not be cut short while it is mapped: the system then ends the process.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    file: Arc<WeightFile>,
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<Self> {
        let refuse = |e: std::io::Error| Error::io(format!("cannot map {}: {e}", path.display()));
        let file = File::open(path).map_err(refuse)?;
        if !file.metadata().map_err(refuse)?.is_file() {
            return Err(Error::invalid(format!("{} is not a file", path.display())));
        }
        // SAFETY: the map is read-only and private to this process. Nobody may change a model's files while it loads; a
        // concurrent writer could only change weight values, never lengths that were checked.
        let map = unsafe { Mmap::map(&file) }.map_err(refuse)?;
        Ok(Self { map, file: Arc::new(WeightFile { file, path: path.to_owned() }) })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file from byte `from` on, for those who rather read it than touch the map.
    pub fn part(&self, from: usize) -> FilePart {
        FilePart { file: Arc::clone(&self.file), offset: from as u64 }
    }

    /// Lets the system take back the pages that lie wholly in `range`.
    pub fn forget(&self, range: Range<usize>) {
        const PAGE: usize = 4096;
        let (from, to) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if from < to && to <= self.map.len() {
            // SAFETY: a read-only map of a file: dropped pages are read from the file again when touched. A refusal is
            // harmless.
            let _refused = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from) };
        }
    }
}
