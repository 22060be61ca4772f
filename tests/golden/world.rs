//! Runners on the CPU backend, and plans built by hand.

use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use yinian::base::config::{LoadFormat, Placement};
use yinian::base::{BlockId, Result, Row, SeqId, StepId, Token};
use yinian::hal::Device;
use yinian::hal::comm::Group;
use yinian::hal::registry::{DeviceOptions, open, open_ranks};
use yinian::model::{LoadOptions, Shard, inspect, load_shard};
use yinian::plan::{RowInit, SamplingParams, StepEntry, StepOutcome, StepPlan, StepResults};
use yinian::runner::{ModelRunner, RunnerOptions};

pub(crate) const BLOCK: u32 = 16;
/// KV blocks of one sequence.
pub(crate) const BLOCKS: u32 = 16;
pub(crate) const CHUNK_MOST: usize = 128;

/// A runner for up to eight sequences of 256 tokens.
pub(crate) fn runner(dir: &Path, format: LoadFormat) -> ModelRunner {
    runner_on(&cpu(), dir, format)
}

pub(crate) fn cpu() -> Arc<dyn Device> {
    open("cpu", &DeviceOptions { threads: Some(2), ..DeviceOptions::default() }).expect("device")
}

pub(crate) fn runner_on(device: &Arc<dyn Device>, dir: &Path, format: LoadFormat) -> ModelRunner {
    runner_placed(device, dir, format, Placement::Device)
}

/// The same with blocks of `block` tokens, for sequences of that many ([`Alone::in_blocks`]).
pub(crate) fn runner_in_blocks(device: &Arc<dyn Device>, dir: &Path, block: u32) -> Result<ModelRunner> {
    let info = inspect(dir).expect("inspect");
    let options = RunnerOptions { block_size: block, num_blocks: 8 * BLOCK * BLOCKS / block, ..sizes() };
    let how = LoadOptions { format: LoadFormat::Auto, shard: Shard::WHOLE, embedding: Placement::Device };
    let mut progress = |_| Ok(());
    let model = load_shard(&info, dir, how, device.as_ref(), (options.max_model_len, &mut progress))?;
    ModelRunner::new(model, Arc::clone(device), options)
}

/// One sequence of thousands of tokens, random weights.
pub(crate) fn long_runner(device: &Arc<dyn Device>, dir: &Path) -> ModelRunner {
    let info = inspect(dir).expect("inspect");
    let (max_model_len, block_size) = (5120, 128);
    let options = RunnerOptions {
        max_num_seqs: 2,
        max_num_batched_tokens: 700,
        max_model_len,
        block_size,
        num_blocks: max_model_len as u32 / block_size,
        depth: 2,
    };
    let how = LoadOptions { format: LoadFormat::Dummy, shard: Shard::WHOLE, embedding: Placement::Device };
    let model = load_shard(&info, dir, how, device.as_ref(), (max_model_len, &mut |_| Ok(()))).expect("load");
    ModelRunner::new(model, Arc::clone(device), options).expect("runner")
}

/// The same with the embedding table at `embedding`.
pub(crate) fn runner_placed(
    device: &Arc<dyn Device>,
    dir: &Path,
    format: LoadFormat,
    embedding: Placement,
) -> ModelRunner {
    let info = inspect(dir).expect("inspect");
    let max_model_len = (BLOCK * BLOCKS) as usize;
    let mut done = 0;
    let mut progress = |p: yinian::model::LoadProgress| {
        assert!(p.bytes_done >= done && p.bytes_done <= p.bytes_total, "{p:?} after {done}");
        done = p.bytes_done;
        Ok(())
    };
    let how = LoadOptions { format, shard: Shard::WHOLE, embedding };
    let model = load_shard(&info, dir, how, device.as_ref(), (max_model_len, &mut progress)).expect("load");
    assert_eq!(done, info.weight_bytes, "progress ends at the total");
    ModelRunner::new(model, Arc::clone(device), sizes()).expect("runner")
}

fn sizes() -> RunnerOptions {
    RunnerOptions {
        max_num_seqs: 8,
        max_num_batched_tokens: CHUNK_MOST,
        max_model_len: (BLOCK * BLOCKS) as usize,
        block_size: BLOCK,
        num_blocks: 8 * BLOCKS,
        depth: 2,
    }
}

/// The same on each of `count` ranks.
pub(crate) fn ranks(dir: &Path, count: usize) -> Vec<ModelRunner> {
    let options = DeviceOptions { threads: Some(1), ..DeviceOptions::default() };
    ranks_on(&open_ranks("cpu", count, &options).expect("devices"), dir, LoadFormat::Auto).0
}

