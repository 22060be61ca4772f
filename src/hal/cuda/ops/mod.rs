//! Launches of the kernels in `kernels/`: one function for each verb of [`crate::hal::Ops`] but `linear`.

use super::driver::Modules;
use super::stream::CudaStream;
use crate::base::{Error, Result};
use crate::hal::ops::{Activation, Logprobs, PagedAttention, RopeWriteKv, Sample};
use crate::hal::{Matrix, Tensor};

/// Handles of all kernels.
#[derive(Debug)]
pub(super) struct Kernels {}

impl Kernels {
    pub(super) fn load(_: &Modules) -> Result<Self> {
        Err(unbuilt())
    }
}

fn unbuilt() -> Error {
    Error::unsupported("the CUDA backend of this build has no decoder kernels; use \"cpu\" or \"auto\"")
}

pub(super) fn embed(_: &CudaStream, _: &Tensor, _: &Matrix, _: &Tensor, _: &Tensor, _: f32) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn rms_norm(_: &CudaStream, _: &Tensor, _: &Tensor, _: &Tensor, _: f32) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn add_rms_norm(_: &CudaStream, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: f32) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn rope_write_kv(_: &CudaStream, _: &RopeWriteKv<'_>) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn paged_attention(_: &CudaStream, _: &PagedAttention<'_>) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn act_mul(_: &CudaStream, _: &Tensor, _: &Tensor, _: Activation) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn soft_cap(_: &CudaStream, _: &Tensor, _: f32) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn gather_rows(_: &CudaStream, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn sample(_: &CudaStream, _: &Sample<'_>) -> Result<()> {
    Err(unbuilt())
}
pub(super) fn logprobs(_: &CudaStream, _: &Logprobs<'_>) -> Result<()> {
    Err(unbuilt())
}
