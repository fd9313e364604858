//! Vectors of four lanes in plain Rust, for every CPU.

use super::{EXP2, EXP2_LEAST, Job, Simd};

const WIDTH: usize = 4;

type V = [f32; WIDTH];

/// No instructions beyond the compiler's default.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> V {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type V = V;
    const WIDTH: usize = WIDTH;
    const PAIR: usize = 1;
    const COLUMNS: usize = 2;

    fn enter<J: Job>(self, job: J) {
        job.run(self);
    }

    #[inline(always)]
    unsafe fn load_from(self, from: *const f32) -> V {
        // SAFETY: as the caller promises; an array has no stricter alignment than its elements.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn store_to(self, x: V, to: *mut f32) {
        // SAFETY: as the caller promises; an array has no stricter alignment than its elements.
        unsafe { *to.cast() = x }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; WIDTH]
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        each(|i| a[i] / b[i])
    }

    // Not fused: without an instruction for it, that would be a function call.
    #[inline(always)]
    fn mul_add(self, a: V, b: V, c: V) -> V {
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn keep_within(self, distance: V, window: V, x: V, other: V) -> V {
        each(|i| if distance[i] >= 0.0 && distance[i] < window[i] { x[i] } else { other[i] })
    }

    #[inline(always)]
    fn exp2(self, x: V) -> V {
        // Adding 1.5·2²³ leaves the nearest integer in the low bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        each(|i| {
            let x = if x[i] < EXP2_LEAST { EXP2_LEAST } else { x[i] };
            let shifted = x + ROUND;
            let r = x - (shifted - ROUND);
            let p = EXP2.iter().rev().fold(0.0, |p, c| p * r + c) * r + 1.0;
            let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
            let power_of_two = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
            p * power_of_two(n >> 1) * power_of_two(n.wrapping_sub(n >> 1))
        })
    }

    #[inline(always)]
    fn dot(self, a: V, b: V, sum: V) -> V {
        self.mul_add(a, b, sum)
    }

    fn pair(self, _: V, _: V) -> V {
        unreachable!("words of one value have no pairs")
    }

    fn narrow(self, _: V, _: V) -> V {
        unreachable!("words of one value have no pairs")
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        for i in 0..WIDTH {
            for j in 0..WIDTH {
                // SAFETY: inside the blocks that the caller promises.
                unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) }
            }
        }
    }
}
