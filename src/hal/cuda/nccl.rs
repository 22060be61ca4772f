//! NCCL, the library through which GPUs add up what they computed: found at run time by its name, as the driver is. Types and
//! numbers are those of `nccl.h`.

use crate::base::{DType, Error, ErrorKind, Result};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::time::Duration;

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Oldest version whose communicators we know to end when they are aborted, as `ncclGetVersion` counts.
const OLDEST: c_int = 22_000;

const SUCCESS: c_int = 0;
/// Of communicators that do not block: they do where nobody sets `NCCL_COMM_BLOCKING`.
const IN_PROGRESS: c_int = 7;
const SUM: c_int = 0;

/// `ncclComm_t`.
pub(super) type RawComm = *mut c_void;

/// Entry points. They stay valid as the library is never closed.
#[derive(Debug, Clone, Copy)]
struct Entries {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(RawComm) -> *const c_char,
    init_all: unsafe extern "C" fn(*mut RawComm, c_int, *const c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> c_int,
    async_error: unsafe extern "C" fn(RawComm, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(RawComm) -> c_int,
    destroy: unsafe extern "C" fn(RawComm) -> c_int,
}

/// The opened library.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nccl {
    entries: Entries,
    version: c_int,
}

/// A communicator of one rank, alive until it is destroyed or aborted, of which each is done once and by its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Comm(RawComm);

// SAFETY: a handle; who may call what on it at the same time is the group's business (`ranks`).
unsafe impl Send for Comm {}

fn version(code: c_int) -> String {
    let parts = |minor: c_int| (code / (100 * minor), code / 100 % minor, code % 100);
    // Before 2.9 there was one digit for the middle number.
    let (major, minor, patch) = if code < 10_000 { parts(10) } else { parts(100) };
    format!("{major}.{minor}.{patch}")
}

impl Nccl {
    /// Opens the library and asks for everything we call. Errors say what was searched.
    pub(super) fn load(library_dir: Option<&Path>) -> Result<Self> {
        let library = open(library_dir)?;
        let entries = Entries {
            get_version: symbol(library, c"ncclGetVersion")?,
            error_string: symbol(library, c"ncclGetErrorString")?,
            last_error: symbol(library, c"ncclGetLastError")?,
            init_all: symbol(library, c"ncclCommInitAll")?,
            all_reduce: symbol(library, c"ncclAllReduce")?,
            async_error: symbol(library, c"ncclCommGetAsyncError")?,
            abort: symbol(library, c"ncclCommAbort")?,
            destroy: symbol(library, c"ncclCommDestroy")?,
        };
        let mut nccl = Self { entries, version: 0 };
        // SAFETY: `version` is writable.
        let asked = unsafe { (entries.get_version)(&raw mut nccl.version) };
        nccl.check(asked, "ncclGetVersion")?;
        if nccl.version < OLDEST {
            return Err(too_old(&format!("it is version {}", version(nccl.version))));
        }
        Ok(nccl)
    }

    /// One communicator for each of these devices, in this order, which must all be different ones. The calling thread's
    /// context may be another one afterwards.
    pub(super) fn connect(&self, ordinals: &[c_int]) -> Result<Vec<Comm>> {
        let mut comms = vec![null_mut(); ordinals.len()];
        // SAFETY: as many writable handles as readable ordinals.
        let made = unsafe { (self.entries.init_all)(comms.as_mut_ptr(), ordinals.len() as c_int, ordinals.as_ptr()) };
        let what = format!("connecting GPUs {ordinals:?}");
        if made != IN_PROGRESS {
            self.check(made, &what)?;
        }
        let comms: Vec<_> = comms.into_iter().map(Comm).collect();
        comms.iter().try_for_each(|comm| self.settle(IN_PROGRESS, *comm, &what))?;
        Ok(comms)
    }

    /// Enqueues on `stream`, of the calling thread's context: `count` elements at `addr` become the sum over all ranks.
    pub(super) fn all_reduce(
        &self,
        comm: Comm,
        (addr, count, dtype): (u64, usize, DType),
        stream: *mut c_void,
    ) -> Result<()> {
        let number = match dtype {
            DType::F16 => 6,
            DType::F32 => 7,
            DType::Bf16 => 9,
            _ => return Err(Error::internal(format!("ranks add up {dtype}; expected f32, f16 or bf16"))),
        };
        let at = addr as *mut c_void;
        // SAFETY: a live communicator and a live stream of its device; the memory is a tensor's on that device, which holds
        // `count` elements and outlives what is enqueued.
        let result = unsafe { (self.entries.all_reduce)(at, at, count, number, SUM, comm.0, stream) };
        self.settle(result, comm, "adding up what ranks computed")
    }

    /// What went wrong behind the host's back, on the way between devices.
    pub(super) fn async_error(&self, comm: Comm) -> Result<()> {
        let mut found = SUCCESS;
        // SAFETY: a live communicator; `found` is writable.
        let asked = unsafe { (self.entries.async_error)(comm.0, &raw mut found) };
        self.check(asked, "ncclCommGetAsyncError")?;
        if found == IN_PROGRESS { Ok(()) } else { self.check(found, "exchange between GPUs") }
    }

