//! How the ranks of one model add up what each of them computed.

use crate::base::{DType, Error, ErrorKind, Result};
use crate::hal::{Device, HostBuffer, Stream, Tensor};
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

/// One rank's place in a group. Used by the thread that owns the rank's stream.
pub trait Communicator: Send + Debug {
    /// `x` becomes the sum of all ranks' `x`, F32 of one shape, added in the order of ranks whoever comes first. Every rank
    /// of the group calls this equally often; a rank that cannot go on makes it an error for all.
    fn all_reduce(&self, stream: &dyn Stream, x: &Tensor) -> Result<()>;
}

#[derive(Debug, Default)]
struct Meeting {
    arrived: usize,
    round: u64,
    failed: Option<Error>,
}

#[derive(Debug)]
struct Shared {
    meeting: Mutex<Meeting>,
    changed: Condvar,
    /// What each rank brings.
    parts: Vec<RwLock<Vec<f32>>>,
}

/// The ranks of one process, which meet in host memory.
#[derive(Debug, Clone)]
pub struct LocalGroup {
    shared: Arc<Shared>,
    elements: usize,
}

impl LocalGroup {
    /// For `ranks` ranks that reduce up to `elements` elements at once.
    pub fn new(ranks: usize, elements: usize) -> Self {
        let parts = (0..ranks).map(|_| RwLock::new(Vec::with_capacity(elements))).collect();
        let shared = Shared { meeting: Mutex::default(), changed: Condvar::new(), parts };
        Self { shared: Arc::new(shared), elements }
    }

    /// The place of `rank`, whose tensors are on `device`.
    pub fn join(&self, rank: usize, device: &dyn Device) -> Result<Box<dyn Communicator>> {
        let host = Mutex::new(device.host_buffer(self.elements * DType::F32.size())?);
        Ok(Box::new(LocalRank { shared: Arc::clone(&self.shared), rank, host }))
    }

    /// Wakes and fails every rank that waits or will wait, until [`Self::reset`].
    pub fn fail(&self, error: &Error) {
        let mut meeting = self.shared.lock();
        meeting.failed.get_or_insert_with(|| error.clone());
        self.shared.changed.notify_all();
    }

    /// Takes the first failure since the last reset. No rank may be inside a call.
    pub fn reset(&self) -> Option<Error> {
        let mut meeting = self.shared.lock();
        meeting.arrived = 0;
        meeting.failed.take()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once all ranks are here, or an error once one has failed.
    fn meet(&self) -> Result<()> {
        let mut meeting = self.lock();
        let round = meeting.round;
        meeting.arrived += 1;
        if meeting.arrived == self.parts.len() {
            meeting.arrived = 0;
            meeting.round += 1;
            self.changed.notify_all();
        }
        let waits = |m: &mut Meeting| m.round == round && m.failed.is_none();
        let meeting = self.changed.wait_while(meeting, waits).unwrap_or_else(PoisonError::into_inner);
        match &meeting.failed {
            Some(e) => Err(Error::new(ErrorKind::Device, format!("another rank failed: {e}"))),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct LocalRank {
    shared: Arc<Shared>,
    rank: usize,
    host: Mutex<Box<dyn HostBuffer>>,
}

impl Communicator for LocalRank {
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
        self.shared.meet()?;
        let parts = self.shared.parts.iter().map(|p| p.read().unwrap_or_else(PoisonError::into_inner));
        let parts: Vec<_> = parts.collect();
        for (i, place) in host.bytes_mut()[..x.bytes()].chunks_exact_mut(4).enumerate() {
            let sum = parts[1..].iter().fold(parts[0][i], |sum, part| sum + part[i]);
            place.copy_from_slice(&sum.to_ne_bytes());
        }
        drop(parts);
        stream.upload(x, host.as_ref())?;
        stream.record()?.wait()?;
        // Nobody may bring the next part before all have read this one.
        self.shared.meet()
    }
}
