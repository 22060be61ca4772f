//! A row's bits do not depend on the rows, chunks, sequences or threads beside it (DESIGN promise 5), wherever a device
//! claims so in its caps.

use crate::attention::{Cache, Shape, invariant, long_invariant, takes};
use crate::kit::{Kit, WEIGHTS, bits, few, noise};
use crate::linear::dtypes;
use yinian::base::DType;
use yinian::hal::ops::Activation;

const SHAPE: Shape = Shape::plain((9, 3, 64), 16, DType::Bf16);

pub(crate) fn linear(kit: &Kit) {
    if !kit.device.caps().invariant {
        return;
    }
    for dtype in dtypes(kit) {
        for (n, k) in few([(33, 7), (160, 128), (4096, 1032), (200, 576), (264, 2048)], 2) {
            let matrix = kit.matrix(&[n], k, &noise(1, n * k), dtype);
            let (x, bias) = (noise(2, 300 * k), kit.floats(&noise(3, n), n));
            let run = |from: usize, m: usize| {
                let out = kit.poisoned(m, n);
                kit.stream.linear(&out, &kit.acts(&x[from * k..(from + m) * k], k), &matrix, Some(&bias)).unwrap();
                bits(&kit.read(&out))
            };
            let whole = run(0, 300);
            let ranges = [
                (0, 1),
                (299, 1),
                (5, 2),
                (5, 3),
                (7, 4),
                (0, 5),
                (9, 6),
                (1, 7),
                (3, 8),
                (3, 13),
                (2, 17),
                (8, 32),
                (1, 33),
                (50, 64),
                (4, 65),
                (100, 128),
                (7, 129),
                (0, 299),
            ];
            for (from, m) in few(ranges, 3) {
                assert!(
                    run(from, m) == whole[from * n..(from + m) * n],
                    "{n}x{k} {dtype}: rows {from}..{} have other bits than among all",
                    from + m
                );
            }
        }
    }
}

pub(crate) fn attention(kit: &Kit) {
    if !kit.device.caps().invariant {
        return;
    }
    let odd = Shape::plain((14, 1, 10), 7, DType::F16);
    let mut shapes = vec![odd];
    shapes.extend(WEIGHTS.map(|dtype| Shape { dtype, ..SHAPE }));
    for window in [1, 8, 16, 17, 49] {
        shapes.push(Shape { window: Some(window), ..SHAPE });
        shapes.push(Shape { window: Some(window), soft_cap: Some(0.5), head_norms: true, ..odd });
    }
    shapes.push(Shape { soft_cap: Some(2.0), head_norms: true, ..SHAPE });
    for shape in few(shapes.into_iter().filter(|shape| takes(kit, shape)), 3) {
        invariant(kit, shape);
    }
}

/// Several chunks of keys, for all head dimensions and some ratios of heads.
pub(crate) fn long_attention(kit: &Kit) {
    if !kit.device.caps().invariant {
        return;
    }
    let all = [
        (4, 4, 64),
        (8, 2, 64),
        (7, 1, 80),
        (8, 1, 96),
        (8, 2, 128),
        (2, 2, 128),
        (4, 1, 256),
        (17, 1, 64),
        (6, 2, 32),
    ];
    for (i, (heads, kv_heads, head_dim)) in few(all.into_iter().enumerate(), 2) {
        let dtype = if kit.act == DType::F32 { WEIGHTS[i % 3] } else { kit.act };
        let plain = Shape::plain((heads, kv_heads, head_dim), [16, 32, 5][i % 3], dtype);
        long_invariant(kit, plain);
        let window = Some([1, 64, 65, 255, 256, 257, 300][i % 7]);
        long_invariant(kit, Shape { window, soft_cap: (i % 2 == 0).then_some(3.0), ..plain });
    }
}

/// Row ops, whole and in parts.
pub(crate) fn row_ops(kit: &Kit) {
    if !kit.device.caps().invariant {
        return;
    }
    let (rows, cols) = (120, 576);
    let x = noise(3, rows * 2 * cols);
    let weight = kit.floats(&noise(4, 2 * cols), 2 * cols);
    let run = |from: usize, n: usize| {
        let part = &x[from * 2 * cols..(from + n) * 2 * cols];
        let (input, logits) = (kit.acts(part, 2 * cols), kit.floats(part, 2 * cols));
        let (norm, gate) = (kit.poisoned(n, 2 * cols), kit.poisoned(n, cols));
        kit.stream.rms_norm(&norm, &input, &weight, 1e-5).unwrap();
        kit.stream.act_mul(&gate, &input, Activation::GeluTanh).unwrap();
        kit.stream.soft_cap(&logits, 0.7, kit.act).unwrap();
        (bits(&kit.read(&norm)), bits(&kit.read(&gate)), bits(&kit.read(&logits)))
    };
    let (norm, gate, capped) = run(0, rows);
    for (from, n) in [(0, 1), (119, 1), (17, 33)] {
        let (some_norm, some_gate, some_capped) = run(from, n);
        assert_eq!(some_norm, norm[from * 2 * cols..(from + n) * 2 * cols]);
        assert_eq!(some_gate, gate[from * cols..(from + n) * cols]);
        assert_eq!(some_capped, capped[from * 2 * cols..(from + n) * 2 * cols]);
    }
}

/// Outputs that must be equal for every number of threads.
pub(crate) fn fingerprint(kit: &Kit) -> Vec<u32> {
    let mut all = Vec::new();
    for dtype in WEIGHTS {
        let matrix = kit.matrix(&[1000], 576, &noise(5, 1000 * 576), dtype);
        for m in [1, 8, 65] {
            let out = kit.poisoned(m, 1000);
            kit.stream.linear(&out, &kit.floats(&noise(6, m * 576), 576), &matrix, None).unwrap();
            all.extend(bits(&kit.read(&out)));
        }
    }
    let mut cache = Cache::new(kit, SHAPE, 2);
    let data = noise(7, 90 * SHAPE.qkv_cols());
    let (a, b) = data.split_at(40 * SHAPE.qkv_cols());
    all.extend(bits(&cache.step(&[(0, a), (1, b)])));
    all
}
