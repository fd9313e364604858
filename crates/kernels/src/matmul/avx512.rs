//! Products with AVX-512 in `f32`: sixteen lanes, thirty-two registers.

use std::arch::x86_64::*;

use half::bf16;

use super::kernel::MicroKernel;
use super::vector::{Vector, f32_tile};
use crate::Isa;

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(super) struct Lanes16(__m512);

impl Vector for Lanes16 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the CPU has AVX-512, by the trait's contract.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the CPU has AVX-512 and the pointer is good for 16 floats, by the trait's contract.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the CPU has AVX-512 and the pointer is good for 16 values, by the trait's contract.
        Self(unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the CPU has AVX-512 and the pointer is good for 16 floats, by the trait's contract.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: the CPU has AVX-512, by the trait's contract.
        Self(unsafe { _mm512_fmadd_ps(self.0, by.0, plus.0) })
    }
}

/// Tiles of 14×32 in `f32`: 28 sums, two registers of columns, the rest for a row's value.
pub(super) struct Avx512F32;

impl MicroKernel for Avx512F32 {
    type Packed = f32;
    const ISA: Isa = Isa::Avx512;
    const MR: usize = 14;
    const NR: usize = 32;
    const K_UNIT: usize = 1;
    const KC: usize = 256;
    const A_PANELS: usize = 8;
    const B_PANELS: usize = 4;

    unsafe fn tile(k: usize, a: *const f32, b: *const f32, tile: *mut f32, add: bool) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn compiled(k: usize, a: *const f32, b: *const f32, tile: *mut f32, add: bool) {
            // SAFETY: the promise made to `tile`.
            unsafe { f32_tile::<Lanes16, 14, 2>(k, a, b, tile, add) }
        }
        // SAFETY: the CPU has AVX-512, by the caller's promise.
        unsafe { compiled(k, a, b, tile, add) }
    }
}
