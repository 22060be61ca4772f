//! Runs plans on a device, in order, up to `depth` ahead of their results.

use super::flight::{Flight, REPORT_ENTRY, Slot, Wanted};
use super::graphs::{Graphs, Padding};
use super::inputs::{InputShape, ScoreTensors, StepTensors, pack};
use super::late::{LateRows, LateTensors};
use super::memory::{RunnerOptions, WORD, arena_plan, kv_spec, sampler_rows};
use super::pool::KvRoom;
use super::rows::{RowBuffers, SamplerRows};
use super::tables::HeldTables;
use super::warm::{Sampling, largest, nothing, single};
use crate::base::{BlockId, DType, Error, Result, Row, StepId, Token};
use crate::hal::arena::Arena;
use crate::hal::comm::Communicator;
use crate::hal::ops::{KvLayer, Logprobs, Sample};
use crate::hal::{Allocation, Device, Event, Stream, Tensor};
use crate::model::Model;
use crate::model::decoder::{Buffers, HiddenOf, Pass};
use crate::plan::{KvSpec, RowTables, StepOutcome, StepOutput, StepPart, StepPlan, TokenMask};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// One model on one device with its KV blocks, sampler rows and temporary memory. Owned by one thread.
#[derive(Debug)]
pub struct ModelRunner {
    model: Model,
    options: RunnerOptions,
    shape: InputShape,
    kv: KvSpec,
    stream: Box<dyn Stream>,
    arena: Arena,
    buffers: Buffers,
    /// U8 `[blocks, block_bytes]`, with the blocks that no sequence has first.
    pool: Tensor,
    rows: SamplerRows,
    tables: RowTables,
    /// Where entries may wait for masks.
    late: Option<LateRows>,
    /// Where the device records work.
    graphs: Option<Graphs>,
    inputs: Arc<dyn Allocation>,
    /// I32 `[max samples, 1]`.
    sampled: Tensor,
    /// Cut as a step needs them.
    reports: Arc<dyn Allocation>,
    idle: Receiver<Slot>,
    /// Where landed steps leave their slots.
    home: Sender<Slot>,
    /// Launched by [`Self::launch`].
    flights: VecDeque<Flight>,
    device: Arc<dyn Device>,
    /// Last, as recorded steps use it.
    comm: Option<Box<dyn Communicator>>,
}

impl ModelRunner {
    /// Allocates everything a step needs and warms up. `NoMemory` when the device has too little.
    pub fn new(model: Model, device: Arc<dyn Device>, options: RunnerOptions) -> Result<Self> {
        Self::of_rank(model, device, options, None)
    }

    /// The same for one rank's share of a model. All ranks of a group are made, and run every step, side by side: each
    /// waits for the others.
    pub fn of_rank(
        model: Model,
        device: Arc<dyn Device>,
        options: RunnerOptions,
        comm: Option<Box<dyn Communicator>>,
    ) -> Result<Self> {
        check(&model, device.as_ref(), &options)?;
        let block_bytes = kv_spec(&model.info, options.block_size).block_bytes(0);
        let room = KvRoom::exact(device.as_ref(), options.num_blocks, block_bytes)?;
        Self::in_room(model, device, (options, &room), comm)
    }

