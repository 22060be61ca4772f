//! Loading many matrices at once: what a model hands to a device, and what a device that can do it gives.

use crate::base::Result;
use crate::base::config::Placement;
use crate::hal::{HostMatrix, Matrix};
use std::fmt::Debug;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// An open file of weights. Nobody may change it while a model loads.
#[derive(Debug)]
pub struct WeightFile {
    pub file: File,
    /// For errors.
    pub path: PathBuf,
}

/// What stands in a file from `offset` on.
#[derive(Debug, Clone)]
pub struct FilePart {
    pub file: Arc<WeightFile>,
    pub offset: u64,
}

impl FilePart {
    /// The same from `bytes` later on.
    #[must_use]
    pub fn skip(&self, bytes: usize) -> Self {
        Self { file: Arc::clone(&self.file), offset: self.offset + bytes as u64 }
    }
}

/// One part of a matrix; the parts stand below each other.
#[derive(Debug, Clone)]
pub struct MatrixPart<'a> {
    pub matrix: HostMatrix<'a>,
    /// Where its bytes stand in a file too: a loader reads them there, later, and does not touch `matrix.data`.
    pub file: Option<FilePart>,
}

/// Puts matrices on a device, several at a time. Dropped, it stops; what it has not loaded then is undefined.
pub trait MatrixLoader: Debug {
    /// Makes room for a matrix and has it loaded. Its numbers are there once [`Self::finish`] says so.
    fn load(&mut self, parts: &[MatrixPart<'_>], placement: Placement) -> Result<Matrix>;
    /// Bytes handed over and not read yet.
    fn pending_bytes(&self) -> usize;
    /// Waits up to `at_most` for everything that was handed over; nothing is handed over after it. True when all of it is
    /// where it belongs. Errors are those of any matrix, and name the file.
    fn finish(&mut self, at_most: Duration) -> Result<bool>;
    /// Where the time went so far, for logs.
    fn times(&self) -> String {
        String::new()
    }
}
