//! Matrices as the copy hardware of compute capability 9.0 sees them.

use crate::base::{DType, Result};
use crate::hal::cuda::driver::check;
use cudarc::driver::sys;
use std::ffi::c_void;

/// A `CUtensorMap`, by value in the parameters of a kernel.
pub(super) type TensorMap = [u64; 16];

/// Columns of a box: its rows are 128 bytes, which copies swizzle.
const COLS: u32 = 64;
pub(super) const BOX_COLS: usize = COLS as usize;
/// Bytes of a row of a box.
pub(super) const BOX_ROW: usize = 2 * BOX_COLS;

/// A matrix of `rows` times `cols` numbers of 16 bits, in tiles of `boxes` times 64 columns and `tile_rows` rows (at most 256 each), which
/// one copy brings: box by box, each by rows. What a tile has beyond the matrix becomes zeros. `cols` is whole boxes.
pub(super) fn tiles(
    addr: u64,
    dtype: DType,
    (rows, cols): (usize, usize),
    (tile_rows, boxes): (u32, u32),
) -> Result<TensorMap> {
    assert!(cols.is_multiple_of(BOX_COLS), "tiles of {rows} by {cols}");
    let (row_bytes, box_bytes) = ((cols * dtype.size()) as u64, (BOX_COLS * dtype.size()) as u64);
    let sizes = [BOX_COLS as u64, rows as u64, (cols / BOX_COLS) as u64];
    encode(addr, dtype, (&sizes, &[row_bytes, box_bytes]), &[COLS, tile_rows, boxes])
}

/// A matrix of `rows` times `cols` numbers of 16 bits, in boxes of 64 columns and `box_rows` (at most 256) rows. What a box has
/// beyond the matrix becomes zeros. Rows are whole multiples of 16 bytes, and the matrix stands at one.
pub(super) fn new(addr: u64, dtype: DType, (rows, cols): (usize, usize), box_rows: u32) -> Result<TensorMap> {
    encode(addr, dtype, (&[cols as u64, rows as u64], &[(cols * dtype.size()) as u64]), &[COLS, box_rows])
}

/// Rows of `cols` numbers of 16 bits, 64 or 128, in boxes of `box_rows`, which one copy brings as eights of rows, each by 64 columns: both
/// numbers of rows are whole eights.
pub(super) fn eights(addr: u64, dtype: DType, (rows, cols): (usize, usize), box_rows: u32) -> Result<TensorMap> {
    assert!(rows.is_multiple_of(8) && box_rows.is_multiple_of(8), "boxes of {box_rows} of {rows} rows");
    let (row_bytes, box_bytes) = ((cols * dtype.size()) as u64, (BOX_COLS * dtype.size()) as u64);
    let boxes = cols / BOX_COLS;
    let sizes = [BOX_COLS as u64, 8, boxes as u64, (rows / 8) as u64];
    encode(addr, dtype, (&sizes, &[row_bytes, box_bytes, 8 * row_bytes]), &[COLS, 8, boxes as u32, box_rows / 8])
}

/// Heads of tokens, `(tokens, heads, columns)` numbers of 16 bits, in boxes of `(tokens, heads)` and 64 columns. What a box has beyond the
/// array becomes zeros.
pub(super) fn heads(
    addr: u64,
    dtype: DType,
    (tokens, heads, cols): (usize, usize, usize),
    (box_tokens, box_heads): (u32, u32),
) -> Result<TensorMap> {
    let head_bytes = (cols * dtype.size()) as u64;
    let sizes = [cols as u64, heads as u64, tokens as u64];
    encode(addr, dtype, (&sizes, &[head_bytes, heads as u64 * head_bytes]), &[COLS, box_heads, box_tokens])
}

/// Of an array of as many dimensions as `sizes` has, whose strides in bytes start with that of the second.
fn encode(addr: u64, dtype: DType, (sizes, strides): (&[u64], &[u64]), sides: &[u32]) -> Result<TensorMap> {
    let kind = match dtype {
        DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let steps = [1u32; 4];
    assert!(sizes.len() <= steps.len() && (sizes.len(), sizes.len()) == (strides.len() + 1, sides.len()));
    // SAFETY: plain bytes, whose zero is a value; replaced below.
    let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
    // SAFETY: `map` is writable and every array has an element for each dimension (but one for strides); the address is only
    // described, what it points to outlives the launch.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            kind,
            sizes.len() as u32,
            addr as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            sides.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check(result, "describing a matrix to the copy hardware")?;
    Ok(map.opaque)
}
