//! The GPUs of one process that share a model. They meet on the device: a rank that waits for another waits in a kernel, so
//! a rank that fails in the middle of a step can only free the others by breaking off the whole exchange, which is for good.

use super::CudaDevice;
use super::driver::Context;
use super::nccl::{Comm, Nccl};
use super::stream::CudaStream;
use crate::base::{Error, ErrorKind, Result, threads};
use crate::hal::comm::{Communicator, Group};
use crate::hal::roll::{self, Roll, Rolled};
use crate::hal::{Device, Stream, Tensor};
use std::any::Any;
use std::cell::Cell;
use std::ffi::c_int;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of a device that the library takes for its own buffers.
const RANK_BYTES: usize = 512 << 20;
/// How long broken exchanges are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Rank {
    device: Option<(Arc<Context>, c_int)>,
    /// Until it is destroyed or given up.
    comm: Option<Comm>,
    /// It is in a call of the library.
    calling: bool,
}

#[derive(Debug)]
struct State {
    roll: Roll,
    ranks: Vec<Rank>,
    /// Places that are not dropped.
    places: usize,
    /// The library has let go of a broken exchange.
    freed: bool,
}

impl Rolled for State {
    fn roll(&mut self) -> &mut Roll {
        &mut self.roll
    }
}

#[derive(Debug)]
struct Shared {
    nccl: Nccl,
    state: Mutex<State>,
    changed: Condvar,
}

/// A group of GPUs that add up through NCCL, in an order of its own.
#[derive(Debug)]
pub(super) struct NcclGroup {
    shared: Arc<Shared>,
}

impl NcclGroup {
    pub(super) fn new(ranks: usize, library_dir: Option<&Path>) -> Result<Self> {
        let nccl = Nccl::load(library_dir).map_err(|e| e.within("config key \"tensor_parallel_size\""))?;
        let of_ranks = (0..ranks).map(|_| Rank::default()).collect();
        let state = State { roll: Roll::new(ranks), ranks: of_ranks, places: 0, freed: false };
        Ok(Self { shared: Arc::new(Shared { nccl, state: Mutex::new(state), changed: Condvar::new() }) })
    }
}

impl Group for NcclGroup {
    fn join(&self, rank: usize, device: &dyn Device) -> Result<Box<dyn Communicator>> {
        let any: &dyn Any = device;
        let device: &CudaDevice = any
            .downcast_ref()
            .ok_or_else(|| Error::internal("a device of another backend joins a group of CUDA devices"))?;
        let shared = &self.shared;
        shared.lock().ranks[rank].device = Some((Arc::clone(&device.context), device.ordinal));
        shared.meet()?;
        if rank == 0 {
            shared.connect().inspect_err(|e| self.fail(e))?;
        }
        shared.meet()?;
        shared.lock().places += 1;
        Ok(Box::new(NcclRank { shared: Arc::clone(shared), rank, meets: Cell::new(true) }))
    }

    fn rank_bytes(&self) -> usize {
        RANK_BYTES
    }

    fn ordered(&self) -> bool {
        false
    }

    fn fail(&self, error: &Error) {
        self.shared.fail(error);
    }

    fn give_up(&self, error: &Error) {
        self.shared.lose(&mut self.shared.lock(), error);
    }

