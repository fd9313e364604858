//! Products with AMX: an instruction multiplies a tile of 16 rows by a tile of 16 columns over 32 `bf16` along `k` and
//! adds to a tile of 16 × 16 sums in `f32`.
//!
//! A tile of columns holds pairs along `k`, as panels of `op(B)` do; a tile of rows is 64 bytes of each row, as a matrix
//! is stored. The instruction takes and leaves subnormal numbers as zero and rounds to nearest even, whatever the process
//! has set. There is a product every 16 cycles and a tile loaded every 8: two tiles of rows by two of columns, four loads
//! for four products, keep the multiplier busy as long as one of the two comes from the first-level cache.
//!
//! The compiler has no stable intrinsics for tiles, so they are written as assembly.

use std::arch::asm;
use std::marker::PhantomData;

use half::bf16;

use super::avx512::Lanes16;
use super::kernel::{MicroKernel, Rows, Stretch, Unit};
use crate::Isa;

/// Rows, and columns, of a register.
const SIDE: usize = 16;
/// Units of a row in a register.
const RUN: usize = 16;
/// Bytes of a row in a register.
const ROW: usize = RUN * size_of::<Unit>();

/// Tiles of 32×32, four registers of sums.
pub(super) struct Amx;

/// The shapes of all registers: palette, first row, then bytes of a row and rows of each.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    first_row: u8,
    zeros: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight registers of 16 rows of 64 bytes.
static SHAPES: Shapes = Shapes {
    palette: 1,
    first_row: 0,
    zeros: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The tile registers of this thread, configured; given back when it is dropped.
pub(crate) struct Tiles {
    /// Stays on its thread.
    thread: PhantomData<*mut u8>,
}

impl Tiles {
    /// # Safety
    /// `Isa::Amx` is available.
    pub unsafe fn configure() -> Self {
        // SAFETY: the shapes are valid for palette 1, by Intel's manual, volume 1, 18.2.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly)) }
        Self { thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: whoever made it had the instructions.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

impl MicroKernel for Amx {
    type Packed = bf16;
    type Lanes = Lanes16;
    type Session = Tiles;
    const ISA: Isa = Isa::Avx512;
    const MR: usize = 2 * SIDE;
    const NR: usize = 2 * SIDE;
    const RUN: usize = RUN;
    const PASS: usize = 128;
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
                b: stretch.b,
                left: stretch.units / RUN,
            }
        };
        // SAFETY: the caller's promise: the thread holds the registers, and `tile` is four registers of sums.
        unsafe {
            load_sums(tile, add);
            for stretch in stretches {
                add_products(steps(stretch));
            }
            store_sums(tile);
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: &[*const Unit; 16], to: *mut Unit, lanes: usize, stride: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { super::avx512::transpose(from, to, lanes, stride) }
    }
}

/// A stretch along `k` in steps of a register.
struct Steps {
    /// The first sixteen rows.
    low: *const u8,
    /// The other sixteen.
    high: *const u8,
    /// Bytes from a row to the next.
    row: usize,
    /// Bytes from a step to the next.
    step: usize,
    /// The columns.
    b: *const Unit,
    /// Steps.
    left: usize,
}

/// Bytes of a row of sums, and of a unit of all columns.
const WIDTH: usize = 2 * SIDE * size_of::<f32>();

// Sums stay in registers between these three: nothing else in this crate names a tile register, and the compiler never
// does.

/// # Safety
/// As [`MicroKernel::tile`].
#[inline(always)]
unsafe fn load_sums(tile: *const f32, add: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if add {
            asm!(
                "tileloadd tmm0, [{left} + {width}]",
                "tileloadd tmm1, [{left} + {width} + 64]",
                "tileloadd tmm2, [{low} + {width}]",
                "tileloadd tmm3, [{low} + {width} + 64]",
                left = in(reg) tile,
                low = in(reg) tile.add(2 * SIDE * SIDE),
                width = in(reg) WIDTH,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, readonly, preserves_flags),
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
}

/// # Safety
/// As [`MicroKernel::tile`]: `SIDE` rows can be read at `low` and at `high` in every step, and `RUN` units of all columns
/// at `b`.
#[inline(always)]
unsafe fn add_products(steps: Steps) {
    if steps.left == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm6, [{b} + {width}]",
            "tileloadd tmm4, [{low} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {width} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{high} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "add {low}, {step}",
            "add {high}, {step}",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {b}, {b_step}",
            "dec {left}",
            "jnz 2b",
            low = inout(reg) steps.low => _,
            high = inout(reg) steps.high => _,
            row = in(reg) steps.row,
            step = in(reg) steps.step,
            b = inout(reg) steps.b => _,
            left = inout(reg) steps.left => _,
            width = in(reg) WIDTH,
            b_step = const RUN * WIDTH,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

/// # Safety
/// As [`MicroKernel::tile`].
#[inline(always)]
unsafe fn store_sums(tile: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilestored [{left} + {width}], tmm0",
            "tilestored [{left} + {width} + 64], tmm1",
            "tilestored [{low} + {width}], tmm2",
            "tilestored [{low} + {width} + 64], tmm3",
            left = in(reg) tile,
            low = in(reg) tile.add(2 * SIDE * SIDE),
            width = in(reg) WIDTH,
            options(nostack, preserves_flags),
        );
    }
}
