//! `norm_linear` and `linear_norm_linear`: norms, products and what becomes of them in one op, which devices make few launches of where
//! rows are few.

use crate::kit::{Kit, bits, close, noise, rounded, some};
use crate::linear::dtypes;
use crate::rowwise::{gate_model, norm_model};
use yinian::base::DType;
use yinian::hal::ops::{Activation, LinearNormLinear, NormLinear, PART_ROWS, Sum, Then};
use yinian::hal::{Matrix, Tensor};

const EPS: f32 = 1e-5;
const ROWS: [usize; 9] = [1, 8, 2, 16, 3, 9, 4, 7, 17];
/// Columns and numbers of k: units of one strip and of more, one of them and many a block, sums that end inside a tile, rows that
/// are no whole vectors, matrices that are large.
const SHAPES: [(usize, usize); 9] =
    [(16, 64), (1152, 896), (48, 520), (9728, 896), (66, 513), (8448, 2048), (272, 2048), (4240, 4096), (4112, 704)];
/// What is normed: rows, whether they are added to a residual stream first, and the weights of the norm.
struct Front {
    k: usize,
    x: Vec<f32>,
    residual: Option<Vec<f32>>,
    weight: Vec<f32>,
}

impl Front {
    fn new(kit: &Kit, (m, k): (usize, usize), adds: bool) -> Self {
        let residual = adds.then(|| kit.noise(m as u64 + 11, m * k));
        Self { k, x: kit.noise(m as u64 + 10, m * k), residual, weight: noise(12, k) }
    }

    /// The stream as activations keep it, and what the product takes, rounded likewise.
    fn model(&self, kit: &Kit) -> (Vec<f32>, Vec<f32>) {
        let stream = match &self.residual {
            Some(residual) => self.x.iter().zip(residual).map(|(x, r)| rounded(x + r, kit.act)).collect(),
            None => self.x.clone(),
        };
        let normed = norm_model(&stream, &self.weight, f64::from(EPS));
        let normed = normed.iter().map(|x| rounded(*x as f32, kit.act)).collect();
        (stream, normed)
    }

    /// Runs the op and checks the stream.
    fn run(&self, kit: &Kit, (w, bias): (&Matrix, Option<&Tensor>), then: Then<'_>, what: &str) {
        let (x, normed) = (kit.acts(&self.x, self.k), kit.poisoned(self.x.len() / self.k, self.k));
        let add = self.residual.as_ref().map(|r| (kit.acts(r, self.k), kit.poisoned(r.len() / self.k, self.k)));
        let (add, weight) = (add.as_ref().map(|(residual, sum)| (residual, sum)), kit.floats(&self.weight, self.k));
        let args = NormLinear { x: &x, normed: &normed, add, weight: &weight, eps: EPS, w, bias, then };
        let sum = kit.stream.norm_linear(&args).unwrap();
        match add {
            Some((residual, moved)) => {
                let at = if sum == Sum::Moved { moved } else { residual };
                assert_eq!(bits(&kit.read(at)), bits(&self.model(kit).0), "residual stream of {what}");
            }
            None => assert_eq!(sum, Sum::InPlace, "{what}"),
        }
    }
}

/// What a result may be off: numbers that the product takes may be off by a unit in their last place, as may what it is rounded to.
fn tolerance(kit: &Kit, k: usize) -> f64 {
    4.0 * kit.tolerance(0.0) + kit.tolerance(0.0) * (k as f64).sqrt() / 4.0 + 6e-7 * k as f64
}

pub(crate) fn products(kit: &Kit) {
    run(kit, |_| true);
}

/// Those that some devices have a kernel of their own for: few and short rows of whole vectors.
pub(crate) fn few_rows(kit: &Kit) {
    run(kit, |(m, n, k)| m <= 8 && n.is_multiple_of(16) && k.is_multiple_of(8) && m * (k + 128) <= 4800);
}

