//! What there is of NVIDIA's libraries and GPUs.

use super::driver::{self, Context};
use super::{blas, open_device};
use crate::hal::registry::DeviceOptions;
use crate::hal::survey::{Accelerator, Backend, FoundLibrary, Library};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use std::ffi::{CStr, CString, c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::path::Path;

/// How a library tells its version.
enum Version {
    /// `int f(int *version)`, thousands and tens.
    Driver(&'static CStr),
    /// `size_t f(void)`, ten thousands and hundreds.
    Returned(&'static CStr),
    /// `int f(int *version)`, ten thousands and hundreds.
    Stored(&'static CStr),
}

/// Looks for everything; opens each GPU for a moment.
pub(in crate::hal) fn survey(options: &DeviceOptions) -> Backend {
    let dir = options.library_dir.as_deref();
    // First, as that is how an engine finds them.
    let (driver, blas) = (driver::load(dir), blas::load(dir));
    let problem = |result: &crate::base::Result<()>| result.as_ref().err().map(|e| e.message.clone());
    let libraries = vec![
        Library {
            needed: Some(driver::needed()),
            problem: problem(&driver),
            ..look(
                ("CUDA driver", "any GPU"),
                (dir, &["libcuda.so", "libcuda.so.1"]),
                &Version::Driver(c"cuDriverGetVersion"),
            )
        },
        Library {
            problem: problem(&blas),
            ..look(
                ("cuBLASLt", "matrix products on a GPU"),
                (dir, &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"]),
                &Version::Returned(c"cublasLtGetVersion"),
            )
        },
        look(("NCCL", "several GPUs"), (dir, &["libnccl.so.2", "libnccl.so"]), &Version::Stored(c"ncclGetVersion")),
    ];
    let count = driver.and_then(|()| driver::count());
    let accelerators = (0..*count.as_ref().unwrap_or(&0)).map(|ordinal| accelerator(ordinal, options)).collect();
    Backend {
        name: "cuda",
        images: Some(driver::images().map(|(name, image)| (name, image.len())).collect()),
        libraries,
        accelerators,
        problem: count.err().map(|e| e.message),
    }
}

fn accelerator(ordinal: usize, options: &DeviceOptions) -> Accelerator {
    let unknown = |e: crate::base::Error| (String::new(), None, Some(e.message));
    let facts = Context::open(ordinal).and_then(|context| {
        let number = |which| context.attribute(which);
        let description = format!(
            "{}, compute capability {}.{}, {} SMs",
            context.name()?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
        );
        let (free_bytes, total_bytes) = context.memory()?;
        let memory = crate::hal::MemoryInfo { total_bytes, free_bytes };
        Ok((description, Some(memory), open_device(ordinal, options).err().map(|e| e.message)))
    });
    let (description, memory, problem) = facts.unwrap_or_else(unknown);
    Accelerator { name: format!("cuda:{ordinal}"), description, memory, problem }
}

/// Tries the folder, then the loader's path. What is found stays loaded.
fn look(
    (name, used_for): (&'static str, &'static str),
    (dir, names): (Option<&Path>, &[&str]),
    says: &Version,
) -> Library {
    let in_dir = dir.into_iter().flat_map(|dir| names.iter().map(move |name| dir.join(name).display().to_string()));
    let candidates = in_dir.chain(names.iter().map(|name| (*name).to_owned()));
    let mut library = Library { name, used_for, searched: Vec::new(), found: None, needed: None, problem: None };
    for candidate in candidates {
        library.searched.push(candidate.clone());
        match open(&candidate) {
            Ok(handle) => {
                library.found = Some(identify(handle, candidate, says));
                library.problem = None;
                break;
            }
            // A broken file tells more than that another does not exist.
            Err(why) => drop(library.problem.get_or_insert(why)),
        }
    }
    library
}

fn open(candidate: &str) -> Result<*mut c_void, String> {
    let path = CString::new(candidate).map_err(|e| e.to_string())?;
    // SAFETY: a NUL-terminated name; loading a vendor library runs its initialisers, as every user of it does.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: no arguments; the text is this thread's until its next call of the loader.
    let why = unsafe { libc::dlerror() };
    if why.is_null() {
        return Err("unknown error".to_owned());
    }
    // SAFETY: not null, so NUL-terminated.
    Err(unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned())
}

fn identify(handle: *mut c_void, candidate: String, says: &Version) -> FoundLibrary {
    let (Version::Driver(symbol) | Version::Returned(symbol) | Version::Stored(symbol)) = says;
    // SAFETY: a live handle and a NUL-terminated name.
    let function = unsafe { libc::dlsym(handle, symbol.as_ptr()) };
    if function.is_null() {
        return FoundLibrary { path: candidate, version: None };
    }
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` is writable, and plain pointers of which all may be null.
    let (known, info) = unsafe { (libc::dladdr(function, info.as_mut_ptr()), info.assume_init()) };
    let path = if known == 0 || info.dli_fname.is_null() {
        candidate
    } else {
        // SAFETY: a NUL-terminated string of the loader; the library stays loaded.
        unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned()
    };
    FoundLibrary { path, version: version(function, says) }
}

fn version(function: *mut c_void, says: &Version) -> Option<String> {
    let mut n: c_int = 0;
    let stored = |n: &mut c_int| {
        // SAFETY: the vendors' headers declare both functions so; `n` is writable.
        let f = unsafe { transmute::<*mut c_void, unsafe extern "C" fn(*mut c_int) -> c_int>(function) };
        // SAFETY: as above.
        unsafe { f(n) == 0 }
    };
    let thousands = |n: u64| format!("{}.{}.{}", n / 10_000, n / 100 % 100, n % 100);
    match says {
        Version::Driver(_) => stored(&mut n).then(|| driver::cuda_version(n)),
        Version::Stored(_) => stored(&mut n).then(|| thousands(u64::try_from(n).unwrap_or(0))),
        Version::Returned(_) => {
            // SAFETY: the vendor's header declares it so.
            let f = unsafe { transmute::<*mut c_void, unsafe extern "C" fn() -> usize>(function) };
            // SAFETY: as above.
            Some(thousands(unsafe { f() } as u64))
        }
    }
}
