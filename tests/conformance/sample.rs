//! `sample` against a plain model of its processors: biases, penalties, temperature, top-k, top-p, min-p, in this order.

use crate::kit::{Kit, noise, some};
use yinian::base::DType;
use yinian::base::rng::{self, SplitMix64};
use yinian::hal::Tensor;
use yinian::hal::ops::{
    Logprobs, SAMPLER_BIASES, SAMPLER_END_TOKENS, SAMPLER_IN_PROMPT, SAMPLER_WORDS, Sample, SamplerWord as Word,
};

#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) temperature: f32,
    pub(crate) top_k: i32,
    pub(crate) top_p: f32,
    pub(crate) seed: u64,
    pub(crate) choice: i32,
    pub(crate) prompt_len: i32,
    pub(crate) min_tokens: i32,
    pub(crate) ends: Vec<i32>,
    pub(crate) min_p: f32,
    /// Repetition, presence, frequency; not counted when neutral.
    pub(crate) penalties: [f32; 3],
    pub(crate) prompt: Vec<usize>,
    pub(crate) output: Vec<usize>,
    pub(crate) biases: Vec<(i32, f32)>,
}

const NEUTRAL: [f32; 3] = [1.0, 0.0, 0.0];
pub(crate) const GREEDY: Row = Row {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    seed: 0,
    choice: 0,
    prompt_len: 4,
    min_tokens: 0,
    ends: Vec::new(),
    min_p: 0.0,
    penalties: NEUTRAL,
    prompt: Vec::new(),
    output: Vec::new(),
    biases: Vec::new(),
};

impl Row {
    pub(crate) fn words(&self) -> Vec<i32> {
        let mut words = vec![0x7f7f_7f7f; SAMPLER_WORDS];
        words[Word::Temperature as usize] = self.temperature.to_bits() as i32;
        words[Word::TopK as usize] = self.top_k;
        words[Word::TopP as usize] = self.top_p.to_bits() as i32;
        words[Word::SeedLow as usize] = self.seed as i32;
        words[Word::SeedHigh as usize] = (self.seed >> 32) as i32;
        words[Word::Choice as usize] = self.choice;
        words[Word::PromptLen as usize] = self.prompt_len;
        words[Word::MinTokens as usize] = self.min_tokens;
        words[Word::NumEndTokens as usize] = self.ends.len() as i32;
        words[SAMPLER_END_TOKENS..SAMPLER_END_TOKENS + self.ends.len()].copy_from_slice(&self.ends);
        words[Word::MinP as usize] = self.min_p.to_bits() as i32;
        words[Word::CountsTokens as usize] = i32::from(self.counts_tokens());
        words[Word::RepetitionPenalty as usize] = self.penalties[0].to_bits() as i32;
        words[Word::PresencePenalty as usize] = self.penalties[1].to_bits() as i32;
        words[Word::FrequencyPenalty as usize] = self.penalties[2].to_bits() as i32;
        words[Word::NumBiases as usize] = self.biases.len() as i32;
        words
    }

    fn counts_tokens(&self) -> bool {
        self.penalties != NEUTRAL
    }

    /// Rubbish for rows that do not count: nobody may look.
    fn counts(&self, vocabulary: usize) -> Vec<u16> {
        if !self.counts_tokens() {
            return vec![0x7f7f; vocabulary];
        }
        let mut counts = vec![0; vocabulary];
        self.prompt.iter().for_each(|t| counts[*t] |= SAMPLER_IN_PROMPT);
        self.output.iter().for_each(|t| counts[*t] += 1);
        counts
    }

    pub(crate) fn bias_words(&self) -> Vec<i32> {
        let mut words: Vec<i32> = self.biases.iter().flat_map(|(id, bias)| [*id, bias.to_bits() as i32]).collect();
        words.resize(2 * SAMPLER_BIASES, 0x0101);
        words
    }
}

/// Draws for `rows`, whose logits are the rows of `logits`, at `position`; sampler rows stand in reverse order.
pub(crate) fn run(kit: &Kit, logits: &[f32], rows: &[Row], position: i32) -> yinian::base::Result<Vec<i32>> {
    let logits = kit.floats(logits, logits.len() / rows.len());
    drawn_by(kit, &logits, (rows, position), |sample| kit.stream.sample(&sample))
}

