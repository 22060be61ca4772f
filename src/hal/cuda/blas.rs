//! Matrix products through cuBLASLt, one prepared plan per shape.

use super::driver::{before_the_path, check_alive, preload};
use crate::base::{DType, Error, ErrorKind, Result};
use cudarc::cublaslt::sys::{self, cublasStatus_t};
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::ptr::null_mut;

/// Algorithms asked of the library; the first that it says runs is taken.
const CANDIDATES: usize = 8;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: parts of a sum are added up in F32, not in the output's dtype.
const REDUCTION: u32 = 2;
/// `CUBLAS_OP_T` of cublas_api.h.
const TRANSPOSED: i32 = 1;
/// Alignment that is worth knowing, in bytes.
const MAX_ALIGN: u64 = 256;

/// `out = x * w^T + bias`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    /// Rows of `x` and `out`, columns of `out`, columns of `x`.
    pub(super) shape: (usize, usize, usize),
    /// Of `x` and `w`, and of `out`.
    pub(super) dtypes: (DType, DType),
    pub(super) out: u64,
    pub(super) x: u64,
    pub(super) w: u64,
    /// One number for each column of `out`, in its dtype.
    pub(super) bias: Option<u64>,
}

/// What a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    shape: (usize, usize, usize),
    dtypes: (DType, DType),
    has_bias: bool,
    /// Of `out`, `x` and `w`.
    align: [u64; 3],
}

#[derive(Debug)]
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    x: sys::cublasLtMatrixLayout_t,
    w: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algo: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `Blas::plan`, or null as nothing was made; destroyed once.
        unsafe {
            for layout in [self.x, self.w, self.out].into_iter().filter(|l| !l.is_null()) {
                let _ = sys::cublasLtMatrixLayoutDestroy(layout);
            }
            if !self.desc.is_null() {
                let _ = sys::cublasLtMatmulDescDestroy(self.desc);
            }
        }
    }
}

/// The library's handle and the plans made so far. One owner at a time.
#[derive(Debug)]
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Key, Plan>,
}

// SAFETY: handle and plans belong to one stream, which is used by one thread at a time.
unsafe impl Send for Blas {}

fn check(status: cublasStatus_t, what: &str) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => Err(Error::no_memory(format!("cuBLASLt: {what}: {status:?}"))),
        // The library does not say when it is the context that is lost.
        _ => check_alive().and(Err(Error::new(ErrorKind::Device, format!("cuBLASLt: {what}: {status:?}")))),
    }
}

/// Finds the library; the error says what was searched.
pub(super) fn load(library_dir: Option<&Path>) -> Result<()> {
    if let Some(dir) = library_dir {
        ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"].iter().for_each(|name| preload(&dir.join(name)));
    }
    // SAFETY: loading a vendor library runs its initialisers, as every user of it does.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Device,
        format!(
            "no cuBLASLt: {}libcublasLt.so, .so.13 and .so.12 were searched on the loader's path; install the CUDA libraries, \
             or name their folder in \"device_library_dir\"",
            before_the_path(library_dir, "libcublasLt.so.13, .so.12 and .so")
        ),
    ))
}

