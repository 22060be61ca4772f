//! `linear` against a product in f64: with a bias where the number of rows is odd.

use crate::kit::{Kit, WEIGHTS, close, few, noise, rounded, some};
use yinian::base::DType;

const ROWS: [usize; 11] = [1, 2, 3, 5, 7, 8, 12, 13, 17, 25, 41];
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (31, 7), (32, 1), (33, 16), (63, 33), (64, 64), (65, 7), (160, 128), (100, 576)];

/// Rows at the borders of tiles, and shapes whose sums are cut into parts: many, uneven ones, ones that end inside a step, and
/// rows that are no whole vectors. Every third of the rows are few and many of them.
const EDGE_ROWS: [usize; 14] = [1, 2, 15, 513, 16, 17, 32, 31, 33, 64, 63, 65, 129, 127];
const EDGE_SHAPES: [(usize, usize); 7] =
    [(64, 256), (129, 520), (130, 1096), (8, 2048), (257, 712), (66, 513), (1000, 192)];

pub(crate) fn all(kit: &Kit) {
    for dtype in dtypes(kit) {
        for (n, k) in some(SHAPES, 4) {
            let w: Vec<f32> = noise(n as u64, n * k).iter().map(|x| rounded(*x, dtype)).collect();
            let parts: Vec<usize> = if n > 40 { vec![n - 33, 1, 32] } else { vec![n] };
            let matrix = kit.matrix(&parts, k, &w, dtype);
            for m in some(ROWS, 5) {
                case(kit, &w, &matrix, (m, n, k, dtype));
            }
        }
    }
}

/// Dtypes of weights that go with the activations of a run.
pub(crate) fn dtypes(kit: &Kit) -> Vec<DType> {
    WEIGHTS.into_iter().filter(|dtype| kit.device.caps().activations.of(*dtype) == kit.act).collect()
}

pub(crate) fn edges(kit: &Kit) {
    for dtype in dtypes(kit) {
        for (n, k) in EDGE_SHAPES {
            let w: Vec<f32> = noise(n as u64, n * k).iter().map(|x| rounded(*x, dtype)).collect();
            let matrix = kit.matrix(&[n], k, &w, dtype);
            for m in few(EDGE_ROWS, 3) {
                edge(kit, &w, &matrix, (m, n, k, dtype));
            }
        }
    }
}

/// Few rows over vectors, which some devices have a kernel of their own for: columns and rows at the borders of its strips, and
/// sums that fill its ring of stages once and more often.
pub(crate) fn few_rows(kit: &Kit) {
    // Tiles of two and four boxes of 64 numbers of k, whole and not; sums cut in parts; large matrices of one unit a block and of more.
    const SHAPES: [(usize, usize); 16] = [
        (1, 64),
        (33, 16),
        (129, 576),
        (257, 704),
        (1000, 192),
        (1152, 896),
        (896, 2048),
        (4225, 192),
        (896, 4864),
        (33, 2112),
        (130, 3648),
        (500, 4096),
        (129, 520),
        (8000, 320),
        (4096, 4096),
        (9000, 2048),
    ];
    for dtype in dtypes(kit) {
        for (n, k) in some(SHAPES, 2) {
            let w: Vec<f32> = noise(n as u64, n * k).iter().map(|x| rounded(*x, dtype)).collect();
            let matrix = kit.matrix(&[n], k, &w, dtype);
            for m in some([1, 2, 8, 9, 16, 7, 15, 4], 2) {
                edge(kit, &w, &matrix, (m, n, k, dtype));
            }
        }
    }
}

/// Some rows over large matrices, which some devices have a kernel of their own for: rows at the borders of its instances; units of one
/// block and of two, of one stripe and of more; columns and sums that end inside a slot.
pub(crate) fn some_rows(kit: &Kit) {
    const SHAPES: [((usize, usize), [usize; 4]); 5] = [
        ((4096, 4096), [9, 32, 33, 64]),
        ((12_001, 1408), [16, 17, 48, 63]),
        ((6145, 2752), [10, 31, 34, 49]),
        ((33_000, 576), [15, 16, 47, 64]),
        ((22_016, 768), [12, 32, 41, 50]),
    ];
    // Where steps are not recorded, large ones are products like others, only longer.
    const SMALL: [((usize, usize), [usize; 4]); 1] = [((1001, 576), [9, 32, 47, 64])];
    let chosen = if kit.device.caps().graphs { SHAPES.as_slice() } else { SMALL.as_slice() };
    for dtype in dtypes(kit) {
        for ((n, k), rows) in some(chosen.iter().copied(), 2) {
            let w: Vec<f32> = noise(n as u64, n * k).iter().map(|x| rounded(*x, dtype)).collect();
            let matrix = kit.matrix(&[n], k, &w, dtype);
            for m in some(rows, 2) {
                edge(kit, &w, &matrix, (m, n, k, dtype));
            }
        }
    }
}