/// The same by whatever `enqueue` does.
pub(crate) fn drawn_by(
    kit: &Kit,
    logits: &Tensor,
    (rows, position): (&[Row], i32),
    enqueue: impl FnOnce(Sample<'_>) -> yinian::base::Result<()>,
) -> yinian::base::Result<Vec<i32>> {
    let (n, vocabulary) = (rows.len(), logits.cols());
    let state: Vec<i32> = rows.iter().rev().flat_map(Row::words).collect();
    let index: Vec<i32> = (0..n as i32).rev().collect();
    let (state, out) = (kit.ints(&state, SAMPLER_WORDS), kit.ints(&vec![0x7f7f_7f7f; n], 1));
    let mut counted: Vec<Vec<u16>> = rows.iter().rev().map(|r| r.counts(vocabulary)).collect();
    let bytes: Vec<u8> = counted.iter().flatten().flat_map(|c| c.to_ne_bytes()).collect();
    let counts = kit.upload(&bytes, n, 2 * vocabulary, DType::U8);
    let biases: Vec<i32> = rows.iter().rev().flat_map(Row::bias_words).collect();
    let biases = kit.ints(&biases, 2 * SAMPLER_BIASES);
    let (index, positions) = (kit.ints(&index, 1), kit.ints(&vec![position; n], 1));
    enqueue(Sample {
        logits,
        rows: &index,
        positions: &positions,
        state: &state,
        counts: &counts,
        biases: &biases,
        out: &out,
    })?;
    kit.finish()?;
    let drawn = kit.read_ints(&out);
    let state = kit.read_ints(&state);
    for (s, token) in drawn.iter().enumerate() {
        let row = n - 1 - s;
        let last = state[row * SAMPLER_WORDS + Word::LastToken as usize];
        if *token < 0 {
            assert_eq!((*token, last), (-1, 0x7f7f_7f7f), "a row that draws nothing");
            continue;
        }
        assert_eq!(last, *token, "last token");
        counted[row][*token as usize] += u16::from(rows[s].counts_tokens());
    }
    let bytes: Vec<u8> = counted.iter().flatten().flat_map(|c| c.to_ne_bytes()).collect();
    assert!(kit.download(&counts) == bytes, "token counts");
    Ok(drawn)
}

fn argmax(row: &[f32]) -> i32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as i32
}

pub(crate) fn greedy(kit: &Kit) {
    for vocabulary in some([1, 2, 31, 32, 33, 1000], 5) {
        for n in [1, 2, 7] {
            let mut logits = noise(vocabulary as u64, n * vocabulary);
            let expected: Vec<i32> = logits.chunks_exact(vocabulary).map(argmax).collect();
            assert_eq!(run(kit, &logits, &vec![GREEDY; n], 4).unwrap(), expected);
            logits.fill(0.25);
            logits[0] = -0.25;
            let ties = run(kit, &logits, &vec![GREEDY; n], 4).unwrap();
            assert_eq!(ties[0], i32::from(vocabulary > 1), "the lower id wins a tie");
            assert!(ties[1..].iter().all(|t| *t == 0), "the lower id wins a tie");
        }
    }
}

pub(crate) fn min_tokens(kit: &Kit) {
    let logits: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let row = Row { min_tokens: 3, ends: vec![99, 98, -1, 1000], ..GREEDY };
    for (position, expected) in [(4, 97), (6, 97), (7, 99), (50, 99)] {
        assert_eq!(run(kit, &logits, std::slice::from_ref(&row), position).unwrap(), [expected], "position {position}");
    }
    let hot = Row { temperature: 100.0, ..row };
    for seed in some(0..100, 25) {
        let drawn = run(kit, &logits, &[Row { seed, ..hot.clone() }], 5).unwrap()[0];
        assert!((0..98).contains(&drawn), "an end token was drawn: {drawn}");
    }
}

/// The probabilities that are left, in order of falling logit, then rising id.
pub(crate) fn candidates(logits: &[f32], row: &Row) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if row.top_k > 0 {
        order.truncate(row.top_k as usize);
    }
    let weight = |id: usize| (f64::from(logits[id] - logits[order[0]]) / f64::from(row.temperature)).exp();
    let total: f64 = order.iter().map(|id| weight(*id)).sum();
    let mut kept = Vec::new();
    let mut mass = 0.0;
    for id in &order {
        // A token stays while what stands above it has not reached top_p.
        if row.top_p < 1.0 && !kept.is_empty() && mass >= f64::from(row.top_p) {
            break;
        }
        mass += weight(*id) / total;
        kept.push((*id, weight(*id) / total));
    }
    let least = kept[0].1 * f64::from(row.min_p);
    kept.retain(|(_, p)| *p >= least);
    let mass: f64 = kept.iter().map(|(_, p)| p).sum();
    kept.iter().map(|(id, p)| (*id, p / mass)).collect()
}

