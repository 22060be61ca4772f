//! What loading tells: how far it is, and for logs when what was done.

use crate::base::Result;
use crate::model::load::LoadProgress;
use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

/// Tells how far loading is.
pub(super) struct Report<'a> {
    progress: &'a mut dyn FnMut(LoadProgress) -> Result<()>,
    /// Handed over to the device, which may be behind.
    pub(super) bytes_done: usize,
    bytes_told: usize,
}

impl<'a> Report<'a> {
    pub(super) fn new(progress: &'a mut dyn FnMut(LoadProgress) -> Result<()>) -> Self {
        Self { progress, bytes_done: 0, bytes_told: 0 }
    }

    /// `pending_bytes` of what was handed over is still to be read.
    pub(super) fn tell(&mut self, pending_bytes: usize, bytes_total: usize) -> Result<()> {
        let landed = self.bytes_done.saturating_sub(pending_bytes).min(bytes_total);
        self.bytes_told = self.bytes_told.max(landed);
        (self.progress)(LoadProgress { bytes_done: self.bytes_told, bytes_total })
    }
}

#[derive(Debug)]
pub(super) struct Watch {
    start: Instant,
    marks: Vec<(&'static str, Duration)>,
}

impl Watch {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), marks: Vec::new() }
    }

    /// Says that something is done now.
    pub(super) fn mark(&mut self, what: &'static str) {
        self.marks.push((what, self.start.elapsed()));
    }
}

impl Display for Watch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, (what, after)) in self.marks.iter().enumerate() {
            let between = if i == 0 { "" } else { ", " };
            write!(f, "{between}{what} after {:.1} ms", after.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}
