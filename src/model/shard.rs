//! What one rank of several holds of a model: whole query heads with their key heads, and a share of the MLP.

use crate::base::{DType, Error, Result};
use crate::model::spec::Qkv;
use crate::model::{DecoderSpec, ModelInfo};
use std::ops::Range;

/// One rank of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Below `ranks`.
    pub rank: usize,
    pub ranks: usize,
}

/// A matrix of a file, and which of its rows a rank has.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) name: String,
    /// Of the whole.
    pub(super) rows: usize,
    pub(super) take: Vec<Range<usize>>,
}

impl Part {
    pub(super) fn whole(name: String, rows: usize) -> Self {
        Self { name, rows, take: std::iter::once(0..rows).collect() }
    }

    /// Rows that are taken.
    pub(super) fn taken(&self) -> usize {
        self.take.iter().map(Range::len).sum()
    }
}

impl Shard {
    /// The only rank.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };

    /// Whether `spec` can be spread over `ranks`; `Invalid` names the count that cannot be.
    pub fn check(spec: &DecoderSpec, ranks: usize) -> Result<()> {
        let refuse = |what: &str, n: usize| {
            Err(Error::invalid(format!(
                "config key \"tensor_parallel_size\" is {ranks}; the model's {what}, {n}, cannot be spread evenly over so \
                 many ranks"
            )))
        };
        if ranks == 0 || !spec.heads.is_multiple_of(ranks) {
            return refuse("num_attention_heads", spec.heads);
        }
        if !spec.kv_heads.is_multiple_of(ranks) && !ranks.is_multiple_of(spec.kv_heads) {
            return refuse("num_key_value_heads", spec.kv_heads);
        }
        if !spec.intermediate_size.is_multiple_of(ranks) {
            return refuse("intermediate_size", spec.intermediate_size);
        }
        Ok(())
    }

    /// The model as this rank sees it: local heads and inner size.
    pub fn info(self, whole: &ModelInfo) -> ModelInfo {
        let mut info = whole.clone();
        info.spec.heads /= self.ranks;
        info.spec.kv_heads = (info.spec.kv_heads / self.ranks).max(1);
        info.spec.intermediate_size /= self.ranks;
        let (matrices, mut vectors) = info.spec.weight_elements();
        if self.rank > 0 {
            vectors -= info.spec.summed_bias_elements();
        }
        info.weight_bytes = matrices * info.dtype.size() + vectors * DType::F32.size();
        info
    }

    /// This rank's share of `n` things.
    pub(super) fn share(self, n: usize) -> Range<usize> {
        let each = n / self.ranks;
        self.rank * each..(self.rank + 1) * each
    }

    /// Key heads of this rank; several ranks share one when there are fewer than ranks.
    fn kv_heads(self, spec: &DecoderSpec) -> Range<usize> {
        if spec.kv_heads >= self.ranks {
            return self.share(spec.kv_heads);
        }
        let head = self.rank * spec.kv_heads / self.ranks;
        head..head + 1
    }

    /// Query, key and value rows of this rank. `spec` is the whole model's.
    pub(super) fn qkv(self, spec: &DecoderSpec, qkv: Qkv, name: impl Fn(&str) -> String) -> Vec<Part> {
        let dim = spec.head_dim;
        let (queries, kv) = (spec.attention_size(), spec.kv_heads * dim);
        let rows = |heads: Range<usize>, from: usize| from + heads.start * dim..from + heads.end * dim;
        let (query, key) = (self.share(spec.heads), self.kv_heads(spec));
        let part = |part: &str, rows: usize, take: Vec<Range<usize>>| Part { name: name(part), rows, take };
        match qkv {
            Qkv::Split([q, k, v]) => vec![
                part(q, queries, vec![rows(query, 0)]),
                part(k, kv, vec![rows(key.clone(), 0)]),
                part(v, kv, vec![rows(key, 0)]),
            ],
            Qkv::Packed(all) => {
                let take = vec![rows(query, 0), rows(key.clone(), queries), rows(key, queries + kv)];
                vec![part(all, spec.qkv_size(), take)]
            }
        }
    }
}

/// Rows `take` and columns `cols` of a row-major matrix whose rows have `all` columns of `size` bytes.
pub(super) fn cut(
    bytes: &[u8],
    take: &[Range<usize>],
    (cols, all, size): (&Range<usize>, usize, usize),
) -> Result<Vec<u8>> {
    let total = take.iter().map(Range::len).sum::<usize>() * cols.len() * size;
    let mut out = Vec::new();
    out.try_reserve_exact(total)
        .map_err(|_| Error::no_memory(format!("cannot allocate {total} bytes for a rank's share of a weight")))?;
    for row in take.iter().cloned().flatten() {
        let from = row * all;
        out.extend_from_slice(&bytes[(from + cols.start) * size..(from + cols.end) * size]);
    }
    Ok(out)
}
