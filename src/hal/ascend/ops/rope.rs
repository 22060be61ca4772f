//! Norms of heads, rotation, and the write to the cache: heads are taken out of a token's row, widened, normed, rotated, rounded and
//! put back; keys and values go to their slots.

use super::super::abi::DataType;
use super::super::kernels::{Arg, Kernel, number};
use super::super::operands::{Ints, View, code, is_aligned, none};
use super::super::stream::AscendStream;
use super::norm::norm;
use super::paged::{Pages, Slots};
use super::rowwise::select;
use super::{assert_halves, cast, floats, heads, on_host};
use crate::base::{DType, Error, Result};
use crate::hal::Tensor;
use crate::hal::ops::RopeWriteKv;
use std::ffi::CStr;

/// Rotates the first half of a head against the second.
const HALVES: i64 = 0;
/// Most numbers of a head that our own kernel takes.
const KERNEL_DIM: usize = 512;
const NORMAL_CACHE: &CStr = c"Norm";
const NO_PATTERN: &CStr = c"None";

pub(crate) fn rope_write_kv(s: &AscendStream, args: &RopeWriteKv<'_>) -> Result<()> {
    let pages = Pages::of(&args.kv);
    let (tokens, dim) = (args.qkv.rows(), pages.head_dim);
    assert_eq!(args.qkv.cols(), (args.heads + 2 * pages.kv_heads) * dim, "columns of qkv");
    assert_eq!((args.positions.rows(), args.slots.rows()), (tokens, tokens), "positions and slots of a step");
    assert_eq!((args.rope.cols(), args.rope.dtype(), dim % 2), (dim, DType::F32, 0), "columns of the rope table");
    assert_halves("rope_write_kv", &[args.qkv]);
    assert_eq!(pages.dtype, args.qkv.dtype(), "dtype of the cache");
    if let Some(norms) = &args.norms {
        let shape = |t: &Tensor| (t.rows(), t.cols(), t.dtype());
        assert_eq!(
            (shape(norms.query), shape(norms.key)),
            ((1, dim, DType::F32), (1, dim, DType::F32)),
            "weights of head norms"
        );
    }
    if tokens == 0 {
        return Ok(());
    }
    if let Some(kernel) = s.kernel("yn_rope_write_kv", pages.dtype)
        && takes(s, args, &pages)?
    {
        return fused(s, args, &pages, kernel);
    }
    if s.abi().rotary.is_none() || s.abi().scatter_kv.is_none() || !fits(args, &pages) {
        return on_host::rope_write_kv(s, args, &pages);
    }
    let slots = s.paged.slots(s, args.slots, &pages)?;
    on_device(s, args, (&pages, &slots))
}

/// Whether our own kernel takes a step: no two tokens of it may have one slot. It skips what is out of range, so that is looked
/// for here.
fn takes(s: &AscendStream, args: &RopeWriteKv<'_>, pages: &Pages) -> Result<bool> {
    let (slots, positions) = (s.paged.slots(s, args.slots, pages)?, s.ints(args.positions)?);
    match positions.iter().find(|p| **p < 0 || **p as usize >= args.rope.rows()) {
        Some(position) => Err(Error::internal(format!("a token at position {position} of {}", args.rope.rows()))),
        None => Ok(slots.kept.is_none() && pages.head_dim <= KERNEL_DIM),
    }
}

fn fused(s: &AscendStream, args: &RopeWriteKv<'_>, pages: &Pages, kernel: Kernel) -> Result<()> {
    let (tokens, addr) = (args.qkv.rows(), |t: &Tensor| Arg::Address(t.addr()));
    let [query, key] = args.norms.map_or([Arg::Address(0); 2], |norms| [addr(norms.query), addr(norms.key)]);
    let [qkv, positions, slots, rope, pool] = [args.qkv, args.positions, args.slots, args.rope, args.kv.pool].map(addr);
    let sizes = [
        tokens,
        args.heads,
        pages.kv_heads,
        pages.head_dim,
        pages.block_size,
        pages.blocks,
        args.kv.layer,
        args.kv.layers,
        args.rope.rows(),
    ];
    let mut all = vec![qkv, positions, slots, rope, query, key, pool];
    all.extend(sizes.map(number));
    all.push(Arg::Float(args.norms.map_or(0.0, |norms| norms.eps)));
    kernel.launch(s, tokens * (args.heads + pages.kv_heads), &all)
}

/// Whether every head of a token, and every page, begins where operators want it to.
fn fits(args: &RopeWriteKv<'_>, pages: &Pages) -> bool {
    let head_bytes = pages.head_dim * pages.dtype.size();
    head_bytes.is_multiple_of(32)
        && pages.block_size.is_multiple_of(16)
        && is_aligned(args.qkv)
        && is_aligned(args.kv.pool)
}

/// Heads of a kind: the first column of them in a token's row, and how many.
#[derive(Clone, Copy)]
struct Kind {
    from: usize,
    heads: usize,
}

