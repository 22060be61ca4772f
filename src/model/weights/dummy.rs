//! Random weights of any shape: for benches and tests of a model whose files are not at hand.

use super::{WeightData, WeightSource};
use crate::base::rng::{SplitMix64, mix};
use crate::base::{DType, Result};
use half::{bf16, f16};
use std::borrow::Cow;

/// Weights that depend on the tensor's name and `seed` alone. Matrices keep the scale of what passes through them, biases
/// are small, other vectors are ones.
#[derive(Debug, Clone, Copy)]
pub struct DummyWeights {
    pub dtype: DType,
    pub seed: u64,
}

impl WeightSource for DummyWeights {
    fn names(&self) -> Option<Vec<String>> {
        None
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<WeightData<'_>> {
        let elements: usize = shape.iter().product();
        let mut rng = SplitMix64(name.bytes().fold(self.seed, |h, b| mix(h, u64::from(b))));
        // Uniform in +-sqrt(3 / columns) has the variance that keeps a product at its input's scale.
        let (middle, width) = match shape {
            [_, columns] => (0.0, 2.0 * (3.0 / *columns as f32).sqrt()),
            _ if name.ends_with("bias") => (0.0, 0.2),
            _ => (1.0, 0.0),
        };
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(elements * self.dtype.size()).map_err(|_| {
            crate::base::Error::no_memory(format!("cannot allocate {elements} elements for random weights of {name}"))
        })?;
        for _ in 0..elements {
            let x = middle + (rng.unit() - 0.5) * width;
            match self.dtype {
                DType::Bf16 => bytes.extend_from_slice(&bf16::from_f32(x).to_le_bytes()),
                DType::F16 => bytes.extend_from_slice(&f16::from_f32(x).to_le_bytes()),
                _ => bytes.extend_from_slice(&x.to_le_bytes()),
            }
        }
        let dtype = if matches!(self.dtype, DType::Bf16 | DType::F16) { self.dtype } else { DType::F32 };
        Ok(WeightData { dtype, bytes: Cow::Owned(bytes) })
    }

    fn release(&self, _: &str) {}
}
