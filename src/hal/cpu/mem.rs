//! Host memory as device memory: aligned, zeroed lazily by the system, never aborting when there is too little.

use crate::base::DType;
use crate::base::{Error, Result};
use crate::hal::{Allocation, HostBuffer, MemoryInfo, Tensor};
use std::alloc::{Layout, alloc_zeroed, dealloc};

const ALIGN: usize = 64;
/// From here on an allocation is aligned for huge pages and checked against the free memory of the machine.
const LARGE: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes aligned to at least 64.
#[derive(Debug)]
pub(super) struct HostMemory {
    base: *mut u8,
    layout: Layout,
    addr: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory without thread affinity; who may touch which bytes when is the business of the ops.
unsafe impl Send for HostMemory {}
// SAFETY: as above; shared access goes through raw pointers of ops that partition their outputs.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Errors with `NoMemory` when the machine has not that much.
    pub(super) fn new(bytes: usize) -> Result<Self> {
        let refuse = |why: String| Error::no_memory(format!("cannot allocate {bytes} bytes of host memory: {why}"));
        // Where the system does not tell, its own refusal must do.
        let free = if bytes >= LARGE { memory_info().ok().map(|info| info.free_bytes) } else { None };
        if let Some(free) = free.filter(|free| bytes > *free) {
            return Err(refuse(format!("{free} bytes are free; use a smaller model or fewer KV blocks")));
        }
        let align = if bytes >= LARGE { HUGE_PAGE } else { ALIGN };
        // An alignment above the allocator's own makes it write zeros by hand, so align within a larger piece instead.
        let layout = bytes
            .checked_add(align)
            .and_then(|padded| Layout::from_size_align(padded, 16).ok())
            .ok_or_else(|| refuse("more than an address space holds".to_owned()))?;
        // SAFETY: the layout's size is at least `align`, hence not 0.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            return Err(refuse("the system refused".to_owned()));
        }
        // SAFETY: the offset is below `align`, and `bytes + align` bytes were allocated.
        let addr = unsafe { base.add(base.align_offset(align)) };
        if bytes >= LARGE {
            advise_huge_pages(addr, bytes);
        }
        Ok(Self { base, layout, addr, bytes })
    }

    pub(super) fn ptr(&self) -> *mut u8 {
        self.addr
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(addr: *mut u8, bytes: usize) {
    // SAFETY: the range lies inside one live allocation and its start is page aligned; the advice changes no contents,
    // and a refusal costs speed only.
    unsafe { libc::madvise(addr.cast(), bytes & !(HUGE_PAGE - 1), libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: *mut u8, _: usize) {}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { dealloc(self.base, self.layout) };
    }
}

impl Allocation for HostMemory {
    fn addr(&self) -> u64 {
        self.addr as u64
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl HostBuffer for HostMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` initialised bytes from `addr`, alive as long as self; a host buffer is handed out alone.
        unsafe { std::slice::from_raw_parts(self.addr, self.bytes) }
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.addr, self.bytes) }
    }
}

/// Memory of the machine or of the container around the process.
pub(super) fn memory_info() -> Result<MemoryInfo> {
    let text = std::fs::read_to_string("/proc/meminfo")
        .map_err(|e| Error::io(format!("cannot read /proc/meminfo for the size of host memory: {e}")))?;
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib * 1024)
    };
    match (field("MemTotal:"), field("MemAvailable:")) {
        (Some(total_bytes), Some(free_bytes)) => Ok(match container_limit() {
            Some(limit) => MemoryInfo {
                total_bytes: total_bytes.min(limit.total_bytes),
                free_bytes: free_bytes.min(limit.free_bytes),
            },
            None => MemoryInfo { total_bytes, free_bytes },
        }),
        _ => Err(Error::io("/proc/meminfo has no MemTotal and MemAvailable lines; a Linux kernel writes both")),
    }
}

/// What the container allows, where there is one (control groups version 2, then 1); going beyond it means being killed.
fn container_limit() -> Option<MemoryInfo> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let pairs = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
            "/sys/fs/cgroup/memory/memory.stat",
        ),
    ];
    pairs.into_iter().find_map(|(limit, used, stat)| {
        let (total_bytes, used) = (number(limit)?, number(used)?);
        // File pages count as used until somebody needs them.
        let stat = std::fs::read_to_string(stat).unwrap_or_default();
        let cached = stat.lines().find_map(|l| l.strip_prefix("inactive_file ")?.parse::<usize>().ok()).unwrap_or(0);
        Some(MemoryInfo { total_bytes, free_bytes: total_bytes.saturating_sub(used.saturating_sub(cached)) })
    })
}

/// A matrix as a bare pointer that compute threads share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<T> {
    ptr: *mut T,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

// SAFETY: a pointer with a shape; every dereference is an unsafe call whose caller partitions the rows.
unsafe impl<T: Send> Send for Rows<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Rows<T> {}

impl<T: Copy> Rows<T> {
    fn checked(t: &Tensor, dtype: DType) -> Self {
        assert_eq!(t.dtype(), dtype, "operand of {}x{}", t.rows(), t.cols());
        Self { ptr: t.addr() as *mut T, rows: t.rows(), cols: t.cols() }
    }

    pub(super) fn ptr(self) -> *mut T {
        self.ptr
    }

    /// # Safety
    /// Nobody writes row `i` while the result lives, and the tensor outlives it.
    pub(super) unsafe fn row<'a>(self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: `Tensor::new` checked that all rows lie inside the allocation; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.add(i * self.cols), self.cols) }
    }

    /// # Safety
    /// Nobody else touches row `i` while the result lives, and the tensor outlives it.
    pub(super) unsafe fn row_mut<'a>(self, i: usize) -> &'a mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: as in `row`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.cols), self.cols) }
    }
}

/// An F32 tensor.
pub(super) fn floats(t: &Tensor) -> Rows<f32> {
    Rows::checked(t, DType::F32)
}

/// An I32 tensor.
pub(super) fn ints(t: &Tensor) -> Rows<i32> {
    Rows::checked(t, DType::I32)
}

/// An F32 or I32 tensor as plain words.
pub(super) fn words(t: &Tensor) -> Rows<u32> {
    assert!(matches!(t.dtype(), DType::F32 | DType::I32), "operand of {}x{}", t.rows(), t.cols());
    Rows { ptr: t.addr() as *mut u32, rows: t.rows(), cols: t.cols() }
}

/// A U8 tensor read as native u16; its allocation is aligned for it.
pub(super) fn shorts(t: &Tensor) -> Rows<u16> {
    assert!(t.cols().is_multiple_of(2) && t.addr().is_multiple_of(2), "{}x{} bytes are no u16", t.rows(), t.cols());
    let bytes = Rows::<u8>::checked(t, DType::U8);
    Rows { ptr: bytes.ptr.cast(), rows: t.rows(), cols: t.cols() / 2 }
}

impl Rows<f32> {
    /// Scratch memory as a matrix; `ptr` must be good for `rows * cols` elements wherever a row is used.
    pub(super) fn over(ptr: *mut f32, rows: usize, cols: usize) -> Self {
        Self { ptr, rows, cols }
    }
}

/// Aligned working memory of a stream; it only ever grows.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    memory: Option<HostMemory>,
}

impl Scratch {
    /// Memory of at least `n` floats whose contents do not matter, good until the next call.
    pub(super) fn grow(&mut self, n: usize) -> Result<*mut f32> {
        let bytes = n * size_of::<f32>();
        match &self.memory {
            Some(memory) if memory.bytes >= bytes => Ok(memory.ptr().cast()),
            _ => {
                self.memory = None;
                Ok(self.memory.insert(HostMemory::new(bytes.next_power_of_two())?).ptr().cast())
            }
        }
    }
}
