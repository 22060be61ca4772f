//! Assembly: the one file of this floor that sees model, runner and hal. From a config to the parts of an engine.

use crate::base::config::{EngineConfig, LoadFormat, NumericMode, Placement};
use crate::base::rng::SplitMix64;
use crate::base::signal::Signal;
use crate::base::{DType, Error, ErrorKind, Result};
use crate::engine::SamplingDefaults;
use crate::engine::describe::model_json;
use crate::engine::intake::Limits;
use crate::exec::Executor;
use crate::exec::mock::{MOCK_EOS, MockRank, MockRunner, MockSpec};
use crate::exec::ranks::{RankRunner, StartRank};
use crate::exec::worker::{StepRunner, WorkerExecutor};
use crate::hal::comm::{Group, LocalGroup};
use crate::hal::registry::{self, DeviceOptions};
use crate::hal::{Caps, Device, Tensor, selftest};
use crate::model::{self, LoadOptions, Model, ModelInfo, Shard};
use crate::runner::{self, Demand, ModelRunner, RunnerOptions};
use crate::sched::policy::Policy;
use crate::sched::{SchedConfig, Scheduler, StepBound, policy};
use crate::text::TextModel;
use serde_json::{Value, json};
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What the threads of an engine are started with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) sched: Scheduler,
    pub(crate) exec: Box<dyn Executor>,
    pub(crate) limits: Limits,
    pub(crate) defaults: SamplingDefaults,
    pub(crate) info: Value,
    /// Tokens per KV block.
    pub(crate) block_size: u32,
}

/// Told how far loading is, from 0 to 1; an `Err` ends it.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(f32) -> Result<()>;

/// Longest sequence when neither config nor model limits it sooner.
const MOCK_MODEL_LEN: usize = 32_768;
const MOCK_BLOCK_SIZE: u32 = 16;
const MOCK_STEP_TOKENS: usize = 512;
/// How many times longer a step may take with prompts beside its decodes.
const DECODE_SLOWDOWN: f64 = 1.4;
/// Tokens of a prompt that a step takes whatever they cost.
const MIN_CHUNK: u32 = 16;

pub(crate) fn parts(config: &EngineConfig, signal: &Arc<Signal>, progress: Progress<'_>) -> Result<Parts> {
    if config.model.starts_with("mock:") { mock(config, signal, progress) } else { real(config, signal, progress) }
}

/// A process-independent random number, for seeds.
pub(crate) fn entropy() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Everything sizes depend on, found without loading weights.
#[derive(Debug)]
struct Sizes {
    dir: PathBuf,
    info: ModelInfo,
    /// What a rank holds of it.
    local: ModelInfo,
    /// On the devices of all ranks, as everything of memory here.
    weight_bytes: usize,
    /// Of embedding tables in host memory that are on no device.
    host_embedding_bytes: usize,
    /// Where the ranks meet, if there are several, and the bytes they do it in.
    group: Option<Arc<dyn Group>>,
    meeting_bytes: usize,
    /// One of each rank.
    devices: Vec<Arc<dyn Device>>,
    mode: NumericMode,
    bound: Option<StepBound>,
    options: RunnerOptions,
    kv_block_bytes: usize,
    fixed_bytes: usize,
    /// What devices take beside what is asked of them by size.
    overhead_bytes: usize,
    /// On each device, or on the host.
    demand: Demand,
}