pub(crate) fn draws(kit: &Kit) {
    let mut disagreements = 0;
    let mut drawn = 0;
    for (vocabulary, scale) in some([(3, 4.0), (50, 4.0), (50, 60.0), (2000, 4.0), (2000, 200.0)], 2) {
        for (i, top_k) in some([0, 1, 3, 40, 5000], 3).enumerate() {
            for (j, top_p) in some([1.0, 0.95, 0.5, 1e-6], 2).enumerate() {
                let logits: Vec<f32> = noise((i * 10 + j) as u64, vocabulary).iter().map(|x| scale * x).collect();
                let rows: Vec<Row> = (0..12)
                    .map(|s| Row {
                        temperature: 0.7 + s as f32 * 0.1,
                        top_k,
                        top_p,
                        min_p: [0.0, 0.03, 0.3, 1.0][s as usize % 4],
                        seed: s << 33 | 5,
                        choice: 2,
                        ..GREEDY
                    })
                    .collect();
                let all: Vec<f32> = rows.iter().flat_map(|_| logits.clone()).collect();
                let got = run(kit, &all, &rows, 9).unwrap();
                for (row, token) in rows.iter().zip(got) {
                    let kept = candidates(&logits, row);
                    let u = f64::from(rng::uniform(row.seed, 2, 5));
                    let mut below = 0.0;
                    let expected = kept.iter().find(|(_, p)| {
                        below += p;
                        below > u
                    });
                    assert!(kept.iter().any(|(id, _)| *id as i32 == token), "{token} is no candidate of {row:?}");
                    drawn += 1;
                    disagreements += usize::from(expected.is_some_and(|(id, _)| *id as i32 != token));
                }
            }
        }
    }
    // A draw that falls on the border of two candidates may round to either.
    assert!(disagreements * 200 <= drawn, "{disagreements} of {drawn} draws differ from the model");
}

/// The logits after biases and penalties.
pub(crate) fn processed(logits: &[f32], row: &Row) -> Vec<f32> {
    let mut x = logits.to_vec();
    for (id, bias) in &row.biases {
        x[*id as usize] += bias;
    }
    let [repetition, presence, frequency] = row.penalties;
    for (id, x) in x.iter_mut().enumerate() {
        let times = row.output.iter().filter(|t| **t == id).count();
        if times > 0 || row.prompt.contains(&id) {
            *x = if *x > 0.0 { *x / repetition } else { *x * repetition };
        }
        if times > 0 {
            *x -= presence + frequency * times as f32;
        }
    }
    x
}

pub(crate) fn penalties_and_biases(kit: &Kit) {
    for (seed, vocabulary) in some([1, 2, 33, 500].into_iter().cycle().take(40), 7).enumerate() {
        let logits: Vec<f32> = noise(seed as u64, 6 * vocabulary).iter().map(|x| x * 3.0).collect();
        let some = |n: usize, salt: usize| (0..n).map(|i| (i * i * 7 + salt * 13 + seed) % vocabulary).collect();
        let rows: Vec<Row> = (0..6)
            .map(|s| Row {
                penalties: [[1.3, 0.0, 0.0], [1.0, 0.9, 0.4], [0.6, -1.5, 2.0], NEUTRAL][s % 4],
                prompt: some(3 * s, 1),
                output: some(5 * s, 2),
                biases: (0..vocabulary.min(s * 60)).map(|id| (id as i32, ((id * 31 + s) % 9) as f32 - 4.0)).collect(),
                ..GREEDY
            })
            .collect();
        let expected: Vec<i32> =
            logits.chunks_exact(vocabulary).zip(&rows).map(|(l, row)| argmax(&processed(l, row))).collect();
        assert_eq!(run(kit, &logits, &rows, 9).unwrap(), expected, "vocabulary {vocabulary}");
        let hot: Vec<Row> = rows.iter().map(|r| Row { temperature: 0.8, top_p: 0.9, ..r.clone() }).collect();
        for ((row, token), l) in
            hot.iter().zip(run(kit, &logits, &hot, 9).unwrap()).zip(logits.chunks_exact(vocabulary))
        {
            let kept = candidates(&processed(l, row), row);
            assert!(kept.iter().any(|(id, _)| *id as i32 == token), "{token} is no candidate");
        }
    }
    // Ids outside the vocabulary are nobody's; a ban holds in front of every other processor.
    let row = Row { biases: vec![(-1, 5.0), (2, -100.0), (3, 5.0)], ..GREEDY };
    assert_eq!(run(kit, &[0.0, 1.0, 50.0], &[row], 9).unwrap(), [1]);
    let full = Row { penalties: [1.0, 0.0, 2.0], output: vec![0; 40], ..GREEDY };
    assert_eq!(run(kit, &[70.0, -9.0], &[full], 9).unwrap(), [1]);
}

