//! The shared decoder: one forward pass of a mixed batch, written once for every family.

use crate::base::{DType, Result};
use crate::hal::arena::{Arena, ArenaPlan, Slot};
use crate::hal::comm::Communicator;
use crate::hal::ops::{
    HeadNorms, KvLayer, Linear as Product, LinearNormLinear, LinearSample, NormLinear, PagedAttention, RopeWriteKv,
    Sample, Sum, Then,
};
use crate::hal::{Caps, Matrix, Stream, Tensor};
use crate::model::load::{Layer, Linear};
use crate::model::spec::LayerSpec;
use crate::model::{DecoderSpec, Model};

/// Rows that wait for a gate at most: those of longer passes go through it in parts, as rows of gates are the widest of all. Products of
/// fewer rows would be slower.
const GATE_ROWS: usize = 2048;

/// Where the temporary tensors of a pass stand in an arena.
#[derive(Debug, Clone, Copy)]
pub struct Buffers {
    residual: [Slot; 2],
    hidden: Slot,
    qkv: Slot,
    attended: Slot,
    gate_up: Slot,
    inner: Slot,
    last: Slot,
    logits: Slot,
}

impl Buffers {
    /// Reserves room for passes of `tokens` tokens and heads of `rows` rows on such a device.
    pub fn reserve(
        plan: &mut ArenaPlan,
        spec: &DecoderSpec,
        (tokens, rows): (usize, usize),
        (act, caps): (DType, &Caps),
    ) -> Self {
        // The reference chooses products by how many rows they have.
        let gate_rows = if caps.aligned { tokens } else { tokens.min(GATE_ROWS) };
        Self {
            residual: [0; 2].map(|_| plan.reserve(tokens, spec.hidden_size, act)),
            hidden: plan.reserve(tokens, spec.hidden_size, act),
            qkv: plan.reserve(tokens, spec.qkv_size(), act),
            attended: plan.reserve(tokens, spec.attention_size(), act),
            gate_up: plan.reserve(gate_rows, 2 * spec.intermediate_size, act),
            inner: plan.reserve(tokens, spec.intermediate_size, act),
            last: plan.reserve(rows, spec.hidden_size, act),
            logits: plan.reserve(rows, spec.vocab_size, DType::F32),
        }
    }
}

/// What a pass runs over. T tokens, S sequences.
#[derive(Debug, Clone)]
pub struct Batch {
    /// I32 `[T, 1]`; below 0 see [`crate::hal::Ops::embed`].
    pub ids: Tensor,
    /// I32 `[T, 1]`.
    pub positions: Tensor,
    /// I32 `[T, 1]`.
    pub slots: Tensor,
    /// I32 `[S + 1, 1]`.
    pub starts: Tensor,
    /// I32 `[S, 1]`.
    pub context_lens: Tensor,
    /// I32 `[S, max_blocks]`.
    pub tables: Tensor,
    /// Sequences at the front that have one token each.
    pub singles: usize,
}

/// Tokens of a batch whose hidden states are wanted. The last layer does for others what the KV cache needs and no more.
#[derive(Debug, Clone, Copy)]
pub enum HiddenOf<'a> {
    All,
    /// I32 `[n, 1]`, rising.
    Tokens(&'a Tensor),
    Nothing,
}

/// The temporary tensors of a pass, of as many rows as are computed.
struct Temporaries {
    hidden: Tensor,
    qkv: Tensor,
    attended: Tensor,
    /// Of fewer rows where those go in parts.
    gate_up: Tensor,
    inner: Tensor,
    /// The residual stream, and room for its next state.
    residual: [Tensor; 2],
}

impl Temporaries {
    fn of(pass: &Pass<'_>, rows: usize) -> Self {
        let b = pass.buffers;
        let [hidden, qkv, attended, inner] = [b.hidden, b.qkv, b.attended, b.inner].map(|slot| pass.tensor(slot, rows));
        let gate_up = pass.tensor(b.gate_up, rows.min(pass.arena.tensor(b.gate_up).rows()));
        let residual = b.residual.map(|slot| pass.tensor(slot, rows));
        Self { hidden, qkv, attended, gate_up, inner, residual }
    }

    /// Goes on with these rows behind attention.
    fn narrow(&mut self, ops: &dyn Stream, index: &Tensor) -> Result<()> {
        let rows = index.rows();
        // Nobody reads these any more.
        let attended = self.qkv.reshape(rows, self.attended.cols());
        ops.gather_rows(&attended, &self.attended, index)?;
        self.attended = attended;
        let stream = self.residual[1].slice_rows(0, rows);
        ops.gather_rows(&stream, &self.residual[0], index)?;
        self.residual = [stream, self.residual[0].slice_rows(0, rows)];
        for tensor in [&mut self.hidden, &mut self.gate_up, &mut self.inner] {
            *tensor = tensor.slice_rows(0, rows.min(tensor.rows()));
        }
        Ok(())
    }
}

