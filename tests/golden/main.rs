//! Models against the reference implementation (tests/golden/make.py), and against themselves: tokens and logits must not
//! depend on chunks, batches or pipeline depth, bit for bit.

mod ascend;
mod families;
mod gpu;
mod gpu_aligned;
mod gpu_aligned_ops;
mod gpu_ranks;
mod late;
mod logprobs;
mod pipeline;
mod placement;
mod ranks;
mod world;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use world::{Alone, CHUNK_MOST, cpu, generate, runner, runner_on, step, tiny_config};
use yinian::base::config::LoadFormat;
use yinian::base::{SeqId, Token};
use yinian::hal::Device;
use yinian::plan::{Penalties, StepEntry, StepOutcome, StepResults};
use yinian::runner::ModelRunner;

const RELATIVE: f32 = 1e-4;
const CHUNKS: [usize; 4] = [1, 7, 16, 33];

#[derive(Default)]
struct Case {
    prompt: Vec<Token>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<Token>,
}

/// The repository: at run time's, as the tests also run on machines without a compiler.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn folder(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

fn cases(dir: &Path) -> Vec<Case> {
    let path = dir.join("expected.json");
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; make it with make.py", path.display()));
    let json: Value = serde_json::from_slice(&text).expect("expected.json");
    let number = |v: &Value| v.as_u64().expect("a number");
    let tokens = |v: &Value| v.as_array().expect("tokens").iter().map(|t| number(t) as Token).collect();
    let row = |v: &Value| v.as_array().expect("row").iter().map(|x| x.as_f64().expect("logit") as f32).collect();
    let case = |c: &Value| Case {
        prompt: tokens(&c["prompt"]),
        positions: c["logit_positions"].as_array().expect("positions").iter().map(|p| number(p) as usize).collect(),
        logits: c["logits"].as_array().expect("logits").iter().map(row).collect(),
        greedy: tokens(&c["greedy"]),
    };
    let cases: Vec<Case> = json["cases"].as_array().expect("cases").iter().map(case).collect();
    assert!(!cases.is_empty(), "{} has no cases", path.display());
    cases
}

/// Largest difference over the largest magnitude of the reference row.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let most =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0.0_f32, |m, x| if x > m || x.is_nan() { x } else { m });
    let difference = most(&mut found.iter().zip(expected).map(|(a, b)| (a - b).abs()));
    difference / most(&mut expected.iter().map(|x| x.abs()))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn agrees_with_the_reference(name: &str) {
    let dir = folder(name);
    let cases = cases(&dir);
    let mut runner = runner(&dir, LoadFormat::Auto);
    let mut worst = 0.0_f32;
    for case in &cases {
        let whole = runner.logits(&case.prompt, CHUNK_MOST).expect("logits");
        let vocab = whole.len() / case.prompt.len();
        for (position, expected) in case.positions.iter().zip(&case.logits) {
            let d = distance(&whole[position * vocab..(position + 1) * vocab], expected);
            worst = worst.max(d);
            assert!(d <= RELATIVE, "{name}: prompt of {}, position {position}: {d:e} apart", case.prompt.len());
        }
        for chunk in CHUNKS {
            let chunked = runner.logits(&case.prompt, chunk).expect("logits");
            assert!(bits(&whole) == bits(&chunked), "{name}: chunks of {chunk} change logits");
        }
        for chunk in [CHUNK_MOST, 7] {
            let mut seqs = [Alone::new(0, &case.prompt, 0.0)];
            generate(&mut runner, &mut seqs, (chunk, case.greedy.len()));
            assert_eq!(seqs[0].generated(), case.greedy, "{name}: prompt of {}", case.prompt.len());
        }
    }
    println!("{name}: logits at most {worst:e} apart");
    // All prompts at once: company must not change a token.
    let mut seqs: Vec<_> = cases.iter().enumerate().map(|(i, c)| Alone::new(i as u32, &c.prompt, 0.0)).collect();
    generate(&mut runner, &mut seqs, (16, cases[0].greedy.len()));
    for (s, case) in seqs.iter().zip(&cases) {
        assert_eq!(s.generated(), case.greedy, "{name} in a batch: prompt of {}", case.prompt.len());
    }
}

