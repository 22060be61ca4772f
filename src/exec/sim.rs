//! A device made of arithmetic: KV is really written and read through block tables, and the next token is a hash of
//! everything read, so a wrong table, an early free or a false hit changes tokens. For the scheduler's simulator and
//! for engines without a model.

use crate::base::rng::{SplitMix64, mix};
use crate::base::{Error, ErrorKind, Result, SeqId, StepId, Token};
use crate::exec::Executor;
use crate::exec::worker::Work;
use crate::plan::{
    Logprob, Request, RowInit, RowTables, Sampled, Scored, Scores, StepEntry, StepOutcome, StepOutput, StepPlan,
    StepResults, TokenMask,
};
use std::collections::{HashMap, VecDeque};

/// Shape and faults of a simulated device.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Decides durations and faults, not tokens.
    pub seed: u64,
    pub num_blocks: u32,
    pub block_size: u32,
    /// Rows of sampler state.
    pub rows: usize,
    /// Steps that may be outstanding.
    pub depth: usize,
    /// Tokens are below this; at least 1.
    pub vocab: u32,
    /// Polls a step takes, at most; at least 1.
    pub slowest: u64,
    /// Steps in a thousand that fail.
    pub fail_per_mille: u64,
    /// A sequence that fails every step it is part of.
    pub poison: Option<SeqId>,
}

/// What the device computes. A cell stands for one token's keys and values: it depends on the whole prefix.
#[derive(Debug, Clone, Copy)]
pub struct SimModel {
    pub vocab: u32,
    /// Ranks it is spread over; at least 1.
    pub ranks: usize,
}

impl SimModel {
    /// The cell of `token` behind the cell of the token before it; 0 stands before the first.
    pub fn cell(self, before: u64, token: Token) -> u64 {
        mix(before ^ 0x5EED, u64::from(token) + 1)
    }

    /// Attention of one rank: adds its share of one cell to what it read before. All ranks' reads together, added up, are
    /// what is sampled from.
    pub fn read(self, rank: usize, so_far: u64, cell: u64) -> u64 {
        mix(so_far, if rank == 0 { cell } else { mix(cell, rank as u64) })
    }

    /// The token sampled at output index `index` after everything in `read` was read.
    pub fn sample(self, read: u64, index: u32, row: &RowInit) -> Token {
        self.sample_of(read, index, row, &|_| true)
    }

    /// The same of the tokens that are allowed.
    fn sample_of(self, read: u64, index: u32, row: &RowInit, allowed: &dyn Fn(Token) -> bool) -> Token {
        let draw = mix(mix(read, mix(row.sampling.seed(), u64::from(row.choice))), u64::from(index));
        // Penalties: what came before counts, in whatever order.
        let seen =
            row.history.iter().enumerate().map(|(i, t)| mix(u64::from(*t), u64::from(i < row.prompt_len as usize)));
        let draw = seen.fold(draw, u64::wrapping_add);
        let first = (draw % u64::from(self.vocab)) as Token;
        let banned = |t: Token| row.sampling.logit_bias().iter().any(|(id, bias)| *id == t && *bias < 0.0);
        let ends = |t: Token| index < row.min_tokens && row.end_tokens.contains(&t);
        let held = |t: Token| !allowed(t) || banned(t) || ends(t);
        // Unless every token is held back there is one that is not.
        (0..self.vocab).map(|i| (first + i) % self.vocab).find(|&t| !held(t)).unwrap_or(first)
    }

    /// How probable prompt token `token` was after everything in `read`: one entry, with a made-up rank.
    pub fn score(self, read: u64, token: Token) -> Logprob {
        let rank = (mix(read, u64::from(token)) >> 40) as u32 + 1;
        Logprob { token, rank, logprob: -(rank as f32) }
    }

    /// Tells what all ranks together have read after each of the tokens it is given.
    fn all_reads(self) -> impl FnMut(Token) -> u64 {
        let (mut cell, mut reads) = (0, vec![0; self.ranks]);
        move |token| {
            cell = self.cell(cell, token);
            reads.iter_mut().enumerate().for_each(|(rank, read)| *read = self.read(rank, *read, cell));
            reads.iter().copied().fold(0, u64::wrapping_add)
        }
    }

    /// What `request` reports of its prompt when it runs alone.
    pub fn alone_scores(self, request: &Request) -> Vec<Logprob> {
        let mut reads = self.all_reads();
        request.prompt().windows(2).map(|pair| self.score(reads(pair[0]), pair[1])).collect()
    }