/// `loads` says that the weights will be loaded.
fn sizes(config: &EngineConfig, loads: bool) -> Result<Sizes> {
    // Before the model is loaded, which can take minutes.
    policy(config)?;
    let dir = PathBuf::from(&config.model);
    if !dir.is_dir() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("model {:?} is not a directory; expected one with config.json and safetensors files", config.model),
        ));
    }
    let info = model::inspect(&dir)?;
    let ranks = config.tensor_parallel_size;
    Shard::check(&info.spec, ranks)?;
    let local = Shard { rank: 0, ranks }.info(&info);
    let devices = devices(config, ranks, if loads { local.weight_bytes } else { 0 })?;
    let device = &devices[0];
    let step_tokens = config.max_num_batched_tokens.unwrap_or(device.caps().step_tokens);
    let meets = || device.group(ranks, step_tokens * info.spec.hidden_size);
    let group = (ranks > 1).then(meets).transpose()?;
    let mode = numeric_mode(config.numeric_mode, (device.caps(), group.as_deref()))?;
    let bound = step_bound(config, device.as_ref(), &local)?;
    let max_model_len = model_len(config, &info)?;
    let block_size = config.block_size.unwrap_or(device.caps().block_size);
    let kv = runner::kv_spec(&local, block_size);
    let kv_block_bytes = ranks * (0..kv.groups.len()).map(|g| kv.block_bytes(g)).sum::<usize>();
    let mut options = RunnerOptions {
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: step_tokens,
        max_model_len,
        block_size,
        num_blocks: 0,
        depth: config.pipeline_depth,
    };
    let host_embedding_bytes = ranks * model::host_embedding_bytes(&info, config.embedding_placement, device.caps())?;
    let weight_bytes: usize = (0..ranks).map(|rank| Shard { rank, ranks }.info(&info).weight_bytes).sum();
    let weight_bytes = weight_bytes - host_embedding_bytes;
    let meeting_bytes = group.as_ref().map_or(0, |group| ranks * group.rank_bytes());
    let overhead = runner::overhead(&local, &options, device.as_ref(), config);
    let overhead_bytes = ranks * (overhead.stream_bytes + overhead.driver_bytes);
    let buffers = runner::memory_plan(&local, &options, device.caps()).bytes_on(device.caps());
    let fixed_bytes = weight_bytes + meeting_bytes + ranks * buffers + overhead_bytes;
    let parts = memories(&devices).len();
    let demand = Demand {
        block_bytes: kv_block_bytes / parts,
        rank_block_bytes: kv_block_bytes / ranks,
        fixed_bytes: fixed_bytes / parts,
        driver_bytes: overhead.driver_bytes,
        most: kv.blocks_for(max_model_len).saturating_mul(config.max_num_seqs),
        kv_bytes: config.kv_cache_bytes.map(|bytes| bytes / parts),
    };
    let each = memories(&devices).iter().map(|device| runner::num_blocks(config, device.as_ref(), &demand));
    options.num_blocks = each.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or(0);
    Ok(Sizes {
        dir,
        info,
        local,
        weight_bytes,
        host_embedding_bytes,
        group,
        meeting_bytes,
        devices,
        mode,
        bound,
        options,
        kv_block_bytes,
        fixed_bytes,
        overhead_bytes,
        demand,
    })
}

/// A device for each rank, with its share of the compute threads. They get ready for `load_bytes` of weights each.
fn devices(config: &EngineConfig, ranks: usize, load_bytes: usize) -> Result<Vec<Arc<dyn Device>>> {
    let all = || config.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let threads = if ranks > 1 { Some((all() / ranks).max(1)) } else { config.threads };
    let options = DeviceOptions {
        threads,
        cpu_features: config.cpu_features.clone(),
        library_dir: config.device_library_dir.as_deref().map(PathBuf::from),
        tuning_cache: config.tuning_cache.as_deref().map(PathBuf::from),
        load_bytes: if config.load_format == LoadFormat::Dummy { 0 } else { load_bytes },
        numeric_mode: config.numeric_mode,
        planted: config.planted.clone(),
    };
    registry::open_ranks(&config.device, ranks, &options)
}

fn model_len(config: &EngineConfig, info: &ModelInfo) -> Result<usize> {
    match config.max_model_len {
        Some(len) if len > info.max_position => Err(Error::invalid(format!(
            "config key \"max_model_len\" is {len}; the model's positions end at {} (max_position_embeddings)",
            info.max_position
        ))),
        Some(len) => Ok(len),
        None => Ok(info.max_position),
    }
}

fn real(config: &EngineConfig, signal: &Arc<Signal>, progress: Progress<'_>) -> Result<Parts> {
    progress(0.0)?;
    let mut sizes = sizes(config, true)?;
    config.self_test.as_ref().map_or(Ok(()), |path| selftest::write(&sizes.devices[0], Path::new(path)))?;
    let free = sizes.free_bytes()?;
    let tokenizer = config.tokenizer.as_deref().map(Path::new);
    let text = Arc::new(TextModel::open(&sizes.dir, tokenizer, config.chat_template.as_deref())?);
    let mut cancelled = None;
    let loaded = {
        let mut report = |p: f32| -> Result<()> { progress(p * 0.95).inspect_err(|e| cancelled = Some(e.clone())) };
        let how =
            LoadOptions { format: config.load_format, shard: Shard::WHOLE, embedding: config.embedding_placement };
        let how = (how, sizes.options.max_model_len);
        model::load_ranks(&sizes.info, &sizes.dir, how, &sizes.devices, &mut report)?
    };
    let (runner, num_blocks) = rank_runner(config, loaded, &sizes)?;
    sizes.options.num_blocks = num_blocks;
    sizes.devices.iter().for_each(|device| device.seal());
    let used_bytes = free.saturating_sub(sizes.free_bytes()?);
    progress(1.0)?;
    let exec = WorkerExecutor::spawn(runner, config.pipeline_depth, Arc::clone(signal))?;
    let limits = Limits {
        text,
        max_model_len: sizes.options.max_model_len,
        vocab_size: sizes.info.vocab_size,
        eos_tokens: sizes.info.eos_tokens.clone(),
        seed: config.seed.unwrap_or_else(entropy),
    };
    let defaults = sizes.info.sampling_defaults();
    Ok(Parts {
        sched: scheduler(config, &sizes.options, sizes.bound)?,
        exec: Box::new(exec),
        info: info(config, &sizes, used_bytes),
        block_size: sizes.options.block_size,
        limits,
        defaults: SamplingDefaults { temperature: defaults.temperature, top_k: defaults.top_k, top_p: defaults.top_p },
    })
}

