//! How the ranks of one model add up what each of them computed.

use crate::base::{DType, Error, Result};
use crate::hal::{Device, HostBuffer, Stream, Tensor};
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// One rank's place in a group. Used by the thread that owns the rank's stream.
pub trait Communicator: Send + Debug {
    /// `x` becomes the sum of all ranks' `x`, activations of one shape, once what is enqueued on `stream` has run. Every
    /// rank of the group calls this equally often; a rank that cannot go on makes it an error for all. Sums repeat bit for
    /// bit; see [`Group::ordered`] for what they depend on.
    fn all_reduce(&self, stream: &dyn Stream, x: &Tensor) -> Result<()>;
    /// Told before this rank enqueues its part of a step, recorded or not. An error when another rank has failed: nothing
    /// of the step may be enqueued then.
    fn begin(&self) -> Result<()> {
        Ok(())
    }
    /// This rank does not get to the end of what it has begun: whoever waits for it, this rank's own device too, fails.
    fn fail(&self, error: &Error);
}

/// Where the ranks of one model meet: made by [`Device::group`], shared by all of them and by who watches over them.
pub trait Group: Send + Sync + Debug {
    /// The place of `rank`, whose tensors are on `device`. May wait until all ranks join, so they do it side by side.
    fn join(&self, rank: usize, device: &dyn Device) -> Result<Box<dyn Communicator>>;
    /// Bytes of its device's memory that each rank takes to meet the others.
    fn rank_bytes(&self) -> usize;
    /// Whether sums are added in the order of ranks, so that their bits do not depend on the shape of what is added.
    fn ordered(&self) -> bool;
    /// Wakes and fails every rank that waits or will wait, until [`Self::reset`]. The first failure counts.
    fn fail(&self, error: &Error);
    /// The same for good, whatever the ranks' devices are at.
    fn give_up(&self, error: &Error) {
        self.fail(error);
    }
    /// A rank's step failed on its device. Where other devices may wait for that one, it is a failure for good.
    fn device_failed(&self, error: &Error) {
        let _ = error;
    }
    /// `rank` has enqueued its part of the step. Where ranks meet on the host, it is a failure of all when somebody waits
    /// for it, now or before [`Self::reset`].
    fn leave(&self, rank: usize);
    /// Begins anew and takes the first failure since the last time. No rank may be inside a call.
    fn reset(&self) -> Option<Error>;
    /// Why the ranks can never meet again, if so.
    fn lost(&self) -> Option<Error> {
        None
    }
    /// The ranks that others wait for, as far as the host can tell: they neither wait themselves nor have left. Empty when
    /// nobody waits or has left.
    fn late(&self) -> Vec<usize>;
}

/// Ranks as bits.
type Ranks = u64;

#[derive(Debug, Default)]
struct Meeting {
    /// Who waits for the others.
    present: Ranks,
    /// Who has ended its step.
    left: Ranks,
    round: u64,
    failed: Option<Error>,
}

impl Meeting {
    fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| error.clone());
    }
}

#[derive(Debug)]
struct Shared {
    meeting: Mutex<Meeting>,
    changed: Condvar,
    /// What each rank brings.
    parts: Vec<RwLock<Vec<f32>>>,
}

/// The ranks of one process, which meet in host memory and bring F32. Sums are added in the order of ranks whoever comes
/// first.
#[derive(Debug, Clone)]
pub struct LocalGroup {
    shared: Arc<Shared>,
    elements: usize,
}

impl LocalGroup {
    /// Most ranks of a group.
    pub const MAX_RANKS: usize = Ranks::BITS as usize;

    /// For `ranks` ranks that reduce up to `elements` elements at once.
    pub fn new(ranks: usize, elements: usize) -> Self {
        assert!((1..=Self::MAX_RANKS).contains(&ranks), "{ranks} ranks");
        let parts = (0..ranks).map(|_| RwLock::default()).collect();
        let shared = Shared { meeting: Mutex::default(), changed: Condvar::new(), parts };
        Self { shared: Arc::new(shared), elements }
    }
}

impl Group for LocalGroup {
    fn join(&self, rank: usize, device: &dyn Device) -> Result<Box<dyn Communicator>> {
        let host = Mutex::new(device.host_buffer(self.elements * DType::F32.size())?);
        let mut part = self.shared.parts[rank].write().unwrap_or_else(PoisonError::into_inner);
        part.try_reserve_exact(self.elements).map_err(|_| {
            Error::no_memory(format!(
                "cannot allocate {} elements in which rank {rank} meets the others",
                self.elements
            ))
        })?;
        drop(part);
        Ok(Box::new(LocalRank { shared: Arc::clone(&self.shared), rank, host }))
    }

