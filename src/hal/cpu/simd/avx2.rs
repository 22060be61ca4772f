//! AVX2 with FMA and F16C: 16 registers of 8 floats.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2;

impl Simd for Avx2 {
    const LANES: usize = 8;
    const WIDE: bool = false;
    const FMA: bool = true;
    type F = __m256;

    unsafe fn enter<K: Kernel>(kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn inner<K: Kernel>(kernel: K) {
            // SAFETY: the kernel's conditions are the caller's promise.
            unsafe { kernel.run::<Avx2>() }
        }
        // SAFETY: the machine has the features, by contract.
        unsafe { inner(kernel) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: AVX is on inside `enter`.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: eight floats at `p`, by contract.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        // SAFETY: eight floats at `p`, by contract.
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: FMA is on inside `enter`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX is on inside `enter`.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn bf16_pair(p: *const u16) -> [__m256; 2] {
        // SAFETY: sixteen elements at `p`, by contract; AVX2 is on inside `enter`.
        unsafe {
            let x = _mm256_loadu_si256(p.cast());
            let even = _mm256_slli_epi32::<16>(x);
            let odd = _mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
        }
    }
    #[inline(always)]
    unsafe fn bf16(p: *const u16) -> __m256 {
        // SAFETY: eight elements at `p`, by contract; AVX2 is on inside `enter`.
        unsafe {
            let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
        }
    }
    #[inline(always)]
    unsafe fn f16(p: *const u16) -> __m256 {
        // SAFETY: eight elements at `p`, by contract; F16C is on inside `enter`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    fn prefetch(p: *const u8) {
        // SAFETY: a prefetch does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
