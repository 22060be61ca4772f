//! Decodes of so many sequences that a device which spreads their keys over its processors has something to even out, and steps of so
//! many tokens that it goes about them otherwise.

use crate::attention::{Cache, Shape, tolerance};
use crate::kit::{Kit, bits, close, noise, some};
use yinian::base::DType;
use yinian::hal::Tensor;
use yinian::hal::ops::{HeadNorms, KvLayer, RopeWriteKv};

/// Keys of the context: so few that a device may take every row whole, and more.
const KEYS: usize = 1000;
const MORE_KEYS: usize = 1100;

/// Prefixes of one context, each with queries of its own: what they bring themselves goes where nobody reads. Most are short, so that
/// a device which takes short ones whole has long ones beside them.
pub(crate) fn sequences(kit: &Kit) {
    let dtype = if kit.act == DType::F32 { DType::Bf16 } else { kit.act };
    for (heads, sequences, keys, window, soft_cap) in [
        ((8, 4, 128), 1000, KEYS, None, None),
        ((12, 4, 64), 1000, KEYS, Some(250), Some(3.0)),
        ((8, 4, 128), 150, KEYS, None, None),
        ((34, 2, 64), 250, KEYS, Some(900), None),
        ((20, 2, 128), 300, KEYS, None, Some(3.0)),
        ((4, 4, 128), 250, KEYS, None, None),
        ((14, 2, 64), 40, KEYS, None, None),
        ((32, 8, 128), 12, KEYS, Some(700), Some(3.0)),
        ((14, 2, 64), 40, MORE_KEYS, None, None),
        ((32, 8, 128), 12, MORE_KEYS, None, Some(3.0)),
        ((34, 2, 64), 30, MORE_KEYS, None, None),
        ((20, 2, 128), 20, MORE_KEYS, Some(1090), None),
    ] {
        let shape = Shape { window, soft_cap, ..Shape::plain(heads, 16, dtype) };
        let cols = shape.qkv_cols();
        let mut cache = Cache::for_tokens(kit, shape, 1, keys + sequences + 2 * shape.block_size);
        cache.step(&[(0, &kit.noise(5, keys * cols))]);
        let queries = kit.noise(6, sequences * cols);
        let position = |s: usize| if s % 13 == 5 { keys - 1 - s / 13 } else { s * 37 % 150 };
        let positions: Vec<i32> = (0..sequences).map(|s| position(s) as i32).collect();
        let got = cache.decode_prefixes(&queries, &positions);
        let width = shape.heads * shape.head_dim;
        for (s, row) in got.chunks_exact(width).enumerate().filter(|(s, _)| s % 39 == 5 || s % 11 == 0) {
            let expected = cache.model(0, positions[s] as usize, &queries[s * cols..(s + 1) * cols]);
            close(&format!("attention {shape:?}, sequence {s} of {sequences}"), row, &expected, tolerance(kit, dtype));
        }
    }
}

/// Rows of the rope table.
const POSITIONS: usize = 500;
/// So few tokens at a time that no device goes about them as it does about many.
const FEW: usize = 100;

/// `rope_write_kv` of many tokens, some of them padding where steps are captured: queries and blocks are those that few tokens at a time
/// leave, to the bit.
pub(crate) fn tokens(kit: &Kit) {
    let dtype = if kit.act == DType::F32 { DType::Bf16 } else { kit.act };
    let cases = [((32, 8, 128), 1600, false), ((5, 1, 128), 9800, true), ((14, 2, 64), 7808, false)];
    for (heads, tokens, head_norms) in some(cases, 2) {
        let shape = Shape { head_norms, ..Shape::plain(heads, 16, dtype) };
        let (whole, parts) = (written(kit, shape, tokens, tokens), written(kit, shape, tokens, FEW));
        assert!(whole.0 == parts.0, "queries of {tokens} tokens, {shape:?}");
        assert!(whole.1 == parts.1, "blocks of {tokens} tokens, {shape:?}");
    }
}

/// Bits of queries, keys and values, and of all blocks, that were written so many tokens at a time.
fn written(kit: &Kit, shape: Shape, tokens: usize, at_a_time: usize) -> (Vec<u32>, Vec<i32>) {
    let Shape { heads, kv_heads, head_dim, block_size, dtype, .. } = shape;
    let (blocks, block_bytes) = (tokens.div_ceil(block_size), block_size * 2 * kv_heads * head_dim * dtype.size());
    let pool = kit.upload(&vec![0xff; blocks * block_bytes], blocks, block_bytes, DType::U8);
    let qkv = kit.acts(&kit.noise(7, tokens * shape.qkv_cols()), shape.qkv_cols());
    let padded = kit.device.caps().graphs;
    let slot = |t: usize| if padded && t % 100 == 3 { -1 } else { (t * 7919 % tokens) as i32 };
    let position = |t: usize| (t * 37 % POSITIONS) as i32;
    let ints = |of: &dyn Fn(usize) -> i32| kit.ints(&(0..tokens).map(of).collect::<Vec<_>>(), 1);
    let (positions, slots) = (ints(&position), ints(&slot));
    let rope = kit.floats(&noise(8, POSITIONS * head_dim), head_dim);
    let [query, key] = [9, 10].map(|seed| match kit.aligned() {
        true => kit.acts(&kit.noise(seed, head_dim), head_dim),
        false => kit.floats(&noise(seed, head_dim), head_dim),
    });
    for from in (0..tokens).step_by(at_a_time) {
        let part = |all: &Tensor| all.slice_rows(from, at_a_time.min(tokens - from));
        let args = RopeWriteKv {
            qkv: &part(&qkv),
            positions: &part(&positions),
            slots: &part(&slots),
            rope: &rope,
            heads,
            norms: shape.head_norms.then_some(HeadNorms { query: &query, key: &key, eps: 1e-5 }),
            kv: KvLayer { pool: &pool, layer: 0, layers: 1, kv_heads, head_dim, block_size, dtype },
        };
        kit.stream.rope_write_kv(&args).unwrap();
    }
    (bits(&kit.read(&qkv)), kit.read_ints(&pool))
}