/// The ranks of a model as one runner, and the number of KV blocks they have, which is known once they are warm. They warm up
/// side by side, as each waits for the others.
fn rank_runner(config: &EngineConfig, mut models: Vec<Model>, sizes: &Sizes) -> Result<(Box<dyn StepRunner>, u32)> {
    let options = &sizes.options;
    let rooms = runner::rooms(&sizes.devices, options, &sizes.demand)?;
    let settle = || runner::settle(config, &sizes.devices, (&sizes.demand, options.num_blocks), &rooms);
    let Some(group) = &sizes.group else {
        let device = Arc::clone(&sizes.devices[0]);
        let runner = ModelRunner::in_room(models.swap_remove(0), device, (options.clone(), &rooms[0]), None)?;
        return Ok((Box::new(runner), settle()?));
    };
    let start = |rank: usize, model: Model| -> Result<Box<dyn StepRunner>> {
        let device = &sizes.devices[rank];
        let place = group.join(rank, device.as_ref())?;
        let options = (options.clone(), &rooms[rank]);
        Ok(Box::new(ModelRunner::in_room(model, Arc::clone(device), options, Some(place))?))
    };
    let start = |(rank, model): (usize, Model)| -> StartRank<'_> {
        let start = &start;
        Box::new(move || start(rank, model))
    };
    let starts = models.into_iter().enumerate().map(start).collect();
    let runner = RankRunner::start(starts, Arc::clone(group))?;
    Ok((Box::new(runner), settle()?))
}

impl Sizes {
    /// Of all memories that ranks are in.
    fn free_bytes(&self) -> Result<usize> {
        memories(&self.devices).iter().map(|device| Ok(device.memory()?.free_bytes)).sum()
    }
}

/// A device of each memory that ranks are in: they share the host's, others have each one of their own.
fn memories(devices: &[Arc<dyn Device>]) -> &[Arc<dyn Device>] {
    if devices[0].caps().own_memory { devices } else { &devices[..1] }
}

fn scheduler(config: &EngineConfig, options: &RunnerOptions, bound: Option<StepBound>) -> Result<Scheduler> {
    let sched = SchedConfig {
        max_seqs: options.max_num_seqs,
        max_tokens: options.max_num_batched_tokens,
        bound,
        max_model_len: options.max_model_len,
        num_blocks: options.num_blocks,
        block_size: options.block_size,
        prefix_cache: config.enable_prefix_caching,
        hash_bits: 64,
    };
    Ok(Scheduler::new(sched, policy(config)?))
}

/// How much prompts may slow down decoding, where the device tells its rates.
fn step_bound(config: &EngineConfig, device: &dyn Device, local: &ModelInfo) -> Result<Option<StepBound>> {
    match (config.max_decode_slowdown, device.rates(local.dtype)) {
        (Some(0.0), _) | (None, None) => Ok(None),
        (Some(factor), None) => Err(no_rates(factor, device.caps().name)),
        (factor, Some(rates)) => Ok(Some(StepBound {
            cost: runner::step_cost(local, &rates),
            percent: (100.0 * factor.unwrap_or(DECODE_SLOWDOWN)) as u32,
            min_chunk: MIN_CHUNK,
        })),
    }
}

fn no_rates(factor: f64, device: &str) -> Error {
    Error::unsupported(format!(
        "config key \"max_decode_slowdown\" is {factor}; how long a step takes is not known of device {device}, so steps \
         cannot be bounded by it: leave the key out and lower max_num_batched_tokens"
    ))
}

