//! Points on a stream.

use super::abi::{EVENT_SYNC, EventStatus, Handle};
use super::context::Context;
use crate::base::Result;
use crate::hal::Event;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

/// The events of one stream, of the kind that may be recorded again. They are made as they are needed and used again.
#[derive(Debug)]
pub(super) struct Events {
    idle: Mutex<Vec<Raw>>,
    context: Arc<Context>,
}

#[derive(Debug, Clone, Copy)]
struct Raw(Handle);

// SAFETY: the runtime's events may be used from any thread that has the device.
unsafe impl Send for Raw {}

impl Events {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { idle: Mutex::default(), context: Arc::clone(context) }
    }

    fn take(&self) -> Result<Raw> {
        if let Some(raw) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(raw);
        }
        let mut raw = null_mut();
        // SAFETY: `raw` is writable.
        let made = unsafe { (self.context.abi().aclrtCreateEventExWithFlag)(&raw mut raw, EVENT_SYNC) };
        self.context.check(made, "making an event")?;
        Ok(Raw(raw))
    }

    /// Records an event on `stream`, which is theirs and whose device is the calling thread's.
    pub(super) fn record(self: &Arc<Self>, stream: Handle) -> Result<AscendEvent> {
        let event = AscendEvent { raw: self.take()?, events: Arc::clone(self) };
        // SAFETY: a live event and a live stream of one device.
        let recorded = unsafe { (self.context.abi().aclrtRecordEvent)(event.raw.0, stream) };
        self.context.check(recorded, "recording an event")?;
        Ok(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        for raw in self.idle.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: created in `take`, destroyed once.
            let _ = unsafe { (self.context.abi().aclrtDestroyEvent)(raw.0) };
        }
    }
}

#[derive(Debug)]
pub(super) struct AscendEvent {
    raw: Raw,
    events: Arc<Events>,
}

impl Event for AscendEvent {
    fn is_done(&self) -> Result<bool> {
        let context = &self.events.context;
        context.bind()?;
        let mut status = EventStatus::NOT_READY;
        // SAFETY: a live event; `status` is writable.
        let asked = unsafe { (context.abi().aclrtQueryEventStatus)(self.raw.0, &raw mut status) };
        context.check_wait(asked, "a step on the device")?;
        Ok(status == EventStatus::COMPLETE)
    }

    fn wait(&self) -> Result<()> {
        let context = &self.events.context;
        context.bind()?;
        // SAFETY: a live event.
        context.check_wait(unsafe { (context.abi().aclrtSynchronizeEvent)(self.raw.0) }, "a step on the device")
    }
}

impl Drop for AscendEvent {
    fn drop(&mut self) {
        self.events.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.raw);
    }
}
