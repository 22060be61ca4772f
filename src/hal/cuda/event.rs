//! Points on a stream.

use super::driver::{Context, check};
use super::ops::fault::Faults;
use crate::base::Result;
use crate::hal::Event;
use cudarc::driver::sys::{self, CUresult};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

/// The events of one stream. They are made as they are needed and used again.
#[derive(Debug)]
pub(super) struct Events {
    idle: Mutex<Vec<Raw>>,
    context: Arc<Context>,
    faults: Arc<Faults>,
}

#[derive(Debug, Clone, Copy)]
struct Raw(sys::CUevent);

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Raw {}

impl Events {
    pub(super) fn new(context: &Arc<Context>, faults: &Arc<Faults>) -> Self {
        Self { idle: Mutex::default(), context: Arc::clone(context), faults: Arc::clone(faults) }
    }

    fn take(&self) -> Result<Raw> {
        use sys::CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
        if let Some(raw) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(raw);
        }
        self.context.calls.events_made.add(1);
        let mut raw = null_mut();
        let flags = CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: `raw` is writable.
        check(unsafe { sys::cuEventCreate(&raw mut raw, flags) }, "cuEventCreate")?;
        Ok(Raw(raw))
    }

    /// Records an event on `stream`, which is theirs.
    pub(super) fn record(self: &Arc<Self>, stream: sys::CUstream) -> Result<CudaEvent> {
        self.context.bind()?;
        let event = CudaEvent { raw: self.take()?, events: Arc::clone(self) };
        // SAFETY: a live event and a live stream of one context.
        check(unsafe { sys::cuEventRecord(event.raw.0, stream) }, "cuEventRecord")?;
        Ok(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            for raw in self.idle.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
                // SAFETY: created in `take`, destroyed once.
                let _ = unsafe { sys::cuEventDestroy_v2(raw.0) };
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct CudaEvent {
    raw: Raw,
    events: Arc<Events>,
}

impl Event for CudaEvent {
    fn is_done(&self) -> Result<bool> {
        self.events.context.bind()?;
        // SAFETY: a live event.
        match unsafe { sys::cuEventQuery(self.raw.0) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result, "a step on the device").map(|()| true),
        }
    }

    fn wait(&self) -> Result<()> {
        self.events.context.bind()?;
        self.events.context.calls.event_waits.add(1);
        // SAFETY: a live event.
        check(unsafe { sys::cuEventSynchronize(self.raw.0) }, "a step on the device")?;
        // Of a later step's faults some may be here already; that one does not count either then.
        self.events.faults.check()
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        self.events.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.raw);
    }
}
