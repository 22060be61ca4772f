//! `embed`, `act_mul`, `soft_cap`, `gather_rows`, `copy_rows` and `mask_logits`.

use super::{FLOATS, Family, HalfFamily, VECTOR, assert_ints, index_of, shape, short_name, small, whole_vectors};
use crate::base::{DType, Result};
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::launch::Kernel;
use crate::hal::cuda::memory::CudaMatrix;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::{Activation, SAMPLER_WORDS, SamplerWord};
use crate::hal::{Matrix, MatrixStorage, Tensor};

/// Threads of a block, as in the kernels.
const BLOCK: u32 = 128;
/// Columns of a block.
const COLUMNS: usize = VECTOR * BLOCK as usize;

#[derive(Debug)]
pub(super) struct Kernels {
    /// By the dtype of the table.
    embed: [Family; 3],
    silu: Family,
    gelu: Family,
    soft_cap: Kernel,
    silu_aligned: HalfFamily,
    gelu_aligned: HalfFamily,
    soft_cap_aligned: HalfFamily,
    round: HalfFamily,
    gather_16: Kernel,
    gather_2: Kernel,
    copy_16: Kernel,
    copy_4: Kernel,
    mask: Kernel,
}

impl Kernels {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        let family = |name: &str| Family::load(modules, "rowwise", name);
        let half = |name: &str| HalfFamily::load(modules, "rowwise", name);
        let kernel = |name| modules.kernel("rowwise", name);
        let [a, b, c] = FLOATS.map(|table| family(&format!("yn_embed_{}", short_name(table))));
        Ok(Self {
            embed: [a?, b?, c?],
            silu: family("yn_silu_mul")?,
            gelu: family("yn_gelu_mul")?,
            soft_cap: kernel("yn_soft_cap")?,
            silu_aligned: half("yn_silu_mul_aligned")?,
            gelu_aligned: half("yn_gelu_mul_aligned")?,
            soft_cap_aligned: half("yn_soft_cap_aligned")?,
            round: half("yn_round")?,
            gather_16: kernel("yn_gather_rows_16")?,
            gather_2: kernel("yn_gather_rows_2")?,
            copy_16: kernel("yn_copy_rows_16")?,
            copy_4: kernel("yn_copy_rows_4")?,
            mask: kernel("yn_mask_logits")?,
        })
    }
}

/// Mirrors kernels/rowwise.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct EmbedParams {
    out: u64,
    table: u64,
    ids: u64,
    state: u64,
    fault: u64,
    cols: u32,
    table_rows: u32,
    state_rows: u32,
    state_cols: u32,
    last_token: u32,
    scale: f32,
    vectors: u32,
    unused: u32,
}
const _: () = assert!(size_of::<EmbedParams>() == 72);

pub(in crate::hal::cuda) fn embed(
    s: &CudaStream,
    out: &Tensor,
    table: &Matrix,
    ids: &Tensor,
    state: &Tensor,
    scale: f32,
) -> Result<()> {
    let matrix = CudaMatrix::of(table);
    assert_eq!(shape(out), (ids.rows(), matrix.cols()), "output of embed");
    assert_eq!((ids.cols(), state.cols()), (1, SAMPLER_WORDS), "columns of ids and sampler state");
    assert_ints("ids and sampler state", &[ids, state]);
    if ids.rows() == 0 {
        return Ok(());
    }
    let params = EmbedParams {
        out: out.addr(),
        table: matrix.addr(),
        ids: ids.addr(),
        state: state.addr(),
        fault: s.fault_word(),
        cols: small(out.cols()),
        table_rows: small(matrix.rows()),
        state_rows: small(state.rows()),
        state_cols: small(state.cols()),
        last_token: SamplerWord::LastToken as u32,
        scale: if s.rounds_as_reference(out.dtype()) { out.dtype().round(scale) } else { scale },
        vectors: u32::from(whole_vectors(out.cols(), &[out]) && matrix.addr().is_multiple_of(16)),
        unused: 0,
    };
    let kernel = s.kernels().rowwise.embed[index_of(matrix.dtype())].of(out.dtype());
    s.launch(kernel, [small(out.rows()), small(out.cols().div_ceil(COLUMNS)), 1], BLOCK, 0, &params)
}

/// Mirrors kernels/rowwise.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ActMulParams {
    out: u64,
    gate_up: u64,
    cols: u32,
    vectors: u32,
}
const _: () = assert!(size_of::<ActMulParams>() == 24);

pub(in crate::hal::cuda) fn act_mul(
    s: &CudaStream,
    out: &Tensor,
    gate_up: &Tensor,
    activation: Activation,
) -> Result<()> {
    assert_eq!(shape(gate_up), (out.rows(), 2 * out.cols()), "input of act_mul");
    assert_eq!(gate_up.dtype(), out.dtype(), "dtypes of act_mul");
    if out.rows() == 0 {
        return Ok(());
    }
    let params = ActMulParams {
        out: out.addr(),
        gate_up: gate_up.addr(),
        cols: small(out.cols()),
        vectors: u32::from(whole_vectors(out.cols(), &[out, gate_up])),
    };
    let kernels = &s.kernels().rowwise;
    let kernel = match (activation, s.rounds_as_reference(out.dtype())) {
        (Activation::Silu, false) => kernels.silu.of(out.dtype()),
        (Activation::Silu, true) => kernels.silu_aligned.of(out.dtype()),
        (Activation::GeluTanh, false) => kernels.gelu.of(out.dtype()),
        (Activation::GeluTanh, true) => kernels.gelu_aligned.of(out.dtype()),
    };
    let grid = [small(out.rows()), small(out.cols().div_ceil(COLUMNS)), 1];
    s.launch(kernel, grid, BLOCK, 0, &params)
}

