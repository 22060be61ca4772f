//! What a runner allocates, before it does.

use crate::base::config::{EngineConfig, LoadFormat};
use crate::base::{DType, Row};
use crate::hal::arena::ArenaPlan;
use crate::hal::ops::{SAMPLER_BIASES, SAMPLER_WORDS};
use crate::hal::{Caps, Device, Overhead, Recorded};
use crate::model::decoder::Buffers;
use crate::model::{self, ModelInfo};
use crate::plan::params::MAX_LOGPROBS;
use crate::plan::{KvGroup, KvSpec};
use crate::runner::graphs::Graphs;
use crate::runner::inputs::InputShape;
use crate::runner::late::late_bytes;

/// Bytes of a word of step inputs and sampler state.
pub(super) const WORD: usize = DType::I32.size();

/// Token counts and bias rows that one step uploads before it waits for the device to have read them.
pub(super) const STAGED_ROWS: usize = 4;

/// Bytes of a row's token counts, and of its biases.
pub(super) fn row_extra_bytes(vocab_size: usize) -> (usize, usize) {
    (2 * vocab_size, 2 * SAMPLER_BIASES * WORD)
}

/// Words of the largest report of one token's logprobs.
pub(super) const REPORT_WORDS: usize = 3 * (1 + MAX_LOGPROBS as usize);

/// Launches of a recorded step: of each layer, and of all else in it.
const LAYER_LAUNCHES: usize = 12;
const STEP_LAUNCHES: usize = 10;

/// Sizes of a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerOptions {
    /// Sampler rows, and sequences of a step at most.
    pub max_num_seqs: usize,
    /// Tokens of a step at most.
    pub max_num_batched_tokens: usize,
    /// Longest sequence.
    pub max_model_len: usize,
    /// Tokens per KV block.
    pub block_size: u32,
    pub num_blocks: u32,
    /// Steps that may be launched and not finished.
    pub depth: usize,
}

impl RunnerOptions {
    /// Sequences that can sample in one step.
    pub(super) fn max_samples(&self) -> usize {
        self.max_num_seqs.min(self.max_num_batched_tokens)
    }

    /// Words of the largest step's reports: every position's logits are sampled, or tell of a prompt token.
    pub(super) fn report_words(&self) -> usize {
        self.max_num_batched_tokens * REPORT_WORDS
    }
}

/// Bytes a runner takes beside weights and KV blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerMemory {
    /// Temporary tensors of a step.
    pub arena_bytes: usize,
    /// Sampler rows on the device.
    pub row_state_bytes: usize,
    /// Step inputs and reports on the device.
    pub inputs_bytes: usize,
    /// Their host buffers.
    pub staging_bytes: usize,
    /// Cosines and sines (loaded with the model).
    pub rope_bytes: usize,
    /// The KV block of padding entries, where steps are recorded.
    pub padding_bytes: usize,
}

impl RunnerMemory {
    pub fn total_bytes(&self) -> usize {
        self.arena_bytes
            + self.row_state_bytes
            + self.inputs_bytes
            + self.staging_bytes
            + self.rope_bytes
            + self.padding_bytes
    }

    /// What of it counts as such a device's memory.
    pub fn bytes_on(&self, caps: &Caps) -> usize {
        self.total_bytes() - if caps.own_memory { self.staging_bytes } else { 0 }
    }
}

/// How the model's KV cache is cut into blocks: one group, in the model's dtype.
pub fn kv_spec(info: &ModelInfo, block_size: u32) -> KvSpec {
    let spec = &info.spec;
    let group = KvGroup {
        layers: spec.layers.len() as u32,
        kv_heads: spec.kv_heads as u32,
        head_dim: spec.head_dim as u32,
        dtype: info.dtype,
    };
    KvSpec { block_size, groups: vec![group] }
}

/// The temporary tensors of a step on such a device.
pub(super) fn arena_plan(info: &ModelInfo, options: &RunnerOptions, caps: &Caps) -> (ArenaPlan, Buffers) {
    let mut plan = ArenaPlan::default();
    let rows = (options.max_num_batched_tokens, options.max_samples());
    let act = caps.activations.of(info.dtype);
    let buffers = Buffers::reserve(&mut plan, &info.spec, rows, (act, caps));
    (plan, buffers)
}

/// Sampler rows, with one for padding entries where steps are recorded.
pub(super) fn sampler_rows(options: &RunnerOptions, caps: &Caps) -> usize {
    options.max_num_seqs + usize::from(caps.graphs)
}

/// What [`super::ModelRunner`] allocates for `options` (the blocks apart) on such a device.
pub fn memory_plan(info: &ModelInfo, options: &RunnerOptions, caps: &Caps) -> RunnerMemory {
    let (arena, _) = arena_plan(info, options, caps);
    let shape = InputShape::of(options);
    let ring = options.depth + 1;
    let (counts, biases) = row_extra_bytes(info.spec.vocab_size);
    let step_words = shape.words() + options.max_samples() + options.report_words();
    RunnerMemory {
        arena_bytes: arena.bytes(),
        row_state_bytes: sampler_rows(options, caps) * (SAMPLER_WORDS * WORD + counts + biases),
        inputs_bytes: WORD * step_words,
        staging_bytes: ring * (WORD * step_words + STAGED_ROWS * counts.max(biases)),
        padding_bytes: if caps.graphs { kv_spec(info, options.block_size).block_bytes(0) } else { 0 },
        rope_bytes: info.spec.ropes.len() * options.max_model_len * info.spec.head_dim * DType::F32.size(),
    }
}

