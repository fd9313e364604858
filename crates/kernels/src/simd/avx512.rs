//! Vectors of sixteen lanes: AVX-512, with and without products of pairs of `bf16`, and with the tiles of AMX.

use std::arch::x86_64::*;

use super::product;
use super::{Job, Simd};
use crate::amx::Tiles;

/// Coefficients of polynomials for 2ʳ, 0 ≤ r ≤ 1, from r¹ on; the constant is 1. Fitted for the least relative error:
/// 2e-9, and, where the results are rounded to `bf16`, 3e-6.
const EXP2: [f32; 6] =
    [0.693_147_06, 0.240_229_31, 0.055_485_282, 0.009_675_452, 0.001_246_784_7, 0.000_216_129_15];
const EXP2_FOR_BF16: [f32; 4] = [0.693_044_84, 0.241_280_2, 0.052_242_473, 0.013_426_684];

/// Proof that the CPU has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof that it also has AVX512-BF16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(());

/// Proof that it also has AMX, and that this thread holds the registers.
#[derive(Clone, Copy)]
pub(crate) struct Amx<'a>(&'a Tiles);

impl<'a> Amx<'a> {
    /// # Safety
    /// The CPU has AMX, and AVX-512 F, BW, DQ, VL and BF16.
    pub(super) unsafe fn assume(tiles: &'a Tiles) -> Self {
        Self(tiles)
    }
}

impl Avx512 {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL.
    pub(super) unsafe fn assume() -> Self {
        Self(())
    }
}

impl Avx512Bf16 {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL and BF16.
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

/// Order of the halves of 16 words of which the first halves come first: 0, 16, 1, 17, …
const INTERLEAVED: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + 16 * (i % 2)) as u16;
        i += 1;
    }
    order
};

/// What both proofs have in common.
macro_rules! vectors_of_sixteen {
    ($features:literal, $exp2:ident) => {
        type V = __m512;
        const WIDTH: usize = 16;
        const COLUMNS: usize = 4;

        fn enter<J: Job>(self, job: J) {
            #[target_feature(enable = $features)]
            fn inside<S: Simd, J: Job>(s: S, job: J) {
                job.run(s);
            }
            with_proof!(inside(self, job))
        }

        #[inline(always)]
        unsafe fn load_from(self, from: *const f32) -> __m512 {
            // SAFETY: as the caller promises, and as in `with_proof`.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store_to(self, x: __m512, to: *mut f32) {
            // SAFETY: as the caller promises, and as in `with_proof`.
            unsafe { _mm512_storeu_ps(to, x) }
        }

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            with_proof!(_mm512_set1_ps(x))
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            with_proof!(_mm512_add_ps(a, b))
        }

        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            with_proof!(_mm512_sub_ps(a, b))
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            with_proof!(_mm512_mul_ps(a, b))
        }

        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            with_proof!(_mm512_div_ps(a, b))
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            with_proof!(_mm512_fmadd_ps(a, b, c))
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            with_proof!(_mm512_max_ps(a, b))
        }

        #[inline(always)]
        fn keep_within(self, distance: __m512, window: __m512, x: __m512, other: __m512) -> __m512 {
            with_proof!({
                let reached = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(distance, _mm512_setzero_ps());
                let inside = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(reached, distance, window);
                _mm512_mask_blend_ps(inside, other, x)
            })
        }

        #[inline(always)]
        fn exp2(self, x: __m512) -> __m512 {
            with_proof!({
                // What is left of x above the next integer below; 0 for an infinity.
                let r = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
                let mut p = _mm512_set1_ps($exp2[$exp2.len() - 1]);
                for c in $exp2[..$exp2.len() - 1].iter().rev() {
                    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
                }
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
                // It takes the integer below of its exponent itself.
                _mm512_scalef_ps(p, x)
            })
        }

        #[inline(always)]
        unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
            // SAFETY: the caller promises the rows; as in `with_proof`.
            unsafe { transpose(from, from_row, to, to_row) }
        }
    };
}

