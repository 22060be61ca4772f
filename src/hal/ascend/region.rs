//! Device memory of a stream that grows to what ops ask for, until the device is sealed.

use super::context::Context;
use super::memory::DeviceMemory;
use super::stream::AscendStream;
use crate::base::Result;
use crate::hal::Allocation;
use std::cell::RefCell;
use std::sync::Arc;

/// Sizes grow in steps of this.
const STEP: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Region {
    memory: RefCell<Option<DeviceMemory>>,
    what: &'static str,
}

impl Region {
    pub(super) fn new(context: &Arc<Context>, bytes: usize, what: &'static str) -> Result<Self> {
        let memory = DeviceMemory::unfilled(context, bytes).map_err(|e| e.within(what))?;
        Ok(Self { memory: RefCell::new(Some(memory)), what })
    }

    /// The address of at least `bytes`. What was there is lost when that is more than before, once the stream is through with it.
    pub(super) fn at_least(&self, stream: &AscendStream, bytes: usize) -> Result<u64> {
        let mut memory = self.memory.borrow_mut();
        match memory.as_ref() {
            Some(memory) if memory.bytes() >= bytes => return Ok(memory.addr()),
            _ => {}
        }
        stream.context().heap.admit(bytes).map_err(|e| e.within(self.what))?;
        stream.finish()?;
        *memory = None;
        let larger =
            DeviceMemory::unfilled(stream.context(), bytes.next_multiple_of(STEP)).map_err(|e| e.within(self.what))?;
        Ok(memory.insert(larger).addr())
    }
}
