//! In which order the reference adds up a batched product: cuBLASLt says which algorithm it would take.

use super::blas::{REFERENCE_REDUCTION, REFERENCE_WORKSPACE, TRANSPOSED, check, data_type, set};
use crate::base::{DType, Result};
use cudarc::cublaslt::sys::{self, cublasLtMatmulAlgoConfigAttributes_t as Config, cublasStatus_t};
use std::ffi::c_void;
use std::ptr::null_mut;

/// `out = w * x` for each of `count` products of column-major matrices that stand in an allocation of their own each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Batched {
    pub(super) dtype: DType,
    pub(super) count: usize,
    /// Rows and columns of `out`, and the numbers of a sum.
    pub(super) shape: (usize, usize, usize),
    /// `w` stands transposed.
    pub(super) transposed: bool,
    pub(super) w: Place,
    pub(super) x: Place,
    pub(super) out: Place,
}

/// From a column to the next and from a product to the next, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) column: usize,
    pub(super) product: usize,
}

/// How many numbers enter a sum at once, and how many make a tile: the first tile is what whole ones leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) step: usize,
    pub(super) tile: usize,
}

/// 16 numbers at once, the last ones as many as are left.
pub(super) const PLAIN: Order = Order { step: 16, tile: 1 };

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(product: &Batched, (rows, cols): (usize, usize), place: Place) -> Result<Self> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let mut layout = Self(null_mut());
        let dtype = data_type(product.dtype);
        // SAFETY: the layout is writable.
        let made = unsafe {
            sys::cublasLtMatrixLayoutCreate(&raw mut layout.0, dtype, rows as u64, cols as u64, place.column as i64)
        };
        check(made, "cublasLtMatrixLayoutCreate")?;
        let (count, stride) = (product.count as i32, place.product as i64);
        let count = ((&raw const count).cast::<c_void>(), size_of::<i32>());
        let stride = ((&raw const stride).cast::<c_void>(), size_of::<i64>());
        for (which, (value, size)) in [
            (Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count),
            (Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride),
        ] {
            // SAFETY: a live layout; the value is copied during the call.
            let status = unsafe { sys::cublasLtMatrixLayoutSetAttribute(layout.0, which, value, size) };
            check(status, "cublasLtMatrixLayoutSetAttribute")?;
        }
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; null is no layout.
        let _ = (!self.0.is_null()).then(|| unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) });
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `choice`, destroyed once; null is no description.
        let _ = (!self.0.is_null()).then(|| unsafe { sys::cublasLtMatmulDescDestroy(self.0) });
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `choice`, destroyed once; null is no preference.
        let _ = (!self.0.is_null()).then(|| unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) });
    }
}

/// The order of the algorithm that the library thinks best with the limits that PyTorch sets; [`PLAIN`] where it has none.
pub(super) fn order(handle: sys::cublasLtHandle_t, product: &Batched) -> Result<Order> {
    Ok(choice(handle, product)?.map_or(PLAIN, |algo| {
        order_of(
            number(&algo, Config::CUBLASLT_ALGO_CONFIG_TILE_ID),
            number(&algo, Config::CUBLASLT_ALGO_CONFIG_STAGES_ID),
        )
    }))
}

fn choice(handle: sys::cublasLtHandle_t, product: &Batched) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
    let (rows, cols, sum) = product.shape;
    let (mut description, mut preference) = (Description(null_mut()), Preference(null_mut()));
    let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
    // SAFETY: both are writable.
    let (described, preferred) = unsafe {
        let described = sys::cublasLtMatmulDescCreate(&raw mut description.0, compute, scale);
        (described, sys::cublasLtMatmulPreferenceCreate(&raw mut preference.0))
    };
    check(described, "cublasLtMatmulDescCreate")?;
    check(preferred, "cublasLtMatmulPreferenceCreate")?;
    if product.transposed {
        set(description.0, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
    }
    let w = Layout::new(product, if product.transposed { (sum, rows) } else { (rows, sum) }, product.w)?;
    let (x, out) = (Layout::new(product, (sum, cols), product.x)?, Layout::new(product, (rows, cols), product.out)?);
    let (workspace, reduction) = (REFERENCE_WORKSPACE, REFERENCE_REDUCTION);
    let workspace = ((&raw const workspace).cast::<c_void>(), size_of::<usize>());
    let reduction = ((&raw const reduction).cast::<c_void>(), size_of::<u32>());
    // SAFETY: plain numbers and enums whose zero is a value (success).
    let mut found: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
    let mut count = 0;
    for (which, (value, size)) in [
        (Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace),
        (Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction),
    ] {
        // SAFETY: a live preference; the value is copied during the call.
        let status = unsafe { sys::cublasLtMatmulPreferenceSetAttribute(preference.0, which, value, size) };
        check(status, "cublasLtMatmulPreferenceSetAttribute")?;
    }
    // SAFETY: live objects, and room for one result.
    let status = unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            description.0,
            w.0,
            x.0,
            out.0,
            out.0,
            preference.0,
            1,
            &raw mut found,
            &raw mut count,
        )
    };
    let runs = [status, found.state].iter().all(|s| *s == cublasStatus_t::CUBLAS_STATUS_SUCCESS);
    Ok((runs && count == 1).then_some(found.algo))
}

