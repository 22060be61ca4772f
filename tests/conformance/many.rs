//! Decodes of so many sequences that a device which spreads their keys over its processors has something to even out.

use crate::attention::{Cache, Shape, tolerance};
use crate::kit::{Kit, close};
use yinian::base::DType;

const SEQUENCES: usize = 1000;
const KEYS: usize = 400;

/// Prefixes of one context, each with queries of its own: what they bring themselves goes where nobody reads.
pub(crate) fn sequences(kit: &Kit) {
    let dtype = if kit.act == DType::F32 { DType::Bf16 } else { kit.act };
    for (heads, window, soft_cap) in [((8, 4, 128), None, None), ((12, 4, 64), Some(250), Some(3.0))] {
        let shape = Shape { window, soft_cap, ..Shape::plain(heads, 16, dtype) };
        let cols = shape.qkv_cols();
        let mut cache = Cache::for_tokens(kit, shape, 1, KEYS + SEQUENCES + 2 * shape.block_size);
        cache.step(&[(0, &kit.noise(5, KEYS * cols))]);
        let queries = kit.noise(6, SEQUENCES * cols);
        let positions: Vec<i32> = (0..SEQUENCES).map(|s| (s * 37 % KEYS) as i32).collect();
        let got = cache.decode_prefixes(&queries, &positions);
        let width = shape.heads * shape.head_dim;
        for (s, row) in got.chunks_exact(width).enumerate().step_by(7) {
            let expected = cache.model(0, positions[s] as usize, &queries[s * cols..(s + 1) * cols]);
            close(&format!("attention {shape:?}, sequence {s} of many"), row, &expected, tolerance(kit, dtype));
        }
    }
}
