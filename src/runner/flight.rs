//! A launched step: what it was asked for, the host memory the device reads and writes for it, and the way back.

use super::memory::WORD;
use super::rows::RowBuffers;
use super::tables::HeldTables;
use crate::base::{Error, ErrorKind, Result, SeqId, StepId};
use crate::hal::{Event, HostBuffer};
use crate::plan::{Logprob, Sampled, Scored, StepEntry, StepOutcome, StepOutput, StepPart, StepPlan, StepResults};
use crossbeam_channel::Sender;

/// Host memory of one step; not touched while the device may read or write it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) inputs: Box<dyn HostBuffer>,
    /// What `inputs` holds of block tables.
    pub(super) held: HeldTables,
    pub(super) rows: RowBuffers,
    pub(super) tokens: Box<dyn HostBuffer>,
    /// Logprobs that were asked for: of prompt tokens, then of sampled ones.
    pub(super) reports: Box<dyn HostBuffer>,
    /// Of a late part.
    pub(super) masks: Option<Box<dyn HostBuffer>>,
}

/// What a step reports.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Who scored how many prompt tokens, and how many alternatives it wants reported.
    scorers: Vec<(SeqId, usize, u32)>,
    /// Who sampled.
    samplers: Vec<Sampler>,
    /// Most alternatives of any of them.
    alternatives: usize,
}

/// A place among the drawn tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sampler {
    pub(super) seq: SeqId,
    /// Alternatives it wants reported.
    pub(super) logprobs: Option<u32>,
    /// Nothing was drawn for it yet.
    pub(super) waits: bool,
}

impl Wanted {
    /// What a late part reports.
    pub(super) fn late(samplers: Vec<Sampler>) -> Self {
        let alternatives = samplers.iter().filter_map(|s| s.logprobs).max().unwrap_or(0) as usize;
        Self { scorers: Vec::new(), samplers, alternatives }
    }

    pub(super) fn alternatives(&self) -> usize {
        self.alternatives
    }

    /// What a step reports whose logprobs have room for so many alternatives.
    pub(super) fn of(plan: &StepPlan, alternatives: usize) -> Self {
        let mut samplers = Vec::with_capacity(plan.entries.len());
        let scores = |e: &StepEntry| e.scores.as_ref().map(|s| (e.seq, s.targets.len(), s.alternatives));
        let sampler = |e: &StepEntry| {
            let logprobs = e.logprobs.filter(|_| !e.awaits_mask);
            Sampler { seq: e.seq, logprobs, waits: e.awaits_mask }
        };
        samplers.extend(plan.entries.iter().filter(|e| e.samples).map(sampler));
        Self { scorers: plan.entries.iter().filter_map(scores).collect(), samplers, alternatives }
    }
}

/// A launched step. Whoever lands it may be on another thread than its runner.
#[derive(Debug)]
pub struct Flight {
    pub(super) id: StepId,
    pub(super) part: StepPart,
    pub(super) wanted: Wanted,
    pub(super) slot: Slot,
    pub(super) event: Box<dyn Event>,
    /// Where the slot goes when the step has landed.
    pub(super) home: Sender<Slot>,
}

/// Words of one token in a report.
pub(super) const REPORT_ENTRY: usize = 3;
/// What [`crate::hal::ops::Sample`] draws from logits with a NaN.
const NO_TOKEN: u32 = u32::MAX;

impl Flight {
    /// Whether the step has ended on the device.
    pub fn has_ended(&self) -> Result<bool> {
        self.event.is_done()
    }

    /// Sleeps until the step has ended on the device. A device error becomes a failed outcome.
    pub fn land(self) -> StepOutput {
        let outcome = match self.event.wait().and_then(|()| self.results()) {
            Ok(results) => StepOutcome::Done(results),
            Err(e) => StepOutcome::Failed(e),
        };
        // A runner that is gone needs no slots.
        let _ = self.home.send(self.slot);
        StepOutput { id: self.id, part: self.part, outcome }
    }

    /// What a finished step was asked for.
    fn results(&self) -> Result<StepResults> {
        let Wanted { scorers, samplers, alternatives } = &self.wanted;
        let entries = REPORT_ENTRY * (1 + alternatives);
        let scores: usize = scorers.iter().map(|(_, tokens, _)| tokens).sum();
        let reports = scores + samplers.iter().filter(|s| s.logprobs.is_some()).count();
        let reports = words(self.slot.reports.as_ref(), reports * entries);
        let mut reports = reports.chunks_exact(entries);
        let scored = scorers.iter().map(|&(seq, tokens, k)| {
            let logprobs = reports.by_ref().take(tokens).flat_map(|report| logprobs(report, k)).collect();
            Scored { seq, logprobs }
        });
        let scored = scored.collect();
        let tokens = words(self.slot.tokens.as_ref(), samplers.len());
        let drawn = || samplers.iter().zip(&tokens).filter(|(s, _)| !s.waits);
        if let Some((Sampler { seq, .. }, _)) = drawn().find(|(_, token)| **token == NO_TOKEN) {
            let text =
                format!("the logits of sequence {} contain NaN; the weights or the model's dtype may be broken", seq.0);
            return Err(Error::new(ErrorKind::Device, text));
        }
        let mut sampled = Vec::with_capacity(samplers.len());
        sampled.extend(drawn().map(|(&Sampler { seq, logprobs: wants, .. }, &token)| {
            let logprobs = wants.map(|k| logprobs(reports.next().unwrap_or_default(), k).collect());
            Sampled { seq, token, logprobs: logprobs.unwrap_or_default() }
        }));
        Ok(StepResults { sampled, scored })
    }
}

fn words(buffer: &dyn HostBuffer, n: usize) -> Vec<u32> {
    let bytes = &buffer.bytes()[..n * WORD];
    bytes.chunks_exact(WORD).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The first entry of a report and its first `k` alternatives.
fn logprobs(report: &[u32], k: u32) -> impl Iterator<Item = Logprob> + '_ {
    let entries = report.chunks_exact(REPORT_ENTRY).take(1 + k as usize).filter(|entry| entry[0] != u32::MAX);
    entries.map(|entry| Logprob { token: entry[0], rank: entry[1], logprob: f32::from_bits(entry[2]) })
}