/// Gates of many rows, which some devices have a kernel of their own for: of shapes that such a kernel's tiles suit but for rows, columns
/// and sums that end inside of one.
pub(crate) fn many_rows(kit: &Kit) {
    const SHAPES: [((usize, usize), [usize; 3]); 3] =
        [((28_640, 520), [1000, 125, 509]), ((21_984, 1024), [380, 512, 766]), ((25_200, 576), [253, 383, 256])];
    // Where steps are not recorded, large ones are products like others, only longer.
    const SMALL: [((usize, usize), [usize; 3]); 1] = [((272, 520), [65, 130, 127])];
    let large = kit.device.caps().graphs && kit.act != DType::F32;
    for dtype in dtypes(kit) {
        for (i, ((n, k), rows)) in some(if large { SHAPES.as_slice() } else { &SMALL }.iter().copied(), 2).enumerate() {
            let w: Vec<f32> = noise(n as u64, n * k).iter().map(|x| rounded(*x, dtype)).collect();
            let matrix = kit.matrix(&[n], k, &w, dtype);
            for (j, m) in some(rows, 2).enumerate() {
                let front = Front::new(kit, (m, k), j == 0);
                let bias = (j != 1).then(|| kit.noise(n as u64 + 13, n));
                let activation = [Activation::Silu, Activation::GeluTanh][(i + j) % 2];
                product(kit, &front, (&matrix, &w, bias.as_deref()), Some(activation));
            }
        }
    }
}

fn run(kit: &Kit, takes: impl Fn((usize, usize, usize)) -> bool) {
    for dtype in dtypes(kit) {
        // No device treats larger matrices of F32 otherwise.
        let shapes = some(SHAPES, 2).enumerate().filter(|(_, (n, k))| kit.act != DType::F32 || n * k < 1 << 21);
        for (i, (n, k)) in shapes {
            let w: Vec<f32> = noise(n as u64, n * k).iter().map(|x| rounded(*x, dtype)).collect();
            let matrix = kit.matrix(&[n], k, &w, dtype);
            for (j, m) in some(ROWS, 2).enumerate().filter(|(_, m)| takes((*m, n, k))) {
                let front = Front::new(kit, (m, k), j % 4 != 3);
                let bias = (i + j).is_multiple_of(2).then(|| kit.noise(n as u64 + 13, n));
                let activation = [None, Some(Activation::Silu), Some(Activation::GeluTanh)][(i + j) % 3];
                product(kit, &front, (&matrix, &w, bias.as_deref()), activation.filter(|_| n.is_multiple_of(2)));
            }
        }
    }
}

/// Some rows over large matrices with gates, which some devices have a kernel of their own for: rows at the borders of its instances,
/// units of one block and of two, columns that end inside a strip and a stripe.
pub(crate) fn some_rows(kit: &Kit) {
    const SHAPES: [((usize, usize), [usize; 4]); 4] = [
        ((22_016, 768), [9, 32, 33, 64]),
        ((24_002, 704), [16, 17, 48, 63]),
        ((8450, 2048), [10, 31, 34, 49]),
        ((33_000, 576), [15, 16, 47, 64]),
    ];
    const SMALL: [((usize, usize), [usize; 4]); 1] = [((1002, 576), [9, 32, 47, 64])];
    let large = kit.device.caps().graphs && kit.act != DType::F32;
    for dtype in dtypes(kit) {
        for (i, ((n, k), rows)) in some(if large { SHAPES.as_slice() } else { &SMALL }, 2).enumerate() {
            let w: Vec<f32> = noise(*n as u64, n * k).iter().map(|x| rounded(*x, dtype)).collect();
            let matrix = kit.matrix(&[*n], *k, &w, dtype);
            for (j, m) in some(rows, 2).enumerate() {
                let front = Front::new(kit, (*m, *k), j % 4 != 3);
                let bias = (i + j).is_multiple_of(2).then(|| kit.noise(*n as u64 + 13, *n));
                let activation = [Activation::Silu, Activation::GeluTanh][j % 2];
                product(kit, &front, (&matrix, &w, bias.as_deref()), Some(activation));
            }
        }
    }
}

