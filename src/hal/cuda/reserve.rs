//! Address space whose memory comes later: what is recorded before it comes stays valid.

use super::driver::{Context, check};
use super::ledger::Entry;
use crate::base::Result;
use crate::hal::Allocation;
use cudarc::driver::sys;
use std::sync::{Arc, Mutex, PoisonError};

/// A run of addresses, of which a part from the first on has memory, zeroed when it came.
#[derive(Debug)]
pub(super) struct ReservedMemory {
    addr: sys::CUdeviceptr,
    /// What was asked for.
    bytes: usize,
    /// What was reserved: a multiple of `piece`.
    all: usize,
    piece: usize,
    mapped: Mutex<Mapped>,
    context: Arc<Context>,
}

#[derive(Debug, Default)]
struct Mapped {
    end: usize,
    /// Address and bytes of each commit.
    ranges: Vec<(sys::CUdeviceptr, usize, Entry)>,
}

fn location(context: &Context) -> sys::CUmemLocation {
    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: context.device() }
}

/// Plain memory of the device.
fn plain(context: &Context) -> sys::CUmemAllocationProp {
    // SAFETY: plain numbers, enums whose zero is a value, and a pointer that may be null.
    let mut prop: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    prop.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location = location(context);
    prop
}

impl ReservedMemory {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        let _entered = context.enter()?;
        let (prop, mut piece, mut addr) = (plain(context), 0, 0);
        let which = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        // SAFETY: the output is writable, the properties are alive.
        let found = unsafe { sys::cuMemGetAllocationGranularity(&raw mut piece, &raw const prop, which) };
        check(found, "cuMemGetAllocationGranularity")?;
        let piece = piece.max(1);
        let all = bytes.max(1).next_multiple_of(piece);
        // SAFETY: `addr` is writable; the size is a multiple of the granularity.
        let reserved = unsafe { sys::cuMemAddressReserve(&raw mut addr, all, piece, 0, 0) };
        check(reserved, &format!("reserving addresses for {all} bytes"))?;
        Ok(Self { addr, bytes, all, piece, mapped: Mutex::default(), context: Arc::clone(context) })
    }

    /// Memory at `addr`, where there is none.
    fn map(&self, addr: sys::CUdeviceptr, bytes: usize) -> Result<()> {
        let (prop, mut handle) = (plain(&self.context), 0);
        // SAFETY: `handle` is writable, the properties are alive, the size is a multiple of the granularity.
        let made = unsafe { sys::cuMemCreate(&raw mut handle, bytes, &raw const prop, 0) };
        check(made, &format!("allocating {bytes} bytes on the device"))?;
        // SAFETY: addresses of our reservation that nothing is mapped to; the mapping keeps the memory once the handle is
        // released.
        let mapped = unsafe {
            let mapped = sys::cuMemMap(addr, bytes, 0, handle, 0);
            let _ = sys::cuMemRelease(handle);
            mapped
        };
        check(mapped, &format!("mapping {bytes} bytes of device memory"))?;
        let access = sys::CUmemAccessDesc {
            location: location(&self.context),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: exactly what was mapped above.
        let opened = check(unsafe { sys::cuMemSetAccess(addr, bytes, &raw const access, 1) }, "cuMemSetAccess");
        let cleared = opened.and_then(|()| {
            // SAFETY: as above, and it may be written now.
            check(unsafe { sys::cuMemsetD8_v2(addr, 0, bytes) }, "clearing device memory")?;
            // The clearing runs on the default stream, ours do not wait for that one.
            self.context.finish()
        });
        if cleared.is_err() {
            // SAFETY: exactly what was mapped above; nobody has used it yet.
            let _ = unsafe { sys::cuMemUnmap(addr, bytes) };
        }
        cleared
    }
}

impl Allocation for ReservedMemory {
    fn addr(&self) -> u64 {
        self.addr
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
    fn commit(&self, bytes: usize) -> Result<()> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let end = bytes.min(self.bytes).next_multiple_of(self.piece);
        if end <= mapped.end {
            return Ok(());
        }
        let (addr, more) = (self.addr + mapped.end as u64, end - mapped.end);
        let entry = self.context.ledger.enter(more)?;
        let _entered = self.context.enter()?;
        self.map(addr, more)?;
        mapped.ranges.push((addr, more, entry));
        mapped.end = end;
        Ok(())
    }
}

impl Drop for ReservedMemory {
    fn drop(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        let mapped = self.mapped.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: each range was mapped once and whole, and the addresses were reserved in `new`. Unlike freeing, unmapping
        // does not wait for work that uses the memory.
        unsafe {
            let _ = sys::cuCtxSynchronize();
            for (addr, bytes, _) in &mapped.ranges {
                let _ = sys::cuMemUnmap(*addr, *bytes);
            }
            let _ = sys::cuMemAddressFree(self.addr, self.all);
        }
    }
}
