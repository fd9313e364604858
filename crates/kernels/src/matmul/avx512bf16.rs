//! Products with `vdpbf16ps`: each of sixteen lanes multiplies a pair of `bf16` along `k` and sums in `f32`.
//!
//! The instruction takes and leaves subnormal numbers as zero and rounds to nearest even, whatever the
//! process has set.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512::Lanes16;
use super::kernel::{MicroKernel, Rows, Stretch, Unit};
use crate::{Element, Isa};

/// Rows of a tile.
const MR: usize = 14;
/// Lanes of a register; a tile is two wide.
const LANES: usize = 16;

/// Tiles of 14×32 in pairs of `bf16`: 28 sums, two registers of columns, the rest for a row's pair.
pub(super) struct Avx512Bf16;

impl MicroKernel for Avx512Bf16 {
    type Packed = bf16;
    type Lanes = Lanes16;
    type Session = ();
    const ISA: Isa = Isa::Avx512;
    const PAIRS: bool = true;
    const MR: usize = MR;
    const NR: usize = 2 * LANES;
    const PASS: usize = 1024;
    const DEPTH: usize = 1024;
    const A_PANELS: usize = 8;
    const B_PANELS: usize = 4;

    unsafe fn begin() {}

    unsafe fn tile(stretches: &[Stretch], tile: *mut f32, add: bool) {
        // SAFETY: the CPU has the instructions, by the caller's promise, which is passed on.
        unsafe { sums(stretches, tile, add) }
    }

    #[inline(always)]
    unsafe fn transpose(from: &[*const Unit; 16], to: *mut Unit, lanes: usize, stride: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { super::avx512::transpose(from, to, lanes, stride) }
    }

    #[inline(always)]
    unsafe fn unit<S: Element, const ROUND: bool>(low: &[S], high: Option<&[S]>, to: &mut [Unit]) {
        // SAFETY: the caller's promise is the same.
        unsafe { super::avx512::pairs(low, high, to) }
    }
}

/// The tile over all stretches, its sums in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn sums(stretches: &[Stretch], tile: *mut f32, add: bool) {
    // SAFETY: by the promise made to `tile`, which begins at a multiple of 64 bytes and holds `MR` rows of two
    // registers.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); 2]; MR];
        if add {
            for (i, row) in sum.iter_mut().enumerate() {
                row[0] = _mm512_load_ps(tile.add(2 * LANES * i));
                row[1] = _mm512_load_ps(tile.add(2 * LANES * i + LANES));
            }
        }
        for stretch in stretches {
            let b = stretch.b.cast();
            match stretch.a {
                Rows::Packed(start) => add_stretch(&mut sum, stretch.units, (start.cast(), 1, MR), b),
                Rows::Stored { start, row } => {
                    add_stretch(&mut sum, stretch.units, (start.cast(), row, 1), b)
                }
            }
        }
        for (i, row) in sum.iter().enumerate() {
            _mm512_store_ps(tile.add(2 * LANES * i), row[0]);
            _mm512_store_ps(tile.add(2 * LANES * i + LANES), row[1]);
        }
    }
}

/// Adds `pairs` along `k`. `a` holds `MR` pairs a unit at the strides of a row and of a pair along `k`, `b` two
/// registers of pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn add_stretch(
    sum: &mut [[__m512; 2]; MR],
    pairs: usize,
    (mut a, row_stride, k_stride): (*const i32, usize, usize),
    mut b: *const __m512i,
) {
    // SAFETY: by the promise made to `tile`, `a` and `b` hold `pairs` units, which is how far they advance, and `b`
    // begins at a multiple of 64 bytes. `__m512i` and `__m512bh` are the same bits.
    unsafe {
        for _ in 0..pairs {
            let left: __m512bh = std::mem::transmute(_mm512_load_si512(b));
            let right: __m512bh = std::mem::transmute(_mm512_load_si512(b.add(1)));
            for (i, row) in sum.iter_mut().enumerate() {
                let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(i * row_stride)));
                row[0] = _mm512_dpbf16_ps(row[0], pair, left);
                row[1] = _mm512_dpbf16_ps(row[1], pair, right);
            }
            a = a.add(k_stride);
            b = b.add(2);
        }
    }
}
