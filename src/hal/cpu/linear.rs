//! `out = x * w^T` over packed panels. Every output element is one chain of multiply-adds over ascending k, whatever the
//! number of rows, so a row's bits do not depend on its company (DESIGN promise 5).

use super::mem::{Rows, Scratch};
use super::pack::{PANEL, PackedMatrix};
use super::pool::Pool;
use super::simd::{Isa, Kernel, Simd, dispatch};
use crate::base::{DType, Result};
use crate::hal::MatrixStorage;

/// Bytes of packed activations that stay in the second-level cache beside a weight panel.
const ROWS_BYTES: usize = 384 << 10;
/// Panel columns times rows below which a chunk of work is not worth another thread.
const SERIAL: usize = 2048;
/// Bytes of weights asked for ahead of their use, by all streams of a tile together.
const AHEAD_BYTES: usize = 8192;

/// Rows of `x` in blocks of `height`, each block as `[K][height]`; the last one is padded with zeros.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    height: usize,
    count: usize,
}

impl Blocks {
    fn of(rows: usize, isa: Isa) -> Self {
        let count = rows.div_ceil(isa.max_rows());
        let even = rows.div_ceil(count);
        let height = if even == 7 || even == 9 || even == 11 { even + 1 } else { even };
        Self { height, count: rows.div_ceil(height) }
    }
}

/// Multiplies; `scratch` is grown to what the packed activations need.
pub(super) fn linear(
    pool: &Pool,
    isa: Isa,
    scratch: &mut Scratch,
    (out, x): (Rows<f32>, Rows<f32>),
    (w, bias): (&PackedMatrix, Option<Rows<f32>>),
) -> Result<()> {
    let (m, k) = (x.rows, x.cols);
    if m == 0 {
        return Ok(());
    }
    let blocks = Blocks::of(m, isa);
    let packed = if m == 1 { x.ptr() } else { pack_rows(pool, scratch, x, blocks)? };
    let panels = w.rows().div_ceil(PANEL);
    let work = Work { x: packed, blocks, k, w: w.ptr(), out, panels: (0, 0) };
    let grain = (SERIAL / (k * m)).max(4);
    pool.split(panels, grain, &|_, panels| {
        let work = work.of_panels(panels.start, panels.end);
        // SAFETY: `x` holds the blocks, `w` the panels and `out` is `m x n`; each panel's outputs belong to one chunk.
        unsafe {
            match w.dtype() {
                DType::F32 => dispatch(isa, Product::<F32>(work, F32)),
                DType::F16 => dispatch(isa, Product::<F16>(work, F16)),
                _ => dispatch(isa, Product::<Bf16>(work, Bf16)),
            }
        }
        if let Some(bias) = bias {
            // SAFETY: `bias` is one row of `n` that nobody writes; the panels' outputs are this thread's.
            unsafe { add_bias(&work, bias.row(0)) };
        }
    })
}

fn pack_rows(pool: &Pool, scratch: &mut Scratch, x: Rows<f32>, blocks: Blocks) -> Result<*mut f32> {
    let k = x.cols;
    let packed = scratch.grow(blocks.count * blocks.height * k)?;
    let dst = Rows::<f32>::over(packed, blocks.count, blocks.height * k);
    pool.split(blocks.count, 2, &|_, range| {
        for b in range {
            // SAFETY: one thread per block.
            let dst = unsafe { dst.row_mut(b) };
            let first = b * blocks.height;
            for r in 0..blocks.height {
                let lane = dst[r..].iter_mut().step_by(blocks.height);
                if first + r < x.rows {
                    // SAFETY: nobody writes `x` during the op.
                    lane.zip(unsafe { x.row(first + r) }).for_each(|(d, s)| *d = *s);
                } else {
                    lane.for_each(|d| *d = 0.0);
                }
            }
        }
    })?;
    Ok(packed)
}

