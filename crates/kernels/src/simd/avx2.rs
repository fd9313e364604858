//! Vectors of eight lanes: AVX2 with FMA.

use std::arch::x86_64::*;

use super::{EXP2, EXP2_LEAST, Job, Simd};

/// Proof that the CPU has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2 and FMA.
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

impl Simd for Avx2 {
    type V = __m256;
    const WIDTH: usize = 8;
    const PAIR: usize = 1;
    const COLUMNS: usize = 2;

    fn enter<J: Job>(self, job: J) {
        #[target_feature(enable = "avx2,fma")]
        fn inside<J: Job>(s: Avx2, job: J) {
            job.run(s);
        }
        with_proof!(inside(self, job))
    }

    #[inline(always)]
    unsafe fn load_from(self, from: *const f32) -> __m256 {
        // SAFETY: as the caller promises, and as in `with_proof`.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_to(self, x: __m256, to: *mut f32) {
        // SAFETY: as the caller promises, and as in `with_proof`.
        unsafe { _mm256_storeu_ps(to, x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        with_proof!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        with_proof!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        with_proof!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        with_proof!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        with_proof!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        with_proof!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        with_proof!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn keep_within(self, distance: __m256, window: __m256, x: __m256, other: __m256) -> __m256 {
        with_proof!({
            let reached = _mm256_cmp_ps::<_CMP_GE_OQ>(distance, _mm256_setzero_ps());
            let inside = _mm256_cmp_ps::<_CMP_LT_OQ>(distance, window);
            _mm256_blendv_ps(other, x, _mm256_and_ps(reached, inside))
        })
    }

    #[inline(always)]
    fn exp2(self, x: __m256) -> __m256 {
        with_proof!({
            // The second operand is the result if one is NaN.
            let x = _mm256_max_ps(_mm256_set1_ps(EXP2_LEAST), x);
            let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            let r = _mm256_sub_ps(x, n);
            let mut p = _mm256_set1_ps(EXP2[5]);
            for c in [EXP2[4], EXP2[3], EXP2[2], EXP2[1], EXP2[0], 1.0] {
                p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
            }
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power_of_two =
                |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
            let p = _mm256_mul_ps(p, power_of_two(half));
            _mm256_mul_ps(p, power_of_two(_mm256_sub_epi32(n, half)))
        })
    }

    #[inline(always)]
    fn dot(self, a: __m256, b: __m256, sum: __m256) -> __m256 {
        self.mul_add(a, b, sum)
    }

    fn pair(self, _: __m256, _: __m256) -> __m256 {
        unreachable!("words of one value have no pairs")
    }

    fn narrow(self, _: __m256, _: __m256) -> __m256 {
        unreachable!("words of one value have no pairs")
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller promises the rows; as in `with_proof`.
        unsafe {
            let row = |i: usize| _mm256_loadu_ps(from.add(i * from_row));
            let mut x: [__m256; 8] = std::array::from_fn(row);
            // Words of two neighbouring rows, then of four, interleaved; then halves exchanged.
            let pairs: [__m256; 8] = std::array::from_fn(|i| {
                let (a, b) = (x[i & !1], x[i | 1]);
                if i & 1 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
            });
            for (i, x) in x.iter_mut().enumerate() {
                let (a, b) = (pairs[(i & 4) | ((i >> 1) & 1)], pairs[(i & 4) | 2 | ((i >> 1) & 1)]);
                let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
                let mixed = if i & 1 == 0 { _mm256_unpacklo_pd(a, b) } else { _mm256_unpackhi_pd(a, b) };
                *x = _mm256_castpd_ps(mixed);
            }
            for i in 0..4 {
                let (a, b) = (x[i], x[i + 4]);
                _mm256_storeu_ps(to.add(i * to_row), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(to.add((i + 4) * to_row), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}
