//! What a thread that reads weights does with a piece: into a slot, and from there to the device.

use super::driver::{Context, check};
use super::load::host_bytes;
use super::memory::PinnedMemory;
use super::slots::{SLOTS, Slots};
use crate::base::config::Placement;
use crate::base::metrics::Cell;
use crate::base::{Error, Result};
use crate::hal::HostBuffer;
use crate::hal::readers::{Piece, Reader};
use cudarc::driver::sys::{self, CUresult};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a slot's copy is polled for: all slots of 16 readers are copied in less.
const PATIENCE: Duration = Duration::from_millis(1);
/// Pauses between two polls, a microsecond or two.
const PAUSES: usize = 32;

fn nanoseconds(from: Instant) -> u64 {
    u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds of all readers together, and since the start.
#[derive(Debug)]
pub(super) struct Spent {
    start: Instant,
    readers: usize,
    waiting: Cell,
    reading: Cell,
    sending: Cell,
    /// Since the start: the first piece of all that was read, and the last one that was sent.
    first: Cell,
    last: Cell,
}

impl Spent {
    pub(super) fn new(readers: usize) -> Self {
        let cell = Cell::default;
        let (waiting, reading, sending, first, last) = (cell(), cell(), cell(), cell(), cell());
        Self { start: Instant::now(), readers, waiting, reading, sending, first, last }
    }

    /// For logs.
    pub(super) fn times(&self) -> String {
        let ms = |cell: &Cell| cell.get() as f64 / 1e6;
        let each = |cell: &Cell| ms(cell) / self.readers.max(1) as f64;
        format!(
            "first piece read {:.1} ms and last one sent {:.1} ms after the readers' start; each of {} readers in the mean: \
             waiting for slots {:.1}, reading {:.1}, sending {:.1} ms",
            ms(&self.first),
            ms(&self.last),
            self.readers,
            each(&self.waiting),
            each(&self.reading),
            each(&self.sending),
        )
    }
}

/// A stream for copies, of the thread that made it.
struct CopyStream {
    raw: sys::CUstream,
    context: Arc<Context>,
}

impl CopyStream {
    fn new(context: &Arc<Context>) -> Result<Self> {
        let mut raw = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` is writable, and the thread has entered the context.
        check(unsafe { sys::cuStreamCreate(&raw mut raw, flags) }, "cuStreamCreate")?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    fn finish(&self) -> Result<()> {
        // SAFETY: a live stream.
        check(unsafe { sys::cuStreamSynchronize(self.raw) }, "copying weights to the device")
    }
}

impl Drop for CopyStream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: created in `new`, destroyed once; the slots behind its copies are given back after it.
            let _ = unsafe { (sys::cuStreamSynchronize(self.raw), sys::cuStreamDestroy_v2(self.raw)) };
        }
    }
}

/// Page-locked memory, and when the device has copied what was in it.
struct Slot {
    /// There until dropped.
    memory: Option<PinnedMemory>,
    copied: sys::CUevent,
    home: Arc<Slots>,
    context: Arc<Context>,
}

impl Slot {
    fn new(context: &Arc<Context>, home: &Arc<Slots>) -> Result<Self> {
        use sys::CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
        let mut copied = null_mut();
        let flags = CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: `copied` is writable, and the thread has entered the context.
        check(unsafe { sys::cuEventCreate(&raw mut copied, flags) }, "cuEventCreate")?;
        let mut slot = Self { memory: None, copied, home: Arc::clone(home), context: Arc::clone(context) };
        slot.memory = Some(home.take()?);
        Ok(slot)
    }

    fn bytes_mut(&mut self, bytes: usize) -> Result<&mut [u8]> {
        let memory = self.memory.as_mut().ok_or_else(|| Error::internal("a slot without memory"))?;
        Ok(&mut memory.bytes_mut()[..bytes])
    }

    /// Until it may be filled again. A thread that blocks is woken too late for the device: 16 readers with slots of 2 MiB came
    /// to 44.1 GB/s on an H200, to 46.0 by polling, to 46.5 by spinning. A device that is slower than that is waited for asleep.
    fn wait(&self) -> Result<()> {
        let from = Instant::now();
        loop {
            // SAFETY: a live event; one that was never recorded has passed.
            match unsafe { sys::cuEventQuery(self.copied) } {
                CUresult::CUDA_ERROR_NOT_READY if from.elapsed() < PATIENCE => {
                    (0..PAUSES).for_each(|_| std::hint::spin_loop());
                    std::thread::yield_now();
                }
                CUresult::CUDA_ERROR_NOT_READY => break,
                result => return check(result, "copying weights to the device"),
            }
        }
        // SAFETY: as above.
        check(unsafe { sys::cuEventSynchronize(self.copied) }, "copying weights to the device")
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: created in `new`, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.copied) };
        }
        if let Some(memory) = self.memory.take() {
            self.home.give(memory);
        }
    }
}

/// Reads pieces and sends them to where they belong.
pub(super) struct Sender {
    /// Before the slots: dropped first, it waits for the copies from them.
    stream: CopyStream,
    slots: Vec<Slot>,
    /// The slot that was used longest ago.
    next: usize,
    home: Arc<Slots>,
    spent: Arc<Spent>,
    context: Arc<Context>,
}

impl Sender {
    /// On the thread that will read, one of ours.
    pub(super) fn new(context: &Arc<Context>, home: &Arc<Slots>, spent: &Arc<Spent>) -> Result<Self> {
        context.bind()?;
        let (stream, slots) = (CopyStream::new(context)?, Vec::with_capacity(SLOTS));
        let (home, spent) = (Arc::clone(home), Arc::clone(spent));
        Ok(Self { stream, slots, next: 0, home, spent, context: Arc::clone(context) })
    }

    /// One that can be filled.
    fn slot(&mut self) -> Result<&mut Slot> {
        if self.next == self.slots.len() {
            self.slots.push(Slot::new(&self.context, &self.home)?);
        }
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % SLOTS;
        slot.wait()?;
        Ok(slot)
    }
}

fn read_exact(piece: &Piece, into: &mut [u8]) -> Result<()> {
    let (file, from) = (&piece.from.file, piece.from.offset);
    file.file
        .read_exact_at(into, from)
        .map_err(|e| Error::io(format!("cannot read {} bytes at {from} of {}: {e}", into.len(), file.path.display())))
}

impl Reader for Sender {
    fn read(&mut self, piece: &Piece) -> Result<()> {
        if piece.placement == Placement::Host {
            let to = host_bytes(piece.to.as_ref(), piece.at, piece.bytes);
            // SAFETY: of `room(Host)`, checked to hold them; pieces do not overlap, and nobody else looks before all are read.
            return read_exact(piece, unsafe { std::slice::from_raw_parts_mut(to, piece.bytes) });
        }
        let (spent, stream) = (Arc::clone(&self.spent), self.stream.raw);
        let from = Instant::now();
        let slot = self.slot()?;
        spent.waiting.add(nanoseconds(from));
        let from = Instant::now();
        let bytes = slot.bytes_mut(piece.bytes)?;
        read_exact(piece, bytes)?;
        spent.reading.add(nanoseconds(from));
        if spent.first.get() == 0 {
            spent.first.set(nanoseconds(spent.start));
        }
        let from = Instant::now();
        let to = piece.to.addr() + piece.at as u64;
        // SAFETY: `Readers::read` checked that the piece ends in its memory, which a freeing waits for; the slot stays as it
        // is until the event recorded behind the copy has passed.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), stream) };
        check(result, "copying weights to the device")?;
        // SAFETY: a live event and a live stream of one context.
        check(unsafe { sys::cuEventRecord(slot.copied, stream) }, "cuEventRecord")?;
        spent.sending.add(nanoseconds(from));
        spent.last.set(nanoseconds(spent.start));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.stream.finish()
    }
}
