//! Products with AVX2 and FMA: eight `f32` lanes, sixteen registers.

use std::arch::x86_64::*;

use half::bf16;

use super::kernel::{MicroKernel, Stretch, Unit};
use super::vector::{Vector, f32_tile};
use crate::Isa;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(super) struct Lanes8(__m256);

impl Vector for Lanes8 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the CPU has AVX2, by the trait's contract.
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the CPU has AVX2 and the pointer is good for eight floats, by the trait's contract.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the CPU has AVX2 and the pointer is good for eight values, by the trait's contract.
        Self(unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the CPU has AVX2 and the pointer is good for eight bytes, by the trait's contract.
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn nibbles(table: &[f32; 16], codes: *const u8) -> Self {
        // SAFETY: the CPU has AVX2 and the pointer is good for four bytes, by the trait's contract.
        Self(unsafe {
            let shifts = _mm256_set_epi32(24, 28, 16, 20, 8, 12, 0, 4);
            let codes = _mm256_srlv_epi32(_mm256_set1_epi32(codes.cast::<i32>().read_unaligned()), shifts);
            // Of an index only the lowest three bits count; the fourth, as a sign, chooses the half of the table.
            let half = |i: usize| _mm256_permutevar8x32_ps(_mm256_loadu_ps(table[i..].as_ptr()), codes);
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
            _mm256_blendv_ps(half(0), half(8), upper)
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the CPU has AVX2 and the pointer is good for eight floats, by the trait's contract.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: the CPU has FMA, by the trait's contract.
        Self(unsafe { _mm256_fmadd_ps(self.0, by.0, plus.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the CPU has AVX2, by the trait's contract.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

/// Tiles of 6×16 in `f32`: twelve sums, two registers of columns, one of a row's value.
pub(super) struct Avx2F32;

impl MicroKernel for Avx2F32 {
    type Packed = f32;
    type Lanes = Lanes8;
    type Session = ();
    const ISA: Isa = Isa::Avx2;
    const MR: usize = 6;
    const NR: usize = 16;
    const PASS: usize = 512;
    const DEPTH: usize = 1024;
    const A_PANELS: usize = 16;
    const B_PANELS: usize = 8;

    unsafe fn begin() {}

    unsafe fn tile(stretches: &[Stretch], tile: *mut f32, add: bool) {
        #[target_feature(enable = "avx2,fma")]
        fn compiled(stretches: &[Stretch], tile: *mut f32, add: bool) {
            // SAFETY: the promise made to `tile`.
            unsafe { f32_tile::<Lanes8, 6, 2>(stretches, tile, add) }
        }
        // SAFETY: the CPU has the instructions, by the caller's promise.
        unsafe { compiled(stretches, tile, add) }
    }

    #[inline(always)]
    unsafe fn transpose(from: &[*const Unit; 16], to: *mut Unit, lanes: usize, stride: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { transpose(from, to, lanes, stride) }
    }
}

/// [`MicroKernel::transpose`], eight lanes by four units at a time.
///
/// # Safety
/// The same.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose(from: &[*const Unit; 16], to: *mut Unit, lanes: usize, stride: usize) {
    for first in (0..lanes).step_by(8) {
        let count = _mm256_set1_epi32((lanes - first) as i32);
        let mask = _mm256_cmpgt_epi32(count, _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
        for unit in (0..16).step_by(4) {
            let mut rows = [_mm256_setzero_si256(); 4];
            for (i, row) in rows.iter_mut().enumerate() {
                let [low, high] = [from[first + i], from[first + i + 4]];
                // SAFETY: sixteen units are readable.
                *row = unsafe { _mm256_loadu2_m128i(high.add(unit).cast(), low.add(unit).cast()) };
            }
            let [a, b, c, d] = rows;
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            let units = [
                _mm256_unpacklo_epi64(ab_low, cd_low),
                _mm256_unpackhi_epi64(ab_low, cd_low),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ];
            for (i, lane) in units.into_iter().enumerate() {
                // SAFETY: eight lanes of a unit are writable, or those of the mask.
                unsafe {
                    let to = to.add((unit + i) * stride + first);
                    if lanes - first >= 8 {
                        _mm256_storeu_si256(to.cast(), lane);
                    } else {
                        // Slow on some CPUs.
                        _mm256_maskstore_epi32(to.cast(), mask, lane);
                    }
                }
            }
        }
    }
}
