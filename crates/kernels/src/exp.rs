//! The exponential function that every op shares: `f32`, branch-free, at most 2 ulp from the true value.
//!
//! A loop over it vectorises when it is compiled for an instruction set (`isa::per_isa`). It is written without fused
//! multiply-adds, so that every instruction set returns the same bits. What applies it to many values at a time,
//! [`exp_all`] and [`sigmoid_all`], has AVX-512's instruction for `p·2ⁿ`, which saves a quarter of the arithmetic and
//! changes no bit.

use crate::Isa;
use crate::isa::per_isa;

/// Beyond these the result is 0 or infinite.
const LOWEST: f32 = -104.0;
const HIGHEST: f32 = 89.0;
/// Adding 1.5·2²³ leaves the nearest integer in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has 11 significant bits, so that `n · LN2_HIGH` is exact for |n| ≤ 151.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Taylor's coefficients of r⁷ to r²: |r| ≤ 0.3466 leaves a remainder of 5e-9, a twelfth of half an ulp.
const TAYLOR: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];

/// `eˣ` within 2 ulp for every `x`: 0 below −103.98, subnormals above that, infinity above 88.73, NaN for NaN.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; `eʳ` is a polynomial, and `2ⁿ` is multiplied in two halves, so that
/// neither a subnormal nor the largest finite result is lost on the way.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons with NaN are false, so a NaN goes through.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let [highest, lower @ ..] = TAYLOR;
    let p = lower.into_iter().fold(highest, |p, coefficient| p * r + coefficient);
    let p = (p * r) * r + r;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    (p + 1.0) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `2ⁿ` for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// [`exp`] of every value.
pub(crate) fn exp_all(isa: Isa, x: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an instruction set that a device has.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { avx512::exp_all(x) },
        _ => plain_exp_all(isa, x),
    }
}

/// `1/(1 + e⁻ˣ)` of every value.
pub(crate) fn sigmoid_all(isa: Isa, x: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an instruction set that a device has.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { avx512::sigmoid_all(x) },
        _ => plain_sigmoid_all(isa, x),
    }
}

per_isa! {
    fn plain_exp_all(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = exp(*x));
    }

    fn plain_sigmoid_all(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + exp(-*x)));
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The same operations as [`super::exp`] in sixteen lanes.

    use std::arch::x86_64::*;

    use super::{HIGHEST, LN2_HIGH, LN2_LOW, LOWEST, ROUND, TAYLOR};

    #[target_feature(enable = "avx512f")]
    pub(super) fn exp_all(x: &mut [f32]) {
        in_lanes(x, |x| exp(x));
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn sigmoid_all(x: &mut [f32]) {
        let one = _mm512_set1_ps(1.0);
        in_lanes(x, |x| {
            let minus_x = _mm512_sub_ps(_mm512_set1_ps(-0.0), x);
            _mm512_div_ps(one, _mm512_add_ps(one, exp(minus_x)))
        });
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn in_lanes(x: &mut [f32], f: impl Fn(__m512) -> __m512) {
        let (whole, rest) = x.as_chunks_mut::<16>();
        for x in whole {
            // SAFETY: sixteen floats are a register.
            unsafe { _mm512_storeu_ps(x.as_mut_ptr(), f(_mm512_loadu_ps(x.as_ptr()))) };
        }
        let mask = (1_u16 << rest.len()) - 1;
        // SAFETY: only the lanes of the mask are touched, as many as there are floats left.
        unsafe {
            let y = f(_mm512_maskz_loadu_ps(mask, rest.as_ptr()));
            _mm512_mask_storeu_ps(rest.as_mut_ptr(), mask, y);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exp(x: __m512) -> __m512 {
        let all = |x: f32| _mm512_set1_ps(x);
        // Of a number and NaN these return the second operand.
        let x = _mm512_max_ps(all(LOWEST), x);
        let x = _mm512_min_ps(all(HIGHEST), x);
        let shifted = _mm512_add_ps(_mm512_mul_ps(x, all(std::f32::consts::LOG2_E)), all(ROUND));
        let n = _mm512_sub_ps(shifted, all(ROUND));
        // `n · LN2_HIGH` is exact, so that fusing it with the subtraction changes nothing.
        let r = _mm512_fnmadd_ps(n, all(LN2_HIGH), x);
        let r = _mm512_sub_ps(r, _mm512_mul_ps(n, all(LN2_LOW)));
        let mut p = all(TAYLOR[0]);
        for coefficient in &TAYLOR[1..] {
            p = _mm512_add_ps(_mm512_mul_ps(p, r), all(*coefficient));
        }
        let p = _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(p, r), r), r);
        _mm512_scalef_ps(_mm512_add_ps(p, all(1.0)), n)
    }
}

#[cfg(test)]
mod tests {
    use super::{exp, exp_all, sigmoid_all};
    use crate::Isa;

    /// Distance in units of the last place of the nearest `f32`, subnormals included.
    fn ulps(x: f32) -> f64 {
        let truth = f64::from(x).exp();
        let nearest = truth as f32;
        if nearest.is_infinite() {
            return if exp(x) == f32::INFINITY || exp(x) == f32::MAX { 0.0 } else { f64::INFINITY };
        }
        let ulp = f64::from(nearest.next_up()) - f64::from(nearest);
        let ulp = if ulp.is_finite() { ulp } else { 2f64.powi(104) };
        (f64::from(exp(x)) - truth).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulp_of_f64_over_its_whole_range() {
        let mut worst = (0.0, 0.0);
        let mut x = -110.0f32;
        while x < 90.0 {
            let error = ulps(x);
            if error > worst.0 {
                worst = (error, x);
            }
            x += 1.37e-4;
        }
        // Small arguments, which the walk above steps over.
        for exponent in -140..=0 {
            for mantissa in [1.0f64, 1.25, 1.6, 1.99] {
                let x = (mantissa * 2f64.powi(exponent)) as f32;
                for x in [x, -x] {
                    if ulps(x) > worst.0 {
                        worst = (ulps(x), x);
                    }
                }
            }
        }
        assert!(worst.0 <= 2.0, "{} ulp at {:e}", worst.0, worst.1);
    }

    #[test]
    fn exp_of_the_edges_of_f32() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.722_83), 3.402_798_5e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let edges = [f32::NEG_INFINITY, f32::MIN, -103.97, -0.0, 88.72, 88.73, f32::INFINITY, f32::NAN];
        let xs: Vec<f32> = (0..4096).map(|i| i as f32 * 0.05 - 110.0).chain(edges).collect();
        let bits = |x: f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
        type All = fn(Isa, &mut [f32]);
        type One = fn(f32) -> f32;
        let functions: [(All, One); 2] = [(exp_all, exp), (sigmoid_all, |x| 1.0 / (1.0 + exp(-x)))];
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (all, one) in functions {
                for xs in [&xs[..], &xs[..5]] {
                    let mut ys = xs.to_vec();
                    all(isa, &mut ys);
                    for (x, y) in xs.iter().zip(ys) {
                        assert_eq!(bits(y), bits(one(*x)), "of {x} on {isa}");
                    }
                }
            }
        }
    }
}
