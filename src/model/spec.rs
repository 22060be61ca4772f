//! What a decoder is made of, as data.

use crate::hal::ops::Activation;

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions divided by `factor`.
    Linear {
        factor: f32,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_max_position: f32,
    },
}

/// One table of rotary angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeSpec {
    pub theta: f32,
    pub scaling: RopeScaling,
}

/// What differs between the layers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// Keys a query sees, its own included; `None` sees all before it.
    pub window: Option<u32>,
    /// Index in [`DecoderSpec::ropes`].
    pub rope: usize,
}

/// Which products have bias vectors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    pub qkv: bool,
    pub output: bool,
    pub mlp: bool,
}

/// A pre-norm decoder of rotary grouped-query attention and a gated MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: Vec<LayerSpec>,
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    /// Even.
    pub head_dim: usize,
    pub activation: Activation,
    pub biases: Biases,
    /// Queries and keys are normed head by head before rotation.
    pub head_norms: bool,
    /// The outputs of attention and MLP are normed before they join the residual stream.
    pub branch_norms: bool,
    pub norm_eps: f32,
    /// Added to every norm weight when it is loaded.
    pub norm_shift: f32,
    /// Multiplies embeddings.
    pub embed_scale: f32,
    /// Multiplies the dot products of queries and keys.
    pub attention_scale: f32,
    /// A score s becomes `cap * tanh(s / cap)`.
    pub attention_cap: Option<f32>,
    /// The same for logits.
    pub logit_cap: Option<f32>,
    pub ropes: Vec<RopeSpec>,
    /// Whether the output head is the embedding table.
    pub tied: bool,
    /// Rows of the head are scaled to length 1 when it is loaded.
    pub unit_head: bool,
}

impl DecoderSpec {
    /// Columns of the fused query, key and value product.
    pub fn qkv_size(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of the attention output.
    pub fn attention_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of all matrices, and of all norm weights and biases.
    pub fn weight_elements(&self) -> (usize, usize) {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let layer = hidden * (self.qkv_size() + self.attention_size() + 3 * inner);
        let tables = if self.tied { 1 } else { 2 };
        let matrices = self.layers.len() * layer + tables * self.vocab_size * hidden;
        let when = |there: bool, n: usize| if there { n } else { 0 };
        let vectors = when(self.branch_norms, 2 * hidden)
            + when(self.head_norms, 2 * self.head_dim)
            + when(self.biases.qkv, self.qkv_size())
            + when(self.biases.output, hidden)
            + when(self.biases.mlp, 2 * inner + hidden);
        (matrices, self.layers.len() * (2 * hidden + vectors) + hidden)
    }

    /// Elements of the biases behind products whose columns ranks share: one rank brings them for all.
    pub fn summed_bias_elements(&self) -> usize {
        let there = usize::from(self.biases.output) + usize::from(self.biases.mlp);
        self.layers.len() * there * self.hidden_size
    }
}

/// Where a family keeps its weights. Names of a layer's parts follow `layer` (with `{}` for the index). The parts of a
/// fused product stand below each other; a bias has its matrix's name with "bias" for "weight".
#[derive(Debug, Clone, Copy)]
pub struct WeightNames {
    pub embed: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub layer: &'static str,
    pub input_norm: &'static str,
    pub qkv: Qkv,
    /// Norms of query and key heads, where the spec has them.
    pub head_norms: [&'static str; 2],
    pub output: &'static str,
    /// Norm of the attention output, where the spec has branch norms.
    pub attention_norm: &'static str,
    /// Norm before the MLP.
    pub post_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    /// Norm of the MLP output, where the spec has branch norms.
    pub mlp_norm: &'static str,
    /// Endings of tensors that old checkpoints carry and nobody needs.
    pub ignored: &'static [&'static str],
}

/// How files hold the query, key and value rows.
#[derive(Debug, Clone, Copy)]
pub enum Qkv {
    /// Query, key, value.
    Split([&'static str; 3]),
    /// One matrix of all rows in that order.
    Packed(&'static str),
}

impl WeightNames {
    /// Full name of `part` in layer `index`.
    pub fn in_layer(&self, index: usize, part: &str) -> String {
        self.layer.replace("{}", &index.to_string()) + part
    }

    /// Names and rows of the parts of the query, key and value product.
    pub(crate) fn qkv_parts(&self, spec: &DecoderSpec) -> Vec<(&'static str, usize)> {
        let kv = spec.kv_heads * spec.head_dim;
        match self.qkv {
            Qkv::Split([query, key, value]) => vec![(query, spec.attention_size()), (key, kv), (value, kv)],
            Qkv::Packed(name) => vec![(name, spec.qkv_size())],
        }
    }

    /// Names of all tensors that a layer of `spec` has.
    pub(crate) fn layer_parts(&self, spec: &DecoderSpec) -> Vec<String> {
        let qkv: Vec<_> = self.qkv_parts(spec).into_iter().map(|p| p.0).collect();
        let mlp = [self.gate, self.up, self.down];
        let mut parts = vec![self.input_norm, self.post_norm, self.output];
        parts.extend(qkv.iter().chain(&mlp));
        if spec.head_norms {
            parts.extend(self.head_norms);
        }
        if spec.branch_norms {
            parts.extend([self.attention_norm, self.mlp_norm]);
        }
        let mut names: Vec<String> = parts.into_iter().map(str::to_owned).collect();
        let biases = [(spec.biases.qkv, qkv.as_slice()), (spec.biases.output, &[self.output]), (spec.biases.mlp, &mlp)];
        for (_, weights) in biases.iter().filter(|b| b.0) {
            names.extend(weights.iter().map(|w| bias_name(w)));
        }
        names
    }
}

/// The bias that belongs to a matrix.
pub(crate) fn bias_name(weight: &str) -> String {
    weight.strip_suffix("weight").unwrap_or(weight).to_owned() + "bias"
}
