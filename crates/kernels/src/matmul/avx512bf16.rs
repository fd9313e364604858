//! Products with `vdpbf16ps`: each of sixteen lanes multiplies a pair of `bf16` along `k` and sums in `f32`.
//!
//! The instruction takes and leaves subnormal numbers as zero and rounds to nearest even, whatever the
//! process has set.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512::Lanes16;
use super::kernel::{MicroKernel, Rows, Unit};
use crate::Isa;

/// Rows of a tile.
const MR: usize = 14;
/// Lanes of a register; a tile is two wide.
const LANES: usize = 16;

/// Tiles of 14×32 in pairs of `bf16`: 28 sums, two registers of columns, the rest for a row's pair.
pub(super) struct Avx512Bf16;

impl MicroKernel for Avx512Bf16 {
    type Packed = bf16;
    type Lanes = Lanes16;
    const ISA: Isa = Isa::Avx512;
    const MR: usize = MR;
    const NR: usize = 2 * LANES;
    const PASS: usize = 1024;
    const A_PANELS: usize = 8;
    const B_PANELS: usize = 4;

    unsafe fn tile(units: usize, a: Rows, b: *const Unit, tile: *mut f32, add: bool) {
        // SAFETY: the CPU has the instructions, by the caller's promise.
        unsafe {
            match a {
                Rows::Packed(start) => packed_tile(units, start.cast(), b.cast(), tile, add),
                Rows::Stored { start, row } => stored_tile(units, (start.cast(), row), b.cast(), tile, add),
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: &[*const Unit; 16], to: *mut Unit, lanes: usize, stride: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { super::avx512::transpose(from, to, lanes, stride) }
    }
}

/// The tile over `pairs` along `k`, with a packed panel of rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn packed_tile(pairs: usize, a: *const i32, b: *const __m512i, tile: *mut f32, add: bool) {
    // SAFETY: the caller's promise, with the strides of a panel.
    unsafe { sums(pairs, (a, 1, MR), b, tile, add) }
}

/// The tile over `pairs` along `k`, with rows as they are stored.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn stored_tile(
    pairs: usize,
    (a, row): (*const i32, usize),
    b: *const __m512i,
    tile: *mut f32,
    add: bool,
) {
    // SAFETY: the caller's promise, with the strides of a matrix.
    unsafe { sums(pairs, (a, row, 1), b, tile, add) }
}

/// `a` holds `MR` pairs a unit at the strides of a row and of a pair along `k`, `b` two registers of pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn sums(
    pairs: usize,
    (mut a, row_stride, k_stride): (*const i32, usize, usize),
    mut b: *const __m512i,
    tile: *mut f32,
    add: bool,
) {
    // SAFETY: by the promise made to `tile`, `a` and `b` hold `pairs` units, which is how far they advance;
    // `b` and `tile` begin at multiples of 64 bytes, and `tile` holds `MR` rows of two registers.
    // `__m512i` and `__m512bh` are the same bits.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); 2]; MR];
        if add {
            for (i, row) in sum.iter_mut().enumerate() {
                row[0] = _mm512_load_ps(tile.add(2 * LANES * i));
                row[1] = _mm512_load_ps(tile.add(2 * LANES * i + LANES));
            }
        }
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
        for (i, row) in sum.iter().enumerate() {
            _mm512_store_ps(tile.add(2 * LANES * i), row[0]);
            _mm512_store_ps(tile.add(2 * LANES * i + LANES), row[1]);
        }
    }
}
