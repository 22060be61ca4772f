//! `paged_attention` of mode `aligned`: one kernel for all tokens, with the roundings of the reference and its order of sums.

use super::attention::{BLOCK, MAX_DIM, Params};
use super::{HalfFamily, small};
use crate::base::Result;
use crate::hal::cuda::batched::{Batched, Order, PLAIN, Place};
use crate::hal::cuda::driver::Modules;
use crate::hal::cuda::stream::CudaStream;
use crate::hal::ops::PagedAttention;

/// Rows and keys of a block.
const ROWS: usize = 16;
const KEYS: usize = 64;
/// Rows whose numbers are so many begin at 16-byte boundaries, and the reference's products add up in one order.
const VECTOR: usize = 8;

/// Shared memory: queries, two stages of keys and values, and weights.
const fn shared(dim: usize) -> u32 {
    let stride = dim.next_multiple_of(16) + 8;
    (2 * ((ROWS + 4 * KEYS) * stride + ROWS * (KEYS + 8))) as u32
}

/// Mirrors kernels/attention_aligned.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Aligned {
    attention: Params,
    keys: u32,
    score_step: u32,
    value_step: u32,
    rest: u32,
}
const _: () = assert!(size_of::<Aligned>() == 176);

pub(super) fn load(modules: &Modules) -> Result<HalfFamily> {
    HalfFamily::load_with_shared(modules, "attention_aligned", "yn_attention_aligned", shared(MAX_DIM))
}

pub(super) fn launch(s: &CudaStream, args: &PagedAttention<'_>, attention: Params) -> Result<()> {
    let (kernels, dtype) = (&s.kernels().attention, args.qkv.dtype());
    // Refuses other pairs of dtypes.
    kernels.plain.of(dtype, args.kv.dtype)?;
    let tokens = args.qkv.rows();
    // The reference's order hangs on the length of a prompt. The device alone knows it where several sequences share a step,
    // as it does whether this is the whole of one.
    let (scores, values) = if args.context_lens.rows() == 1 { orders(s, args)? } else { (PLAIN, PLAIN) };
    let params = Aligned {
        attention,
        keys: small(tokens),
        score_step: small(scores.step),
        value_step: small(values.step),
        rest: small(tokens % values.tile),
    };
    let ratio = args.heads / args.kv.kv_heads;
    let tiles = (tokens * ratio).div_ceil(ROWS) + args.context_lens.rows();
    let grid = [small(tiles), small(args.kv.kv_heads), 1];
    s.launch(kernels.aligned.of(dtype), grid, BLOCK, shared(args.kv.head_dim), &params)
}

/// Of the products of queries with keys and of weights with values, for a prompt of as many tokens as the step has.
fn orders(s: &CudaStream, args: &PagedAttention<'_>) -> Result<(Order, Order)> {
    let tokens = args.qkv.rows();
    if tokens == 1 || tokens.is_multiple_of(VECTOR) {
        return Ok((PLAIN, PLAIN));
    }
    let [scores, values] = products(args);
    Ok((s.order(&scores)?, s.order(&values)?))
}

/// As the reference calls them: queries stand as they were projected, and so do keys and values unless several query heads
/// share them and have a copy each.
fn products(args: &PagedAttention<'_>) -> [Batched; 2] {
    let (tokens, heads, dim) = (args.qkv.rows(), args.heads, args.kv.head_dim);
    let projected = Place { column: heads * dim, product: dim };
    let cached = match args.kv.kv_heads {
        1 if heads > 1 => Place { column: dim, product: 0 },
        kv_heads if kv_heads == heads => projected,
        _ => Place { column: dim, product: tokens * dim },
    };
    let weights = Place { column: tokens, product: tokens * tokens };
    let scores = Batched {
        dtype: args.qkv.dtype(),
        count: heads,
        shape: (tokens, tokens, dim),
        transposed: true,
        w: cached,
        x: projected,
        out: weights,
    };
    let out = Place { column: dim, product: tokens * dim };
    [scores, Batched { shape: (dim, tokens, tokens), transposed: false, x: weights, out, ..scores }]
}
