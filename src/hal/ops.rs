//! The fused verbs every backend speaks. Outputs are passed in, nothing allocates, work is enqueued in order.
//!
//! Notation: T tokens of a step, S sequences of a step, R rows of the row table, V vocabulary, D head dimension, H query
//! heads, G key/value heads. `act` is the dtype of [`crate::hal::Caps::activations`]. Shapes are the engine's own; a backend asserts
//! them and returns `Err` only for device trouble.

use crate::base::{DType, Error, Result};
use crate::hal::{Matrix, Tensor};

/// Where one layer's keys and values live. The order inside a block is the backend's own.
#[derive(Debug, Clone, Copy)]
pub struct KvLayer<'a> {
    /// U8, `[num_blocks, block_bytes]`.
    pub pool: &'a Tensor,
    /// Index of the layer in its group.
    pub layer: usize,
    /// Layers of the group.
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Tokens per block.
    pub block_size: usize,
    pub dtype: DType,
}

/// What a gate goes through before it multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `g / (1 + e^-g)`.
    Silu,
    /// GELU by its tanh formula: `g / (1 + e^-2u)`, `u = sqrt(2/pi) * (g + 0.044715 g^3)`.
    GeluTanh,
}

/// Norms of single heads, before their rotation.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// F32 `[1, D]`, for every query head.
    pub query: &'a Tensor,
    /// F32 `[1, D]`, for every key head.
    pub key: &'a Tensor,
    pub eps: f32,
}

/// `rope_write_kv`: norms and rotates queries in place, writes normed and rotated keys and plain values to the cache.
#[derive(Debug, Clone, Copy)]
pub struct RopeWriteKv<'a> {
    /// act `[T, (H + 2G) * D]`: queries, keys, values of each token.
    pub qkv: &'a Tensor,
    /// I32 `[T, 1]`: absolute positions.
    pub positions: &'a Tensor,
    /// I32 `[T, 1]`: `block * block_size + offset` of each token.
    pub slots: &'a Tensor,
    /// F32 `[max_position, D]`: cosines of the D/2 frequencies, then their sines. The rotation pairs element i with i + D/2
    /// (the half-split convention of Hugging Face Llama).
    pub rope: &'a Tensor,
    pub heads: usize,
    /// `rms_norm` of each query and key head on its own.
    pub norms: Option<HeadNorms<'a>>,
    pub kv: KvLayer<'a>,
}

/// `paged_attention`: causal attention of a mixed batch of prefill chunks and decodes. Of a sequence's keys those in front of its
/// tokens here are of earlier steps, with an upload in between: a device may read them while what was enqueued before this
/// still runs.
#[derive(Debug, Clone, Copy)]
pub struct PagedAttention<'a> {
    /// act `[T, H * D]`.
    pub out: &'a Tensor,
    /// act `[T, (H + 2G) * D]`; queries first, rotated.
    pub qkv: &'a Tensor,
    /// I32 `[S + 1, 1]`: where each sequence's tokens start in the T axis.
    pub starts: &'a Tensor,
    /// I32 `[S, 1]`: tokens in the cache for each sequence, this step's included.
    pub context_lens: &'a Tensor,
    /// I32 `[S, max_blocks]`: block tables, padded at will.
    pub tables: &'a Tensor,
    /// So many sequences at the front have one token each; 0 is always right, and more spares a device looking for the others.
    pub singles: usize,
    /// Multiplies dot products.
    pub scale: f32,
    /// A score `s` becomes `cap * tanh(s / cap)`.
    pub soft_cap: Option<f32>,
    /// A query at position p sees keys `p - n + 1..=p` only. At least 1.
    pub window: Option<u32>,
    pub heads: usize,
    pub kv: KvLayer<'a>,
}

