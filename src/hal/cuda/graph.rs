//! Recorded work.

use super::driver::{Context, check};
use crate::base::Result;
use crate::hal::Graph;
use cudarc::driver::sys::{self, CUresult};
use std::any::Any;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

/// Recordings of one step before it is given up.
const ATTEMPTS: u64 = 8;

/// Launches, ready to run again.
#[derive(Debug)]
pub(super) struct CudaGraph {
    raw: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: the driver takes calls on a graph from any thread; this one has one user at a time.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Records what `work` enqueues on `stream`. What other threads of the process do to the device, such as unloading code, can
    /// spoil a recording: it is then made again.
    pub(super) fn capture(
        context: &Arc<Context>,
        stream: sys::CUstream,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        context.bind()?;
        let mut attempts = 0;
        loop {
            let (outcome, ended, graph) = Self::record(stream, work)?;
            let mut raw = null_mut();
            let made = outcome.and_then(|()| check(ended, "recording a step")).and_then(|()| {
                // SAFETY: a graph that was recorded a moment ago; `raw` is writable.
                check(unsafe { sys::cuGraphInstantiateWithFlags(&raw mut raw, graph, 0) }, "preparing a recorded step")
            });
            if !graph.is_null() {
                // SAFETY: made by the capture, destroyed once; what was instantiated does not need it.
                let _ = unsafe { sys::cuGraphDestroy(graph) };
            }
            attempts += 1;
            if made.is_err() && ended == CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED && attempts < ATTEMPTS {
                std::thread::sleep(Duration::from_millis(attempts));
                continue;
            }
            return made.map(|()| Self { raw, context: Arc::clone(context) });
        }
    }

    /// What `work` came to, how the capture ended, and the graph, if any.
    fn record(
        stream: sys::CUstream,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Result<()>, CUresult, sys::CUgraph)> {
        // Of this thread alone: others may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a live stream of the current context.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) }, "recording a step")?;
        let outcome = work();
        let mut graph = null_mut();
        // SAFETY: the capture began above; `graph` is writable. It must end whatever `work` came to.
        let ended = unsafe { sys::cuStreamEndCapture(stream, &raw mut graph) };
        Ok((outcome, ended, graph))
    }

    /// The graph of a CUDA stream behind `graph`. Panics on another backend's.
    pub(super) fn of(graph: &dyn Graph) -> &Self {
        match graph.as_any().downcast_ref() {
            Some(graph) => graph,
            None => panic!("recorded work of another device was given to the CUDA backend"),
        }
    }

    /// Enqueues the work on `stream`, of the calling thread's context.
    pub(super) fn launch(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: a live graph and stream; the memory it was recorded with is its owner's to keep.
        check(unsafe { sys::cuGraphLaunch(self.raw, stream) }, "launching a recorded step")
    }
}

impl Graph for CudaGraph {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: instantiated in `capture`, destroyed once; the driver waits for a launch under way.
            let _ = unsafe { sys::cuGraphExecDestroy(self.raw) };
        }
    }
}