/// What the device takes beside what model, runner and blocks ask for. What allocations are rounded up by counts with the
/// stream. Of the config it depends on where weights come from, and where the embedding table goes.
pub fn overhead(info: &ModelInfo, options: &RunnerOptions, device: &dyn Device, config: &EngineConfig) -> Overhead {
    let (caps, spec) = (device.caps(), &info.spec);
    let layers = spec.layers.len();
    let graphs = if caps.graphs { Graphs::new(InputShape::of(options).most(), Row(0)).buckets().len() } else { 0 };
    let beside = device.overhead(Recorded { graphs, launches: LAYER_LAUNCHES * layers + STEP_LAUNCHES });
    let plan = memory_plan(info, options, caps);
    let rows = sampler_rows(options, caps);
    let (counts, biases) = row_extra_bytes(spec.vocab_size);
    let asked = [
        (spec.ropes.len(), plan.rope_bytes / spec.ropes.len().max(1)),
        (1, plan.arena_bytes),
        (1, InputShape::of(options).words() * WORD),
        (1, options.report_words() * WORD),
        (1, rows * counts),
        (1, rows * biases),
        (1, rows * SAMPLER_WORDS * WORD),
    ];
    let each = |asked: &[(usize, usize)]| asked.iter().map(|(times, b)| times * device.rounded(*b)).sum::<usize>();
    let bytes = |asked: &[(usize, usize)]| asked.iter().map(|(times, b)| times * b).sum::<usize>();
    let matrices = model::device_matrices(info, config.embedding_placement);
    // What is made up is allocated one by one.
    let taken = if config.load_format == LoadFormat::Dummy { each(&matrices) } else { device.area(&matrices) };
    let lost = taken - bytes(&matrices) + each(&asked) - bytes(&asked);
    Overhead { stream_bytes: beside.stream_bytes + lost, ..beside }
}

/// What [`super::ModelRunner::with_late_masks`] allocates on top.
pub fn late_mask_bytes(info: &ModelInfo, options: &RunnerOptions) -> usize {
    late_bytes(options, info.spec.vocab_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Result;
    use crate::hal::registry::{DeviceOptions, open};
    use crate::hal::{Allocation, HostBuffer, HostMatrix, Matrix, MemoryInfo, Stream, Tensor};
    use crate::model::{inspect, load};
    use crate::runner::ModelRunner;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Counts the bytes that are asked of a device.
    #[derive(Debug)]
    struct Counting(Arc<dyn Device>, AtomicUsize);

    impl Device for Counting {
        fn caps(&self) -> &Caps {
            self.0.caps()
        }
        fn memory(&self) -> Result<MemoryInfo> {
            self.0.memory()
        }
        fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>> {
            self.1.fetch_add(bytes, Relaxed);
            self.0.alloc(bytes)
        }
        fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>> {
            self.1.fetch_add(bytes, Relaxed);
            self.0.host_buffer(bytes)
        }
        fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
            self.0.load_matrix(parts)
        }
        fn stream(&self) -> Result<Box<dyn Stream>> {
            self.0.stream()
        }
    }

    #[test]
    fn the_plan_is_what_is_allocated() {
        for architecture in ["LlamaForCausalLM", "Gemma3ForCausalLM"] {
            let config = r#""vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
                "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 100}"#;
            let config = format!("{{\"architectures\": [\"{architecture}\"], {config}");
            for (max_num_seqs, max_num_batched_tokens, depth) in [(5, 33, 2), (40, 7, 1)] {
                let options = RunnerOptions {
                    max_num_seqs,
                    max_num_batched_tokens,
                    max_model_len: 100,
                    block_size: 16,
                    num_blocks: 9,
                    depth,
                };
                check_plan(&config, &options);
            }
        }
    }

    fn check_plan(config: &str, options: &RunnerOptions) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let cpu = open("cpu", &DeviceOptions { threads: Some(1), ..DeviceOptions::default() }).unwrap();
        let info = inspect(dir.path()).unwrap();
        let model = load(&info, dir.path(), LoadFormat::Dummy, cpu.as_ref(), (100, &mut |_| Ok(()))).unwrap();
        let plan = memory_plan(&info, options, cpu.caps());
        assert_eq!(model.ropes.iter().map(Tensor::bytes).sum::<usize>(), plan.rope_bytes, "{config}");
        let device = Arc::new(Counting(Arc::clone(&cpu), AtomicUsize::new(0)));
        let runner = ModelRunner::new(model, Arc::<Counting>::clone(&device), options.clone()).unwrap();
        let blocks = 9 * kv_spec(&info, 16).block_bytes(0);
        let counted = device.1.load(Relaxed);
        assert_eq!(counted + plan.rope_bytes, plan.total_bytes() + blocks, "{config} {options:?}");
        let _runner = runner.with_late_masks().unwrap();
        assert_eq!(device.1.load(Relaxed) - counted, late_mask_bytes(&info, options), "{config} {options:?}");
    }

    #[test]
    fn a_runner_can_move_to_its_worker() {
        fn movable<T: Send>() {}
        movable::<ModelRunner>();
    }
}
