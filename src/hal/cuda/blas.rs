//! Matrix products through cuBLASLt, one prepared plan per kind of product and bucket of rows.

use super::batched::{self, Batched, Order};
use super::driver::{before_the_path, check_alive, preload};
use super::product::{ADDED_ROWS, Key, Product, Search, all_buckets, bucket};
use super::tuning::{Stopwatch, Tuning};
use crate::base::{DType, Error, ErrorKind, Result};
use cudarc::cublaslt::sys::{self, cublasStatus_t};
use cudarc::driver;
use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Instant;

/// Algorithms asked of the library.
const CANDIDATES: usize = 8;
/// Timed runs of a candidate at most, and how near to the best one it must be to be run again.
const ROUNDS: usize = 3;
const WORTH_ANOTHER: f32 = 1.15;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: parts of a sum are added up in F32, not in the output's dtype.
const REDUCTION: u32 = 2;
/// `CUBLASLT_REDUCTION_SCHEME_MASK`: all of them, and the scratch memory that PyTorch gives on these GPUs.
pub(super) const REFERENCE_REDUCTION: u32 = 7;
pub(super) const REFERENCE_WORKSPACE: usize = 32 << 20;
/// `CUBLAS_OP_T` of cublas_api.h.
pub(super) const TRANSPOSED: i32 = 1;
#[derive(Debug)]
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    x: sys::cublasLtMatrixLayout_t,
    w: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    /// Of `x` and `out`, as the layouts are now.
    rows: usize,
    /// The algorithm was timed, now or before.
    tuned: bool,
    algo: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn set_rows(&mut self, rows: usize) -> Result<()> {
        if self.rows != rows {
            let which = sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS;
            for layout in [self.x, self.out] {
                let value = rows as u64;
                // SAFETY: a live layout; the value is copied during the call.
                let status = unsafe {
                    sys::cublasLtMatrixLayoutSetAttribute(layout, which, (&raw const value).cast(), size_of::<u64>())
                };
                check(status, "cublasLtMatrixLayoutSetAttribute")?;
            }
            self.rows = rows;
        }
        Ok(())
    }

    /// Enqueues `p`, which is of this plan's shape, with an algorithm. `Err` when the plan cannot be changed.
    fn enqueue(
        &self,
        (handle, algo): (sys::cublasLtHandle_t, &sys::cublasLtMatmulAlgo_t),
        p: &Product,
        workspace: (u64, usize),
        stream: *mut c_void,
    ) -> Result<cublasStatus_t> {
        if let Some(bias) = p.bias {
            set(self.desc, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, kept) = (1.0f32, if p.adds { 1.0f32 } else { 0.0 });
        // SAFETY: the plan was made for these shapes; the addresses are device memory of those shapes, as the caller says;
        // the scalars are read before the call returns (host pointer mode).
        Ok(unsafe {
            sys::cublasLtMatmul(
                handle,
                self.desc,
                (&raw const one).cast(),
                p.w as *const c_void,
                self.w,
                p.x as *const c_void,
                self.x,
                (&raw const kept).cast(),
                p.out as *const c_void,
                self.out,
                p.out as *mut c_void,
                self.out,
                &raw const *algo,
                workspace.0 as *mut c_void,
                workspace.1,
                stream.cast(),
            )
        })
    }
}

/// Writes more than the cache holds, as a step's other work does between two runs of a product.
fn flush_cache(workspace: (u64, usize), stream: *mut c_void) -> Result<()> {
    // SAFETY: the stream's scratch memory, which holds nothing between two products.
    let result = unsafe { driver::sys::cuMemsetD8Async(workspace.0, 0, workspace.1, stream.cast()) };
    super::driver::check(result, "clearing scratch memory")
}

fn median(times: &[f32]) -> f32 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f32::INFINITY)
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
    /// As many as there are buckets and kinds of products.
    plans: HashMap<Key, Plan>,
    /// Of batched products that others compute in the reference's order.
    orders: HashMap<Batched, Order>,
    tuning: Option<Arc<Tuning>>,
}

// SAFETY: handle and plans belong to one stream, which is used by one thread at a time.
unsafe impl Send for Blas {}

