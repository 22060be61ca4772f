//! What is called of CANN, in one table: AscendCL, the operator library's two-phase calls, and HCCL. There are no headers and
//! nothing is linked: the table is filled from libraries that are opened at run time, and printed as C++ for whoever has the
//! headers and wants to compare ([`redeclarations`]).

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::{Debug, Formatter, Write as _};
use std::mem::transmute_copy;

/// How a type is written in C++. Enums are types of their own there, handles are `void *`.
trait Cpp {
    fn cpp() -> String;
}

impl<T: Cpp> Cpp for *mut T {
    fn cpp() -> String {
        format!("{} *", T::cpp())
    }
}

impl<T: Cpp> Cpp for *const T {
    fn cpp() -> String {
        format!("{} const *", T::cpp())
    }
}

macro_rules! named {
    ($($rust:ty => $cpp:literal,)*) => {
        $(impl Cpp for $rust {
            fn cpp() -> String {
                $cpp.to_owned()
            }
        })*
    };
}

named! {
    () => "void",
    c_void => "void",
    c_char => "char",
    i32 => "int32_t",
    u32 => "uint32_t",
    i64 => "int64_t",
    u64 => "uint64_t",
    usize => "size_t",
    f32 => "float",
    f64 => "double",
    bool => "bool",
    Int8 => "int8_t",
}

/// C's `char` is this or another type, by the machine.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Int8(pub(super) i8);

/// Structs that only the library knows.
macro_rules! opaque {
    ($($rust:ident => $cpp:literal,)*) => {
        $(
            #[repr(C)]
            #[derive(Debug)]
            pub(super) struct $rust([u8; 0]);
            named! { $rust => $cpp, }
        )*
    };
}

opaque! {
    AclTensor => "aclTensor",
    AclTensorList => "aclTensorList",
    AclIntArray => "aclIntArray",
    AclScalar => "aclScalar",
    AclOpExecutor => "aclOpExecutor",
    BinaryLoadOptions => "aclrtBinaryLoadOptions",
    LaunchKernelCfg => "aclrtLaunchKernelCfg",
}

/// C enums with those of their values that we use.
macro_rules! enums {
    ($($rust:ident => $cpp:literal { $($value:ident = $number:literal => $name:literal,)* })*) => {
        $(
            #[repr(transparent)]
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub(super) struct $rust(pub(super) i32);
            impl $rust {
                $(pub(super) const $value: Self = Self($number);)*
            }
            named! { $rust => $cpp, }
        )*
        fn enum_checks(out: &mut String, hccl: bool) {
            $(if $cpp.starts_with("Hccl") == hccl {
                line(out, &format!("static_assert(sizeof({}) == 4, \"size of {}\");", $cpp, $cpp));
                $(line(out, &format!("static_assert({} == {}, \"{}\");", $name, $number, $name));)*
            })*
        }
    };
}

enums! {
    DataType => "aclDataType" {
        FLOAT = 0 => "ACL_FLOAT",
        FLOAT16 = 1 => "ACL_FLOAT16",
        INT8 = 2 => "ACL_INT8",
        INT32 = 3 => "ACL_INT32",
        BF16 = 27 => "ACL_BF16",
    }
    Format => "aclFormat" { ND = 2 => "ACL_FORMAT_ND", }
    MemcpyKind => "aclrtMemcpyKind" {
        HOST_TO_DEVICE = 1 => "ACL_MEMCPY_HOST_TO_DEVICE",
        DEVICE_TO_HOST = 2 => "ACL_MEMCPY_DEVICE_TO_HOST",
        DEVICE_TO_DEVICE = 3 => "ACL_MEMCPY_DEVICE_TO_DEVICE",
    }
    MallocPolicy => "aclrtMemMallocPolicy" { HUGE_FIRST = 0 => "ACL_MEM_MALLOC_HUGE_FIRST", }
    MemAttr => "aclrtMemAttr" { HBM = 1 => "ACL_HBM_MEM", }
    EventStatus => "aclrtEventRecordedStatus" {
        NOT_READY = 0 => "ACL_EVENT_RECORDED_STATUS_NOT_READY",
        COMPLETE = 1 => "ACL_EVENT_RECORDED_STATUS_COMPLETE",
    }
    HcclDataType => "HcclDataType" {
        FP16 = 3 => "HCCL_DATA_TYPE_FP16",
        FP32 = 4 => "HCCL_DATA_TYPE_FP32",
        BFP16 = 11 => "HCCL_DATA_TYPE_BFP16",
    }
    HcclReduceOp => "HcclReduceOp" { SUM = 0 => "HCCL_REDUCE_SUM", }
    HcclResult => "HcclResult" { SUCCESS = 0 => "HCCL_SUCCESS", }
}