    /// The first `n` tokens of `request` when it runs alone, whatever ends it.
    pub fn alone(self, request: &Request, n: usize) -> Vec<Token> {
        self.alone_of(request, n, &|_, _| true)
    }

    /// The same where `allowed` says of the tokens so far which one may follow.
    pub fn alone_of(self, request: &Request, n: usize, allowed: &dyn Fn(&[Token], Token) -> bool) -> Vec<Token> {
        let mut row = RowInit {
            row: crate::base::Row(0),
            sampling: request.sampling.clone(),
            choice: request.choice,
            prompt_len: request.prompt().len() as u32,
            min_tokens: request.stop.min_tokens(),
            end_tokens: request.stop.end_tokens().collect(),
            history: if request.sampling.counts_tokens() { request.prompt().to_vec() } else { Vec::new() },
        };
        let mut push = self.all_reads();
        let mut state = request.prompt().iter().fold(0, |_, &t| push(t));
        let mut out = Vec::with_capacity(n);
        for index in 0..n as u32 {
            let token = self.sample_of(state, index, &row, &|t| allowed(&out, t));
            row.remember(token);
            out.push(token);
            state = push(token);
        }
        out
    }
}

fn scoring(plan: &StepPlan) -> impl Iterator<Item = (&StepEntry, &Scores)> {
    plan.entries.iter().filter_map(|e| Some((e, e.scores.as_deref()?)))
}

#[derive(Debug, Clone)]
struct RowState {
    init: RowInit,
    last: Option<Token>,
}

/// Memory of the simulated device, and what it does with a plan. Every rank has one of its own.
#[derive(Debug)]
pub struct SimDevice {
    model: SimModel,
    rank: usize,
    block_size: u32,
    /// Position and content of every cell, by block and offset.
    kv: Vec<(u32, u64)>,
    rows: Vec<Option<RowState>>,
    tables: RowTables,
    /// What was read for entries that wait for their masks, by sampler row.
    waiting: HashMap<usize, (StepId, StepEntry, u64)>,
    rng: SplitMix64,
    complaint: Option<String>,
}

const UNWRITTEN: (u32, u64) = (u32::MAX, 0);

impl SimDevice {
    /// What `rank` has of `ranks`; of `cfg` the sizes matter.
    pub fn new(cfg: &SimConfig, rank: usize, ranks: usize) -> Self {
        Self {
            model: SimModel { vocab: cfg.vocab, ranks },
            rank,
            block_size: cfg.block_size,
            kv: vec![UNWRITTEN; cfg.num_blocks as usize * cfg.block_size as usize],
            rows: vec![None; cfg.rows],
            tables: RowTables::default(),
            waiting: HashMap::new(),
            rng: SplitMix64(cfg.seed),
            complaint: None,
        }
    }