/// One rank on each of these devices, and where they meet.
pub(crate) fn ranks_on(
    devices: &[Arc<dyn Device>],
    dir: &Path,
    format: LoadFormat,
) -> (Vec<ModelRunner>, Arc<dyn Group>) {
    let (info, count) = (inspect(dir).expect("inspect"), devices.len());
    let group = devices[0].group(count, CHUNK_MOST * info.spec.hidden_size).expect("a group");
    let ranks = std::thread::scope(|scope| {
        let (info, group) = (&info, &group);
        let start = |rank: usize| {
            let device = Arc::clone(&devices[rank]);
            scope.spawn(move || {
                let (shard, len) = (Shard { rank, ranks: count }, sizes().max_model_len);
                let (mut done, mut total) = (0, 0);
                let mut progress = |p: yinian::model::LoadProgress| {
                    (done, total) = (p.bytes_done, p.bytes_total);
                    Ok(())
                };
                let how = (format, shard);
                let model = load_shard(info, dir, how, device.as_ref(), (len, &mut progress)).expect("load");
                assert_eq!(done, total, "progress ends at the total");
                assert!(count == 1 || total < info.weight_bytes, "a rank holds all of the model");
                let place = group.join(rank, device.as_ref()).expect("join");
                ModelRunner::of_rank(model, device, sizes(), Some(place)).expect("runner")
            })
        };
        let threads: Vec<_> = (0..count).map(start).collect();
        threads.into_iter().map(|t| t.join().expect("a rank")).collect()
    });
    (ranks, group)
}

pub(crate) fn tiny_config() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
           "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
           "max_position_embeddings": 256, "torch_dtype": "float32", "tie_word_embeddings": false})
}

/// A sequence that a test steps by hand. Its row is its index; its blocks interleave with those of the others.
#[derive(Debug)]
pub(crate) struct Alone {
    pub(crate) index: u32,
    pub(crate) tokens: Vec<Token>,
    pub(crate) prompt_len: usize,
    pub(crate) computed: usize,
    pub(crate) sampling: SamplingParams,
    /// Tokens of its blocks.
    pub(crate) block: u32,
}

impl Alone {
    pub(crate) fn new(index: u32, prompt: &[Token], temperature: f32) -> Self {
        let sampling = SamplingParams::new(temperature, 40, 0.95, 7 + u64::from(index)).expect("ranges hold");
        Self { index, tokens: prompt.to_vec(), prompt_len: prompt.len(), computed: 0, sampling, block: BLOCK }
    }
    pub(crate) fn in_blocks(self, block: u32) -> Self {
        Self { block, ..self }
    }
    pub(crate) fn generated(&self) -> &[Token] {
        &self.tokens[self.prompt_len..]
    }
}

/// A step that runs up to `chunk` tokens of each sequence.
pub(crate) fn step(seqs: &[&Alone], chunk: usize) -> StepPlan {
    step_of(&seqs.iter().map(|s| (*s, chunk)).collect::<Vec<_>>())
}

/// The same with a chunk for each.
pub(crate) fn step_of(seqs: &[(&Alone, usize)]) -> StepPlan {
    let mut plan =
        StepPlan { id: StepId(1), entries: vec![], tokens: vec![], blocks: vec![], targets: vec![], row_inits: vec![] };
    for (s, chunk) in seqs {
        let len = (*chunk).min(s.tokens.len() - s.computed);
        let end = s.computed + len;
        let (token, block) = (plan.tokens.len() as u32, plan.blocks.len() as u32);
        plan.tokens.extend(&s.tokens[s.computed..end]);
        plan.blocks.extend((0..(end as u32).div_ceil(s.block)).map(|b| BlockId(b * 8 + s.index)));
        plan.entries.push(StepEntry {
            seq: SeqId(u64::from(s.index)),
            row: Row(s.index),
            start: s.computed as u32,
            len: len as u32,
            tokens: token..plan.tokens.len() as u32,
            known_blocks: 0,
            blocks: block..plan.blocks.len() as u32,
            samples: end == s.tokens.len(),
            logprobs: None,
            scores: None,
            awaits_mask: false,
        });
        if s.computed == 0 {
            plan.row_inits.push(row_init(s));
        }
    }
    plan
}

fn row_init(s: &Alone) -> RowInit {
    RowInit {
        row: Row(s.index),
        sampling: s.sampling.clone(),
        choice: 0,
        prompt_len: s.prompt_len as u32,
        min_tokens: 0,
        end_tokens: vec![],
        history: if s.sampling.counts_tokens() { s.tokens.clone() } else { vec![] },
    }
}

/// Runs all sequences together until each has `count` tokens more than its prompt.
pub(crate) fn generate(runner: &mut ModelRunner, seqs: &mut [Alone], (chunk, count): (usize, usize)) {
    loop {
        let open: Vec<&Alone> = seqs.iter().filter(|s| s.generated().len() < count).collect();
        if open.is_empty() {
            return;
        }
        let plan = step(&open, chunk);
        runner.launch(&plan).expect("launch");
        let output = runner.finish().expect("finish");
        let StepOutcome::Done(StepResults { sampled, .. }) = output.outcome else { panic!("{output:?}") };
        for e in &plan.entries {
            seqs[e.row.0 as usize].computed += e.len as usize;
        }
        for s in sampled {
            seqs[s.seq.0 as usize].tokens.push(s.token);
        }
    }
}
