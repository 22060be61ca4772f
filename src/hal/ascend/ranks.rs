//! The NPUs of one process that share a model: they add up through HCCL, on each rank's own stream. A rank that waits for another
//! waits on its device, and nothing here can break that off: where a rank fails in the middle of a step the group is given up, and
//! the library's own timeout or the watchdog ends what still waits.

use super::AscendDevice;
use super::abi::{Abi, Handle, HcclDataType, HcclReduceOp, HcclResult, ROOT_INFO_BYTES, RootInfo};
use super::context::Context;
use super::stream::AscendStream;
use crate::base::{DType, Error, ErrorKind, Result};
use crate::hal::comm::{Communicator, Group};
use crate::hal::roll::{self, Roll, Rolled};
use crate::hal::{Device, Stream, Tensor};
use std::any::Any;
use std::ptr::null_mut;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// The library has two buffers of so many MB on each device; a variable of its own says otherwise.
const BUFFER_MB: usize = 200;
const BUFFER_VARIABLE: &str = "HCCL_BUFFSIZE";
/// For people.
const NPUS: &str = "NPUs";

#[derive(Debug)]
struct State {
    roll: Roll,
    root: Option<Box<RootInfo>>,
}

impl Rolled for State {
    fn roll(&mut self) -> &mut Roll {
        &mut self.roll
    }
}

#[derive(Debug)]
struct Shared {
    ranks: u32,
    state: Mutex<State>,
    changed: Condvar,
}

/// A group of NPUs that add up through HCCL, in an order of its own.
#[derive(Debug)]
pub(super) struct HcclGroup {
    shared: Arc<Shared>,
}

/// The library's calls.
#[derive(Clone, Copy)]
struct Hccl {
    root_info: unsafe extern "C" fn(*mut RootInfo) -> HcclResult,
    init: unsafe extern "C" fn(u32, *const RootInfo, u32, *mut Handle) -> HcclResult,
    all_reduce: unsafe extern "C" fn(Handle, Handle, u64, HcclDataType, HcclReduceOp, Handle, Handle) -> HcclResult,
    destroy: unsafe extern "C" fn(Handle) -> HcclResult,
    async_error: unsafe extern "C" fn(Handle, *mut HcclResult) -> HcclResult,
}

impl Hccl {
    fn of(abi: &Abi) -> Result<Self> {
        let all = || {
            Some(Self {
                root_info: abi.HcclGetRootInfo?,
                init: abi.HcclCommInitRootInfo?,
                all_reduce: abi.HcclAllReduce?,
                destroy: abi.HcclCommDestroy?,
                async_error: abi.HcclGetCommAsyncError?,
            })
        };
        let text = "no HCCL (libhccl.so), with which several NPUs share a model, beside the Ascend runtime; install all of CANN";
        all().ok_or_else(|| Error::new(ErrorKind::Device, text))
    }
}

fn check(context: &Context, result: HcclResult, what: &str) -> Result<()> {
    if result == HcclResult::SUCCESS {
        return Ok(());
    }
    // The runtime keeps the last words of all of its libraries.
    let e = context.check(result.0, what).err().unwrap_or_else(|| Error::internal(what.to_owned()));
    Err(Error::new(ErrorKind::Device, format!("HCCL: {}", e.message)))
}

impl HcclGroup {
    pub(super) fn new(abi: &Abi, ranks: usize) -> Result<Self> {
        Hccl::of(abi).map_err(|e| e.within("config key \"tensor_parallel_size\""))?;
        let state = Mutex::new(State { roll: Roll::new(ranks), root: None });
        Ok(Self { shared: Arc::new(Shared { ranks: ranks as u32, state, changed: Condvar::new() }) })
    }
}

impl Group for HcclGroup {
    fn join(&self, rank: usize, device: &dyn Device) -> Result<Box<dyn Communicator>> {
        let any: &dyn Any = device;
        let device: &AscendDevice = any
            .downcast_ref()
            .ok_or_else(|| Error::internal("a device of another backend joins a group of Ascend devices"))?;
        let (context, shared) = (&device.context, &self.shared);
        let hccl = Hccl::of(context.abi())?;
        let _entered = context.enter()?;
        if rank == 0 {
            let mut root = Box::new(RootInfo([0; ROOT_INFO_BYTES]));
            // SAFETY: `root` is writable.
            let made = check(context, unsafe { (hccl.root_info)(&raw mut *root) }, "introducing ranks");
            made.inspect_err(|e| self.fail(e))?;
            shared.lock().root = Some(root);
        }
        shared.meet()?;
        let root = shared.lock().root.clone();
        let root = root.ok_or_else(|| Error::internal("ranks meet without an introduction"))?;
        let mut comm = null_mut();
        // SAFETY: rank 0's introduction; `comm` is writable. The call waits for all ranks, which are on their way.
        let made = unsafe { (hccl.init)(shared.ranks, &raw const *root, rank as u32, &raw mut comm) };
        check(context, made, "connecting NPUs").inspect_err(|e| self.fail(e))?;
        Ok(Box::new(HcclRank { shared: Arc::clone(shared), rank, comm, hccl, context: Arc::clone(context) }))
    }