/// What a pass runs on.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    pub model: &'a Model,
    pub stream: &'a dyn Stream,
    pub arena: &'a Arena,
    pub buffers: &'a Buffers,
    /// Sampler rows, for tokens that the host has not seen.
    pub state: &'a Tensor,
    /// Layer 0 of the cache.
    pub kv: KvLayer<'a>,
    /// Where the model is spread over ranks.
    pub comm: Option<&'a dyn Communicator>,
}

impl Pass<'_> {
    fn tensor(&self, slot: Slot, rows: usize) -> Tensor {
        self.arena.tensor(slot).slice_rows(0, rows)
    }

    /// Runs all layers. The normed hidden states, act `[n, hidden_size]` of the `n` wanted tokens, stay valid until the next pass.
    pub fn forward(&self, batch: &Batch, wanted: HiddenOf<'_>) -> Result<Tensor> {
        let (ops, model) = (self.stream, self.model);
        let spec = &model.info.spec;
        let mut t = Temporaries::of(self, batch.ids.rows());
        ops.embed(&t.residual[0], &model.embed, &batch.ids, self.state, spec.embed_scale)?;
        if let Some(first) = model.layers.first() {
            let qkv = Then::Keep(&t.qkv);
            ops.norm_linear(&self.norm_linear((&t.residual[0], &t.hidden), (&first.input_norm, &first.qkv), qkv))?;
        }
        for (i, (layer, kind)) in model.layers.iter().zip(&spec.layers).enumerate() {
            let kv = KvLayer { layer: i, ..self.kv };
            self.rope_write_kv(batch, &t.qkv, (layer, kind), kv)?;
            let next = model.layers.get(i + 1).map(|next| (&next.input_norm, &next.qkv));
            if next.is_none() && matches!(wanted, HiddenOf::Nothing) {
                return Ok(t.hidden.slice_rows(0, 0));
            }
            self.attention(batch, (&t.attended, &t.qkv), kind, kv)?;
            if let HiddenOf::Tokens(index) = wanted
                && next.is_none()
                && index.rows() < t.hidden.rows()
            {
                t.narrow(ops, index)?;
            }
            let branch = (&t.attended, &layer.output, layer.attention_norm.as_ref());
            let gate = Then::Gate(&t.inner, &t.gate_up, spec.activation);
            let behind = Some((&layer.post_norm, &layer.gate_up, gate));
            self.end_branch(branch, (&t.hidden, &mut t.residual), behind)?;
            let branch = (&t.inner, &layer.down, layer.mlp_norm.as_ref());
            let behind = next.map(|(norm, qkv)| (norm, qkv, Then::Keep(&t.qkv)));
            self.end_branch(branch, (&t.hidden, &mut t.residual), behind)?;
        }
        ops.add_rms_norm(&t.hidden, &t.residual[0], &t.hidden, &model.final_norm, spec.norm_eps)?;
        Ok(t.hidden)
    }

    /// Gets every product ready that passes of any number of rows need. What the arena holds is overwritten.
    pub fn prepare(&self) -> Result<()> {
        let whole = |slot: Slot| self.arena.tensor(slot);
        let b = self.buffers;
        let [x, qkv, attended, gate_up, inner] = [b.hidden, b.qkv, b.attended, b.gate_up, b.inner].map(whole);
        let layers = self.model.layers.iter().flat_map(|layer| {
            let adds = |norm: &Option<Tensor>| self.comm.is_none() && norm.is_none();
            [
                (&qkv, &x, &layer.qkv, false),
                (&x, &attended, &layer.output, adds(&layer.attention_norm)),
                (&gate_up, &x, &layer.gate_up, false),
                (&x, &inner, &layer.down, adds(&layer.mlp_norm)),
            ]
        });
        let (logits, last) = (whole(b.logits), whole(b.last));
        let layers = layers.map(|(out, x, linear, adds)| (out, x, &linear.weight, linear.bias.as_ref(), adds));
        let mut products: Vec<Product<'_>> = Vec::new();
        for (out, x, w, bias, adds) in layers.chain([(&logits, &last, &self.model.head, None, false)]) {
            let same = |p: &Product<'_>| {
                let shape = |w: &Matrix| (w.rows(), w.cols(), w.dtype());
                let others = (p.out.dtype(), p.bias.is_some(), p.adds);
                (shape(p.w), others) == (shape(w), (out.dtype(), bias.is_some(), adds))
            };
            if !products.iter().any(same) {
                products.push(Product { out: out.clone(), x: x.slice_rows(0, out.rows()), w, bias, adds });
            }
        }
        self.stream.prepare(&products)
    }

    fn linear(&self, out: &Tensor, x: &Tensor, linear: &Linear) -> Result<()> {
        self.stream.linear(out, x, &linear.weight, linear.bias.as_ref())
    }

    /// The last product of a branch: it is added to the residual stream, in the first of `residual`, if there is a product of the
    /// normed stream behind it; otherwise it is left in `x`.
    fn end_branch(
        &self,
        (from, linear, norm): (&Tensor, &Linear, Option<&Tensor>),
        (x, residual): (&Tensor, &mut [Tensor; 2]),
        behind: Option<(&Tensor, &Linear, Then<'_>)>,
    ) -> Result<()> {
        let [stream, sum] = &*residual;
        let behind = behind.map(|(weight, linear, then)| NormLinear {
            add: Some((stream, sum)),
            ..self.norm_linear((x, x), (weight, linear), then)
        });
        let done = match behind {
            Some(behind) if self.comm.is_none() && norm.is_none() => {
                let (w, bias) = (&linear.weight, linear.bias.as_ref());
                self.stream.linear_norm_linear(&LinearNormLinear { x: from, w, bias, behind })?
            }
            behind => {
                self.row_parallel(x, from, linear)?;
                self.branch_norm(x, norm)?;
                behind.map_or(Ok(Sum::InPlace), |behind| self.stream.norm_linear(&behind))?
            }
        };
        if done == Sum::Moved {
            residual.swap(0, 1);
        }
        Ok(())
    }

    /// A product of normed rows of `x`.
    fn norm_linear<'a>(
        &'a self,
        (x, normed): (&'a Tensor, &'a Tensor),
        (weight, linear): (&'a Tensor, &'a Linear),
        then: Then<'a>,
    ) -> NormLinear<'a> {
        NormLinear {
            x,
            normed,
            add: None,
            weight,
            eps: self.model.info.spec.norm_eps,
            w: &linear.weight,
            bias: linear.bias.as_ref(),
            then,
        }
    }

    /// A product whose columns are spread over ranks, so that each has one addend of `out`.
    fn row_parallel(&self, out: &Tensor, x: &Tensor, linear: &Linear) -> Result<()> {
        self.linear(out, x, linear)?;
        self.comm.map_or(Ok(()), |comm| comm.all_reduce(self.stream, out))
    }

    fn branch_norm(&self, x: &Tensor, weight: Option<&Tensor>) -> Result<()> {
        weight.map_or(Ok(()), |weight| self.stream.rms_norm(x, x, weight, self.model.info.spec.norm_eps))
    }

    fn rope_write_kv(
        &self,
        batch: &Batch,
        qkv: &Tensor,
        (layer, kind): (&Layer, &LayerSpec),
        kv: KvLayer<'_>,
    ) -> Result<()> {
        let spec = &self.model.info.spec;
        self.stream.rope_write_kv(&RopeWriteKv {
            qkv,
            positions: &batch.positions,
            slots: &batch.slots,
            rope: &self.model.ropes[kind.rope],
            heads: spec.heads,
            norms: layer.head_norms.as_ref().map(|[query, key]| HeadNorms { query, key, eps: spec.norm_eps }),
            kv,
        })
    }

    fn attention(
        &self,
        batch: &Batch,
        (out, qkv): (&Tensor, &Tensor),
        kind: &LayerSpec,
        kv: KvLayer<'_>,
    ) -> Result<()> {
        let spec = &self.model.info.spec;
        self.stream.paged_attention(&PagedAttention {
            out,
            qkv,
            starts: &batch.starts,
            context_lens: &batch.context_lens,
            tables: &batch.tables,
            singles: batch.singles,
            scale: spec.attention_scale,
            soft_cap: spec.attention_cap,
            window: kind.window,
            heads: spec.heads,
            kv,
        })
    }

    /// Where [`Self::logits`] puts the logits of `rows` rows; good for others until its next call.
    pub fn logits_rows(&self, rows: usize) -> Tensor {
        self.tensor(self.buffers.logits, rows)
    }

    /// Logits, F32 `[rows of index, vocab_size]`, of the tokens that `index` (I32 `[n, 1]`, rising) names: `hidden` has theirs alone, as
    /// [`HiddenOf::Tokens`] asks for, or those of all tokens. Valid until the next call.
    pub fn logits(&self, hidden: &Tensor, index: &Tensor) -> Result<Tensor> {
        let logits = self.logits_rows(index.rows());
        let last = self.rows_of(hidden, index)?;
        self.stream.linear(&logits, &last, &self.model.head, None)?;
        if let Some(cap) = self.model.info.spec.logit_cap {
            self.stream.soft_cap(&logits, cap, last.dtype())?;
        }
        Ok(logits)
    }

    /// Draws from the logits of these tokens, which come to stand in those of `sample`, [`Self::logits_rows`]. Only where `keeps` says so
    /// all of them do; see [`LinearSample`].
    pub fn sample(&self, (hidden, index): (&Tensor, &Tensor), sample: Sample<'_>, keeps: bool) -> Result<()> {
        if self.model.info.spec.logit_cap.is_some() {
            self.logits(hidden, index)?;
            return self.stream.sample(&sample);
        }
        let x = &self.rows_of(hidden, index)?;
        self.stream.linear_sample(&LinearSample { x, w: &self.model.head, sample, keeps })
    }

    /// Hidden states of the tokens that `index` names.
    fn rows_of(&self, hidden: &Tensor, index: &Tensor) -> Result<Tensor> {
        // As many rising indices as rows are all of them, whatever they name.
        if index.rows() == hidden.rows() {
            return Ok(hidden.clone());
        }
        let last = self.tensor(self.buffers.last, index.rows());
        self.stream.gather_rows(&last, hidden, index)?;
        Ok(last)
    }
}
