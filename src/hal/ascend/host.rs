//! The host's processor behind a stream: ops that the device has no operators for run there, in F32.

use crate::base::{DType, Result};
use crate::hal::{Device, Stream, Tensor};
use half::{bf16, f16};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Host {
    device: Arc<dyn Device>,
    pub(super) stream: Box<dyn Stream>,
}

impl Host {
    pub(super) fn new(device: &Arc<dyn Device>) -> Result<Self> {
        Ok(Self { stream: device.stream()?, device: Arc::clone(device) })
    }

    /// Zeros.
    pub(super) fn zeros(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        Ok(Tensor::new(self.device.alloc((rows * cols * dtype.size()).max(1))?, 0, rows, cols, dtype))
    }

    pub(super) fn tensor(&self, bytes: &[u8], (rows, cols): (usize, usize), dtype: DType) -> Result<Tensor> {
        let tensor = self.zeros(rows, cols, dtype)?;
        self.write(&tensor, bytes)?;
        Ok(tensor)
    }

    pub(super) fn write(&self, tensor: &Tensor, bytes: &[u8]) -> Result<()> {
        assert_eq!(tensor.bytes(), bytes.len(), "bytes of a tensor on the host");
        let mut buffer = self.device.host_buffer(bytes.len())?;
        buffer.bytes_mut().copy_from_slice(bytes);
        self.stream.upload(tensor, buffer.as_ref())
    }

    pub(super) fn floats(&self, values: &[f32], cols: usize) -> Result<Tensor> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_ne_bytes()).collect();
        self.tensor(&bytes, (values.len() / cols, cols), DType::F32)
    }

    pub(super) fn ints(&self, values: &[i32], cols: usize) -> Result<Tensor> {
        self.tensor(&int_bytes(values), (values.len() / cols, cols), DType::I32)
    }

    pub(super) fn read(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let mut buffer = self.device.host_buffer(tensor.bytes())?;
        self.stream.download(buffer.as_mut(), tensor)?;
        Ok(buffer.bytes().to_vec())
    }

    pub(super) fn read_floats(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(widened(&self.read(tensor)?, DType::F32))
    }
}

pub(super) fn int_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

/// Numbers of `dtype` as F32.
pub(super) fn widened(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    match dtype {
        DType::F16 => pairs().map(|x| f16::from_bits(x).to_f32()).collect(),
        DType::Bf16 => pairs().map(|x| bf16::from_bits(x).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// Numbers as `dtype` keeps them.
pub(super) fn narrowed(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
    }
}

/// `x` as `dtype` keeps it.
pub(super) fn rounded(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}
