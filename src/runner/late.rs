//! Late parts of steps: entries that wait for masks keep their logits in a buffer with a place for every sampler row, and are
//! drawn from there when their masks have come. An entry that nobody supplies a mask for is forgotten when its row is used
//! again.

use super::RunnerOptions;
use super::flight::{Sampler, Slot};
use super::inputs::Words;
use super::memory::{REPORT_WORDS, WORD};
use super::rows::RowBuffers;
use super::tables::HeldTables;
use crate::base::{DType, Error, Result, SeqId, StepId};
use crate::hal::{Allocation, Device, Tensor};
use crate::plan::{StepPlan, TokenMask};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::Arc;

/// Sections of a late part's inputs: sampler rows, positions, 0 and so on, and which of them report.
const SECTIONS: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Waiting {
    step: StepId,
    seq: SeqId,
    /// Of the token to be drawn.
    position: u32,
    logprobs: Option<u32>,
}

#[derive(Debug)]
pub(super) struct LateRows {
    /// F32 `[sampler rows, vocab_size]`.
    pub(super) logits: Tensor,
    /// By sampler row.
    waiting: Vec<Option<Waiting>>,
    inputs: Arc<dyn Allocation>,
    /// I32 `[max samples, mask words]`.
    masks: Tensor,
    idle: Receiver<Slot>,
    pub(super) home: Sender<Slot>,
}

/// Tensors of a late part of n draws.
#[derive(Debug)]
pub(super) struct LateTensors {
    /// I32 `[n, 1]` each.
    pub(super) rows: Tensor,
    pub(super) positions: Tensor,
    /// I32 `[n, 1]`: 0, 1, 2 and so on.
    pub(super) every: Tensor,
    /// I32 `[m, 1]`: those whose logprobs are reported.
    pub(super) reports: Option<Tensor>,
    /// I32 `[n, mask words]`.
    pub(super) masks: Tensor,
    /// Everything but the masks, to upload to.
    pub(super) whole: Tensor,
}

/// Words of a mask.
pub(super) fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// Late parts that may be on their way at once.
fn ring(options: &RunnerOptions) -> usize {
    options.depth + 1
}

/// Bytes of a runner's device and host memory for late parts.
pub(super) fn late_bytes(options: &RunnerOptions, vocab_size: usize) -> usize {
    let n = options.max_samples();
    let masks = n * mask_words(vocab_size);
    let host = n * (SECTIONS + 1 + REPORT_WORDS) + masks;
    WORD * (options.max_num_seqs * vocab_size + n * SECTIONS + masks + ring(options) * host)
}

impl LateRows {
    pub(super) fn new(device: &dyn Device, options: &RunnerOptions, vocab_size: usize) -> Result<Self> {
        let (n, rows, words) = (options.max_samples(), options.max_num_seqs, mask_words(vocab_size));
        let (home, idle) = unbounded();
        for _ in 0..ring(options) {
            let slot = Slot {
                inputs: device.host_buffer(n * SECTIONS * WORD)?,
                held: HeldTables::default(),
                rows: RowBuffers::none(),
                tokens: device.host_buffer(n * WORD)?,
                reports: device.host_buffer(n * REPORT_WORDS * WORD)?,
                masks: Some(device.host_buffer(n * words * WORD)?),
            };
            // The other end is two lines above.
            let _ = home.send(slot);
        }
        Ok(Self {
            logits: Tensor::new(device.alloc(rows * vocab_size * WORD)?, 0, rows, vocab_size, DType::F32),
            waiting: vec![None; rows],
            inputs: device.alloc(n * SECTIONS * WORD)?,
            masks: Tensor::new(device.alloc(n * words * WORD)?, 0, n, words, DType::I32),
            idle,
            home,
        })
    }

    /// Host memory of a late part; when all is in use, waits until the oldest part has landed, which it does by itself.
    pub(super) fn slot(&self) -> Result<Slot> {
        self.idle.recv().map_err(|_| Error::internal("no host buffers are left for a late part"))
    }

    /// Remembers who of a launched step waits.
    pub(super) fn remember(&mut self, plan: &StepPlan) {
        for e in plan.entries.iter().filter(|e| e.samples) {
            let (step, seq, position, logprobs) = (plan.id, e.seq, e.start + e.len, e.logprobs);
            let waiting = e.awaits_mask.then_some(Waiting { step, seq, position, logprobs });
            if let Some(place) = self.waiting.get_mut(e.row.0 as usize) {
                *place = waiting;
            }
        }
    }

    /// Packs the draws of `masks` and forgets that they wait. Who does not wait is a bug above: `Internal`.
    pub(super) fn pack(
        &mut self,
        step: StepId,
        masks: &[TokenMask],
        slot: &mut Slot,
    ) -> Result<(LateTensors, Vec<Sampler>)> {
        let (n, most, width) = (masks.len(), self.masks.rows(), self.masks.cols());
        let wide = masks.iter().find(|m| m.words.len() != width);
        if n == 0 || n > most || wide.is_some() {
            let found = wide.map_or(width, |m| m.words.len());
            return Err(Error::internal(format!(
                "{n} masks of {found} words for step {}; expected 1 to {most} of {width}",
                step.0
            )));
        }
        let mut words = Words::of(slot.inputs.as_mut());
        let (mut samplers, mut reports) = (Vec::with_capacity(n), 0);
        for (i, mask) in masks.iter().enumerate() {
            let is_it = |w: &Option<Waiting>| w.is_some_and(|w| (w.step, w.seq) == (step, mask.seq));
            let row = self.waiting.iter().position(is_it);
            let Some((row, waiting)) = row.and_then(|row| Some((row, self.waiting[row].take()?))) else {
                let text = format!("sequence {} waits for no mask in step {}", mask.seq.0, step.0);
                return Err(Error::internal(text));
            };
            words.set(i, row as i32);
            words.set(n + i, waiting.position as i32);
            words.set(2 * n + i, i as i32);
            if waiting.logprobs.is_some() {
                words.set(3 * n + reports, i as i32);
                reports += 1;
            }
            samplers.push(Sampler { seq: mask.seq, logprobs: waiting.logprobs, waits: false });
        }
        if let Some(host) = &mut slot.masks {
            let mut words = Words::of(host.as_mut());
            let all = masks.iter().enumerate();
            all.for_each(|(i, mask)| words.set_all(i * width, mask.words.iter().map(|w| *w as i32)));
        }
        let at = |section: usize, rows: usize| {
            Tensor::new(Arc::clone(&self.inputs), section * n * WORD, rows, 1, DType::I32)
        };
        let tensors = LateTensors {
            rows: at(0, n),
            positions: at(1, n),
            every: at(2, n),
            reports: (reports > 0).then(|| at(3, reports)),
            masks: self.masks.slice_rows(0, n),
            whole: at(0, SECTIONS * n),
        };
        Ok((tensors, samplers))
    }
}
