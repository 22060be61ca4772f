//! Our own kernels for NPUs, where their binaries are found. They stand by chip in `<chip>/<name>.o`, in the folder of the
//! config's vendor libraries or in `ascend` beside this library; `ascend/README.md` has their arguments. What has no binary is
//! left to the vendor's operators.

use super::abi::{Abi, Handle};
use super::context::Context;
use super::stream::AscendStream;
use crate::base::{DType, Result};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::Arc;

/// Binaries and the kernels in them, without their dtypes.
const BINARIES: [(&str, &[&str]); 3] = [
    ("rope_write_kv", &["yn_rope_write_kv"]),
    ("add_rms_norm", &["yn_add_rms_norm", "yn_rms_norm"]),
    ("silu_mul", &["yn_silu_mul"]),
];
const SUFFIXES: [(DType, &str); 2] = [(DType::F16, "f16"), (DType::Bf16, "bf16")];
/// Blocks of a launch at most: the vector cores of the larger chips.
const CORES: usize = 40;

/// What a kernel is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    Address(u64),
    Number(u32),
    Float(f32),
}

/// A size as kernels take it.
pub(super) fn number(n: usize) -> Arg {
    Arg::Number(u32::try_from(n).unwrap_or_else(|_| panic!("a size of {n} on the device")))
}

/// The loaded kernels of one device.
#[derive(Debug)]
pub(super) struct Kernels {
    binaries: Vec<Handle>,
    functions: HashMap<(&'static str, DType), Handle>,
    /// Where each binary was found and what became of it, for people.
    notes: Vec<String>,
    context: Arc<Context>,
}

// SAFETY: handles that are only read after loading; the runtime's calls on them may come from any thread with the device.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// The folder of the library that this code is in.
fn beside_us() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: an address of our own code; `info` is writable, and plain pointers of which all may be null.
    let (known, info) = unsafe { (libc::dladdr(beside_us as *const c_void, info.as_mut_ptr()), info.assume_init()) };
    if known == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a NUL-terminated string of the loader; our library stays loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) }.to_str().ok()?;
    Some(Path::new(name).canonicalize().ok()?.parent()?.join("ascend"))
}

impl Kernels {
    /// Loads what there is. A binary that cannot be used is told of and left alone.
    pub(super) fn load(context: &Arc<Context>, library_dir: Option<&Path>) -> Result<Self> {
        let context = Arc::clone(context);
        let mut kernels = Self { binaries: Vec::new(), functions: HashMap::new(), notes: Vec::new(), context };
        let context = Arc::clone(&kernels.context);
        let _entered = context.enter()?;
        let chip = context.soc();
        let folders = library_dir.and_then(|dir| dir.canonicalize().ok()).into_iter().chain(beside_us());
        let folders: Vec<PathBuf> = folders.map(|folder| folder.join(&chip)).collect();
        for (name, entries) in BINARIES {
            let path = folders.iter().map(|folder| folder.join(format!("{name}.o"))).find(|path| path.is_file());
            let Some(path) = path else {
                kernels.notes.push(format!("no {name}.o in {folders:?}"));
                continue;
            };
            let note = match kernels.load_one(&path, entries) {
                Ok(()) => format!("{}", path.display()),
                Err(e) => format!("{} is not used: {e}", path.display()),
            };
            log::info!("kernel {note}");
            kernels.notes.push(note);
        }
        Ok(kernels)
    }