/// Adds the bias to the finished sums of some panels.
/// # Safety
/// The panels' columns of all rows belong to this thread; `bias` has as many elements as a row.
unsafe fn add_bias(work: &Work, bias: &[f32]) {
    let (from, to) = (work.panels.0 * PANEL, (work.panels.1 * PANEL).min(work.out.cols));
    for row in 0..work.out.rows {
        // SAFETY: columns `from..to` of a row of `out`, by contract.
        let out = unsafe { std::slice::from_raw_parts_mut(work.out.ptr().add(row * work.out.cols + from), to - from) };
        out.iter_mut().zip(&bias[from..to]).for_each(|(o, b)| *o += *b);
    }
}

/// How a dtype's panels are read.
trait Weight: Copy {
    type E: Copy;
    /// Elements between the parts that one pair of vectors covers.
    fn part<S: Simd>() -> usize;
    /// Rows `[LANES * part..]` and `[16 + LANES * part..]` of one column of a panel.
    /// # Safety
    /// Inside `enter`; `p` is the start of a part in a panel's column.
    unsafe fn pair<S: Simd>(p: *const Self::E) -> [S::F; 2];
}

#[derive(Clone, Copy)]
struct F32;
#[derive(Clone, Copy)]
struct F16;
#[derive(Clone, Copy)]
struct Bf16;

impl Weight for F32 {
    type E = f32;
    #[inline(always)]
    fn part<S: Simd>() -> usize {
        S::LANES
    }
    #[inline(always)]
    unsafe fn pair<S: Simd>(p: *const f32) -> [S::F; 2] {
        // SAFETY: the halves of a column are 16 elements apart.
        unsafe { [S::load(p), S::load(p.add(16))] }
    }
}

impl Weight for F16 {
    type E = u16;
    #[inline(always)]
    fn part<S: Simd>() -> usize {
        S::LANES
    }
    #[inline(always)]
    unsafe fn pair<S: Simd>(p: *const u16) -> [S::F; 2] {
        // SAFETY: the halves of a column are 16 elements apart.
        unsafe { [S::f16(p), S::f16(p.add(16))] }
    }
}

impl Weight for Bf16 {
    type E = u16;
    #[inline(always)]
    fn part<S: Simd>() -> usize {
        2 * S::LANES
    }
    #[inline(always)]
    unsafe fn pair<S: Simd>(p: *const u16) -> [S::F; 2] {
        // SAFETY: `2 * LANES` elements of the column, the halves interleaved.
        unsafe { S::bf16_pair(p) }
    }
}

#[derive(Clone, Copy)]
struct Work {
    x: *const f32,
    blocks: Blocks,
    k: usize,
    w: *const u8,
    out: Rows<f32>,
    /// First panel and the one after the last.
    panels: (usize, usize),
}

// SAFETY: pointers to operands that outlive the op; threads write disjoint panels.
unsafe impl Sync for Work {}

impl Work {
    fn of_panels(&self, from: usize, to: usize) -> Self {
        Self { panels: (from, to), ..*self }
    }
}

struct Product<W: Weight>(Work, W);

impl<W: Weight> Kernel for Product<W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Units of one pair of vectors: more of them at once where few rows would leave the multipliers waiting.
        // SAFETY: the conditions of `linear`'s call.
        unsafe {
            match (self.0.blocks.height, S::WIDE) {
                (1, _) => sweep::<S, W, 1, 4>(self.0),
                (2, true) => sweep::<S, W, 2, 4>(self.0),
                (2, false) => sweep::<S, W, 2, 2>(self.0),
                (3, true) => sweep::<S, W, 3, 4>(self.0),
                (3, false) => sweep::<S, W, 3, 2>(self.0),
                (4, true) => sweep::<S, W, 4, 2>(self.0),
                (4, false) => sweep::<S, W, 4, 1>(self.0),
                (5, true) => sweep::<S, W, 5, 2>(self.0),
                (5, false) => sweep::<S, W, 5, 1>(self.0),
                (6, true) => sweep::<S, W, 6, 2>(self.0),
                (6, false) => sweep::<S, W, 6, 1>(self.0),
                (8, true) => sweep::<S, W, 8, 1>(self.0),
                (10, true) => sweep::<S, W, 10, 1>(self.0),
                (12, true) => sweep::<S, W, 12, 1>(self.0),
                (height, _) => unreachable!("row blocks of {height}"),
            }
        }
    }
}

