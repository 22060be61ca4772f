//! The CUDA driver: finding it, the device's context, kernels, and its errors as ours.

use crate::base::{Error, ErrorKind, Result};
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
const SYMBOLS: [&str; 38] = [
    "cuInit",
    "cuDriverGetVersion",
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
    "cuMemcpyHtoD_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// Whether this build has kernels.
pub(super) fn has_kernels() -> bool {
    !IMAGES.is_empty()
}

/// `what` as an error, unless it went well.
pub(super) fn check(result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text: *const std::ffi::c_char = std::ptr::null();
    // SAFETY: `text` is writable; the driver stores a static string or leaves it null.
    let known = unsafe { sys::cuGetErrorString(result, &raw mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: a string of the driver, NUL-terminated and static.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    let kind = match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::NoMemory,
        _ => ErrorKind::Device,
    };
    Err(Error::new(kind, format!("CUDA: {what}: {text} ({result:?})")))
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
            "no CUDA driver: libcuda.so and libcuda.so.1 were searched on the loader's path; install NVIDIA's driver, or \
             name its folder in \"device_library_dir\"",
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
    // SAFETY: no arguments but a flag word that must be 0.
    check(unsafe { sys::cuInit(0) }, "cuInit")?;
    let mut version = 0;
    // SAFETY: `version` is writable.
    check(unsafe { sys::cuDriverGetVersion(&raw mut version) }, "cuDriverGetVersion")?;
    if version < VERSION {
        return Err(too_old(&format!("it is for CUDA {}.{}", version / 1000, version % 1000 / 10)));
    }
    Ok(())
}

fn too_old(why: &str) -> Error {
    let text = format!(
        "the CUDA driver is too old: {why}; this build needs one for CUDA {}.{} (580 or newer)",
        VERSION / 1000,
        VERSION % 1000 / 10
    );
    Error::new(ErrorKind::Device, text)
}

/// Opens a library by its path, so that a later search by name finds it loaded.
pub(super) fn preload(path: &Path) {
    if let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) {
        // SAFETY: a NUL-terminated path; the library stays loaded for good.
        unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    }
}

/// How many devices the loaded driver shows.
pub(super) fn count() -> Result<usize> {
    let mut count = 0;
    // SAFETY: `count` is writable.
    check(unsafe { sys::cuDeviceGetCount(&raw mut count) }, "cuDeviceGetCount")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The primary context of a device, which everybody in the process shares.
#[derive(Debug)]
pub(super) struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
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
        Ok(Self { raw, device })
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

    /// Waits for the default stream of the entered context.
    pub(super) fn finish(&self) -> Result<()> {
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
        // SAFETY: retained once in `open`. A context lost to an error answers so, and there is nobody to tell.
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

/// A kernel that can be launched while its [`Modules`] live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    raw: sys::CUfunction,
}

// SAFETY: a handle that is only passed to launches, which the driver takes from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Enqueues the kernel, whose one parameter is `params`, on a stream of the calling thread's context.
    pub(super) fn launch<P: Copy>(
        self,
        stream: sys::CUstream,
        [x, y, z]: [u32; 3],
        (block, shared_bytes): (u32, u32),
        params: &P,
    ) -> Result<()> {
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: stream,
            attrs: null_mut(),
            numAttrs: 0,
        };
        let mut values = [(&raw const *params).cast_mut().cast()];
        // SAFETY: a live kernel and stream of one context; the kernel takes one parameter of this type, which the driver
        // copies during the call; what it points to is device memory of the tensors it was made from.
        let result = unsafe { sys::cuLaunchKernelEx(&raw const config, self.raw, values.as_mut_ptr(), null_mut()) };
        check(result, "launching a kernel")
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
        Ok(Kernel { raw })
    }

    /// The same for a kernel that is launched with up to `bytes` of dynamic shared memory.
    pub(super) fn kernel_with_shared(&self, image: &str, name: &str, bytes: u32) -> Result<Kernel> {
        let kernel = self.kernel(image, name)?;
        if bytes > PLAIN_SHARED {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a live kernel.
            let result = unsafe { sys::cuFuncSetAttribute(kernel.raw, which, bytes as c_int) };
            check(result, &format!("kernel {name}: {bytes} bytes of shared memory"))?;
        }
        Ok(kernel)
    }
}