    fn load_one(&mut self, path: &Path, entries: &[&'static str]) -> Result<()> {
        let missing = || crate::base::Error::unsupported("this CANN version launches no kernels by name");
        let (abi, mut binary) = (self.context.abi(), null_mut());
        let Launcher { load, find, .. } = Launcher::of(abi).ok_or_else(missing)?;
        let name = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
        // SAFETY: a NUL-terminated path; null stands for no options; `binary` is writable.
        self.context.check(unsafe { load(name.as_ptr(), null_mut(), &raw mut binary) }, "loading a kernel")?;
        self.binaries.push(binary);
        for entry in entries {
            for (dtype, suffix) in SUFFIXES {
                let mut function = null_mut();
                let symbol = CString::new(format!("{entry}_{suffix}")).unwrap_or_default();
                // SAFETY: a live binary, a NUL-terminated name, a writable output.
                let found = unsafe { find(binary, symbol.as_ptr(), &raw mut function) };
                self.context.check(found, &format!("kernel {entry}_{suffix}"))?;
                self.functions.insert((entry, dtype), function);
            }
        }
        Ok(())
    }

    /// How many kernels there are, whatever their dtypes.
    pub(super) fn count(&self) -> usize {
        self.functions.len() / SUFFIXES.len()
    }

    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(super) fn find(&self, name: &'static str, dtype: DType) -> Option<Kernel> {
        self.functions.get(&(name, dtype)).map(|raw| Kernel(*raw, name))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if let (Ok(_entered), Some(unload)) = (self.context.enter(), self.context.abi().aclrtBinaryUnLoad) {
            for binary in &self.binaries {
                // SAFETY: loaded once, unloaded once; streams, which launch from it, are gone by now.
                let _ = unsafe { unload(*binary) };
            }
        }
    }
}

/// What it takes to load and launch.
#[derive(Clone, Copy)]
struct Launcher {
    load: unsafe extern "C" fn(*const std::ffi::c_char, *mut super::abi::BinaryLoadOptions, *mut Handle) -> i32,
    find: unsafe extern "C" fn(Handle, *const std::ffi::c_char, *mut Handle) -> i32,
    begin: unsafe extern "C" fn(Handle, *mut Handle) -> i32,
    append: unsafe extern "C" fn(Handle, Handle, usize, *mut Handle) -> i32,
    end: unsafe extern "C" fn(Handle) -> i32,
    launch: unsafe extern "C" fn(Handle, u32, Handle, *mut super::abi::LaunchKernelCfg, Handle, Handle) -> i32,
}

impl Launcher {
    fn of(abi: &Abi) -> Option<Self> {
        Some(Self {
            load: abi.aclrtBinaryLoadFromFile?,
            find: abi.aclrtBinaryGetFunction?,
            begin: abi.aclrtKernelArgsInit?,
            append: abi.aclrtKernelArgsAppend?,
            end: abi.aclrtKernelArgsFinalize?,
            launch: abi.aclrtLaunchKernelWithConfig?,
        })
    }
}

/// A kernel of a live device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel(Handle, &'static str);

impl Kernel {
    /// Enqueues it for so many units of work.
    pub(super) fn launch(self, s: &AscendStream, units: usize, args: &[Arg]) -> Result<()> {
        let (Some(run), Self(function, name)) = (Launcher::of(s.abi()), self) else { return Ok(()) };
        let (stream, mut handle) = (s.bound()?, null_mut());
        let blocks = units.clamp(1, CORES) as u32;
        // SAFETY: a live kernel; `handle` is writable.
        s.context().check(unsafe { (run.begin)(function, &raw mut handle) }, name)?;
        for arg in args {
            let (mut words, size) = match arg {
                Arg::Address(addr) => (addr.to_ne_bytes(), 8),
                Arg::Number(n) => (widened(n.to_ne_bytes()), 4),
                Arg::Float(x) => (widened(x.to_ne_bytes()), 4),
            };
            let mut place = null_mut();
            // SAFETY: `size` readable bytes, which the call copies; `place` is writable.
            let put = unsafe { (run.append)(handle, words.as_mut_ptr().cast(), size, &raw mut place) };
            s.context().check(put, name)?;
        }
        // SAFETY: arguments made above for this kernel, each as `ascend/README.md` says; null stands for no settings.
        let launched = unsafe {
            match (run.end)(handle) {
                0 => (run.launch)(function, blocks, stream, null_mut(), handle, null_mut()),
                failed => failed,
            }
        };
        s.context().check(launched, name)
    }
}

fn widened(bytes: [u8; 4]) -> [u8; 8] {
    let mut wide = [0; 8];
    wide[..4].copy_from_slice(&bytes);
    wide
}