fn policy(config: &EngineConfig) -> Result<Box<dyn Policy>> {
    policy::by_name(&config.scheduling_policy).ok_or_else(|| {
        Error::invalid(format!(
            "config key \"scheduling_policy\" is {:?}; expected one of {}",
            config.scheduling_policy,
            policy::NAMES.join(", ")
        ))
    })
}

fn mock(config: &EngineConfig, signal: &Arc<Signal>, progress: Progress<'_>) -> Result<Parts> {
    let spec = MockSpec::parse(&config.model)?;
    if spec.fault_rank >= config.tensor_parallel_size {
        return Err(Error::invalid(format!(
            "fault_rank is {} in model {:?}; expected less than tensor_parallel_size, {}",
            spec.fault_rank, config.model, config.tensor_parallel_size
        )));
    }
    if config.numeric_mode == NumericMode::Aligned {
        return Err(Error::unsupported(
            "config key \"numeric_mode\" is \"aligned\"; a mock model computes no numbers, leave the key out",
        ));
    }
    if config.embedding_placement == Placement::Host {
        return Err(Error::invalid(
            "config key \"embedding_placement\" is \"host\"; a mock model has no embedding table, leave the key out",
        ));
    }
    if let Some(factor) = config.max_decode_slowdown.filter(|f| *f > 0.0) {
        return Err(no_rates(factor, "mock"));
    }
    registry::check(&config.device)?;
    let steps = spec.load.as_millis() as u32;
    for step in 0..steps {
        progress(step as f32 / steps as f32)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!spec.panic_load, "the mock model was told to panic while it loads");
    if config.tokenizer.is_some() {
        return Err(Error::invalid("config key \"tokenizer\" is set; a mock model has its own, leave the key out"));
    }
    let text = TextModel::mock(config.chat_template.as_deref(), spec.panic_byte)?;
    let max_model_len = config.max_model_len.unwrap_or(MOCK_MODEL_LEN);
    let block_size = config.block_size.unwrap_or(MOCK_BLOCK_SIZE);
    let options = RunnerOptions {
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens.unwrap_or(MOCK_STEP_TOKENS),
        max_model_len,
        block_size,
        // One byte a token: `kv_cache_bytes` makes a small cache to provoke preemption.
        num_blocks: (config.kv_cache_bytes.unwrap_or(1 << 20) / block_size as usize).clamp(1, 1 << 20) as u32,
        depth: config.pipeline_depth,
    };
    let exec = WorkerExecutor::spawn(mock_runner(spec, config)?, config.pipeline_depth, Arc::clone(signal))?;
    Ok(Parts {
        sched: scheduler(config, &options, None)?,
        exec: Box::new(exec),
        limits: Limits {
            text: Arc::new(text),
            max_model_len,
            vocab_size: MOCK_EOS as usize + 1,
            eos_tokens: vec![MOCK_EOS],
            seed: config.seed.unwrap_or_else(|| SplitMix64(0).next_u64()),
        },
        defaults: SamplingDefaults { temperature: 0.0, top_k: 0, top_p: 1.0 },
        block_size,
        info: json!({
            "model": model_json(config, "mock", "uint8"),
            "device": {"name": "mock", "description": "deterministic tokens without a device"},
            "numeric_mode": NumericMode::Invariant.name(),
            "limits": limits_json(config, &options),
            "kv_cache": {"block_size": block_size, "num_blocks": options.num_blocks},
        }),
    })
}

fn mock_runner(spec: MockSpec, config: &EngineConfig) -> Result<Box<dyn StepRunner>> {
    let (ranks, rows) = (config.tensor_parallel_size, config.max_num_seqs);
    if ranks == 1 {
        return Ok(Box::new(MockRunner::new(spec, rows)));
    }
    let group: Arc<dyn Group> = Arc::new(LocalGroup::new(ranks, 1));
    let start = |rank: usize| -> StartRank<'_> {
        let group = &group;
        Box::new(move || {
            let options = DeviceOptions { threads: Some(1), ..DeviceOptions::default() };
            let device = registry::open_host(&options)?;
            let x = Tensor::new(device.alloc(DType::F32.size())?, 0, 1, 1, DType::F32);
            let (place, stream) = (group.join(rank, device.as_ref())?, device.stream()?);
            Ok(Box::new(MockRunner::new(spec, rows).with_rank(MockRank { rank, place, stream, x })))
        })
    };
    Ok(Box::new(RankRunner::start((0..ranks).map(start).collect(), Arc::clone(&group))?))
}

