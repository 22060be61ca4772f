//! F1: hardware abstraction shaped like the CUDA runtime: a [`Device`] makes memory and streams, a [`Stream`] is where
//! copies and [`Ops`] are enqueued, an [`Event`] says how far a stream has come. Everything above sees only these
//! traits and [`Caps`]; device names live in `registry` and in the backend's own folder.

pub mod arena;
pub mod ascend;
pub mod comm;
pub mod cpu;
pub mod cuda;
pub mod load;
pub mod ops;
mod planted;
mod readers;
pub mod registry;
mod roll;
pub mod selftest;
pub mod survey;
pub mod tensor;

pub use load::{FilePart, MatrixLoader, MatrixPart, WeightFile};
pub use ops::Ops;
pub use tensor::{Allocation, HostMatrix, Matrix, MatrixStorage, RandomRows, Tensor};

use crate::base::{DType, Error, Result};
use comm::{Group, LocalGroup};
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// What a device is and prefers. Upper floors decide by these, never by a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// The registry's name, for people.
    pub name: &'static str,
    /// Make and features, for people ("AMD EPYC, AVX-512, 2 threads").
    pub description: String,
    pub activations: Activations,
    /// Tokens per KV block when the config names none.
    pub block_size: u32,
    /// Tokens of a step when the config names none: with more, prompts are computed little faster.
    pub step_tokens: usize,
    /// Weight dtypes [`Device::load_matrix`] accepts.
    pub weight_dtypes: Vec<DType>,
    /// KV dtypes the attention ops accept.
    pub kv_dtypes: Vec<DType>,
    /// Its memory is not that of the host's programs, so an engine may take most of it.
    pub own_memory: bool,
    /// Whether [`Stream::capture`] records work, which then costs the host next to nothing to enqueue.
    pub graphs: bool,
    /// Tokens do not depend on batch composition, chunking or prefix hits, bit for bit.
    pub invariant: bool,
    /// Activations are rounded where the reference implementation with eager attention rounds them.
    pub aligned: bool,
}

/// Dtype of activations between ops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// Whatever the model's dtype.
    Always(DType),
    OfModel,
}

impl Activations {
    /// For a model whose weights are `model`.
    pub fn of(self, model: DType) -> DType {
        match self {
            Self::Always(dtype) => dtype,
            Self::OfModel => model,
        }
    }
}

/// What a device does in a microsecond when it does nothing else, as found in practice, and what it loses between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Operations of matrix products of several hundred rows.
    pub products_per_us: u64,
    /// Operations of attention over long contexts.
    pub attention_per_us: u64,
    /// Bytes read from its memory.
    pub bytes_per_us: u64,
    /// Nanoseconds a decoder layer takes beside what it reads and computes.
    pub layer_ns: u64,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    pub total_bytes: usize,
    /// What this process could still take, other processes' use counted.
    pub free_bytes: usize,
}

/// Work that will be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recorded {
    pub graphs: usize,
    /// Launches in each of them.
    pub launches: usize,
}

/// Bytes of a device's memory that an engine takes beside what it asks for by size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overhead {
    /// Allocated with a stream.
    pub stream_bytes: usize,
    /// Taken by driver and vendor libraries on their own, as found on machines like this one.
    pub driver_bytes: usize,
}

/// Matrix products whose algorithms were looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tuned {
    /// Found by timing since the device was opened.
    pub searched: usize,
    /// Read from the file that was named.
    pub known: usize,
}

