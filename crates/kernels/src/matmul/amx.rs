//! Products with AMX: 32×32 of `C` in four registers of sums (see [`crate::amx`]).
//!
//! Panels of `op(B)` hold pairs along `k`, as registers of columns do; rows of `A` are read 64 bytes at a time.

use half::bf16;

use super::avx512::Lanes16;
use super::kernel::{MicroKernel, Rows, Stretch, Unit};
use crate::amx::{ROW, RUN, SIDE, Steps, Tiles, add_products, load_sums, store_sums};
use crate::{Element, Isa};

/// Bytes of a row of sums, and of a unit of all columns.
const WIDTH: usize = 2 * SIDE * size_of::<f32>();

/// Tiles of 32×32, four registers of sums.
pub(super) struct Amx;

impl MicroKernel for Amx {
    type Packed = bf16;
    type Lanes = Lanes16;
    type Session = Tiles;
    const ISA: Isa = Isa::Avx512;
    const MR: usize = 2 * SIDE;
    const NR: usize = 2 * SIDE;
    const RUN: usize = RUN;
    const PASS: usize = 128;
    const DEPTH: usize = 4096;
    const A_PANELS: usize = 8;
    const B_PANELS: usize = 8;

    unsafe fn begin() -> Tiles {
        // SAFETY: the caller's promise.
        unsafe { Tiles::configure() }
    }

    unsafe fn tile(stretches: &[Stretch], tile: *mut f32, add: bool) {
        let steps = |stretch: &Stretch| -> Steps {
            let (start, row, step) = match stretch.a {
                Rows::Packed(start) => (start, ROW, Self::MR * ROW),
                Rows::Stored { start, row } => (start, row * size_of::<Unit>(), ROW),
            };
            let low = start.cast::<u8>();
            Steps {
                low,
                high: low.wrapping_add(SIDE * row),
                row,
                step,
                columns: stretch.b.cast(),
                word: WIDTH,
                left: stretch.units / RUN,
            }
        };
        // SAFETY: the caller's promise: the thread holds the registers, and `tile` is four registers of sums.
        unsafe {
            load_sums::<true>(tile, WIDTH, add);
            for stretch in stretches {
                add_products::<true>(steps(stretch));
            }
            store_sums::<true>(tile, WIDTH);
        }
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
