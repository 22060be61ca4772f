//! The CUDA backend: driver and cuBLASLt opened at run time, kernels compiled with the library.
//!
//! - `driver` finds the driver and holds context and kernels; `memory` is device and page-locked memory, `load` fills it
//!   with weights, which `sender` brings from files through `slots`; `event` and `stream` order the work; `blas` is the matrix
//!   product and `tuning` keeps its algorithms, `ops` launches the kernels of `kernels/`. `reserve` is memory that comes behind
//!   its addresses later, `ledger` counts it all.
//! - `nccl` is the library through which GPUs exchange what they computed, `ranks` the group of those that do.

mod batched;
mod bias;
mod blas;
mod convert;
mod driver;
mod event;
mod graph;
mod launch;
mod ledger;
mod load;
mod memory;
mod nccl;
mod ops;
#[doc(hidden)]
pub mod planted;
mod product;
mod random;
mod ranks;
mod rates;
mod reserve;
mod sender;
mod slots;
mod stream;
mod survey;
mod tuning;

use crate::base::config::{NumericMode, Placement};
use crate::base::{DType, Error, Result};
use crate::hal::comm::Group;
use crate::hal::registry::DeviceOptions;
use crate::hal::{
    Activations, Allocation, Caps, Device, DriverCalls, HostBuffer, HostMatrix, Matrix, MatrixLoader, MemoryInfo,
    Overhead, RandomRows, Rates, Recorded, Stream, Tuned,
};
use convert::Convert;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use driver::{Context, Modules};
use load::CudaLoader;
use memory::{CudaMatrix, DeviceMemory, PinnedMemory};
use ops::Kernels;
use random::Random;
use ranks::NcclGroup;
use reserve::ReservedMemory;
use slots::Slots;
use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use stream::CudaStream;
pub(super) use survey::survey;
use tuning::Tuning;

/// Compute capability that the kernels need.
const CAPABILITY: u32 = 80;
/// Compute capability from which launches overlap.
const OVERLAPS: u32 = 90;
/// What a stream allocates.
const STREAM_BYTES: usize = stream::WORKSPACE_BYTES + bias::BYTES;
/// What driver and cuBLASLt take on their own: kernels of the products, launch buffers. Measured on an H200, as the next two:
/// 12 to 51 MB in all for 69 and 93 recorded steps of 24 and 32 layers.
const LIBRARY_BYTES: usize = 8 << 20;
/// The same for a recorded step, and for each launch in it.
const GRAPH_BYTES: usize = 64 << 10;
const LAUNCH_BYTES: usize = 256;