    /// The first thing a plan did that a real device would not survive or would answer with wrong tokens: reading what
    /// was never written, using a row nobody set.
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.complaint.is_none() {
            self.complaint = Some(what());
        }
    }

    fn slot(&self, entry: &StepEntry, pos: u32) -> usize {
        let block = self.tables.of(entry).block((pos / self.block_size) as usize).map_or(0, |b| b.0);
        (block * self.block_size + pos % self.block_size) as usize
    }

    /// The whole step of a rank that is alone.
    fn run(&mut self, plan: &StepPlan) -> StepOutcome {
        self.write_all(plan);
        let reads = self.reads(plan);
        StepOutcome::Done(self.draw(plan, &reads))
    }

    /// Sets rows and writes the cells of all entries.
    pub fn write_all(&mut self, plan: &StepPlan) {
        let lost = plan.entries.iter().find(|e| e.known_blocks > 0 && self.rows[e.row.0 as usize].is_none());
        if let Some(e) = lost {
            self.complain(|| format!("{:?} builds on the table of a row that a failed step lost", e.seq));
        }
        if let Err(e) = self.tables.apply(plan) {
            self.complain(|| e.message);
        }
        for init in &plan.row_inits {
            self.rows[init.row.0 as usize] = Some(RowState { init: init.clone(), last: None });
            self.waiting.remove(&(init.row.0 as usize));
        }
        for entry in &plan.entries {
            self.write(plan, entry);
        }
    }

    /// What this rank reads for each prompt token that is scored, then for each entry that samples.
    pub fn reads(&mut self, plan: &StepPlan) -> Vec<u64> {
        let (model, rank) = (self.model, self.rank);
        let mut reads = Vec::new();
        for (e, scores) in scoring(plan) {
            let end = scores.from + scores.targets.len() as u32;
            if scores.from < e.start || end > e.start + e.len {
                self.complain(|| format!("{:?} scores positions {}..{end} in {e:?}", e.seq, scores.from));
            }
            let mut read = 0;
            for pos in 0..end {
                read = model.read(rank, read, self.load(e, pos));
                if pos >= scores.from {
                    reads.push(read);
                }
            }
        }
        let one = |e: &StepEntry| (0..e.start + e.len).fold(0, |read, pos| model.read(rank, read, self.load(e, pos)));
        reads.extend(plan.entries.iter().filter(|e| e.samples).map(one));
        reads
    }

    /// Scores and samples from what all ranks read.
    pub fn draw(&mut self, plan: &StepPlan, reads: &[u64]) -> StepResults {
        let (model, mut reads) = (self.model, reads.iter());
        let scored = scoring(plan).map(|(e, scores)| {
            let logprobs = plan.scored(scores).iter().zip(reads.by_ref()).map(|(t, read)| model.score(*read, *t));
            Scored { seq: e.seq, logprobs: logprobs.collect() }
        });
        let scored = scored.collect();
        let sampling = plan.entries.iter().filter(|e| e.samples).zip(reads);
        let mut sampled = Vec::new();
        for (e, read) in sampling {
            if e.awaits_mask {
                self.waiting.insert(e.row.0 as usize, (plan.id, e.clone(), *read));
            } else {
                sampled.push(Sampled::new(e.seq, self.sample(e, *read, &|_| true)));
            }
        }
        StepResults { sampled, scored }
    }

    /// Samples entries of a step that waited for these masks.
    pub fn supply(&mut self, step: StepId, masks: &[TokenMask]) -> StepResults {
        let mut sampled = Vec::new();
        for mask in masks {
            let is_it = |(_, w): &(&usize, &(StepId, StepEntry, u64))| (w.0, w.1.seq) == (step, mask.seq);
            let row = self.waiting.iter().find(is_it).map(|(row, _)| *row);
            let Some((_, entry, read)) = row.and_then(|row| self.waiting.remove(&row)) else {
                self.complain(|| format!("{:?} is supplied a mask in step {} and waits for none", mask.seq, step.0));
                continue;
            };
            let allowed = |t: Token| mask.words[t as usize / 32] >> (t % 32) & 1 == 1;
            sampled.push(Sampled::new(mask.seq, self.sample(&entry, read, &allowed)));
        }
        StepResults { sampled, scored: Vec::new() }
    }

    /// A number for everything that `plan` mentions of this rank's memory: equal on all ranks after the step.
    pub fn digest(&self, plan: &StepPlan) -> u64 {
        plan.entries.iter().fold(plan.id.0, |sum, e| {
            let row = &self.rows[e.row.0 as usize];
            let cells = (0..e.start + e.len).fold(sum, |sum, pos| {
                let (found, cell) = self.kv[self.slot(e, pos)];
                mix(sum, mix(cell, u64::from(found)))
            });
            format!("{row:?}").bytes().fold(cells, |sum, b| mix(sum, u64::from(b)))
        })
    }

    /// Writes the cells of an entry's tokens, each on top of the one before it.
    fn write(&mut self, plan: &StepPlan, entry: &StepEntry) {
        let inputs = plan.inputs(entry);
        for i in 0..entry.len {
            let pos = entry.start + i;
            let known = inputs.get(i as usize).copied();
            let last = self.rows[entry.row.0 as usize].as_ref().and_then(|r| r.last);
            let Some(token) = known.or(last) else {
                return self.complain(|| format!("{:?} has no input at {pos}: its row holds no token", entry.seq));
            };
            let before = match pos {
                0 => 0,
                _ => self.load(entry, pos - 1),
            };
            let slot = self.slot(entry, pos);
            self.kv[slot] = (pos, self.model.cell(before, token));
        }
    }

    fn load(&mut self, entry: &StepEntry, pos: u32) -> u64 {
        let (seq, (found, cell)) = (entry.seq, self.kv[self.slot(entry, pos)]);
        if found != pos {
            self.complain(|| format!("{seq:?} reads position {pos} and finds {found}"));
        }
        cell
    }

    fn sample(&mut self, entry: &StepEntry, read: u64, allowed: &dyn Fn(Token) -> bool) -> Token {
        let end = entry.start + entry.len;
        let model = self.model;
        let Some(row) = &mut self.rows[entry.row.0 as usize] else {
            self.complain(|| format!("{:?} samples in a row nobody set", entry.seq));
            return 0;
        };
        let token = model.sample_of(read, end.wrapping_sub(row.init.prompt_len), &row.init, allowed);
        row.last = Some(token);
        row.init.remember(token);
        token
    }

    /// A late part that breaks off: its rows are lost.
    pub fn ruin_late(&mut self, step: StepId, masks: &[TokenMask]) {
        for mask in masks {
            let is_it = |(_, w): &(&usize, &(StepId, StepEntry, u64))| (w.0, w.1.seq) == (step, mask.seq);
            if let Some(row) = self.waiting.iter().find(is_it).map(|(row, _)| *row) {
                self.waiting.remove(&row);
                self.rows[row] = None;
            }
        }
    }

    /// A step that breaks off: some of its cells hold rubbish, and its rows are lost.
    pub fn ruin(&mut self, plan: &StepPlan) {
        if let Err(e) = self.tables.apply(plan) {
            self.complain(|| e.message);
        }
        for entry in &plan.entries {
            self.rows[entry.row.0 as usize] = None;
            self.waiting.remove(&(entry.row.0 as usize));
            for pos in entry.start..entry.start + entry.len {
                let slot = self.slot(entry, pos);
                self.kv[slot] = (pos, self.rng.next_u64());
            }
        }
    }
}

