//! Random weights of any shape: for benches and tests of a model whose files are not at hand.

use super::{WeightData, WeightSource};
use crate::base::rng::mix;
use crate::base::{DType, Result};
use crate::hal::RandomRows;
use half::{bf16, f16};
use std::borrow::Cow;

/// Weights that depend on the tensor's name and `seed` alone. Matrices keep the scale of what passes through them, biases
/// are small, other vectors are ones.
#[derive(Debug, Clone, Copy)]
pub struct DummyWeights {
    pub dtype: DType,
    pub seed: u64,
}

impl DummyWeights {
    fn seed(&self, name: &str) -> u64 {
        name.bytes().fold(self.seed, |h, b| mix(h, u64::from(b)))
    }

    fn kept(&self) -> DType {
        if matches!(self.dtype, DType::Bf16 | DType::F16) { self.dtype } else { DType::F32 }
    }
}

impl WeightSource for DummyWeights {
    fn names(&self) -> Option<Vec<String>> {
        None
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<WeightData<'_>> {
        let dtype = self.kept();
        let bytes = match *shape {
            [rows, cols] => self.matrix(name, [rows, cols]).bytes(cols, dtype)?,
            _ if name.ends_with("bias") => {
                RandomRows { rows: 1, seed: self.seed(name), width: 0.2 }.bytes(shape.iter().product(), dtype)?
            }
            _ => one(dtype).repeat(shape.iter().product()),
        };
        Ok(WeightData { dtype, bytes: Cow::Owned(bytes), file: None })
    }

    fn random(&self, name: &str, shape: [usize; 2]) -> Option<(RandomRows, DType)> {
        Some((self.matrix(name, shape), self.kept()))
    }

    fn release(&self, _: &str) {}
}

impl DummyWeights {
    /// Uniform in +-sqrt(3 / columns) has the variance that keeps a product at its input's scale.
    fn matrix(&self, name: &str, [rows, cols]: [usize; 2]) -> RandomRows {
        RandomRows { rows, seed: self.seed(name), width: 2.0 * (3.0 / cols as f32).sqrt() }
    }
}

fn one(dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => bf16::ONE.to_le_bytes().to_vec(),
        DType::F16 => f16::ONE.to_le_bytes().to_vec(),
        _ => 1.0f32.to_le_bytes().to_vec(),
    }
}