/// `sample`: draws one token per sequence as its row of `state` says. Order of processors: biases, penalties, the mask of
/// end tokens, temperature, top_k, top_p, min_p.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// F32 `[S, V]`.
    pub logits: &'a Tensor,
    /// I32 `[S, 1]`: row of each sequence. One below 0 draws nothing and leaves its place in `out` as it is.
    pub rows: &'a Tensor,
    /// I32 `[S, 1]`: absolute position the drawn token will have.
    pub positions: &'a Tensor,
    /// I32 `[R, SAMPLER_WORDS]`; `last_token` is updated.
    pub state: &'a Tensor,
    /// U8 `[R, 2 * V]`, a native u16 per token: how often the output has it, and [`SAMPLER_IN_PROMPT`]. Read and
    /// updated for the rows whose [`SamplerWord::CountsTokens`] is set.
    pub counts: &'a Tensor,
    /// I32 `[R, 2 * SAMPLER_BIASES]`: ids and f32 bits, [`SamplerWord::NumBiases`] pairs of each row.
    pub biases: &'a Tensor,
    /// I32 `[S, 1]`: the drawn tokens. From logits with a NaN nothing is drawn, and it says -1.
    pub out: &'a Tensor,
}

/// `linear_sample`: the product that logits are, and what `sample` draws from them.
#[derive(Debug, Clone, Copy)]
pub struct LinearSample<'a> {
    /// act `[S, K]`.
    pub x: &'a Tensor,
    /// `V x K`.
    pub w: &'a Matrix,
    /// Its logits are what the product is put in.
    pub sample: Sample<'a>,
    /// All logits are looked at behind the op. Otherwise those of a row that draws the largest one, with no processor in front of
    /// that, may be left as they were.
    pub keeps: bool,
}

/// `logprobs`: how probable tokens are by the logits alone, and which are the most probable ones.
#[derive(Debug, Clone, Copy)]
pub struct Logprobs<'a> {
    /// F32 `[S, V]`.
    pub logits: &'a Tensor,
    /// I32 `[N, 1]`: rows of `logits`.
    pub index: &'a Tensor,
    /// I32 `[S, 1]`: the token of each row of `logits` to report first.
    pub tokens: &'a Tensor,
    /// I32 `[N, 3 * (1 + k)]`: id, rank from 1 and f32 bits of the natural logarithm of the token, then of the k most
    /// probable ones by falling logit, smaller ids first; ids beyond the vocabulary are -1.
    pub out: &'a Tensor,
}

/// Operands of [`Ops::linear`].
#[derive(Debug, Clone)]
pub struct Linear<'a> {
    pub out: Tensor,
    pub x: Tensor,
    pub w: &'a Matrix,
    pub bias: Option<&'a Tensor>,
    /// [`Ops::linear_norm_linear`] takes it, too.
    pub adds: bool,
}

/// `norm_linear`: the norm of a residual stream, the product that takes it, and what becomes of the product.
#[derive(Debug, Clone, Copy)]
pub struct NormLinear<'a> {
    /// act `[T, K]`: what is normed, or added to the residual stream first.
    pub x: &'a Tensor,
    /// act `[T, K]`: room for normed rows; may be `x` where that is added.
    pub normed: &'a Tensor,
    /// act `[T, K]` each: the residual stream that `x` is added to, and room for the sum. See [`Sum`].
    pub add: Option<(&'a Tensor, &'a Tensor)>,
    /// Of the norm, as [`Ops::rms_norm`] takes it.
    pub weight: &'a Tensor,
    pub eps: f32,
    /// `N x K`.
    pub w: &'a Matrix,
    /// F32 `[1, N]`.
    pub bias: Option<&'a Tensor>,
    pub then: Then<'a>,
}

/// `linear_norm_linear`: a product that is added to a residual stream, and what `norm_linear` makes of the sum.
#[derive(Debug, Clone, Copy)]
pub struct LinearNormLinear<'a> {
    /// act `[T, L]`.
    pub x: &'a Tensor,
    /// `K x L`.
    pub w: &'a Matrix,
    /// F32 `[1, K]`.
    pub bias: Option<&'a Tensor>,
    /// Its `x`, which is no residual stream, is room for the product.
    pub behind: NormLinear<'a>,
}

/// Parts of an op begin at multiples of so many rows, so that they stand where whole tensors may: NPUs want 32 bytes.
pub const PART_ROWS: usize = 16;

/// What becomes of a product.
#[derive(Debug, Clone, Copy)]
pub enum Then<'a> {
    /// It is kept. act `[T, N]`.
    Keep(&'a Tensor),
    /// [`Ops::act_mul`]: its output, act `[T, N / 2]`, and room for the product, act `[R, N]`, which goes in parts where R, a multiple of
    /// [`PART_ROWS`] then, is less than T.
    Gate(&'a Tensor, &'a Tensor, Activation),
}

