//! A row's bits do not depend on the rows, chunks, sequences or threads beside it (DESIGN promise 5), wherever a device
//! claims so in its caps.

use crate::attention::{Cache, Shape, invariant};
use crate::kit::{Kit, WEIGHTS, bits, noise};
use yinian::base::DType;

const SHAPE: Shape = Shape { heads: 9, kv_heads: 3, head_dim: 64, block_size: 16, dtype: DType::Bf16 };

pub(crate) fn linear(kit: &Kit) {
    if !kit.device.caps().invariant {
        return;
    }
    for dtype in WEIGHTS {
        for (n, k) in [(33, 7), (160, 128), (200, 576)] {
            let matrix = kit.matrix(&[n], k, &noise(1, n * k), dtype);
            let x = noise(2, 300 * k);
            let run = |from: usize, m: usize| {
                let out = kit.poisoned(m, n);
                kit.stream.linear(&out, &kit.floats(&x[from * k..(from + m) * k], k), &matrix).unwrap();
                bits(&kit.read(&out))
            };
            let whole = run(0, 300);
            for (from, m) in
                [(0, 1), (299, 1), (5, 2), (5, 3), (7, 4), (0, 5), (9, 6), (1, 7), (3, 8), (3, 13), (50, 64), (0, 299)]
            {
                assert_eq!(run(from, m), whole[from * n..(from + m) * n], "{n}x{k} {dtype}: rows {from}..{}", from + m);
            }
        }
    }
}

pub(crate) fn attention(kit: &Kit) {
    if !kit.device.caps().invariant {
        return;
    }
    for dtype in WEIGHTS {
        invariant(kit, Shape { dtype, ..SHAPE });
    }
    invariant(kit, Shape { heads: 14, kv_heads: 1, head_dim: 10, block_size: 7, dtype: DType::F16 });
}

pub(crate) fn row_ops(kit: &Kit) {
    if !kit.device.caps().invariant {
        return;
    }
    let (rows, cols) = (120, 576);
    let x = noise(3, rows * 2 * cols);
    let weight = kit.floats(&noise(4, 2 * cols), 2 * cols);
    let run = |from: usize, n: usize| {
        let input = kit.floats(&x[from * 2 * cols..(from + n) * 2 * cols], 2 * cols);
        let (norm, silu) = (kit.poisoned(n, 2 * cols), kit.poisoned(n, cols));
        kit.stream.rms_norm(&norm, &input, &weight, 1e-5).unwrap();
        kit.stream.silu_mul(&silu, &input).unwrap();
        (bits(&kit.read(&norm)), bits(&kit.read(&silu)))
    };
    let (norm, silu) = run(0, rows);
    for (from, n) in [(0, 1), (119, 1), (17, 33)] {
        let (some_norm, some_silu) = run(from, n);
        assert_eq!(some_norm, norm[from * 2 * cols..(from + n) * 2 * cols]);
        assert_eq!(some_silu, silu[from * cols..(from + n) * cols]);
    }
}

/// Outputs that must be equal for every number of threads.
pub(crate) fn fingerprint(kit: &Kit) -> Vec<u32> {
    let mut all = Vec::new();
    for dtype in WEIGHTS {
        let matrix = kit.matrix(&[1000], 576, &noise(5, 1000 * 576), dtype);
        for m in [1, 8, 65] {
            let out = kit.poisoned(m, 1000);
            kit.stream.linear(&out, &kit.floats(&noise(6, m * 576), 576), &matrix).unwrap();
            all.extend(bits(&kit.read(&out)));
        }
    }
    let mut cache = Cache::new(kit, SHAPE, 2);
    let data = noise(7, 90 * SHAPE.qkv_cols());
    let (a, b) = data.split_at(40 * SHAPE.qkv_cols());
    all.extend(bits(&cache.step(&[(0, a), (1, b)])));
    all
}
