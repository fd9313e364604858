//! Products with AVX-512 in `f32`: sixteen lanes, thirty-two registers.

use std::arch::x86_64::*;

use half::bf16;

use super::kernel::{MicroKernel, Stretch, Unit};
use super::vector::{Vector, f32_tile};
use crate::{DType, Element, Isa};

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(super) struct Lanes16(pub(super) __m512);

impl Vector for Lanes16 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

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
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the CPU has AVX-512 and the pointer is good for 16 bytes, by the trait's contract.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn nibbles(table: &[f32; 16], codes: *const u8) -> Self {
        // SAFETY: the CPU has AVX-512 and the pointer is good for eight bytes, by the trait's contract.
        Self(unsafe {
            let codes = codes.cast::<[i32; 2]>().read_unaligned();
            let codes = _mm512_mask_set1_epi32(_mm512_set1_epi32(codes[0]), 0xFF00, codes[1]);
            let shifts = _mm512_set_epi32(24, 28, 16, 20, 8, 12, 0, 4, 24, 28, 16, 20, 8, 12, 0, 4);
            // Of an index only the lowest four bits count.
            _mm512_permutexvar_ps(_mm512_srlv_epi32(codes, shifts), _mm512_loadu_ps(table.as_ptr()))
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

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the CPU has AVX-512, by the trait's contract.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
}

/// Tiles of 14×32 in `f32`: 28 sums, two registers of columns, the rest for a row's value.
pub(super) struct Avx512F32;

impl MicroKernel for Avx512F32 {
    type Packed = f32;
    type Lanes = Lanes16;
    type Session = ();
    const ISA: Isa = Isa::Avx512;
    const MR: usize = 14;
    const NR: usize = 32;
    const PASS: usize = 1280;
    const DEPTH: usize = 1024;
    const A_PANELS: usize = 8;
    const B_PANELS: usize = 4;

    unsafe fn begin() {}

    unsafe fn tile(stretches: &[Stretch], tile: *mut f32, add: bool) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn compiled(stretches: &[Stretch], tile: *mut f32, add: bool) {
            // SAFETY: the promise made to `tile`.
            unsafe { f32_tile::<Lanes16, 14, 2>(stretches, tile, add) }
        }
        // SAFETY: the CPU has the instructions, by the caller's promise.
        unsafe { compiled(stretches, tile, add) }
    }

    #[inline(always)]
    unsafe fn transpose(from: &[*const Unit; 16], to: *mut Unit, lanes: usize, stride: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { transpose(from, to, lanes, stride) }
    }

    #[inline(always)]
    unsafe fn unit<S: Element, const ROUND: bool>(low: &[S], _: Option<&[S]>, to: &mut [Unit]) {
        // SAFETY: the caller's promise is the same.
        unsafe { singles::<S, ROUND>(low, to) }
    }
}

/// [`MicroKernel::unit`] of single values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn singles<S: Element, const ROUND: bool>(from: &[S], to: &mut [Unit]) {
    assert_eq!(from.len(), to.len());
    for (i, to) in to.chunks_mut(16).enumerate() {
        let mask = (0xFFFF_u32 >> (16 - to.len())) as u16;
        // SAFETY: a row is as long as all of `to`, of which a part has as many lanes as its mask.
        unsafe {
            let from = from.as_ptr().add(16 * i);
            let units = match S::DTYPE == DType::F32 && !ROUND {
                true => _mm512_maskz_loadu_epi32(mask, from.cast()),
                false => rounded(from, mask),
            };
            _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, units);
        }
    }
}

/// [`MicroKernel::unit`] of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn pairs<S: Element>(low: &[S], high: Option<&[S]>, to: &mut [Unit]) {
    assert!(low.len() == to.len() && high.is_none_or(|high| high.len() == to.len()));
    for (i, to) in to.chunks_mut(16).enumerate() {
        let mask = (0xFFFF_u32 >> (16 - to.len())) as u16;
        // SAFETY: rows are as long as all of `to`, of which a part has as many lanes as its mask.
        unsafe {
            let mut units = _mm512_srli_epi32::<16>(rounded(low.as_ptr().add(16 * i), mask));
            if let Some(high) = high {
                units = _mm512_or_si512(units, rounded(high.as_ptr().add(16 * i), mask));
            }
            _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, units);
        }
    }
}

/// The lanes of a mask rounded to `bf16`, in upper halves.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn rounded<S: Element>(from: *const S, mask: u16) -> __m512i {
    // SAFETY: the caller's promise; `S` is one of two types.
    unsafe {
        if S::DTYPE == DType::F32 {
            upper_halves(_mm512_maskz_loadu_epi32(mask, from.cast()))
        } else {
            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast())))
        }
    }
}

/// Sixteen floats rounded to `bf16`, to nearest even; a NaN stays one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn upper_halves(bits: __m512i) -> __m512i {
    let upper = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    let floats = _mm512_castsi512_ps(bits);
    let nans = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(floats, floats);
    let quiet = _mm512_set1_epi32(0x0040_0000);
    _mm512_and_si512(_mm512_mask_or_epi32(rounded, nans, bits, quiet), upper)
}

/// Swaps the rows and the columns of sixteen registers: pairs, fours, then quarters of registers.
///
/// # Safety
/// That of [`MicroKernel::transpose`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn transpose(from: &[*const Unit; 16], to: *mut Unit, lanes: usize, stride: usize) {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (row, from) in rows.iter_mut().zip(from) {
        // SAFETY: sixteen units are a register.
        *row = unsafe { _mm512_loadu_si512(from.cast()) };
    }
    let mask = (0xFFFF_u32 >> (16 - lanes)) as u16;
    let mut twos = rows;
    for i in 0..8 {
        twos[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        twos[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // `fours[4·i + j]` holds unit `j` of each quarter for lanes `4·i..4·i + 4`.
    let mut fours = twos;
    for i in 0..4 {
        for half in 0..2 {
            let (x, y) = (twos[4 * i + half], twos[4 * i + 2 + half]);
            fours[4 * i + 2 * half] = _mm512_unpacklo_epi64(x, y);
            fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(x, y);
        }
    }
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        // Quarters 0 and 2, then 1 and 3, of two of the four; then the same of those.
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xDD>(c, d));
        let columns = [
            (j, _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even)),
            (4 + j, _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd)),
            (8 + j, _mm512_shuffle_i32x4::<0xDD>(ab_even, cd_even)),
            (12 + j, _mm512_shuffle_i32x4::<0xDD>(ab_odd, cd_odd)),
        ];
        for (unit, column) in columns {
            // SAFETY: the caller's promise, for the lanes of the mask.
            unsafe { _mm512_mask_storeu_epi32(to.add(unit * stride).cast(), mask, column) };
        }
    }
}