/// A number of an algorithm's configuration; 0, the library's "undefined", where it does not say.
fn number(algo: &sys::cublasLtMatmulAlgo_t, which: Config) -> u32 {
    let (mut value, mut written) = (0u32, 0);
    // SAFETY: a live algorithm; both numbers are writable, and both attributes are of this size.
    let status = unsafe {
        let value = (&raw mut value).cast::<c_void>();
        sys::cublasLtMatmulAlgoConfigGetAttribute(algo, which, value, size_of::<u32>(), &raw mut written)
    };
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS { value } else { 0 }
}

/// By `cublasLtMatmulTile_t` and `cublasLtMatmulStages_t`. Kernels with stages that the library names are loops over tiles of that
/// many numbers, by tensor cores that take 16 of them; those of stages of 8 have no tensor cores; those with a tile alone take 8
/// numbers of a tile of 32. Profiles of PyTorch 2.11 with cuBLASLt 13.1 on an H200 show that it runs these for products whose rows
/// are no whole vectors, and sums of numbers that cancel out show the orders. Not for products of a single row.
fn order_of(tile: u32, stages: u32) -> Order {
    let tile = match (tile, stages) {
        (_, 7..=12) => 32,
        (_, 13..=18) => 64,
        (_, 19..=24) => 128,
        (1.., 0) => return Order { step: 8, tile: 32 },
        (_, 31) => return Order { step: 1, tile: 1 },
        _ => return PLAIN,
    };
    Order { step: 16, tile }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::cublasLtMatmulStages_t as Stages;
    use sys::cublasLtMatmulTile_t as Tile;

    #[test]
    fn an_algorithm_says_its_order() {
        let of = |tile: Tile, stages: Stages| order_of(tile as u32, stages as u32);
        for (algorithm, (step, tile)) in [
            ((Tile::CUBLASLT_MATMUL_TILE_64x64, Stages::CUBLASLT_MATMUL_STAGES_UNDEFINED), (8, 32)),
            ((Tile::CUBLASLT_MATMUL_TILE_32x32, Stages::CUBLASLT_MATMUL_STAGES_32x1), (16, 32)),
            ((Tile::CUBLASLT_MATMUL_TILE_64x64, Stages::CUBLASLT_MATMUL_STAGES_32x6), (16, 32)),
            ((Tile::CUBLASLT_MATMUL_TILE_64x128, Stages::CUBLASLT_MATMUL_STAGES_64x3), (16, 64)),
            ((Tile::CUBLASLT_MATMUL_TILE_32x32, Stages::CUBLASLT_MATMUL_STAGES_128x1), (16, 128)),
            ((Tile::CUBLASLT_MATMUL_TILE_32x32, Stages::CUBLASLT_MATMUL_STAGES_128x6), (16, 128)),
            ((Tile::CUBLASLT_MATMUL_TILE_32x32, Stages::CUBLASLT_MATMUL_STAGES_8x3), (1, 1)),
        ] {
            assert_eq!(of(algorithm.0, algorithm.1), Order { step, tile }, "{algorithm:?}");
        }
        // A single row, and one that the table does not know.
        assert_eq!(order_of(0, 0), PLAIN);
        assert_eq!(of(Tile::CUBLASLT_MATMUL_TILE_128x128, Stages::CUBLASLT_MATMUL_STAGES_64xAUTO), PLAIN);
    }
}