#[test]
fn llama_with_plain_heads_agrees() {
    agrees_with_the_reference("tiny-llama-mha");
}

#[test]
fn llama_with_shared_heads_and_scaled_rope_agrees() {
    agrees_with_the_reference("tiny-llama-gqa");
}

pub(crate) fn dummy(dtype: &str) -> ModelRunner {
    dummy_on(&cpu(), dtype)
}

pub(crate) fn dummy_on(device: &Arc<dyn Device>, dtype: &str) -> ModelRunner {
    let dir = tempfile::tempdir().unwrap();
    let mut config = tiny_config();
    config["torch_dtype"] = dtype.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    runner_on(device, dir.path(), LoadFormat::Dummy)
}

pub(crate) fn prompt(len: u32) -> Vec<Token> {
    (0..len).map(|i| (i * 37 + len * 11) % 300).collect()
}

#[test]
fn chunks_do_not_change_logits() {
    for dtype in ["float32", "bfloat16", "float16"] {
        let mut runner = dummy(dtype);
        let whole = runner.logits(&prompt(100), CHUNK_MOST).unwrap();
        assert!(whole.iter().all(|x| x.is_finite()) && whole.iter().any(|x| x.abs() > 0.1), "{dtype}");
        for chunk in CHUNKS {
            assert!(bits(&whole) == bits(&runner.logits(&prompt(100), chunk).unwrap()), "{dtype}, chunks of {chunk}");
        }
    }
}

#[test]
fn company_does_not_change_tokens() {
    let mut runner = dummy("bfloat16");
    let lengths = [1, 17, 40, 100, 16];
    for temperature in [0.0, 0.9] {
        let start = |i: usize, len: u32| Alone::new(i as u32, &prompt(len), temperature);
        let mut alone = Vec::new();
        for (i, len) in lengths.into_iter().enumerate() {
            let mut seqs: Vec<_> = (0..=i).map(|j| start(j, lengths[j])).collect();
            // Everybody but the last is done before the first step.
            seqs[..i].iter_mut().for_each(|s| s.tokens.extend([0; 40]));
            generate(&mut runner, &mut seqs, (CHUNK_MOST, 40));
            assert_eq!(seqs[i].prompt_len, len as usize);
            alone.push(seqs[i].generated().to_vec());
        }
        let mut together: Vec<_> = lengths.into_iter().enumerate().map(|(i, len)| start(i, len)).collect();
        generate(&mut runner, &mut together, (9, 40));
        for (s, alone) in together.iter().zip(&alone) {
            assert_eq!(s.generated(), alone, "prompt of {} at {temperature}", s.prompt_len);
        }
        assert!(alone.iter().any(|a| a[0] != alone[0][0]), "all prompts give the same token");
    }
}

/// A step launched before its predecessor is finished takes its token from the device.
pub(crate) fn assert_depth_does_not_change_tokens(runner: &mut ModelRunner) {
    let mut seqs = [Alone::new(0, &prompt(20), 0.9)];
    generate(runner, &mut seqs, (CHUNK_MOST, 30));
    let expected = seqs[0].generated().to_vec();
    let mut ahead = Alone::new(0, &prompt(20), 0.9);
    runner.launch(&step(&[&ahead], CHUNK_MOST)).unwrap();
    let mut found = Vec::new();
    for i in 0..30 {
        ahead.computed = ahead.tokens.len();
        ahead.tokens.push(0);
        let mut plan = step(&[&ahead], 1);
        plan.tokens.clear();
        plan.entries = plan.entries.into_iter().map(|e| StepEntry { tokens: 0..0, ..e }).collect();
        runner.launch(&plan).unwrap();
        let StepOutcome::Done(StepResults { sampled, .. }) = runner.finish().unwrap().outcome else {
            panic!("step {i} failed")
        };
        assert_eq!((sampled.len(), sampled[0].seq), (1, SeqId(0)));
        found.push(sampled[0].token);
    }
    assert_eq!(found, expected);
}

#[test]
fn depth_does_not_change_tokens() {
    assert_depth_does_not_change_tokens(&mut dummy("float32"));
}