impl Simd for Avx512 {
    const PAIR: usize = 1;
    vectors_of_sixteen!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", EXP2);

    #[inline(always)]
    fn dot(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        self.mul_add(a, b, sum)
    }

    fn pair(self, _: __m512, _: __m512) -> __m512 {
        unreachable!("words of one value have no pairs")
    }

    fn narrow(self, _: __m512, _: __m512) -> __m512 {
        unreachable!("words of one value have no pairs")
    }
}

/// What the two with pairs of `bf16` have in common.
macro_rules! pairs_of_bf16 {
    () => {
        const PAIR: usize = 2;
        vectors_of_sixteen!("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma", EXP2_FOR_BF16);

        #[inline(always)]
        fn dot(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
            // SAFETY: the same bits as another vector type.
            let [a, b] = [a, b].map(|x| unsafe { std::mem::transmute::<__m512, __m512bh>(x) });
            with_proof!(_mm512_dpbf16_ps(sum, a, b))
        }

        #[inline(always)]
        fn pair(self, first: __m512, second: __m512) -> __m512 {
            with_proof!({
                let halves = _mm512_cvtne2ps_pbh(second, first);
                let order = _mm512_loadu_si512(INTERLEAVED.as_ptr().cast());
                // SAFETY: the same bits as another vector type.
                let halves = std::mem::transmute::<__m512bh, __m512i>(halves);
                _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves))
            })
        }

        #[inline(always)]
        fn narrow(self, low: __m512, high: __m512) -> __m512 {
            // SAFETY: the same bits as another vector type; as in `with_proof`.
            unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low)) }
        }
    };
}

impl Simd for Avx512Bf16 {
    pairs_of_bf16!();
}

impl Simd for Amx<'_> {
    const BLOCK: [usize; 3] = product::TILES;
    pairs_of_bf16!();

    #[inline(always)]
    fn tiles(&self) -> Option<&Tiles> {
        Some(self.0)
    }
}

/// 16 × 16 words.
///
/// # Safety
/// The CPU has AVX-512 F; 16 rows, `from_row` and `to_row` words apart, can be read at `from` and written at `to`.
#[inline(always)]
unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        // Loops and no closures, which would be compiled for other instructions.
        let mut x = [_mm512_setzero_ps(); 16];
        for (i, x) in x.iter_mut().enumerate() {
            *x = _mm512_loadu_ps(from.add(i * from_row));
        }
        // Inside each quarter of 128 bits: words of two rows interleaved, then of four.
        let mut pairs = x;
        for (i, pair) in pairs.iter_mut().enumerate() {
            let (a, b) = (x[i & !1], x[i | 1]);
            *pair = if i & 1 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) };
        }
        for (i, x) in x.iter_mut().enumerate() {
            let at = (i & 12) | ((i >> 1) & 1);
            let (a, b) = (_mm512_castps_pd(pairs[at]), _mm512_castps_pd(pairs[at | 2]));
            let mixed = if i & 1 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) };
            *x = _mm512_castpd_ps(mixed);
        }
        // x[4g + c] holds, in quarter q, column 4q + c of the rows 4g..4g + 4: gather the four groups.
        for c in 0..4 {
            let [a, b, d, e] = [x[c], x[4 + c], x[8 + c], x[12 + c]];
            let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(d, e)];
            let odd = [_mm512_shuffle_f32x4::<0xDD>(a, b), _mm512_shuffle_f32x4::<0xDD>(d, e)];
            let to = to.add(c * to_row);
            _mm512_storeu_ps(to, _mm512_shuffle_f32x4::<0x88>(even[0], even[1]));
            _mm512_storeu_ps(to.add(4 * to_row), _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]));
            _mm512_storeu_ps(to.add(8 * to_row), _mm512_shuffle_f32x4::<0xDD>(even[0], even[1]));
            _mm512_storeu_ps(to.add(12 * to_row), _mm512_shuffle_f32x4::<0xDD>(odd[0], odd[1]));
        }
    }
}