/// Events that are recorded again and waited for, without times.
pub(super) const EVENT_SYNC: u32 = 1;
/// Bytes of what the ranks of a group are introduced with.
pub(super) const ROOT_INFO_BYTES: usize = 4108;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct RootInfo(pub(super) [u8; ROOT_INFO_BYTES]);
named! { RootInfo => "HcclRootInfo", }

pub(super) type Status = i32;
pub(super) type Handle = *mut c_void;
type Tensor = *const AclTensor;
type TensorMut = *mut AclTensor;
type Ints = *const AclIntArray;
type Tensors = *const AclTensorList;

/// Phase 2 of every operator: workspace, its bytes, what phase 1 made, stream.
pub(super) type Run = unsafe extern "C" fn(Handle, u64, *mut AclOpExecutor, Handle) -> Status;

/// Both phases of an operator. Phase 1 has its own arguments, then where to put the bytes of workspace and the executor.
#[derive(Clone, Copy)]
pub(super) struct Op<F> {
    pub(super) plan: F,
    pub(super) run: Run,
    pub(super) name: &'static str,
}

impl<F> Debug for Op<F> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Finds an entry point's address, null where there is none.
type Find<'a> = &'a dyn Fn(&CStr) -> *mut c_void;

/// # Safety
/// `F` is the pointer type of the function that `name` stands for.
unsafe fn entry<F: Copy>(find: Find<'_>, name: &str) -> Option<F> {
    assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "entry points are pointers");
    let found = find(&CString::new(name).ok()?);
    // SAFETY: not null, as large as a pointer, and of the caller's type.
    (!found.is_null()).then(|| unsafe { transmute_copy(&found) })
}

/// # Safety
/// `F` is the pointer type of the operator's first phase.
unsafe fn operator<F: Copy>(find: Find<'_>, name: &'static str) -> Option<Op<F>> {
    // SAFETY: by contract, and all second phases are of one type.
    unsafe { Some(Op { plan: entry(find, &format!("{name}GetWorkspaceSize"))?, run: entry(find, name)?, name }) }
}

macro_rules! needed {
    (required $t:ty) => { $t };
    (optional $t:ty) => { Option<$t> };
}

macro_rules! found {
    (required $found:expr, $name:expr) => {
        $found.ok_or($name)?
    };
    (optional $found:expr, $name:expr) => {
        $found
    };
}

macro_rules! table {
    (
        functions { $([$need:ident $guard:literal] $(fn $name:ident($($arg:ty),*) -> $ret:ty;)*)* }
        operators { $([$op_need:ident] $(op $field:ident = $op:literal($($op_arg:ty),*);)*)* }
    ) => {
        /// The filled table. Entry points stay valid as their libraries are never closed.
        #[allow(non_snake_case)]
        pub(super) struct Abi {
            $($(pub(super) $name: needed!($need unsafe extern "C" fn($($arg),*) -> $ret),)*)*
            $($(pub(super) $field: needed!(
                $op_need Op<unsafe extern "C" fn($($op_arg,)* *mut u64, *mut *mut AclOpExecutor) -> Status>
            ),)*)*
        }

        impl Abi {
            /// All entry points; the name of the first that is missing and without which nothing goes.
            pub(super) fn load(find: Find<'_>) -> Result<Self, &'static str> {
                // SAFETY: the table says what each name stands for; `redeclarations` has it compared with the headers.
                unsafe {
                    Ok(Self {
                        $($($name: found!($need entry(find, stringify!($name)), stringify!($name)),)*)*
                        $($($field: found!($op_need operator(find, $op), $op),)*)*
                    })
                }
            }

            /// Optional entry points that were not found.
            pub(super) fn absent(&self) -> Vec<&'static str> {
                let mut absent = Vec::new();
                $($(absent!($need self.$name, stringify!($name), absent);)*)*
                $($(absent!($op_need self.$field, $op, absent);)*)*
                absent
            }
        }

        fn functions(out: &mut String) {
            $(
                line(out, concat!("#if ", $guard));
                $(declaration(out, &<$ret as Cpp>::cpp(), stringify!($name), &[$(<$arg as Cpp>::cpp()),*]);)*
                line(out, "#endif");
            )*
        }

        fn operators(out: &mut String) {
            $($(
                let mut args: Vec<String> = vec![$(<$op_arg as Cpp>::cpp()),*];
                args.extend([<*mut u64 as Cpp>::cpp(), <*mut *mut AclOpExecutor as Cpp>::cpp()]);
                declaration(out, "int32_t", concat!($op, "GetWorkspaceSize"), &args);
                let run = [<Handle as Cpp>::cpp(), u64::cpp(), <*mut AclOpExecutor as Cpp>::cpp(), <Handle as Cpp>::cpp()];
                declaration(out, "int32_t", $op, &run);
            )*)*
        }
    };
}

