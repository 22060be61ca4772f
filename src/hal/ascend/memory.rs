//! Memory of a device, page-locked host memory, and weight matrices.

use super::abi::{Handle, MallocPolicy, MemcpyKind};
use super::context::Context;
use crate::base::config::Placement;
use crate::base::{DType, Error, Result};
use crate::hal::{Allocation, HostBuffer, HostMatrix, Matrix, MatrixStorage, Tensor};
use std::any::Any;
use std::ptr::null_mut;
use std::sync::Arc;

/// Device memory, aligned to 64 bytes at least. Freeing it waits for the device, as the runtime's own call does not.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    raw: Handle,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: an address that the host never follows; the runtime's calls on it may come from any thread with the device.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

impl DeviceMemory {
    /// Zeroed.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let memory = Self::unfilled(context, bytes)?;
        let _entered = context.enter()?;
        let size = bytes.max(1);
        // SAFETY: exactly the allocated bytes; the call returns when they are cleared.
        let cleared = unsafe { (context.abi().aclrtMemset)(memory.raw, size, 0, size) };
        context.check(cleared, "clearing device memory")?;
        Ok(memory)
    }

    /// With whatever was there before, for what is written before it is read.
    pub(super) fn unfilled(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.heap.admit(bytes)?;
        let _entered = context.enter()?;
        let mut raw = null_mut();
        // SAFETY: `raw` is writable; a size of 0 is not asked for.
        let made = unsafe { (context.abi().aclrtMalloc)(&raw mut raw, bytes.max(1), MallocPolicy::HUGE_FIRST) };
        context.check(made, &format!("allocating {bytes} bytes on the device"))?;
        context.heap.enter(raw as u64, bytes.max(1));
        Ok(Self { raw, bytes, context: Arc::clone(context) })
    }

    /// Copies `data` to byte `at`, and has done so on return.
    pub(super) fn fill(&self, at: usize, data: &[u8]) -> Result<()> {
        assert!(at + data.len() <= self.bytes, "{} bytes at {at} of {}", data.len(), self.bytes);
        if data.is_empty() {
            return Ok(());
        }
        let _entered = self.context.enter()?;
        let to = self.raw.wrapping_byte_add(at);
        let copy = self.context.abi().aclrtMemcpy;
        // SAFETY: inside the allocation, as asserted; the data is readable and was copied on return.
        let copied = unsafe { copy(to, self.bytes - at, data.as_ptr().cast(), data.len(), MemcpyKind::HOST_TO_DEVICE) };
        self.context.check(copied, "copying to the device")
    }
}

impl Allocation for DeviceMemory {
    fn addr(&self) -> u64 {
        self.raw as u64
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.context.heap.leave(self.raw as u64);
        // Where that fails the thread may have the device all the same.
        let _entered = self.context.enter();
        // What fails on the device then has failed for whoever waits for it, too.
        let _ = self.context.finish();
        // SAFETY: allocated in `unfilled`, freed once; nothing on the device uses it any more.
        let _ = unsafe { (self.context.abi().aclrtFree)(self.raw) };
    }
}

/// Page-locked host memory.
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
        let mut raw = null_mut();
        // SAFETY: `raw` is writable; a size of 0 is not asked for.
        let made = unsafe { (context.abi().aclrtMallocHost)(&raw mut raw, bytes.max(1)) };
        context.check(made, &format!("allocating {bytes} bytes of page-locked host memory"))?;
        let memory = Self { ptr: raw.cast(), bytes, context: Arc::clone(context) };
        // SAFETY: `bytes` fresh bytes.
        unsafe { memory.ptr.write_bytes(0, bytes) };
        Ok(memory)
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
        let _entered = self.context.enter();
        let _ = self.context.finish();
        // SAFETY: allocated in `new`, freed once; no copy uses it any more.
        let _ = unsafe { (self.context.abi().aclrtFreeHost)(self.ptr.cast()) };
    }
}

#[derive(Debug)]
enum Numbers {
    Device(Tensor),
    /// Plain memory, from which the host takes rows.
    Host(Vec<u8>),
}

/// A weight matrix, row-major in its own dtype.
#[derive(Debug)]
pub(super) struct AscendMatrix {
    numbers: Numbers,
    rows: usize,
    cols: usize,
    dtype: DType,
}

impl AscendMatrix {
    pub(super) fn load(context: &Arc<Context>, parts: &[HostMatrix<'_>], placement: Placement) -> Result<Matrix> {
        let (rows, cols, dtype) = HostMatrix::stacked(parts)?;
        let bytes = rows * cols * dtype.size();
        let numbers = match placement {
            Placement::Device => {
                let (memory, mut at) = (DeviceMemory::unfilled(context, bytes)?, 0);
                for part in parts {
                    memory.fill(at, part.data)?;
                    at += part.data.len();
                }
                Numbers::Device(Tensor::new(Arc::new(memory), 0, rows, cols, dtype))
            }
            Placement::Host => {
                let mut numbers = Vec::new();
                numbers.try_reserve_exact(bytes).map_err(|_| {
                    Error::no_memory(format!("cannot allocate {bytes} bytes of host memory for the embedding table"))
                })?;
                parts.iter().for_each(|part| numbers.extend_from_slice(part.data));
                Numbers::Host(numbers)
            }
        };
        Ok(Arc::new(Self { numbers, rows, cols, dtype }))
    }

    /// The matrix of an Ascend device behind `matrix`. Panics on another backend's.
    pub(super) fn of(matrix: &Matrix) -> &Self {
        match matrix.as_any().downcast_ref() {
            Some(matrix) => matrix,
            None => panic!("a weight matrix of another device was given to the Ascend backend"),
        }
    }

    /// Where it lies, on the device.
    pub(super) fn tensor(&self) -> Option<&Tensor> {
        match &self.numbers {
            Numbers::Device(tensor) => Some(tensor),
            Numbers::Host(_) => None,
        }
    }

    /// Row `row` of a matrix in host memory.
    pub(super) fn host_row(&self, row: usize) -> Option<&[u8]> {
        let bytes = self.cols * self.dtype.size();
        match &self.numbers {
            Numbers::Host(numbers) => numbers.get(row * bytes..(row + 1) * bytes),
            Numbers::Device(_) => None,
        }
    }
}

impl MatrixStorage for AscendMatrix {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn bytes(&self) -> usize {
        self.tensor().map_or(0, Tensor::bytes)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