    fn rank_bytes(&self) -> usize {
        let set = std::env::var(BUFFER_VARIABLE).ok().and_then(|mb| mb.trim().parse().ok());
        2 * (set.unwrap_or(BUFFER_MB) << 20)
    }

    fn ordered(&self) -> bool {
        false
    }

    fn fail(&self, error: &Error) {
        self.shared.fail(error);
    }

    fn give_up(&self, error: &Error) {
        self.shared.lock().roll.lose(error, NPUS);
        self.shared.changed.notify_all();
    }

    fn device_failed(&self, error: &Error) {
        if error.kind == ErrorKind::DeviceLost {
            self.give_up(error);
        }
    }

    fn leave(&self, rank: usize) {
        self.shared.lock().roll.leave(rank);
    }

    fn reset(&self) -> Option<Error> {
        self.shared.lock().roll.reset()
    }

    fn lost(&self) -> Option<Error> {
        self.shared.lock().roll.lost()
    }

    fn late(&self) -> Vec<usize> {
        self.shared.lock().roll.late()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        roll::lock(&self.state)
    }

    fn meet(&self) -> Result<()> {
        roll::meet(&self.state, &self.changed)
    }

    fn fail(&self, error: &Error) {
        let roll = &mut self.lock().roll;
        if roll.apart() {
            roll.lose(error, NPUS);
        }
        roll.fail(error);
        self.changed.notify_all();
    }
}

#[derive(Debug)]
struct HcclRank {
    shared: Arc<Shared>,
    rank: usize,
    comm: Handle,
    hccl: Hccl,
    context: Arc<Context>,
}

impl std::fmt::Debug for Hccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hccl")
    }
}

// SAFETY: the communicator is used by one thread at a time, whichever has the rank's stream.
unsafe impl Send for HcclRank {}

impl Communicator for HcclRank {
    fn all_reduce(&self, stream: &dyn Stream, x: &Tensor) -> Result<()> {
        let dtype = match x.dtype() {
            DType::F16 => HcclDataType::FP16,
            DType::F32 => HcclDataType::FP32,
            DType::Bf16 => HcclDataType::BFP16,
            other => return Err(Error::internal(format!("ranks add up {other}; expected f32, f16 or bf16"))),
        };
        let stream = AscendStream::of(stream).bound()?;
        {
            let roll = &mut self.shared.lock().roll;
            roll.check()?;
            roll.add(self.rank, 1);
        }
        let (at, count) = (x.addr() as Handle, (x.rows() * x.cols()) as u64);
        // SAFETY: a live communicator and a live stream of its device; the memory is a tensor's there, which holds `count` elements
        // and outlives what is enqueued.
        let added = unsafe { (self.hccl.all_reduce)(at, at, count, dtype, HcclReduceOp::SUM, self.comm, stream) };
        check(&self.context, added, "adding up what ranks computed")
    }

    fn begin(&self) -> Result<()> {
        self.shared.lock().roll.check()?;
        let mut found = HcclResult::SUCCESS;
        // SAFETY: a live communicator; `found` is writable.
        let asked = unsafe { (self.hccl.async_error)(self.comm, &raw mut found) };
        let fine = check(&self.context, asked, "HcclGetCommAsyncError")
            .and_then(|()| check(&self.context, found, "exchange between NPUs"));
        let roll = &mut self.shared.lock().roll;
        if let Err(e) = fine {
            let e = e.within(format!("rank {}", self.rank));
            roll.lose(&e, NPUS);
            return Err(e);
        }
        roll.begin(self.rank)
    }

    fn fail(&self, error: &Error) {
        self.shared.fail(&error.clone().within(format!("rank {}", self.rank)));
    }
}

impl Drop for HcclRank {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // Nothing of the exchange may be under way.
        let _ = self.context.finish();
        // SAFETY: made in `join`, destroyed once.
        let _ = unsafe { (self.hccl.destroy)(self.comm) };
    }
}
