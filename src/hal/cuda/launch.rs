//! Kernels and how they are launched.

use super::driver::check;
use crate::base::Result;
use cudarc::driver::sys;
use std::ptr::null_mut;

/// A kernel that can be launched while its [`super::driver::Modules`] live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    raw: sys::CUfunction,
}

// SAFETY: a handle that is only passed to launches, which the driver takes from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    pub(super) fn new(raw: sys::CUfunction) -> Self {
        Self { raw }
    }

    pub(super) fn raw(self) -> sys::CUfunction {
        self.raw
    }

    /// Enqueues the kernel, whose one parameter is `params`, on a stream of the calling thread's context.
    pub(super) fn launch<P: Copy>(
        self,
        stream: sys::CUstream,
        [x, y, z]: [u32; 3],
        (block, shared_bytes): (u32, u32),
        (params, style): (&P, Style),
    ) -> Result<()> {
        let (mut attributes, count) = style.attributes();
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        };
        let mut values = [(&raw const *params).cast_mut().cast()];
        // SAFETY: a live kernel and stream of one context; the kernel takes one parameter of this type, which the driver
        // copies during the call, as it does the attributes; what it points to is device memory of the tensors it was made
        // from.
        let result = unsafe { sys::cuLaunchKernelEx(&raw const config, self.raw, values.as_mut_ptr(), null_mut()) };
        check(result, "launching a kernel")
    }
}

/// How a kernel's blocks come to the device. The default suits any kernel.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Style {
    /// While the launch in front ends (programmatic dependent launch), which kernels other than those of the images `planted`
    /// and `random` await by themselves.
    pub(super) early: bool,
    /// So many blocks along z together, as a cluster; 0 or 1 is none.
    pub(super) cluster: u32,
}

impl Style {
    fn attributes(self) -> ([sys::CUlaunchAttribute; 2], u32) {
        use sys::CUlaunchAttributeID::{
            CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        };
        // SAFETY: plain bytes, whose zero is a value; the driver looks at as many as are counted.
        let mut all: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        if self.early {
            all[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            all[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        if self.cluster > 1 {
            all[count].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            all[count].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: 1, z: self.cluster };
            count += 1;
        }
        (all, count as u32)
    }
}
