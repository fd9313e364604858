//! Tiles of AMX: registers of 16 rows of 64 bytes, and the instruction that multiplies 16 rows by 16 columns over 32
//! `bf16` and adds to 16 × 16 sums in `f32`. Matrix products and attention are built on it.
//!
//! A register of rows holds 64 bytes of each row, as a matrix is stored; one of columns holds words of two `bf16` that
//! are neighbours along the sum. The instruction takes and leaves subnormal numbers as zero and rounds to nearest even,
//! whatever the process has set. There is a product every 16 cycles and a register loaded every 8: two registers of
//! rows by two of columns, four loads for four products, keep the multiplier busy as long as one of the two comes from
//! the first-level cache.
//!
//! The compiler has no stable intrinsics for tiles, so they are written as assembly.

use std::arch::asm;
use std::marker::PhantomData;

/// Rows, and columns, of a register.
pub(crate) const SIDE: usize = 16;
/// Words of a row in a register.
pub(crate) const RUN: usize = 16;
/// Bytes of a row in a register.
pub(crate) const ROW: usize = RUN * size_of::<u32>();

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

/// Steps of [`RUN`] words along the sum.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    /// The first sixteen rows.
    pub low: *const u8,
    /// The other sixteen.
    pub high: *const u8,
    /// Bytes from a row to the next.
    pub row: usize,
    /// Bytes from a step to the next.
    pub step: usize,
    /// The 32 columns: a word of each, then the next.
    pub columns: *const u8,
    /// Bytes from a word of all columns to the next.
    pub word: usize,
    /// Number of steps.
    pub left: usize,
}

// Sums stay in registers between these three: no other kernel names a tile register, and the compiler never does.
// `HIGH` is whether there are 32 rows or 16.

/// Loads sums in `f32`, 32 columns in rows `row` bytes apart, or sets them to zero.
///
/// # Safety
/// This thread holds [`Tiles`]; with `add` the sums can be read.
#[inline(always)]
pub(crate) unsafe fn load_sums<const HIGH: bool>(sums: *const f32, row: usize, add: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if add {
            asm!(
                "tileloadd tmm0, [{low} + {row}]",
                "tileloadd tmm1, [{low} + {row} + 64]",
                low = in(reg) sums, row = in(reg) row,
                out("tmm0") _, out("tmm1") _,
                options(nostack, readonly, preserves_flags),
            );
            if HIGH {
                asm!(
                    "tileloadd tmm2, [{high} + {row}]",
                    "tileloadd tmm3, [{high} + {row} + 64]",
                    high = in(reg) sums.byte_add(SIDE * row), row = in(reg) row,
                    out("tmm2") _, out("tmm3") _,
                    options(nostack, readonly, preserves_flags),
                );
            }
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
}

/// Adds the products of all steps.
///
/// # Safety
/// This thread holds [`Tiles`]; [`SIDE`] rows can be read at `low`, and with `HIGH` at `high`, in every step, and
/// [`RUN`] words of all columns.
#[inline(always)]
pub(crate) unsafe fn add_products<const HIGH: bool>(steps: Steps) {
    if steps.left == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        if HIGH {
            asm!(
                "2:",
                "tileloadd tmm6, [{columns} + {word}]",
                "tileloadd tmm4, [{low} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{columns} + {word} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{high} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {low}, {step}",
                "add {high}, {step}",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {columns}, {column_step}",
                "dec {left}",
                "jnz 2b",
                low = inout(reg) steps.low => _,
                high = inout(reg) steps.high => _,
                row = in(reg) steps.row,
                step = in(reg) steps.step,
                columns = inout(reg) steps.columns => _,
                word = in(reg) steps.word,
                column_step = in(reg) RUN * steps.word,
                left = inout(reg) steps.left => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        } else {
            asm!(
                "2:",
                "tileloadd tmm6, [{columns} + {word}]",
                "tileloadd tmm4, [{low} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{columns} + {word} + 64]",
                "add {low}, {step}",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {columns}, {column_step}",
                "dec {left}",
                "jnz 2b",
                low = inout(reg) steps.low => _,
                row = in(reg) steps.row,
                step = in(reg) steps.step,
                columns = inout(reg) steps.columns => _,
                word = in(reg) steps.word,
                column_step = in(reg) RUN * steps.word,
                left = inout(reg) steps.left => _,
                out("tmm0") _, out("tmm1") _,
                out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }
}

/// Stores what [`load_sums`] loads.
///
/// # Safety
/// This thread holds [`Tiles`]; the sums can be written.
#[inline(always)]
pub(crate) unsafe fn store_sums<const HIGH: bool>(sums: *mut f32, row: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilestored [{low} + {row}], tmm0",
            "tilestored [{low} + {row} + 64], tmm1",
            low = in(reg) sums, row = in(reg) row,
            options(nostack, preserves_flags),
        );
        if HIGH {
            asm!(
                "tilestored [{high} + {row}], tmm2",
                "tilestored [{high} + {row} + 64], tmm3",
                high = in(reg) sums.byte_add(SIDE * row), row = in(reg) row,
                options(nostack, preserves_flags),
            );
        }
    }
}