fn limits_json(config: &EngineConfig, options: &RunnerOptions) -> Value {
    json!({
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_waiting": config.max_waiting,
        "max_unread_bytes": config.max_unread_bytes,
        "pipeline_depth": config.pipeline_depth,
    })
}

fn device_json(caps: &Caps) -> Value {
    json!({
        "name": caps.name,
        "description": caps.description,
        "invariant": caps.invariant,
        "aligned": caps.aligned,
    })
}

/// The mode that a device computes in, or several that meet in a group, when the config asks for one.
fn numeric_mode(wanted: NumericMode, (caps, group): (&Caps, Option<&dyn Group>)) -> Result<NumericMode> {
    let refused = |why: &str| {
        Err(Error::unsupported(format!(
            "config key \"numeric_mode\" is {:?}; device {} {why}",
            wanted.name(),
            caps.name
        )))
    };
    let ordered = group.is_none_or(Group::ordered);
    match wanted {
        NumericMode::Invariant | NumericMode::Aligned if !ordered => refused(
            "adds up what several ranks computed in an order that depends on the size of the batch; use \"fast\", or a \
             \"tensor_parallel_size\" of 1",
        ),
        NumericMode::Aligned if !caps.aligned => refused(&format!(
            "does not round activations to the model's dtype where the reference implementation does; use {:?}",
            if caps.invariant { "invariant" } else { "fast" }
        )),
        NumericMode::Invariant if !caps.invariant => refused("has no invariant kernels; use \"fast\""),
        NumericMode::Fast if caps.invariant && ordered => Ok(NumericMode::Invariant),
        mode => Ok(mode),
    }
}

fn info(config: &EngineConfig, sizes: &Sizes, used_bytes: usize) -> Value {
    let mut memory = memory_json(sizes);
    if sizes.devices[0].caps().own_memory {
        memory["device_used_bytes"] = used_bytes.into();
    }
    let mut info = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": model_json(config, &sizes.info.architecture, sizes.info.dtype.name()),
        "device": device_json(sizes.devices[0].caps()),
        "numeric_mode": sizes.mode.name(),
        "limits": limits_json(config, &sizes.options),
        "max_decode_slowdown": sizes.bound.map(|b| f64::from(b.percent) / 100.0),
        "memory": memory,
        "prefix_caching": config.enable_prefix_caching,
        "scheduling_policy": config.scheduling_policy,
        "load_format": if config.load_format == LoadFormat::Dummy { "dummy" } else { "safetensors" },
    });
    if let Some(tuned) = sizes.devices[0].tuned() {
        info["tuning"] = json!({"searched": tuned.searched, "known": tuned.known});
    }
    info
}

fn memory_json(sizes: &Sizes) -> Value {
    let ranks = sizes.devices.len();
    let plan = runner::memory_plan(&sizes.local, &sizes.options, sizes.devices[0].caps());
    let kv_bytes = sizes.kv_block_bytes * sizes.options.num_blocks as usize;
    json!({
        "ranks": ranks,
        "weights_bytes": sizes.weight_bytes,
        "host_embedding_bytes": sizes.host_embedding_bytes,
        "rank_meeting_bytes": sizes.meeting_bytes,
        "arena_bytes": ranks * plan.arena_bytes,
        "row_state_bytes": ranks * plan.row_state_bytes,
        "step_input_bytes": ranks * plan.inputs_bytes,
        "staging_bytes": ranks * plan.staging_bytes,
        "device_overhead_bytes": sizes.overhead_bytes,
        "rope_table_bytes": ranks * plan.rope_bytes,
        "padding_bytes": ranks * plan.padding_bytes,
        "kv_cache_bytes": kv_bytes,
        "kv_block_bytes": sizes.kv_block_bytes,
        "kv_num_blocks": sizes.options.num_blocks,
        "kv_tokens": sizes.options.num_blocks as usize * sizes.options.block_size as usize,
        "total_bytes": sizes.fixed_bytes + kv_bytes,
    })
}

/// See [`crate::engine::plan_memory`].
pub(crate) fn plan_memory(config: &EngineConfig) -> Result<Value> {
    if config.model.starts_with("mock:") {
        return Err(Error::invalid("a mock model has no memory to plan; expected a model directory"));
    }
    let sizes = sizes(config, false)?;
    Ok(json!({
        "model": model_json(config, &sizes.info.architecture, sizes.info.dtype.name()),
        "device": device_json(sizes.devices[0].caps()),
        "numeric_mode": sizes.mode.name(),
        "free_bytes": sizes.free_bytes()?,
        "memory": memory_json(&sizes),
        "limits": limits_json(config, &sizes.options),
    }))
}
