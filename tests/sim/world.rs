//! One run of a case: the real scheduler on the simulated device, watched after every tick.

use crate::case::{Arrival, Case, allows};
use std::collections::VecDeque;
use yinian::base::rng::{SplitMix64, mix};
use yinian::base::{BlockId, Error, ErrorKind, SeqId, StepId, Token};
use yinian::exec::Executor;
use yinian::exec::sim::{SimConfig, SimExecutor, SimModel};
use yinian::plan::{FinishReason, Logprob, RowTables, StepOutcome, StepOutput, StepPart, StepPlan, TokenMask};
use yinian::sched::{Event, Planted, SchedStats, Scheduler, invariants, policy};

/// Ticks after which a run counts as stuck.
const MAX_TICKS: u64 = 20_000;

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    pub tokens: Vec<Token>,
    pub cached: Option<u32>,
    pub end: Option<(FinishReason, Option<ErrorKind>)>,
    /// What was reported of the prompt.
    pub scores: Vec<Logprob>,
    /// Ticks.
    pub started: Option<u64>,
    pub ended: Option<u64>,
    allowed: u32,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Report {
    pub outcomes: Vec<Outcome>,
    pub stats: SchedStats,
    pub ticks: u64,
    /// Positions of every entry planned, in order: sequence, start, end.
    pub(crate) computed: Vec<(SeqId, u32, u32)>,
    /// Late parts that landed, those of them behind a later step, and masks that nobody wanted any more.
    pub late: [u64; 3],
    /// Over every plan, in order: two runs of one case are equal to the last block id.
    pub plans_hash: u64,
    /// The device was lost on the way.
    pub lost: bool,
}

/// An executor that watches itself.
pub(crate) trait Watched: Executor {
    /// The first thing that went wrong unseen by the scheduler.
    fn complaint(&self) -> Option<String>;
    /// Whether it may be lost now and for this reason; if not, why.
    fn may_be_lost(&self, error: &Error) -> Result<(), String> {
        Err(error.to_string())
    }
    /// Ends it and looks at what it leaves behind.
    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
}

impl Watched for SimExecutor {
    fn complaint(&self) -> Option<String> {
        SimExecutor::complaint(self).map(str::to_owned)
    }
}

