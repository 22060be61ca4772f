//! A step's inputs as one run of 32-bit words: packed on the host, uploaded at once, cut into tensors on the device.

use super::RunnerOptions;
use super::graphs::Padding;
use super::memory::WORD;
use super::rows::pack_row;
use super::tables::{HeldTables, TableLayout};
use crate::base::{DType, Error, Result};
use crate::hal::ops::SAMPLER_WORDS;
use crate::hal::{Allocation, HostBuffer, Tensor};
use crate::model::decoder::Batch;
use crate::plan::tables::RowTable;
use crate::plan::{RowTables, Scores, StepEntry, StepPlan};
use std::sync::Arc;

/// Sections start at multiples of this many words.
const ALIGN: usize = 16;

/// Most of everything in one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct InputShape {
    tokens: usize,
    seqs: usize,
    blocks: usize,
    rows: usize,
    pub(super) block_size: usize,
    /// Blocks of the pool before block 0.
    padding: usize,
}

impl InputShape {
    pub(super) fn of(options: &RunnerOptions) -> Self {
        let block_size = options.block_size as usize;
        Self {
            tokens: options.max_num_batched_tokens,
            seqs: options.max_samples(),
            blocks: options.max_model_len.div_ceil(block_size),
            rows: options.max_num_seqs,
            block_size,
            padding: 0,
        }
    }

    /// The same where `padding` blocks that no sequence has come first.
    pub(super) fn behind(self, padding: usize) -> Self {
        Self { padding, ..self }
    }

    /// Words of the largest step.
    pub(super) fn words(&self) -> usize {
        Sections::of(self.tokens, (self.seqs, self.blocks), [self.seqs, self.tokens, self.rows, self.seqs]).end
    }

    /// Rows of logits that are computed at once.
    pub(super) fn logit_rows(&self) -> usize {
        self.seqs
    }

    /// Most sequences of a step, and most blocks of one of them.
    pub(super) fn most(&self) -> (usize, usize) {
        (self.seqs, self.blocks)
    }
}

/// First words of the sections of one step.
#[derive(Debug, Clone, Copy)]
struct Sections {
    ids: usize,
    positions: usize,
    slots: usize,
    starts: usize,
    context_lens: usize,
    tables: usize,
    last: usize,
    rows: usize,
    next: usize,
    reports: usize,
    scored: usize,
    targets: usize,
    every: usize,
    /// Last, as recorded steps know nothing of them.
    inits: usize,
    init_rows: usize,
    init_from: usize,
    wait_rows: usize,
    wait_from: usize,
    end: usize,
}

impl Sections {
    fn of(tokens: usize, (seqs, blocks): (usize, usize), [samples, scores, inits, waits]: [usize; 4]) -> Self {
        let mut end = 0;
        let mut section = |words: usize| {
            let from = end;
            end += words.next_multiple_of(ALIGN);
            from
        };
        let [ids, positions, slots] = [tokens; 3].map(&mut section);
        let [starts, context_lens, tables] = [seqs + 1, seqs, seqs * blocks].map(&mut section);
        let [last, rows, next, reports] = [samples; 4].map(&mut section);
        let [scored, targets, every] = [scores; 3].map(&mut section);
        let [inits, init_rows, init_from] = [inits * SAMPLER_WORDS, inits, inits].map(&mut section);
        let [wait_rows, wait_from] = [waits; 2].map(&mut section);
        Self {
            ids,
            positions,
            slots,
            starts,
            context_lens,
            tables,
            last,
            rows,
            next,
            reports,
            scored,
            targets,
            every,
            inits,
            init_rows,
            init_from,
            wait_rows,
            wait_from,
            end,
        }
    }
}

