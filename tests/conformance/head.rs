//! `linear_sample`: the logits by a model of the product, the draws by `sample` of the same logits.

use crate::kit::{Kit, bits, close, noise, rounded, some};
use crate::linear::dtypes;
use crate::sample::{GREEDY, Row, drawn_by, run};
use yinian::base::DType;
use yinian::hal::Matrix;
use yinian::hal::ops::{LinearSample, SAMPLER_BIASES, SAMPLER_WORDS, Sample};

/// Where the tokens stand that are drawn: within the first three behind their prompt.
const POSITION: i32 = 5;

pub(crate) fn all(kit: &Kit) {
    for dtype in dtypes(kit) {
        for (shape, rows) in shapes(kit) {
            let (n, k) = *shape;
            let w: Vec<f32> = noise(n as u64, n * k).iter().map(|x| rounded(*x, dtype)).collect();
            let matrix = kit.matrix(&[n], k, &w, dtype);
            for m in some(rows, 2) {
                head(kit, (&matrix, &w), *m);
            }
            absent_rows(kit, &matrix, rows[0]);
        }
    }
}

type Shapes = ((usize, usize), [usize; 4]);

/// Large ones for devices that have kernels for them: few rows, and many in tiles side by side, one below the other and in several.
fn shapes(kit: &Kit) -> impl Iterator<Item = &'static Shapes> {
    const SMALL: [Shapes; 3] = [((33, 16), [1, 2, 8, 9]), ((129, 576), [7, 1, 20, 8]), ((1000, 192), [3, 8, 70, 1])];
    const LARGE: [Shapes; 4] = [
        ((25_336, 576), [65, 300, 127, 256]),
        ((12_680, 1032), [512, 128, 700, 100]),
        ((9000, 2048), [8, 1, 64, 5]),
        ((4225, 192), [2, 8, 66, 7]),
    ];
    let large = kit.device.caps().graphs && kit.act != DType::F32;
    SMALL.iter().chain(LARGE.iter().filter(move |_| large))
}

/// Rows that draw the largest logit as it is, and rows with one processor each; where there are many, the logits of one have a NaN.
fn sampler_rows(n: usize, m: usize) -> Vec<Row> {
    let hot = Row { temperature: 0.8, ..GREEDY };
    let kinds = [
        GREEDY,
        Row { top_k: 1, ..hot.clone() },
        Row { seed: 7, ..hot.clone() },
        Row { biases: vec![(n as i32 / 2, 900.0)], ..GREEDY },
        Row { penalties: [1.0, 0.0, 400.0], output: (0..n / 2).collect(), ..GREEDY },
        Row { min_tokens: 3, ends: (0..n.min(60) as i32 / 2).collect(), ..GREEDY },
        Row { min_tokens: 1, ends: vec![0], ..GREEDY },
    ];
    (0..m).map(|s| kinds[s % kinds.len()].clone()).collect()
}

fn draws_largest(s: usize) -> bool {
    [0, 1, 6].contains(&(s % 7))
}

fn head(kit: &Kit, (matrix, w): (&Matrix, &[f32]), m: usize) {
    let (n, k) = (matrix.rows(), matrix.cols());
    let (what, rows) = (format!("linear_sample {m}x{n}x{k}"), sampler_rows(n, m));
    // The second time logits are others, and smaller ones. Products may be rounded to the dtype of activations.
    for (seed, scale) in [(m as u64, 1.0), (m as u64 + 1, 0.25)] {
        let mut x = kit.noise(seed, m * k);
        x.iter_mut().for_each(|x| *x *= scale);
        if m > 13 {
            x[13 * k + 3] = f32::NAN;
        }
        let acts = kit.acts(&x, k);
        let drawn = |keeps: bool| {
            let whole = kit.floats(&vec![f32::NAN; (m + 1) * n], n);
            let logits = whole.slice_rows(0, m);
            let one =
                |sample: Sample<'_>| kit.stream.linear_sample(&LinearSample { x: &acts, w: matrix, sample, keeps });
            let tokens = drawn_by(kit, &logits, (&rows, POSITION), one).unwrap();
            let mut logits = kit.read(&whole);
            assert!(logits.split_off(m * n).iter().all(|x| x.is_nan()), "{what} wrote behind its logits");
            (tokens, logits)
        };
        let (tokens, logits) = drawn(true);
        assert_eq!(tokens, run(kit, &logits, &rows, POSITION).unwrap(), "{what}: tokens");
        assert!(m <= 13 || tokens[13] == -1, "{what}: a row with a NaN");
        for i in (0..m * n).step_by((m * n * k / 300_000).max(1) | 1).chain([m * n - 1]) {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            if expected.is_finite() {
                close(&what, &logits[i..=i], &[expected], kit.tolerance(4e-7 * k as f64));
            }
        }
        let (others, some_logits) = drawn(false);
        assert_eq!(others, tokens, "{what}: tokens where logits are not kept");
        for (s, (kept, all)) in some_logits.chunks_exact(n).zip(logits.chunks_exact(n)).enumerate() {
            let untouched = draws_largest(s) && kept.iter().all(|x| x.is_nan());
            assert!(untouched || bits(kept) == bits(all), "{what}: logits of row {s}");
        }
    }
}

/// Rows that draw nothing, every other one, have their logits kept: somebody draws from them later.
fn absent_rows(kit: &Kit, matrix: &Matrix, m: usize) {
    let (n, k) = (matrix.rows(), matrix.cols());
    let words = GREEDY.words();
    let (state, out) = (kit.ints(&words, SAMPLER_WORDS), kit.ints(&vec![77; m], 1));
    let logits = kit.floats(&vec![f32::NAN; m * n], n);
    let rows: Vec<i32> = (0..m as i32).map(|s| if s % 2 == 0 { -1 } else { 0 }).collect();
    let sample = Sample {
        logits: &logits,
        rows: &kit.ints(&rows, 1),
        positions: &kit.ints(&vec![POSITION; m], 1),
        state: &state,
        counts: &kit.upload(&vec![0; 2 * n], 1, 2 * n, DType::U8),
        biases: &kit.ints(&GREEDY.bias_words(), 2 * SAMPLER_BIASES),
        out: &out,
    };
    let x = kit.acts(&kit.noise(5, m * k), k);
    kit.stream.linear_sample(&LinearSample { x: &x, w: matrix, sample, keeps: false }).unwrap();
    let (tokens, logits) = (kit.read_ints(&out), kit.read(&logits));
    for (s, (row, token)) in rows.iter().zip(tokens).enumerate() {
        let fits = if *row < 0 { token == 77 } else { (0..n as i32).contains(&token) };
        assert!(fits, "row {s} of {m}x{n}x{k} drew {token}");
        assert!(*row == 0 || logits[s * n..][..n].iter().all(|x| x.is_finite()), "logits of row {s} of {m}x{n}x{k}");
    }
}
