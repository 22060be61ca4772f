//! Weights on their way to the device: threads read pieces of files into page-locked slots, from which the device copies them
//! while the next ones are read. An embedding table that stays in host memory is read into place.

use super::driver::{Context, check};
use super::memory::{CudaMatrix, DeviceMemory, PinnedMemory};
use super::random::Random;
use crate::base::config::Placement;
use crate::base::{DType, Error, Result};
use crate::hal::readers::{PIECE_BYTES, Piece, Reader, Readers};
use crate::hal::{Allocation, HostBuffer, HostMatrix, Matrix, MatrixLoader, MatrixPart, RandomRows, Tensor};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::os::unix::fs::FileExt;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::Arc;
use std::time::Duration;

/// Slots of a reader: one is read into while the device copies from the other.
const SLOTS: usize = 2;
/// Device memory that random rows for the host are made in.
const RANDOM_BYTES: usize = 64 << 20;

/// Page-locked host memory that kernels read at its own address, of any device.
#[derive(Debug)]
struct HostTable {
    ptr: *mut u8,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: plain memory that is written by its makers alone, in ranges that do not overlap, before anybody reads it.
unsafe impl Send for HostTable {}
// SAFETY: as above.
unsafe impl Sync for HostTable {}

impl HostTable {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let _entered = context.enter()?;
        let mut ptr: *mut c_void = null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: `ptr` is writable.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut ptr, bytes.max(1), flags) };
        check(result, &format!("allocating {bytes} bytes of page-locked host memory for the embedding table"))?;
        Ok(Self { ptr: ptr.cast(), bytes, context: Arc::clone(context) })
    }
}

impl Allocation for HostTable {
    /// Host and device share addresses of such memory wherever the driver runs (unified addressing).
    fn addr(&self) -> u64 {
        self.ptr.expose_provenance() as u64
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for HostTable {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: allocated in `new`, freed once, by the last of those that read it.
            let _ = unsafe { sys::cuMemFreeHost(self.ptr.cast()) };
        }
    }
}

