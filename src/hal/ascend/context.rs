//! An opened NPU: its libraries, the calling thread's ties to it, and what is allocated there.

use super::abi::{Abi, Handle, MemAttr, Status};
use super::errors::{REPEATED_INIT, SUCCESS, check, check_wait};
use super::library::Library;
use crate::base::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One NPU as one engine uses it. Its runtime context is the device's default one, which everything in the process shares.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) library: Library,
    pub(super) ordinal: i32,
    pub(super) heap: Heap,
}

/// Opens the libraries and starts the runtime, unless somebody in the process has.
pub(super) fn start(library_dir: Option<&Path>) -> Result<Library> {
    let library = Library::load(library_dir)?;
    // SAFETY: null stands for no configuration file.
    let status = unsafe { (library.abi.aclInit)(null()) };
    if status != REPEATED_INIT {
        check(&library.abi, status, "starting the runtime (aclInit)")?;
    }
    Ok(library)
}

/// How many NPUs the runtime shows.
pub(super) fn count(abi: &Abi) -> Result<usize> {
    let mut count = 0;
    // SAFETY: `count` is writable.
    check(abi, unsafe { (abi.aclrtGetDeviceCount)(&raw mut count) }, "counting devices")?;
    Ok(count as usize)
}

impl Context {
    pub(super) fn open(ordinal: usize, library_dir: Option<&Path>) -> Result<Self> {
        let library = start(library_dir)?;
        let found = count(&library.abi)?;
        if ordinal >= found {
            return Err(Error::invalid(format!(
                "device \"ascend:{ordinal}\" does not exist; the runtime shows {found} (ASCEND_RT_VISIBLE_DEVICES may hide some)"
            )));
        }
        let context = Self { library, ordinal: ordinal as i32, heap: Heap::default() };
        drop(context.enter()?);
        Ok(context)
    }

    pub(super) fn abi(&self) -> &Abi {
        &self.library.abi
    }

    pub(super) fn check(&self, status: Status, what: &str) -> Result<()> {
        check(self.abi(), status, what)
    }

    /// The same for what waited for the device.
    pub(super) fn check_wait(&self, status: Status, what: &str) -> Result<()> {
        check_wait(self.abi(), status, what)
    }

    /// Makes it the device of the calling thread, which is one of ours.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: a number below the count of devices.
        self.check(unsafe { (self.abi().aclrtSetDevice)(self.ordinal) }, "aclrtSetDevice")
    }

    /// The same until the result is dropped: the thread may be the host's, which may use devices itself.
    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        let mut before = null_mut();
        // SAFETY: `before` is writable; a thread without a context has an error for an answer.
        if unsafe { (self.abi().aclrtGetCurrentContext)(&raw mut before) } != SUCCESS {
            before = null_mut();
        }
        self.bind()?;
        Ok(Entered { context: self, before, _thread: PhantomData })
    }

    /// Waits for everything that was enqueued on the device.
    pub(super) fn finish(&self) -> Result<()> {
        // SAFETY: no arguments; the device is the calling thread's.
        self.check_wait(unsafe { (self.abi().aclrtSynchronizeDevice)() }, "work on the device")
    }

    /// Free and total bytes.
    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        let _entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the outputs are writable.
        let asked = unsafe { (self.abi().aclrtGetMemInfo)(MemAttr::HBM, &raw mut free, &raw mut total) };
        self.check(asked, "aclrtGetMemInfo")?;
        Ok((free, total))
    }

    /// The chip's model, as kernels are named by.
    pub(super) fn soc(&self) -> String {
        // SAFETY: no arguments; a string of the library, or null.
        let name = unsafe { (self.abi().aclrtGetSocName)() };
        if name.is_null() {
            return "unknown NPU".to_owned();
        }
        // SAFETY: not null, so NUL-terminated.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

/// The version of the runtime, where it tells.
pub(super) fn version(abi: &Abi) -> Option<String> {
    let ask = abi.aclrtGetVersion?;
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: the outputs are writable.
    let asked = unsafe { ask(&raw mut major, &raw mut minor, &raw mut patch) };
    (asked == SUCCESS).then(|| format!("{major}.{minor}.{patch}"))
}

/// The device is the thread's while this lives.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    context: &'a Context,
    before: Handle,
    _thread: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if !self.before.is_null() {
            // SAFETY: the thread's context a moment ago; that it is destroyed meanwhile is its owner's business.
            let _ = unsafe { (self.context.abi().aclrtSetCurrentContext)(self.before) };
        }
    }
}