/// Tensors of a packed step.
#[derive(Debug)]
pub(super) struct StepTensors {
    pub(super) batch: Batch,
    /// I32 `[n, 1]` each for the n sampling entries: token index, sampler row (-1 while it waits for a mask), position of the
    /// drawn token.
    pub(super) samples: Option<(Tensor, Tensor, Tensor)>,
    /// I32 `[m, 1]`: those of the sampling entries whose logprobs are reported.
    pub(super) reports: Option<Tensor>,
    pub(super) scores: Option<ScoreTensors>,
    pub(super) inits: Option<RowTensors>,
    /// I32 `[w, 1]` each for the w entries that wait for masks: sampler row, and index among the sampling entries.
    pub(super) waits: Option<(Tensor, Tensor)>,
    /// Most alternatives of any report, of prompt tokens or sampled ones.
    pub(super) alternatives: usize,
}

/// The p prompt tokens that a step scores, I32 `[p, 1]` each.
#[derive(Debug)]
pub(super) struct ScoreTensors {
    /// Index of the token whose logits tell of it.
    pub(super) index: Tensor,
    pub(super) targets: Tensor,
    /// 0, 1, 2 and so on: every row of the logits is reported.
    pub(super) every: Tensor,
}

/// The r sampler rows that a step sets.
#[derive(Debug)]
pub(super) struct RowTensors {
    /// I32 `[r, SAMPLER_WORDS]`.
    pub(super) words: Tensor,
    /// I32 `[r, 1]`: which rows they are.
    pub(super) rows: Tensor,
    /// I32 `[r, 1]`: 0, 1, 2 and so on.
    pub(super) every: Tensor,
}

/// A step's inputs in host memory.
#[derive(Debug)]
pub(super) struct Packed {
    sections: Sections,
    tokens: usize,
    seqs: usize,
    /// Sequences at the front that have one token each.
    singles: usize,
    blocks: usize,
    samples: usize,
    reports: usize,
    scores: usize,
    inits: usize,
    waits: usize,
    alternatives: usize,
}

/// Writes words into a host buffer.
pub(super) struct Words<'a>(&'a mut [[u8; WORD]]);

impl<'a> Words<'a> {
    pub(super) fn of(buffer: &'a mut dyn HostBuffer) -> Self {
        Self(buffer.bytes_mut().as_chunks_mut().0)
    }

    pub(super) fn set(&mut self, index: usize, value: i32) {
        self.0[index] = value.to_ne_bytes();
    }

    pub(super) fn set_all(&mut self, first: usize, values: impl ExactSizeIterator<Item = i32>) {
        let words = &mut self.0[first..first + values.len()];
        words.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_ne_bytes());
    }
}

/// Packs `plan`, which `tables` has taken in, padded where `padding` says so. A plan beyond the runner's sizes is a bug of
/// the scheduler: `Internal`.
pub(super) fn pack(
    (plan, tables): (&StepPlan, &RowTables),
    (shape, vocab): (InputShape, usize),
    padding: Option<Padding>,
    (host, held): (&mut dyn HostBuffer, &mut HeldTables),
) -> Result<Packed> {
    let mut packed = Packed::of(plan, shape, padding)?;
    let sections = packed.sections;
    let mut words = Words::of(host);
    let layout = TableLayout { first: sections.tables, stride: packed.blocks, shift: shape.padding };
    held.pack((plan, tables), layout, &mut words);
    let (mut token, mut sample, mut score, mut wait) = (0, 0, 0, 0);
    for (s, entry) in plan.entries.iter().enumerate() {
        words.set(sections.starts + s, token as i32);
        words.set(sections.context_lens + s, (entry.start + entry.len) as i32);
        pack_tokens((plan, entry, tables.of(entry)), (&mut words, sections, token), (shape, vocab))?;
        if let Some(scores) = &entry.scores {
            pack_scores(plan, (entry, scores), (&mut words, sections), (token, score), vocab)?;
            score += scores.targets.len();
            packed.alternatives = packed.alternatives.max(scores.alternatives as usize);
        }
        token += entry.len as usize;
        if entry.samples {
            words.set(sections.last + sample, token as i32 - 1);
            words.set(sections.next + sample, (entry.start + entry.len) as i32);
            words.set(sections.rows + sample, if entry.awaits_mask { -1 } else { entry.row.0 as i32 });
            if entry.awaits_mask {
                words.set(sections.wait_rows + wait, entry.row.0 as i32);
                words.set(sections.wait_from + wait, sample as i32);
                wait += 1;
            } else if let Some(k) = entry.logprobs {
                words.set(sections.reports + packed.reports, sample as i32);
                packed.reports += 1;
                packed.alternatives = packed.alternatives.max(k as usize);
            }
            sample += 1;
        }
    }
    if score != packed.scores {
        return Err(Error::internal(format!("step {} scores {score} of {} prompt tokens", plan.id.0, packed.scores)));
    }
    if let Some(padding) = padding {
        pack_padding((&mut words, sections), plan.entries.len(), padding);
    }
    words.set(sections.starts + packed.seqs, packed.tokens as i32);
    for (i, init) in plan.row_inits.iter().enumerate() {
        pack_row(init, &mut words, sections.inits + i * SAMPLER_WORDS)?;
        words.set(sections.init_rows + i, init.row.0 as i32);
        words.set(sections.init_from + i, i as i32);
    }
    Ok(packed)
}