/// Rows, columns and dtype of parts below each other.
fn shape(parts: &[HostMatrix<'_>]) -> Result<(usize, usize, DType)> {
    let Some(first) = parts.first() else { return Err(Error::invalid("a matrix has no parts")) };
    let (cols, dtype) = (first.cols, first.dtype);
    let rows = parts.iter().map(|p| p.rows).sum::<usize>();
    let fits = |p: &HostMatrix<'_>| p.cols == cols && p.dtype == dtype && p.data.len() == p.rows * cols * dtype.size();
    if rows == 0 || cols == 0 || !parts.iter().all(fits) {
        return Err(Error::invalid(format!("parts of a {rows}x{cols} {dtype} matrix do not fit each other")));
    }
    if !matches!(dtype, DType::F32 | DType::F16 | DType::Bf16) {
        return Err(Error::invalid(format!("a weight matrix of {dtype}; expected f32, f16 or bf16")));
    }
    Ok((rows, cols, dtype))
}

fn room(context: &Arc<Context>, bytes: usize, placement: Placement) -> Result<Arc<dyn Allocation>> {
    Ok(match placement {
        Placement::Device => Arc::new(DeviceMemory::unfilled(context, bytes)?),
        Placement::Host => Arc::new(HostTable::new(context, bytes)?),
    })
}

/// Bytes `at..at + bytes` of `memory`, which is of host memory.
fn host_bytes(memory: &dyn Allocation, at: usize, bytes: usize) -> *mut u8 {
    assert!(at + bytes <= memory.bytes(), "{bytes} bytes at {at} of {}", memory.bytes());
    with_exposed_provenance_mut(memory.addr() as usize + at)
}

/// Copies `data` to byte `at` of fresh memory, and has done so on return.
fn copy_now(context: &Context, data: &[u8], (to, at): (&dyn Allocation, usize), placement: Placement) -> Result<()> {
    match placement {
        Placement::Host => {
            // SAFETY: of `room(Host)`, checked to hold them; each part of a matrix is written once, before the matrix is there.
            unsafe { host_bytes(to, at, data.len()).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
            Ok(())
        }
        Placement::Device => {
            assert!(at + data.len() <= to.bytes(), "{} bytes at {at} of {}", data.len(), to.bytes());
            let _entered = context.enter()?;
            context.calls.other_waits.add(1);
            // SAFETY: inside the allocation; the data is readable and was copied from on return.
            let result = unsafe { sys::cuMemcpyHtoD_v2(to.addr() + at as u64, data.as_ptr().cast(), data.len()) };
            check(result, "copying weights to the device")?;
            // Small copies from pageable memory may still be under way.
            context.finish()
        }
    }
}

/// A matrix of parts in host memory, loaded on return.
pub(super) fn now(context: &Arc<Context>, parts: &[HostMatrix<'_>], placement: Placement) -> Result<Matrix> {
    let (rows, cols, dtype) = shape(parts)?;
    let memory = room(context, rows * cols * dtype.size(), placement)?;
    let mut at = 0;
    for part in parts {
        copy_now(context, part.data, (memory.as_ref(), at), placement)?;
        at += part.data.len();
    }
    Ok(Arc::new(CudaMatrix::new(Tensor::new(memory, 0, rows, cols, dtype), placement)))
}

/// Random rows in host memory. The device makes them, a few at a time.
pub(super) fn random_on_host(
    context: &Arc<Context>,
    random: &Random,
    parts: &[RandomRows],
    (cols, dtype): (usize, DType),
) -> Result<Matrix> {
    let (rows, row_bytes) = (parts.iter().map(|p| p.rows).sum::<usize>(), cols * dtype.size());
    let memory = room(context, rows * row_bytes, Placement::Host)?;
    let most = (RANDOM_BYTES / row_bytes.max(1)).clamp(1, rows.max(1));
    let made = CudaMatrix::unfilled(context, most, cols, dtype)?;
    let mut at = 0;
    for part in parts {
        for from in (0..part.rows).step_by(most) {
            let n = most.min(part.rows - from);
            random.fill(context, &made, &[part.slice(from, n, cols)])?;
            let to = host_bytes(memory.as_ref(), at, n * row_bytes);
            let _entered = context.enter()?;
            // SAFETY: `made` has at least `n` rows, which are there since `fill` waited, and so has the table from `at` on;
            // the copy is waited for below.
            let result = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), made.addr(), n * row_bytes, null_mut()) };
            check(result, "copying random numbers from the device")?;
            context.finish()?;
            at += n * row_bytes;
        }
    }
    Ok(Arc::new(CudaMatrix::new(Tensor::new(memory, 0, rows, cols, dtype), Placement::Host)))
}

/// A stream for copies, of the thread that made it.
struct CopyStream {
    raw: sys::CUstream,
    context: Arc<Context>,
}

