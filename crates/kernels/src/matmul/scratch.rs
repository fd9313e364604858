//! Buffers that outlive a product: each thread keeps its own, grown once and used again.

use std::cell::Cell;
use std::ops::Range;

use memmap2::MmapMut;

use crate::{Element, pages};

/// What a buffer may hold.
///
/// # Safety
/// Every bit pattern is a value, and the alignment is at most a page.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an `Element` is plain old data of which every bit pattern is a value.
unsafe impl<E: Element> Plain for E {}

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
    /// Decoded lanes of a quantised weight.
    Decoded,
    /// Sums of all of `C`, while a product goes through its depth in pieces.
    Partial,
}

/// Pages, and the range of them that is used.
type Pages = (MmapMut, Range<usize>);

thread_local! {
    static KEPT: [Cell<Option<Pages>>; 6] = const { [const { Cell::new(None) }; 6] };
}

/// Calls `f` with this thread's buffer of `len` elements, aligned to 64 bytes, its content arbitrary.
///
/// A product inside `f` for the same use (a thread that waits may take up other work) gets a buffer of its own.
pub(super) fn with<T: Plain, R>(purpose: Use, len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let slot = purpose as usize;
    let needed = (len * size_of::<T>()).max(1);
    let kept = KEPT.with(|kept| kept[slot].take());
    let kept = kept.filter(|(_, range)| range.len() >= needed);
    let (mut pages, range) = kept.unwrap_or_else(|| pages::zeroed(needed));
    let bytes = &mut pages[range.clone()];
    // SAFETY: the range begins at a page and has at least `len` elements of initialised bytes; `T` is plain; and
    // `pages` is borrowed by nothing else.
    let buffer = unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast::<T>(), len) };
    let result = f(buffer);
    KEPT.with(|kept| kept[slot].set(Some((pages, range))));
    result
}
