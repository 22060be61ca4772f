//! `sample` and `logprobs` on vocabularies of real size, where searches work on parts of a row.

use crate::kit::{Kit, noise, some};
use crate::sample::{GREEDY, Row, candidates, processed, reports, run};
use yinian::base::rng;

const VOCABULARIES: [usize; 3] = [128_256, 151_936, 32_003];
const PROMPT_LEN: i32 = 4;

/// Logits of a kind: a bell of noise, a few tokens far above the rest, all but equal, all equal, and mostly forbidden.
fn logits(kind: usize, vocabulary: usize) -> Vec<f32> {
    let bell = |seed| -> Vec<f32> {
        let parts = [0_u64, 1, 2, 3].map(|i| noise(seed + i, vocabulary));
        (0..vocabulary).map(|i| parts.iter().map(|p| p[i]).sum()).collect()
    };
    match kind {
        0 => bell(10),
        1 => bell(20).iter().enumerate().map(|(i, x)| if i % 997 == 5 { 10.0 + 3.0 * x } else { *x }).collect(),
        2 => bell(30).iter().map(|x| x * 1e-4).collect(),
        3 => vec![-1.5; vocabulary],
        _ => bell(40).iter().enumerate().map(|(i, x)| if i % 1000 == 7 { *x } else { f32::NEG_INFINITY }).collect(),
    }
}

/// The drawn token is the one on whose share of the kept mass the random number falls; at borders either neighbour.
pub(crate) fn draws(kit: &Kit) {
    let wishes = [
        (1.0, 0, 1.0, 0.0),
        (0.7, 50, 1.0, 0.0),
        (1.0, 0, 0.9, 0.0),
        (1.3, 5000, 0.95, 0.02),
        (20.0, 100_000, 0.5, 0.0),
    ];
    for vocabulary in some(VOCABULARIES, 3) {
        for kind in some(0..5, 3) {
            let logits = logits(kind, vocabulary);
            let mut rows: Vec<Row> = wishes
                .iter()
                .enumerate()
                .map(|(i, (temperature, top_k, top_p, min_p))| Row {
                    temperature: *temperature,
                    top_k: *top_k,
                    top_p: *top_p,
                    min_p: *min_p,
                    seed: (i * 31 + kind) as u64,
                    ..GREEDY
                })
                .collect();
            rows.push(GREEDY);
            let busy =
                Row { prompt: vec![5, 9], output: vec![1002; 3], penalties: [1.2, 0.5, 0.25], ..rows[0].clone() };
            rows.push(Row { biases: vec![(7, 2.0), (vocabulary as i32 - 1, 4.0)], ..busy });
            let all: Vec<f32> = rows.iter().flat_map(|_| logits.clone()).collect();
            let drawn = run(kit, &all, &rows, 9).unwrap();
            for (row, token) in rows.iter().zip(drawn) {
                check(row, &logits, token, &format!("vocabulary {vocabulary}, logits {kind}"));
            }
        }
    }
}

fn check(row: &Row, logits: &[f32], token: i32, what: &str) {
    let logits = processed(logits, row);
    if row.temperature == 0.0 {
        let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        return assert_eq!(token, best as i32, "{what}: the most probable");
    }
    let u = f64::from(rng::uniform(row.seed, row.choice as u32, (9 - PROMPT_LEN) as u32));
    let mut below = 0.0;
    for (id, p) in candidates(&logits, row) {
        if id as i32 == token {
            assert!(
                below <= u + 1e-6 && below + p >= u - 1e-6,
                "{what}: {u} is not in {below} + {p} of {token}, {row:?}"
            );
            return;
        }
        below += p;
    }
    panic!("{what}: {token} is no candidate of {row:?}");
}

pub(crate) fn logprobs(kit: &Kit) {
    for (seed, vocabulary) in some(VOCABULARIES, 3).enumerate() {
        reports(kit, seed, (vocabulary, 3, 20));
    }
}