/// Fills the places from `first` on of a step in which every sequence has one token, in the pool's first block.
fn pack_padding((words, sections): (&mut Words<'_>, Sections), first: usize, Padding { bucket, row }: Padding) {
    for s in first..bucket.seqs {
        for (at, value) in [
            (sections.starts + s, s as i32),
            (sections.context_lens + s, 1),
            (sections.tables + s * bucket.blocks, 0),
            (sections.ids + s, 0),
            (sections.positions + s, 0),
            (sections.slots + s, 0),
            (sections.last + s, s as i32),
            (sections.rows + s, row.0 as i32),
            (sections.next + s, 1),
        ] {
            words.set(at, value);
        }
    }
}

fn pack_scores(
    plan: &StepPlan,
    (entry, scores): (&StepEntry, &Scores),
    (words, sections): (&mut Words<'_>, Sections),
    (first_token, first): (usize, usize),
    vocab: usize,
) -> Result<()> {
    let targets = plan.scored(scores);
    if scores.from < entry.start || scores.from as usize + targets.len() > (entry.start + entry.len) as usize {
        return Err(Error::internal(format!(
            "scores of {} positions from {} in {entry:?}",
            targets.len(),
            scores.from
        )));
    }
    for (i, &target) in targets.iter().enumerate() {
        if target as usize >= vocab {
            return Err(Error::invalid(format!("token id {target} is not below the vocabulary size {vocab}")));
        }
        words.set(sections.scored + first + i, (first_token + i) as i32 + (scores.from - entry.start) as i32);
        words.set(sections.targets + first + i, target as i32);
        words.set(sections.every + first + i, (first + i) as i32);
    }
    Ok(())
}

fn pack_tokens(
    (plan, entry, table): (&StepPlan, &StepEntry, &RowTable),
    (words, sections, first): (&mut Words<'_>, Sections, usize),
    (InputShape { block_size, padding, .. }, vocab): (InputShape, usize),
) -> Result<()> {
    let inputs = plan.inputs(entry);
    if inputs.len() != entry.len as usize && inputs.len() + 1 != entry.len as usize {
        return Err(Error::internal(format!("{} inputs for {} tokens of a step", inputs.len(), entry.len)));
    }
    for i in 0..entry.len as usize {
        let position = entry.start as usize + i;
        let id = match inputs.get(i) {
            Some(id) if (*id as usize) < vocab => *id as i32,
            Some(id) => {
                return Err(Error::invalid(format!("token id {id} is not below the vocabulary size {vocab}")));
            }
            None => -(entry.row.0 as i32) - 1,
        };
        let block = table
            .block(position / block_size)
            .ok_or_else(|| Error::internal(format!("no block for position {position} of a step")))?;
        words.set(sections.ids + first + i, id);
        words.set(sections.positions + first + i, position as i32);
        words.set(
            sections.slots + first + i,
            ((padding + block.0 as usize) * block_size + position % block_size) as i32,
        );
    }
    Ok(())
}

impl Packed {
    /// The sizes of a step, with nothing packed yet.
    fn of(plan: &StepPlan, shape: InputShape, padding: Option<Padding>) -> Result<Self> {
        let tokens = plan.num_tokens();
        let seqs = plan.entries.len();
        let blocks = plan.entries.iter().map(StepEntry::num_blocks).max().unwrap_or(0);
        let samples = plan.entries.iter().filter(|e| e.samples).count();
        if tokens == 0 && padding.is_none() || tokens > shape.tokens || seqs > shape.seqs || blocks > shape.blocks {
            return Err(Error::internal(format!(
                "step {} runs {tokens} tokens of {seqs} sequences with {blocks} blocks; the runner was made for 1 to {}, \
                 {} and {}",
                plan.id.0, shape.tokens, shape.seqs, shape.blocks
            )));
        }
        let inits = plan.row_inits.len();
        if inits > shape.rows {
            return Err(Error::internal(format!("{inits} rows to set in one step")));
        }
        let waits = plan.entries.iter().filter(|e| e.samples && e.awaits_mask).count();
        let scores = plan.targets.len();
        if scores > tokens {
            return Err(Error::internal(format!("step {} scores {scores} prompt tokens in {tokens}", plan.id.0)));
        }
        let (tokens, seqs, blocks, samples) = match padding {
            Some(Padding { bucket: b, .. }) => (b.seqs, b.seqs, b.blocks, b.seqs),
            None => (tokens, seqs, blocks, samples),
        };
        let sections = Sections::of(tokens, (seqs, blocks), [samples, scores, inits, waits]);
        let singles = match padding {
            Some(_) => seqs,
            None => plan.entries.iter().take_while(|e| e.len == 1).count(),
        };
        Ok(Self { sections, tokens, seqs, singles, blocks, samples, reports: 0, scores, inits, waits, alternatives: 0 })
    }

    /// All words of the step in `device`, to upload to.
    pub(super) fn whole(&self, device: &Arc<dyn Allocation>) -> Tensor {
        Tensor::new(Arc::clone(device), 0, self.sections.end, 1, DType::I32)
    }

    pub(super) fn tensors(&self, device: &Arc<dyn Allocation>) -> StepTensors {
        let s = &self.sections;
        let at = |first: usize, rows: usize, cols: usize| {
            Tensor::new(Arc::clone(device), first * WORD, rows, cols, DType::I32)
        };
        let batch = Batch {
            ids: at(s.ids, self.tokens, 1),
            positions: at(s.positions, self.tokens, 1),
            slots: at(s.slots, self.tokens, 1),
            starts: at(s.starts, self.seqs + 1, 1),
            context_lens: at(s.context_lens, self.seqs, 1),
            tables: at(s.tables, self.seqs, self.blocks),
            singles: self.singles,
        };
        let n = self.samples;
        let samples = (n > 0).then(|| (at(s.last, n, 1), at(s.rows, n, 1), at(s.next, n, 1)));
        let m = self.reports;
        let reports = (m > 0).then(|| at(s.reports, m, 1));
        let p = self.scores;
        let scores = (p > 0).then(|| ScoreTensors {
            index: at(s.scored, p, 1),
            targets: at(s.targets, p, 1),
            every: at(s.every, p, 1),
        });
        let r = self.inits;
        let inits = (r > 0).then(|| RowTensors {
            words: at(s.inits, r, SAMPLER_WORDS),
            rows: at(s.init_rows, r, 1),
            every: at(s.init_from, r, 1),
        });
        let w = self.waits;
        let waits = (w > 0).then(|| (at(s.wait_rows, w, 1), at(s.wait_from, w, 1)));
        StepTensors { batch, samples, reports, scores, inits, waits, alternatives: self.alternatives }
    }
}
