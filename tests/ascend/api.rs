//! The double's calls as a client finds them: opened by name at run time.
#![allow(non_snake_case, clippy::too_many_arguments)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub(crate) type P = *mut c_void;

/// Builds the double, once for whoever asks at the same time, and says where.
pub(crate) fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = root.join("target/ascend/double");
    let done = Command::new(root.join("tests/ascend/double/build.sh")).arg(&out).output().unwrap();
    assert!(done.status.success(), "build.sh: {}", String::from_utf8_lossy(&done.stderr));
    out
}

macro_rules! calls {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        struct Calls { $($name: unsafe extern "C" fn($($ty),*) -> $ret),* }

        impl Calls {
            fn open(library: P) -> Self {
                // SAFETY: the types are those of the double's definitions, which are checked against the vendor's.
                Self { $($name: unsafe { std::mem::transmute::<P, unsafe extern "C" fn($($ty),*) -> $ret>(symbol(library, stringify!($name))) }),* }
            }
        }

        #[allow(clippy::too_many_arguments)]
        impl Double {
            $(pub(crate) fn $name(&self, $($arg: $ty),*) -> $ret {
                // SAFETY: pointers are null or of live arguments of the caller; all others are handles, which the double looks up.
                unsafe { (self.calls.$name)($($arg),*) }
            })*
        }
    };
}

/// The opened double; one for the process.
pub(crate) struct Double {
    calls: Calls,
}

fn symbol(library: P, name: &str) -> P {
    let c_name = CString::new(name).unwrap();
    // SAFETY: the library stays open, the name ends.
    let found = unsafe { libc::dlsym(library, c_name.as_ptr()) };
    assert!(!found.is_null(), "the double has no {name}");
    found
}

/// What the double's own calls answer, copied.
pub(crate) fn text(answer: *const c_char) -> String {
    if answer.is_null() {
        return String::new();
    }
    // SAFETY: the double's answers are strings that live until this thread's next call.
    unsafe { CStr::from_ptr(answer) }.to_string_lossy().into_owned()
}

impl Double {
    pub(crate) fn get() -> &'static Self {
        static DOUBLE: OnceLock<Double> = OnceLock::new();
        DOUBLE.get_or_init(|| {
            let path = CString::new(build().join("libascendcl.so").to_str().unwrap()).unwrap();
            // SAFETY: a library of ours without constructors that do anything.
            let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            // SAFETY: dlerror's text lives until the next dl call.
            assert!(!library.is_null(), "{}", text(unsafe { libc::dlerror() }));
            Self { calls: Calls::open(library) }
        })
    }

    pub(crate) fn faults(&self) -> String {
        text(self.yn_double_faults())
    }

    pub(crate) fn leaks(&self) -> String {
        text(self.yn_double_leaks())
    }

    pub(crate) fn fail(&self, call: &str, nth: i32, code: i32) {
        let call = CString::new(call).unwrap();
        self.yn_double_fail(call.as_ptr(), nth, code);
    }

    pub(crate) fn option(&self, name: &str, on: bool) {
        let name = CString::new(name).unwrap();
        self.yn_double_option(name.as_ptr(), i32::from(on));
    }
}