/// One GPU.
#[derive(Debug)]
pub struct CudaDevice {
    caps: Caps,
    mode: NumericMode,
    /// Its number among those that the driver shows.
    ordinal: c_int,
    /// Where libraries are looked for first.
    library_dir: Option<PathBuf>,
    sm_count: u32,
    /// Launches may overlap (programmatic dependent launch).
    overlaps: bool,
    convert: Convert,
    random: Random,
    kernels: Kernels,
    /// Where algorithms of products are kept.
    tuning: Option<Arc<Tuning>>,
    /// The kernels' code.
    modules: Modules,
    /// For weights.
    slots: Arc<Slots>,
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

/// How many GPUs the driver shows. Errors as in [`open`].
pub fn count(options: &DeviceOptions) -> Result<usize> {
    check_build()?;
    driver::load(options.library_dir.as_deref())?;
    driver::count()
}

/// Opens the GPU with this number of those the driver shows. Errors: `Unsupported` without kernels or for a GPU that is too
/// old, `Device` without a driver or cuBLASLt, or with ones too old (the error says what was searched), `Invalid` for a
/// number beyond the GPUs there are, `NoMemory`, `DeviceLost` where this process has lost the GPU's context.
pub fn open(ordinal: usize, options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    Ok(open_device(ordinal, options)?)
}

fn open_device(ordinal: usize, options: &DeviceOptions) -> Result<Arc<CudaDevice>> {
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
    let slots = Arc::new(Slots::start(&context, options.load_bytes));
    let modules = Modules::load(&context)?;
    let (convert, random) = (Convert::load(&modules)?, Random::load(&modules)?);
    let kernels = Kernels::load(&modules, capability)?;
    let machine = format!("{name}, {sm_count} SMs, driver {}, cuBLASLt {}", driver::version()?, blas::version());
    let mode = options.numeric_mode;
    let tuning = options.tuning_cache.as_deref().map(|path| Arc::new(Tuning::open(path, machine)));
    let caps = Caps {
        name: "cuda",
        description: format!("{name}, compute capability {}.{}, {sm_count} SMs", capability / 10, capability % 10),
        activations: Activations::OfModel,
        block_size: 16,
        // Input tokens a second of an 8B model on an H200 with 2048, 4096, 8192 and 16 384 of them a step: 37.2, 38.0, 38.6, 38.7 thousand.
        step_tokens: 8192,
        weight_dtypes: vec![DType::F32, DType::F16, DType::Bf16],
        kv_dtypes: vec![DType::F32, DType::F16, DType::Bf16],
        own_memory: true,
        graphs: true,
        invariant: mode == NumericMode::Invariant,
        aligned: mode == NumericMode::Aligned,
    };
    Ok(Arc::new_cyclic(|me| CudaDevice {
        caps,
        mode,
        ordinal: c_int::try_from(ordinal).unwrap_or(c_int::MAX),
        library_dir: options.library_dir.clone(),
        sm_count,
        overlaps: capability >= OVERLAPS,
        convert,
        random,
        kernels,
        modules,
        tuning,
        slots,
        context,
        me: Weak::clone(me),
    }))
}

impl Device for CudaDevice {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn rates(&self, dtype: DType) -> Option<Rates> {
        rates::of(&self.context, dtype)
    }
    fn memory(&self) -> Result<MemoryInfo> {
        let (free_bytes, total_bytes) = self.context.memory()?;
        Ok(MemoryInfo { total_bytes, free_bytes })
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>> {
        Ok(Arc::new(DeviceMemory::new(&self.context, bytes)?))
    }
    fn reserve(&self, bytes: usize) -> Result<Option<Arc<dyn Allocation>>> {
        let which = Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED;
        if self.context.attribute(which)? == 0 {
            return Ok(None);
        }
        Ok(Some(Arc::new(ReservedMemory::new(&self.context, bytes)?)))
    }
    fn rounded(&self, bytes: usize) -> usize {
        ledger::rounded(bytes)
    }
    fn allocated(&self) -> usize {
        self.context.ledger.bytes()
    }
    fn overhead(&self, recorded: Recorded) -> Overhead {
        let recorded_bytes = recorded.graphs * (GRAPH_BYTES + recorded.launches * LAUNCH_BYTES);
        Overhead { stream_bytes: STREAM_BYTES, driver_bytes: LIBRARY_BYTES + recorded_bytes }
    }
    fn seal(&self) {
        self.slots.join();
        self.context.ledger.seal();
        if let Some(tuning) = &self.tuning {
            tuning.close();
        }
    }
    fn tuned(&self) -> Option<Tuned> {
        self.tuning.as_ref().map(|tuning| tuning.tuned())
    }
    fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>> {
        Ok(Box::new(PinnedMemory::new(&self.context, bytes)?))
    }
    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        load::now(&self.context, parts, Placement::Device)
    }
    fn load_host_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        load::now(&self.context, parts, Placement::Host)
    }
    fn random_host_matrix(&self, parts: &[RandomRows], cols: usize, dtype: DType) -> Result<Matrix> {
        load::random_on_host(&self.context, &self.random, parts, (cols, dtype))
    }
    fn area(&self, matrices: &[(usize, usize)]) -> usize {
        load::area(matrices)
    }
    fn loader(&self, bytes: usize, area: usize) -> Result<Option<Box<dyn MatrixLoader>>> {
        Ok(Some(Box::new(CudaLoader::new(&self.context, &self.slots, (bytes, area))?)))
    }
    fn random_matrix(&self, parts: &[RandomRows], cols: usize, dtype: DType) -> Result<Matrix> {
        let matrix = CudaMatrix::unfilled(&self.context, parts.iter().map(|p| p.rows).collect(), cols, dtype)?;
        self.random.fill(&self.context, &matrix, parts)?;
        Ok(Arc::new(matrix))
    }
    fn driver_calls(&self) -> Option<DriverCalls> {
        Some(self.context.calls.read())
    }
    fn stream(&self) -> Result<Box<dyn Stream>> {
        let device = self.me.upgrade().ok_or_else(|| Error::internal("the CUDA device is being dropped"))?;
        Ok(Box::new(CudaStream::new(device)?))
    }
    fn group(&self, ranks: usize, _elements: usize) -> Result<Arc<dyn Group>> {
        Ok(Arc::new(NcclGroup::new(ranks, self.library_dir.as_deref())?))
    }
}
