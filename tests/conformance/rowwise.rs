//! Ops that treat each row alone.

use crate::kit::{Kit, WEIGHTS, bits, close, encode, noise, rounded, some};
use std::sync::Arc;
use std::time::Duration;
use yinian::base::DType;
use yinian::base::config::Placement;
use yinian::base::rng::SplitMix64;
use yinian::hal::load::{FilePart, MatrixPart, WeightFile};
use yinian::hal::ops::{Activation, SAMPLER_WORDS, SamplerWord};
use yinian::hal::{HostMatrix, Matrix, RandomRows};

const ROWS: [usize; 4] = [1, 2, 17, 130];
const COLS: [usize; 9] = [1, 7, 15, 16, 33, 63, 65, 576, 8200];
/// Rows of norms that are so many that devices may go about them otherwise, and their columns.
const MANY_ROWS: [(usize, usize); 3] = [(1100, 1032), (1057, 4096), (1200, 8200)];

pub(crate) fn copies(kit: &Kit) {
    let x = noise(1, 5 * 33);
    let tensor = kit.floats(&x, 33);
    assert_eq!(kit.read(&tensor), x);
    assert_eq!(kit.read(&tensor.slice_rows(3, 2)), x[3 * 33..]);
}

pub(crate) fn embed(kit: &Kit) {
    embed_from(kit, |table, rows, cols, dtype| kit.matrix(&[rows], cols, table, dtype));
}

/// The same from a table in host memory, of one part and of two.
pub(crate) fn embed_from_host(kit: &Kit) {
    embed_from(kit, |table, rows, cols, dtype| {
        let bytes = encode(table, dtype);
        let (above, below) = bytes.split_at(rows / 2 * cols * dtype.size());
        let parts = [(rows / 2, above), (rows - rows / 2, below)];
        let parts = parts.map(|(rows, data)| HostMatrix { rows, cols, dtype, data });
        kit.device.load_host_matrix(if rows > 1 { &parts } else { &parts[1..] }).unwrap()
    });
    for dtype in WEIGHTS {
        let (rows, cols) = (50, 4096);
        let recipe = RandomRows { rows, seed: 11, width: 3.0 };
        let tables = [
            kit.device.random_host_matrix(&[recipe], cols, dtype).unwrap(),
            kit.device.random_matrix(&[recipe], cols, dtype).unwrap(),
        ];
        let ids: Vec<i32> = (0..rows as i32).rev().collect();
        let state = kit.ints(&[0; SAMPLER_WORDS], SAMPLER_WORDS);
        let [host, own] = tables.map(|table| {
            let out = kit.poisoned(rows, cols);
            kit.stream.embed(&out, &table, &kit.ints(&ids, 1), &state, 1.0).unwrap();
            bits(&kit.read(&out))
        });
        assert!(host == own, "random table of {dtype}");
    }
}

/// Matrices that a device loads from a file, several at once: parts of any length at any offset, one of them from memory.
pub(crate) fn loaded_from_files(kit: &Kit) {
    const BYTES: usize = 40 << 20;
    // Two numbers of 0.5 to 1.
    const MANTISSAS: u64 = 0x007f_ffff_007f_ffff;
    const HALVES: u64 = 0x3f00_0000_3f00_0000;
    let Some(mut loader) = kit.device.loader(1 << 30, 64 << 20).unwrap() else { return };
    let mut rng = SplitMix64(5);
    let bytes: Vec<u8> = (0..BYTES / 8).flat_map(|_| (rng.next_u64() & MANTISSAS | HALVES).to_le_bytes()).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let file = Arc::new(WeightFile { file: file.reopen().unwrap(), path: file.path().to_owned() });
    let part = |offset: usize, rows: usize, cols: usize| MatrixPart {
        matrix: HostMatrix { rows, cols, dtype: DType::F32, data: &bytes[offset..offset + rows * cols * 4] },
        file: Some(FilePart { file: Arc::clone(&file), offset: offset as u64 }),
    };
    let mut tables = Vec::new();
    let shapes = [(0, 3, 5), (12, 4001, 1000), (8, 2048, 512), (16, 1 << 20, 8), (20 << 20, 7, 33), (4, 5_000_000, 2)];
    for (offset, rows, cols) in shapes {
        for placement in [Placement::Device, Placement::Host] {
            let mut parts = [part(offset, rows, cols), part(offset + 4, rows, cols), part(offset, 1, cols)];
            parts[2].file = None;
            tables.push((loader.load(&parts, placement).unwrap(), offset, rows, cols));
        }
    }
    while !loader.finish(Duration::from_millis(5)).unwrap() {}
    assert_eq!(loader.pending_bytes(), 0);
    for (table, offset, rows, cols) in tables {
        assert_eq!((table.rows(), table.cols()), (2 * rows + 1, cols));
        // Every row of short tables, the ends of pieces of long ones.
        let step = (rows / 997).max(1) | 1;
        let ids: Vec<i32> = (0..2 * rows as i32 + 1).rev().step_by(step).collect();
        let out = kit.poisoned(ids.len(), cols);
        let state = kit.ints(&[0; SAMPLER_WORDS], SAMPLER_WORDS);
        kit.stream.embed(&out, &table, &kit.ints(&ids, 1), &state, 1.0).unwrap();
        let row_of = |id: usize| match id / rows {
            0 => offset + id * cols * 4,
            1 => offset + 4 + (id - rows) * cols * 4,
            _ => offset,
        };
        let value = |at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let expected = ids.iter().flat_map(|id| (0..cols).map(|c| value(row_of(*id as usize) + 4 * c)));
        let expected: Vec<f32> = expected.map(|x| rounded(x, kit.act)).collect();
        assert!(bits(&kit.read(&out)) == bits(&expected), "{rows}x{cols} at {offset}");
    }
}