/// Products in a chain, large ones, of which some devices take the norm apart: columns of the first one that are spread over one block
/// and over two, evenly and not, sums that end inside a slot; and some that devices take as they come.
pub(crate) fn chains(kit: &Kit) {
    // Columns of the second product, of the first one, and numbers that it adds up.
    const SHAPES: [((usize, usize, usize), [usize; 4]); 5] = [
        ((6144, 4096, 4096), [9, 32, 33, 64]),
        ((2048, 1024, 1408), [20, 66, 300, 1100]),
        ((8456, 5184, 3264), [16, 17, 48, 63]),
        ((3001, 12_288, 1408), [10, 31, 34, 49]),
        ((5000, 4098, 4096), [8, 15, 47, 65]),
    ];
    const SMALL: [((usize, usize, usize), [usize; 4]); 1] = [((66, 520, 64), [1, 9, 33, 64])];
    let large = kit.device.caps().graphs && kit.act != DType::F32;
    for dtype in dtypes(kit) {
        for ((n, k, l), rows) in some(if large { SHAPES.as_slice() } else { &SMALL }, 2) {
            let weights = |n: usize, k: usize| -> Vec<f32> {
                noise((n + k) as u64, n * k).iter().map(|x| rounded(*x / 16.0, dtype)).collect()
            };
            let values = [weights(*k, *l), weights(*n, *k)];
            let matrices = [kit.matrix(&[*k], *l, &values[0], dtype), kit.matrix(&[*n], *k, &values[1], dtype)];
            for (j, m) in some(rows, 2).enumerate() {
                let activation = [Some(Activation::Silu), None][j % 2].filter(|_| n.is_multiple_of(2));
                chain(kit, (&matrices, &values), *m, (j < 2, activation));
            }
        }
    }
}

/// The residual stream is compared with the model, and what becomes of it with the model of what it became.
fn chain(
    kit: &Kit,
    (matrices, values): (&[Matrix; 2], &[Vec<f32>; 2]),
    m: usize,
    (has_bias, activation): (bool, Option<Activation>),
) {
    let (n, k, l) = (matrices[1].rows(), matrices[1].cols(), matrices[0].cols());
    let columns = if activation.is_some() { n / 2 } else { n };
    let what = format!("linear_norm_linear {m}x{n}x{k}x{l}, {activation:?}");
    let (x, residual, weight) = (kit.noise(m as u64, m * l), kit.noise(m as u64 + 1, m * k), noise(2, k));
    let biases = [k, n].map(|n| kit.noise(n as u64 + 3, n));
    let whole = kit.poisoned(m + 1, columns);
    let (out, room, product, normed) =
        (whole.slice_rows(0, m), kit.poisoned(room_of(m), n), kit.poisoned(m, k), kit.poisoned(m, k));
    let (stream, moved, norm) = (kit.acts(&residual, k), kit.poisoned(m, k), kit.floats(&weight, k));
    let bias_tensors = [k, n].iter().zip(&biases).map(|(n, b)| kit.floats(b, *n)).collect::<Vec<_>>();
    let bias = |i: usize| has_bias.then(|| &bias_tensors[i]);
    let then = activation.map_or(Then::Keep(&out), |activation| Then::Gate(&out, &room, activation));
    let behind = NormLinear {
        x: &product,
        normed: &normed,
        add: Some((&stream, &moved)),
        weight: &norm,
        eps: EPS,
        w: &matrices[1],
        bias: bias(1),
        then,
    };
    let args = LinearNormLinear { x: &kit.acts(&x, l), w: &matrices[0], bias: bias(0), behind };
    let sum = kit.stream.linear_norm_linear(&args).unwrap();
    let stream = kit.read(if sum == Sum::Moved { &moved } else { &stream });
    let dot = |i: usize, (x, c): (&[f32], usize)| -> f64 {
        let w = &values[i][c * x.len()..];
        let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        f64::from(rounded((sum + if has_bias { f64::from(biases[i][c]) } else { 0.0 }) as f32, kit.act))
    };
    for i in (0..m * k).step_by((m * k * l / 300_000).max(1) | 1).chain([m * k - 1]) {
        let expected = dot(0, (&x[i / k * l..][..l], i % k)) + f64::from(residual[i]);
        close(&format!("residual stream of {what}"), &stream[i..=i], &[expected], tolerance(kit, l));
    }
    let normed =
        norm_model(&stream, &weight, f64::from(EPS)).iter().map(|x| rounded(*x as f32, kit.act)).collect::<Vec<_>>();
    let got = kit.read(&whole);
    assert!(got[..m * columns].iter().all(|x| x.is_finite()), "{what} has elements that are no numbers");
    assert!(got[m * columns..].iter().all(|x| x.is_nan()), "{what} wrote behind its output");
    for i in (0..m * columns).step_by((m * columns * k / 300_000).max(1) | 1).chain([m * columns - 1]) {
        let (row, c) = (&normed[i / columns * k..][..k], i % columns);
        let first = dot(1, (row, c));
        let (expected, size) = activation.map_or((first, 1.0), |activation| {
            let second = dot(1, (row, c + columns));
            (gate_model(activation, first) * second, 1.0 + first.abs().max(second.abs()))
        });
        close(&what, &got[i..=i], &[expected], tolerance(kit, k) * size);
    }
}

