//! The CUDA driver: finding it, the device's context, kernels, and its errors as ours.

use super::launch::Kernel;
use super::ledger::Ledger;
use crate::base::metrics::Cell;
use crate::base::{Error, ErrorKind, Result};
use crate::hal::DriverCalls;
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::panic::catch_unwind;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

include!(concat!(env!("OUT_DIR"), "/cuda_images.rs"));

/// CUDA version of the compiler our kernels come from, as `cuDriverGetVersion` counts.
const VERSION: c_int = 13_000;

/// Entry points we call; all are asked for once, because a missing one would panic where it is called.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemsetD8_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemSetAccess",
    "cuMemGetAllocationGranularity",
    "cuMemsetD8Async",
    "cuMemcpyHtoD_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuTensorMapEncodeTiled",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// Kernel images of this build by their names.
pub(super) fn images() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    IMAGES.iter().copied()
}

/// Whether this build has kernels.
pub(super) fn has_kernels() -> bool {
    !IMAGES.is_empty()
}

/// `what` as an error, unless it went well. `DeviceLost` where the context answers nothing else from now on.
pub(super) fn check(result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = describe(result, what);
    Err(match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::no_memory(text),
        result if loses_context(result) => Error::new(
            ErrorKind::DeviceLost,
            format!(
                "{text}; the GPU's context, which everything in this process shares, is lost with that: restart the process \
                 to use the GPU again"
            ),
        ),
        _ => Error::new(ErrorKind::Device, text),
    })
}

fn describe(result: CUresult, what: &str) -> String {
    let mut text: *const std::ffi::c_char = std::ptr::null();
    // SAFETY: `text` is writable; the driver stores a static string or leaves it null.
    let known = unsafe { sys::cuGetErrorString(result, &raw mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: a string of the driver, NUL-terminated and static.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    format!("CUDA: {what}: {text} ({result:?})")
}

/// The errors after which the driver's manual asks for a new process.
fn loses_context(result: CUresult) -> bool {
    use CUresult::*;
    matches!(
        result,
        CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

/// Whether the calling thread's context is lost; never waits.
pub(super) fn check_alive() -> Result<()> {
    // SAFETY: the null stream always exists.
    match unsafe { sys::cuStreamQuery(null_mut()) } {
        result if loses_context(result) => check(result, "work on the device"),
        _ => Ok(()),
    }
}

/// Loads the driver and asks for everything we call. Errors say what was searched.
pub(super) fn load(library_dir: Option<&Path>) -> Result<()> {
    if let Some(dir) = library_dir {
        preload(&dir.join("libcuda.so.1"));
    }
    // SAFETY: loading a vendor library runs its initialisers, as every host of a GPU does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::new(
            ErrorKind::Device,
            format!(
                "no CUDA driver: {}libcuda.so and libcuda.so.1 were searched on the loader's path; install NVIDIA's driver, or \
                 name its folder in \"device_library_dir\"",
                before_the_path(library_dir, "libcuda.so.1")
            ),
        ));
    }
    let missing = catch_unwind(|| {
        // SAFETY: the library was found a moment ago.
        let library = unsafe { sys::culib() };
        // SAFETY: the address is not called.
        SYMBOLS.iter().find(|name| unsafe { library.get::<*mut c_void>(name.as_bytes()) }.is_err())
    });
    match missing {
        Ok(None) => {}
        Ok(Some(name)) => return Err(too_old(&format!("it has no {name}"))),
        Err(_) => return Err(too_old("it cannot be loaded")),
    }
    // Needs no `cuInit`, which an old driver may refuse for another reason.
    let version = version()?;
    if version < VERSION {
        return Err(too_old(&format!("it is for CUDA {}", cuda_version(version))));
    }
    // SAFETY: no arguments but a flag word that must be 0.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => Ok(()),
        // There is no context yet that could be lost.
        result => Err(Error::new(ErrorKind::Device, describe(result, "starting the driver (cuInit)"))),
    }
}

