//! `linear` against a product in f64: with a bias where the number of rows is odd.

use crate::kit::{Kit, WEIGHTS, close, noise, rounded, some};
use yinian::base::DType;

const ROWS: [usize; 11] = [1, 2, 3, 5, 7, 8, 12, 13, 17, 25, 41];
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (31, 7), (32, 1), (33, 16), (63, 33), (64, 64), (65, 7), (160, 128), (100, 576)];

pub(crate) fn all(kit: &Kit) {
    let fits = |dtype: &DType| kit.device.caps().activations.of(*dtype) == kit.act;
    for dtype in WEIGHTS.into_iter().filter(fits) {
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
    let tolerance = roundings * kit.tolerance(2e-7 * (k as f64).max(8.0));
    close(&format!("linear {m}x{n}x{k} {dtype}"), &got[..m * n], &expected, tolerance);
    assert!(got[m * n..].iter().all(|x| x.is_nan()), "linear {m}x{n}x{k} {dtype} wrote behind its output");
}
