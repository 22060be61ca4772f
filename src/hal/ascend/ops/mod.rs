//! One function for each verb of [`crate::hal::Ops`]. What an operator of the library does well goes there; what has none runs on
//! the host, with the waits that takes. Shapes are asserted here; operators check them again.

mod attention;
mod linear;
mod norm;
mod on_host;
pub(super) mod paged;
mod rope;
mod rowwise;
mod sample;

pub(super) use attention::{CausalMask, paged_attention};
pub(super) use linear::{linear, prepare};
pub(super) use norm::{add_rms_norm, rms_norm};
pub(super) use rope::rope_write_kv;
pub(super) use rowwise::{act_mul, copy_rows, embed, gather_rows, mask_logits, soft_cap};
pub(super) use sample::{logprobs, sample};

use super::abi::DataType;
use super::operands::{View, code};
use super::stream::AscendStream;
use crate::base::{DType, Result};
use crate::hal::Tensor;

/// Bytes that a tensor of `bytes` takes among others in one allocation: operators read and write whole vectors.
pub(super) fn piece(bytes: usize) -> usize {
    (bytes.next_multiple_of(32) + 32).next_multiple_of(64)
}

fn shape(tensor: &Tensor) -> (usize, usize) {
    (tensor.rows(), tensor.cols())
}

/// Numbers of activations.
fn assert_halves(what: &str, tensors: &[&Tensor]) {
    assert!(tensors.iter().all(|t| matches!(t.dtype(), DType::F16 | DType::Bf16)), "dtypes of {what}");
}

/// `out = x` in the dtype of `out`.
fn cast(s: &AscendStream, out: &View<'_>, x: &View<'_>, dtype: DataType) -> Result<()> {
    // SAFETY: described tensors that outlive the call.
    s.call(&s.abi().cast, |plan, bytes, executor| unsafe { plan(x.raw(), dtype, out.raw(), bytes, executor) })
}

/// F32 scratch memory as a tensor.
fn floats<'a>(s: &'a AscendStream, addr: u64, dims: &[usize]) -> Result<View<'a>> {
    View::new(s, addr, DataType::FLOAT, dims)
}

/// Some of the columns of a matrix, as `[rows, heads, dim]`, from column `from` on.
fn heads<'a>(s: &'a AscendStream, x: &Tensor, from: usize, (heads, dim): (usize, usize)) -> Result<View<'a>> {
    let addr = x.addr() + (from * x.dtype().size()) as u64;
    View::strided(s, (addr, code(x.dtype())), &[x.rows(), heads, dim], &[x.cols(), dim, 1])
}

#[cfg(test)]
mod tests {
    #[test]
    fn pieces_have_room_behind_them() {
        for (bytes, expected) in [(1, 64), (32, 64), (33, 128), (64, 128), (256, 320)] {
            assert_eq!(super::piece(bytes), expected, "{bytes}");
        }
    }
}
