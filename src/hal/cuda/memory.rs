//! Memory of a device, pinned host memory, and weight matrices.

use super::driver::{Context, check};
use super::ledger::{Entry, rounded};
use crate::base::config::Placement;
use crate::base::{DType, Result};
use crate::hal::{Allocation, HostBuffer, Matrix, MatrixStorage, Tensor};
use cudarc::driver::sys;
use std::any::Any;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

/// Zeroed device memory, aligned to 256 bytes.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    addr: sys::CUdeviceptr,
    bytes: usize,
    context: Arc<Context>,
    _entry: Entry,
}

impl DeviceMemory {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let memory = Self::unfilled(context, bytes)?;
        let _entered = context.enter()?;
        // SAFETY: exactly the allocated bytes.
        check(unsafe { sys::cuMemsetD8_v2(memory.addr, 0, bytes.max(1)) }, "clearing device memory")?;
        // The clearing runs on the default stream, ours do not wait for that one.
        context.finish()?;
        Ok(memory)
    }

    /// The same with whatever was there before, for what is written whole.
    pub(super) fn unfilled(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let entry = context.ledger.enter(rounded(bytes))?;
        let _entered = context.enter()?;
        context.calls.allocations.add(1);
        let mut addr = 0;
        // SAFETY: `addr` is writable; a size of 0 is not asked for.
        let result = unsafe { sys::cuMemAlloc_v2(&raw mut addr, bytes.max(1)) };
        check(result, &format!("allocating {bytes} bytes on the device"))?;
        Ok(Self { addr, bytes, context: Arc::clone(context), _entry: entry })
    }
}

impl Allocation for DeviceMemory {
    fn addr(&self) -> u64 {
        self.addr
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            self.context.calls.allocations.add(1);
            // SAFETY: allocated in `new`, freed once; the driver waits for work that uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.addr) };
        }
    }
}

/// Page-locked host memory, cached for the host.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    ptr: *mut u8,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: plain memory; the pointer is the buffer's own.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let memory = Self::unfilled(context, bytes)?;
        // SAFETY: `bytes` fresh bytes.
        unsafe { memory.ptr.write_bytes(0, bytes) };
        Ok(memory)
    }

    /// The same without clearing, for what is written before it is read.
    pub(super) fn unfilled(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let _entered = context.enter()?;
        context.calls.allocations.add(1);
        let mut ptr: *mut c_void = null_mut();
        // SAFETY: `ptr` is writable. No flags: write-combined memory would be slow to read.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut ptr, bytes.max(1), 0) };
        check(result, &format!("allocating {bytes} bytes of page-locked host memory"))?;
        Ok(Self { ptr: ptr.cast(), bytes, context: Arc::clone(context) })
    }
}

impl HostBuffer for PinnedMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` initialised bytes, alive as long as self.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access exclusive; the device's use ends at an event, as the trait says.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            self.context.calls.allocations.add(1);
            // SAFETY: allocated in `new`, freed once.
            let _ = unsafe { sys::cuMemFreeHost(self.ptr.cast()) };
        }
    }
}

/// A weight matrix, row-major in its own dtype, in device memory or in page-locked host memory.
#[derive(Debug)]
pub(super) struct CudaMatrix {
    tensor: Tensor,
    placement: Placement,
    /// Rows of what it was made of.
    parts: Vec<usize>,
}

impl CudaMatrix {
    /// Parts of these rows below each other.
    pub(super) fn new(tensor: Tensor, parts: Vec<usize>, placement: Placement) -> Self {
        Self { tensor, parts, placement }
    }

    /// Device memory with whatever was there before.
    pub(super) fn unfilled(context: &Arc<Context>, parts: Vec<usize>, cols: usize, dtype: DType) -> Result<Self> {
        let rows = parts.iter().sum::<usize>();
        let memory = DeviceMemory::unfilled(context, rows * cols * dtype.size())?;
        Ok(Self::new(Tensor::new(Arc::new(memory), 0, rows, cols, dtype), parts, Placement::Device))
    }

    pub(super) fn placement(&self) -> Placement {
        self.placement
    }

    /// The matrix of a CUDA device behind `matrix`. Panics on another backend's.
    pub(super) fn of(matrix: &Matrix) -> &Self {
        match matrix.as_any().downcast_ref() {
            Some(matrix) => matrix,
            None => panic!("a weight matrix of another device was given to the CUDA backend"),
        }
    }

    pub(super) fn addr(&self) -> u64 {
        self.tensor.addr()
    }

    pub(super) fn parts(&self) -> &[usize] {
        &self.parts
    }
}

impl MatrixStorage for CudaMatrix {
    fn rows(&self) -> usize {
        self.tensor.rows()
    }
    fn cols(&self) -> usize {
        self.tensor.cols()
    }
    fn dtype(&self) -> DType {
        self.tensor.dtype()
    }
    fn bytes(&self) -> usize {
        match self.placement {
            Placement::Device => self.tensor.bytes(),
            Placement::Host => 0,
        }
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
