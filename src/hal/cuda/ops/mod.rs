//! Launches of the kernels in `kernels/`: one function for each verb of [`crate::hal::Ops`]; those of `linear` are for the
//! numeric mode that cuBLASLt cannot serve, for few rows and some, for many with a gate behind, and for heads whose rows are drawn from.
//! Shapes are asserted here; what only the device can see (an id beyond its table) comes back through [`fault`].

mod attention;
mod attention_aligned;
mod attention_fast;
mod attention_hopper;
pub(super) mod fault;
pub(super) mod linear;
pub(super) mod linear_few;
pub(super) mod linear_large;
mod linear_largest;
pub(super) mod linear_mid;
mod norm;
mod rope;
mod rowwise;
mod sample;
mod tensor_map;

pub(super) use attention::paged_attention;
pub(super) use norm::{add_rms_norm, rms_norm};
pub(super) use rope::{rope_write_kv, turn};
pub(super) use rowwise::{act_mul, copy_rows, embed, gather_rows, mask_logits, round, soft_cap};
pub(super) use sample::{linear_sample, logprobs, sample};

use super::driver::Modules;
use super::launch::Kernel;
use super::memory::CudaMatrix;
use crate::base::{DType, Error, Result};
use crate::hal::Tensor;

/// Numbers that a thread loads at once.
const VECTOR: usize = 8;

/// Handles of all kernels.
#[derive(Debug)]
pub(super) struct Kernels {
    norm: norm::Kernels,
    rowwise: rowwise::Kernels,
    rope: rope::Kernels,
    sample: sample::Kernels,
    attention: attention::Kernels,
    linear: linear::Kernels,
    few: linear_few::Few,
    mid: linear_mid::Mid,
    large: linear_large::Large,
    largest: linear_largest::Largest,
}

impl Kernels {
    pub(super) fn load(modules: &Modules, capability: u32) -> Result<Self> {
        Ok(Self {
            norm: norm::Kernels::load(modules)?,
            rowwise: rowwise::Kernels::load(modules)?,
            rope: rope::Kernels::load(modules)?,
            sample: sample::Kernels::load(modules)?,
            attention: attention::Kernels::load(modules, capability)?,
            linear: linear::Kernels::load(modules)?,
            few: linear_few::Few::load(modules, capability)?,
            mid: linear_mid::Mid::load(modules, capability)?,
            large: linear_large::Large::load(modules, capability)?,
            largest: linear_largest::Largest::load(modules, capability)?,
        })
    }
}

/// Dtypes of activations, in the order of [`Family`].
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

fn short_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::I32 | DType::U8 => panic!("{dtype} is no dtype of activations"),
    }
}

fn index_of(dtype: DType) -> usize {
    FLOATS.iter().position(|d| *d == dtype).unwrap_or_else(|| panic!("{dtype} is no dtype of activations"))
}

/// One kernel for each dtype of activations.
#[derive(Debug)]
struct Family([Kernel; 3]);

impl Family {
    /// The kernels `{name}_f32` and so on of an image.
    fn load(modules: &Modules, image: &str, name: &str) -> Result<Self> {
        let kernel = |dtype| modules.kernel(image, &format!("{name}_{}", short_name(dtype)));
        Ok(Self([kernel(FLOATS[0])?, kernel(FLOATS[1])?, kernel(FLOATS[2])?]))
    }

    fn of(&self, dtype: DType) -> &Kernel {
        &self.0[index_of(dtype)]
    }
}

/// One kernel for each dtype whose activations are rounded.
#[derive(Debug)]
struct HalfFamily([Kernel; 2]);

impl HalfFamily {
    /// The kernels `{name}_f16` and `{name}_bf16` of an image.
    fn load(modules: &Modules, image: &str, name: &str) -> Result<Self> {
        Self::load_with_shared(modules, image, name, 0)
    }

    /// Launched with up to `shared_bytes` of dynamic shared memory.
    fn load_with_shared(modules: &Modules, image: &str, name: &str, shared_bytes: u32) -> Result<Self> {
        let kernel = |dtype| {
            let name = format!("{name}_{}", short_name(dtype));
            modules.kernel_with_shared(image, &name, shared_bytes)
        };
        Ok(Self([kernel(FLOATS[1])?, kernel(FLOATS[2])?]))
    }

    fn of(&self, dtype: DType) -> &Kernel {
        &self.0[index_of(dtype) - 1]
    }
}

/// One kernel for each pair of dtypes of activations and of the cache: equal ones, and any cache under F32 activations.
#[derive(Debug)]
struct KvFamily([Kernel; 5]);

const KV_PAIRS: [(DType, DType); 5] = [
    (DType::F32, DType::F32),
    (DType::F32, DType::F16),
    (DType::F32, DType::Bf16),
    (DType::F16, DType::F16),
    (DType::Bf16, DType::Bf16),
];

impl KvFamily {
    /// The kernels `{name}_{act}_{kv}` of an image, launched with up to `shared_bytes` of dynamic shared memory.
    fn load(modules: &Modules, image: &str, name: &str, shared_bytes: u32) -> Result<Self> {
        let kernel = |(act, kv)| {
            let name = format!("{name}_{}_{}", short_name(act), short_name(kv));
            modules.kernel_with_shared(image, &name, shared_bytes)
        };
        let [a, b, c, d, e] = KV_PAIRS.map(kernel);
        Ok(Self([a?, b?, c?, d?, e?]))
    }

    fn of(&self, act: DType, kv: DType) -> Result<&Kernel> {
        let index = KV_PAIRS.iter().position(|pair| *pair == (act, kv));
        index.map(|i| &self.0[i]).ok_or_else(|| {
            Error::unsupported(format!("a KV cache of {kv} under activations of {act}; on CUDA it is {act} as well"))
        })
    }
}

/// Whether rows of `cols` numbers are whole vectors, in all of these tensors.
fn whole_vectors(cols: usize, tensors: &[&Tensor]) -> bool {
    cols.is_multiple_of(VECTOR) && tensors.iter().all(|t| t.addr().is_multiple_of(16))
}

/// Whether both are of 16 bits a number and stand where the copy hardware takes them.
fn halves(x: &Tensor, w: &CudaMatrix) -> bool {
    x.dtype() != DType::F32 && [x.addr(), w.addr()].iter().all(|a| a.is_multiple_of(16))
}

fn shape(tensor: &Tensor) -> (usize, usize) {
    (tensor.rows(), tensor.cols())
}

/// Weights of a norm are F32, or of the dtype of activations where the reference's roundings are asked for.
fn assert_norm_weight(weight: &Tensor, x: &Tensor, aligned: bool) {
    let known = weight.dtype() == DType::F32 || (aligned && weight.dtype() == x.dtype());
    assert!(known && weight.rows() == 1, "weight of a norm");
}

/// Sizes of tensors are far below this; what overflows is a mistake of the engine.
fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| panic!("a size of {n} on the device"))
}

fn assert_ints(what: &str, tensors: &[&Tensor]) {
    assert!(tensors.iter().all(|t| t.dtype() == DType::I32), "dtypes of {what}");
}
