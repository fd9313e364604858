//! The exponential function that every op shares: `f32`, branch-free, at most 2 ulp from the true value.
//!
//! A loop over it vectorises when it is compiled for an instruction set (`isa::per_isa`). It is written without fused
//! multiply-adds, so that every instruction set returns the same bits.

/// `eˣ` within 2 ulp for every `x`: 0 below −103.98, subnormals above that, infinity above 88.73, NaN for NaN.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; `eʳ` is a polynomial, and `2ⁿ` is multiplied in two halves, so that
/// neither a subnormal nor the largest finite result is lost on the way.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has 11 significant bits, so that `n · LN2_HIGH` is exact for |n| ≤ 151.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Beyond these the result is 0 or infinite. Comparisons with NaN are false, so a NaN goes through.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's coefficients to r⁷: |r| ≤ 0.3466 leaves a remainder of 5e-9, a twelfth of half an ulp.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
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

#[cfg(test)]
mod tests {
    use super::exp;
    use crate::Isa;
    use crate::isa::per_isa;

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

    per_isa! {
        fn exp_all(xs: &mut [f32]) {
            xs.iter_mut().for_each(|x| *x = exp(*x));
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let xs: Vec<f32> = (0..4096).map(|i| i as f32 * 0.05 - 110.0).collect();
        let plain: Vec<u32> = xs.iter().map(|x| exp(*x).to_bits()).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut ys = xs.clone();
            exp_all(isa, &mut ys);
            let bits: Vec<u32> = ys.iter().map(|y| y.to_bits()).collect();
            assert_eq!(bits, plain, "{isa}");
        }
    }
}
