//! Points on a stream.

use super::driver::{Context, check};
use super::ops::fault::Faults;
use crate::base::Result;
use crate::hal::Event;
use cudarc::driver::sys::{self, CUresult};
use std::ptr::null_mut;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct CudaEvent {
    raw: sys::CUevent,
    context: Arc<Context>,
    /// Of the stream.
    faults: Arc<Faults>,
}

// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for CudaEvent {}

impl CudaEvent {
    /// Records a new event on `stream`.
    pub(super) fn record(context: &Arc<Context>, stream: sys::CUstream, faults: &Arc<Faults>) -> Result<Self> {
        use sys::CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
        context.bind()?;
        let mut raw = null_mut();
        let flags = CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: `raw` is writable.
        check(unsafe { sys::cuEventCreate(&raw mut raw, flags) }, "cuEventCreate")?;
        let event = Self { raw, context: Arc::clone(context), faults: Arc::clone(faults) };
        // SAFETY: a live event and a live stream of one context.
        check(unsafe { sys::cuEventRecord(raw, stream) }, "cuEventRecord")?;
        Ok(event)
    }
}

impl Event for CudaEvent {
    fn is_done(&self) -> Result<bool> {
        self.context.bind()?;
        // SAFETY: a live event.
        match unsafe { sys::cuEventQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result, "a step on the device").map(|()| true),
        }
    }

    fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: a live event.
        check(unsafe { sys::cuEventSynchronize(self.raw) }, "a step on the device")?;
        self.faults.check()
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: created in `record`, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