macro_rules! absent {
    (required $field:expr, $name:expr, $out:ident) => {};
    (optional $field:expr, $name:expr, $out:ident) => {
        if $field.is_none() {
            $out.push($name);
        }
    };
}

impl Debug for Abi {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Abi").field("absent", &self.absent()).finish_non_exhaustive()
    }
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("a string");
}

fn declaration(out: &mut String, ret: &str, name: &str, args: &[String]) {
    line(out, &format!("{ret} {name}({});", args.join(", ")));
}

/// The table as C++ for a compiler that has the headers: each function declared again, and the enum values asserted. What
/// differs does not compile. No includes; `YN_HAVE_KERNEL_API`, `YN_HAVE_HCCL`, `YN_HAVE_NNOPBASE` and `YN_HAVE_ACLNN` are 1
/// where headers have launches of kernels, HCCL, tensors and the operators.
#[doc(hidden)]
pub fn redeclarations() -> String {
    let mut out = String::from("extern \"C\" {\n");
    functions(&mut out);
    line(&mut out, "#if YN_HAVE_ACLNN");
    operators(&mut out);
    line(&mut out, "#endif\n}");
    enum_checks(&mut out, false);
    line(&mut out, "#if YN_HAVE_HCCL");
    enum_checks(&mut out, true);
    line(&mut out, &format!("static_assert(sizeof(HcclRootInfo) == {ROOT_INFO_BYTES}, \"size of HcclRootInfo\");"));
    line(&mut out, "#endif");
    out
}