/// Compares what `embed` makes of the table that `load` puts on the device from its values, rows, columns and dtype.
fn embed_from(kit: &Kit, load: impl Fn(&[f32], usize, usize, DType) -> Matrix) {
    for dtype in WEIGHTS {
        for (rows, cols) in [(1, 1), (31, 7), (32, 64), (33, 576), (97, 16)] {
            let table = noise(rows as u64, rows * cols);
            let matrix = load(&table, rows, cols, dtype);
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

pub(crate) fn norm_model(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let n = weight.len();
    x.chunks_exact(n)
        .flat_map(|row| {
            let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
            let scale = 1.0 / (mean + eps).sqrt();
            row.iter().zip(weight).map(move |(v, w)| f64::from(*v) * scale * f64::from(*w))
        })
        .collect()
}

fn norm_shapes(kit: &Kit) -> impl Iterator<Item = (usize, usize)> {
    let of = |rows| some(COLS, 4).map(move |cols| (rows, cols));
    let many = if kit.device.caps().graphs { MANY_ROWS.as_slice() } else { &[] };
    some(ROWS, 2).flat_map(of).chain(some(many, 2).copied())
}

pub(crate) fn rms_norm(kit: &Kit) {
    for (rows, cols) in norm_shapes(kit) {
        let (x, w) = (kit.noise(2, rows * cols), noise(3, cols));
        let (xt, wt, out) = (kit.acts(&x, cols), kit.floats(&w, cols), kit.poisoned(rows, cols));
        kit.stream.rms_norm(&out, &xt, &wt, 1e-5).unwrap();
        let expected = norm_model(&x, &w, 1e-5);
        close(&format!("rms_norm {rows}x{cols}"), &kit.read(&out), &expected, kit.tolerance(2e-6));
        kit.stream.rms_norm(&xt, &xt, &wt, 1e-5).unwrap();
        assert_eq!(bits(&kit.read(&xt)), bits(&kit.read(&out)), "rms_norm in place");
    }
}

pub(crate) fn add_rms_norm(kit: &Kit) {
    for (rows, cols) in norm_shapes(kit) {
        let (r, x, w) = (kit.noise(4, rows * cols), kit.noise(5, rows * cols), noise(6, cols));
        let (rt, xt, out) = (kit.acts(&r, cols), kit.acts(&x, cols), kit.poisoned(rows, cols));
        kit.stream.add_rms_norm(&out, &rt, &xt, &kit.floats(&w, cols), 1e-6).unwrap();
        let sum: Vec<f32> = r.iter().zip(&x).map(|(a, b)| rounded(a + b, kit.act)).collect();
        assert_eq!(bits(&kit.read(&rt)), bits(&sum), "residual {rows}x{cols}");
        let expected = norm_model(&sum, &w, 1e-6);
        close(&format!("add_rms_norm {rows}x{cols}"), &kit.read(&out), &expected, kit.tolerance(2e-6));
    }
}

/// What a gate becomes before it multiplies.
pub(crate) fn gate_model(activation: Activation, g: f64) -> f64 {
    match activation {
        Activation::Silu => g / (1.0 + (-g).exp()),
        Activation::GeluTanh => {
            0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh())
        }
    }
}

fn act_mul(kit: &Kit, activation: Activation) {
    for rows in some(ROWS, 2) {
        for cols in some(COLS, 4) {
            let mut x: Vec<f32> = noise(7, rows * 2 * cols).iter().map(|v| rounded(v * 20.0, kit.act)).collect();
            x[0] = [-200.0, 200.0, 0.0][cols % 3];
            let out = kit.poisoned(rows, cols);
            kit.stream.act_mul(&out, &kit.acts(&x, 2 * cols), activation).unwrap();
            let expected: Vec<f64> = x
                .chunks_exact(2 * cols)
                .flat_map(|row| (0..cols).map(|i| gate_model(activation, f64::from(row[i])) * f64::from(row[cols + i])))
                .collect();
            close(&format!("act_mul {activation:?} {rows}x{cols}"), &kit.read(&out), &expected, kit.tolerance(1e-6));
        }
    }
}

pub(crate) fn silu_mul(kit: &Kit) {
    act_mul(kit, Activation::Silu);
}

pub(crate) fn gelu_mul(kit: &Kit) {
    act_mul(kit, Activation::GeluTanh);
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
    for cols in some(COLS, 4) {
        let x = kit.noise(8, 19 * cols);
        let index: Vec<i32> = (0..23).map(|i| (i * 5) % 19).collect();
        let out = kit.poisoned(index.len(), cols);
        kit.stream.gather_rows(&out, &kit.acts(&x, cols), &kit.ints(&index, 1)).unwrap();
        let expected: Vec<f32> = index.iter().flat_map(|i| &x[*i as usize * cols..][..cols]).copied().collect();
        assert_eq!(kit.read(&out), expected, "gather_rows of {cols}");
    }
}

pub(crate) fn copy_rows(kit: &Kit) {
    for cols in COLS.into_iter().chain([SAMPLER_WORDS]) {
        let (x, before) = (noise(8, 19 * cols), noise(9, 31 * cols));
        let to: Vec<i32> = (0..13).map(|i| (i * 7 + 30) % 31).collect();
        let from: Vec<i32> = (0..13).map(|i| (i * 5) % 19).collect();
        let mut expected = before.clone();
        for (to, from) in to.iter().zip(&from) {
            let row = &x[*from as usize * cols..][..cols];
            expected[*to as usize * cols..][..cols].copy_from_slice(row);
        }
        let (out, index) = (kit.floats(&before, cols), (kit.ints(&to, 1), kit.ints(&from, 1)));
        kit.stream.copy_rows((&out, &index.0), (&kit.floats(&x, cols), &index.1)).unwrap();
        assert_eq!(kit.read(&out), expected, "copy_rows of {cols}");
        let words = |x: &[f32]| -> Vec<i32> { x.iter().map(|v| v.to_bits() as i32).collect() };
        let out = kit.ints(&words(&before), cols);
        kit.stream.copy_rows((&out, &index.0), (&kit.ints(&words(&x), cols), &index.1)).unwrap();
        assert_eq!(kit.read_ints(&out), words(&expected), "copy_rows of {cols} I32");
    }
}

pub(crate) fn mask_logits(kit: &Kit) {
    for (rows, vocabulary) in [(1, 1), (2, 31), (3, 32), (1, 33), (17, 1000), (2, 8193)] {
        let x = noise(3, rows * vocabulary);
        let words = vocabulary.div_ceil(32);
        // All, none, and some; bits behind the vocabulary are anybody's.
        let masks: Vec<i32> = (0..rows * words)
            .map(|i| match i % 5 {
                0 => -1,
                1 => 0,
                _ => (i as i32).wrapping_mul(0x9e37_79b9_u32 as i32),
            })
            .collect();
        let logits = kit.floats(&x, vocabulary);
        kit.stream.mask_logits(&logits, &kit.ints(&masks, words)).unwrap();
        for (i, (got, x)) in kit.read(&logits).iter().zip(&x).enumerate() {
            let (s, v) = (i / vocabulary, i % vocabulary);
            let allowed = masks[s * words + v / 32] >> (v % 32) & 1 == 1;
            assert_eq!(*got, if allowed { *x } else { f32::NEG_INFINITY }, "token {v} of row {s}");
        }
    }
}
