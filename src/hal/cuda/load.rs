//! Matrices of weights from host memory and from files. An embedding table that stays in host memory is read into place.

use super::driver::{Context, check};
use super::ledger::rounded;
use super::memory::{CudaMatrix, DeviceMemory};
use super::random::Random;
use super::sender::{Sender, Spent};
use super::slots::Slots;
use crate::base::config::Placement;
use crate::base::{DType, Result};
use crate::hal::readers::{Reader, Readers};
use crate::hal::{Allocation, HostMatrix, Matrix, MatrixLoader, MatrixPart, RandomRows, Tensor};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::Arc;
use std::time::Duration;

/// As the driver aligns at least.
const WINDOW_ALIGN: usize = 256;
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

fn room(context: &Arc<Context>, bytes: usize, placement: Placement) -> Result<Arc<dyn Allocation>> {
    Ok(match placement {
        Placement::Device => Arc::new(DeviceMemory::unfilled(context, bytes)?),
        Placement::Host => Arc::new(HostTable::new(context, bytes)?),
    })
}

/// Bytes `at..at + bytes` of `memory`, which is of host memory.
pub(super) fn host_bytes(memory: &dyn Allocation, at: usize, bytes: usize) -> *mut u8 {
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
    let (rows, cols, dtype) = HostMatrix::stacked(parts)?;
    let memory = room(context, rows * cols * dtype.size(), placement)?;
    let mut at = 0;
    for part in parts {
        copy_now(context, part.data, (memory.as_ref(), at), placement)?;
        at += part.data.len();
    }
    Ok(Arc::new(CudaMatrix::new(Tensor::new(memory, 0, rows, cols, dtype), rows_of(parts), placement)))
}

fn rows_of(parts: &[HostMatrix<'_>]) -> Vec<usize> {
    parts.iter().map(|p| p.rows).collect()
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
    let made = CudaMatrix::unfilled(context, vec![most], cols, dtype)?;
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
    let tensor = Tensor::new(memory, 0, rows, cols, dtype);
    Ok(Arc::new(CudaMatrix::new(tensor, parts.iter().map(|p| p.rows).collect(), Placement::Host)))
}

/// Device memory that matrices of files share: the driver gives 16 GB at once in 1 ms, and in a piece for each matrix in 20 ms
/// while copies run.
#[derive(Debug)]
struct Area {
    memory: Option<Arc<dyn Allocation>>,
    taken: usize,
}

impl Area {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let allocate = || -> Result<Arc<dyn Allocation>> { Ok(Arc::new(DeviceMemory::unfilled(context, bytes)?)) };
        Ok(Self { memory: (bytes > 0).then(allocate).transpose()?, taken: 0 })
    }

    /// Room for `bytes` in it, while there is enough.
    fn window(&mut self, bytes: usize) -> Option<(Arc<dyn Allocation>, usize)> {
        let (memory, at) = (self.memory.as_ref()?, self.taken);
        let end = at + bytes;
        if end > memory.bytes() {
            return None;
        }
        self.taken = end.next_multiple_of(WINDOW_ALIGN);
        Some((Arc::clone(memory), at))
    }
}

/// What matrices take in an area, given as numbers of them and bytes of each.
pub(super) fn area(matrices: &[(usize, usize)]) -> usize {
    let windows: usize = matrices.iter().map(|(times, bytes)| times * bytes.next_multiple_of(WINDOW_ALIGN)).sum();
    rounded(windows)
}

/// Has its slots freed.
#[derive(Debug)]
struct Closing(Arc<Slots>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Loads matrices from files with several threads; one that is in no file is copied at once.
#[derive(Debug)]
pub(super) struct CudaLoader {
    readers: Readers,
    /// Behind the readers, which have given all back then.
    slots: Closing,
    area: Area,
    spent: Arc<Spent>,
    context: Arc<Context>,
}

impl CudaLoader {
    /// For `bytes` in all and an area of so many on the device.
    pub(super) fn new(context: &Arc<Context>, slots: &Arc<Slots>, (bytes, area): (usize, usize)) -> Result<Self> {
        let threads = Readers::threads_for(bytes);
        let spent = Arc::new(Spent::new(threads));
        let (own, home, theirs) = (Arc::clone(context), Arc::clone(slots), Arc::clone(&spent));
        let make = move || -> Result<Box<dyn Reader>> { Ok(Box::new(Sender::new(&own, &home, &theirs)?)) };
        let (slots, readers) = (Closing(Arc::clone(slots)), Readers::start(threads, make)?);
        let area = Area::new(context, area).map_err(|e| e.within("weights"))?;
        Ok(Self { readers, slots, area, spent, context: Arc::clone(context) })
    }

    fn room(&mut self, bytes: usize, placement: Placement) -> Result<(Arc<dyn Allocation>, usize)> {
        let window = if placement == Placement::Device { self.area.window(bytes) } else { None };
        window.map_or_else(|| Ok((room(&self.context, bytes, placement)?, 0)), Ok)
    }
}

impl MatrixLoader for CudaLoader {
    fn load(&mut self, parts: &[MatrixPart<'_>], placement: Placement) -> Result<Matrix> {
        let matrices: Vec<_> = parts.iter().map(|part| part.matrix).collect();
        let (rows, cols, dtype) = HostMatrix::stacked(&matrices)?;
        let (memory, from) = self.room(rows * cols * dtype.size(), placement)?;
        let mut at = from;
        for MatrixPart { matrix, file } in parts {
            match file {
                Some(file) => self.readers.read(file, matrix.data.len(), (&memory, at), placement),
                None => copy_now(&self.context, matrix.data, (memory.as_ref(), at), placement)?,
            }
            at += matrix.data.len();
        }
        Ok(Arc::new(CudaMatrix::new(Tensor::new(memory, from, rows, cols, dtype), rows_of(&matrices), placement)))
    }

    fn pending_bytes(&self) -> usize {
        self.readers.pending_bytes()
    }

    fn finish(&mut self, at_most: Duration) -> Result<bool> {
        self.readers.finish(at_most)
    }

    fn times(&self) -> String {
        format!("{}; {}", self.slots.0.times(), self.spent.times())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Space(usize);

    impl Allocation for Space {
        fn addr(&self) -> u64 {
            1 << 21
        }
        fn bytes(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn an_area_holds_what_it_was_made_for_and_what_is_too_much_goes_elsewhere() {
        for matrices in [vec![(1, 1)], vec![(3, 1000), (2, 256)], vec![(33, 70_001), (2, 3 << 20), (1, 2)]] {
            let bytes = area(&matrices);
            let asked: usize = matrices.iter().map(|(times, bytes)| times * bytes).sum();
            assert!(bytes < asked + 256 * 40 + (2 << 20), "{bytes} bytes for {asked}");
            let mut area = Area { memory: Some(Arc::new(Space(bytes))), taken: 0 };
            let mut end = 0;
            for (times, bytes) in matrices {
                for _ in 0..times {
                    let (_, at) = area.window(bytes).expect("room");
                    assert!(at >= end && at.is_multiple_of(WINDOW_ALIGN), "{bytes} bytes at {at}, after {end}");
                    end = at + bytes;
                }
            }
            assert!(area.window(bytes).is_none(), "room for more than there is");
        }
        assert!(Area { memory: None, taken: 0 }.window(1).is_none());
    }
}
