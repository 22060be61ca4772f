//! A stream of a device: copies, calls of operators, and the ops in order.

use super::AscendDevice;
use super::abi::{Abi, AclOpExecutor, Handle, MemcpyKind, Op, Status};
use super::context::{Context, Place};
use super::event::Events;
use super::host::Host;
use super::kernels::Kernel;
use super::memory::PinnedMemory;
use super::mirror::Mirror;
use super::ops::paged::Paged;
use super::ops::{self};
use super::region::Region;
use crate::base::{DType, Result};
use crate::hal::ops::{Activation, Linear, Logprobs, PagedAttention, RopeWriteKv, Sample};
use crate::hal::{Event, HostBuffer, Matrix, Ops, Stream, Tensor};
use std::any::Any;
use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

/// Memory that operators ask for between their phases. It grows in the warm-up; what comes later may need more for longer contexts.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;
/// Temporary tensors inside of an op.
pub(super) const SCRATCH_BYTES: usize = 4 << 20;
/// Page-locked memory that integers and small results go through.
const STAGING_BYTES: usize = 1 << 20;
const STAGING_ALIGN: usize = 64;

#[derive(Debug)]
pub(super) struct AscendStream {
    raw: Handle,
    events: Arc<Events>,
    staging: RefCell<Staging>,
    mirror: RefCell<Mirror>,
    workspace: Region,
    scratch: Region,
    pub(super) paged: Paged,
    /// Where ops run that the device has no operators for.
    pub(super) host: Host,
    pub(super) device: Arc<AscendDevice>,
}

// SAFETY: the runtime takes calls on a stream from any thread that has its device; this one has one user at a time.
unsafe impl Send for AscendStream {}

/// Page-locked memory from which copies are under way.
#[derive(Debug, Default)]
struct Staging {
    memory: Option<PinnedMemory>,
    used: usize,
}

impl AscendStream {
    pub(super) fn new(device: Arc<AscendDevice>) -> Result<Self> {
        let context = &device.context;
        let (workspace, scratch) = (
            Region::new(context, WORKSPACE_BYTES, "workspace")?,
            Region::new(context, SCRATCH_BYTES, "scratch memory")?,
        );
        let (paged, host) = (Paged::new(context)?, Host::new(&device.host)?);
        let events = Arc::new(Events::new(context));
        let mut raw = null_mut();
        let entered = context.enter()?;
        // SAFETY: `raw` is writable.
        context.check(unsafe { (context.abi().aclrtCreateStream)(&raw mut raw) }, "making a stream")?;
        drop(entered);
        let (staging, mirror) = (RefCell::default(), RefCell::default());
        Ok(Self { raw, events, staging, mirror, workspace, scratch, paged, host, device })
    }

    /// The Ascend stream behind `stream`. Panics on another backend's.
    pub(super) fn of(stream: &dyn Stream) -> &Self {
        let any: &dyn Any = stream;
        match any.downcast_ref() {
            Some(stream) => stream,
            None => panic!("a stream of another device was given to the Ascend backend"),
        }
    }

    pub(super) fn kernel(&self, name: &'static str, dtype: DType) -> Option<Kernel> {
        self.device.kernels.find(name, dtype)
    }

    pub(super) fn abi(&self) -> &Abi {
        self.context().abi()
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.device.context
    }

    /// The runtime's handle, with the device made the thread's.
    pub(super) fn bound(&self) -> Result<Handle> {
        self.context().bind()?;
        Ok(self.raw)
    }

    /// Waits for everything that was enqueued.
    pub(super) fn finish(&self) -> Result<()> {
        self.context().bind()?;
        // SAFETY: a live stream.
        let waited = unsafe { (self.abi().aclrtSynchronizeStream)(self.raw) };
        self.staging.borrow_mut().used = 0;
        self.context().check_wait(waited, "work on the device")
    }

    /// Room for temporary tensors of so many bytes, good until the next call. An op calls it once: what is enqueued later may
    /// use the same memory, as it runs later.
    pub(super) fn scratch<const N: usize>(&self, bytes: [usize; N]) -> Result<[u64; N]> {
        let mut end = 0;
        let places = bytes.map(|bytes| {
            let at = end;
            end += ops::piece(bytes);
            at
        });
        let from = self.scratch.at_least(self, end)?;
        Ok(places.map(|at| from + at as u64))
    }

    /// Calls an operator: `plan` has its first phase, the arguments behind the operator's own come last.
    pub(super) fn call<F: Copy>(
        &self,
        op: &Op<F>,
        plan: impl FnOnce(F, *mut u64, *mut *mut AclOpExecutor) -> Status,
    ) -> Result<()> {
        let (bytes, executor) = self.planned(op, plan)?;
        let workspace = match self.workspace_for(bytes) {
            Ok(workspace) => workspace,
            Err(e) => {
                self.forget(executor);
                return Err(e.within(format!("workspace of {}", op.name)));
            }
        };
        // SAFETY: what phase 1 made, used once; the workspace is as large as it asked for, and is used by one operator at a time.
        let status = unsafe { (op.run)(workspace, bytes, executor, self.raw) };
        self.context().check(status, op.name)
    }