/// One product, into logits where the number of rows is even. Of large ones some elements are compared, over all rows and
/// columns.
fn edge(kit: &Kit, w: &[f32], matrix: &yinian::hal::Matrix, (m, n, k, dtype): (usize, usize, usize, DType)) {
    let x = kit.noise(m as u64 + 300, m * k);
    let bias = kit.noise(n as u64 + 400, n);
    let guarded = vec![f32::NAN; (m + 1) * n];
    let whole = if m.is_multiple_of(2) { kit.floats(&guarded, n) } else { kit.acts(&guarded, n) };
    kit.stream.linear(&whole.slice_rows(0, m), &kit.acts(&x, k), matrix, Some(&kit.floats(&bias, n))).unwrap();
    let got = kit.read(&whole);
    let what = format!("linear {m}x{n}x{k} {dtype}");
    assert!(got[..m * n].iter().all(|x| x.is_finite()), "{what} has elements that are no numbers");
    assert!(got[m * n..].iter().all(|x| x.is_nan()), "{what} wrote behind its output");
    let every = (m * n * k / 300_000).max(1) | 1;
    let chosen: Vec<usize> = (0..m * n).step_by(every).chain([m * n - 1]).collect();
    let dot = |i: usize| -> f64 {
        let (r, c) = (i / n, i % n);
        f64::from(bias[c]) + (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[c * k + i])).sum::<f64>()
    };
    let expected: Vec<f64> = chosen.iter().map(|i| dot(*i)).collect();
    let got: Vec<f32> = chosen.iter().map(|i| got[*i]).collect();
    // A product and its bias may be rounded to the dtype of activations before they are added, and again after it.
    let tolerance = if whole.dtype() == DType::F32 && kit.act == DType::F32 { 0.0 } else { 3.0 * kit.tolerance(0.0) };
    close(&what, &got, &expected, tolerance + 4e-7 * k as f64);
}

fn case(kit: &Kit, w: &[f32], matrix: &yinian::hal::Matrix, (m, n, k, dtype): (usize, usize, usize, DType)) {
    let x = kit.noise(m as u64 + 100, m * k);
    // A guard row behind the output: nothing may be written past it.
    let whole = kit.poisoned(m + 1, n);
    let bias = if m % 2 == 1 { kit.noise(n as u64 + 200, n) } else { vec![0.0; n] };
    let tensor = kit.floats(&bias, n);
    let some = if m % 2 == 1 { Some(&tensor) } else { None };
    kit.stream.linear(&whole.slice_rows(0, m), &kit.acts(&x, k), matrix, some).unwrap();
    let dot = |r: usize, c: usize| -> f64 {
        f64::from(bias[c]) + (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[c * k + i])).sum::<f64>()
    };
    let expected: Vec<f64> = (0..m * n).map(|i| dot(i / n, i % n)).collect();
    let got = kit.read(&whole);
    // A product may be rounded to the dtype of activations before the bias, which is below 1, is added, and again after it.
    let roundings = if m % 2 == 1 && kit.act != DType::F32 { 3.0 } else { 1.0 };
    // The reference lets a library add up parts of a sum in the dtype of activations.
    let roundings = if kit.aligned() { roundings + (k as f64).sqrt() } else { roundings };
    let tolerance = roundings * kit.tolerance(2e-7 * (k as f64).max(8.0));
    close(&format!("linear {m}x{n}x{k} {dtype}"), &got[..m * n], &expected, tolerance);
    assert!(got[m * n..].iter().all(|x| x.is_nan()), "linear {m}x{n}x{k} {dtype} wrote behind its output");
}