/// What a driver is for, 13.0 of 13000.
pub(super) fn cuda_version(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The CUDA version that the driver is for, as 1000 times the major plus 10 times the minor.
pub(super) fn version() -> Result<c_int> {
    let mut version = 0;
    // SAFETY: `version` is writable.
    check(unsafe { sys::cuDriverGetVersion(&raw mut version) }, "cuDriverGetVersion")?;
    Ok(version)
}

fn too_old(why: &str) -> Error {
    let text = format!("the CUDA driver is too old: {why}; this build needs one for {}", needed());
    Error::new(ErrorKind::Device, text)
}

/// The oldest driver that serves, for people.
pub(super) fn needed() -> String {
    format!("CUDA {} (580 or newer)", cuda_version(VERSION))
}

/// How many GPUs the loaded driver shows.
pub(super) fn count() -> Result<usize> {
    let mut count = 0;
    // SAFETY: `count` is writable.
    check(unsafe { sys::cuDeviceGetCount(&raw mut count) }, "cuDeviceGetCount")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// What the search for a library begins with, where a folder is configured.
pub(super) fn before_the_path(library_dir: Option<&Path>, names: &str) -> String {
    library_dir
        .map_or_else(String::new, |dir| format!("{names} in {:?} (\"device_library_dir\"), then ", dir.display()))
}

/// Opens a library by its path, so that a later search by name finds it loaded.
pub(super) fn preload(path: &Path) {
    if let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) {
        // SAFETY: a NUL-terminated path; the library stays loaded for good.
        unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    }
}

/// The primary context of a device, which everybody in the process shares.
#[derive(Debug)]
pub(super) struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
    pub(super) calls: Calls,
    /// What one engine allocates there.
    pub(super) ledger: Arc<Ledger>,
}

/// Counts what may make the host wait: of the entry points above nothing else does once the device is warm.
#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) event_waits: Cell,
    pub(super) other_waits: Cell,
    pub(super) allocations: Cell,
    pub(super) events_made: Cell,
}

impl Calls {
    pub(super) fn read(&self) -> DriverCalls {
        DriverCalls {
            event_waits: self.event_waits.get(),
            other_waits: self.other_waits.get(),
            allocations: self.allocations.get(),
            events_made: self.events_made.get(),
        }
    }
}

// SAFETY: the driver's contexts may be used from any thread; which one is current is each thread's own business.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let count = count()?;
        if ordinal >= count {
            return Err(Error::invalid(format!(
                "device \"cuda:{ordinal}\" does not exist; the driver shows {count} (CUDA_VISIBLE_DEVICES may hide some)"
            )));
        }
        let (mut device, mut raw) = (0, null_mut());
        // SAFETY: the outputs are writable and the ordinal is below the count.
        unsafe {
            check(sys::cuDeviceGet(&raw mut device, ordinal as c_int), "cuDeviceGet")?;
            check(sys::cuDevicePrimaryCtxRetain(&raw mut raw, device), "opening the device")?;
        }
        let context = Self { raw, device, calls: Calls::default(), ledger: Arc::default() };
        context.check_alive().map_err(|e| e.within(format!("opening GPU {ordinal}")))?;
        Ok(context)
    }

    /// `DeviceLost` when it is lost; never waits.
    fn check_alive(&self) -> Result<()> {
        let _entered = self.enter()?;
        check_alive()
    }

    /// Makes it the context of the calling thread, which is one of ours.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained while `self` lives.
        check(unsafe { sys::cuCtxSetCurrent(self.raw) }, "cuCtxSetCurrent")
    }

    /// Makes it the calling thread's context until the result is dropped: the thread may be the host's, which may use the
    /// device itself.
    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        // SAFETY: the context is retained while `self` lives.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.raw) }, "cuCtxPushCurrent")?;
        Ok(Entered(self, PhantomData))
    }

    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Waits for the default stream of the entered context.
    pub(super) fn finish(&self) -> Result<()> {
        self.calls.other_waits.add(1);
        // SAFETY: the null stream always exists.
        check(unsafe { sys::cuStreamSynchronize(null_mut()) }, "work on the device")
    }

    pub(super) fn name(&self) -> Result<String> {
        let mut name = [0u8; 128];
        // SAFETY: 128 writable bytes.
        check(unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 128, self.device) }, "cuDeviceGetName")?;
        let text = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy).unwrap_or_default();
        Ok(text.into_owned())
    }

    pub(super) fn attribute(&self, which: sys::CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: `value` is writable.
        check(unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, self.device) }, "cuDeviceGetAttribute")?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// Free and total bytes.
    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        let _entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the outputs are writable.
        check(unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) }, "cuMemGetInfo")?;
        Ok((free, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Whoever opens the device later is to learn that it is lost, whether the driver could make a new context or not.
        if self.check_alive().is_err_and(|e| e.kind == ErrorKind::DeviceLost) {
            return;
        }
        // SAFETY: retained once in `open`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// The context is the thread's while this lives.
#[derive(Debug)]
pub(super) struct Entered<'a>(&'a Context, PhantomData<*const ()>);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = null_mut();
        // SAFETY: pushed by `enter` on this thread: the guard cannot leave it.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
        debug_assert_eq!(popped, self.0.raw, "contexts are left in the order they were entered");
    }
}

