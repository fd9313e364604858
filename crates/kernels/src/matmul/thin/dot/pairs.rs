//! Pairs of `bf16` by `vdpbf16ps`: half as many instructions for a value as widening both sides takes.

use std::arch::x86_64::*;

use half::bf16;

use super::{Meeting, Part};
use crate::matmul::avx512::Lanes16;
use crate::{Element, Isa};

/// Thirty-two values of `bf16` in a register.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl<S: Element> Meeting<S> for Pairs {
    type Sum = Lanes16;
    type Packed = bf16;
    type Values = __m512bh;
    const VALUES: usize = 32;

    #[inline(always)]
    unsafe fn zeros() -> __m512bh {
        // SAFETY: the caller's promise; both are 64 bytes of any content.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    unsafe fn big(from: *const S) -> __m512bh {
        // SAFETY: the caller's promise; `S` is `bf16` where this is taken.
        unsafe { <Self as Meeting<S>>::thin(from.cast()) }
    }

    #[inline(always)]
    unsafe fn thin(from: *const bf16) -> __m512bh {
        // SAFETY: the caller's promise; both are 64 bytes of any content.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add(x: __m512bh, y: __m512bh, plus: Lanes16) -> Lanes16 {
        // SAFETY: the caller's promise.
        Lanes16(unsafe { _mm512_dpbf16_ps(plus.0, x, y) })
    }

    fn sum_part<E: Element>(_: Isa, part: Part<'_, Self, S, E>) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
        fn inside<S: Element, E: Element>(part: Part<'_, Pairs, S, E>) {
            part.run();
        }
        // SAFETY: a kernel that multiplies pairs is chosen where the CPU does.
        unsafe { inside(part) }
    }
}