pub(super) fn check(status: cublasStatus_t, what: &str) -> Result<()> {
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

/// The library's version, which its algorithms are valid for.
pub(super) fn version() -> usize {
    // SAFETY: no arguments; the library was found before.
    unsafe { sys::cublasLtGetVersion() }
}

pub(super) fn data_type(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

impl Blas {
    /// On the calling thread's context.
    pub(super) fn new(tuning: Option<Arc<Tuning>>) -> Result<Self> {
        let mut handle = null_mut();
        // SAFETY: `handle` is writable.
        check(unsafe { sys::cublasLtCreate(&raw mut handle) }, "cublasLtCreate")?;
        Ok(Self { handle, plans: HashMap::new(), orders: HashMap::new(), tuning })
    }

    /// Enqueues a product on `stream`, with `workspace` as scratch. The addresses are device memory of the shapes' sizes.
    pub(super) fn run(&mut self, p: &Product, workspace: (u64, usize), stream: *mut c_void) -> Result<()> {
        let key = Key::of(p);
        self.ensure(&key, workspace.1)?;
        let (rows, handle) = (p.shape.0, self.handle);
        let Some(plan) = self.plans.get_mut(&key) else { return Err(Error::internal("a product has no plan")) };
        plan.set_rows(rows)?;
        let status = plan.enqueue((handle, &plan.algo), p, workspace, stream)?;
        let refused = [cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED, cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE];
        if refused.contains(&status) && rows != key.shape.0 {
            // What serves the most rows of its kind need not serve fewer.
            let plan = self.plan(&Key { shape: p.shape, ..key }, workspace.1)?;
            return check(plan.enqueue((handle, &plan.algo), p, workspace, stream)?, &p.name());
        }
        if refused.contains(&status) && p.search == Search::AsReference {
            // Rows that are no whole vectors, say: which algorithm the reference falls back on is not known.
            return self.run(&Product { search: Search::Exact, ..*p }, workspace, stream);
        }
        check(status, &p.name())
    }

    /// In which order the reference adds up a batched product.
    pub(super) fn order(&mut self, product: &Batched) -> Result<Order> {
        if let Some(order) = self.orders.get(product) {
            return Ok(*order);
        }
        let order = batched::order(self.handle, product)?;
        self.orders.insert(*product, order);
        Ok(order)
    }

    /// Makes the plans of products of any number of rows up to those given, and runs each algorithm in them once, so that its
    /// code is on the device. Where products are timed, the plans have the fastest algorithms.
    pub(super) fn prepare(&mut self, products: &[Product], workspace: (u64, usize), stream: *mut c_void) -> Result<()> {
        let watch = self.tuning.as_ref().map(|_| Stopwatch::new()).transpose()?;
        let mut ran = HashSet::new();
        for rows in all_buckets(products.iter().map(|p| p.shape.0).max().unwrap_or(0)) {
            for p in products.iter().filter(|p| rows <= bucket(p.shape.0)) {
                let (most, n, k) = p.shape;
                let p = Product { shape: (rows.min(most), n, k), adds: p.adds && rows >= ADDED_ROWS, ..*p };
                if let Some(watch) = &watch {
                    self.search(&p, watch, workspace, stream)?;
                }
                let key = Key::of(&p);
                self.ensure(&key, workspace.1)?;
                let algo = self.plans.get(&key).map(|plan| plan.algo.data);
                // Products that are added are others to the library, with the same algorithm.
                for adds in [false, true].into_iter().filter(|adds| p.adds || !adds) {
                    if ran.insert((key.dtypes, key.has_bias, key.align, adds, algo)) {
                        self.run(&Product { adds, ..p }, workspace, stream)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn ensure(&mut self, key: &Key, workspace_bytes: usize) -> Result<()> {
        if !self.plans.contains_key(key) {
            let plan = self.plan(key, workspace_bytes)?;
            self.plans.insert(*key, plan);
        }
        Ok(())
    }

    /// Times the library's candidates for a product, unless that was done before or there is no time left.
    fn search(&mut self, p: &Product, watch: &Stopwatch, workspace: (u64, usize), stream: *mut c_void) -> Result<()> {
        let key = Key::of(p);
        self.ensure(&key, workspace.1)?;
        let (handle, from) = (self.handle, Instant::now());
        let Some(tuning) = self.tuning.clone().filter(|t| t.may_search()) else { return Ok(()) };
        let Some(plan) = self.plans.get(&key).filter(|plan| !plan.tuned) else { return Ok(()) };
        let candidates = self.candidates(plan, &key, workspace.1)?;
        let Some(plan) = self.plans.get_mut(&key) else { return Ok(()) };
        plan.set_rows(p.shape.0)?;
        // The first run loads code. One that fails is none.
        let mut alive = Vec::new();
        for algo in candidates {
            if plan.enqueue((handle, &algo), p, workspace, stream)? == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
                alive.push((algo, Vec::new()));
            }
        }
        for _ in 0..ROUNDS {
            for (algo, times) in &mut alive {
                flush_cache(workspace, stream)?;
                let run = || check(plan.enqueue((handle, algo), p, workspace, stream)?, &p.name());
                times.push(watch.time(stream.cast(), run)?);
            }
            let best = alive.iter().map(|(_, times)| median(times)).fold(f32::INFINITY, f32::min);
            alive.retain(|(_, times)| median(times) <= WORTH_ANOTHER * best);
        }
        alive.sort_by(|a, b| median(&a.1).total_cmp(&median(&b.1)));
        if let Some((algo, _)) = alive.first() {
            (plan.algo, plan.tuned) = (*algo, true);
            tuning.found(key.name(), algo.data, from);
        }
        Ok(())
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
            rows: m,
            tuned: false,
            // SAFETY: plain numbers.
            algo: unsafe { std::mem::zeroed() },
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: every output is writable; sizes are those of the operands.
        unsafe {
            let desc = sys::cublasLtMatmulDescCreate(&raw mut plan.desc, compute, sys::cudaDataType_t::CUDA_R_32F);
            check(desc, "cublasLtMatmulDescCreate")?;
            for (layout, dtype, rows, cols, stride) in [
                (&raw mut plan.w, input, k, n, k),
                (&raw mut plan.x, input, k, m, k),
                (&raw mut plan.out, output, n, m, key.out_stride),
            ] {
                let made = sys::cublasLtMatrixLayoutCreate(layout, dtype, rows as u64, cols as u64, stride as i64);
                check(made, "cublasLtMatrixLayoutCreate")?;
            }
        }
        set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if key.has_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &output)?;
        }
        let known = self.tuning.as_ref().and_then(|t| t.known(&key.name()));
        if let Some(algo) = known.map(|data| sys::cublasLtMatmulAlgo_t { data })
            && self.serves(&plan, &algo, workspace_bytes)
        {
            (plan.algo, plan.tuned) = (algo, true);
            self.tuning.iter().for_each(|t| t.used());
            return Ok(plan);
        }
        let first = self.candidates(&plan, key, workspace_bytes)?.into_iter().next();
        plan.algo = first.ok_or_else(|| {
            let text = format!("cuBLASLt has no product of {m}x{k} with {n}x{k} in {}", key.dtypes.0);
            Error::new(ErrorKind::Device, text)
        })?;
        Ok(plan)
    }

    /// Whether the library takes an algorithm that was kept.
    fn serves(&self, plan: &Plan, algo: &sys::cublasLtMatmulAlgo_t, workspace_bytes: usize) -> bool {
        // SAFETY: plain numbers and enums whose zero is a value (success).
        let mut found: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let result = &raw mut found;
        // SAFETY: live objects and a writable result; the library looks at the algorithm before it says yes.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle,
                plan.desc,
                plan.w,
                plan.x,
                plan.out,
                plan.out,
                &raw const *algo,
                result,
            )
        };
        status == cublasStatus_t::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= workspace_bytes
    }

    /// What the library says runs, its best guess first.
    fn candidates(&self, plan: &Plan, key: &Key, workspace_bytes: usize) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Pref;
        let mut preference = null_mut();
        // SAFETY: `preference` is writable.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut preference) }, "cublasLtMatmulPreferenceCreate")?;
        // SAFETY: plain numbers and enums whose zero is a value (success).
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        let [out, x, w] = key.align.map(|a| a as u32);
        let (reduction, workspace_bytes) = match key.search {
            Search::Exact => (REDUCTION, workspace_bytes),
            Search::AsReference => (REFERENCE_REDUCTION, workspace_bytes.min(REFERENCE_WORKSPACE)),
        };
        let bytes = |value: &u32| ((&raw const *value).cast::<c_void>(), size_of::<u32>());
        let ((workspace, wide), limits) = (
            ((&raw const workspace_bytes).cast::<c_void>(), size_of::<usize>()),
            [
                (Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, bytes(&reduction)),
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
        Ok(found[..count.max(0) as usize].iter().filter(runs).map(|f| f.algo).collect())
    }
}

pub(super) fn set<T>(
    desc: sys::cublasLtMatmulDesc_t,
    which: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
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