pub(crate) struct World<'a> {
    case: &'a Case,
    sched: Scheduler,
    exec: Box<dyn Watched>,
    lost: bool,
    /// Steps and late parts in flight.
    inflight: VecDeque<(StepId, StepPart)>,
    /// Plans of the steps among them.
    /// Steps in flight with all blocks that their entries' tables name.
    plans: VecDeque<(StepId, Vec<BlockId>)>,
    tables: RowTables,
    /// Masks on their way: when they are supplied, for which step.
    masks: Vec<(u64, StepId, TokenMask)>,
    delays: SplitMix64,
    late: [u64; 3],
    /// The step submitted last.
    computed_in: StepId,
    outcomes: Vec<Outcome>,
    events: Vec<Event>,
    readers: SplitMix64,
    now: u64,
    plans_hash: u64,
    computed: Vec<(SeqId, u32, u32)>,
    mutate: Option<fn(&mut StepPlan)>,
}

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, case: &'a Case, depth: usize, planted: Option<Planted>) -> Self {
        Self::on(Box::new(SimExecutor::new(device(seed, case, depth))), seed, case, planted)
    }

    pub(crate) fn on(exec: Box<dyn Watched>, seed: u64, case: &'a Case, planted: Option<Planted>) -> Self {
        let c = &case.cfg;
        let policy = policy::by_name(case.policy).expect("a policy of the registry");
        Self {
            case,
            sched: Scheduler::with_planted(c.clone(), policy, planted),
            exec,
            lost: false,
            inflight: VecDeque::new(),
            plans: VecDeque::new(),
            tables: RowTables::default(),
            masks: Vec::new(),
            delays: SplitMix64(mix(seed, 4)),
            late: [0; 3],
            computed_in: StepId(0),
            outcomes: vec![Outcome::default(); case.arrivals.len()],
            events: Vec::new(),
            readers: SplitMix64(mix(seed, 2)),
            now: 0,
            plans_hash: 0,
            computed: Vec::new(),
            mutate: None,
        }
    }

    /// Changes every plan on its way to the device.
    pub(crate) fn mutating(mut self, mutate: fn(&mut StepPlan)) -> Self {
        self.mutate = Some(mutate);
        self
    }

    pub(crate) fn run(mut self) -> Result<Report, String> {
        loop {
            self.tick().map_err(|why| format!("tick {}: {why}", self.now))?;
            self.now += 1;
            if (self.now > 60 || self.lost) && self.sched.is_idle() {
                break;
            }
            if self.lost {
                return Err("the device is lost and not every request has ended".into());
            }
            if self.now > MAX_TICKS {
                return Err("no end".into());
            }
        }
        let stats = self.sched.stats();
        if stats.blocks_free != stats.blocks_total || stats.running + stats.waiting > 0 {
            return Err(format!("not all is free when idle: {stats:?}"));
        }
        self.exec.end()?;
        let Self { outcomes, now: ticks, plans_hash, computed, late, lost, .. } = self;
        Ok(Report { outcomes, stats, ticks, computed, late, plans_hash, lost })
    }

    fn tick(&mut self) -> Result<(), String> {
        self.arrive();
        let held = self.read();
        let mut worked = self.supply()?;
        while self.plans.len() < self.exec.depth() {
            let Some(plan) = self.sched.schedule(&mut self.events) else { break };
            self.submit(plan)?;
            worked = true;
        }
        // Never idle with work: something must be in flight unless only readers hold everything back.
        let masked = !self.masks.is_empty();
        if !worked && self.inflight.is_empty() && !held && !masked && !self.sched.is_idle() && self.now > 0 {
            return Err("idle with work".into());
        }
        match self.exec.poll() {
            Ok(None) => {}
            Ok(Some(output)) => {
                let due = self.inflight.pop_front();
                if due != Some((output.id, output.part)) {
                    return Err(format!("{output:?} landed where {due:?} was due"));
                }
                match output.part {
                    StepPart::First => drop(self.plans.pop_front()),
                    StepPart::Late => {
                        self.late[0] += 1;
                        self.late[1] += u64::from(self.computed_in > output.id);
                    }
                }
                self.sched.update(&output, &mut self.events);
            }
            Err(e) => self.lose(&e)?,
        }
        if let Some(complaint) = self.exec.complaint() {
            return Err(complaint);
        }
        invariants::check(&self.sched)?;
        self.check_blocks()?;
        self.take_events()
    }

    /// The device is gone: nothing lands any more, and every request ends.
    fn lose(&mut self, error: &Error) -> Result<(), String> {
        self.exec.may_be_lost(error)?;
        self.lost = true;
        self.plans.clear();
        self.masks.clear();
        for (id, part) in self.inflight.drain(..) {
            let output = StepOutput { id, part, outcome: StepOutcome::Failed(error.clone()) };
            self.sched.update(&output, &mut self.events);
        }
        for arrival in &self.case.arrivals {
            self.sched.abort(arrival.request.seq, FinishReason::Error, &mut self.events);
        }
        Ok(())
    }

    fn arrive(&mut self) {
        let (case, now) = (self.case, self.now);
        for a in case.arrivals.iter().filter(|a| a.at == now) {
            self.outcome(a.request.seq).allowed = a.request.lead;
            self.sched.add(a.request.clone());
        }
        for &(_, seq, reason) in case.aborts.iter().filter(|a| a.0 == now) {
            self.sched.abort(seq, reason, &mut self.events);
        }
    }

    /// Readers catch up now and then. True when one has not, so that its sequence may be held back.
    fn read(&mut self) -> bool {
        let mut held = false;
        for a in &self.case.arrivals {
            let Some(lead) = a.lead.filter(|_| a.at <= self.now) else { continue };
            let o = &mut self.outcomes[a.request.seq.0 as usize - 1];
            let may = o.tokens.len() as u32 + lead;
            if self.readers.below(2) == 0 {
                o.allowed = o.allowed.max(may);
                self.sched.allow(a.request.seq, may);
            }
            held |= o.end.is_none() && o.tokens.len() as u32 >= o.allowed;
        }
        held
    }

    fn submit(&mut self, mut plan: StepPlan) -> Result<(), String> {
        check_plan(&plan, self.case)?;
        let text = format!("{plan:?}");
        self.plans_hash = text.bytes().fold(self.plans_hash, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
        self.computed.extend(plan.entries.iter().map(|e| (e.seq, e.start, e.start + e.len)));
        self.inflight.push_back((plan.id, StepPart::First));
        self.tables.apply(&plan).map_err(|e| e.message)?;
        let blocks = plan.entries.iter().flat_map(|e| &self.tables.of(e).blocks).copied().collect();
        self.plans.push_back((plan.id, blocks));
        self.computed_in = plan.id;
        for e in plan.entries.iter().filter(|e| e.awaits_mask) {
            let mask = self.mask(e.seq);
            let due = self.now + 1 + self.delays.below(self.case.mask_delay);
            self.masks.push((due, plan.id, mask));
        }
        if let Some(mutate) = self.mutate {
            mutate(&mut plan);
        }
        self.exec.submit(plan).map_err(|e| e.to_string())
    }

    /// The tokens that may follow what a sequence has generated.
    fn mask(&mut self, seq: SeqId) -> TokenMask {
        let (vocab, arrival) = (self.case.vocab, &self.case.arrivals[seq.0 as usize - 1]);
        let tokens = &self.outcomes[seq.0 as usize - 1].tokens;
        let bit = |t: Token| u32::from(allows(arrival.mask_seed, tokens, t, vocab)) << t;
        TokenMask { seq, words: vec![(0..vocab).fold(0, |word, t| word | bit(t))] }
    }

    /// Supplies the masks that are due. True when somebody wanted one.
    fn supply(&mut self) -> Result<bool, String> {
        let (now, mut supplied) = (self.now, false);
        while let Some(step) = self.masks.iter().find(|m| m.0 <= now).map(|m| m.1) {
            let is_due = |m: &(u64, StepId, TokenMask)| m.0 <= now && m.1 == step;
            let due: Vec<TokenMask> = self.masks.extract_if(.., |m| is_due(m)).map(|m| m.2).collect();
            let seqs: Vec<SeqId> = due.iter().map(|m| m.seq).collect();
            let wanted = self.sched.supply(step, &seqs);
            self.late[2] += (seqs.len() - wanted.len()) as u64;
            if wanted.is_empty() {
                continue;
            }
            let masks = due.into_iter().filter(|m| wanted.contains(&m.seq)).collect();
            self.inflight.push_back((step, StepPart::Late));
            self.exec.supply(step, masks).map_err(|e| e.to_string())?;
            supplied = true;
        }
        Ok(supplied)
    }

    /// No block of a step in flight is free.
    fn check_blocks(&self) -> Result<(), String> {
        for (id, blocks) in &self.plans {
            if let Some(b) = blocks.iter().find(|b| self.sched.pool().refs(**b) == 0) {
                return Err(format!("{b:?} is free under {id:?}"));
            }
        }
        Ok(())
    }

    fn outcome(&mut self, seq: SeqId) -> &mut Outcome {
        &mut self.outcomes[seq.0 as usize - 1]
    }

    fn take_events(&mut self) -> Result<(), String> {
        let now = self.now;
        for event in std::mem::take(&mut self.events) {
            let seq = event.seq();
            let o = self.outcome(seq);
            if o.end.is_some() {
                return Err(format!("{event:?} after the end"));
            }
            match event {
                Event::Started { cached_tokens, .. } => {
                    o.started = Some(now);
                    if o.cached.replace(cached_tokens).is_some() {
                        return Err(format!("{seq:?} started twice"));
                    }
                }
                Event::Prompt { tokens, logprobs, .. } => {
                    let same = tokens.iter().eq(logprobs.iter().map(|p| &p.token));
                    if !same || tokens.is_empty() || !o.tokens.is_empty() || o.cached.is_none() {
                        return Err(format!("{seq:?} reports {tokens:?} of its prompt with {logprobs:?}, or too late"));
                    }
                    o.scores.extend(logprobs);
                }
                Event::Token { token, .. } => {
                    o.tokens.push(token);
                    if o.tokens.len() as u32 > o.allowed || o.cached.is_none() {
                        return Err(format!("{seq:?} ran past its lead or before its start"));
                    }
                }
                Event::Finished { reason, error, .. } => {
                    o.end = Some((reason, error.map(|e| e.kind)));
                    o.ended = Some(now);
                }
            }
        }
        Ok(())
    }
}

