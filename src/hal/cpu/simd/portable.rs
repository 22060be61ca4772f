//! Plain Rust that compiles on every architecture; the compiler finds the vectors.

use super::{Kernel, Simd};
use half::f16;

#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn map(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    const LANES: usize = 4;
    const WIDE: bool = false;
    const FMA: bool = false;
    type F = [f32; 4];

    unsafe fn enter<K: Kernel>(kernel: K) {
        // SAFETY: needs no target features; the kernel's conditions are the caller's promise.
        unsafe { kernel.run::<Self>() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        // SAFETY: four floats at `p`, by contract.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [f32; 4]) {
        // SAFETY: four floats at `p`, by contract.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        map(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        map(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn bf16_pair(p: *const u16) -> [[f32; 4]; 2] {
        // SAFETY: eight elements at `p`, by contract.
        let x = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        [map(|i| widen(x[2 * i])), map(|i| widen(x[2 * i + 1]))]
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u16) -> [f32; 4] {
        // SAFETY: four elements at `p`, by contract.
        let x = unsafe { p.cast::<[u16; 4]>().read_unaligned() };
        map(|i| widen(x[i]))
    }
    #[inline(always)]
    unsafe fn f16(p: *const u16) -> [f32; 4] {
        // SAFETY: four elements at `p`, by contract.
        let x = unsafe { p.cast::<[u16; 4]>().read_unaligned() };
        map(|i| f16::from_bits(x[i]).to_f32_const())
    }
    #[inline(always)]
    fn prefetch(_: *const u8) {}
}

#[inline(always)]
fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
