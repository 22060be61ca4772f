//! A small client of the double for tests: one device, one stream, tensors that end with their owner.

use crate::api::{Double, P};
use half::{bf16, f16};
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard};

pub(crate) const F32: i32 = 0;
pub(crate) const F16: i32 = 1;
pub(crate) const I8: i32 = 2;
pub(crate) const I32: i32 = 3;
pub(crate) const I64: i32 = 9;
pub(crate) const BF16: i32 = 27;
pub(crate) const H2D: i32 = 1;
pub(crate) const D2H: i32 = 2;
pub(crate) const D2D: i32 = 3;

/// The double is one for the process: tests take turns.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) fn size_of(dtype: i32) -> usize {
    match dtype {
        F32 | I32 => 4,
        I64 => 8,
        I8 => 1,
        _ => 2,
    }
}

/// Numbers as bytes of a dtype.
pub(crate) fn pack(values: &[f64], dtype: i32) -> Vec<u8> {
    let one = |v: &f64| match dtype {
        F32 => (*v as f32).to_le_bytes().to_vec(),
        F16 => f16::from_f32(*v as f32).to_le_bytes().to_vec(),
        BF16 => bf16::from_f32(*v as f32).to_le_bytes().to_vec(),
        I8 => vec![*v as i8 as u8],
        I32 => (*v as i32).to_le_bytes().to_vec(),
        _ => (*v as i64).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(one).collect()
}

pub(crate) fn unpack(bytes: &[u8], dtype: i32) -> Vec<f64> {
    let one = |b: &[u8]| match dtype {
        F32 => f64::from(f32::from_le_bytes(b.try_into().unwrap())),
        F16 => f16::from_le_bytes(b.try_into().unwrap()).to_f64(),
        BF16 => bf16::from_le_bytes(b.try_into().unwrap()).to_f64(),
        I8 => f64::from(b[0] as i8),
        I32 => f64::from(i32::from_le_bytes(b.try_into().unwrap())),
        _ => i64::from_le_bytes(b.try_into().unwrap()) as f64,
    };
    bytes.chunks(size_of(dtype)).map(one).collect()
}

/// A device tensor as an op is given it, and the memory it alone has.
#[derive(Clone, Copy)]
pub(crate) struct T {
    pub(crate) handle: P,
    pub(crate) at: P,
    pub(crate) bytes: usize,
    pub(crate) dtype: i32,
}

/// One test's turn with the double: device 0 set, a stream made. Ends what it made when it is dropped.
pub(crate) struct World {
    pub(crate) d: &'static Double,
    pub(crate) stream: P,
    ended: Cell<bool>,
    made: RefCell<Vec<T>>,
    arrays: RefCell<Vec<P>>,
    scalars: RefCell<Vec<P>>,
    lists: RefCell<Vec<P>>,
    workspaces: RefCell<Vec<P>>,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    pub(crate) fn lazy() -> Self {
        Self::new(0, 0)
    }

    pub(crate) fn threaded(seed: u64) -> Self {
        Self::new(1, seed)
    }

    fn new(threaded: i32, seed: u64) -> Self {
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let d = Double::get();
        let code = d.aclInit(std::ptr::null());
        assert!(code == 0 || code == 100_002, "aclInit: {code}");
        d.yn_double_reset();
        d.yn_double_mode(threaded, seed);
        assert_eq!(d.aclrtSetDevice(0), 0);
        let mut stream = null_mut();
        assert_eq!(d.aclrtCreateStream(&mut stream), 0);
        let lists = [(); 4].map(|()| RefCell::new(Vec::new()));
        let [arrays, scalars, lists, workspaces] = lists;
        Self {
            d,
            stream,
            ended: Cell::new(false),
            made: RefCell::default(),
            arrays,
            scalars,
            lists,
            workspaces,
            _turn: turn,
        }
    }

    pub(crate) fn malloc(&self, bytes: usize) -> P {
        let mut at = null_mut();
        assert_eq!(self.d.aclrtMalloc(&mut at, bytes, 0), 0);
        at
    }

    pub(crate) fn malloc_host(&self, bytes: usize) -> P {
        let mut at = null_mut();
        assert_eq!(self.d.aclrtMallocHost(&mut at, bytes), 0);
        at
    }

    /// A tensor over memory of somebody else's, row-major unless strides are given.
    pub(crate) fn view(
        &self,
        at: P,
        dims: &[i64],
        strides: Option<&[i64]>,
        offset: i64,
        storage: &[i64],
        dtype: i32,
    ) -> P {
        let dense: Vec<i64> = (0..dims.len()).map(|i| dims[i + 1..].iter().product()).collect();
        let strides = strides.unwrap_or(&dense);
        let (rank, storage_rank) = (dims.len() as u64, storage.len() as u64);
        let (dims, strides, storage) = (dims.as_ptr(), strides.as_ptr(), storage.as_ptr());
        let handle = self.d.aclCreateTensor(dims, rank, dtype, strides, offset, 2, storage, storage_rank, at);
        assert!(!handle.is_null());
        handle
    }

    /// A tensor with memory of its own, which holds 0xFF.
    pub(crate) fn empty(&self, dims: &[i64], dtype: i32) -> T {
        let bytes = dims.iter().product::<i64>() as usize * size_of(dtype);
        let at = self.malloc(bytes.max(1));
        let t = T { handle: self.view(at, dims, None, 0, dims, dtype), at, bytes, dtype };
        self.made.borrow_mut().push(t);
        t
    }

    pub(crate) fn tensor(&self, dims: &[i64], dtype: i32, values: &[f64]) -> T {
        let t = self.empty(dims, dtype);
        let bytes = pack(values, dtype);
        assert_eq!(bytes.len(), t.bytes);
        if !bytes.is_empty() {
            assert_eq!(self.d.aclrtMemcpy(t.at, t.bytes, bytes.as_ptr().cast(), t.bytes, H2D), 0);
        }
        t
    }

    pub(crate) fn ints(&self, values: &[i64]) -> P {
        let array = self.d.aclCreateIntArray(values.as_ptr(), values.len() as u64);
        self.arrays.borrow_mut().push(array);
        array
    }

    pub(crate) fn scalar(&self, value: f32) -> P {
        let mut value = value;
        let scalar = self.d.aclCreateScalar((&raw mut value).cast(), F32);
        self.scalars.borrow_mut().push(scalar);
        scalar
    }

    /// A list that owns another handle to `t`'s memory.
    pub(crate) fn list(&self, t: T, dims: &[i64]) -> P {
        let member = self.view(t.at, dims, None, 0, dims, t.dtype);
        let list = self.d.aclCreateTensorList(&raw const member, 1);
        self.lists.borrow_mut().push(list);
        list
    }

    pub(crate) fn sync(&self) -> i32 {
        self.d.aclrtSynchronizeStream(self.stream)
    }

    /// Both phases: plans, gives a workspace that lives as long as the world, and runs. The first code that is not 0.
    pub(crate) fn run(
        &self,
        plan: impl FnOnce(&mut u64, &mut P) -> i32,
        launch: impl FnOnce(P, u64, P, P) -> i32,
    ) -> i32 {
        let (mut bytes, mut executor) = (0, null_mut());
        let code = plan(&mut bytes, &mut executor);
        if code != 0 {
            return code;
        }
        let workspace = if bytes > 0 { self.malloc(bytes as usize) } else { null_mut() };
        if bytes > 0 {
            self.workspaces.borrow_mut().push(workspace);
        }
        launch(workspace, bytes, executor, self.stream)
    }

    /// Waits and reads all of a tensor.
    pub(crate) fn read(&self, t: T) -> Vec<f64> {
        assert_eq!(self.sync(), 0, "{}", self.d.faults());
        let mut bytes = vec![0u8; t.bytes];
        assert_eq!(self.d.aclrtMemcpy(bytes.as_mut_ptr().cast::<c_void>(), t.bytes, t.at, t.bytes, D2H), 0);
        unpack(&bytes, t.dtype)
    }

    /// A string that lives as long as the process.
    pub(crate) fn name(text: &str) -> *const c_char {
        CString::new(text).unwrap().into_raw()
    }

    /// Ends what this world made and says what is left of it.
    pub(crate) fn end(&self) -> String {
        for list in self.lists.borrow_mut().drain(..) {
            self.d.aclDestroyTensorList(list);
        }
        for t in self.made.borrow_mut().drain(..) {
            self.d.aclDestroyTensor(t.handle);
            self.d.aclrtFree(t.at);
        }
        for array in self.arrays.borrow_mut().drain(..) {
            self.d.aclDestroyIntArray(array);
        }
        for scalar in self.scalars.borrow_mut().drain(..) {
            self.d.aclDestroyScalar(scalar);
        }
        for workspace in self.workspaces.borrow_mut().drain(..) {
            self.d.aclrtFree(workspace);
        }
        if !self.ended.replace(true) {
            self.d.aclrtDestroyStream(self.stream);
        }
        self.d.leaks()
    }
}

/// Numbers between -1 and 1 that look random, the same in every run.
pub(crate) fn numbers(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    (0..n).map(|_| next()).collect()
}
