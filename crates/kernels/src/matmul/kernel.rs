//! What a blocked product asks of an instruction set: the product of two packed panels.
//!
//! A kernel is a type without values; [`super::blocked`] is compiled once for each. To add an instruction set
//! is to add a file with one implementation and its line in [`super::run`].

use super::vector::Vector;
use crate::{Element, Isa};

/// Four bytes of a packed panel: one `f32`, or two `bf16` that follow each other along `k`.
pub(super) type Unit = u32;

/// `MR` rows of `op(A)` as a kernel reads them.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    /// A packed panel.
    Packed(*const Unit),
    /// As the matrix is stored.
    Stored {
        /// The first unit of the first row.
        start: *const Unit,
        /// Units from a row to the next.
        row: usize,
    },
}

/// A stretch along `k` of a panel of rows and of the panel of columns that it meets.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    /// Its length.
    pub units: usize,
    /// The rows of `op(A)`.
    pub a: Rows,
    /// The columns of `op(B)`, packed.
    pub b: *const Unit,
}

/// Product of a panel of `MR` rows of `op(A)` with a panel of `NR` columns of `op(B)`.
///
/// # Packed panels
/// A panel of `NR` columns of `op(B)` holds, for each unit along `k` in turn, that unit of each column. A panel of `MR`
/// rows of `op(A)` holds, for each `RUN` units along `k` in turn, these units of each row. Rows, columns and units beyond
/// the matrix are zero; the units of an operand are filled up to a whole `RUN`. The first panel begins at a multiple of
/// 64 bytes, the others follow without gaps.
pub(super) trait MicroKernel: Send + Sync + 'static {
    /// What values are packed as. `bf16` operands that meet a kernel of `f32` are widened, which is exact.
    type Packed: Element;
    /// Lanes for products that are not blocked.
    type Lanes: Vector;
    /// What a thread holds while it computes tiles.
    type Session;
    /// The instruction set that packing and storing are compiled for.
    const ISA: Isa;
    /// Whether it multiplies pairs of `bf16`, sums in [`MicroKernel::Lanes`]; products that are not blocked then do, too.
    const PAIRS: bool = false;
    /// Rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Units of a row that lie side by side in a packed panel: 1 or 16.
    const RUN: usize = 1;
    /// Units of one pass along `k`: what a block of `C` needs of both operands stays in the second-level cache.
    const PASS: usize;
    /// Units along `k` at a time. A deeper product keeps its sums beside `C` meanwhile, so that what it reads of many rows
    /// and columns fits into the caches and is packed once.
    const DEPTH: usize;
    /// Panels of `op(A)` in a block of `C`.
    const A_PANELS: usize;
    /// Panels of `op(B)` in a block of `C`.
    const B_PANELS: usize;
    /// Values in a unit.
    const UNIT: usize = size_of::<Unit>() / size_of::<Self::Packed>();

    /// To be called by a thread before it computes tiles, and kept until it has.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions.
    unsafe fn begin() -> Self::Session;

    /// `tile = Σ a·b` over some stretches, or `tile += Σ a·b` if `add`.
    ///
    /// # Safety
    /// The thread has called [`MicroKernel::begin`]. Each stretch is of whole `RUN`s; its `a` is readable for `MR` rows of
    /// `units`, its `b` for `NR·units` from a multiple of `4·NR` bytes on; `tile` holds `MR` rows of `NR` floats without
    /// gaps, begins at a multiple of 64 bytes and is nobody else's.
    unsafe fn tile(stretches: &[Stretch], tile: *mut f32, add: bool);

    /// Writes sixteen units of `lanes` lanes, the units `stride` apart: lane `i` is read from `from[i]`.
    ///
    /// # Safety
    /// The CPU has `ISA`; each pointer of `from` is readable for sixteen units and need not be aligned; `lanes` is
    /// at most sixteen; `to` is writable for the lanes of each unit.
    #[inline(always)]
    unsafe fn transpose(from: &[*const Unit; 16], to: *mut Unit, lanes: usize, stride: usize) {
        for (lane, from) in from.iter().enumerate().take(lanes) {
            for unit in 0..16 {
                // SAFETY: the caller's promise.
                unsafe { *to.add(unit * stride + lane) = from.add(unit).read_unaligned() };
            }
        }
    }

    /// Writes a unit of some lanes: the values of one row, or pairs of those of two, rounded to `bf16` if `ROUND`. Rows
    /// are as long as `to`.
    ///
    /// # Safety
    /// The CPU has `ISA`.
    #[inline(always)]
    unsafe fn unit<S: Element, const ROUND: bool>(low: &[S], high: Option<&[S]>, to: &mut [Unit]) {
        super::pack::unit::<S, Self::Packed, ROUND>(low, high, to);
    }
}