    /// The same with KV blocks in a room that was made before, as many as it can have. Only blocks that memory was
    /// committed for may be named in a step.
    pub fn in_room(
        model: Model,
        device: Arc<dyn Device>,
        (options, room): (RunnerOptions, &KvRoom),
        comm: Option<Box<dyn Communicator>>,
    ) -> Result<Self> {
        let options = RunnerOptions { num_blocks: room.blocks(), ..options };
        check(&model, device.as_ref(), &options)?;
        let kv = kv_spec(&model.info, options.block_size);
        let shape = InputShape::of(&options).behind(room.padding());
        let samples = options.max_samples();
        let caps = device.caps();
        let (arena, buffers) = arena_plan(&model.info, &options, caps);
        let graphs = caps.graphs.then(|| Graphs::new(shape.most(), Row(options.max_num_seqs as u32)));
        let vocab_size = model.info.spec.vocab_size;
        // Holds no more than it is given here.
        let (home, idle) = unbounded();
        for _ in 0..=options.depth {
            let slot = || -> Result<Slot> {
                Ok(Slot {
                    inputs: device.host_buffer(shape.words() * WORD)?,
                    held: HeldTables::default(),
                    rows: RowBuffers::new(device.as_ref(), vocab_size)?,
                    tokens: device.host_buffer(samples * WORD)?,
                    reports: device.host_buffer(options.report_words() * WORD)?,
                    masks: None,
                })
            };
            // The other end is a line above.
            let _ = home.send(slot().map_err(|e| e.within("host buffers of steps"))?);
        }
        let alloc = |bytes: usize, what: &'static str| device.alloc(bytes).map_err(|e| e.within(what));
        let mut runner = Self {
            stream: device.stream().map_err(|e| e.within("the stream of steps"))?,
            arena: arena.allocate(device.as_ref()).map_err(|e| e.within("temporary tensors of a step"))?,
            buffers,
            pool: room.tensor(),
            rows: SamplerRows::new(device.as_ref(), sampler_rows(&options, caps), vocab_size)
                .map_err(|e| e.within("sampler rows"))?,
            tables: RowTables::default(),
            late: None,
            graphs,
            inputs: alloc(shape.words() * WORD, "step inputs")?,
            sampled: Tensor::new(alloc(samples * WORD, "sampled tokens")?, 0, samples, 1, DType::I32),
            reports: alloc(options.report_words() * WORD, "logprobs")?,
            idle,
            home,
            flights: VecDeque::with_capacity(options.depth + 1),
            model,
            options,
            shape,
            kv,
            device,
            comm,
        };
        runner.warm_up()?;
        Ok(runner)
    }

    /// The same with room for entries that wait for masks; see [`late_mask_bytes`](super::late_mask_bytes).
    pub fn with_late_masks(mut self) -> Result<Self> {
        let vocab_size = self.model.info.spec.vocab_size;
        self.late = Some(LateRows::new(self.device.as_ref(), &self.options, vocab_size)?);
        Ok(self)
    }

    /// One token through the whole model, so that the first request finds everything in place; on a device with memory of
    /// its own also the largest step and all products, so that nothing is left to load or to allocate.
    fn warm_up(&mut self) -> Result<()> {
        self.warm_step(&single(&[0], 0, vec![BlockId(0)], Sampling::Draws))?;
        if self.device.caps().own_memory {
            self.warm_step(&largest(&self.options, self.model.info.vocab_size))?;
            self.pass().prepare()?;
            self.stream.record()?.wait().map_err(|e| e.within("preparing matrix products"))?;
        }
        self.record_steps()
    }

    fn warm_step(&mut self, plan: &StepPlan) -> Result<()> {
        self.launch(plan)?;
        match self.finish()?.outcome {
            StepOutcome::Done(_) => Ok(()),
            StepOutcome::Failed(e) => Err(e.within(format!("warm-up with {} tokens", plan.num_tokens()))),
        }
    }

    /// Records decode steps of all shapes that they are padded to, with nothing but padding in them.
    fn record_steps(&mut self) -> Result<()> {
        let buckets = self.graphs.as_ref().map_or_else(Vec::new, Graphs::buckets);
        let mut slot = self.slot()?;
        let mut ran = 0;
        for bucket in buckets {
            let Some(padding) = self.graphs.as_ref().map(|g| g.padded_to(bucket)) else { break };
            let step = self.upload((&nothing(), &self.tables), Some(padding), &mut slot)?;
            // What depends on the number of rows is prepared where it is first run.
            if std::mem::replace(&mut ran, bucket.seqs) != bucket.seqs {
                self.compute(&step)?;
            }
            let recorded = self.stream.capture(&mut || self.compute(&step));
            let graph = recorded.map_err(|e| e.within(format!("recording steps of {} sequences", bucket.seqs)))?;
            self.stream.record()?.wait().map_err(|e| e.within("recording steps"))?;
            if let Some(graphs) = &mut self.graphs {
                graphs.insert(bucket, graph);
            }
        }
        self.put_back(slot);
        Ok(())
    }

    fn slot(&self) -> Result<Slot> {
        let depth = self.options.depth;
        self.idle.try_recv().map_err(|_| Error::internal(format!("more than {depth} steps are in flight")))
    }

    fn put_back(&self, slot: Slot) {
        // The other end is `self.idle`.
        let _ = self.home.send(slot);
    }

    /// Enqueues a step for [`Self::finish`]. On an error nothing of it counts and nothing is to be finished for it.
    pub fn launch(&mut self, plan: &StepPlan) -> Result<()> {
        let flight = self.launch_step(plan)?;
        self.flights.push_back(flight);
        Ok(())
    }

