//! A stream of a device: copies, launches, and the ops in order.

use super::CudaDevice;
use super::batched::{Batched, Order};
use super::bias::Biases;
use super::blas::Blas;
use super::driver::check;
use super::event::Events;
use super::graph::CudaGraph;
use super::launch::{Kernel, Style};
use super::memory::{CudaMatrix, DeviceMemory};
use super::ops::fault::Faults;
use super::ops::{self, Kernels};
use super::product::{ADDED_ROWS, Product, Search};
use crate::base::config::{NumericMode, Placement};
use crate::base::{DType, Result};
use crate::hal::ops::{
    Activation, Linear, LinearNormLinear, LinearSample, Logprobs, NormLinear, PagedAttention, RopeWriteKv, Sample, Sum,
    Then, linear_norm_linear_in_parts, linear_sample_in_parts, norm_in_parts, norm_linear_in_parts, product_in_parts,
};
use crate::hal::{Allocation, Event, Graph, HostBuffer, Matrix, MatrixStorage, Ops, Stream, Tensor};
use cudarc::driver::sys;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ptr::null_mut;
use std::sync::Arc;

/// Scratch memory of a stream: partial results of attention, of sampling, of products.
pub(super) const WORKSPACE_BYTES: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct CudaStream {
    raw: sys::CUstream,
    blas: RefCell<Blas>,
    workspace: DeviceMemory,
    biases: Biases,
    /// Of blocks that put a result together; zero between ops.
    counters: DeviceMemory,
    faults: Arc<Faults>,
    events: Arc<Events>,
    /// What is enqueued is recorded rather than run.
    recording: Cell<bool>,
    device: Arc<CudaDevice>,
}

// SAFETY: the driver takes calls on a stream from any thread; this one has one user at a time.
unsafe impl Send for CudaStream {}

/// The matrix of a product whose shapes, dtypes and places fit.
fn checked<'a>(out: &Tensor, x: &Tensor, w: &'a Matrix, bias: Option<&Tensor>) -> &'a CudaMatrix {
    let matrix = CudaMatrix::of(w);
    assert_eq!((out.rows(), out.cols()), (x.rows(), matrix.rows()), "output of linear");
    assert_eq!((x.cols(), x.dtype()), (matrix.cols(), matrix.dtype()), "input of linear");
    assert_eq!(matrix.placement(), Placement::Device, "where the matrix of linear lies");
    if let Some(bias) = bias {
        assert_eq!((bias.rows(), bias.cols(), bias.dtype()), (1, matrix.rows(), DType::F32), "bias of linear");
    }
    matrix
}