/// A live allocation: where it begins, how long it is, and which one of those that began there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) addr: u64,
    pub(super) bytes: usize,
    pub(super) number: u64,
}

#[derive(Debug, Default)]
struct Live {
    places: BTreeMap<u64, Place>,
    /// With what the device rounds up.
    bytes: usize,
    made: u64,
}

/// What one engine has allocated on a device, and whether there may be more.
#[derive(Debug, Default)]
pub(super) struct Heap {
    live: Mutex<Live>,
    sealed: AtomicBool,
}

/// Large allocations come in pages of this size.
const PAGE: usize = 2 << 20;
const LARGE: usize = 1 << 20;
const SMALL_ALIGN: usize = 512;
/// The runtime puts so much behind each allocation, as operators read whole vectors.
const BEHIND: usize = 32;

/// What the device takes for an allocation of `bytes`.
pub(super) fn rounded(bytes: usize) -> usize {
    (bytes.max(1) + BEHIND).next_multiple_of(if bytes < LARGE { SMALL_ALIGN } else { PAGE })
}

impl Heap {
    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `bytes` more may be allocated: `Internal` once sealed.
    pub(super) fn admit(&self, bytes: usize) -> Result<()> {
        if self.sealed.load(Relaxed) {
            return Err(Error::internal(format!(
                "{bytes} bytes of device memory are asked for after the warm-up, which is to leave nothing to allocate"
            )));
        }
        Ok(())
    }

    pub(super) fn enter(&self, addr: u64, bytes: usize) {
        let mut live = self.lock();
        live.made += 1;
        let place = Place { addr, bytes, number: live.made };
        live.bytes += rounded(bytes);
        live.places.insert(addr, place);
    }

    pub(super) fn leave(&self, addr: u64) {
        let mut live = self.lock();
        if let Some(place) = live.places.remove(&addr) {
            live.bytes -= rounded(place.bytes);
        }
    }

    /// The allocation that holds `bytes` from `addr` on.
    pub(super) fn find(&self, addr: u64, bytes: usize) -> Option<Place> {
        let live = self.lock();
        let (_, place) = live.places.range(..=addr).next_back()?;
        (addr + bytes as u64 <= place.addr + place.bytes as u64).then_some(*place)
    }

    pub(super) fn seal(&self) {
        self.sealed.store(true, Relaxed);
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;

    #[test]
    fn live_allocations_are_counted_and_found_and_none_come_behind_the_seal() {
        let heap = Heap::default();
        heap.enter(4096, 100);
        heap.enter(1 << 30, LARGE);
        assert_eq!(heap.bytes(), 512 + PAGE);
        let first = heap.find(4100, 96).unwrap();
        assert_eq!((first.addr, first.bytes), (4096, 100));
        assert!(heap.find(4100, 97).is_none() && heap.find(4000, 1).is_none());
        heap.leave(4096);
        assert!(heap.find(4100, 1).is_none());
        heap.enter(4096, 100);
        assert_ne!(heap.find(4096, 1).unwrap().number, first.number, "another one at the same place");
        heap.admit(7).unwrap();
        heap.seal();
        let e = heap.admit(7).unwrap_err();
        assert!(e.kind == ErrorKind::Internal && e.message.contains("7 bytes"), "{e}");
    }
}
