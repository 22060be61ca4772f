//! Decodes of so many sequences that a device which spreads their keys over its processors has something to even out.

use crate::attention::{Cache, Shape, tolerance};
use crate::kit::{Kit, close};
use yinian::base::DType;

const KEYS: usize = 1000;

/// Prefixes of one context, each with queries of its own: what they bring themselves goes where nobody reads. Most are short, so that
/// a device which takes short ones whole has long ones beside them.
pub(crate) fn sequences(kit: &Kit) {
    let dtype = if kit.act == DType::F32 { DType::Bf16 } else { kit.act };
    for (heads, sequences, window, soft_cap) in [
        ((8, 4, 128), 1000, None, None),
        ((12, 4, 64), 1000, Some(250), Some(3.0)),
        ((8, 4, 128), 150, None, None),
        ((34, 2, 64), 250, Some(900), None),
        ((20, 2, 128), 300, None, Some(3.0)),
        ((4, 4, 128), 250, None, None),
    ] {
        let shape = Shape { window, soft_cap, ..Shape::plain(heads, 16, dtype) };
        let cols = shape.qkv_cols();
        let mut cache = Cache::for_tokens(kit, shape, 1, KEYS + sequences + 2 * shape.block_size);
        cache.step(&[(0, &kit.noise(5, KEYS * cols))]);
        let queries = kit.noise(6, sequences * cols);
        let position = |s: usize| if s % 13 == 5 { KEYS - 1 - s / 13 } else { s * 37 % 150 };
        let positions: Vec<i32> = (0..sequences).map(|s| position(s) as i32).collect();
        let got = cache.decode_prefixes(&queries, &positions);
        let width = shape.heads * shape.head_dim;
        for (s, row) in got.chunks_exact(width).enumerate().filter(|(s, _)| s % 39 == 5 || s % 11 == 0) {
            let expected = cache.model(0, positions[s] as usize, &queries[s * cols..(s + 1) * cols]);
            close(&format!("attention {shape:?}, sequence {s} of {sequences}"), row, &expected, tolerance(kit, dtype));
        }
    }
}