pub(crate) fn extremes(kit: &Kit) {
    let hot = Row { temperature: 1.0, ..GREEDY };
    let inf = f32::INFINITY;
    for row in [&GREEDY, &hot] {
        let one = |logits: &[f32]| run(kit, logits, std::slice::from_ref(row), 5);
        assert_eq!(one(&[-inf, -inf, -inf]).unwrap(), [0], "all masked");
        assert_eq!(one(&[-inf, 3.0, -inf]).unwrap(), [1], "one left");
        assert_eq!(one(&[1.0, inf, 2.0]).unwrap(), [1], "infinite");
        let mut bad = vec![0.0; 70];
        bad[69] = f32::NAN;
        assert_eq!(one(&bad).unwrap(), [-1], "a NaN");
        bad.swap(69, 2);
        assert_eq!(one(&bad).unwrap(), [-1], "a NaN");
        let mixed: Vec<f32> = bad.iter().chain(&[0.0; 69]).chain(&[1e9]).copied().collect();
        assert_eq!(run(kit, &mixed, &[row.clone(), row.clone()], 5).unwrap(), [-1, 69], "a NaN beside a good row");
    }
    absent_rows(kit);
    let near_zero = Row { temperature: 1e-30, ..GREEDY };
    assert_eq!(run(kit, &[1.0, 5.0, 4.9], &[near_zero], 5).unwrap(), [1]);
}

/// A row below 0 draws nothing.
fn absent_rows(kit: &Kit) {
    let words = GREEDY.words();
    let (state, out) = (kit.ints(&words, SAMPLER_WORDS), kit.ints(&[77; 3], 1));
    let counts = kit.upload(&[0; 8], 1, 8, DType::U8);
    let biases = kit.ints(&GREEDY.bias_words(), 2 * SAMPLER_BIASES);
    let logits = kit.floats(&[0.0, 1.0, 2.0, 3.0, 0.0, 9.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0], 4);
    kit.stream
        .sample(&Sample {
            logits: &logits,
            rows: &kit.ints(&[-1, 0, -5], 1),
            positions: &kit.ints(&[9; 3], 1),
            state: &state,
            counts: &counts,
            biases: &biases,
            out: &out,
        })
        .unwrap();
    assert_eq!(kit.read_ints(&out), [77, 1, 77]);
    assert_eq!(kit.read_ints(&state)[Word::LastToken as usize], 1);
}

/// Frequencies of 2000 draws against the probabilities (chi-square, 7 degrees of freedom; 24.3 has probability 0.001).
pub(crate) fn distribution(kit: &Kit) {
    let logits = [0.0, 1.0, -1.0, 0.5, 2.0, -0.5, 0.25, 1.5];
    let row = Row { temperature: 1.3, ..GREEDY };
    let mut counts = [0_u32; 8];
    let rows: Vec<Row> = (0..2000).map(|seed| Row { seed: seed * 7919, ..row.clone() }).collect();
    let all: Vec<f32> = rows.iter().flat_map(|_| logits).collect();
    for token in run(kit, &all, &rows, 5).unwrap() {
        counts[token as usize] += 1;
    }
    let chi: f64 = candidates(&logits, &row)
        .iter()
        .map(|(id, p)| (f64::from(counts[*id]) - p * 2000.0).powi(2) / (p * 2000.0))
        .sum();
    assert!(chi < 24.3, "chi-square {chi}, counts {counts:?}");
}

/// Reports of some rows of logits, in a shuffled order, against a plain model.
pub(crate) fn logprobs(kit: &Kit) {
    let shapes = [(1, 1, 0), (1, 2, 3), (2, 3, 1), (33, 5, 20), (1000, 7, 20), (1000, 4, 0), (5, 3, 9)];
    shapes.into_iter().enumerate().for_each(|(seed, shape)| reports(kit, seed, shape));
}

