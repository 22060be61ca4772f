//! What a decoder is made of, as data.

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

/// A pre-norm decoder of rotary grouped-query attention and a gated SiLU MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    /// Even.
    pub head_dim: usize,
    pub norm_eps: f32,
    pub rope_theta: f32,
    pub rope_scaling: RopeScaling,
    /// Whether the output head is the embedding table.
    pub tied: bool,
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

    /// Elements of all matrices, and of all norm weights.
    pub fn weight_elements(&self) -> (usize, usize) {
        let layer = self.hidden_size * (self.qkv_size() + self.attention_size() + 3 * self.intermediate_size);
        let tables = if self.tied { 1 } else { 2 };
        let matrices = self.num_layers * layer + tables * self.vocab_size * self.hidden_size;
        (matrices, (2 * self.num_layers + 1) * self.hidden_size)
    }
}

/// Where a family keeps its weights. Layer names follow `layer` (with `{}` for the index).
#[derive(Debug, Clone, Copy)]
pub struct WeightNames {
    pub embed: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub layer: &'static str,
    pub input_norm: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub output: &'static str,
    pub post_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    /// Endings of tensors that old checkpoints carry and nobody needs.
    pub ignored: &'static [&'static str],
}

impl WeightNames {
    /// Full name of `part` in layer `index`.
    pub fn in_layer(&self, index: usize, part: &str) -> String {
        self.layer.replace("{}", &index.to_string()) + part
    }
}