fn data_type(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

fn align(addr: u64) -> u64 {
    (1 << addr.trailing_zeros().min(63)).min(MAX_ALIGN)
}

impl Blas {
    /// On the calling thread's context.
    pub(super) fn new() -> Result<Self> {
        let mut handle = null_mut();
        // SAFETY: `handle` is writable.
        check(unsafe { sys::cublasLtCreate(&raw mut handle) }, "cublasLtCreate")?;
        Ok(Self { handle, plans: HashMap::new() })
    }

    /// Enqueues a product on `stream`, with `workspace` as scratch. The addresses are device memory of the shapes' sizes.
    pub(super) fn run(&mut self, p: &Product, workspace: (u64, usize), stream: *mut c_void) -> Result<()> {
        let key =
            Key { shape: p.shape, dtypes: p.dtypes, has_bias: p.bias.is_some(), align: [p.out, p.x, p.w].map(align) };
        if !self.plans.contains_key(&key) {
            let plan = self.plan(&key, workspace.1)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        if let Some(bias) = p.bias {
            set(plan.desc, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the plan was made for these shapes; the addresses are device memory of those shapes, as the caller says;
        // the scalars are read before the call returns (host pointer mode).
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.desc,
                (&raw const one).cast(),
                p.w as *const c_void,
                plan.w,
                p.x as *const c_void,
                plan.x,
                (&raw const zero).cast(),
                p.out as *const c_void,
                plan.out,
                p.out as *mut c_void,
                plan.out,
                &raw const plan.algo,
                workspace.0 as *mut c_void,
                workspace.1,
                stream.cast(),
            )
        };
        let (m, n, k) = p.shape;
        check(status, &format!("product of {m}x{k} with {n}x{k}"))
    }

    /// Row-major operands are column-major ones transposed: `out^T = w * x^T`.
    fn plan(&self, key: &Key, workspace_bytes: usize) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        let (m, n, k) = key.shape;
        let (input, output) = (data_type(key.dtypes.0), data_type(key.dtypes.1));
        // SAFETY: an all-zero algorithm is a value the library never runs; it is replaced below.
        let mut plan = Plan {
            desc: null_mut(),
            x: null_mut(),
            w: null_mut(),
            out: null_mut(),
            // SAFETY: plain numbers.
            algo: unsafe { std::mem::zeroed() },
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: every output is writable; sizes are those of the operands.
        unsafe {
            let desc = sys::cublasLtMatmulDescCreate(&raw mut plan.desc, compute, sys::cudaDataType_t::CUDA_R_32F);
            check(desc, "cublasLtMatmulDescCreate")?;
            for (layout, dtype, rows, cols) in
                [(&raw mut plan.w, input, k, n), (&raw mut plan.x, input, k, m), (&raw mut plan.out, output, n, m)]
            {
                let made = sys::cublasLtMatrixLayoutCreate(layout, dtype, rows as u64, cols as u64, rows as i64);
                check(made, "cublasLtMatrixLayoutCreate")?;
            }
        }
        set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if key.has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &output)?;
        }
        plan.algo = self.algorithm(&plan, key, workspace_bytes)?;
        Ok(plan)
    }

    fn algorithm(&self, plan: &Plan, key: &Key, workspace_bytes: usize) -> Result<sys::cublasLtMatmulAlgo_t> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
        let mut preference = null_mut();
        // SAFETY: `preference` is writable.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut preference) }, "cublasLtMatmulPreferenceCreate")?;
        // SAFETY: plain numbers and enums whose zero is a value (success).
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        let [out, x, w] = key.align.map(|a| a as u32);
        let bytes = |value: &u32| ((&raw const *value).cast::<c_void>(), size_of::<u32>());
        let ((workspace, wide), limits) = (
            ((&raw const workspace_bytes).cast::<c_void>(), size_of::<usize>()),
            [
                (Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, bytes(&REDUCTION)),
                (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(&w)),
                (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(&x)),
                (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(&out)),
                (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(&out)),
            ],
        );
        // SAFETY: live objects; every value pointed to outlives the calls; `found` has room for what is asked.
        let status = unsafe {
            let most = Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let mut status = sys::cublasLtMatmulPreferenceSetAttribute(preference, most, workspace, wide);
            for (which, (value, size)) in limits {
                if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
                    status = sys::cublasLtMatmulPreferenceSetAttribute(preference, which, value, size);
                }
            }
            if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
                status = sys::cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    plan.desc,
                    plan.w,
                    plan.x,
                    plan.out,
                    plan.out,
                    preference,
                    CANDIDATES as i32,
                    found.as_mut_ptr(),
                    &raw mut count,
                );
            }
            let _ = sys::cublasLtMatmulPreferenceDestroy(preference);
            status
        };
        let (m, n, k) = key.shape;
        check(status, &format!("searching a product of {m}x{k} with {n}x{k} in {}", key.dtypes.0))?;
        let runs = |f: &&sys::cublasLtMatmulHeuristicResult_t| f.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        found[..count.max(0) as usize].iter().find(runs).map(|f| f.algo).ok_or_else(|| {
            let text = format!("cuBLASLt has no product of {m}x{k} with {n}x{k} in {}", key.dtypes.0);
            Error::new(ErrorKind::Device, text)
        })
    }
}

fn set<T>(desc: sys::cublasLtMatmulDesc_t, which: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
    // SAFETY: a live descriptor; the value is copied during the call.
    let status =
        unsafe { sys::cublasLtMatmulDescSetAttribute(desc, which, (&raw const *value).cast(), size_of::<T>()) };
    check(status, "cublasLtMatmulDescSetAttribute")
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: created in `new`, destroyed once.
        let _ = unsafe { sys::cublasLtDestroy(self.handle) };
    }
}
