//! Typed windows into device memory, and weight matrices whose layout is the backend's own.

use crate::base::DType;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// Owner of one device allocation; freed on drop.
pub trait Allocation: Send + Sync + Debug {
    /// Device address of the first byte.
    fn addr(&self) -> u64;
    fn bytes(&self) -> usize;
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
