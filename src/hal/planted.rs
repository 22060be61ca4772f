//! A device that finds too little memory when a test says so: everything else is the device inside.

use crate::base::config::Placement;
use crate::base::planted::Planted;
use crate::base::{DType, Error, Result};
use crate::hal::ops::{Activation, Linear, Logprobs, PagedAttention, RopeWriteKv, Sample};
use crate::hal::{
    Allocation, Caps, Device, DriverCalls, Event, Graph, HostBuffer, HostMatrix, Matrix, MatrixLoader, MatrixPart,
    MemoryInfo, Ops, Overhead, RandomRows, Rates, Recorded, Stream, Tensor, Tuned,
};
use std::sync::Arc;
use std::time::Duration;

/// `device` with the faults that `planted` is armed with.
pub(super) fn wrap(device: Arc<dyn Device>, planted: &Arc<Planted>) -> Arc<dyn Device> {
    Arc::new(PlantedDevice { device, planted: Arc::clone(planted) })
}

#[derive(Debug)]
struct PlantedDevice {
    device: Arc<dyn Device>,
    planted: Arc<Planted>,
}

impl PlantedDevice {
    fn allocates(&self, what: &str) -> Result<()> {
        if self.planted.allocation_fails() {
            return Err(Error::no_memory(format!("{what}: planted: out of memory")));
        }
        Ok(())
    }
}

