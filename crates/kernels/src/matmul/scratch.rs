//! Buffers that outlive a product: each thread keeps its own, grown once and used again.

use std::cell::Cell;

use memmap2::MmapMut;

/// What a buffer may hold.
///
/// # Safety
/// Every bit pattern is a value, and the alignment is at most a page.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: a float.
unsafe impl Plain for f32 {}

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
    /// Sums of all of `C`, while a product goes through its depth in pieces.
    Partial,
}

thread_local! {
    static KEPT: [Cell<Option<MmapMut>>; 5] = const { [const { Cell::new(None) }; 5] };
}

/// Calls `f` with this thread's buffer of `len` elements, aligned to 64 bytes, its content arbitrary.
///
/// A product inside `f` for the same use (a thread that waits may take up other work) gets a buffer of its own.
pub(super) fn with<T: Plain, R>(purpose: Use, len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let slot = purpose as usize;
    let needed = (len * size_of::<T>()).max(1);
    let kept = KEPT.with(|kept| kept[slot].take());
    let mut pages = kept.filter(|pages| pages.len() >= needed).unwrap_or_else(|| fresh(needed));
    // SAFETY: a mapping begins at a page and has at least `len` elements of initialised bytes; `T` is plain; and
    // `pages` is borrowed by nothing else.
    let buffer = unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast::<T>(), len) };
    let result = f(buffer);
    KEPT.with(|kept| kept[slot].set(Some(pages)));
    result
}

/// Zeroed pages straight from the system, huge ones where it grants them: panels are walked in strides that
/// would miss the translation cache otherwise.
fn fresh(bytes: usize) -> MmapMut {
    const HUGE_PAGE: usize = 2 << 20;
    let rounded = if bytes < HUGE_PAGE / 4 { bytes } else { bytes.next_multiple_of(HUGE_PAGE) };
    let pages = MmapMut::map_anon(rounded).unwrap_or_else(|error| {
        panic!("no memory for {rounded} bytes of packed matrices: {error}");
    });
    #[cfg(target_os = "linux")]
    if rounded >= HUGE_PAGE {
        // A refusal costs speed alone.
        let _ = pages.advise(memmap2::Advice::HugePage);
    }
    pages
}