/// Rows of the room for a product that goes through a gate: many rows go in parts, the last of them shorter.
fn room_of(rows: usize) -> usize {
    if rows > 64 { rows.div_ceil(3).next_multiple_of(PART_ROWS) } else { rows }
}

/// One product, of large ones some elements.
fn product(
    kit: &Kit,
    front: &Front,
    (matrix, w, bias): (&Matrix, &[f32], Option<&[f32]>),
    activation: Option<Activation>,
) {
    let (n, k) = (matrix.rows(), front.k);
    let (m, columns) = (front.x.len() / k, if activation.is_some() { n / 2 } else { n });
    let what = format!("norm_linear {m}x{n}x{k}, {activation:?}");
    let whole = kit.poisoned(m + 1, columns);
    let (out, room, bias_tensor) =
        (whole.slice_rows(0, m), kit.poisoned(room_of(m), n), bias.map(|b| kit.floats(b, n)));
    let then = match activation {
        Some(activation) => Then::Gate(&out, &room, activation),
        None => Then::Keep(&out),
    };
    front.run(kit, (matrix, bias_tensor.as_ref()), then, &what);
    let got = kit.read(&whole);
    assert!(got[..m * columns].iter().all(|x| x.is_finite()), "{what} has elements that are no numbers");
    assert!(got[m * columns..].iter().all(|x| x.is_nan()), "{what} wrote behind its output");
    let normed = front.model(kit).1;
    let dot = |r: usize, c: usize| -> f64 {
        let sum = (0..k).map(|i| f64::from(normed[r * k + i]) * f64::from(w[c * k + i])).sum::<f64>();
        f64::from(rounded((sum + bias.map_or(0.0, |b| f64::from(b[c]))) as f32, kit.act))
    };
    for i in (0..m * columns).step_by((m * columns * k / 300_000).max(1) | 1).chain([m * columns - 1]) {
        let (r, c) = (i / columns, i % columns);
        let first = dot(r, c);
        let (expected, size) = activation.map_or((first, 1.0), |activation| {
            let second = dot(r, c + columns);
            // An error of either factor grows by the other.
            (gate_model(activation, first) * second, 1.0 + first.abs().max(second.abs()))
        });
        close(&what, &got[i..=i], &[expected], tolerance(kit, k) * size);
    }
}