/// The simulated device as an [`Executor`]. Time passes by one with each `poll`.
#[derive(Debug)]
pub struct SimExecutor {
    cfg: SimConfig,
    device: SimDevice,
    /// Steps and late parts, and when they end.
    queue: VecDeque<(u64, Work)>,
    /// Those still to land as failed because of one before them.
    doomed: usize,
    now: u64,
    rng: SplitMix64,
}

impl SimExecutor {
    pub fn new(cfg: SimConfig) -> Self {
        Self {
            device: SimDevice::new(&cfg, 0, 1),
            queue: VecDeque::new(),
            doomed: 0,
            now: 0,
            rng: SplitMix64(mix(cfg.seed, 0)),
            cfg,
        }
    }

    /// See [`SimDevice::complaint`].
    pub fn complaint(&self) -> Option<&str> {
        self.device.complaint()
    }

    fn land(&mut self, work: &Work) -> StepOutcome {
        let is_poison = |seq: SeqId| self.cfg.poison == Some(seq);
        let poisoned = match work {
            Work::Step(plan) => plan.entries.iter().any(|e| is_poison(e.seq)),
            Work::Late(_, masks) => masks.iter().any(|m| is_poison(m.seq)),
        };
        let fails = poisoned || self.rng.below(1000) < self.cfg.fail_per_mille;
        if self.doomed == 0 && !fails {
            return match work {
                Work::Step(plan) => self.device.run(plan),
                Work::Late(step, masks) => StepOutcome::Done(self.device.supply(*step, masks)),
            };
        }
        match work {
            Work::Step(plan) => self.device.ruin(plan),
            Work::Late(step, masks) => self.device.ruin_late(*step, masks),
        }
        if self.doomed > 0 {
            self.doomed -= 1;
            return StepOutcome::Failed(Error::new(ErrorKind::Device, "a step before this one failed"));
        }
        self.doomed = self.queue.len();
        StepOutcome::Failed(Error::new(ErrorKind::Device, "the simulated device failed"))
    }

    fn enqueue(&mut self, work: Work) {
        let start = self.queue.back().map_or(self.now, |(end, _)| *end);
        let end = start + 1 + self.rng.below(self.cfg.slowest);
        self.queue.push_back((end, work));
    }
}

impl Executor for SimExecutor {
    fn depth(&self) -> usize {
        self.cfg.depth
    }

    fn submit(&mut self, plan: StepPlan) -> Result<()> {
        let steps = self.queue.iter().filter(|(_, work)| matches!(work, Work::Step(_))).count();
        if steps >= self.cfg.depth {
            return Err(Error::internal(format!("more than {} steps outstanding", self.cfg.depth)));
        }
        self.enqueue(Work::Step(plan));
        Ok(())
    }

    fn supply(&mut self, step: StepId, masks: Vec<TokenMask>) -> Result<()> {
        self.enqueue(Work::Late(step, masks));
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<StepOutput>> {
        self.now += 1;
        let now = self.now;
        if self.queue.front().is_none_or(|(end, _)| *end > now) {
            return Ok(None);
        }
        let Some((_, work)) = self.queue.pop_front() else { return Ok(None) };
        let outcome = self.land(&work);
        Ok(Some(StepOutput { id: work.id(), part: work.part(), outcome }))
    }
}
