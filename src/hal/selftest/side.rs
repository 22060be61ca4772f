//! One of the two devices that are compared, with the means to feed and read it.

use crate::base::rng::SplitMix64;
use crate::base::{DType, Result};
use crate::hal::{Device, HostMatrix, Matrix, Stream, Tensor};
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
        let act = device.caps().activations.of(weights);
        Ok(Self { stream: device.stream()?, device: Arc::clone(device), weights, act, tested })
    }

    pub(super) fn wait(&self) -> Result<()> {
        self.stream.record()?.wait()
    }

    /// Numbers in -1..1 that both can hold.
    pub(super) fn noise(&self, seed: u64, n: usize) -> Vec<f32> {
        let mut rng = SplitMix64(seed);
        (0..n).map(|_| self.tested.round(2.0 * rng.unit() - 1.0)).collect()
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
        self.upload(&self.act.encode(x), x.len() / cols, cols, self.act)
    }
    pub(super) fn floats(&self, x: &[f32], cols: usize) -> Result<Tensor> {
        self.upload(&DType::F32.encode(x), x.len() / cols, cols, DType::F32)
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
        let data = self.weights.encode(&values);
        self.device.load_matrix(&[HostMatrix { rows, cols, dtype: self.weights, data: &data }])
    }

    pub(super) fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let bytes = self.bytes(tensor)?;
        Ok(match tensor.dtype() {
            DType::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
            dtype => dtype.decode(&bytes),
        })
    }
    pub(super) fn bytes(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let mut buffer = self.device.host_buffer(tensor.bytes())?;
        self.stream.download(buffer.as_mut(), tensor)?;
        self.wait()?;
        Ok(buffer.bytes().to_vec())
    }
}
