//! AVX-512 F and BW: 32 registers of 16 floats.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512;

impl Simd for Avx512 {
    const LANES: usize = 16;
    const WIDE: bool = true;
    const FMA: bool = true;
    type F = __m512;

    unsafe fn enter<K: Kernel>(kernel: K) {
        #[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
        unsafe fn inner<K: Kernel>(kernel: K) {
            // SAFETY: the kernel's conditions are the caller's promise.
            unsafe { kernel.run::<Avx512>() }
        }
        // SAFETY: the machine has the features, by contract.
        unsafe { inner(kernel) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: AVX-512 is on inside `enter`.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: sixteen floats at `p`, by contract.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        // SAFETY: sixteen floats at `p`, by contract.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 is on inside `enter`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is on inside `enter`.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn bf16_pair(p: *const u16) -> [__m512; 2] {
        // SAFETY: 32 elements at `p`, by contract; AVX-512 is on inside `enter`.
        unsafe {
            let x = _mm512_loadu_si512(p.cast());
            let even = _mm512_slli_epi32::<16>(x);
            let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
        }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u16) -> __m512 {
        // SAFETY: sixteen elements at `p`, by contract; AVX-512 is on inside `enter`.
        unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u16) -> __m512 {
        // SAFETY: sixteen elements at `p`, by contract; AVX-512 is on inside `enter`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    fn prefetch(p: *const u8) {
        // SAFETY: a prefetch does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
