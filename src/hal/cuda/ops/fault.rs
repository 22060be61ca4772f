//! What kernels find wrong with their inputs: a word in page-locked memory that they write and that waiting for an event reads.

use crate::base::{Error, Result};
use crate::hal::HostBuffer;
use crate::hal::cuda::driver::Context;
use crate::hal::cuda::memory::PinnedMemory;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One stream's fault word, shared with its events: 0, or the complement of `kind << 56 | place << 32 | value`
/// (`kernels/common.cuh`) of the smallest of all faults since it was last read.
#[derive(Debug)]
pub(in crate::hal::cuda) struct Faults {
    memory: PinnedMemory,
}

// SAFETY: the memory is only touched through an atomic.
unsafe impl Sync for Faults {}

impl Faults {
    pub(in crate::hal::cuda) fn new(context: &Arc<Context>) -> Result<Self> {
        Ok(Self { memory: PinnedMemory::new(context, size_of::<AtomicU64>())? })
    }

    /// Address of the word, the same for host and device.
    pub(in crate::hal::cuda) fn addr(&self) -> u64 {
        self.memory.bytes().as_ptr() as u64
    }

    /// The fault that was raised since the last call, if any.
    pub(in crate::hal::cuda) fn check(&self) -> Result<()> {
        // SAFETY: eight aligned bytes that live as long as self; the device writes them too, in one piece.
        let word = unsafe { &*self.memory.bytes().as_ptr().cast::<AtomicU64>() };
        if word.load(Ordering::Acquire) == 0 { Ok(()) } else { Err(explain(!word.swap(0, Ordering::AcqRel))) }
    }
}

fn explain(code: u64) -> Error {
    let (kind, place, value) = (code >> 56, code >> 32 & 0x00ff_ffff, code as u32 as i32);
    let text = match kind {
        1 => format!("token {place} of a step has id {value}, which is not in the embedding table"),
        2 => format!("row {place} of a gather asks for row {value}, which does not exist"),
        3 => format!("token {place} of a step has KV slot {value}, which does not exist"),
        4 => format!("token {place} of a step has position {value}, which the rope table does not have"),
        6 => format!("sequence {place} has sampler row {value}, which does not exist"),
        7 => format!("sequence {place} has KV block {value}, which does not exist"),
        8 => format!("entry {place} of a logprobs op asks for row {value} or its token, which do not exist"),
        _ => format!("a kernel raised an unknown fault {code:#x}"),
    };
    Error::internal(text)
}
