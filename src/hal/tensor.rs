//! Typed windows into device memory, and weight matrices whose layout is the backend's own.

use crate::base::rng::SplitMix64;
use crate::base::{DType, Error, Result};
use half::{bf16, f16};
use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// Owner of one device allocation; freed on drop.
pub trait Allocation: Send + Sync + Debug {
    /// Device address of the first byte.
    fn addr(&self) -> u64;
    fn bytes(&self) -> usize;
    /// Puts zeroed memory behind the first `bytes` bytes of address space that was only reserved; what was there stays.
    /// `NoMemory` when it does not fit.
    fn commit(&self, bytes: usize) -> Result<()> {
        let _ = bytes;
        Ok(())
    }
}

/// A checked row-major window of `rows x cols` elements into an allocation. Cloning shares, never copies.
#[derive(Debug, Clone)]
pub struct Tensor {
    mem: Arc<dyn Allocation>,
    offset_bytes: usize,
    rows: usize,
    cols: usize,
    dtype: DType,
}

impl Tensor {
    /// A window at `offset_bytes` of `mem`. Panics when it does not fit or is not aligned to its elements: shapes are
    /// computed by the engine, never taken from outside.
    pub fn new(mem: Arc<dyn Allocation>, offset_bytes: usize, rows: usize, cols: usize, dtype: DType) -> Self {
        let end = offset_bytes + rows * cols * dtype.size();
        assert!(end <= mem.bytes(), "tensor of {rows}x{cols} {dtype} ends at {end} of {} bytes", mem.bytes());
        assert_eq!(offset_bytes % dtype.size(), 0, "tensor offset {offset_bytes} is not aligned to {dtype}");
        Self { mem, offset_bytes, rows, cols, dtype }
    }

    /// Rows `from..from + n`.
    #[must_use]
    pub fn slice_rows(&self, from: usize, n: usize) -> Self {
        assert!(from + n <= self.rows, "rows {from}..{} of {}", from + n, self.rows);
        Self { offset_bytes: self.offset_bytes + from * self.row_bytes(), rows: n, ..self.clone() }
    }

    /// The same bytes under another shape of at most as many elements.
    #[must_use]
    pub fn reshape(&self, rows: usize, cols: usize) -> Self {
        assert!(rows * cols <= self.rows * self.cols, "{rows}x{cols} from {}x{}", self.rows, self.cols);
        Self { rows, cols, ..self.clone() }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn cols(&self) -> usize {
        self.cols
    }
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    pub fn row_bytes(&self) -> usize {
        self.cols * self.dtype.size()
    }
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }
    /// Device address of the first element.
    pub fn addr(&self) -> u64 {
        self.mem.addr() + self.offset_bytes as u64
    }
}

/// A matrix in host memory, row-major, little-endian, `rows x cols`.
#[derive(Debug, Clone, Copy)]
pub struct HostMatrix<'a> {
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
    /// `rows * cols * dtype.size()` bytes, of any alignment.
    pub data: &'a [u8],
}

impl HostMatrix<'_> {
    /// Rows, columns and dtype of parts below each other, for devices that keep a matrix as it is. `Invalid` where they do not fit.
    pub(super) fn stacked(parts: &[HostMatrix<'_>]) -> Result<(usize, usize, DType)> {
        let Some(first) = parts.first() else { return Err(Error::invalid("a matrix has no parts")) };
        let (cols, dtype) = (first.cols, first.dtype);
        let rows = parts.iter().map(|p| p.rows).sum::<usize>();
        let fits =
            |p: &HostMatrix<'_>| p.cols == cols && p.dtype == dtype && p.data.len() == p.rows * cols * dtype.size();
        if rows == 0 || cols == 0 || !parts.iter().all(fits) {
            return Err(Error::invalid(format!("parts of a {rows}x{cols} {dtype} matrix do not fit each other")));
        }
        if !matches!(dtype, DType::F32 | DType::F16 | DType::Bf16) {
            return Err(Error::invalid(format!("a weight matrix of {dtype}; expected f32, f16 or bf16")));
        }
        Ok((rows, cols, dtype))
    }
}

