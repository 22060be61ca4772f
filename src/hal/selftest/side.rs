//! One of the two devices that are compared, with the means to feed and read it.

use crate::base::rng::SplitMix64;
use crate::base::{DType, Result};
use crate::hal::{Activations, Device, HostMatrix, Matrix, Stream, Tensor};
use half::{bf16, f16};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Side {
    pub(super) device: Arc<dyn Device>,
    pub(super) stream: Box<dyn Stream>,
    /// Dtype of weights, and of the cache where the device takes it.
    pub(super) weights: DType,
    /// Dtype of activations here.
    pub(super) act: DType,
    /// Dtype of activations on the device that is tested: inputs are numbers that it can hold.
    pub(super) tested: DType,
}

impl Side {
    pub(super) fn new(device: &Arc<dyn Device>, weights: DType, tested: DType) -> Result<Self> {
        let act = match device.caps().activations {
            Activations::Always(dtype) => dtype,
            Activations::OfModel => weights,
        };
        Ok(Self { stream: device.stream()?, device: Arc::clone(device), weights, act, tested })
    }

    pub(super) fn wait(&self) -> Result<()> {
        self.stream.record()?.wait()
    }

    /// Numbers in -1..1 that both can hold.
    pub(super) fn noise(&self, seed: u64, n: usize) -> Vec<f32> {
        let mut rng = SplitMix64(seed);
        (0..n).map(|_| rounded(2.0 * rng.unit() - 1.0, self.tested)).collect()
    }

    pub(super) fn upload(&self, bytes: &[u8], rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        let tensor = Tensor::new(self.device.alloc(bytes.len().max(1))?, 0, rows, cols, dtype);
        let mut buffer = self.device.host_buffer(bytes.len())?;
        buffer.bytes_mut().copy_from_slice(bytes);
        self.stream.upload(&tensor, buffer.as_ref())?;
        self.wait()?;
        Ok(tensor)
    }
    pub(super) fn acts(&self, x: &[f32], cols: usize) -> Result<Tensor> {
        self.upload(&encode(x, self.act), x.len() / cols, cols, self.act)
    }
    pub(super) fn floats(&self, x: &[f32], cols: usize) -> Result<Tensor> {
        self.upload(&encode(x, DType::F32), x.len() / cols, cols, DType::F32)
    }
    pub(super) fn ints(&self, x: &[i32], cols: usize) -> Result<Tensor> {
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.upload(&bytes, x.len() / cols, cols, DType::I32)
    }
    /// Outputs start as NaN, so what an op leaves out shows.
    pub(super) fn out(&self, rows: usize, cols: usize) -> Result<Tensor> {
        self.acts(&vec![f32::NAN; rows * cols], cols)
    }
    /// `rows x cols` weights with numbers in -1..1.
    pub(super) fn matrix(&self, seed: u64, rows: usize, cols: usize) -> Result<Matrix> {
        let mut rng = SplitMix64(seed);
        let values: Vec<f32> = (0..rows * cols).map(|_| 2.0 * rng.unit() - 1.0).collect();
        let data = encode(&values, self.weights);
        self.device.load_matrix(&[HostMatrix { rows, cols, dtype: self.weights, data: &data }])
    }

    pub(super) fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let bytes = self.bytes(tensor)?;
        let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let words = || bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(match tensor.dtype() {
            DType::F16 => halves().map(|x| f16::from_bits(x).to_f32()).collect(),
            DType::Bf16 => halves().map(|x| bf16::from_bits(x).to_f32()).collect(),
            DType::I32 => words().map(|x| x as i32 as f32).collect(),
            _ => words().map(f32::from_bits).collect(),
        })
    }
    pub(super) fn bytes(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let mut buffer = self.device.host_buffer(tensor.bytes())?;
        self.stream.download(buffer.as_mut(), tensor)?;
        self.wait()?;
        Ok(buffer.bytes().to_vec())
    }
}

fn encode(x: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => x.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        DType::Bf16 => x.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn rounded(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}
