//! The CUDA backend: driver and cuBLASLt opened at run time, kernels compiled with the library.
//!
//! - `driver` finds the driver and holds context and kernels; `memory` is device and page-locked memory, `event` and
//!   `stream` order the work; `blas` is the matrix product, `ops` launches the kernels of `kernels/`.

mod blas;
mod convert;
mod driver;
mod event;
mod graph;
mod memory;
mod ops;
mod random;
mod stream;

use crate::base::config::NumericMode;
use crate::base::{DType, Error, Result};
use crate::hal::registry::DeviceOptions;
use crate::hal::{
    Activations, Allocation, Caps, Device, HostBuffer, HostMatrix, Matrix, MemoryInfo, RandomRows, Stream,
};
use convert::Convert;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use driver::{Context, Modules};
use memory::{CudaMatrix, DeviceMemory, PinnedMemory};
use ops::Kernels;
use random::Random;
use std::sync::{Arc, Weak};
use stream::CudaStream;

/// Compute capability that the kernels need.
const CAPABILITY: u32 = 80;

/// One GPU.
#[derive(Debug)]
pub struct CudaDevice {
    caps: Caps,
    sm_count: u32,
    mode: NumericMode,
    convert: Convert,
    random: Random,
    kernels: Kernels,
    /// The kernels' code.
    _modules: Modules,
    context: Arc<Context>,
    /// For streams, which keep the device alive.
    me: Weak<CudaDevice>,
}

/// Why this build has no CUDA device at all, if so.
pub fn check_build() -> Result<()> {
    if driver::has_kernels() {
        return Ok(());
    }
    Err(Error::unsupported(
        "this build has no CUDA kernels, as no CUDA compiler was found when it was made; use \"cpu\" or \"auto\"",
    ))
}

/// Opens the GPU with this number of those the driver shows. Errors: `Unsupported` without kernels or for a GPU that is too
/// old, `Device` without a driver or cuBLASLt, or with ones too old (the error says what was searched), `Invalid` for a
/// number beyond the GPUs there are, `NoMemory`.
pub fn open(ordinal: usize, options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    check_build()?;
    let library_dir = options.library_dir.as_deref();
    driver::load(library_dir)?;
    blas::load(library_dir)?;
    let context = Arc::new(Context::open(ordinal)?);
    let name = context.name()?;
    let capability = 10 * context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
        + context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if capability < CAPABILITY {
        return Err(Error::unsupported(format!(
            "GPU {ordinal} ({name}) has compute capability {}.{}; this build needs {}.{} or newer",
            capability / 10,
            capability % 10,
            CAPABILITY / 10,
            CAPABILITY % 10
        )));
    }
    let sm_count = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let modules = Modules::load(&context)?;
    let (convert, random) = (Convert::load(&modules)?, Random::load(&modules)?);
    let kernels = Kernels::load(&modules)?;
    let caps = Caps {
        name: "cuda",
        description: format!("{name}, compute capability {}.{}, {sm_count} SMs", capability / 10, capability % 10),
        activations: Activations::OfModel,
        block_size: 16,
        weight_dtypes: vec![DType::F32, DType::F16, DType::Bf16],
        kv_dtypes: vec![DType::F32, DType::F16, DType::Bf16],
        own_memory: true,
        graphs: true,
        invariant: options.numeric_mode == NumericMode::Invariant,
        aligned: false,
    };
    Ok(Arc::new_cyclic(|me| CudaDevice {
        caps,
        sm_count,
        mode: options.numeric_mode,
        convert,
        random,
        kernels,
        _modules: modules,
        context,
        me: Weak::clone(me),
    }))
}

impl Device for CudaDevice {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn memory(&self) -> Result<MemoryInfo> {
        let (free_bytes, total_bytes) = self.context.memory()?;
        Ok(MemoryInfo { total_bytes, free_bytes })
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>> {
        Ok(Arc::new(DeviceMemory::new(&self.context, bytes)?))
    }
    fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>> {
        Ok(Box::new(PinnedMemory::new(&self.context, bytes)?))
    }
    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        Ok(Arc::new(CudaMatrix::new(&self.context, parts)?))
    }
    fn random_matrix(&self, parts: &[RandomRows], cols: usize, dtype: DType) -> Result<Matrix> {
        let matrix = CudaMatrix::zeroed(&self.context, parts.iter().map(|p| p.rows).sum(), cols, dtype)?;
        self.random.fill(&self.context, &matrix, parts)?;
        Ok(Arc::new(matrix))
    }
    fn stream(&self) -> Result<Box<dyn Stream>> {
        let device = self.me.upgrade().ok_or_else(|| Error::internal("the CUDA device is being dropped"))?;
        Ok(Box::new(CudaStream::new(device)?))
    }
}