/// Where the sum of [`NormLinear::add`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// In the residual stream that it was made of.
    InPlace,
    /// In the other tensor.
    Moved,
}

/// [`Ops::norm_linear`] by the ops that it is made of.
pub fn norm_linear_in_parts<O: Ops + ?Sized>(ops: &O, args: &NormLinear<'_>) -> Result<Sum> {
    norm_in_parts(ops, args)?;
    product_in_parts(ops, args)?;
    Ok(Sum::InPlace)
}

/// [`Ops::linear_norm_linear`] by the ops that it is made of.
pub fn linear_norm_linear_in_parts<O: Ops + ?Sized>(ops: &O, args: &LinearNormLinear<'_>) -> Result<Sum> {
    ops.linear(args.behind.x, args.x, args.w, args.bias)?;
    ops.norm_linear(&args.behind)
}

/// [`Ops::linear_sample`] by the ops that it is made of.
pub fn linear_sample_in_parts<O: Ops + ?Sized>(ops: &O, args: &LinearSample<'_>) -> Result<()> {
    ops.linear(args.sample.logits, args.x, args.w, None)?;
    ops.sample(&args.sample)
}

/// What stands in front of the product of [`Ops::norm_linear`].
pub fn norm_in_parts<O: Ops + ?Sized>(ops: &O, args: &NormLinear<'_>) -> Result<()> {
    let NormLinear { x, normed, weight, eps, .. } = *args;
    match args.add {
        Some((residual, _)) => ops.add_rms_norm(normed, residual, x, weight, eps),
        None => ops.rms_norm(normed, x, weight, eps),
    }
}

/// The product of [`Ops::norm_linear`], whose rows are normed, and what becomes of it.
pub fn product_in_parts<O: Ops + ?Sized>(ops: &O, args: &NormLinear<'_>) -> Result<()> {
    let NormLinear { normed, w, bias, .. } = *args;
    match args.then {
        Then::Keep(out) => ops.linear(out, normed, w, bias),
        Then::Gate(out, room, activation) => {
            let rows = normed.rows();
            // Parts nearly as long as each other.
            let parts = rows.div_ceil(room.rows().max(1)).max(1);
            let at_once = if parts == 1 { rows.max(1) } else { rows.div_ceil(parts).next_multiple_of(PART_ROWS) };
            (0..rows).step_by(at_once).try_for_each(|from| {
                let rows = at_once.min(rows - from);
                let gate_up = room.slice_rows(0, rows);
                ops.linear(&gate_up, &normed.slice_rows(from, rows), w, bias)?;
                ops.act_mul(&out.slice_rows(from, rows), &gate_up, activation)
            })
        }
    }
}