calls! {
    yn_double_reset() -> ();
    yn_double_mode(threaded: i32, seed: u64) -> ();
    yn_double_fail(call: *const c_char, nth: i32, code: i32) -> ();
    yn_double_fail_on(device: i32, call: *const c_char, nth: i32, code: i32) -> ();
    yn_double_oom_after(bytes: usize) -> ();
    yn_double_async_error(nth: i32, code: i32) -> ();
    yn_double_async_error_on(device: i32, nth: i32, code: i32) -> ();
    yn_double_option(name: *const c_char, on: i32) -> ();
    yn_double_planted() -> i32;
    yn_double_calls(call: *const c_char) -> u64;
    yn_double_leaks() -> *const c_char;
    yn_double_trace() -> *const c_char;
    yn_double_faults() -> *const c_char;

    aclInit(config: *const c_char) -> i32;
    aclGetRecentErrMsg() -> *const c_char;
    aclrtGetDeviceCount(count: &mut u32) -> i32;
    aclrtGetSocName() -> *const c_char;
    aclrtSetDevice(device: i32) -> i32;
    aclrtResetDevice(device: i32) -> i32;
    aclrtCreateContext(context: &mut P, device: i32) -> i32;
    aclrtDestroyContext(context: P) -> i32;
    aclrtGetCurrentContext(context: &mut P) -> i32;
    aclrtSetCurrentContext(context: P) -> i32;
    aclrtCreateStream(stream: &mut P) -> i32;
    aclrtDestroyStream(stream: P) -> i32;
    aclrtSynchronizeStream(stream: P) -> i32;
    aclrtSynchronizeStreamWithTimeout(stream: P, ms: i32) -> i32;
    aclrtSynchronizeDevice() -> i32;
    aclrtStreamQuery(stream: P, status: &mut i32) -> i32;
    aclrtCreateEvent(event: &mut P) -> i32;
    aclrtCreateEventWithFlag(event: &mut P, flag: u32) -> i32;
    aclrtCreateEventExWithFlag(event: &mut P, flag: u32) -> i32;
    aclrtDestroyEvent(event: P) -> i32;
    aclrtRecordEvent(event: P, stream: P) -> i32;
    aclrtResetEvent(event: P, stream: P) -> i32;
    aclrtStreamWaitEvent(stream: P, event: P) -> i32;
    aclrtSynchronizeEvent(event: P) -> i32;
    aclrtQueryEventStatus(event: P, status: &mut i32) -> i32;
    aclrtEventElapsedTime(ms: &mut f32, start: P, end: P) -> i32;
    aclrtMalloc(out: &mut P, bytes: usize, policy: i32) -> i32;
    aclrtFree(at: P) -> i32;
    aclrtMallocHost(out: &mut P, bytes: usize) -> i32;
    aclrtFreeHost(at: P) -> i32;
    aclrtMemcpy(to: P, room: usize, from: *const c_void, bytes: usize, kind: i32) -> i32;
    aclrtMemcpyAsync(to: P, room: usize, from: *const c_void, bytes: usize, kind: i32, stream: P) -> i32;
    aclrtMemset(at: P, room: usize, value: i32, bytes: usize) -> i32;
    aclrtMemsetAsync(at: P, room: usize, value: i32, bytes: usize, stream: P) -> i32;
    aclrtGetMemInfo(attribute: i32, free: &mut usize, total: &mut usize) -> i32;

    aclCreateTensor(dims: *const i64, rank: u64, dtype: i32, strides: *const i64, offset: i64, format: i32, storage: *const i64, storage_rank: u64, data: P) -> P;
    aclDestroyTensor(tensor: P) -> i32;
    aclCreateScalar(value: P, dtype: i32) -> P;
    aclDestroyScalar(scalar: P) -> i32;
    aclCreateIntArray(values: *const i64, n: u64) -> P;
    aclDestroyIntArray(array: P) -> i32;
    aclCreateTensorList(members: *const P, n: u64) -> P;
    aclDestroyTensorList(list: P) -> i32;
    aclSetAclOpExecutorRepeatable(executor: P) -> i32;
    aclDestroyAclOpExecutor(executor: P) -> i32;

    aclnnMatmulGetWorkspaceSize(a: P, b: P, out: P, cube: i8, size: &mut u64, executor: &mut P) -> i32;
    aclnnMatmul(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnAddGetWorkspaceSize(a: P, b: P, alpha: P, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnAdd(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnMulGetWorkspaceSize(a: P, b: P, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnMul(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnCastGetWorkspaceSize(x: P, dtype: i32, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnCast(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnSiluGetWorkspaceSize(x: P, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnSilu(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnSwiGluGetWorkspaceSize(x: P, dim: i64, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnSwiGlu(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnRmsNormGetWorkspaceSize(x: P, gamma: P, eps: f64, y: P, rstd: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnRmsNorm(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnAddRmsNormGetWorkspaceSize(a: P, b: P, gamma: P, eps: f64, y: P, rstd: P, sum: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnAddRmsNorm(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnSoftmaxGetWorkspaceSize(x: P, dim: i64, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnSoftmax(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnArgMaxGetWorkspaceSize(x: P, dim: i64, keep: bool, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnArgMax(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnTopkGetWorkspaceSize(x: P, k: i64, dim: i64, largest: bool, sorted: bool, values: P, indices: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnTopk(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnTopKTopPSampleGetWorkspaceSize(logits: P, k: P, p: P, q: P, eps: f64, logits_too: bool, guess: i64, index: P, kept: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnTopKTopPSample(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnEmbeddingGetWorkspaceSize(weight: P, ids: P, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnEmbedding(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnIndexSelectGetWorkspaceSize(x: P, dim: i64, index: P, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnIndexSelect(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnRotaryPositionEmbeddingGetWorkspaceSize(x: P, cos: P, sin: P, mode: i64, out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnRotaryPositionEmbedding(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnApplyRotaryPosEmbV2GetWorkspaceSize(q: P, k: P, cos: P, sin: P, layout: i64, mode: *const c_char, size: &mut u64, executor: &mut P) -> i32;
    aclnnApplyRotaryPosEmbV2(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnScatterPaKvCacheGetWorkspaceSize(key: P, keys: P, slots: P, value: P, values: P, a: P, b: P, c: P, cache: *const c_char, scatter: *const c_char, strides: P, offsets: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnScatterPaKvCache(workspace: P, bytes: u64, executor: P, stream: P) -> i32;
    aclnnFusedInferAttentionScoreV3GetWorkspaceSize(
        query: P, key: P, value: P, pse: P, mask: P, q_lens: P, kv_lens: P, a1: P, a2: P, a3: P, a4: P, a5: P, a6: P, a7: P, table: P,
        b1: P, b2: P, b3: P, b4: P, b5: P, b6: P, b7: P, b8: P, b9: P, c1: P, c2: P, c3: P, heads: i64, scale: f64, pre: i64, next: i64,
        layout: *const c_char, kv_heads: i64, sparse: i64, precise: i64, block: i64, antiquant: i64, lse: bool, k_mode: i64, v_mode: i64,
        out: P, lse_out: P, size: &mut u64, executor: &mut P) -> i32;
    aclnnFusedInferAttentionScoreV3(workspace: P, bytes: u64, executor: P, stream: P) -> i32;

    aclrtBinaryLoadFromFile(path: *const c_char, options: P, binary: &mut P) -> i32;
    aclrtBinaryUnLoad(binary: P) -> i32;
    aclrtBinaryGetFunction(binary: P, kernel: *const c_char, function: &mut P) -> i32;
    aclrtKernelArgsInit(function: P, args: &mut P) -> i32;
    aclrtKernelArgsAppend(args: P, value: *const c_void, bytes: usize, param: &mut P) -> i32;
    aclrtKernelArgsFinalize(args: P) -> i32;
    aclrtLaunchKernelWithConfig(function: P, blocks: u32, stream: P, config: P, args: P, reserve: P) -> i32;

    HcclGetRootInfo(info: *mut [u8; 4108]) -> i32;
    HcclCommInitRootInfo(ranks: u32, info: *const [u8; 4108], rank: u32, comm: &mut P) -> i32;
    HcclAllReduce(send: P, recv: P, count: u64, dtype: i32, op: i32, comm: P, stream: P) -> i32;
    HcclAllGather(send: P, recv: P, count: u64, dtype: i32, comm: P, stream: P) -> i32;
    HcclBroadcast(buffer: P, count: u64, dtype: i32, root: u32, comm: P, stream: P) -> i32;
    HcclSend(buffer: P, count: u64, dtype: i32, to: u32, comm: P, stream: P) -> i32;
    HcclRecv(buffer: P, count: u64, dtype: i32, from: u32, comm: P, stream: P) -> i32;
    HcclCommDestroy(comm: P) -> i32;
    HcclGetCommAsyncError(comm: P, error: &mut i32) -> i32;
}
