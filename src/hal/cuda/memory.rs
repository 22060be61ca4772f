//! Memory of a device, pinned host memory, and weight matrices.

use super::driver::{Context, check};
use crate::base::{DType, Error, Result};
use crate::hal::{Allocation, HostBuffer, HostMatrix, Matrix, MatrixStorage, Tensor};
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
}

impl DeviceMemory {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let _entered = context.enter()?;
        let mut addr = 0;
        // SAFETY: `addr` is writable; a size of 0 is not asked for.
        let result = unsafe { sys::cuMemAlloc_v2(&raw mut addr, bytes.max(1)) };
        check(result, &format!("allocating {bytes} bytes on the device"))?;
        let memory = Self { addr, bytes, context: Arc::clone(context) };
        // SAFETY: exactly the allocated bytes.
        check(unsafe { sys::cuMemsetD8_v2(addr, 0, bytes.max(1)) }, "clearing device memory")?;
        // The clearing runs on the default stream, ours do not wait for that one.
        context.finish()?;
        Ok(memory)
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
        let _entered = context.enter()?;
        let mut ptr: *mut c_void = null_mut();
        // SAFETY: `ptr` is writable. No flags: write-combined memory would be slow to read.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut ptr, bytes.max(1), 0) };
        check(result, &format!("allocating {bytes} bytes of page-locked host memory"))?;
        let ptr = ptr.cast::<u8>();
        // SAFETY: `bytes` fresh bytes.
        unsafe { ptr.write_bytes(0, bytes) };
        Ok(Self { ptr, bytes, context: Arc::clone(context) })
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
            // SAFETY: allocated in `new`, freed once.
            let _ = unsafe { sys::cuMemFreeHost(self.ptr.cast()) };
        }
    }
}

/// A weight matrix, row-major in its own dtype.
#[derive(Debug)]
pub(super) struct CudaMatrix {
    tensor: Tensor,
    /// Rows of what it was made of.
    parts: Vec<usize>,
}

impl CudaMatrix {
    pub(super) fn new(context: &Arc<Context>, parts: &[HostMatrix<'_>]) -> Result<Self> {
        let Some(first) = parts.first() else { return Err(Error::invalid("a matrix has no parts")) };
        let (cols, dtype) = (first.cols, first.dtype);
        let rows = parts.iter().map(|p| p.rows).sum::<usize>();
        let fits =
            |p: &HostMatrix<'_>| p.cols == cols && p.dtype == dtype && p.data.len() == p.rows * cols * dtype.size();
        if rows == 0 || cols == 0 || !parts.iter().all(fits) {
            return Err(Error::invalid(format!("parts of a {rows}x{cols} {dtype} matrix do not fit each other")));
        }
        if !matches!(dtype, DType::F32 | DType::F16 | DType::Bf16) {
            return Err(Error::invalid(format!("a weight matrix of {dtype}; expected f32, f16 or bf16")));
        }
        let matrix = Self::zeroed(context, parts.iter().map(|p| p.rows).collect(), cols, dtype)?;
        let _entered = context.enter()?;
        let mut at = matrix.addr();
        for part in parts {
            // SAFETY: the parts add up to the allocation; the data is readable and the copy has ended on return.
            let result = unsafe { sys::cuMemcpyHtoD_v2(at, part.data.as_ptr().cast(), part.data.len()) };
            check(result, "copying weights to the device")?;
            at += part.data.len() as u64;
        }
        // Small copies from pageable memory may still be under way.
        context.finish()?;
        Ok(matrix)
    }

    /// Parts of these rows below each other.
    pub(super) fn zeroed(context: &Arc<Context>, parts: Vec<usize>, cols: usize, dtype: DType) -> Result<Self> {
        let rows = parts.iter().sum::<usize>();
        let memory = DeviceMemory::new(context, rows * cols * dtype.size())?;
        Ok(Self { tensor: Tensor::new(Arc::new(memory), 0, rows, cols, dtype), parts })
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
        self.tensor.bytes()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
