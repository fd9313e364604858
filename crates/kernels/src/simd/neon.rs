//! Vectors of four lanes: NEON.

use std::arch::aarch64::*;

use super::{EXP2, EXP2_LEAST, Job, Simd};

/// Proof that the CPU has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The CPU has NEON.
    pub(super) unsafe fn assume() -> Self {
        Self(())
    }
}

/// A call of intrinsics inside a method of a proof.
macro_rules! with_proof {
    ($body:expr) => {
        // SAFETY: a value of `Self` exists only on a CPU that has the instructions.
        unsafe { $body }
    };
}

impl Simd for Neon {
    type V = float32x4_t;
    const WIDTH: usize = 4;
    const PAIR: usize = 1;
    const COLUMNS: usize = 4;

    // What an aarch64 is compiled for by default has NEON already.
    fn enter<J: Job>(self, job: J) {
        job.run(self);
    }

    #[inline(always)]
    unsafe fn load_from(self, from: *const f32) -> float32x4_t {
        // SAFETY: as the caller promises, and as in `with_proof`.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store_to(self, x: float32x4_t, to: *mut f32) {
        // SAFETY: as the caller promises, and as in `with_proof`.
        unsafe { vst1q_f32(to, x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        with_proof!(vdupq_n_f32(x))
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with_proof!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with_proof!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with_proof!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with_proof!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        with_proof!(vfmaq_f32(c, a, b))
    }

    // Not `vmaxq_f32`, which is NaN if either operand is.
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        with_proof!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }

    #[inline(always)]
    fn keep_within(
        self,
        distance: float32x4_t,
        window: float32x4_t,
        x: float32x4_t,
        other: float32x4_t,
    ) -> float32x4_t {
        with_proof!({
            let inside = vandq_u32(vcgezq_f32(distance), vcltq_f32(distance, window));
            vbslq_f32(inside, x, other)
        })
    }

    #[inline(always)]
    fn exp2(self, x: float32x4_t) -> float32x4_t {
        // A NaN goes through, as the second operand.
        let x = self.max(self.splat(EXP2_LEAST), x);
        with_proof!({
            let n = vrndnq_f32(x);
            let r = vsubq_f32(x, n);
            let mut p = vdupq_n_f32(EXP2[5]);
            for c in [EXP2[4], EXP2[3], EXP2[2], EXP2[1], EXP2[0], 1.0] {
                p = vfmaq_f32(vdupq_n_f32(c), p, r);
            }
            let n = vcvtq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let power_of_two = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
            vmulq_f32(vmulq_f32(p, power_of_two(half)), power_of_two(vsubq_s32(n, half)))
        })
    }

    #[inline(always)]
    fn dot(self, a: float32x4_t, b: float32x4_t, sum: float32x4_t) -> float32x4_t {
        self.mul_add(a, b, sum)
    }

    fn pair(self, _: float32x4_t, _: float32x4_t) -> float32x4_t {
        unreachable!("words of one value have no pairs")
    }

    fn narrow(self, _: float32x4_t, _: float32x4_t) -> float32x4_t {
        unreachable!("words of one value have no pairs")
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller promises the rows; as in `with_proof`.
        unsafe {
            let x: [float32x4_t; 4] = std::array::from_fn(|i| vld1q_f32(from.add(i * from_row)));
            // Words of two neighbouring rows interleaved, then pairs of words of all four.
            let pairs = [
                vtrn1q_f32(x[0], x[1]),
                vtrn2q_f32(x[0], x[1]),
                vtrn1q_f32(x[2], x[3]),
                vtrn2q_f32(x[2], x[3]),
            ]
            .map(|pairs| vreinterpretq_f64_f32(pairs));
            for i in 0..2 {
                let (first, second) = (pairs[i], pairs[i + 2]);
                let store = |column: usize, x| vst1q_f32(to.add(column * to_row), vreinterpretq_f32_f64(x));
                store(i, vtrn1q_f64(first, second));
                store(i + 2, vtrn2q_f64(first, second));
            }
        }
    }
}
