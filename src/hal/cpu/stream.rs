//! The stream: every op runs to its end where it is called, so an event is done as soon as it exists. Shapes are asserted
//! here; the op files trust them.

use super::CpuDevice;
use super::logprobs::logprobs;
use super::mem::{Scratch, floats, ints, words};
use super::pack::PackedMatrix;
use super::rowwise::{Norm, act_mul, copy_rows, embed, gather_rows, mask_logits, soft_cap};
use super::sample::{Workspace, sample};
use super::{attention, kv, linear};
use crate::base::Result;
use crate::hal::ops::{Activation, Logprobs, PagedAttention, RopeWriteKv, SAMPLER_WORDS, Sample};
use crate::hal::{Event, HostBuffer, Matrix, Ops, Stream, Tensor};
use std::cell::RefCell;
use std::sync::{Arc, Mutex};

/// Work on one CPU device.
#[derive(Debug)]
pub(super) struct CpuStream {
    device: Arc<CpuDevice>,
    scratch: RefCell<Scratch>,
    /// One per compute thread.
    sampling: Vec<Mutex<Workspace>>,
}

impl CpuStream {
    pub(super) fn new(device: Arc<CpuDevice>) -> Self {
        let sampling = (0..device.pool.threads()).map(|_| Mutex::default()).collect();
        Self { device, scratch: RefCell::default(), sampling }
    }

    fn norm(&self, norm: &Norm) -> Result<()> {
        let shape = (norm.x.rows, norm.x.cols);
        assert_eq!((norm.out.rows, norm.out.cols), shape, "output of a norm");
        assert_eq!((norm.weight.rows, norm.weight.cols), (1, shape.1), "weight of a norm");
        if let Some(residual) = norm.residual {
            assert_eq!((residual.rows, residual.cols), shape, "residual of a norm");
        }
        norm.run(&self.device.pool, self.device.isa)
    }
}

fn packed(matrix: &Matrix) -> &PackedMatrix {
    match matrix.as_any().downcast_ref() {
        Some(packed) => packed,
        None => panic!("a weight matrix of another device was given to the CPU backend"),
    }
}

impl Ops for CpuStream {
    fn embed(&self, out: &Tensor, table: &Matrix, ids: &Tensor, state: &Tensor, scale: f32) -> Result<()> {
        let (table, ids, state) = (packed(table), ints(ids), ints(state));
        assert_eq!((out.rows(), out.cols()), (ids.rows, table_cols(table)), "output of embed");
        assert_eq!((ids.cols, state.cols), (1, SAMPLER_WORDS), "columns of ids and sampler state");
        embed(&self.device.pool, (floats(out), scale), table, ids, state)
    }

    fn rms_norm(&self, out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        self.norm(&Norm { out: floats(out), x: floats(x), residual: None, weight: floats(weight), eps })
    }

    fn add_rms_norm(&self, out: &Tensor, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        let residual = Some(floats(residual));
        self.norm(&Norm { out: floats(out), x: floats(x), residual, weight: floats(weight), eps })
    }

    fn linear(&self, out: &Tensor, x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<()> {
        assert_eq!((out.rows(), out.cols()), (x.rows(), w.rows()), "output of linear");
        assert_eq!(x.cols(), w.cols(), "columns of the input of linear");
        let bias = bias.map(floats);
        if let Some(bias) = bias {
            assert_eq!((bias.rows, bias.cols), (1, w.rows()), "bias of linear");
        }
        let scratch = &mut self.scratch.borrow_mut();
        linear::linear(&self.device.pool, self.device.isa, scratch, (floats(out), floats(x)), (packed(w), bias))
    }

    fn rope_write_kv(&self, args: &RopeWriteKv<'_>) -> Result<()> {
        kv::rope_write_kv(&self.device.pool, args)
    }

    fn paged_attention(&self, args: &PagedAttention<'_>) -> Result<()> {
        attention::paged_attention(&self.device.pool, self.device.isa, &mut self.scratch.borrow_mut(), args)
    }

    fn act_mul(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()> {
        assert_eq!((gate_up.rows(), gate_up.cols()), (out.rows(), 2 * out.cols()), "input of act_mul");
        act_mul(&self.device.pool, self.device.isa, (floats(out), floats(gate_up)), activation)
    }

    fn soft_cap(&self, x: &Tensor, cap: f32) -> Result<()> {
        soft_cap(&self.device.pool, self.device.isa, floats(x), cap)
    }

    fn gather_rows(&self, out: &Tensor, x: &Tensor, index: &Tensor) -> Result<()> {
        assert_eq!((out.rows(), out.cols()), (index.rows(), x.cols()), "output of gather_rows");
        gather_rows(&self.device.pool, floats(out), floats(x), ints(index))
    }

    fn copy_rows(&self, (out, to): (&Tensor, &Tensor), (x, from): (&Tensor, &Tensor)) -> Result<()> {
        assert_eq!((out.cols(), out.dtype()), (x.cols(), x.dtype()), "rows of copy_rows");
        assert_eq!((to.cols(), from.rows(), from.cols()), (1, to.rows(), 1), "indices of copy_rows");
        copy_rows(&self.device.pool, (words(out), ints(to)), (words(x), ints(from)))
    }

    fn mask_logits(&self, logits: &Tensor, masks: &Tensor) -> Result<()> {
        assert_eq!((masks.rows(), masks.cols()), (logits.rows(), logits.cols().div_ceil(32)), "masks of logits");
        mask_logits(&self.device.pool, floats(logits), ints(masks))
    }

    fn sample(&self, args: &Sample<'_>) -> Result<()> {
        sample(&self.device.pool, self.device.isa, &self.sampling, args)
    }

    fn logprobs(&self, args: &Logprobs<'_>) -> Result<()> {
        logprobs(&self.device.pool, self.device.isa, &self.sampling, args)
    }
}

fn table_cols(table: &PackedMatrix) -> usize {
    crate::hal::MatrixStorage::cols(table)
}

impl Stream for CpuStream {
    fn upload(&self, dst: &Tensor, src: &dyn HostBuffer) -> Result<()> {
        let src = &src.bytes()[..dst.bytes()];
        // SAFETY: `Tensor::new` checked the window; the buffer's bytes are its own and cannot overlap device memory.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst.addr() as *mut u8, src.len()) };
        Ok(())
    }

    fn download(&self, dst: &mut dyn HostBuffer, src: &Tensor) -> Result<()> {
        let dst = &mut dst.bytes_mut()[..src.bytes()];
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(src.addr() as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn record(&self) -> Result<Box<dyn Event>> {
        Ok(Box::new(Done))
    }
}

/// Everything enqueued before has already run.
#[derive(Debug)]
struct Done;

impl Event for Done {
    fn is_done(&self) -> Result<bool> {
        Ok(true)
    }
    fn wait(&self) -> Result<()> {
        Ok(())
    }
}
