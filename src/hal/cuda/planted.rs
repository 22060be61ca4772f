//! Faults of a whole GPU, for tests: a context lost to an illegal write, and multiprocessors that are kept busy. Both come from
//! outside the engines that suffer from them, as every engine of a process shares the GPU's context.

use super::driver::{Modules, check};
use super::launch::{Kernel, Style};
use super::memory::PinnedMemory;
use super::{CudaDevice, open_device};
use crate::base::Result;
use crate::hal::HostBuffer;
use crate::hal::registry::DeviceOptions;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Threads of a spinning block; whole multiples of it fill the multiprocessors of all generations.
const BLOCK: u32 = 512;
/// An address that no allocation has.
const NOWHERE: u64 = 16;

/// Mirrors kernels/planted.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Write {
    at: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Spin {
    stop: u64,
    most_ns: u64,
}

/// Somebody else in the process who uses a GPU badly.
#[derive(Debug)]
pub struct BadNeighbour {
    stream: sys::CUstream,
    stop: PinnedMemory,
    write: Kernel,
    spin: Kernel,
    device: Arc<CudaDevice>,
}

impl BadNeighbour {
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = open_device(ordinal, &DeviceOptions::default())?;
        let modules: &Modules = &device.modules;
        let (write, spin) =
            (modules.kernel("planted", "yn_planted_write")?, modules.kernel("planted", "yn_planted_spin")?);
        let stop = PinnedMemory::new(&device.context, size_of::<AtomicU32>())?;
        let mut stream = null_mut();
        let entered = device.context.enter()?;
        // SAFETY: `stream` is writable.
        let made = unsafe { sys::cuStreamCreate(&raw mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        check(made, "cuStreamCreate")?;
        drop(entered);
        Ok(Self { stream, stop, write, spin, device })
    }

    /// Loses the GPU's context to this process; returns what the driver says of it.
    pub fn lose_context(&self) -> Result<()> {
        let _entered = self.device.context.enter()?;
        self.write.launch(self.stream, [1, 1, 1], (1, 0), (&Write { at: NOWHERE }, Style::default()))?;
        // SAFETY: a live stream.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "an illegal write")
    }

    /// Takes every place that threads have on the GPU, so that no other kernel of the process runs, until released, for at most
    /// `most`.
    pub fn occupy(&self, most: Duration) -> Result<()> {
        self.stop_word().store(0, Ordering::Release);
        let threads = self.device.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?;
        let blocks = self.device.sm_count * (threads / BLOCK).max(1);
        let params = Spin { stop: self.stop.bytes().as_ptr() as u64, most_ns: most.as_nanos() as u64 };
        let _entered = self.device.context.enter()?;
        self.spin.launch(self.stream, [blocks, 1, 1], (BLOCK, 0), (&params, Style::default()))
    }

    /// Ends [`Self::occupy`].
    pub fn release(&self) {
        self.stop_word().store(1, Ordering::Release);
    }

    fn stop_word(&self) -> &AtomicU32 {
        // SAFETY: four aligned bytes that live as long as self and are touched through atomics alone; the device reads them.
        unsafe { &*self.stop.bytes().as_ptr().cast::<AtomicU32>() }
    }
}

impl Drop for BadNeighbour {
    fn drop(&mut self) {
        self.release();
        if let Ok(_entered) = self.device.context.enter() {
            // SAFETY: created in `open`, destroyed once; the kernels end before the word they read is freed.
            let _ = unsafe { (sys::cuStreamSynchronize(self.stream), sys::cuStreamDestroy_v2(self.stream)) };
        }
    }
}
