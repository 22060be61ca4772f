//! The Ascend backend: CANN's runtime and operators opened at run time, kernels of our own where their binaries are found.
//!
//! - `abi` is all that is called, `library` finds it, `errors` tells what went wrong; `context` is the device as a thread has
//!   it, `memory` device and page-locked memory, `event` and `stream` order the work, `operands` describe it.
//! - `ops` has one function for each verb: operators where they serve, else the host's processor (`host`), which is correct and
//!   slow; `kernels` are our own, which some of them take first. `mirror` knows the integers that the host uploaded, since operators want lengths on the host; `region` is scratch memory.
//! - `ranks` is the group of NPUs that share a model.

#[doc(hidden)]
pub mod abi;
mod context;
mod errors;
mod event;
mod host;
mod kernels;
mod library;
mod memory;
mod mirror;
mod operands;
mod ops;
mod ranks;
mod region;
mod stream;
mod survey;

use crate::base::config::Placement;
use crate::base::{DType, Error, Result};
use crate::hal::comm::Group;
use crate::hal::registry::DeviceOptions;
use crate::hal::{
    Activations, Allocation, Caps, Device, HostBuffer, HostMatrix, Matrix, MemoryInfo, Overhead, RandomRows, Recorded,
    Stream, cpu,
};
use context::Context;
use kernels::Kernels;
use memory::{AscendMatrix, DeviceMemory, PinnedMemory};
use ranks::HcclGroup;
use std::sync::{Arc, Weak};
use stream::AscendStream;
pub(super) use survey::survey;

/// The registry's name.
pub(super) const NAME: &str = "ascend";
/// Tokens per KV block: the only number that every form of the attention operator takes.
const BLOCK_SIZE: u32 = 128;
/// What the runtime takes on its own is not known; nobody has measured it.
const DRIVER_BYTES: usize = 64 << 20;

/// One NPU.
#[derive(Debug)]
pub struct AscendDevice {
    caps: Caps,
    /// For ops that it has no operators for.
    host: Arc<dyn Device>,
    mask: ops::CausalMask,
    kernels: Kernels,
    context: Arc<Context>,
    /// For streams, which keep the device alive.
    me: Weak<AscendDevice>,
}

/// How many NPUs the runtime shows. Errors as in [`open`].
pub fn count(options: &DeviceOptions) -> Result<usize> {
    context::count(&context::start(options.library_dir.as_deref())?.abi)
}

/// Opens the NPU with this number of those the runtime shows. Errors: `Device` without CANN or with one that is too old (the
/// error says what was searched), `Invalid` for a number beyond the NPUs there are, `NoMemory`, `DeviceLost`.
pub fn open(ordinal: usize, options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    Ok(open_device(ordinal, options)?)
}

fn open_device(ordinal: usize, options: &DeviceOptions) -> Result<Arc<AscendDevice>> {
    let context = Arc::new(Context::open(ordinal, options.library_dir.as_deref())?);
    let host = cpu::open(&DeviceOptions { threads: options.threads, ..DeviceOptions::default() })?;
    let kernels = Kernels::load(&context, options.library_dir.as_deref())?;
    let halves = vec![DType::F16, DType::Bf16];
    let caps = Caps {
        name: NAME,
        description: format!("{}, {} of our own kernels", describe(&context), kernels.count()),
        activations: Activations::OfModel,
        block_size: BLOCK_SIZE,
        step_tokens: 512,
        weight_dtypes: halves.clone(),
        kv_dtypes: halves,
        own_memory: true,
        graphs: false,
        invariant: false,
        aligned: false,
    };
    let mask = ops::CausalMask::new(&context)?;
    Ok(Arc::new_cyclic(|me| AscendDevice { caps, host, mask, kernels, context, me: Weak::clone(me) }))
}

/// Chip and runtime, for people.
fn describe(context: &Context) -> String {
    let version = context::version(context.abi());
    let version = version.map_or_else(String::new, |version| format!(", AscendCL {version}"));
    format!("{}{version}", context.soc())
}

impl Device for AscendDevice {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn facts(&self) -> Vec<(&'static str, String)> {
        let version = context::version(self.context.abi()).unwrap_or_else(|| "not told".to_owned());
        let [forms, refused] = self.mask.facts();
        vec![
            ("chip", self.context.soc()),
            ("runtime", self.context.library.path.clone()),
            ("runtime_version", version),
            ("absent_entry_points", self.context.abi().absent().join(", ")),
            ("kernels", self.kernels.notes().join("; ")),
            ("attention_forms", forms),
            ("attention_refused", refused),
        ]
    }
    fn memory(&self) -> Result<MemoryInfo> {
        let (free_bytes, total_bytes) = self.context.memory()?;
        Ok(MemoryInfo { total_bytes, free_bytes })
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>> {
        Ok(Arc::new(DeviceMemory::new(&self.context, bytes)?))
    }
    fn rounded(&self, bytes: usize) -> usize {
        context::rounded(bytes)
    }
    fn allocated(&self) -> usize {
        self.context.heap.bytes()
    }
    fn overhead(&self, _recorded: Recorded) -> Overhead {
        let stream_bytes = stream::WORKSPACE_BYTES + stream::SCRATCH_BYTES + ops::paged::BYTES + ops::CausalMask::BYTES;
        Overhead { stream_bytes, driver_bytes: DRIVER_BYTES }
    }
    fn seal(&self) {
        self.context.heap.seal();
    }
    fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>> {
        Ok(Box::new(PinnedMemory::new(&self.context, bytes)?))
    }
    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        AscendMatrix::load(&self.context, parts, Placement::Device)
    }
    fn load_host_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        AscendMatrix::load(&self.context, parts, Placement::Host)
    }
    fn random_host_matrix(&self, parts: &[RandomRows], cols: usize, dtype: DType) -> Result<Matrix> {
        let data = parts.iter().map(|part| part.bytes(cols, dtype)).collect::<Result<Vec<_>>>()?;
        let host = parts.iter().zip(&data).map(|(part, data)| HostMatrix { rows: part.rows, cols, dtype, data });
        self.load_host_matrix(&host.collect::<Vec<_>>())
    }
    fn stream(&self) -> Result<Box<dyn Stream>> {
        let device = self.me.upgrade().ok_or_else(|| Error::internal("the Ascend device is being dropped"))?;
        Ok(Box::new(AscendStream::new(device)?))
    }
    fn group(&self, ranks: usize, _elements: usize) -> Result<Arc<dyn Group>> {
        Ok(Arc::new(HcclGroup::new(self.context.abi(), ranks)?))
    }
}
