//! The conformance double as a folder of vendor libraries, and what it says of its users. For tests of the product on it; those
//! of the double itself call more of it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn run(script: &str, out: &Path) {
    let done = Command::new(root().join(script)).arg(out).output().unwrap_or_else(|e| panic!("{script}: {e}"));
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the double, built where it has to be.
pub(crate) fn folder() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let out = root().join("target/ascend/double");
        run("tests/ascend/double/build.sh", &out);
        out
    };
    BUILT.get_or_init(build).clone()
}

/// The same with the binaries of our own kernels.
#[allow(dead_code)]
pub(crate) fn folder_with_kernels() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let (double, out) = (folder(), root().join("target/ascend/with-kernels"));
        run("ascend/shim/build.sh", &out);
        for name in ["libascendcl.so", "libnnopbase.so", "libopapi.so", "libhccl.so"] {
            // Another process may be at it too.
            let _ = std::os::unix::fs::symlink(double.join(name), out.join(name));
            assert!(out.join(name).exists(), "no {name} beside the kernels");
        }
        out
    };
    BUILT.get_or_init(build).clone()
}

/// The double's own calls; who only wants its folder has no use for them.
#[allow(dead_code)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Double(*mut c_void);

#[allow(dead_code)]
impl Double {
    pub(crate) fn get() -> Self {
        let path = folder().join("libascendcl.so");
        let path = CString::new(path.to_str().expect("a path")).expect("a path");
        // SAFETY: a NUL-terminated path of a library that runs nothing when it is loaded.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!library.is_null(), "the double does not load");
        Self(library)
    }

    /// # Safety
    /// `F` is the type of the double's function `name`.
    unsafe fn symbol<F: Copy>(self, name: &CStr) -> F {
        // SAFETY: an open library and a NUL-terminated name.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null() && size_of::<F>() == size_of::<*mut c_void>(), "the double has no {name:?}");
        // SAFETY: by contract.
        unsafe { std::mem::transmute_copy(&found) }
    }

    fn text(self, name: &CStr) -> String {
        // SAFETY: the double's header declares it so; its answers are strings that live until the thread's next call.
        unsafe {
            let answer = self.symbol::<extern "C" fn() -> *const c_char>(name)();
            if answer.is_null() { String::new() } else { CStr::from_ptr(answer).to_string_lossy().into_owned() }
        }
    }

    /// What its users did wrong.
    pub(crate) fn faults(self) -> String {
        self.text(c"yn_double_faults")
    }

    /// What nobody has given back.
    pub(crate) fn leaks(self) -> String {
        self.text(c"yn_double_leaks")
    }
}

/// More of it, where a test plants failures.
#[allow(dead_code)]
impl Double {
    /// The `nth` call of that name from now on, of a thread with that device, answers `code`.
    pub(crate) fn fail(self, device: i32, call: &str, nth: i32, code: i32) {
        let call = CString::new(call).expect("a name");
        // SAFETY: the double's header declares it so.
        unsafe {
            self.symbol::<extern "C" fn(c_int, *const c_char, c_int, c_int)>(c"yn_double_fail_on")(
                device,
                call.as_ptr(),
                nth,
                code,
            )
        }
    }

    /// The same of any thread.
    pub(crate) fn fail_any(self, call: &str, nth: i32, code: i32) {
        let call = CString::new(call).expect("a name");
        // SAFETY: as above.
        unsafe {
            self.symbol::<extern "C" fn(*const c_char, c_int, c_int)>(c"yn_double_fail")(call.as_ptr(), nth, code)
        }
    }

    /// The `nth` task from now on, of that device, fails with `code` while it runs.
    pub(crate) fn fail_task(self, device: i32, nth: i32, code: i32) {
        // SAFETY: as above.
        unsafe { self.symbol::<extern "C" fn(c_int, c_int, c_int)>(c"yn_double_async_error_on")(device, nth, code) }
    }

    /// There is no memory beyond so many bytes from now on.
    pub(crate) fn memory_after(self, bytes: usize) {
        // SAFETY: as above.
        unsafe { self.symbol::<extern "C" fn(usize)>(c"yn_double_oom_after")(bytes) }
    }

    /// Streams made from now on run at once on threads with random delays (`seed`), or only when somebody waits.
    pub(crate) fn mode(self, threaded: bool, seed: u64) {
        // SAFETY: as above.
        unsafe { self.symbol::<extern "C" fn(c_int, u64)>(c"yn_double_mode")(c_int::from(threaded), seed) }
    }

    pub(crate) fn option(self, name: &str, on: bool) {
        let name = CString::new(name).expect("a name");
        // SAFETY: as above.
        unsafe {
            self.symbol::<extern "C" fn(*const c_char, c_int)>(c"yn_double_option")(name.as_ptr(), c_int::from(on))
        }
    }

    /// How often a call of that name was made.
    pub(crate) fn calls(self, call: &str) -> u64 {
        let call = CString::new(call).expect("a name");
        // SAFETY: as above.
        unsafe { self.symbol::<extern "C" fn(*const c_char) -> u64>(c"yn_double_calls")(call.as_ptr()) }
    }

    pub(crate) fn forget_plants(self) {
        // SAFETY: as above.
        unsafe { self.symbol::<extern "C" fn()>(c"yn_double_forget_plants")() }
    }

    /// Planted failures that nobody has met.
    pub(crate) fn planted(self) -> i32 {
        // SAFETY: as above.
        unsafe { self.symbol::<extern "C" fn() -> c_int>(c"yn_double_planted")() }
    }
}
