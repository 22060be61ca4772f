//! Logits of many rows in mode `fast`, with the first candidate of each row.

use super::attention_hopper::CAPABILITY;
use super::linear_large::{self, Cut, LOGITS, Params as Product, SHARED};
use super::{HalfFamily, halves, small};
use crate::base::{DType, Result};
use crate::hal::MatrixStorage;
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::memory::CudaMatrix;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::LinearSample;

/// Most rows: a block knows of each whether its logits are stored. The kernel has this number of its own.
const MOST_ROWS: usize = 2048;

/// Mirrors kernels/linear_largest.cu.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Params {
    product: Product,
    firsts: u64,
    rows: u64,
    positions: u64,
    state: u64,
    state_rows: u32,
    keeps: u32,
}
const _: () = assert!(size_of::<Params>() == 384);

/// None where the capability is another than theirs.
#[derive(Debug)]
pub(super) struct Largest(Option<HalfFamily>);

impl Largest {
    pub(super) fn load(modules: &Modules, capability: u32) -> Result<Self> {
        let load = || HalfFamily::load_with_shared(modules, "linear_largest", "yn_linear_largest", SHARED);
        Ok(Self((capability == CAPABILITY).then(load).transpose()?))
    }
}

/// The product, whose operands the caller has checked; None where others are as fast, or the kernels do not take it.
pub(super) fn logits(s: &CudaStream, args: &LinearSample<'_>, w: &CudaMatrix, firsts: u64) -> Option<Result<()>> {
    let (x, logits) = (args.x, args.sample.logits);
    let kernels = s.kernels().largest.0.as_ref()?;
    let takes = x.rows() <= MOST_ROWS && halves(x, w) && logits.addr().is_multiple_of(8);
    let cut = linear_large::cut(x.rows(), (w.rows(), w.cols()), s.sm_count() as usize, LOGITS).filter(|_| takes)?;
    Some(launch(s, args, (w, firsts), (kernels, &cut)))
}

fn launch(
    s: &CudaStream,
    args: &LinearSample<'_>,
    (w, firsts): (&CudaMatrix, u64),
    (kernels, cut): (&HalfFamily, &Cut),
) -> Result<()> {
    let sample = &args.sample;
    assert_eq!(sample.logits.dtype(), DType::F32, "logits");
    let params = Params {
        product: Product::new((sample.logits, args.x), w, (cut, cut.tile_columns() / 2))?,
        firsts,
        rows: sample.rows.addr(),
        positions: sample.positions.addr(),
        state: sample.state.addr(),
        state_rows: small(sample.state.rows()),
        keeps: u32::from(args.keeps),
    };
    linear_large::launch(s, kernels.of(args.x.dtype()), cut, &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_many_rows_are_taken_where_little_is_idle() {
        let taken =
            |m, shape| linear_large::cut(m, shape, 132, LOGITS).map(|cut| (cut.tile_columns(), cut.rows, cut.columns));
        // Of 0.5B, 8B and 7B models.
        assert_eq!(taken(256, (151_936, 896)), Some((192, 1, 792)));
        assert_eq!(taken(512, (151_936, 896)), Some((192, 2, 792)));
        assert_eq!(taken(256, (128_256, 4096)), Some((192, 1, 668)));
        // Few rows, and columns that end within eight.
        for (m, shape) in [(64, (151_936, 896)), (256, (32_003, 4096)), (256, (151_936, 448))] {
            assert_eq!(taken(m, shape), None, "{m} {shape:?}");
        }
    }
}