table! {
    functions {
        [required "1"]
        fn aclInit(*const c_char) -> Status;
        fn aclGetRecentErrMsg() -> *const c_char;
        fn aclrtGetDeviceCount(*mut u32) -> Status;
        fn aclrtGetSocName() -> *const c_char;
        fn aclrtSetDevice(i32) -> Status;
        fn aclrtGetCurrentContext(*mut Handle) -> Status;
        fn aclrtSetCurrentContext(Handle) -> Status;
        fn aclrtGetMemInfo(MemAttr, *mut usize, *mut usize) -> Status;
        fn aclrtMalloc(*mut Handle, usize, MallocPolicy) -> Status;
        fn aclrtFree(Handle) -> Status;
        fn aclrtMallocHost(*mut Handle, usize) -> Status;
        fn aclrtFreeHost(Handle) -> Status;
        fn aclrtMemset(Handle, usize, i32, usize) -> Status;
        fn aclrtMemcpy(Handle, usize, *const c_void, usize, MemcpyKind) -> Status;
        fn aclrtMemcpyAsync(Handle, usize, *const c_void, usize, MemcpyKind, Handle) -> Status;
        fn aclrtCreateStream(*mut Handle) -> Status;
        fn aclrtDestroyStream(Handle) -> Status;
        fn aclrtSynchronizeStream(Handle) -> Status;
        fn aclrtSynchronizeDevice() -> Status;
        fn aclrtCreateEventExWithFlag(*mut Handle, u32) -> Status;
        fn aclrtDestroyEvent(Handle) -> Status;
        fn aclrtRecordEvent(Handle, Handle) -> Status;
        fn aclrtSynchronizeEvent(Handle) -> Status;
        fn aclrtQueryEventStatus(Handle, *mut EventStatus) -> Status;
        [optional "1"]
        fn aclrtGetVersion(*mut i32, *mut i32, *mut i32) -> Status;
        [optional "YN_HAVE_KERNEL_API"]
        fn aclrtBinaryLoadFromFile(*const c_char, *mut BinaryLoadOptions, *mut Handle) -> Status;
        fn aclrtBinaryGetFunction(Handle, *const c_char, *mut Handle) -> Status;
        fn aclrtBinaryUnLoad(Handle) -> Status;
        fn aclrtKernelArgsInit(Handle, *mut Handle) -> Status;
        fn aclrtKernelArgsAppend(Handle, Handle, usize, *mut Handle) -> Status;
        fn aclrtKernelArgsFinalize(Handle) -> Status;
        fn aclrtLaunchKernelWithConfig(Handle, u32, Handle, *mut LaunchKernelCfg, Handle, Handle) -> Status;
        [optional "YN_HAVE_HCCL"]
        fn HcclGetRootInfo(*mut RootInfo) -> HcclResult;
        fn HcclCommInitRootInfo(u32, *const RootInfo, u32, *mut Handle) -> HcclResult;
        fn HcclAllReduce(Handle, Handle, u64, HcclDataType, HcclReduceOp, Handle, Handle) -> HcclResult;
        fn HcclCommDestroy(Handle) -> HcclResult;
        fn HcclGetCommAsyncError(Handle, *mut HcclResult) -> HcclResult;
        [required "YN_HAVE_NNOPBASE"]
        fn aclCreateTensor(*const i64, u64, DataType, *const i64, i64, Format, *const i64, u64, Handle) -> TensorMut;
        fn aclDestroyTensor(Tensor) -> Status;
        fn aclCreateIntArray(*const i64, u64) -> *mut AclIntArray;
        fn aclDestroyIntArray(Ints) -> Status;
        fn aclCreateTensorList(*const Tensor, u64) -> *mut AclTensorList;
        fn aclDestroyTensorList(Tensors) -> Status;
        fn aclCreateScalar(Handle, DataType) -> *mut AclScalar;
        fn aclDestroyScalar(*const AclScalar) -> Status;
        [optional "YN_HAVE_NNOPBASE"]
        fn aclSetAclOpExecutorRepeatable(*mut AclOpExecutor) -> Status;
        fn aclDestroyAclOpExecutor(*mut AclOpExecutor) -> Status;
    }
    operators {
        [required]
        op matmul = "aclnnMatmul"(Tensor, Tensor, TensorMut, Int8);
        op cast = "aclnnCast"(Tensor, DataType, TensorMut);
        op add = "aclnnAdd"(Tensor, Tensor, *const AclScalar, TensorMut);
        op mul = "aclnnMul"(Tensor, Tensor, TensorMut);
        op index_select = "aclnnIndexSelect"(Tensor, i64, Tensor, TensorMut);
        [optional]
        op rms_norm = "aclnnRmsNorm"(Tensor, Tensor, f64, Tensor, Tensor);
        op swiglu = "aclnnSwiGlu"(Tensor, i64, Tensor);
        op embedding = "aclnnEmbedding"(Tensor, Tensor, Tensor);
        op rotary = "aclnnRotaryPositionEmbedding"(Tensor, Tensor, Tensor, i64, TensorMut);
        op scatter_kv = "aclnnScatterPaKvCache"(
            Tensor, TensorMut, Tensor, Tensor, TensorMut, Tensor, Tensor, Tensor, *mut c_char, *mut c_char, Ints, Ints
        );
        op attention = "aclnnFusedInferAttentionScoreV3"(
            Tensor, Tensors, Tensors, Tensor, Tensor, Ints, Ints, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
            Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Ints, Tensor, Tensor, Tensor,
            i64, f64, i64, i64, *mut c_char, i64, i64, i64, i64, i64, bool, i64, i64, Tensor, Tensor
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(Abi::load(&|_| std::ptr::null_mut()).unwrap_err(), "aclInit");
        let all_but = |lacks: &'static str| {
            move |name: &CStr| if name.to_str() == Ok(lacks) { std::ptr::null_mut() } else { 8 as Handle }
        };
        assert_eq!(Abi::load(&all_but("aclnnCast")).unwrap_err(), "aclnnCast");
        let abi = Abi::load(&all_but("aclnnSwiGluGetWorkspaceSize")).unwrap();
        assert_eq!(abi.absent(), ["aclnnSwiGlu"]);
        assert!(Abi::load(&all_but("nothing")).unwrap().absent().is_empty());
    }

    #[test]
    fn the_table_prints_as_cpp() {
        let text = redeclarations();
        for line in [
            "int32_t aclrtMemcpyAsync(void *, size_t, void const *, size_t, aclrtMemcpyKind, void *);",
            "int32_t aclnnMatmul(void *, uint64_t, aclOpExecutor *, void *);",
            "int32_t aclnnCastGetWorkspaceSize(aclTensor const *, aclDataType, aclTensor *, uint64_t *, aclOpExecutor * *);",
            "aclTensorList * aclCreateTensorList(aclTensor const * const *, uint64_t);",
            "static_assert(ACL_BF16 == 27, \"ACL_BF16\");",
            "HcclResult HcclCommDestroy(void *);",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }
}