    /// Tells what runs on the device to end. Frees the communicators of all ranks of the process in the call for the last
    /// of them, which waits until no recorded work uses them.
    pub(super) fn abort(&self, comm: Comm) {
        // SAFETY: a live communicator, which nobody uses after its own or its group's last call of this kind.
        let _ = unsafe { (self.entries.abort)(comm.0) };
    }

    /// The same without ending what runs.
    pub(super) fn destroy(&self, comm: Comm) {
        // SAFETY: as above.
        let _ = unsafe { (self.entries.destroy)(comm.0) };
    }

    /// Waits while a call that answered `result` is under way behind our back.
    fn settle(&self, mut result: c_int, comm: Comm, what: &str) -> Result<()> {
        while result == IN_PROGRESS {
            // SAFETY: a live communicator; `result` is writable.
            self.check(unsafe { (self.entries.async_error)(comm.0, &raw mut result) }, what)?;
            if result == IN_PROGRESS {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        self.check(result, what)
    }

    fn check(&self, result: c_int, what: &str) -> Result<()> {
        if result == SUCCESS {
            return Ok(());
        }
        let text = |text: *const c_char| {
            if text.is_null() {
                return String::new();
            }
            // SAFETY: a NUL-terminated string that the library keeps.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        // SAFETY: any number is taken.
        let kind = text(unsafe { (self.entries.error_string)(result) });
        // SAFETY: the argument is not used, as `nccl.h` says.
        let last = text(unsafe { (self.entries.last_error)(null_mut()) });
        let last = if last.trim().is_empty() { String::new() } else { format!(": {}", last.trim()) };
        Err(Error::new(ErrorKind::Device, format!("NCCL: {what}: {kind} ({result}){last}")))
    }
}

/// Opens the library. It is never closed: its threads may outlive everything.
fn open(library_dir: Option<&Path>) -> Result<*mut c_void> {
    let in_dir = library_dir.into_iter().flat_map(|dir| NAMES.iter().map(|name| dir.join(name)));
    let mut why = String::new();
    for path in in_dir.chain(NAMES.iter().map(|name| Path::new(name).to_owned())) {
        let Ok(name) = CString::new(path.as_os_str().as_encoded_bytes()) else { continue };
        // SAFETY: a NUL-terminated name; loading a vendor library runs its initialisers, as every user of it does.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if !library.is_null() {
            return Ok(library);
        }
        // SAFETY: the loader's last words to this thread, or null.
        let words = unsafe { libc::dlerror() };
        if !words.is_null() {
            // SAFETY: NUL-terminated, and ours until the next call.
            let words = unsafe { CStr::from_ptr(words) }.to_string_lossy();
            why.push_str(if why.is_empty() { "" } else { "; " });
            why.push_str(&words);
        }
    }
    let dir = library_dir.map_or(String::new(), |dir| format!("in {} and ", dir.display()));
    Err(Error::new(
        ErrorKind::Device,
        format!(
            "no NCCL, with which several GPUs share a model: {} were searched {dir}on the loader's path ({why}); install it \
             for CUDA 13, or name its folder in \"device_library_dir\"",
            NAMES.join(" and ")
        ),
    ))
}

fn too_old(why: &str) -> Error {
    let text = format!("the NCCL library is too old: {why}; this build needs {} or newer", version(OLDEST));
    Error::new(ErrorKind::Device, text)
}

/// An entry point, whose type the caller names.
fn symbol<F: Copy>(library: *mut c_void, name: &CStr) -> Result<F> {
    assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "entry points are pointers");
    // SAFETY: an open library and a NUL-terminated name.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    if found.is_null() {
        return Err(too_old(&format!("it has no {}", name.to_string_lossy())));
    }
    // SAFETY: as large as a pointer, and not null. `nccl.h` declares the function of this name with the type that
    // `Entries` has for it.
    Ok(unsafe { std::mem::transmute_copy(&found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_as_people_count() {
        assert_eq!(
            (version(22_803), version(OLDEST), version(2_804)),
            ("2.28.3".into(), "2.20.0".into(), "2.8.4".into())
        );
    }

    #[test]
    fn what_is_missing_says_what_was_searched() {
        let dir = tempfile::tempdir().unwrap();
        let e = match Nccl::load(Some(dir.path())) {
            // A machine with GPUs may well have it.
            Ok(nccl) => return println!("found: NCCL {}", version(nccl.version)),
            Err(e) => e,
        };
        let says = ["libnccl.so.2", "libnccl.so", &dir.path().display().to_string(), "device_library_dir"];
        assert!(says.iter().all(|part| e.message.contains(part)) && e.kind == ErrorKind::Device, "{e}");
    }

    #[test]
    fn a_library_that_is_no_nccl_is_refused_with_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        // SAFETY: a plain struct of pointers and integers.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is writable.
        assert!(unsafe { libc::dladdr(libc::dlopen as *const c_void, &raw mut info) } != 0);
        // SAFETY: the loader's string of a library that stays loaded.
        let libc = unsafe { CStr::from_ptr(info.dli_fname) }.to_str().unwrap();
        std::os::unix::fs::symlink(libc, dir.path().join(NAMES[0])).unwrap();
        let e = Nccl::load(Some(dir.path())).unwrap_err();
        assert!(e.message.contains("ncclGetVersion") && e.message.contains("too old"), "{e}");
    }
}