/// One opened device. Shared by the threads of one engine; dropped with it.
pub trait Device: Any + Send + Sync + Debug {
    fn caps(&self) -> &Caps;
    /// What it found when it was opened (libraries, versions, what it chose because of them), as name and value, for reports.
    fn facts(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    fn memory(&self) -> Result<MemoryInfo>;
    /// How fast it is with weights of this dtype, for the scheduler's model of steps; `None` where nobody knows.
    fn rates(&self, dtype: DType) -> Option<Rates> {
        let _ = dtype;
        None
    }
    /// Zeroed memory, aligned to at least 64 bytes. `NoMemory` when it does not fit.
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>>;
    /// Address space for `bytes` whose memory comes with [`Allocation::commit`], so that work can be recorded before it is
    /// known how much memory is left. None where memory comes at once.
    fn reserve(&self, bytes: usize) -> Result<Option<Arc<dyn Allocation>>> {
        let _ = bytes;
        Ok(None)
    }
    /// What an allocation of `bytes` takes.
    fn rounded(&self, bytes: usize) -> usize {
        bytes
    }
    /// What live allocations take, where the device counts them.
    fn allocated(&self) -> usize {
        0
    }
    /// What one stream and recorded work take beside.
    fn overhead(&self, recorded: Recorded) -> Overhead {
        let _ = recorded;
        Overhead::default()
    }
    /// Ends the warm-up: to allocate device memory is `Internal` from here on, and what was learnt about products is kept.
    fn seal(&self) {}
    /// None where products have one algorithm, or none are to be looked for.
    fn tuned(&self) -> Option<Tuned> {
        None
    }
    /// Host memory the device can copy from and to at full speed.
    fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>>;
    /// Puts a matrix on the device in the layout its [`Ops::linear`] and [`Ops::embed`] like best. `parts` have equal
    /// columns and dtype and stand below each other (query, key and value rows of one fused product, say).
    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix>;
    /// The same for a matrix of random numbers, for benches: equal ones on every device.
    fn random_matrix(&self, parts: &[RandomRows], cols: usize, dtype: DType) -> Result<Matrix> {
        let data = parts.iter().map(|part| part.bytes(cols, dtype)).collect::<Result<Vec<_>>>()?;
        let host = parts.iter().zip(&data).map(|(part, data)| HostMatrix { rows: part.rows, cols, dtype, data });
        self.load_matrix(&host.collect::<Vec<_>>())
    }
    /// A matrix in host memory that [`Ops::embed`] reads where it lies: it takes none of a device that has memory of its
    /// own, and there no [`Ops::linear`] takes it. Elsewhere it is like any other.
    fn load_host_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        self.load_matrix(parts)
    }
    /// The same of random numbers.
    fn random_host_matrix(&self, parts: &[RandomRows], cols: usize, dtype: DType) -> Result<Matrix> {
        self.random_matrix(parts, cols, dtype)
    }
    /// What matrices take on the device that a loader loads, given as numbers of them and bytes of each.
    fn area(&self, matrices: &[(usize, usize)]) -> usize {
        matrices.iter().map(|(times, bytes)| times * self.rounded(*bytes)).sum()
    }
    /// Loads many matrices of `bytes` in all at once; `None` where one after the other is as fast. Those on the device share
    /// `area` bytes of memory, which live as long as any of them; one that finds no room there has its own.
    fn loader(&self, bytes: usize, area: usize) -> Result<Option<Box<dyn MatrixLoader>>> {
        let _ = (bytes, area);
        Ok(None)
    }
    fn stream(&self) -> Result<Box<dyn Stream>>;
    /// Where `ranks` ranks on devices like this one meet, which add up at most `elements` activations at once. `Unsupported`
    /// or `Device` where they cannot.
    fn group(&self, ranks: usize, elements: usize) -> Result<Arc<dyn Group>> {
        if self.caps().activations != Activations::Always(DType::F32) {
            return Err(Error::unsupported(format!(
                "config key \"tensor_parallel_size\" is {ranks}; device {} has nothing with which ranks add up its \
                 activations, use 1",
                self.caps().name
            )));
        }
        Ok(Arc::new(LocalGroup::new(ranks, elements)))
    }
    /// Where it has a driver that can make the host wait.
    #[doc(hidden)]
    fn driver_calls(&self) -> Option<DriverCalls> {
        None
    }
}

/// How often a device's driver was called, since it was opened, with something that may make the host wait. For tests.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriverCalls {
    pub event_waits: u64,
    /// For a stream, or for a copy that has ended when the call returns.
    pub other_waits: u64,
    /// Device or page-locked memory taken or given back.
    pub allocations: u64,
    pub events_made: u64,
}

/// Host memory for transfers.
pub trait HostBuffer: Send + Debug {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// A point on a stream.
pub trait Event: Send + Debug {
    fn is_done(&self) -> Result<bool>;
    /// Sleeps until the stream has passed the point.
    fn wait(&self) -> Result<()>;
}

/// Recorded work of one stream, in the backend's own form.
pub trait Graph: Send + Debug {
    fn as_any(&self) -> &dyn Any;
}

/// An ordered queue of work on one device. Used by one thread at a time.
pub trait Stream: Any + Ops + Send + Debug {
    /// Copies `src[..dst.bytes()]` to `dst`. The buffer stays unchanged until an event recorded later is done.
    fn upload(&self, dst: &Tensor, src: &dyn HostBuffer) -> Result<()>;
    /// Copies `src` to `dst[..src.bytes()]`. Readable once an event recorded later is done.
    fn download(&self, dst: &mut dyn HostBuffer, src: &Tensor) -> Result<()>;
    fn record(&self) -> Result<Box<dyn Event>>;
    /// Records what `work` enqueues instead of running it. Only where [`Caps::graphs`] says so; what it enqueues has been
    /// enqueued before with tensors of the same shapes.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        let _ = work;
        Err(Error::internal("this device records no work"))
    }
    /// Enqueues recorded work, which reads and writes the memory it was recorded with.
    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        let _ = graph;
        Err(Error::internal("this device records no work"))
    }
}