    /// Phase 1 alone: whether the operator takes these arguments, and room for the workspace it would want.
    pub(super) fn try_plan<F: Copy>(
        &self,
        op: &Op<F>,
        plan: impl FnOnce(F, *mut u64, *mut *mut AclOpExecutor) -> Status,
    ) -> Result<()> {
        let (bytes, executor) = self.planned(op, plan)?;
        self.forget(executor);
        self.workspace_for(bytes).map(|_| ())
    }

    fn planned<F: Copy>(
        &self,
        op: &Op<F>,
        plan: impl FnOnce(F, *mut u64, *mut *mut AclOpExecutor) -> Status,
    ) -> Result<(u64, *mut AclOpExecutor)> {
        self.context().bind()?;
        let (mut bytes, mut executor) = (0, null_mut());
        let status = plan(op.plan, &raw mut bytes, &raw mut executor);
        self.context().check(status, op.name)?;
        Ok((bytes, executor))
    }

    fn workspace_for(&self, bytes: u64) -> Result<*mut c_void> {
        Ok(if bytes == 0 { null_mut() } else { self.workspace.at_least(self, bytes as usize)? as *mut c_void })
    }

    /// Lets go of an executor whose second phase does not come. Only what may be used again can be freed by hand.
    fn forget(&self, executor: *mut AclOpExecutor) {
        if let (Some(keep), Some(free)) = (self.abi().aclSetAclOpExecutorRepeatable, self.abi().aclDestroyAclOpExecutor)
        {
            // SAFETY: made by phase 1 a moment ago, and not used since.
            let _ = unsafe { (keep(executor), free(executor)) };
        }
    }

    /// `bytes` of staging memory, which nothing uses before the next wait.
    fn staged(&self, bytes: usize) -> Result<*mut u8> {
        let need = bytes.next_multiple_of(STAGING_ALIGN);
        let full = |staging: &Staging| staging.memory.as_ref().is_none_or(|m| staging.used + need > m.bytes().len());
        if full(&self.staging.borrow()) {
            self.finish()?;
        }
        let mut staging = self.staging.borrow_mut();
        if full(&staging) {
            staging.memory = None;
            staging.memory = Some(PinnedMemory::new(self.context(), need.max(STAGING_BYTES).next_power_of_two())?);
        }
        let at = staging.used;
        staging.used += need;
        let memory = staging.memory.as_mut().map(|m| m.bytes_mut().as_mut_ptr());
        Ok(memory.unwrap_or(null_mut()).wrapping_add(at))
    }