impl CopyStream {
    fn new(context: &Arc<Context>) -> Result<Self> {
        let mut raw = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` is writable, and the thread has entered the context.
        check(unsafe { sys::cuStreamCreate(&raw mut raw, flags) }, "cuStreamCreate")?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    fn finish(&self) -> Result<()> {
        // SAFETY: a live stream.
        check(unsafe { sys::cuStreamSynchronize(self.raw) }, "copying weights to the device")
    }
}

impl Drop for CopyStream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: created in `new`, destroyed once; the slots behind its copies are freed after it.
            let _ = unsafe { (sys::cuStreamSynchronize(self.raw), sys::cuStreamDestroy_v2(self.raw)) };
        }
    }
}

/// Page-locked memory, and when the device has copied what was in it.
struct Slot {
    memory: PinnedMemory,
    copied: sys::CUevent,
    context: Arc<Context>,
}

impl Slot {
    fn new(context: &Arc<Context>) -> Result<Self> {
        use sys::CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
        let memory = PinnedMemory::new(context, PIECE_BYTES)?;
        let mut copied = null_mut();
        let flags = CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: `copied` is writable, and the thread has entered the context.
        check(unsafe { sys::cuEventCreate(&raw mut copied, flags) }, "cuEventCreate")?;
        Ok(Self { memory, copied, context: Arc::clone(context) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: created in `new`, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.copied) };
        }
    }
}

/// Reads pieces and sends them to where they belong.
struct SlotReader {
    /// Before the slots: dropped first, it waits for the copies from them.
    stream: CopyStream,
    slots: [Slot; SLOTS],
    /// The slot that was used longest ago.
    next: usize,
}

impl SlotReader {
    /// On the thread that will read, one of ours.
    fn new(context: &Arc<Context>) -> Result<Self> {
        context.bind()?;
        Ok(Self { stream: CopyStream::new(context)?, slots: [Slot::new(context)?, Slot::new(context)?], next: 0 })
    }
}

fn read_exact(piece: &Piece, into: &mut [u8]) -> Result<()> {
    let (file, from) = (&piece.from.file, piece.from.offset);
    file.file
        .read_exact_at(into, from)
        .map_err(|e| Error::io(format!("cannot read {} bytes at {from} of {}: {e}", into.len(), file.path.display())))
}

impl Reader for SlotReader {
    fn read(&mut self, piece: &Piece) -> Result<()> {
        if piece.placement == Placement::Host {
            let to = host_bytes(piece.to.as_ref(), piece.at, piece.bytes);
            // SAFETY: of `room(Host)`, checked to hold them; pieces do not overlap, and nobody else looks before all are read.
            return read_exact(piece, unsafe { std::slice::from_raw_parts_mut(to, piece.bytes) });
        }
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % SLOTS;
        // SAFETY: a live event; one that was never recorded has passed.
        check(unsafe { sys::cuEventSynchronize(slot.copied) }, "copying weights to the device")?;
        let bytes = &mut slot.memory.bytes_mut()[..piece.bytes];
        read_exact(piece, bytes)?;
        let to = piece.to.addr() + piece.at as u64;
        // SAFETY: `Readers::read` checked that the piece ends in its memory, which a freeing waits for; the slot stays as it
        // is until the event recorded behind the copy has passed.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream.raw) };
        check(result, "copying weights to the device")?;
        // SAFETY: a live event and a live stream of one context.
        check(unsafe { sys::cuEventRecord(slot.copied, self.stream.raw) }, "cuEventRecord")
    }

    fn finish(&mut self) -> Result<()> {
        self.stream.finish()
    }
}

/// Loads matrices from files with several threads; one that is in no file is copied at once.
#[derive(Debug)]
pub(super) struct CudaLoader {
    readers: Readers,
    context: Arc<Context>,
}

impl CudaLoader {
    /// For `bytes` in all.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let own = Arc::clone(context);
        let make = move || -> Result<Box<dyn Reader>> { Ok(Box::new(SlotReader::new(&own)?)) };
        Ok(Self { readers: Readers::start(bytes, make)?, context: Arc::clone(context) })
    }
}

impl MatrixLoader for CudaLoader {
    fn load(&mut self, parts: &[MatrixPart<'_>], placement: Placement) -> Result<Matrix> {
        let (rows, cols, dtype) = shape(&parts.iter().map(|part| part.matrix).collect::<Vec<_>>())?;
        let memory = room(&self.context, rows * cols * dtype.size(), placement)?;
        let mut at = 0;
        for MatrixPart { matrix, file } in parts {
            match file {
                Some(file) => self.readers.read(file, matrix.data.len(), (&memory, at), placement),
                None => copy_now(&self.context, matrix.data, (memory.as_ref(), at), placement)?,
            }
            at += matrix.data.len();
        }
        Ok(Arc::new(CudaMatrix::new(Tensor::new(memory, 0, rows, cols, dtype), placement)))
    }

    fn pending_bytes(&self) -> usize {
        self.readers.pending_bytes()
    }

    fn finish(&mut self, at_most: Duration) -> Result<bool> {
        self.readers.finish(at_most)
    }
}