impl CudaStream {
    pub(super) fn new(device: Arc<CudaDevice>) -> Result<Self> {
        let workspace = DeviceMemory::new(&device.context, WORKSPACE_BYTES)?;
        let biases = Biases::new(&device)?;
        let counters = DeviceMemory::new(&device.context, ops::linear::COUNTER_BYTES)?;
        let faults = Arc::new(Faults::new(&device.context)?);
        let events = Arc::new(Events::new(&device.context, &faults));
        let entered = device.context.enter()?;
        let mut raw = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` is writable.
        check(unsafe { sys::cuStreamCreate(&raw mut raw, flags) }, "cuStreamCreate")?;
        let blas = Blas::new(device.tuning.clone());
        drop(entered);
        match blas {
            Ok(blas) => {
                let (blas, recording) = (RefCell::new(blas), Cell::new(false));
                Ok(Self { raw, blas, workspace, biases, counters, faults, events, recording, device })
            }
            Err(e) => {
                // SAFETY: created above, destroyed once.
                let _ = unsafe { sys::cuStreamDestroy_v2(raw) };
                Err(e)
            }
        }
    }

    /// The CUDA stream behind `stream`. Panics on another backend's.
    pub(super) fn of(stream: &dyn Stream) -> &Self {
        let any: &dyn Any = stream;
        match any.downcast_ref() {
            Some(stream) => stream,
            None => panic!("a stream of another device was given to the CUDA backend"),
        }
    }

    /// The driver's handle, with the device's context made the thread's.
    pub(super) fn bound(&self) -> Result<sys::CUstream> {
        self.device.context.bind()?;
        Ok(self.raw)
    }

    /// Whether what is enqueued is recorded rather than run.
    pub(super) fn is_recording(&self) -> bool {
        self.recording.get()
    }

    /// Enqueues a kernel whose one parameter is `params`.
    pub(super) fn launch<P: Copy>(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        self.launch_clusters(kernel, grid, (block, shared_bytes, 1), params)
    }

    /// The same with so many blocks along z as clusters, which only devices have whose launches overlap.
    pub(super) fn launch_clusters<P: Copy>(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        (block, shared_bytes, cluster): (u32, u32, u32),
        params: &P,
    ) -> Result<()> {
        self.device.context.bind()?;
        let style = Style { early: self.overlaps(), cluster };
        kernel.launch(self.raw, grid, (block, shared_bytes), (params, style))
    }

    /// Whether launches overlap, and blocks form clusters.
    pub(super) fn overlaps(&self) -> bool {
        self.device.overlaps
    }

    pub(super) fn kernels(&self) -> &Kernels {
        &self.device.kernels
    }

    /// Whether activations of this dtype are rounded where the reference rounds them. F32 has no such roundings.
    pub(super) fn rounds_as_reference(&self, act: DType) -> bool {
        self.device.mode == NumericMode::Aligned && act != DType::F32
    }

    /// In which order the reference adds up a batched product.
    pub(super) fn order(&self, product: &Batched) -> Result<Order> {
        self.device.context.bind()?;
        self.blas.borrow_mut().order(product)
    }

    pub(super) fn sm_count(&self) -> u32 {
        self.device.sm_count
    }

    /// Whether results must not depend on what is computed beside them.
    pub(super) fn invariant(&self) -> bool {
        self.device.mode == NumericMode::Invariant
    }

    /// Where kernels say what is wrong with their inputs.
    pub(super) fn fault_word(&self) -> u64 {
        self.faults.addr()
    }

    /// Numbers that count blocks, U32, zero between ops: [`ops::linear::COUNTER_BYTES`] in all.
    pub(super) fn counters(&self) -> u64 {
        self.counters.addr()
    }

    /// Address and bytes of the scratch memory. Ops run one after the other, so each has it whole.
    pub(super) fn workspace(&self) -> (u64, usize) {
        (self.workspace.addr(), self.workspace.bytes())
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.context.enter() {
            // SAFETY: created in `new`, destroyed once; work under way ends before its memory is freed.
            let _ = unsafe { (sys::cuStreamSynchronize(self.raw), sys::cuStreamDestroy_v2(self.raw)) };
        }
    }
}

impl Ops for CudaStream {
    fn embed(&self, out: &Tensor, table: &Matrix, ids: &Tensor, state: &Tensor, scale: f32) -> Result<()> {
        ops::embed(self, out, table, ids, state, scale)
    }

    fn rms_norm(&self, out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        ops::rms_norm(self, out, x, weight, eps)
    }

    fn add_rms_norm(&self, out: &Tensor, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        ops::add_rms_norm(self, out, residual, x, weight, eps)
    }

    fn linear(&self, out: &Tensor, x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<()> {
        let matrix = checked(out, x, w, bias);
        if self.invariant() {
            return ops::linear::linear(self, (out, x), matrix, bias);
        }
        if self.device.mode == NumericMode::Fast {
            let few = ops::linear_few::linear(self, (out, x), matrix, bias);
            if let Some(done) = few.or_else(|| ops::linear_mid::linear(self, (out, x), matrix, bias)) {
                return done;
            }
        }
        let product = self.product(out, x, w, bias)?;
        self.device.context.bind()?;
        if product.search == Search::Exact {
            return self.multiply(&product);
        }
        let (parts, whole) = (CudaMatrix::of(w).parts(), [product.shape.1]);
        // The library takes no biases and outputs that start in the middle of a vector; no model has such parts.
        let fit = parts.iter().all(|rows| rows.is_multiple_of(8));
        self.parts(&product, if fit { parts } else { &whole })?;
        if out.dtype() == DType::F32 { ops::round(self, out, x.dtype()) } else { Ok(()) }
    }

    fn norm_linear(&self, args: &NormLinear<'_>) -> Result<Sum> {
        if self.device.mode != NumericMode::Fast {
            return norm_linear_in_parts(self, args);
        }
        let few = |args: &NormLinear<'_>| ops::linear_few::norm_linear(self, args, CudaMatrix::of(args.w));
        // Without a sum nothing moves.
        let moved = if args.add.is_some() { Sum::Moved } else { Sum::InPlace };
        if let Some(done) = few(args) {
            return done.map(|()| moved);
        }
        let Then::Gate(out, gate_up, activation) = args.then else { return norm_linear_in_parts(self, args) };
        // A kernel may take it without the gate, or without the norm.
        if gate_up.rows() >= args.x.rows()
            && let Some(done) = few(&NormLinear { then: Then::Keep(gate_up), ..*args })
        {
            done.and_then(|()| self.act_mul(out, gate_up, activation))?;
            return Ok(moved);
        }
        let NormLinear { normed, w, bias, .. } = *args;
        norm_in_parts(self, args)?;
        let (ends, matrix) = ((out, normed), (CudaMatrix::of(w), bias));
        let gated = ops::linear_mid::gated(self, ends, matrix, activation);
        match gated.or_else(|| ops::linear_large::gated(self, ends, matrix, activation)) {
            Some(done) => done?,
            None => product_in_parts(self, args)?,
        }
        Ok(Sum::InPlace)
    }

    fn linear_norm_linear(&self, args: &LinearNormLinear<'_>) -> Result<Sum> {
        if self.device.mode != NumericMode::Fast {
            return linear_norm_linear_in_parts(self, args);
        }
        let matrices = (CudaMatrix::of(args.w), CudaMatrix::of(args.behind.w));
        if let Some(done) = ops::linear_mid::linear_norm_linear(self, args, matrices) {
            return done.map(|()| Sum::InPlace);
        }
        let LinearNormLinear { x, w, bias, behind } = *args;
        let Some((stream, _)) = behind.add.filter(|_| x.rows() >= ADDED_ROWS) else {
            return linear_norm_linear_in_parts(self, args);
        };
        // The library adds its product to the stream, which the norm then only reads.
        let product = Product { adds: true, ..self.product(stream, x, w, bias)? };
        self.device.context.bind()?;
        self.multiply(&product)?;
        self.norm_linear(&NormLinear { x: stream, add: None, ..behind })
    }

    fn prepare(&self, products: &[Linear<'_>]) -> Result<()> {
        // Those of the reference are chosen anew for every number of rows.
        if self.device.mode != NumericMode::Fast {
            return Ok(());
        }
        let product = |p: &Linear<'_>| Ok(Product { adds: p.adds, ..self.product(&p.out, &p.x, p.w, p.bias)? });
        let products = products.iter().map(product).collect::<Result<Vec<_>>>()?;
        self.device.context.bind()?;
        self.blas.borrow_mut().prepare(&products, self.workspace(), self.raw.cast())
    }

    fn turn(&self, table: &Tensor) -> Result<()> {
        ops::turn(self, table)
    }

    fn rope_write_kv(&self, args: &RopeWriteKv<'_>) -> Result<()> {
        ops::rope_write_kv(self, args)
    }

    fn paged_attention(&self, args: &PagedAttention<'_>) -> Result<()> {
        ops::paged_attention(self, args)
    }

    fn act_mul(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()> {
        ops::act_mul(self, out, gate_up, activation)
    }

    fn soft_cap(&self, x: &Tensor, cap: f32, act: DType) -> Result<()> {
        ops::soft_cap(self, x, (cap, act))
    }

    fn gather_rows(&self, out: &Tensor, x: &Tensor, index: &Tensor) -> Result<()> {
        ops::gather_rows(self, out, x, index)
    }

    fn copy_rows(&self, out: (&Tensor, &Tensor), x: (&Tensor, &Tensor)) -> Result<()> {
        ops::copy_rows(self, out, x)
    }

    fn mask_logits(&self, logits: &Tensor, masks: &Tensor) -> Result<()> {
        ops::mask_logits(self, logits, masks)
    }

    fn sample(&self, args: &Sample<'_>) -> Result<()> {
        ops::sample(self, args)
    }

    fn linear_sample(&self, args: &LinearSample<'_>) -> Result<()> {
        let w = checked(args.sample.logits, args.x, args.w, None);
        if self.device.mode == NumericMode::Fast && ops::linear_sample(self, args, w)? {
            return Ok(());
        }
        linear_sample_in_parts(self, args)
    }

    fn logprobs(&self, args: &Logprobs<'_>) -> Result<()> {
        ops::logprobs(self, args)
    }
}

impl CudaStream {
    /// Checked operands of a product.
    fn product(&self, out: &Tensor, x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<Product> {
        let matrix = checked(out, x, w, bias);
        let bias = match bias {
            None => None,
            Some(bias) if out.dtype() == DType::F32 => Some(bias.addr()),
            Some(bias) => Some(self.biases.narrowed(self, bias, out.dtype())?),
        };
        Ok(Product {
            shape: (x.rows(), matrix.rows(), x.cols()),
            dtypes: (x.dtype(), out.dtype()),
            out: out.addr(),
            x: x.addr(),
            w: matrix.addr(),
            bias,
            out_stride: out.cols(),
            adds: false,
            search: if self.rounds_as_reference(x.dtype()) { Search::AsReference } else { Search::Exact },
        })
    }

    /// By the library, on the calling thread's context.
    fn multiply(&self, product: &Product) -> Result<()> {
        self.blas.borrow_mut().run(product, self.workspace(), self.raw.cast())
    }

    /// The parts of a fused product one by one, as the reference knows no fused ones and shapes decide how sums are added up.
    fn parts(&self, whole: &Product, parts: &[usize]) -> Result<()> {
        let ((m, _, k), (input, output)) = (whole.shape, whole.dtypes);
        let mut done = 0;
        for rows in parts {
            let behind = |addr: u64, size: usize| addr + (done * size) as u64;
            let part = Product {
                shape: (m, *rows, k),
                out: behind(whole.out, output.size()),
                w: behind(whole.w, k * input.size()),
                bias: whole.bias.map(|bias| behind(bias, output.size())),
                ..*whole
            };
            self.multiply(&part)?;
            done += rows;
        }
        Ok(())
    }

    /// Writes the F32 tensor `x` to an address as numbers of this dtype, F16 or BF16.
    pub(super) fn convert(&self, x: &Tensor, to: (u64, DType)) -> Result<()> {
        self.device.convert.run(self, to, x)
    }
}

impl Stream for CudaStream {
    fn upload(&self, dst: &Tensor, src: &dyn HostBuffer) -> Result<()> {
        self.device.context.bind()?;
        let src = &src.bytes()[..dst.bytes()];
        // SAFETY: `Tensor::new` checked the window; the buffer stays unchanged until an event behind the copy is done.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(dst.addr(), src.as_ptr().cast(), src.len(), self.raw) };
        check(result, "copying to the device")
    }

    fn download(&self, dst: &mut dyn HostBuffer, src: &Tensor) -> Result<()> {
        self.device.context.bind()?;
        let dst = &mut dst.bytes_mut()[..src.bytes()];
        // SAFETY: as in `upload`; nobody reads the buffer before an event behind the copy is done.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src.addr(), dst.len(), self.raw) };
        check(result, "copying from the device")
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.recording.set(true);
        let graph = CudaGraph::capture(&self.device.context, self.raw, work);
        self.recording.set(false);
        Ok(Box::new(graph?))
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        self.device.context.bind()?;
        CudaGraph::of(graph).launch(self.raw)
    }

    fn record(&self) -> Result<Box<dyn Event>> {
        Ok(Box::new(self.events.record(self.raw)?))
    }
}
