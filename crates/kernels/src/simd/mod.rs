//! Vectors of `f32`: one trait, a value of whose types proves that the CPU has the instructions; and small products of
//! matrices in them.
//!
//! In: an instruction set and a [`Job`]. Out: the job run by code that is compiled for it. A job's `run` and all
//! that it calls with the proof is `#[inline(always)]`, so that it is compiled inside [`Simd::enter`], where the
//! instructions are enabled.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(crate) mod product;

#[cfg(target_arch = "x86_64")]
use crate::amx::Tiles;
use crate::{DType, Element, Isa};

/// Coefficients of a polynomial for 2ʳ, |r| ≤ ½, from r¹ on; the constant is 1. Fitted for the least relative
/// error, 2e-9.
const EXP2: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_48, 0.055_503_324, 0.009_618_437, 0.001_339_887_5, 0.000_153_533_62];

/// Below this 2ˣ is 0.
const EXP2_LEAST: f32 = -151.0;

/// Work that is compiled once per instruction set.
pub(crate) trait Job {
    /// Does it; to be marked `#[inline(always)]`.
    fn run<S: Simd>(self, s: S);
}

/// Vectors of [`Simd::WIDTH`] `f32`.
///
/// Products are made of words of 32 bits: a word is one `f32`, or, where `PAIR` is 2, two `bf16` whose products
/// with the two of another word are both added.
pub(crate) trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// Lanes of a vector.
    const WIDTH: usize;
    /// Values in a word.
    const PAIR: usize;
    /// Vectors side by side in the largest block of a product.
    const COLUMNS: usize;
    /// Rows, columns and steps of a product are multiples of these.
    const BLOCK: [usize; 3] = [1, Self::WIDTH, 1];

    /// Runs a job with the instructions enabled.
    fn enter<J: Job>(self, job: J);
    /// The registers that products are computed in, if not in vectors.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn tiles(&self) -> Option<&Tiles> {
        None
    }

    /// # Safety
    /// `WIDTH` values can be read at `from`.
    unsafe fn load_from(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `WIDTH` values can be written at `to`.
    unsafe fn store_to(self, x: Self::V, to: *mut f32);

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a·b + c.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger one; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `x` where 0 ≤ `distance` < `window`, and `other` elsewhere.
    fn keep_within(self, distance: Self::V, window: Self::V, x: Self::V, other: Self::V) -> Self::V;
    /// 2ˣ for x < 128; 0 for −∞, NaN for NaN.
    fn exp2(self, x: Self::V) -> Self::V;
    /// `sum` + the products of words of `a` and `b`.
    fn dot(self, a: Self::V, b: Self::V, sum: Self::V) -> Self::V;
    /// Words whose first halves are `first` and whose second halves are `second`, rounded to `bf16`.
    /// Only where `PAIR` is 2.
    fn pair(self, first: Self::V, second: Self::V) -> Self::V;
    /// Neighbouring lanes as words, those of `low` and then those of `high`, rounded to `bf16`. Only where `PAIR` is 2.
    fn narrow(self, low: Self::V, high: Self::V) -> Self::V;
    /// Transposes a block of `WIDTH` × `WIDTH` words.
    ///
    /// # Safety
    /// `WIDTH` rows, `from_row` and `to_row` words apart, can be read at `from` and written at `to`.
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize);

    /// The first `WIDTH` of `from`.
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::V {
        assert!(from.len() >= Self::WIDTH);
        // SAFETY: there are as many.
        unsafe { self.load_from(from.as_ptr()) }
    }

    /// Into the first `WIDTH` of `to`.
    #[inline(always)]
    fn store(self, x: Self::V, to: &mut [f32]) {
        assert!(to.len() >= Self::WIDTH);
        // SAFETY: there are as many.
        unsafe { self.store_to(x, to.as_mut_ptr()) }
    }
}

/// Asks for `values` ahead of their use.
#[inline(always)]
pub(crate) fn prefetch<E>(values: &[E]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        for line in values.chunks(LINE / size_of::<E>()) {
            // SAFETY: every x86-64 has the instruction, and it reads nothing that the program sees.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Runs `job` with the strongest vectors of `isa` for storage `E`.
pub(crate) fn run<E: Element, J: Job>(isa: Isa, job: J) {
    // A `Device` checks its instruction set when it is made, and no op computes with `float16`.
    debug_assert!(isa.is_available() && E::DTYPE != DType::F16);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `isa` comes from a device, which was made with an instruction set that is available, and a stronger
    // one has what a weaker one has.
    unsafe {
        if isa >= Isa::Amx && E::DTYPE == DType::BF16 {
            let tiles = Tiles::configure();
            return avx512::Amx::assume(&tiles).enter(job);
        }
        if isa >= Isa::Avx512Bf16 && E::DTYPE == DType::BF16 {
            return avx512::Avx512Bf16::assume().enter(job);
        }
        if isa >= Isa::Avx512 {
            return avx512::Avx512::assume().enter(job);
        }
        if isa >= Isa::Avx2 {
            return avx2::Avx2::assume().enter(job);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if isa >= Isa::Neon {
        // SAFETY: as above.
        return unsafe { neon::Neon::assume() }.enter(job);
    }
    portable::Portable.enter(job);
}
