//! The CPU backend: packed weights in their own dtype, fp32 sums in a fixed order, a thread pool per device.
//!
//! - `pool` runs the parts of an op, `mem` is memory, `simd` the vector operations per instruction set.
//! - `pack` and `linear` are weight matrices and their product, `kv` and `attention` the cache and its reader.
//! - `rowwise`, `processors`, `sample` and `logprobs` are the rest of the ops; `stream` checks shapes and calls them.

mod attention;
mod kv;
mod linear;
mod logprobs;
mod mem;
mod pack;
mod pool;
mod processors;
mod rowwise;
mod sample;
mod simd;
mod stream;

use crate::base::{DType, Error, Result};
use crate::hal::registry::DeviceOptions;
use crate::hal::survey::Processor;
use crate::hal::{Activations, Allocation, Caps, Device, HostBuffer, HostMatrix, Matrix, MemoryInfo, Stream};
use mem::HostMemory;
use pack::PackedMatrix;
use pool::Pool;
use simd::Isa;
use std::sync::{Arc, Weak};

/// The registry's name.
pub(super) const NAME: &str = "cpu";

/// More than any machine has; a config above it is a mistake.
const MAX_THREADS: usize = 1024;

/// The host processor.
#[derive(Debug)]
pub struct CpuDevice {
    caps: Caps,
    isa: Isa,
    pool: Pool,
    /// For streams, which keep the device alive.
    me: Weak<CpuDevice>,
}

/// Opens the host processor as a device. Errors: `Invalid` for options out of range, `Unsupported` for an instruction set
/// the machine lacks, `NoMemory` when threads cannot start.
pub fn open(options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    let isa = Isa::detect(options.cpu_features.as_deref())?;
    let threads = match options.threads {
        Some(n @ 1..=MAX_THREADS) => n,
        Some(n) => return Err(Error::invalid(format!("threads is {n}; expected 1 to {MAX_THREADS}"))),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let pool = Pool::new(threads)?;
    let caps = Caps {
        name: NAME,
        description: format!("{}, {}, {threads} threads", processor_name(), isa.name()),
        activations: Activations::Always(DType::F32),
        block_size: 16,
        step_tokens: 512,
        weight_dtypes: vec![DType::F32, DType::F16, DType::Bf16],
        kv_dtypes: vec![DType::F32, DType::F16, DType::Bf16],
        own_memory: false,
        graphs: false,
        invariant: true,
        // Everything between two ops is F32, where the reference rounds to the model's dtype.
        aligned: false,
    };
    Ok(Arc::new_cyclic(|me| CpuDevice { caps, isa, pool, me: Weak::clone(me) }))
}

/// What there is of processor and memory, and how an engine would use it.
pub(super) fn survey(options: &DeviceOptions) -> Processor {
    Processor {
        description: open(options).map(|device| device.caps().description.clone()),
        features: simd::features(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory: mem::memory_info(),
    }
}

fn processor_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split(':').nth(1)).map(str::trim);
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

impl Device for CpuDevice {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn memory(&self) -> Result<MemoryInfo> {
        mem::memory_info()
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>> {
        Ok(Arc::new(HostMemory::new(bytes)?))
    }
    fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>> {
        Ok(Box::new(HostMemory::new(bytes)?))
    }
    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        Ok(Arc::new(PackedMatrix::new(parts, &self.pool)?))
    }
    fn stream(&self) -> Result<Box<dyn Stream>> {
        let device = self.me.upgrade().ok_or_else(|| Error::internal("the CPU device is being dropped"))?;
        Ok(Box::new(stream::CpuStream::new(device)))
    }
}

/// Makes room for `n` elements in all without aborting when memory is short.
fn reserve<T>(buffer: &mut Vec<T>, n: usize) -> Result<()> {
    buffer
        .try_reserve_exact(n.saturating_sub(buffer.len()))
        .map_err(|_| Error::no_memory(format!("cannot allocate {n} elements of scratch memory for a step")))
}
