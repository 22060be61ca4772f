//! Weight matrices in panels of 32 output rows: `[rows / 32][cols][32]` elements in their own dtype, rows padded with
//! zeros. A panel is one sequential stream for a linear kernel.
//!
//! In a bfloat16 panel row j of the first half stands beside row j of the second half (0, 16, 1, 17, ...): a 32-bit shift
//! then widens the first half and a mask the second.

use super::mem::HostMemory;
use super::pool::Pool;
use crate::base::{DType, Error, Result};
use crate::hal::{HostMatrix, MatrixStorage};
use half::f16;
use std::any::Any;

/// Output rows of a panel.
pub(super) const PANEL: usize = 32;

/// A packed weight matrix.
#[derive(Debug)]
pub(super) struct PackedMatrix {
    memory: HostMemory,
    rows: usize,
    cols: usize,
    dtype: DType,
}

impl PackedMatrix {
    pub(super) fn new(parts: &[HostMatrix<'_>], pool: &Pool) -> Result<Self> {
        let first =
            parts.first().ok_or_else(|| Error::invalid("a weight matrix has no parts; expected at least one"))?;
        let (cols, dtype) = (first.cols, first.dtype);
        check(parts)?;
        let rows = parts.iter().map(|p| p.rows).sum::<usize>();
        let panel_bytes = cols * PANEL * dtype.size();
        let panels = rows.div_ceil(PANEL);
        let memory = HostMemory::new(panels * panel_bytes)?;
        let dst = Shared(memory.ptr());
        pool.split(panels, 16, &|_, range| {
            for panel in range {
                // SAFETY: panel `panel` lies in the allocation and each is written by one thread.
                let out = unsafe { std::slice::from_raw_parts_mut(dst.at(panel * panel_bytes), panel_bytes) };
                match dtype.size() {
                    4 => pack_panel::<4>(out, parts, panel * PANEL, dtype),
                    _ => pack_panel::<2>(out, parts, panel * PANEL, dtype),
                }
            }
        })?;
        Ok(Self { memory, rows, cols, dtype })
    }

    /// First element of panel 0.
    pub(super) fn ptr(&self) -> *const u8 {
        self.memory.ptr()
    }

    /// Widens row `row` into `out`.
    pub(super) fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}x{}", self.rows, self.cols);
        let first = row / PANEL * PANEL * self.cols + place(row % PANEL, self.dtype);
        for (k, o) in out.iter_mut().enumerate() {
            let i = first + k * PANEL;
            // SAFETY: `i` is an element of the row's panel, which the allocation holds; packed data is never written again.
            *o = unsafe {
                match self.dtype {
                    DType::F32 => *self.ptr().cast::<f32>().add(i),
                    DType::F16 => f16::from_bits(*self.ptr().cast::<u16>().add(i)).to_f32(),
                    _ => f32::from_bits(u32::from(*self.ptr().cast::<u16>().add(i)) << 16),
                }
            };
        }
    }
}

#[derive(Clone, Copy)]
struct Shared(*mut u8);

// SAFETY: the address of an allocation that outlives the pool's job; threads write disjoint panels.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(&self, offset: usize) -> *mut u8 {
        self.0.wrapping_add(offset)
    }
}

fn check(parts: &[HostMatrix<'_>]) -> Result<()> {
    for (i, p) in parts.iter().enumerate() {
        if !matches!(p.dtype, DType::F32 | DType::F16 | DType::Bf16) {
            return Err(Error::unsupported(format!(
                "a weight matrix is {}; the CPU backend takes float32, float16 and bfloat16",
                p.dtype
            )));
        }
        if p.cols != parts[0].cols || p.dtype != parts[0].dtype {
            return Err(Error::invalid(format!(
                "part {i} of a fused weight matrix is {} columns of {}; part 0 is {} of {}",
                p.cols, p.dtype, parts[0].cols, parts[0].dtype
            )));
        }
        let expected = p.rows.checked_mul(p.cols).and_then(|n| n.checked_mul(p.dtype.size()));
        if p.rows == 0 || p.cols == 0 || expected != Some(p.data.len()) {
            return Err(Error::invalid(format!(
                "part {i} of a weight matrix is {}x{} of {} but has {} bytes",
                p.rows,
                p.cols,
                p.dtype,
                p.data.len()
            )));
        }
    }
    Ok(())
}

/// Where row `r` of a panel stands among its 32 elements per column.
fn place(r: usize, dtype: DType) -> usize {
    match dtype {
        DType::Bf16 if r < 16 => 2 * r,
        DType::Bf16 => 2 * (r - 16) + 1,
        _ => r,
    }
}

fn pack_panel<const SIZE: usize>(out: &mut [u8], parts: &[HostMatrix<'_>], first_row: usize, dtype: DType) {
    for r in 0..PANEL {
        let Some(src) = source_row(parts, first_row + r) else { return };
        let at = place(r, dtype) * SIZE;
        for (dst, src) in out.chunks_exact_mut(PANEL * SIZE).zip(src.chunks_exact(SIZE)) {
            dst[at..at + SIZE].copy_from_slice(src);
        }
    }
}

/// The bytes of a row of the stacked parts; `None` in the padding.
fn source_row<'a>(parts: &[HostMatrix<'a>], mut row: usize) -> Option<&'a [u8]> {
    for part in parts {
        if row < part.rows {
            let bytes = part.cols * part.dtype.size();
            return Some(&part.data[row * bytes..(row + 1) * bytes]);
        }
        row -= part.rows;
    }
    None
}

impl MatrixStorage for PackedMatrix {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn bytes(&self) -> usize {
        self.rows.next_multiple_of(PANEL) * self.cols * self.dtype.size()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
