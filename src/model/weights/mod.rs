//! Where weights come from.

#[forbid(unsafe_code)]
mod dummy;
pub mod mmap;
#[forbid(unsafe_code)]
mod safetensors;
#[cfg(test)]
mod tests;

pub use dummy::DummyWeights;
pub use safetensors::SafetensorsWeights;

use crate::base::{DType, Result};
use crate::hal::{FilePart, RandomRows};
use std::borrow::Cow;
use std::fmt::Debug;

/// One tensor in host memory, row-major, little-endian.
#[derive(Debug, Clone)]
pub struct WeightData<'a> {
    pub dtype: DType,
    pub bytes: Cow<'a, [u8]>,
    /// Where the bytes stand in a file as they are here.
    pub file: Option<FilePart>,
}

/// A set of named tensors.
pub trait WeightSource: Debug {
    /// Names of all tensors there are; `None` when every name has one.
    fn names(&self) -> Option<Vec<String>>;
    /// The tensor `name`, which must have `shape`. Errors name the tensor, the shape found and the one expected.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<WeightData<'_>>;
    /// The matrix `name` as a recipe instead of numbers, where the source makes it up.
    fn random(&self, name: &str, shape: [usize; 2]) -> Option<(RandomRows, DType)> {
        let _ = (name, shape);
        None
    }
    /// Gives back the memory a tensor takes here. Reading it again is possible and slow.
    fn release(&self, name: &str);
}