    /// Enqueues a step. On an error nothing of it counts and nothing of it runs any more.
    pub fn launch_step(&mut self, plan: &StepPlan) -> Result<Flight> {
        self.tables.apply(plan)?;
        let mut slot = self.slot()?;
        match self.enqueue(plan, &mut slot) {
            Ok((event, alternatives)) => {
                if let Some(late) = &mut self.late {
                    late.remember(plan);
                }
                let (part, wanted) = (StepPart::First, Wanted::of(plan, alternatives));
                Ok(Flight { id: plan.id, part, wanted, slot, event, home: self.home.clone() })
            }
            Err(e) => {
                // The device may wait for ranks that wait for this one.
                if let Some(comm) = &self.comm {
                    comm.fail(&e);
                }
                // What was enqueued may still read the slot.
                if let Ok(event) = self.stream.record()
                    && event.wait().is_ok()
                {
                    self.put_back(slot);
                }
                Err(e)
            }
        }
    }

    /// The event behind the step, and the alternatives of each of its reports.
    fn enqueue(&self, plan: &StepPlan, slot: &mut Slot) -> Result<(Box<dyn Event>, usize)> {
        let padding = self.graphs.as_ref().and_then(|g| g.padding(plan));
        let step = self.upload((plan, &self.tables), padding, slot)?;
        self.rows.set((&plan.row_inits, step.inits.as_ref()), self.stream.as_ref(), &mut slot.rows)?;
        self.comm.as_ref().map_or(Ok(()), |comm| comm.begin())?;
        let recorded = padding.and_then(|p| self.graphs.as_ref()?.get(p.bucket));
        match recorded {
            Some(graph) => self.stream.replay(graph)?,
            None => self.compute(&step)?,
        }
        if let (Some((rows, from)), Some((all, ..))) = (&step.waits, &step.samples) {
            let late = self.late.as_ref();
            let late = late.ok_or_else(|| Error::internal("an entry waits for a mask where none may wait"))?;
            let logits = self.pass().logits_rows(all.rows());
            self.stream.copy_rows((&late.logits, rows), (&logits, from))?;
        }
        let samplers = plan.entries.iter().filter(|e| e.samples).count();
        if samplers > 0 {
            self.stream.download(slot.tokens.as_mut(), &self.sampled.slice_rows(0, samplers))?;
        }
        let reports =
            step.scores.as_ref().map_or(0, |s| s.targets.rows()) + step.reports.as_ref().map_or(0, Tensor::rows);
        if reports > 0 {
            self.stream.download(slot.reports.as_mut(), &self.reports(step.alternatives).slice_rows(0, reports))?;
        }
        Ok((self.stream.record()?, step.alternatives))
    }

    /// Enqueues the draws of entries of a launched step that wait for their masks. On an error nothing of it counts.
    pub fn supply(&mut self, step: StepId, masks: &[TokenMask]) -> Result<Flight> {
        let none = || Error::internal("masks for a runner whose entries cannot wait");
        let mut slot = self.late.as_ref().ok_or_else(none)?.slot()?;
        let packed = self.late.as_mut().ok_or_else(none)?.pack(step, masks, &mut slot);
        let home = self.late.as_ref().ok_or_else(none)?.home.clone();
        let drawn = packed.and_then(|(tensors, samplers)| {
            let wanted = Wanted::late(samplers);
            Ok((self.draw_late(&tensors, wanted.alternatives(), &mut slot)?, wanted))
        });
        match drawn {
            Ok((event, wanted)) => Ok(Flight { id: step, part: StepPart::Late, wanted, slot, event, home }),
            Err(e) => {
                // What was enqueued may still read the slot.
                if let Ok(event) = self.stream.record()
                    && event.wait().is_ok()
                {
                    // The other end is in `self.late`.
                    let _ = home.send(slot);
                }
                Err(e)
            }
        }
    }