/// Rows of a matrix of random numbers, uniform in `-width / 2..width / 2`: element `i` in row-major order is
/// `(unit(i) - 1/2) * width`, where `unit(i)` is the i-th number of [`SplitMix64`] from `seed` on.
#[derive(Debug, Clone, Copy)]
pub struct RandomRows {
    pub rows: usize,
    pub seed: u64,
    pub width: f32,
}

impl RandomRows {
    /// `rows` of them from row `from` of `cols` columns on.
    #[must_use]
    pub fn slice(&self, from: usize, rows: usize, cols: usize) -> Self {
        let before = (from * cols) as u64;
        Self { rows, seed: self.seed.wrapping_add(SplitMix64::STEP.wrapping_mul(before)), ..*self }
    }

    /// The columns `take` of these rows, which have `cols` of them, one below the other.
    pub fn columns(&self, take: &Range<usize>, cols: usize) -> Vec<Self> {
        if take.len() == cols {
            return vec![*self];
        }
        let row = |row: usize| {
            let behind = (row * cols + take.start) as u64;
            Self { rows: 1, seed: self.seed.wrapping_add(SplitMix64::STEP.wrapping_mul(behind)), ..*self }
        };
        (0..self.rows).map(row).collect()
    }

    /// The numbers as a device keeps them in `dtype`, little-endian.
    pub fn bytes(&self, cols: usize, dtype: DType) -> Result<Vec<u8>> {
        let elements = self.rows * cols;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(elements * dtype.size())
            .map_err(|_| Error::no_memory(format!("cannot allocate {elements} random numbers")))?;
        let mut rng = SplitMix64(self.seed);
        for _ in 0..elements {
            let x = (rng.unit() - 0.5) * self.width;
            match dtype {
                DType::Bf16 => bytes.extend_from_slice(&bf16::from_f32(x).to_le_bytes()),
                DType::F16 => bytes.extend_from_slice(&f16::from_f32(x).to_le_bytes()),
                _ => bytes.extend_from_slice(&x.to_le_bytes()),
            }
        }
        Ok(bytes)
    }
}

/// A weight matrix on a device, in the backend's layout.
pub trait MatrixStorage: Send + Sync + Debug {
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    fn dtype(&self) -> DType;
    /// Device bytes it takes, padding included.
    fn bytes(&self) -> usize;
    fn as_any(&self) -> &dyn Any;
}

/// Shared handle of a weight matrix.
pub type Matrix = Arc<dyn MatrixStorage>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_random_rows_has_the_same_numbers() {
        let all = RandomRows { rows: 9, seed: 77, width: 2.0 };
        let (whole, size) = (all.bytes(5, DType::Bf16).unwrap(), DType::Bf16.size());
        let part = all.slice(4, 3, 5).bytes(5, DType::Bf16).unwrap();
        assert_eq!(part, whole[4 * 5 * size..7 * 5 * size]);
    }

    #[test]
    fn random_columns_are_those_of_the_whole() {
        let all = RandomRows { rows: 4, seed: 5, width: 2.0 };
        let (whole, size) = (all.bytes(5, DType::Bf16).unwrap(), DType::Bf16.size());
        let parts = all.columns(&(2..4), 5);
        let found: Vec<u8> = parts.iter().flat_map(|p| p.bytes(2, DType::Bf16).unwrap()).collect();
        let expected: Vec<u8> = whole.chunks(5 * size).flat_map(|row| row[2 * size..4 * size].to_vec()).collect();
        assert_eq!(found, expected);
        assert_eq!(all.columns(&(0..5), 5)[0].bytes(5, DType::Bf16).unwrap(), whole);
    }
}
