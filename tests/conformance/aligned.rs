//! Ops of a device that rounds inside of them as the reference implementation does, against models with the same roundings.

use crate::attention::{Shape, long_batches};
use crate::kit::{Kit, Tally, noise, rounded};
use yinian::base::DType;
use yinian::hal::ops::{Activation, SAMPLER_WORDS};

const COLS: [usize; 9] = [1, 7, 24, 64, 127, 128, 896, 4096, 8200];

/// At most a unit in the last place from the model, and that seldom: what is left is the order of sums and the last bits of
/// exponentials.
fn near(kit: &Kit, what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let digits = if kit.act == DType::F16 { 10 } else { 7 };
    let tiny = if kit.act == DType::F16 { 2_f64.powi(-24) } else { f64::from(f32::MIN_POSITIVE) };
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let unit = (e.abs().max(tiny).log2().floor() - f64::from(digits)).exp2().max(tiny);
        let e = f64::from(rounded(*e as f32, kit.act));
        assert!((f64::from(*g) - e).abs() <= unit, "{what}: element {i} is {g}, expected {e}");
    }
    let mut tally = Tally::default();
    tally.count(kit, got, expected);
    if got.len() > 100 {
        tally.assert_few(what);
    }
}

fn norms(kit: &Kit, residual: bool, in_act: bool) {
    for (rows, cols) in COLS.into_iter().flat_map(|cols| [(1, cols), (19, cols)]) {
        let (x, r) = (kit.noise(2, rows * cols), kit.noise(4, rows * cols));
        let w = if in_act { kit.noise(3, cols) } else { noise(3, cols) };
        let weight = if in_act { kit.acts(&w, cols) } else { kit.floats(&w, cols) };
        let (xt, rt, out) = (kit.acts(&x, cols), kit.acts(&r, cols), kit.poisoned(rows, cols));
        let mut normed = x;
        if residual {
            kit.stream.add_rms_norm(&out, &rt, &xt, &weight, 1e-6).unwrap();
            normed.iter_mut().zip(&r).for_each(|(x, r)| *x = rounded(*x + r, kit.act));
            assert_eq!(kit.read(&rt), normed, "residual {rows}x{cols}");
        } else {
            kit.stream.rms_norm(&out, &xt, &weight, 1e-6).unwrap();
        }
        let model = |row: &[f32]| -> Vec<f64> {
            let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / cols as f64;
            let scaled = |v: f32| f64::from(v) / (mean + 1e-6).sqrt();
            let first = |x: f64| if in_act { kit.inside(x) } else { x };
            row.iter().zip(&w).map(|(v, w)| first(scaled(*v)) * f64::from(*w)).collect()
        };
        let expected: Vec<f64> = normed.chunks_exact(cols).flat_map(model).collect();
        near(kit, &format!("norm {rows}x{cols}, residual {residual}, {in_act}"), &kit.read(&out), &expected);
    }
}

/// Weights in the dtype of activations multiply rounded numbers, those in F32 do not.
pub(crate) fn all_norms(kit: &Kit) {
    for (residual, in_act) in [(false, false), (false, true), (true, false), (true, true)] {
        norms(kit, residual, in_act);
    }
}

pub(crate) fn embed(kit: &Kit) {
    let (rows, cols, scale) = (33, 72, 55.4256);
    let table = kit.noise(5, rows * cols);
    let matrix = kit.matrix(&[rows], cols, &table, kit.act);
    let ids: Vec<i32> = (0..rows as i32).collect();
    let (out, state) = (kit.poisoned(rows, cols), kit.ints(&[0; SAMPLER_WORDS], SAMPLER_WORDS));
    kit.stream.embed(&out, &matrix, &kit.ints(&ids, 1), &state, scale).unwrap();
    let expected: Vec<f32> = table.iter().map(|x| rounded(x * rounded(scale, kit.act), kit.act)).collect();
    assert_eq!(kit.read(&out), expected, "embeddings times a scale that the dtype does not have");
}

fn act_mul(kit: &Kit, activation: Activation, model: fn(f64) -> f64) {
    for (rows, cols) in [(1, 7), (3, 128), (17, 1000)] {
        let x: Vec<f32> = noise(7, rows * 2 * cols).iter().map(|v| rounded(v * 6.0, kit.act)).collect();
        let out = kit.poisoned(rows, cols);
        kit.stream.act_mul(&out, &kit.acts(&x, 2 * cols), activation).unwrap();
        let row = |row: &[f32]| -> Vec<f64> {
            (0..cols).map(|i| kit.inside(model(f64::from(row[i]))) * f64::from(row[cols + i])).collect()
        };
        let expected: Vec<f64> = x.chunks_exact(2 * cols).flat_map(row).collect();
        let got = kit.read(&out);
        // Far out a GELU is what is left of 1 minus almost 1.
        let (got, expected): (Vec<f32>, Vec<f64>) =
            got.iter().zip(&expected).filter(|(_, e)| e.abs() > 1e-2).map(|(g, e)| (*g, *e)).unzip();
        near(kit, &format!("{activation:?} {rows}x{cols}"), &got, &expected);
    }
}