    fn device_failed(&self, error: &Error) {
        let devices: Vec<_> = self.shared.lock().ranks.iter().filter_map(|rank| rank.device.clone()).collect();
        // A device that an error has taken does not get to where the others wait for it.
        let gone = devices.iter().any(|(context, _)| context.memory().is_err());
        if gone || error.kind == ErrorKind::DeviceLost {
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

    /// Connects the devices that have joined.
    fn connect(&self) -> Result<()> {
        let devices: Vec<_> = self.lock().ranks.iter().filter_map(|rank| rank.device.clone()).collect();
        let ordinals: Vec<_> = devices.iter().map(|device| device.1).collect();
        let _entered = devices[0].0.enter()?;
        let comms = self.nccl.connect(&ordinals)?;
        // The library leaves another context than it found.
        devices[0].0.bind()?;
        let mut state = self.lock();
        state.ranks.iter_mut().zip(comms).for_each(|(rank, comm)| rank.comm = Some(comm));
        Ok(())
    }

    fn fail(self: &Arc<Self>, error: &Error) {
        let mut state = self.lock();
        if state.roll.apart() {
            self.lose(&mut state, error);
        }
        state.roll.fail(error);
        self.changed.notify_all();
    }

    /// Breaks the exchange off: devices that wait for another go on, with whatever numbers.
    fn lose(self: &Arc<Self>, state: &mut State, error: &Error) {
        if !state.roll.lose(error, "GPUs") {
            return;
        }
        self.changed.notify_all();
        let taken = state.ranks.iter_mut().filter_map(|rank| Some((rank.calling, rank.comm.take()?)));
        let mut comms: Vec<_> = taken.collect();
        // One that is in a call may wait for its device; the last frees all.
        comms.sort_by_key(|(calling, _)| !calling);
        let comms: Vec<_> = comms.into_iter().map(|(_, comm)| comm).collect();
        let me = Arc::clone(self);
        // It waits for recorded steps to be dropped, which the caller may have to do. Without a thread it is leaked.
        let _ = threads::named("yn-abort").spawn(move || me.abort(&comms));
    }

    fn abort(&self, comms: &[Comm]) {
        let Some((last, others)) = comms.split_last() else { return };
        let context = self.lock().ranks.iter().find_map(|rank| rank.device.clone());
        let Some((context, _)) = context else { return };
        // The library would open the first GPU otherwise.
        if context.bind().is_err() {
            log::warn!("the exchange between GPUs is leaked: their context is gone");
            return;
        }
        others.iter().for_each(|comm| self.nccl.abort(*comm));
        let calling = |s: &mut State| s.ranks.iter().any(|rank| rank.calling);
        let waited = self.changed.wait_timeout_while(self.lock(), PATIENCE, calling);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let stuck = state.ranks.iter().any(|rank| rank.calling);
        drop(state);
        if stuck {
            log::warn!("the exchange between GPUs is leaked: a rank does not return from it");
            return;
        }
        self.nccl.abort(*last);
        self.lock().freed = true;
        self.changed.notify_all();
    }

    /// The communicator of a rank that calls the library; `parts` more are on their way to its device.
    fn call(&self, rank: usize, parts: u64) -> Result<Comm> {
        let mut state = self.lock();
        state.roll.check()?;
        let of_rank = &mut state.ranks[rank];
        let comm = of_rank.comm.ok_or_else(|| Error::internal("a rank adds up without a connection"))?;
        of_rank.calling = true;
        state.roll.add(rank, parts);
        Ok(comm)
    }

    fn called(&self, rank: usize) {
        self.lock().ranks[rank].calling = false;
        self.changed.notify_all();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for rank in &mut state.ranks {
            // Connected, and then another rank did not start.
            if let (Some(comm), Some((context, _))) = (rank.comm.take(), &rank.device)
                && let Ok(_entered) = context.enter()
            {
                self.nccl.abort(comm);
            }
        }
    }
}

#[derive(Debug)]
struct NcclRank {
    shared: Arc<Shared>,
    rank: usize,
    /// Before its next sum it waits on the host for all others, once they have allocated or recorded: either may wait for
    /// devices, of which none may wait for a rank that has yet to do so.
    meets: Cell<bool>,
}

impl Communicator for NcclRank {
    fn all_reduce(&self, stream: &dyn Stream, x: &Tensor) -> Result<()> {
        let stream = CudaStream::of(stream);
        let recording = stream.is_recording();
        if recording {
            self.meets.set(true);
        } else if self.meets.replace(false) {
            self.shared.meet()?;
        }
        let bound = stream.bound()?;
        let comm = self.shared.call(self.rank, u64::from(!recording))?;
        let what = (x.addr(), x.rows() * x.cols(), x.dtype());
        let result = self.shared.nccl.all_reduce(comm, what, bound.cast());
        self.shared.called(self.rank);
        result
    }

    fn begin(&self) -> Result<()> {
        let comm = self.shared.call(self.rank, 0)?;
        let fine = self.shared.nccl.async_error(comm);
        self.shared.called(self.rank);
        let mut state = self.shared.lock();
        if let Err(e) = fine {
            let e = e.within(format!("rank {}", self.rank));
            self.shared.lose(&mut state, &e);
            return Err(e);
        }
        state.roll.begin(self.rank)
    }

    fn fail(&self, error: &Error) {
        self.shared.fail(&error.clone().within(format!("rank {}", self.rank)));
    }
}

impl Drop for NcclRank {
    /// By now what was recorded with it is dropped.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.places -= 1;
        let rank = &mut state.ranks[self.rank];
        if let (Some(comm), Some((context, _))) = (rank.comm.take(), rank.device.clone()) {
            drop(state);
            if let Ok(_entered) = context.enter() {
                self.shared.nccl.destroy(comm);
            }
        } else if state.places == 0 {
            // The devices are given back behind this.
            drop(self.shared.changed.wait_timeout_while(state, PATIENCE, |s| !s.freed));
        }
    }
}