impl Device for PlantedDevice {
    fn caps(&self) -> &Caps {
        self.device.caps()
    }
    fn facts(&self) -> Vec<(&'static str, String)> {
        self.device.facts()
    }
    fn memory(&self) -> Result<MemoryInfo> {
        self.device.memory()
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn Allocation>> {
        self.allocates(&format!("allocating {bytes} bytes"))?;
        self.device.alloc(bytes)
    }
    fn host_buffer(&self, bytes: usize) -> Result<Box<dyn HostBuffer>> {
        self.allocates(&format!("allocating {bytes} bytes of host memory"))?;
        self.device.host_buffer(bytes)
    }
    fn load_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        self.allocates("loading a matrix")?;
        self.device.load_matrix(parts)
    }
    fn random_matrix(&self, parts: &[RandomRows], cols: usize, dtype: DType) -> Result<Matrix> {
        self.allocates("making a matrix")?;
        self.device.random_matrix(parts, cols, dtype)
    }
    fn rates(&self, dtype: DType) -> Option<Rates> {
        self.device.rates(dtype)
    }
    fn reserve(&self, bytes: usize) -> Result<Option<Arc<dyn Allocation>>> {
        self.allocates(&format!("reserving {bytes} bytes"))?;
        self.device.reserve(bytes)
    }
    fn rounded(&self, bytes: usize) -> usize {
        self.device.rounded(bytes)
    }
    fn allocated(&self) -> usize {
        self.device.allocated()
    }
    fn overhead(&self, recorded: Recorded) -> Overhead {
        self.device.overhead(recorded)
    }
    fn seal(&self) {
        self.device.seal();
    }
    fn tuned(&self) -> Option<Tuned> {
        self.device.tuned()
    }
    fn load_host_matrix(&self, parts: &[HostMatrix<'_>]) -> Result<Matrix> {
        self.allocates("loading a matrix into host memory")?;
        self.device.load_host_matrix(parts)
    }
    fn random_host_matrix(&self, parts: &[RandomRows], cols: usize, dtype: DType) -> Result<Matrix> {
        self.allocates("making a matrix in host memory")?;
        self.device.random_host_matrix(parts, cols, dtype)
    }
    fn area(&self, matrices: &[(usize, usize)]) -> usize {
        self.device.area(matrices)
    }
    fn loader(&self, bytes: usize, area: usize) -> Result<Option<Box<dyn MatrixLoader>>> {
        self.allocates("the readers of weights")?;
        let planted = Arc::clone(&self.planted);
        Ok(self
            .device
            .loader(bytes, area)?
            .map(|loader| Box::new(PlantedLoader { loader, planted }) as Box<dyn MatrixLoader>))
    }
    fn driver_calls(&self) -> Option<DriverCalls> {
        self.device.driver_calls()
    }
    fn stream(&self) -> Result<Box<dyn Stream>> {
        self.allocates("opening a stream")?;
        Ok(Box::new(PlantedStream { stream: self.device.stream()?, planted: Arc::clone(&self.planted) }))
    }
}

#[derive(Debug)]
struct PlantedLoader {
    loader: Box<dyn MatrixLoader>,
    planted: Arc<Planted>,
}

impl MatrixLoader for PlantedLoader {
    fn load(&mut self, parts: &[MatrixPart<'_>], placement: Placement) -> Result<Matrix> {
        if self.planted.allocation_fails() {
            return Err(Error::no_memory("making room for a matrix: planted: out of memory"));
        }
        self.loader.load(parts, placement)
    }
    fn pending_bytes(&self) -> usize {
        self.loader.pending_bytes()
    }
    fn finish(&mut self, at_most: Duration) -> Result<bool> {
        self.loader.finish(at_most)
    }
    fn times(&self) -> String {
        self.loader.times()
    }
}

#[derive(Debug)]
struct PlantedStream {
    stream: Box<dyn Stream>,
    planted: Arc<Planted>,
}

impl PlantedStream {
    fn works(&self, what: &str) -> Result<()> {
        if self.planted.work_fails() {
            return Err(Error::no_memory(format!("{what}: planted: out of memory")));
        }
        Ok(())
    }
}

impl Ops for PlantedStream {
    fn embed(&self, out: &Tensor, table: &Matrix, ids: &Tensor, state: &Tensor, scale: f32) -> Result<()> {
        self.stream.embed(out, table, ids, state, scale)
    }
    fn rms_norm(&self, out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        self.stream.rms_norm(out, x, weight, eps)
    }
    fn add_rms_norm(&self, out: &Tensor, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        self.stream.add_rms_norm(out, residual, x, weight, eps)
    }
    fn linear(&self, out: &Tensor, x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<()> {
        self.works("a matrix product")?;
        self.stream.linear(out, x, w, bias)
    }
    fn prepare(&self, products: &[Linear<'_>]) -> Result<()> {
        self.works("preparing matrix products")?;
        self.stream.prepare(products)
    }
    fn turn(&self, table: &Tensor) -> Result<()> {
        self.stream.turn(table)
    }
    fn rope_write_kv(&self, args: &RopeWriteKv<'_>) -> Result<()> {
        self.stream.rope_write_kv(args)
    }
    fn paged_attention(&self, args: &PagedAttention<'_>) -> Result<()> {
        self.stream.paged_attention(args)
    }
    fn act_mul(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()> {
        self.stream.act_mul(out, gate_up, activation)
    }
    fn soft_cap(&self, x: &Tensor, cap: f32, act: DType) -> Result<()> {
        self.stream.soft_cap(x, cap, act)
    }
    fn gather_rows(&self, out: &Tensor, x: &Tensor, index: &Tensor) -> Result<()> {
        self.stream.gather_rows(out, x, index)
    }
    fn copy_rows(&self, out: (&Tensor, &Tensor), x: (&Tensor, &Tensor)) -> Result<()> {
        self.stream.copy_rows(out, x)
    }
    fn mask_logits(&self, logits: &Tensor, masks: &Tensor) -> Result<()> {
        self.stream.mask_logits(logits, masks)
    }
    fn sample(&self, args: &Sample<'_>) -> Result<()> {
        self.stream.sample(args)
    }
    fn logprobs(&self, args: &Logprobs<'_>) -> Result<()> {
        self.stream.logprobs(args)
    }
}

impl Stream for PlantedStream {
    fn upload(&self, dst: &Tensor, src: &dyn HostBuffer) -> Result<()> {
        self.stream.upload(dst, src)
    }
    fn download(&self, dst: &mut dyn HostBuffer, src: &Tensor) -> Result<()> {
        self.stream.download(dst, src)
    }
    fn record(&self) -> Result<Box<dyn Event>> {
        self.stream.record()
    }
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.stream.capture(work)
    }
    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        self.works("a recorded step")?;
        self.stream.replay(graph)
    }
}