pub(crate) fn activations(kit: &Kit) {
    act_mul(kit, Activation::Silu, |g| g / (1.0 + (-g).exp()));
    act_mul(kit, Activation::GeluTanh, |g| {
        0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh())
    });
}

/// Logits are F32 that hold numbers of activations; a soft cap rounds after each of its steps.
pub(crate) fn logits(kit: &Kit) {
    for (m, n, k) in [(1, 64, 64), (5, 256, 128), (33, 1000, 896)] {
        let (x, w) = (kit.noise(11, m * k), kit.noise(12, n * k));
        let matrix = kit.matrix(&[n], k, &w, kit.act);
        let out = kit.floats(&vec![f32::NAN; m * n], n);
        kit.stream.linear(&out, &kit.acts(&x, k), &matrix, None).unwrap();
        let dot = |i: usize| -> f64 {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        let expected: Vec<f64> = (0..m * n).map(dot).collect();
        let plain = kit.read(&out);
        assert!(plain.iter().all(|x| *x == rounded(*x, kit.act)), "logits are not numbers of {}", kit.act);
        let mut tally = Tally::default();
        tally.count(kit, &plain, &expected);
        tally.assert_few("logits");
        let cap = 30.0;
        kit.stream.soft_cap(&out, cap, kit.act).unwrap();
        let inside = |x: f64| kit.inside(x);
        let capped = |x: &f32| inside(inside(f64::from(*x) / f64::from(cap)).tanh()) * f64::from(cap);
        near(kit, "soft cap", &kit.read(&out), &plain.iter().map(capped).collect::<Vec<_>>());
    }
}

/// Fused products with biases: rounded once, as a part of its own each.
pub(crate) fn biases(kit: &Kit) {
    for (m, parts, k) in [(1, vec![64, 32, 32], 128), (17, vec![896, 128, 128], 896), (130, vec![256, 256], 512)] {
        let n = parts.iter().sum::<usize>();
        let (x, w, bias) = (kit.noise(13, m * k), kit.noise(14, n * k), kit.noise(15, n));
        let matrix = kit.matrix(&parts, k, &w, kit.act);
        let out = kit.poisoned(m + 1, n);
        let tensor = kit.floats(&bias, n);
        kit.stream.linear(&out.slice_rows(0, m), &kit.acts(&x, k), &matrix, Some(&tensor)).unwrap();
        let dot = |i: usize| -> f64 {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            f64::from(bias[i % n]) + x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
        };
        let expected: Vec<f64> = (0..m * n).map(dot).collect();
        let got = kit.read(&out);
        let mut tally = Tally::default();
        tally.count(kit, &got[..m * n], &expected);
        println!("products with biases, {m}x{n}x{k} in {}: {tally:?}", kit.act);
        tally.assert_few("products with biases");
        assert!(got[m * n..].iter().all(|x| x.is_nan()), "a product wrote behind its output");
    }
}

/// Prompts that stand in a step as a whole: their sums are in an order that hangs on their length, with a group of keys that is
/// not full in the midst of them. A second step goes on in the order of all other steps.
pub(crate) fn whole_prompts(kit: &Kit) {
    let steps: [&[(usize, usize)]; 6] =
        [&[(0, 253)], &[(1, 33)], &[(2, 334)], &[(3, 7)], &[(0, 80), (1, 1)], &[(3, 300)]];
    for (i, heads) in
        [(8, 2, 64), (4, 4, 16), (4, 2, 24), (2, 2, 128), (4, 1, 256), (14, 2, 64)].into_iter().enumerate()
    {
        let plain = Shape::plain(heads, [16, 5][i % 2], kit.act);
        long_batches(kit, plain, &steps);
        long_batches(
            kit,
            Shape { window: Some([30, 257][i % 2]), soft_cap: (i % 2 == 0).then_some(3.0), ..plain },
            &steps,
        );
    }
}

/// Angles of positions of a long context, twice each, become cosines and sines.
pub(crate) fn angles(kit: &Kit) {
    for (rows, cols) in [(1, 2), (7, 24), (1000, 64)] {
        let angle = |i: usize| (i / cols * 131) as f32 * 0.7_f32.powi((i % (cols / 2)) as i32);
        let all: Vec<f32> = (0..rows * cols).map(angle).collect();
        let table = kit.floats(&[&all[..], &[f32::NAN; 64]].concat()[..(rows + 1) * cols], cols);
        kit.stream.turn(&table.slice_rows(0, rows)).unwrap();
        let got = kit.read(&table);
        for (i, (g, a)) in got.iter().zip(&all).enumerate() {
            let a = f64::from(*a);
            let expected = if i % cols < cols / 2 { a.cos() } else { a.sin() };
            assert!(
                (f64::from(*g) - expected).abs() < 2e-7,
                "{rows}x{cols}: {a} at {i} gives {g}, expected {expected}"
            );
        }
        assert!(got[rows * cols..].iter().all(|x| x.is_nan()), "angles behind the table were turned");
    }
}