/// The simulated device of a case.
pub(crate) fn device(seed: u64, case: &Case, depth: usize) -> SimConfig {
    let c = &case.cfg;
    SimConfig {
        seed: mix(seed, 1),
        num_blocks: c.num_blocks,
        block_size: c.block_size,
        rows: c.max_seqs,
        depth,
        vocab: case.vocab,
        slowest: case.slowest,
        fail_per_mille: case.fail_per_mille,
        poison: case.poison,
    }
}

/// What any executor may rely on.
fn check_plan(plan: &StepPlan, case: &Case) -> Result<(), String> {
    let mut rows = 0u64;
    for e in &plan.entries {
        let known = e.tokens.len() as u32;
        if !(known == e.len || known + 1 == e.len && e.samples) {
            return Err(format!("{known} inputs for {e:?}"));
        }
        if e.num_blocks() as u32 != (e.start + e.len).div_ceil(case.cfg.block_size) {
            return Err(format!("table of {} blocks for {e:?}", e.num_blocks()));
        }
        if rows & 1 << e.row.0 != 0 {
            return Err(format!("{:?} twice in {:?}", e.row, plan.id));
        }
        rows |= 1 << e.row.0;
    }
    let stray = plan.row_inits.iter().find(|r| rows & 1 << r.row.0 == 0);
    stray.map_or(Ok(()), |r| Err(format!("{:?} is set and not used", r.row)))
}