/// `n` rows of logits, `k` tokens of each.
pub(crate) fn reports(kit: &Kit, seed: usize, (vocabulary, n, k): (usize, usize, usize)) {
    let mut logits: Vec<f32> = noise(seed as u64, n * vocabulary).iter().map(|x| x * 20.0).collect();
    // Some ties: of equals the smaller id comes first.
    logits.iter_mut().step_by(3).for_each(|x| *x = x.round() + 0.0);
    let tokens: Vec<i32> = (0..n).map(|s| ((s * 7 + seed) % vocabulary) as i32).collect();
    let index: Vec<i32> = (0..n as i32).rev().step_by(2).collect();
    let out = kit.ints(&vec![0x7f7f_7f7f; index.len() * 3 * (1 + k)], 3 * (1 + k));
    let args = (kit.floats(&logits, vocabulary), kit.ints(&index, 1), kit.ints(&tokens, 1));
    kit.stream.logprobs(&Logprobs { logits: &args.0, index: &args.1, tokens: &args.2, out: &out }).unwrap();
    for (row, found) in index.iter().zip(kit.read_ints(&out).chunks_exact(3 * (1 + k))) {
        let x = &logits[*row as usize * vocabulary..(*row as usize + 1) * vocabulary];
        let mut order: Vec<usize> = (0..vocabulary).collect();
        order.sort_by(|a, b| x[*b].total_cmp(&x[*a]).then(a.cmp(b)));
        let max = f64::from(x[order[0]]);
        let log_sum = max + x.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln();
        let token = tokens[*row as usize] as usize;
        let mut expected = vec![(token, order.iter().position(|id| *id == token).unwrap() + 1)];
        expected.extend(order.iter().take(k).zip(1..).map(|(id, rank)| (*id, rank)));
        for (entry, (id, rank)) in found.chunks_exact(3).zip(&expected) {
            assert_eq!((entry[0] as usize, entry[1] as usize), (*id, *rank), "vocabulary {vocabulary}");
            let (logprob, truth) = (f64::from(f32::from_bits(entry[2] as u32)), f64::from(x[*id]) - log_sum);
            assert!((logprob - truth).abs() <= 1e-5 * truth.abs().max(1.0), "{logprob} for {truth}");
        }
        assert!(found.chunks_exact(3).skip(expected.len()).all(|entry| entry == [-1, 0, 0]));
    }
}

/// Rows that the reference's processors have worked on (make.py): the same tokens are left, the largest has the same
/// probability, and what is drawn is one of them. The penalty's history is half prompt, half output.
pub(crate) fn reference_processors(kit: &Kit) {
    const VOCABULARY: usize = 32;
    let path = crate::root().join("tests/conformance/processors.json");
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for kind in ["repetition", "temperature", "top_k", "top_p", "min_p", "all"] {
        let cases = all[kind].as_array().unwrap();
        assert_eq!(cases.len(), 1000, "{kind}");
        let (mut logits, mut rows) = (Vec::new(), Vec::new());
        for case in cases {
            let number = |i: usize| case[i].as_f64().unwrap();
            let mut rng = SplitMix64(case[0].as_u64().unwrap());
            let scale = number(1);
            logits.extend((0..VOCABULARY).map(|_| ((2.0 * f64::from(rng.unit()) - 1.0) * scale) as f32));
            let seen: Vec<usize> = (0..8).map(|_| rng.below(VOCABULARY as u64) as usize).collect();
            rows.push(Row {
                penalties: [number(2) as f32, 0.0, 0.0],
                temperature: number(3) as f32,
                top_k: number(4) as i32,
                top_p: number(5) as f32,
                min_p: number(6) as f32,
                prompt: seen[..4].to_vec(),
                output: seen[4..].to_vec(),
                seed: case[0].as_u64().unwrap(),
                ..GREEDY
            });
        }
        let drawn = run(kit, &logits, &rows, 8).unwrap();
        for (((case, row), x), token) in cases.iter().zip(&rows).zip(logits.chunks_exact(VOCABULARY)).zip(drawn) {
            let left = candidates(&processed(x, row), row);
            let mask = left.iter().fold(0_u32, |mask, (id, _)| mask | 1 << id);
            let expected = u32::from_str_radix(case[7].as_str().unwrap(), 16).unwrap();
            assert_eq!(mask, expected, "{kind}: {case}");
            assert!((left[0].1 - case[8].as_f64().unwrap()).abs() < 2e-5, "{kind}: {case} {left:?}");
            assert!(expected >> token & 1 == 1, "{kind}: {token} was drawn of {expected:x}");
        }
    }
}