/// All row blocks against this thread's panels: as many rows as stay in cache, then all panels, then the next rows.
#[inline(always)]
unsafe fn sweep<S: Simd, W: Weight, const MR: usize, const NU: usize>(work: Work) {
    let units_per_panel = 16 / S::LANES;
    let (from, to) = (work.panels.0 * units_per_panel, work.panels.1 * units_per_panel);
    let in_cache = (ROWS_BYTES / (work.k * MR * 4)).max(1);
    let mut block = 0;
    while block < work.blocks.count {
        let end = (block + in_cache).min(work.blocks.count);
        let mut unit = from;
        while unit + NU <= to {
            for b in block..end {
                // SAFETY: units and blocks are in range.
                unsafe { tile::<S, W, MR, NU>(&work, b, unit) };
            }
            unit += NU;
        }
        while unit < to {
            for b in block..end {
                // SAFETY: as above.
                unsafe { tile::<S, W, MR, 1>(&work, b, unit) };
            }
            unit += 1;
        }
        block = end;
    }
}

/// `MR` rows by `NU` units, over all of k.
#[inline(always)]
unsafe fn tile<S: Simd, W: Weight, const MR: usize, const NU: usize>(work: &Work, block: usize, unit: usize) {
    let units_per_panel = 16 / S::LANES;
    // SAFETY: the block and its `k * MR` values exist; units lie in panels of `k * 32` elements; a prefetch address may
    // be anything.
    unsafe {
        let mut x = work.x.add(block * work.k * MR);
        let mut w = [work.w.cast::<W::E>(); NU];
        for (u, p) in w.iter_mut().enumerate() {
            let (panel, part) = ((unit + u) / units_per_panel, (unit + u) % units_per_panel);
            *p = p.add(panel * work.k * PANEL + part * W::part::<S>());
        }
        let zero = S::splat(0.0);
        let mut acc = [[[zero; 2]; NU]; MR];
        // Near its end a stream goes on in the next tile's panel: `NU` further, not the neighbour that runs beside it.
        let ahead = AHEAD_BYTES / NU;
        let row_bytes = PANEL * size_of::<W::E>();
        let near = work.k.saturating_sub(ahead / row_bytes);
        let jump = if NU * S::LANES > 16 { (NU * S::LANES / 16 - 1) * work.k * row_bytes } else { 0 };
        for (steps, ahead) in [(near, ahead), (work.k - near, ahead + jump)] {
            for _ in 0..steps {
                let mut pairs = [[zero; 2]; NU];
                for (pair, w) in pairs.iter_mut().zip(&mut w) {
                    *pair = W::pair::<S>(*w);
                    S::prefetch(w.cast::<u8>().wrapping_add(ahead));
                    *w = w.wrapping_add(PANEL);
                }
                for (m, row) in acc.iter_mut().enumerate() {
                    let xm = S::splat(*x.add(m));
                    for (a, w) in row.iter_mut().zip(pairs) {
                        a[0] = S::fma(xm, w[0], a[0]);
                        a[1] = S::fma(xm, w[1], a[1]);
                    }
                }
                x = x.wrapping_add(MR);
            }
        }
        let first = block * MR;
        for (m, row) in acc.into_iter().enumerate() {
            if first + m < work.out.rows {
                for (u, values) in row.into_iter().enumerate() {
                    store::<S>(work.out, first + m, unit + u, values);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn store<S: Simd>(out: Rows<f32>, row: usize, unit: usize, values: [S::F; 2]) {
    let units_per_panel = 16 / S::LANES;
    let (panel, part) = (unit / units_per_panel, unit % units_per_panel);
    for (half, value) in values.into_iter().enumerate() {
        let col = panel * PANEL + half * 16 + part * S::LANES;
        // SAFETY: a full vector fits before the row's end, or only the elements that do are written.
        unsafe {
            let dst = out.ptr().add(row * out.cols);
            if col + S::LANES <= out.cols {
                S::store(dst.add(col), value);
            } else if col < out.cols {
                let mut spill = [0.0; 16];
                S::store(spill.as_mut_ptr(), value);
                std::ptr::copy_nonoverlapping(spill.as_ptr(), dst.add(col), out.cols - col);
            }
        }
    }
}
