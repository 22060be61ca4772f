//! The host's processor behind a stream: ops that the device has no operators for run there, in F32.

use crate::base::{DType, Result};
use crate::hal::{Device, Stream, Tensor};
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
        self.tensor(&DType::F32.encode(values), (values.len() / cols, cols), DType::F32)
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
        Ok(DType::F32.decode(&self.read(tensor)?))
    }
}

pub(super) fn int_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_ne_bytes()).collect()
}