/// Mirrors kernels/rowwise.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SoftCapParams {
    x: u64,
    n: u64,
    cap: f32,
    unused: u32,
}
const _: () = assert!(size_of::<SoftCapParams>() == 24);

pub(in crate::hal::cuda) fn soft_cap(s: &CudaStream, x: &Tensor, (cap, act): (f32, DType)) -> Result<()> {
    let kernels = &s.kernels().rowwise;
    let kernel = if s.rounds_as_reference(act) { kernels.soft_cap_aligned.of(act) } else { &kernels.soft_cap };
    in_place(s, kernel, x, cap)
}

/// Each number of the F32 `x` as `act`, F16 or BF16, keeps it.
pub(in crate::hal::cuda) fn round(s: &CudaStream, x: &Tensor, act: DType) -> Result<()> {
    in_place(s, s.kernels().rowwise.round.of(act), x, 0.0)
}

fn in_place(s: &CudaStream, kernel: &Kernel, x: &Tensor, cap: f32) -> Result<()> {
    assert_eq!(x.dtype(), DType::F32, "dtype of numbers changed in place");
    let n = x.rows() * x.cols();
    if n == 0 {
        return Ok(());
    }
    let params = SoftCapParams { x: x.addr(), n: n as u64, cap, unused: 0 };
    s.launch(kernel, [small(n.div_ceil(COLUMNS)), 1, 1], BLOCK, 0, &params)
}

/// Mirrors kernels/rowwise.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GatherParams {
    out: u64,
    x: u64,
    index: u64,
    fault: u64,
    row_units: u32,
    rows: u32,
}
const _: () = assert!(size_of::<GatherParams>() == 40);

pub(in crate::hal::cuda) fn gather_rows(s: &CudaStream, out: &Tensor, x: &Tensor, index: &Tensor) -> Result<()> {
    assert_eq!((shape(out), out.dtype()), ((index.rows(), x.cols()), x.dtype()), "output of gather_rows");
    assert_ints("the index of gather_rows", &[index]);
    if out.rows() == 0 {
        return Ok(());
    }
    let wide = x.row_bytes().is_multiple_of(16) && [out, x].iter().all(|t| t.addr().is_multiple_of(16));
    let units = x.row_bytes() / if wide { 16 } else { 2 };
    let params = GatherParams {
        out: out.addr(),
        x: x.addr(),
        index: index.addr(),
        fault: s.fault_word(),
        row_units: small(units),
        rows: small(x.rows()),
    };
    let kernels = &s.kernels().rowwise;
    let kernel = if wide { &kernels.gather_16 } else { &kernels.gather_2 };
    let columns = small(units).div_ceil(BLOCK).min(16);
    s.launch(kernel, [small(out.rows()), columns, 1], BLOCK, 0, &params)
}

/// Mirrors kernels/rowwise.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct CopyRowsParams {
    out: u64,
    to: u64,
    x: u64,
    from: u64,
    fault: u64,
    row_units: u32,
    out_rows: u32,
    x_rows: u32,
    unused: u32,
}
const _: () = assert!(size_of::<CopyRowsParams>() == 56);

pub(in crate::hal::cuda) fn copy_rows(
    s: &CudaStream,
    (out, to): (&Tensor, &Tensor),
    (x, from): (&Tensor, &Tensor),
) -> Result<()> {
    assert_eq!((out.cols(), out.dtype()), (x.cols(), x.dtype()), "rows of copy_rows");
    assert!(matches!(x.dtype(), DType::F32 | DType::I32), "dtype of copy_rows");
    assert_eq!((to.cols(), shape(from)), (1, (to.rows(), 1)), "indices of copy_rows");
    assert_ints("the indices of copy_rows", &[to, from]);
    if to.rows() == 0 {
        return Ok(());
    }
    let wide = x.row_bytes().is_multiple_of(16) && [out, x].iter().all(|t| t.addr().is_multiple_of(16));
    let units = x.row_bytes() / if wide { 16 } else { 4 };
    let params = CopyRowsParams {
        out: out.addr(),
        to: to.addr(),
        x: x.addr(),
        from: from.addr(),
        fault: s.fault_word(),
        row_units: small(units),
        out_rows: small(out.rows()),
        x_rows: small(x.rows()),
        unused: 0,
    };
    let kernels = &s.kernels().rowwise;
    let kernel = if wide { &kernels.copy_16 } else { &kernels.copy_4 };
    let columns = small(units).div_ceil(BLOCK).clamp(1, 64);
    s.launch(kernel, [small(to.rows()), columns, 1], BLOCK, 0, &params)
}

/// Mirrors kernels/rowwise.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct MaskParams {
    logits: u64,
    masks: u64,
    vocabulary: u32,
    mask_words: u32,
}
const _: () = assert!(size_of::<MaskParams>() == 24);

pub(in crate::hal::cuda) fn mask_logits(s: &CudaStream, logits: &Tensor, masks: &Tensor) -> Result<()> {
    assert_eq!(logits.dtype(), DType::F32, "dtype of mask_logits");
    assert_eq!(shape(masks), (logits.rows(), logits.cols().div_ceil(32)), "masks of logits");
    assert_ints("masks of logits", &[masks]);
    if logits.rows() == 0 {
        return Ok(());
    }
    let params = MaskParams {
        logits: logits.addr(),
        masks: masks.addr(),
        vocabulary: small(logits.cols()),
        mask_words: small(masks.cols()),
    };
    let grid = [small(logits.rows()), small(logits.cols().div_ceil(COLUMNS)), 1];
    s.launch(&s.kernels().rowwise.mask, grid, BLOCK, 0, &params)
}
