//! What a blocked product asks of an instruction set: the product of two packed panels.
//!
//! A kernel is a type without values; [`super::blocked`] is compiled once for each. To add an instruction set
//! is to add a file with one implementation and its line in [`super::run`].

use crate::{Element, Isa};

/// Product of a panel of `MR` rows of `op(A)` with a panel of `NR` columns of `op(B)`.
///
/// # Packed panels
/// A panel is cut along `k` into units of `K_UNIT`. Unit `u` of a panel of width `W` holds, for each lane
/// `i < W` in turn, the values `k = u·K_UNIT .. (u+1)·K_UNIT` of that row of `op(A)` or column of `op(B)`.
/// Lanes and values beyond the matrix are zero. Panels begin at a multiple of 64 bytes if `W·K_UNIT` values
/// fill whole cache lines.
pub(super) trait MicroKernel: 'static {
    /// What panels are packed as. `bf16` operands that meet a kernel of `f32` are widened, which is exact.
    type Packed: Element;
    /// The instruction set that packing and storing are compiled for.
    const ISA: Isa;
    /// Rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Values along `k` that one instruction multiplies and sums within a lane.
    const K_UNIT: usize;
    /// Depth of one pass: `NR` columns of it stay in the first-level cache. A multiple of `K_UNIT`.
    const KC: usize;
    /// Panels of `op(A)` in a block of `C`: with depth `KC` they stay in the second-level cache.
    const A_PANELS: usize;
    /// Panels of `op(B)` in a block of `C`.
    const B_PANELS: usize;

    /// `tile = a·b`, or `tile += a·b` if `add`, over a depth of `k` values, a multiple of `K_UNIT`.
    ///
    /// # Safety
    /// The CPU has `ISA`; `a` is readable for `MR·k` values, `b` for `NR·k`; `tile` holds `MR` rows of `NR`
    /// floats without gaps, begins at a multiple of 64 bytes and is nobody else's.
    unsafe fn tile(
        k: usize,
        a: *const Self::Packed,
        b: *const Self::Packed,
        tile: *mut f32,
        add: bool,
    );
}