    fn draw_late(&self, late: &LateTensors, alternatives: usize, slot: &mut Slot) -> Result<Box<dyn Event>> {
        let (Some(kept), Some(masks)) = (&self.late, &slot.masks) else {
            return Err(Error::internal("a late part has no masks"));
        };
        self.stream.upload(&late.whole, slot.inputs.as_ref())?;
        self.stream.upload(&late.masks, masks.as_ref())?;
        let n = late.rows.rows();
        let (logits, out) = (self.pass().logits_rows(n), self.sampled.slice_rows(0, n));
        let fetch = || self.stream.copy_rows((&logits, &late.every), (&kept.logits, &late.rows));
        fetch()?;
        self.stream.mask_logits(&logits, &late.masks)?;
        let (rows, positions) = (&late.rows, &late.positions);
        let SamplerRows { state, counts, biases } = &self.rows;
        self.stream.sample(&Sample { logits: &logits, rows, positions, state, counts, biases, out: &out })?;
        self.stream.download(slot.tokens.as_mut(), &out)?;
        if let Some(index) = &late.reports {
            // Logprobs are those of the model, without the mask.
            fetch()?;
            let out_of = self.reports(alternatives).slice_rows(0, index.rows());
            self.stream.logprobs(&Logprobs { logits: &logits, index, tokens: &out, out: &out_of })?;
            self.stream.download(slot.reports.as_mut(), &out_of)?;
        }
        self.stream.record()
    }

    /// Room for reports with so many alternatives each.
    fn reports(&self, alternatives: usize) -> Tensor {
        let words = REPORT_ENTRY * (1 + alternatives);
        Tensor::new(Arc::clone(&self.reports), 0, self.options.max_num_batched_tokens, words, DType::I32)
    }

    /// Enqueues what a step runs on the device. Nothing in it depends on the host but the shapes of `step`.
    fn compute(&self, step: &StepTensors) -> Result<()> {
        let pass = self.pass();
        let hidden = pass.forward(&step.batch, self.wanted(step))?;
        let reports = self.reports(step.alternatives);
        let mut reported = 0;
        if let Some(scores) = &step.scores {
            self.score(&pass, &hidden, scores, &reports)?;
            reported = scores.targets.rows();
        }
        let Some((last, rows, positions)) = &step.samples else { return Ok(()) };
        let (logits, out) = (pass.logits_rows(last.rows()), self.sampled.slice_rows(0, rows.rows()));
        let SamplerRows { state, counts, biases } = &self.rows;
        let sample = Sample { logits: &logits, rows, positions, state, counts, biases, out: &out };
        pass.sample((&hidden, last), sample, step.reports.is_some())?;
        if let Some(index) = &step.reports {
            let out_of = reports.slice_rows(reported, index.rows());
            self.stream.logprobs(&Logprobs { logits: &logits, index, tokens: &out, out: &out_of })?;
        }
        Ok(())
    }