/// What a request must come to when it is alone.
fn truth(case: &Case, a: &Arrival) -> (Vec<Token>, (FinishReason, Option<ErrorKind>)) {
    let (cfg, r) = (&case.cfg, &a.request);
    let prompt = r.prompt().len();
    let capacity = cfg.num_blocks as usize * cfg.block_size as usize;
    if prompt >= cfg.max_model_len {
        return (vec![], (FinishReason::Error, Some(ErrorKind::Invalid)));
    }
    if prompt + 1 > capacity {
        return (vec![], (FinishReason::Error, Some(ErrorKind::NoMemory)));
    }
    let limit = (r.stop.max_tokens() as usize).min(cfg.max_model_len - prompt);
    let model = SimModel { vocab: case.vocab, ranks: case.ranks };
    let may = |so_far: &[Token], t: Token| !r.masked || allows(a.mask_seed, so_far, t, case.vocab);
    let mut tokens = model.alone_of(r, limit, &may);
    let min = r.stop.min_tokens() as usize;
    for (i, t) in tokens.iter().enumerate() {
        let end = if i >= min && r.stop.eos_tokens().contains(t) {
            (FinishReason::Eos, None)
        } else if i >= min && r.stop.stop_tokens().contains(t) {
            (FinishReason::Stop, None)
        } else if i + 1 == limit {
            (FinishReason::Length, None)
        } else if prompt + i + 1 > capacity {
            (FinishReason::Error, Some(ErrorKind::NoMemory))
        } else {
            continue;
        };
        tokens.truncate(i + 1);
        return (tokens, end);
    }
    unreachable!("the limit ends it")
}

/// Compares every request with its truth.
pub(crate) fn judge(case: &Case, report: &Report) -> Result<(), String> {
    for (a, o) in case.arrivals.iter().zip(&report.outcomes) {
        let seq = a.request.seq;
        let (tokens, end) = truth(case, a);
        if report.lost && *o == Outcome::default() {
            // It came too late.
            continue;
        }
        let Some(got) = o.end else { return Err(format!("{seq:?} has no end")) };
        let aborted = case.aborts.iter().any(|b| b.1 == seq && b.2 == got.0);
        let faulty = case.fail_per_mille > 0 || case.poison == Some(seq);
        let device = got == (FinishReason::Error, Some(ErrorKind::Device)) && faulty;
        let lost = got.0 == FinishReason::Error && report.lost;
        let whole = o.tokens == tokens && got == end;
        let cut = tokens.starts_with(&o.tokens) && (aborted || device || lost);
        if !whole && !cut {
            return Err(format!("{seq:?} got {:?} {got:?}, alone {tokens:?} {end:?}", o.tokens));
        }
        let scores = match a.request.prompt_logprobs {
            Some(_) => SimModel { vocab: case.vocab, ranks: case.ranks }.alone_scores(&a.request),
            None => vec![],
        };
        let enough = o.scores.len() == scores.len() || o.tokens.is_empty();
        if !scores.starts_with(&o.scores) || !enough {
            return Err(format!("{seq:?} reports {:?} of its prompt, alone {scores:?}", o.scores));
        }
        if case.poison == Some(seq) && !o.tokens.is_empty() {
            return Err(format!("{seq:?} got tokens from steps that failed"));
        }
        if a.private_salt && o.cached.unwrap_or(0) > 0 {
            return Err(format!("{seq:?} hit a prefix of another salt"));
        }
    }
    Ok(())
}
