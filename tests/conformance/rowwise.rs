//! Ops that treat each row alone.

use crate::kit::{Kit, WEIGHTS, bits, close, noise, rounded};
use yinian::hal::ops::{Activation, SAMPLER_WORDS, SamplerWord};

const ROWS: [usize; 4] = [1, 2, 17, 130];
const COLS: [usize; 9] = [1, 7, 15, 16, 33, 63, 65, 576, 8200];

pub(crate) fn copies(kit: &Kit) {
    let x = noise(1, 5 * 33);
    let tensor = kit.floats(&x, 33);
    assert_eq!(kit.read(&tensor), x);
    assert_eq!(kit.read(&tensor.slice_rows(3, 2)), x[3 * 33..]);
}

pub(crate) fn embed(kit: &Kit) {
    for dtype in WEIGHTS {
        for (rows, cols) in [(1, 1), (31, 7), (32, 64), (33, 576), (97, 16)] {
            let table = noise(rows as u64, rows * cols);
            let matrix = kit.matrix(&[rows], cols, &table, dtype);
            assert_eq!((matrix.rows(), matrix.cols(), matrix.dtype()), (rows, cols, dtype));
            let mut state = vec![0x7f7f_7f7f; 3 * SAMPLER_WORDS];
            state[2 * SAMPLER_WORDS + SamplerWord::LastToken as usize] = rows as i32 / 2;
            let ids: Vec<i32> = (0..17).map(|i| if i % 5 == 3 { -3 } else { (i * 7) % rows as i32 }).collect();
            let (out, state) = (kit.poisoned(ids.len(), cols), kit.ints(&state, SAMPLER_WORDS));
            let scale = if rows % 2 == 1 { 55.5 } else { 1.0 };
            kit.stream.embed(&out, &matrix, &kit.ints(&ids, 1), &state, scale).unwrap();
            let pick = |id: i32| if id < 0 { rows / 2 } else { id as usize };
            let expected: Vec<f32> = ids
                .iter()
                .flat_map(|id| &table[pick(*id) * cols..][..cols])
                .map(|x| rounded(rounded(*x, dtype) * scale, kit.act))
                .collect();
            assert_eq!(bits(&kit.read(&out)), bits(&expected), "embed {rows}x{cols} {dtype}");
            let wrong = kit.ints(&[rows as i32], 1);
            let called = kit.stream.embed(&out.slice_rows(0, 1), &matrix, &wrong, &state, scale);
            assert!(called.and_then(|()| kit.finish()).is_err());
        }
    }
}

fn norm_model(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let n = weight.len();
    x.chunks_exact(n)
        .flat_map(|row| {
            let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
            let scale = 1.0 / (mean + eps).sqrt();
            row.iter().zip(weight).map(move |(v, w)| f64::from(*v) * scale * f64::from(*w))
        })
        .collect()
}

pub(crate) fn rms_norm(kit: &Kit) {
    for rows in ROWS {
        for cols in COLS {
            let (x, w) = (kit.noise(2, rows * cols), noise(3, cols));
            let (xt, wt, out) = (kit.acts(&x, cols), kit.floats(&w, cols), kit.poisoned(rows, cols));
            kit.stream.rms_norm(&out, &xt, &wt, 1e-5).unwrap();
            let expected = norm_model(&x, &w, 1e-5);
            close(&format!("rms_norm {rows}x{cols}"), &kit.read(&out), &expected, kit.tolerance(2e-6));
            kit.stream.rms_norm(&xt, &xt, &wt, 1e-5).unwrap();
            assert_eq!(bits(&kit.read(&xt)), bits(&kit.read(&out)), "rms_norm in place");
        }
    }
}

pub(crate) fn add_rms_norm(kit: &Kit) {
    for rows in ROWS {
        for cols in COLS {
            let (r, x, w) = (kit.noise(4, rows * cols), kit.noise(5, rows * cols), noise(6, cols));
            let (rt, xt, out) = (kit.acts(&r, cols), kit.acts(&x, cols), kit.poisoned(rows, cols));
            kit.stream.add_rms_norm(&out, &rt, &xt, &kit.floats(&w, cols), 1e-6).unwrap();
            let sum: Vec<f32> = r.iter().zip(&x).map(|(a, b)| rounded(a + b, kit.act)).collect();
            assert_eq!(bits(&kit.read(&rt)), bits(&sum), "residual {rows}x{cols}");
            let expected = norm_model(&sum, &w, 1e-6);
            close(&format!("add_rms_norm {rows}x{cols}"), &kit.read(&out), &expected, kit.tolerance(2e-6));
        }
    }
}

fn act_mul(kit: &Kit, activation: Activation, model: fn(f64) -> f64) {
    for rows in ROWS {
        for cols in COLS {
            let mut x: Vec<f32> = noise(7, rows * 2 * cols).iter().map(|v| rounded(v * 20.0, kit.act)).collect();
            x[0] = [-200.0, 200.0, 0.0][cols % 3];
            let out = kit.poisoned(rows, cols);
            kit.stream.act_mul(&out, &kit.acts(&x, 2 * cols), activation).unwrap();
            let expected: Vec<f64> = x
                .chunks_exact(2 * cols)
                .flat_map(|row| (0..cols).map(|i| model(f64::from(row[i])) * f64::from(row[cols + i])))
                .collect();
            close(&format!("act_mul {activation:?} {rows}x{cols}"), &kit.read(&out), &expected, kit.tolerance(1e-6));
        }
    }
}

pub(crate) fn silu_mul(kit: &Kit) {
    act_mul(kit, Activation::Silu, |g| g / (1.0 + (-g).exp()));
}

pub(crate) fn gelu_mul(kit: &Kit) {
    act_mul(kit, Activation::GeluTanh, |g| {
        0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh())
    });
}

/// Tiny, middling and huge values: tanh must keep its relative precision near 0 and end at the cap.
pub(crate) fn soft_cap(kit: &Kit) {
    for (rows, cols) in [(1, 1), (2, 15), (3, 16), (17, 33), (5, 1000)] {
        for (cap, spread) in [(30.0, 200.0), (1.0, 0.4), (50.0, 1e-3), (5.0, 1e30)] {
            let mut x: Vec<f32> = noise(8, rows * cols).iter().map(|v| v * spread).collect();
            x[0] = 0.0;
            let tensor = kit.floats(&x, cols);
            kit.stream.soft_cap(&tensor, cap, kit.act).unwrap();
            let got = kit.read(&tensor);
            for (x, got) in x.iter().zip(&got) {
                let expected = f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh();
                let off = (f64::from(*got) - expected).abs();
                assert!(off <= 1e-6 * expected.abs(), "soft_cap {cap} of {x} is {got}, expected {expected}");
            }
        }
    }
}

pub(crate) fn gather_rows(kit: &Kit) {
    for cols in COLS {
        let x = kit.noise(8, 19 * cols);
        let index: Vec<i32> = (0..23).map(|i| (i * 5) % 19).collect();
        let out = kit.poisoned(index.len(), cols);
        kit.stream.gather_rows(&out, &kit.acts(&x, cols), &kit.ints(&index, 1)).unwrap();
        let expected: Vec<f32> = index.iter().flat_map(|i| &x[*i as usize * cols..][..cols]).copied().collect();
        assert_eq!(kit.read(&out), expected, "gather_rows of {cols}");
    }
}
