//! A step's inputs as one run of 32-bit words: packed on the host, uploaded at once, cut into tensors on the device.

use super::RunnerOptions;
use super::memory::WORD;
use crate::base::{DType, Error, Result};
use crate::hal::{Allocation, HostBuffer, Tensor};
use crate::model::decoder::Batch;
use crate::plan::{StepEntry, StepPlan};
use std::sync::Arc;

/// Sections start at multiples of this many words.
const ALIGN: usize = 16;

/// Most of everything in one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct InputShape {
    tokens: usize,
    seqs: usize,
    blocks: usize,
    pub(super) block_size: usize,
}

impl InputShape {
    pub(super) fn of(options: &RunnerOptions) -> Self {
        let block_size = options.block_size as usize;
        Self {
            tokens: options.max_num_batched_tokens,
            seqs: options.max_samples(),
            blocks: options.max_model_len.div_ceil(block_size),
            block_size,
        }
    }

    /// Words of the largest step.
    pub(super) fn words(&self) -> usize {
        Sections::of(self.tokens, (self.seqs, self.blocks), self.seqs).end
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
    end: usize,
}

impl Sections {
    fn of(tokens: usize, (seqs, blocks): (usize, usize), samples: usize) -> Self {
        let mut end = 0;
        let mut section = |words: usize| {
            let from = end;
            end += words.next_multiple_of(ALIGN);
            from
        };
        let [ids, positions, slots] = [tokens; 3].map(&mut section);
        let [starts, context_lens, tables] = [seqs + 1, seqs, seqs * blocks].map(&mut section);
        let [last, rows, next, reports] = [samples; 4].map(&mut section);
        Self { ids, positions, slots, starts, context_lens, tables, last, rows, next, reports, end }
    }
}

/// Tensors of a packed step.
#[derive(Debug)]
pub(super) struct StepTensors {
    pub(super) batch: Batch,
    /// I32 `[n, 1]` each for the n sampling entries: token index, sampler row, position of the drawn token.
    pub(super) samples: Option<(Tensor, Tensor, Tensor)>,
    /// I32 `[m, 1]`: those of the sampling entries whose logprobs are reported; and the most alternatives of any.
    pub(super) reports: Option<(Tensor, usize)>,
}

/// A step's inputs in host memory.
#[derive(Debug)]
pub(super) struct Packed {
    sections: Sections,
    tokens: usize,
    seqs: usize,
    blocks: usize,
    samples: usize,
    reports: usize,
    alternatives: usize,
}

/// Writes words into a host buffer.
pub(super) struct Words<'a>(pub(super) &'a mut [u8]);

impl Words<'_> {
    pub(super) fn set(&mut self, index: usize, value: i32) {
        self.0[index * WORD..(index + 1) * WORD].copy_from_slice(&value.to_ne_bytes());
    }
}

/// Packs `plan`. A plan beyond the runner's sizes is a bug of the scheduler: `Internal`.
pub(super) fn pack(plan: &StepPlan, shape: InputShape, vocab: usize, host: &mut dyn HostBuffer) -> Result<Packed> {
    let tokens = plan.num_tokens();
    let seqs = plan.entries.len();
    let blocks = plan.entries.iter().map(|e| e.blocks.len()).max().unwrap_or(0);
    let samples = plan.entries.iter().filter(|e| e.samples).count();
    if tokens == 0 || tokens > shape.tokens || seqs > shape.seqs || blocks > shape.blocks {
        return Err(Error::internal(format!(
            "step {} runs {tokens} tokens of {seqs} sequences with {blocks} blocks; the runner was made for 1 to {}, {} \
             and {}",
            plan.id.0, shape.tokens, shape.seqs, shape.blocks
        )));
    }
    let sections = Sections::of(tokens, (seqs, blocks), samples);
    let mut words = Words(host.bytes_mut());
    let (mut token, mut sample, mut reports, mut alternatives) = (0, 0, 0, 0);
    for (s, entry) in plan.entries.iter().enumerate() {
        words.set(sections.starts + s, token as i32);
        words.set(sections.context_lens + s, (entry.start + entry.len) as i32);
        let table = plan.table(entry);
        for b in 0..blocks {
            words.set(sections.tables + s * blocks + b, table.get(b).map_or(0, |id| id.0 as i32));
        }
        pack_tokens(plan, entry, (&mut words, sections, token), (shape.block_size, vocab))?;
        token += entry.len as usize;
        if entry.samples {
            words.set(sections.last + sample, token as i32 - 1);
            words.set(sections.rows + sample, entry.row.0 as i32);
            words.set(sections.next + sample, (entry.start + entry.len) as i32);
            if let Some(k) = entry.logprobs {
                words.set(sections.reports + reports, sample as i32);
                reports += 1;
                alternatives = alternatives.max(k as usize);
            }
            sample += 1;
        }
    }
    words.set(sections.starts + seqs, token as i32);
    Ok(Packed { sections, tokens, seqs, blocks, samples, reports, alternatives })
}

fn pack_tokens(
    plan: &StepPlan,
    entry: &StepEntry,
    (words, sections, first): (&mut Words<'_>, Sections, usize),
    (block_size, vocab): (usize, usize),
) -> Result<()> {
    let (inputs, table) = (plan.inputs(entry), plan.table(entry));
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
            .get(position / block_size)
            .ok_or_else(|| Error::internal(format!("no block for position {position} of a step")))?;
        words.set(sections.ids + first + i, id);
        words.set(sections.positions + first + i, position as i32);
        words.set(sections.slots + first + i, (block.0 as usize * block_size + position % block_size) as i32);
    }
    Ok(())
}

impl Packed {
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
        };
        let n = self.samples;
        let samples = (n > 0).then(|| (at(s.last, n, 1), at(s.rows, n, 1), at(s.next, n, 1)));
        let m = self.reports;
        let reports = (m > 0).then(|| (at(s.reports, m, 1), self.alternatives));
        StepTensors { batch, samples, reports }
    }
}