fn on_device(s: &AscendStream, args: &RopeWriteKv<'_>, (pages, slots): (&Pages, &Slots)) -> Result<()> {
    let (tokens, dim, dtype) = (args.qkv.rows(), pages.head_dim, code(args.qkv.dtype()));
    let (queries, keys) = (Kind { from: 0, heads: args.heads }, Kind { from: args.heads * dim, heads: pages.kv_heads });
    let values = Kind { from: keys.from + keys.heads * dim, heads: keys.heads };
    let [cos, sin] = *s.paged.turns(s, args.positions, args.rope)?;
    let numbers = |kind: Kind| tokens * kind.heads * dim;
    let wide = 4 * numbers(if queries.heads > keys.heads { queries } else { keys });
    let half = numbers(keys) * args.qkv.dtype().size();
    let [a, b, rstd, key, value, kept_key, kept_value] = s.scratch([wide, wide, wide / dim, half, half, half, half])?;
    for (kind, weight) in [(queries, args.norms.map(|n| n.query)), (keys, args.norms.map(|n| n.key))] {
        let dims = [tokens, kind.heads, dim];
        let row = heads(s, args.qkv, kind.from, (kind.heads, dim))?;
        cast(s, &floats(s, a, &dims)?, &row, DataType::FLOAT)?;
        let (mut x, mut y) = (a, b);
        if let (Some(weight), Some(norms)) = (weight, args.norms) {
            norm(s, (y, x), &dims, (weight, norms.eps), rstd)?;
            (x, y) = (y, x);
        }
        let four = [1, tokens, kind.heads, dim];
        let (x, out) = (floats(s, x, &four)?, floats(s, y, &four)?);
        let (cos, sin) = (floats(s, cos, &[1, tokens, 1, dim])?, floats(s, sin, &[1, tokens, 1, dim])?);
        rotate(s, (&x, &out), (&cos, &sin))?;
        let rotated = floats(s, y, &dims)?;
        match kind.from {
            0 => cast(s, &row, &rotated, dtype)?,
            _ => cast(s, &View::new(s, key, dtype, &dims)?, &rotated, dtype)?,
        }
    }
    let dims = [tokens, keys.heads, dim];
    cast(s, &View::new(s, value, dtype, &dims)?, &heads(s, args.qkv, values.from, (values.heads, dim))?, dtype)?;
    let (mut from, kept) = ([key, value], [slots.count, keys.heads, dim]);
    if let Some(index) = slots.kept {
        let index = View::new(s, index, DataType::INT32, &[slots.count])?;
        for (to, from) in [(kept_key, key), (kept_value, value)] {
            select(s, &View::new(s, to, dtype, &kept)?, &View::new(s, from, dtype, &dims)?, &index)?;
        }
        from = [kept_key, kept_value];
    }
    if slots.count == 0 {
        return Ok(());
    }
    let [key, value] = [View::new(s, from[0], dtype, &kept)?, View::new(s, from[1], dtype, &kept)?];
    scatter(s, (&key, &value), (pages, slots))
}

fn rotate(s: &AscendStream, (x, out): (&View<'_>, &View<'_>), (cos, sin): (&View<'_>, &View<'_>)) -> Result<()> {
    let Some(op) = &s.abi().rotary else { return Ok(()) };
    // SAFETY: described tensors that outlive the call.
    s.call(op, |plan, bytes, executor| unsafe {
        plan(x.raw(), cos.raw(), sin.raw(), HALVES, out.raw(), bytes, executor)
    })
}

/// Writes keys and values to the slots of their tokens.
fn scatter(s: &AscendStream, (key, value): (&View<'_>, &View<'_>), (pages, slots): (&Pages, &Slots)) -> Result<()> {
    let Some(op) = &s.abi().scatter_kv else { return Ok(()) };
    let token = [pages.kv_heads, pages.head_dim];
    let (keys, values) = (pages.view(s, 0, &token)?, pages.view(s, 1, &token)?);
    let places = View::new(s, slots.addr, DataType::INT32, &[slots.count])?;
    let (ones, zeros) = (Ints::new(s, &[1, 1])?, Ints::new(s, &[0, 0])?);
    let (cache, pattern) = (NORMAL_CACHE.as_ptr().cast_mut(), NO_PATTERN.as_ptr().cast_mut());
    // SAFETY: described tensors and static strings, which the operator only reads; all outlive the call.
    s.call(op, |plan, bytes, executor| unsafe {
        let (key, value, places) = (key.raw(), value.raw(), places.raw());
        let (ones, zeros) = (ones.raw(), zeros.raw());
        plan(
            key,
            keys.raw(),
            places,
            value,
            values.raw(),
            none(),
            none(),
            none(),
            cache,
            pattern,
            ones,
            zeros,
            bytes,
            executor,
        )
    })
}