    fn copy(&self, (to, from): (Handle, *const c_void), bytes: usize, kind: MemcpyKind) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `bytes` of memory on both sides, of the kind that is named: tensors are windows of live allocations, and host
        // memory is page-locked and left alone until the stream has passed the copy.
        let copied = unsafe { (self.abi().aclrtMemcpyAsync)(to, bytes, from, bytes, kind, self.raw) };
        self.context().check(copied, "copying")
    }

    /// Writes `bytes` to device memory at `addr`.
    pub(super) fn put_at(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        self.context().bind()?;
        let from = self.staged(bytes.len())?;
        // SAFETY: that much staging memory, which nothing else uses.
        unsafe { from.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.copy((addr as Handle, from.cast()), bytes.len(), MemcpyKind::HOST_TO_DEVICE)
    }

    /// The same for a whole tensor.
    pub(super) fn put(&self, tensor: &Tensor, bytes: &[u8]) -> Result<()> {
        assert_eq!(tensor.bytes(), bytes.len(), "bytes of a tensor");
        self.put_at(tensor.addr(), bytes)?;
        self.remember(tensor, bytes);
        Ok(())
    }

    /// What stands at these addresses on the device, so many bytes at each, one behind the other. Waits.
    pub(super) fn fetch_all(&self, pieces: &[(u64, usize)]) -> Result<Vec<u8>> {
        self.context().bind()?;
        let bytes = pieces.iter().map(|piece| piece.1).sum::<usize>();
        let to = self.staged(bytes)?;
        let mut at = 0;
        for (addr, bytes) in pieces {
            let (to, from) = (to.wrapping_add(at).cast(), *addr as *const c_void);
            self.copy((to, from), *bytes, MemcpyKind::DEVICE_TO_HOST)?;
            at += bytes;
        }
        self.finish()?;
        // SAFETY: that much staging memory, written by the copies that were waited for; nothing else uses it.
        Ok(unsafe { std::slice::from_raw_parts(to, bytes) }.to_vec())
    }

    pub(super) fn fetch(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        self.fetch_all(&[(tensor.addr(), tensor.bytes())])
    }

    /// Copies within the device.
    pub(super) fn move_bytes(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.context().bind()?;
        self.copy((to as Handle, from as *const c_void), bytes, MemcpyKind::DEVICE_TO_DEVICE)
    }

    fn place(&self, tensor: &Tensor) -> Option<(Place, usize)> {
        let place = self.context().heap.find(tensor.addr(), tensor.bytes())?;
        Some((place, (tensor.addr() - place.addr) as usize))
    }

    /// The stream writes `bytes` to `tensor`.
    pub(super) fn remember(&self, tensor: &Tensor, bytes: &[u8]) {
        let Some((place, at)) = self.place(tensor) else { return };
        let mut mirror = self.mirror.borrow_mut();
        match tensor.dtype() {
            DType::I32 => mirror.remember(place, at, bytes),
            _ => mirror.forget(place, at..at + bytes.len()),
        }
    }

    /// What the stream has last written to an I32 tensor; asked of the device, and waited for, where that is not known.
    pub(super) fn ints(&self, tensor: &Tensor) -> Result<Vec<i32>> {
        assert_eq!(tensor.dtype(), DType::I32, "integers of {}x{}", tensor.rows(), tensor.cols());
        let numbers =
            |bytes: &[u8]| bytes.chunks_exact(4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
        if let Some((place, at)) = self.place(tensor)
            && let Some(known) = self.mirror.borrow().get(place, at..at + tensor.bytes())
        {
            return Ok(numbers(known));
        }
        Ok(numbers(&self.fetch(tensor)?))
    }

    /// Changes with everything that [`Self::ints`] may answer otherwise.
    pub(super) fn version(&self) -> u64 {
        self.mirror.borrow().version()
    }
}

impl Drop for AscendStream {
    fn drop(&mut self) {
        let (_entered, abi) = (self.context().enter(), self.abi());
        // SAFETY: created in `new`, destroyed once; work under way ends before its memory is freed.
        let _ = unsafe { ((abi.aclrtSynchronizeStream)(self.raw), (abi.aclrtDestroyStream)(self.raw)) };
    }
}

impl Ops for AscendStream {
    fn embed(&self, out: &Tensor, table: &Matrix, ids: &Tensor, state: &Tensor, scale: f32) -> Result<()> {
        ops::embed(self, (out, scale), table, (ids, state))
    }

    fn rms_norm(&self, out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        ops::rms_norm(self, (out, x), (weight, eps))
    }

    fn add_rms_norm(&self, out: &Tensor, residual: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        ops::add_rms_norm(self, out, (residual, x), (weight, eps))
    }

    fn linear(&self, out: &Tensor, x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<()> {
        ops::linear(self, (out, x), (w, bias))
    }

    fn prepare(&self, products: &[Linear<'_>]) -> Result<()> {
        ops::prepare(self, products)
    }

    fn rope_write_kv(&self, args: &RopeWriteKv<'_>) -> Result<()> {
        ops::rope_write_kv(self, args)
    }

    fn paged_attention(&self, args: &PagedAttention<'_>) -> Result<()> {
        ops::paged_attention(self, args)
    }

    fn act_mul(&self, out: &Tensor, gate_up: &Tensor, activation: Activation) -> Result<()> {
        ops::act_mul(self, (out, gate_up), activation)
    }

    fn soft_cap(&self, x: &Tensor, cap: f32, act: DType) -> Result<()> {
        ops::soft_cap(self, x, (cap, act))
    }

    fn gather_rows(&self, out: &Tensor, x: &Tensor, index: &Tensor) -> Result<()> {
        ops::gather_rows(self, (out, x), index)
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

    fn logprobs(&self, args: &Logprobs<'_>) -> Result<()> {
        ops::logprobs(self, args)
    }
}

impl Stream for AscendStream {
    fn upload(&self, dst: &Tensor, src: &dyn HostBuffer) -> Result<()> {
        self.context().bind()?;
        let src = &src.bytes()[..dst.bytes()];
        self.copy((dst.addr() as Handle, src.as_ptr().cast()), src.len(), MemcpyKind::HOST_TO_DEVICE)?;
        self.remember(dst, src);
        Ok(())
    }

    fn download(&self, dst: &mut dyn HostBuffer, src: &Tensor) -> Result<()> {
        self.context().bind()?;
        let dst = &mut dst.bytes_mut()[..src.bytes()];
        self.copy((dst.as_mut_ptr().cast(), src.addr() as *const c_void), dst.len(), MemcpyKind::DEVICE_TO_HOST)
    }

    fn record(&self) -> Result<Box<dyn Event>> {
        let stream = self.bound()?;
        Ok(Box::new(self.events.record(stream)?))
    }
}
