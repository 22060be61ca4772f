//! Operands of operators: descriptions of device memory that live for one call.

use super::abi::{Abi, AclIntArray, AclScalar, AclTensor, AclTensorList, DataType, Format};
use super::stream::AscendStream;
use crate::base::{DType, Error, ErrorKind, Result};
use crate::hal::Tensor;
use std::ptr::null;

/// Operators want tensors to begin at multiples of this.
pub(super) const ALIGN: u64 = 32;

/// What the library calls a dtype.
pub(super) fn code(dtype: DType) -> DataType {
    match dtype {
        DType::F32 => DataType::FLOAT,
        DType::F16 => DataType::FLOAT16,
        DType::Bf16 => DataType::BF16,
        DType::I32 => DataType::INT32,
        DType::U8 => panic!("an operator on bytes"),
    }
}

/// Whether a tensor begins where operators want it to.
pub(super) fn is_aligned(tensor: &Tensor) -> bool {
    tensor.addr().is_multiple_of(ALIGN)
}

fn refused(abi: &Abi, what: &str) -> Error {
    match super::errors::check(abi, -1, what) {
        Err(e) => e,
        Ok(()) => Error::new(ErrorKind::Device, what.to_owned()),
    }
}

/// A described tensor.
#[derive(Debug)]
pub(super) struct View<'a> {
    raw: *mut AclTensor,
    abi: &'a Abi,
}

impl<'a> View<'a> {
    /// `dims` elements, the last dimension dense.
    pub(super) fn new(s: &'a AscendStream, addr: u64, dtype: DataType, dims: &[usize]) -> Result<Self> {
        let mut strides = vec![1; dims.len()];
        for i in (1..dims.len()).rev() {
            strides[i - 1] = strides[i] * dims[i];
        }
        Self::strided(s, (addr, dtype), dims, &strides)
    }

    /// The same with elements so far apart.
    pub(super) fn strided(
        s: &'a AscendStream,
        (addr, dtype): (u64, DataType),
        dims: &[usize],
        strides: &[usize],
    ) -> Result<Self> {
        if !addr.is_multiple_of(ALIGN) {
            return Err(Error::internal(format!(
                "an operator's tensor of {dims:?} begins at {addr:#x}; expected a multiple of {ALIGN}"
            )));
        }
        let abi = s.abi();
        let signed = |sizes: &[usize]| sizes.iter().map(|n| *n as i64).collect::<Vec<_>>();
        let reach = dims.iter().zip(strides).map(|(dim, stride)| (dim.max(&1) - 1) * stride).sum::<usize>() + 1;
        let (dims, strides, storage) = (signed(dims), signed(strides), [reach as i64]);
        let n = dims.len() as u64;
        // SAFETY: arrays of these lengths, which the call copies; the address is device memory that the operator's caller owns.
        let raw = unsafe {
            let (dims, strides, storage) = (dims.as_ptr(), strides.as_ptr(), storage.as_ptr());
            (abi.aclCreateTensor)(dims, n, dtype, strides, 0, Format::ND, storage, 1, addr as *mut _)
        };
        if raw.is_null() { Err(refused(abi, "aclCreateTensor")) } else { Ok(Self { raw, abi }) }
    }

    /// All of `tensor` as `[rows, cols]`.
    pub(super) fn of(s: &'a AscendStream, tensor: &Tensor) -> Result<Self> {
        Self::new(s, tensor.addr(), code(tensor.dtype()), &[tensor.rows(), tensor.cols()])
    }

    /// All of `tensor` as one row of elements.
    pub(super) fn flat(s: &'a AscendStream, tensor: &Tensor) -> Result<Self> {
        Self::new(s, tensor.addr(), code(tensor.dtype()), &[tensor.rows() * tensor.cols()])
    }

    pub(super) fn raw(&self) -> *mut AclTensor {
        self.raw
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `strided`, destroyed once, after the operator's second phase.
        let _ = unsafe { (self.abi.aclDestroyTensor)(self.raw) };
    }
}

/// A list of one tensor.
#[derive(Debug)]
pub(super) struct List<'a> {
    raw: *mut AclTensorList,
    abi: &'a Abi,
}

impl<'a> List<'a> {
    /// The list owns its member.
    pub(super) fn of(view: View<'a>) -> Result<Self> {
        let (abi, member) = (view.abi, view.raw.cast_const());
        // SAFETY: one readable pointer to a live tensor.
        let raw = unsafe { (abi.aclCreateTensorList)(&raw const member, 1) };
        if raw.is_null() {
            return Err(refused(abi, "aclCreateTensorList"));
        }
        std::mem::forget(view);
        Ok(Self { raw, abi })
    }

    pub(super) fn raw(&self) -> *const AclTensorList {
        self.raw
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `of`, destroyed once, after the operator's second phase; the member goes with it.
        let _ = unsafe { (self.abi.aclDestroyTensorList)(self.raw) };
    }
}

/// Numbers on the host, of which the library keeps a copy.
#[derive(Debug)]
pub(super) struct Ints<'a> {
    raw: *mut AclIntArray,
    abi: &'a Abi,
}

impl<'a> Ints<'a> {
    pub(super) fn new(s: &'a AscendStream, numbers: &[i64]) -> Result<Self> {
        let abi = s.abi();
        // SAFETY: an array of this length, which the call copies.
        let raw = unsafe { (abi.aclCreateIntArray)(numbers.as_ptr(), numbers.len() as u64) };
        if raw.is_null() { Err(refused(abi, "aclCreateIntArray")) } else { Ok(Self { raw, abi }) }
    }

    pub(super) fn raw(&self) -> *const AclIntArray {
        self.raw
    }
}

impl Drop for Ints<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once, after the operator's second phase.
        let _ = unsafe { (self.abi.aclDestroyIntArray)(self.raw) };
    }
}

/// The number 1, as a factor.
#[derive(Debug)]
pub(super) struct One<'a> {
    raw: *mut AclScalar,
    abi: &'a Abi,
}

impl<'a> One<'a> {
    pub(super) fn new(s: &'a AscendStream) -> Result<Self> {
        let (abi, mut one) = (s.abi(), 1.0_f32);
        // SAFETY: a readable float, which the call copies.
        let raw = unsafe { (abi.aclCreateScalar)((&raw mut one).cast(), DataType::FLOAT) };
        if raw.is_null() { Err(refused(abi, "aclCreateScalar")) } else { Ok(Self { raw, abi }) }
    }

    pub(super) fn raw(&self) -> *const AclScalar {
        self.raw
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once, after the operator's second phase.
        let _ = unsafe { (self.abi.aclDestroyScalar)(self.raw) };
    }
}

/// An operand that is left out.
pub(super) fn none() -> *const AclTensor {
    null()
}