/// The largest logit after `sampling`'s bias and penalties.
fn penalized(logits: &[f32], seq: &Alone) -> Token {
    let p = seq.sampling.penalties();
    let value = |id: usize| {
        let count = |tokens: &[Token]| tokens.iter().filter(|t| **t as usize == id).count() as f32;
        let bias = seq.sampling.logit_bias().iter().find(|(t, _)| *t as usize == id).map_or(0.0, |b| b.1);
        let mut x = logits[id] + bias;
        if count(&seq.tokens) > 0.0 {
            x = if x > 0.0 { x / p.repetition } else { x * p.repetition };
        }
        let times = count(seq.generated());
        if times > 0.0 { x - (p.presence + p.frequency * times) } else { x }
    };
    (0..logits.len()).fold(0, |best, id| if value(id) > value(best) { id } else { best }) as Token
}

#[test]
fn penalties_count_prompt_and_output_and_survive_a_resume() {
    let (mut served, mut plain) = (dummy("float32"), dummy("float32"));
    let penalties = Penalties { repetition: 1.6, presence: 0.4, frequency: 0.3 };
    // Six at once need more staged rows than there are.
    let mut seqs: Vec<_> = (0..6).map(|i| Alone::new(i, &prompt(10 + i), 0.0)).collect();
    for s in &mut seqs {
        let sampling = s.sampling.clone().with_penalties(penalties).unwrap();
        s.sampling = sampling.with_logit_bias(vec![(s.index, -100.0), (7, 0.5)]).unwrap();
    }
    generate(&mut served, &mut seqs, (CHUNK_MOST, 12));
    seqs.iter_mut().for_each(|s| s.computed = 0);
    generate(&mut served, &mut seqs, (16, 30));
    let mut changed = 0;
    for s in &seqs {
        let mut replay =
            Alone { tokens: prompt(10 + s.index), sampling: s.sampling.clone(), ..Alone::new(0, &[], 0.0) };
        replay.prompt_len = replay.tokens.len();
        for expected in s.generated() {
            let logits = plain.logits(&replay.tokens, CHUNK_MOST).unwrap();
            let last = &logits[logits.len() - 300..];
            let token = penalized(last, &replay);
            assert_eq!(token, *expected, "sequence {} at {}", s.index, replay.tokens.len());
            changed += usize::from(last.iter().any(|x| *x > last[token as usize]));
            replay.tokens.push(token);
        }
    }
    assert!(changed > 30, "the penalties changed {changed} tokens only");
}

#[test]
fn more_steps_than_the_depth_and_broken_plans_are_refused() {
    let mut runner = dummy("float32");
    let seq = Alone::new(0, &prompt(4), 0.0);
    let plan = step(&[&seq], CHUNK_MOST);
    assert!(runner.finish().is_err(), "nothing was launched");
    let mut broken = plan.clone();
    broken.tokens[1] = 300;
    assert!(runner.launch(&broken).unwrap_err().message.contains("300"));
    for _ in 0..3 {
        runner.launch(&plan).unwrap();
    }
    assert!(runner.launch(&plan).unwrap_err().message.contains("in flight"));
    for _ in 0..3 {
        assert!(matches!(runner.finish().unwrap().outcome, StepOutcome::Done(_)));
    }
}

/// The demo model's cache is bfloat16 and the reference's is not, so one near-tie may fall to the other side.
#[test]
fn the_demo_model_answers_as_the_reference_does() {
    let dir = root().join("examples/demo_model");
    let text = std::fs::read(folder("demo.json")).expect("demo.json");
    let json: Value = serde_json::from_slice(&text).expect("demo.json");
    let mut runner = runner(&dir, LoadFormat::Auto);
    let ids = |v: &Value| -> Vec<Token> {
        v.as_array().expect("ids").iter().map(|t| t.as_u64().expect("an id") as Token).collect()
    };
    let cases = json["cases"].as_array().expect("cases");
    let mut same = 0;
    for case in cases {
        let greedy = ids(&case["greedy"]);
        let mut seqs = [Alone::new(0, &ids(&case["prompt"]), 0.0)];
        generate(&mut runner, &mut seqs, (CHUNK_MOST, greedy.len()));
        same += usize::from(seqs[0].generated() == greedy);
    }
    assert!(cases.len() > 4 && same + 1 >= cases.len(), "{same} of {} answers are equal", cases.len());
}