/// The kernels of this library on one device.
#[derive(Debug)]
pub(super) struct Modules {
    loaded: Vec<(&'static str, sys::CUmodule)>,
    /// Kernels live as long as their context.
    context: Arc<Context>,
}

// SAFETY: modules are only read after loading; the driver's calls on them may come from any thread.
unsafe impl Send for Modules {}
// SAFETY: as above.
unsafe impl Sync for Modules {}

impl Drop for Modules {
    fn drop(&mut self) {
        // A context that others keep would keep them too.
        if let Ok(_entered) = self.context.enter() {
            for (_, module) in &self.loaded {
                // SAFETY: loaded in `load`, unloaded once; streams and graphs, which use the kernels, are gone by now.
                let _ = unsafe { sys::cuModuleUnload(*module) };
            }
        }
    }
}

/// Shared memory of a block that needs no leave.
const PLAIN_SHARED: u32 = 48 << 10;

impl Modules {
    pub(super) fn load(context: &Arc<Context>) -> Result<Self> {
        let _entered = context.enter()?;
        let mut modules = Self { loaded: Vec::with_capacity(IMAGES.len()), context: Arc::clone(context) };
        for (name, image) in IMAGES {
            // The driver wants images aligned, and copies them.
            let mut words = vec![0u64; image.len().div_ceil(8)];
            words.iter_mut().zip(image.chunks(8)).for_each(|(word, bytes)| {
                let mut padded = [0; 8];
                padded[..bytes.len()].copy_from_slice(bytes);
                *word = u64::from_ne_bytes(padded);
            });
            let mut raw = null_mut();
            // SAFETY: a whole fatbin of our own compiler, alive during the call.
            let result = unsafe { sys::cuModuleLoadData(&raw mut raw, words.as_ptr().cast()) };
            check(result, &format!("loading kernels {name:?}"))?;
            modules.loaded.push((name, raw));
        }
        Ok(modules)
    }

    /// The kernel `name` of the image `image`.
    pub(super) fn kernel(&self, image: &str, name: &str) -> Result<Kernel> {
        let module = self.loaded.iter().find(|m| m.0 == image);
        let &(_, module) = module.ok_or_else(|| Error::internal(format!("the library has no CUDA image {image:?}")))?;
        let symbol = CString::new(name).map_err(|_| Error::internal(format!("kernel name {name:?}")))?;
        let _entered = self.context.enter()?;
        let mut raw = null_mut();
        // SAFETY: a live module and a NUL-terminated name.
        let result = unsafe { sys::cuModuleGetFunction(&raw mut raw, module, symbol.as_ptr()) };
        check(result, &format!("kernel {name} of image {image:?}"))?;
        // A multiprocessor that has to share its memory out anew between two kernels runs dry first.
        let (which, most) = (sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100);
        // SAFETY: a live kernel.
        check(unsafe { sys::cuFuncSetAttribute(raw, which, most) }, &format!("kernel {name}: shared memory"))?;
        // Else its code would take device memory when it first runs.
        // SAFETY: a live kernel.
        check(unsafe { sys::cuFuncLoad(raw) }, &format!("loading kernel {name}"))?;
        Ok(Kernel::new(raw))
    }

    /// The same for a kernel that is launched with up to `bytes` of dynamic shared memory.
    pub(super) fn kernel_with_shared(&self, image: &str, name: &str, bytes: u32) -> Result<Kernel> {
        let kernel = self.kernel(image, name)?;
        if bytes > PLAIN_SHARED {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a live kernel.
            let result = unsafe { sys::cuFuncSetAttribute(kernel.raw(), which, bytes as c_int) };
            check(result, &format!("kernel {name}: {bytes} bytes of shared memory"))?;
        }
        Ok(kernel)
    }
}