    fn rank_bytes(&self) -> usize {
        2 * self.elements * DType::F32.size()
    }

    fn ordered(&self) -> bool {
        true
    }

    fn fail(&self, error: &Error) {
        self.shared.fail(error);
    }

    fn leave(&self, rank: usize) {
        let mut meeting = self.shared.lock();
        meeting.left |= 1 << rank;
        if meeting.present != 0 {
            let error = parted(rank, meeting.present);
            meeting.fail(&error);
            self.shared.changed.notify_all();
        }
    }

    fn reset(&self) -> Option<Error> {
        let mut meeting = self.shared.lock();
        (meeting.present, meeting.left) = (0, 0);
        meeting.failed.take()
    }

    fn late(&self) -> Vec<usize> {
        let meeting = self.shared.lock();
        let known = meeting.present | meeting.left;
        let all = 0..self.shared.parts.len();
        if known == 0 { Vec::new() } else { all.filter(|rank| known & 1 << rank == 0).collect() }
    }
}

fn parted(left: usize, waiting: Ranks) -> Error {
    Error::internal(format!(
        "rank {left} has ended the step where rank {} waits for it: they do not run the same step",
        waiting.trailing_zeros()
    ))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: &Error) {
        self.lock().fail(error);
        self.changed.notify_all();
    }

    /// Returns once all ranks are here, or an error once one has failed.
    fn meet(&self, rank: usize) -> Result<()> {
        let mut meeting = self.lock();
        let round = meeting.round;
        meeting.present |= 1 << rank;
        if meeting.left != 0 {
            let error = parted(meeting.left.trailing_zeros() as usize, 1 << rank);
            meeting.fail(&error);
            self.changed.notify_all();
        } else if meeting.present.count_ones() as usize == self.parts.len() {
            meeting.present = 0;
            meeting.round += 1;
            self.changed.notify_all();
        }
        let waits = |m: &mut Meeting| m.round == round && m.failed.is_none();
        let meeting = self.changed.wait_while(meeting, waits).unwrap_or_else(PoisonError::into_inner);
        match &meeting.failed {
            Some(e) => Err(e.clone().within("another rank failed")),
            None => Ok(()),
        }
    }

    /// Whether all ranks have brought equally much; if not it is a failure of all.
    fn check_parts(&self, parts: &[RwLockReadGuard<'_, Vec<f32>>]) -> Result<()> {
        let first = parts[0].len();
        let Some(odd) = parts.iter().position(|part| part.len() != first) else { return Ok(()) };
        let error = Error::internal(format!(
            "rank {odd} adds {} values to the {first} of rank 0: they do not run the same step",
            parts[odd].len()
        ));
        self.fail(&error);
        Err(error)
    }
}

#[derive(Debug)]
struct LocalRank {
    shared: Arc<Shared>,
    rank: usize,
    host: Mutex<Box<dyn HostBuffer>>,
}

impl Communicator for LocalRank {
    fn fail(&self, error: &Error) {
        self.shared.fail(&error.clone().within(format!("rank {}", self.rank)));
    }

    fn all_reduce(&self, stream: &dyn Stream, x: &Tensor) -> Result<()> {
        assert_eq!(x.dtype(), DType::F32, "activations of ranks");
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        stream.download(host.as_mut(), x)?;
        stream.record()?.wait()?;
        {
            let mut part = self.shared.parts[self.rank].write().unwrap_or_else(PoisonError::into_inner);
            part.clear();
            let words = host.bytes()[..x.bytes()].chunks_exact(4);
            part.extend(words.map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])));
        }
        self.shared.meet(self.rank)?;
        let parts = self.shared.parts.iter().map(|p| p.read().unwrap_or_else(PoisonError::into_inner));
        let parts: Vec<_> = parts.collect();
        self.shared.check_parts(&parts)?;
        for (i, place) in host.bytes_mut()[..x.bytes()].chunks_exact_mut(4).enumerate() {
            let sum = parts[1..].iter().fold(parts[0][i], |sum, part| sum + part[i]);
            place.copy_from_slice(&sum.to_ne_bytes());
        }
        drop(parts);
        stream.upload(x, host.as_ref())?;
        stream.record()?.wait()?;
        // Nobody may bring the next part before all have read this one.
        self.shared.meet(self.rank)
    }
}
