//! Buffers that outlive a product: each thread keeps its own, grown once and used again.

use std::cell::Cell;

use crate::Element;

/// What a buffer is for; each thread keeps one of each.
#[derive(Clone, Copy)]
pub(super) enum Use {
    /// Packed panels of `op(A)`.
    PackedA,
    /// Packed panels of `op(B)`.
    PackedB,
    /// Sums of one block of `C`.
    Tiles,
    /// The thin operand of a product with few rows or columns.
    Thin,
}

/// A cache line, for its alignment.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; 64]);

thread_local! {
    static KEPT: [Cell<Vec<Line>>; 4] = const { [const { Cell::new(Vec::new()) }; 4] };
}

/// Calls `f` with this thread's buffer of `len` elements, aligned to 64 bytes, its content arbitrary.
///
/// A product inside `f` for the same use (a thread that waits may take up other work) gets a buffer of its own.
pub(super) fn with<E: Element, R>(purpose: Use, len: usize, f: impl FnOnce(&mut [E]) -> R) -> R {
    let slot = purpose as usize;
    let mut lines = KEPT.with(|kept| kept[slot].take());
    let needed = (len * size_of::<E>()).div_ceil(size_of::<Line>());
    if lines.len() < needed {
        // Nothing in it is worth copying to the larger one.
        lines = Vec::new();
        lines.resize(needed, Line([0; 64]));
    }
    // SAFETY: the lines are initialised bytes, aligned for `E`, at least `len` elements; every bit pattern of
    // an `Element` is valid; `lines` is borrowed by nothing else.
    let buffer = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<E>(), len) };
    let result = f(buffer);
    KEPT.with(|kept| kept[slot].set(lines));
    result
}