    /// The reference computes all rows, and products of fewer could be of other kernels.
    fn wanted<'a>(&self, step: &'a StepTensors) -> HiddenOf<'a> {
        match &step.samples {
            _ if step.scores.is_some() || self.device.caps().aligned => HiddenOf::All,
            Some((index, ..)) => HiddenOf::Tokens(index),
            None => HiddenOf::Nothing,
        }
    }

    /// Reports prompt tokens, as many at once as there is room for logits.
    fn score(&self, pass: &Pass<'_>, hidden: &Tensor, scores: &ScoreTensors, reports: &Tensor) -> Result<()> {
        let (all, at_once) = (scores.targets.rows(), self.shape.logit_rows());
        for first in (0..all).step_by(at_once) {
            let rows = at_once.min(all - first);
            let [index, tokens] = [&scores.index, &scores.targets].map(|t| t.slice_rows(first, rows));
            let (index_of_logits, out) = (scores.every.slice_rows(0, rows), reports.slice_rows(first, rows));
            let logits = pass.logits(hidden, &index)?;
            self.stream.logprobs(&Logprobs { logits: &logits, index: &index_of_logits, tokens: &tokens, out: &out })?;
        }
        Ok(())
    }

    fn upload(&self, step: (&StepPlan, &RowTables), padding: Option<Padding>, slot: &mut Slot) -> Result<StepTensors> {
        let packed =
            pack(step, (self.shape, self.model.info.vocab_size), padding, (slot.inputs.as_mut(), &mut slot.held))?;
        self.stream.upload(&packed.whole(&self.inputs), slot.inputs.as_ref())?;
        Ok(packed.tensors(&self.inputs))
    }

    fn pass(&self) -> Pass<'_> {
        let group = &self.kv.groups[0];
        let kv = KvLayer {
            pool: &self.pool,
            layer: 0,
            layers: group.layers as usize,
            kv_heads: group.kv_heads as usize,
            head_dim: group.head_dim as usize,
            block_size: self.kv.block_size as usize,
            dtype: group.dtype,
        };
        Pass {
            model: &self.model,
            stream: self.stream.as_ref(),
            arena: &self.arena,
            buffers: &self.buffers,
            state: &self.rows.state,
            kv,
            comm: self.comm.as_deref(),
        }
    }

    /// Waits for the oldest step of [`Self::launch`]. `Internal` when there is none; a device error becomes a failed outcome.
    pub fn finish(&mut self) -> Result<StepOutput> {
        let flight = self.flights.pop_front().ok_or_else(|| Error::internal("no step is in flight"))?;
        Ok(flight.land())
    }

    /// Logits of every position of `tokens`, `[tokens, vocab_size]` row after row, computed in chunks of `chunk` tokens.
    /// For tests and diagnosis: nothing may be in flight, and the first KV blocks are overwritten.
    pub fn logits(&mut self, tokens: &[Token], chunk: usize) -> Result<Vec<f32>> {
        if !self.flights.is_empty() || chunk == 0 || chunk > self.options.max_num_batched_tokens {
            return Err(Error::invalid(format!(
                "logits in chunks of {chunk} with {} steps in flight",
                self.flights.len()
            )));
        }
        let blocks = self.kv.blocks_for(tokens.len());
        if blocks > self.options.num_blocks as usize || tokens.len() > self.options.max_model_len {
            return Err(Error::invalid(format!("logits of {} tokens do not fit the runner", tokens.len())));
        }
        let mut slot = self.slot()?;
        let mut out = Vec::new();
        let mut run = || {
            for (i, part) in tokens.chunks(chunk).enumerate() {
                let end = i * chunk + part.len();
                let table = (0..self.kv.blocks_for(end)).map(|b| BlockId(b as u32)).collect();
                let plan = single(part, i * chunk, table, Sampling::Skips);
                let mut tables = RowTables::default();
                tables.apply(&plan)?;
                slot.held.forget();
                let step = self.upload((&plan, &tables), None, &mut slot)?;
                let hidden = self.pass().forward(&step.batch, HiddenOf::All)?;
                let most = self.options.max_samples();
                for first in (0..part.len()).step_by(most) {
                    self.read_logits(&hidden, first..part.len().min(first + most), &mut out)?;
                }
            }
            Ok(())
        };
        let done = run();
        slot.held.forget();
        self.put_back(slot);
        done.map(|()| out)
    }

    fn read_logits(&self, hidden: &Tensor, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let mut index = self.device.host_buffer(WORD * rows.len())?;
        for (word, row) in index.bytes_mut().chunks_exact_mut(WORD).zip(rows.clone()) {
            word.copy_from_slice(&(row as i32).to_ne_bytes());
        }
        // The step's own inputs are not needed any more once its layers have run.
        let place = Tensor::new(Arc::clone(&self.inputs), 0, rows.len(), 1, DType::I32);
        self.stream.upload(&place, index.as_ref())?;
        let logits = self.pass().logits(hidden, &place)?;
        let mut host = self.device.host_buffer(logits.bytes())?;
        self.stream.download(host.as_mut(), &logits)?;
        self.stream.record()?.wait()?;
        out.extend(host.bytes().chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])));
        Ok(())
    }
}

fn check(model: &Model, device: &dyn Device, options: &RunnerOptions) -> Result<()> {
    let sizes = [options.max_num_seqs, options.max_num_batched_tokens, options.max_model_len, options.depth];
    if sizes.contains(&0) || options.block_size == 0 || options.num_blocks == 0 {
        return Err(Error::invalid(format!("runner sizes must be at least 1: {options:?}")));
    }
    let all_blocks = options.num_blocks as usize + usize::from(device.caps().graphs);
    if all_blocks * options.block_size as usize > i32::MAX as usize {
        return Err(Error::invalid(format!("{} KV blocks are beyond 32-bit slots", options.num_blocks)));
    }
    if options.max_model_len > model.ropes[0].rows() {
        return Err(Error::internal(format!(
            "the model was loaded for {} positions, the runner is for {}",
            model.ropes[0].rows(),
            options.max_model_len
        )));
    }
    if !device.caps().kv_dtypes.contains(&model.info.dtype) {
        return Err(Error::unsupported(format!("device {} keeps no {} cache", device.caps().name, model.info.dtype)));
    }
    Ok(())
}