/// The ops of a decoder step. A device that is [`crate::hal::Caps::aligned`] rounds to `act` wherever the reference
/// implementation does inside of an op, and takes weights of norms in `act` too: what is normed is then rounded before it is
/// multiplied by them, as it is not by F32 weights.
pub trait Ops {
    /// `out[t] = table[ids[t]] * scale`. An id below 0 means "the last token of row `-id - 1`" in `state`
    /// (I32 `[R, SAMPLER_WORDS]`). out: act `[T, cols]`; ids: I32 `[T, 1]`.
    fn embed(&self, out: &Tensor, table: &Matrix, ids: &Tensor, state: &Tensor, scale: f32) -> Result<()>;
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, per row. out, x: act `[T, N]`; weight: F32 `[1, N]`.
    fn rms_norm(&self, out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()>;
    /// `residual += x; out = rms_norm(residual)`. All act `[T, N]`.
    fn add_rms_norm(&self, out: &Tensor, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()>;
    /// `out = x * w^T + bias`. out: `[T, N]` act (or F32 for logits); x: act `[T, K]`; w: `N x K`; bias: F32 `[1, N]`. Both are weights,
    /// whose numbers stay as they are: a device may keep them in another form.
    fn linear(&self, out: &Tensor, x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<()>;
    /// `add_rms_norm` (or `rms_norm`), `linear`, and what [`Then`] says, each rounded to `act` as by itself. Devices make one launch
    /// of it where that is faster, and tell where the sum is then.
    fn norm_linear(&self, args: &NormLinear<'_>) -> Result<Sum> {
        norm_linear_in_parts(self, args)
    }
    /// `linear`, then `norm_linear` of its product, which may be added to the stream before it is rounded to `act`. What the second
    /// product takes may be rounded to `act` before it is multiplied by the scale of its row, too.
    fn linear_norm_linear(&self, args: &LinearNormLinear<'_>) -> Result<Sum> {
        linear_norm_linear_in_parts(self, args)
    }
    /// Gets these products ready for any number of rows up to theirs, so that a step finds nothing left to load or to choose.
    /// Their outputs are overwritten.
    fn prepare(&self, products: &[Linear<'_>]) -> Result<()> {
        let _ = products;
        Ok(())
    }
    /// Rows that hold D / 2 angles twice hold their cosines and then their sines, as the device's own functions give them. table:
    /// F32 `[N, D]`. Devices have it that round as the reference does ([`crate::hal::Caps::aligned`]).
    fn turn(&self, table: &Tensor) -> Result<()> {
        let _ = table;
        Err(Error::internal("turn is for devices that round as the reference does"))
    }
    fn rope_write_kv(&self, args: &RopeWriteKv<'_>) -> Result<()>;
    fn paged_attention(&self, args: &PagedAttention<'_>) -> Result<()>;
    /// `out = activation(gate) * up`. out: act `[T, N]`; gate_up: act `[T, 2N]`, gate first.
    fn act_mul(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()>;
    /// `x = cap * tanh(x / cap)`, in place. x: F32 `[S, N]`; `act`: the dtype of activations, where a device rounds to it.
    fn soft_cap(&self, x: &Tensor, cap: f32, act: DType) -> Result<()>;
    /// `out[s] = x[index[s]]`. out: act `[S, N]`; x: act `[T, N]`; index: I32 `[S, 1]`.
    fn gather_rows(&self, out: &Tensor, x: &Tensor, index: &Tensor) -> Result<()>;
    /// `out[to[i]] = x[from[i]]`. Rows of `out` and `x` are equally many words; `to` and `from`: I32 `[N, 1]`, `to` without
    /// repeats.
    fn copy_rows(&self, out: (&Tensor, &Tensor), x: (&Tensor, &Tensor)) -> Result<()>;
    /// `logits[s][v]` becomes -infinity where bit `v % 32` of `masks[s][v / 32]` is not set. logits: F32 `[S, V]`, in place;
    /// masks: I32 `[S, ceil(V / 32)]`.
    fn mask_logits(&self, logits: &Tensor, masks: &Tensor) -> Result<()>;
    fn sample(&self, args: &Sample<'_>) -> Result<()>;
    /// `linear` without a bias, then `sample`. Sums may be of another order than those of `linear`.
    fn linear_sample(&self, args: &LinearSample<'_>) -> Result<()> {
        linear_sample_in_parts(self, args)
    }
    fn logprobs(&self, args: &Logprobs<'_>) -> Result<()>;
}

/// One row of sampler state as 32-bit words; the word order is the contract between runner and backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplerWord {
    LastToken = 0,
    /// f32 bits.
    Temperature = 1,
    /// 0 keeps all.
    TopK = 2,
    /// f32 bits.
    TopP = 3,
    SeedLow = 4,
    SeedHigh = 5,
    Choice = 6,
    PromptLen = 7,
    MinTokens = 8,
    /// How many of the words from [`SAMPLER_END_TOKENS`] on are set.
    NumEndTokens = 9,
    /// f32 bits.
    MinP = 10,
    /// Not 0: the row has penalties, so its tokens are counted.
    CountsTokens = 11,
    /// f32 bits.
    RepetitionPenalty = 12,
    /// f32 bits.
    PresencePenalty = 13,
    /// f32 bits.
    FrequencyPenalty = 14,
    NumBiases = 15,
}

/// Bit of a row's token count that says the token is in the prompt; the other 15 saturate.
pub const SAMPLER_IN_PROMPT: u16 = 1 << 15;
/// Most logit biases of a row.
pub const SAMPLER_BIASES: usize = 300;

/// First word of the end tokens in a sampler row.
pub const SAMPLER_END_TOKENS: usize = 16;
/// Words of a sampler row.
pub const SAMPLER_WORDS: usize = SAMPLER_END_TOKENS + 64;
