//! The head of published shapes with the draws from its logits: in two ops and in one, for rows that draw their largest logit and
//! for rows that draw by temperature.

use crate::Bench;
use yinian::base::DType;
use yinian::base::config::NumericMode;
use yinian::hal::ops::{LinearSample, SAMPLER_BIASES, SAMPLER_WORDS, Sample, SamplerWord};
use yinian::hal::{Matrix, RandomRows};

/// Names, columns of logits, and numbers that each adds up.
const HEADS: &[(&str, usize, usize)] = &[("s05", 151_936, 896), ("s8", 128_256, 4096)];
const ROWS: &[usize] = &[1, 8, 16, 32, 64, 66, 96, 128, 192, 256, 384, 512];
/// Of rows that do not draw their largest logit.
const TEMPERATURE: f32 = 0.8;

pub(crate) fn table(device: &str, only: &str, tiny: bool) {
    let (heads, all_rows): (&[_], &[usize]) = if tiny { (&[("tiny", 192, 128)], &[1, 8]) } else { (HEADS, ROWS) };
    let bench = Bench::open(device, NumericMode::Fast);
    println!(
        "{:<28} {:>12} {:>9} {:>7} {:>12} {:>9} {:>7}",
        "head, us", "largest: two", "one", "", "drawn: two", "one", ""
    );
    for &(name, n, k) in heads {
        let matrix = |seed| bench.device.random_matrix(&[RandomRows { rows: n, seed, width: 0.1 }], k, DType::Bf16);
        let weights = [1, 2].map(|seed| matrix(seed).expect("memory"));
        for &m in all_rows {
            let title = format!("{name} {n}x{k}, {m} rows");
            if !title.contains(only) {
                continue;
            }
            let times = [0.0, TEMPERATURE].map(|temperature| {
                let [two, one] = [false, true].map(|one| time(&bench, (&weights, m), (temperature, one)));
                format!("{two:>12.2} {one:>9.2} {:>6.2}x", two / one)
            });
            println!("{title:<28} {}", times.join(" "));
        }
    }
}

fn time(bench: &Bench, (weights, m): (&[Matrix; 2], usize), (temperature, in_one): (f32, bool)) -> f64 {
    let (n, k) = (weights[0].rows(), weights[0].cols());
    let mut words = [0; SAMPLER_WORDS];
    words[SamplerWord::Temperature as usize] = temperature.to_bits() as i32;
    words[SamplerWord::TopP as usize] = 1.0_f32.to_bits() as i32;
    let (state, x) = (bench.ints(&words.repeat(m), SAMPLER_WORDS), bench.acts(m, k));
    let (rows, positions) = (bench.ints(&(0..m as i32).collect::<Vec<_>>(), 1), bench.ints(&vec![4; m], 1));
    let sample = Sample {
        logits: &bench.upload(&vec![0; 4 * m * n], m, n, DType::F32),
        rows: &rows,
        positions: &positions,
        state: &state,
        counts: &bench.upload(&vec![0; 2 * m * n], m, 2 * n, DType::U8),
        biases: &bench.ints(&vec![0; 2 * m * SAMPLER_BIASES], 2 * SAMPLER_BIASES),
        out: &bench.ints(&vec![0; m], 1),
    };
    bench.time(weights.len(), &mut || {
        for w in weights {
            let done = if in_one {
                bench.stream.linear_sample(&LinearSample { x: &x, w, sample, keeps: false })
            } else {
                bench.stream.linear(sample.logits, &x, w, None).and_then(|()| bench.stream.sample(&sample))
            };
            done.expect("logits and draws");
        }
    })
}
