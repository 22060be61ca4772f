//! One set of vector operations, implemented per instruction set; kernels are generic over it and compiled once for each.
//!
//! A kernel's code is inlined whole into [`Simd::enter`], which carries the target features, so every method of a kernel
//! and of a `Simd` is `#[inline(always)]`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::base::{Error, Result};

/// A vector of `LANES` floats.
pub(super) trait Simd: Copy {
    /// Divides 16.
    const LANES: usize;
    /// 32 vector registers instead of 16.
    const WIDE: bool;
    /// The machine fuses multiply and add.
    const FMA: bool;
    type F: Copy;

    /// Calls `kernel` with the target features on.
    /// # Safety
    /// The machine has the instruction set, and the kernel's own conditions hold.
    unsafe fn enter<K: Kernel>(kernel: K);

    /// # Safety
    /// For this and all below: called inside `enter`; pointers are good for the elements named.
    unsafe fn splat(x: f32) -> Self::F;
    /// # Safety
    /// `LANES` floats.
    unsafe fn load(p: *const f32) -> Self::F;
    /// # Safety
    /// `LANES` floats.
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `a * b + c`
    /// # Safety
    /// See `splat`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// # Safety
    /// See `splat`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// The even elements and the odd elements of `2 * LANES` bfloat16.
    /// # Safety
    /// `2 * LANES` elements.
    unsafe fn bf16_pair(p: *const u16) -> [Self::F; 2];
    /// # Safety
    /// `LANES` elements.
    unsafe fn bf16(p: *const u16) -> Self::F;
    /// # Safety
    /// `LANES` elements.
    unsafe fn f16(p: *const u16) -> Self::F;
    /// Asks for a cache line; any address is allowed.
    fn prefetch(p: *const u8);
}

/// Work that is compiled for each instruction set.
pub(super) trait Kernel {
    /// # Safety
    /// Called through [`dispatch`]; a kernel names its own conditions.
    unsafe fn run<S: Simd>(self);
}

/// An instruction set this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Those of the instruction sets above, and of their parts, that the machine has.
pub(super) fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let has = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        has.into_iter().filter(|f| f.1).map(|f| f.0).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

impl Isa {
    /// The strongest set of the machine that is not above `limit` (`portable`, `avx2` or `avx512`).
    pub(super) fn detect(limit: Option<&str>) -> Result<Self> {
        let best = Self::best();
        let Some(name) = limit else { return Ok(best) };
        let wanted = match name {
            "portable" => Self::Portable,
            #[cfg(target_arch = "x86_64")]
            "avx2" => Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            "avx512" => Self::Avx512,
            _ => {
                return Err(Error::invalid(format!(
                    "cpu_features {name:?} is unknown on this architecture; expected portable, or avx2 or avx512 on x86-64"
                )));
            }
        };
        if wanted as u8 > best as u8 {
            return Err(Error::unsupported(format!(
                "cpu_features asks for {}, but this machine has {} at most; leave the key out or lower it",
                wanted.name(),
                best.name()
            )));
        }
        Ok(wanted)
    }

    #[cfg(target_arch = "x86_64")]
    fn best() -> Self {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match avx2 {
            true if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") => Self::Avx512,
            true => Self::Avx2,
            false => Self::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn best() -> Self {
        Self::Portable
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable code",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
        }
    }

    /// Rows of activations a linear kernel takes at once.
    pub(super) fn max_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 12,
            _ => 6,
        }
    }
}

/// Runs a kernel on an instruction set.
/// # Safety
/// The kernel's own conditions.
pub(super) unsafe fn dispatch<K: Kernel>(isa: Isa, kernel: K) {
    // SAFETY: an `Isa` comes from `detect`, so the machine has it; the kernel's conditions are the caller's promise.
    unsafe {
        match isa {
            Isa::Portable => portable::Portable::enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::Avx512::enter(kernel),
        }
    }
}

/// `a * b + c` on one element, fused where the machine can.
#[inline(always)]
pub(super) fn fma1<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// e^x of sixteen elements: 2^n * e^r with |r| <= ln(2)/2 and a Taylor polynomial of degree 7, whose error is below half
/// a unit in the last place. Results under the normal range are 0; NaN stays NaN.
#[inline(always)]
pub(super) fn exp16<S: Simd>(x: &[f32; 16]) -> [f32; 16] {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4; // 0x3f318000: few bits, so that n * LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let mut out = [0.0; 16];
    for (o, &x) in out.iter_mut().zip(x) {
        let clamped = if x > 88.0 { 88.0 } else { x };
        let clamped = if clamped < -87.0 { -87.0 } else { clamped };
        let shifted = fma1::<S>(clamped, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = fma1::<S>(n, -LN2_LOW, fma1::<S>(n, -LN2_HIGH, clamped));
        let mut p = 1.0 / 5040.0;
        p = fma1::<S>(p, r, 1.0 / 720.0);
        p = fma1::<S>(p, r, 1.0 / 120.0);
        p = fma1::<S>(p, r, 1.0 / 24.0);
        p = fma1::<S>(p, r, 1.0 / 6.0);
        p = fma1::<S>(p, r, 0.5);
        p = fma1::<S>(p, r, 1.0);
        p = fma1::<S>(p, r, 1.0);
        let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
        let finite = if x < -87.0 { 0.0 } else { scaled };
        *o = if x.is_nan() { x } else { finite };
    }
    out
}

/// `cap * tanh(x / cap)` of sixteen elements. With `m = e^2y - 1`, `tanh(y) = m / (m + 2)`; for a small y, m is a Taylor
/// polynomial of its own, so that nothing cancels.
#[inline(always)]
pub(super) fn cap16<S: Simd>(x: &[f32; 16], cap: f32) -> [f32; 16] {
    let mut twice = [0.0; 16];
    twice.iter_mut().zip(x).for_each(|(t, x)| *t = 2.0 * (x / cap).abs());
    let e = exp16::<S>(&twice);
    let mut out = [0.0; 16];
    for (((o, x), t), e) in out.iter_mut().zip(x).zip(twice).zip(e) {
        let mut p = 1.0 / 5040.0;
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
            p = fma1::<S>(p, t, c);
        }
        let m = if t < 0.35 { p * t } else { e - 1.0 };
        *o = (cap * (m / (m + 2.0))).copysign(*x);
    }
    out
}
