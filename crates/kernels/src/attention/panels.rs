//! Panels: rows of q, k, v or dout as words in the order in which a product reads them.
//!
//! In: up to 64 rows of width D in storage type. Out, with P values in a word (see [`Simd`]):
//! - row words \[64\]\[D/P\], neighbours of a row in a word: left factor of a sum over D;
//! - lane words \[D/P\]\[64\], the same transposed: right factor of a sum over D;
//! - step words \[64/P\]\[D\], neighbouring rows in a word: right factor of a sum over the rows;
//! - dimension words \[D\]\[64/P\], the same transposed: left factor of a sum over the rows.
//!
//! D is padded (see [`padded`]). What has no row or no dimension is zero.

use crate::simd::Simd;
use crate::{DType, Element};

/// Queries of a tile, side by side in the vectors.
pub(super) const LANES: usize = 64;
/// Rows of a panel: of a tile of queries or a block of keys.
pub(super) const ROWS: usize = 64;
/// Words of the widest vector.
pub(super) const WIDEST: usize = 16;

/// D up to whole vectors of words of two values.
pub(super) const fn padded(width: usize) -> usize {
    width.next_multiple_of(2 * WIDEST)
}

/// Sizes of panels for heads of width D.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    /// D.
    pub values: usize,
    /// D, padded.
    pub padded: usize,
    /// Words of D values.
    pub words: usize,
    /// Words of D values, padded.
    pub padded_words: usize,
}

impl Widths {
    #[inline(always)]
    pub fn of<S: Simd>(_: S, d: usize) -> Self {
        let padded = padded(d);
        Self { values: d, padded, words: d.div_ceil(S::PAIR), padded_words: padded / S::PAIR }
    }
}

/// The bits of `bf16` values.
#[inline(always)]
fn halves<E: Element>(row: &[E]) -> &[u16] {
    assert!(E::DTYPE == DType::BF16, "pairs are made of bf16");
    // SAFETY: `E` is `bf16`, which is a transparent `u16`.
    unsafe { std::slice::from_raw_parts(row.as_ptr().cast(), row.len()) }
}

/// The halves of words, which hold any bits.
#[inline(always)]
fn halves_of_words(words: &[f32]) -> &[u16] {
    // SAFETY: an `f32` is two `u16`, and has no weaker alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 2 * words.len()) }
}

#[inline(always)]
fn word(first: u16, second: u16) -> f32 {
    f32::from_bits(u32::from(first) | u32::from(second) << 16)
}

/// One row as words; the rest of `to` is zero.
#[inline(always)]
fn write_row<S: Simd, E: Element>(s: S, row: &[E], to: &mut [f32]) {
    if S::PAIR == 1 {
        let (to, rest) = to.split_at_mut(row.len());
        rest.fill(0.0);
        for (to, x) in to.iter_mut().zip(row) {
            *to = x.to_f32();
        }
        return;
    }
    let mut vectors = halves(row).chunks_exact(2 * S::WIDTH);
    let mut to = to.chunks_exact_mut(S::WIDTH);
    for (from, to) in (&mut vectors).zip(&mut to) {
        // SAFETY: a vector of words is as many bytes.
        s.store(unsafe { s.load_from(from.as_ptr().cast()) }, to);
    }
    let left = vectors.remainder();
    for (i, to) in to.flatten().enumerate() {
        let half = |i: usize| left.get(i).copied().unwrap_or(0);
        *to = word(half(2 * i), half(2 * i + 1));
    }
}

/// Row words.
#[inline(always)]
pub(super) fn row_words<'a, S: Simd, E: Element>(
    s: S,
    rows: impl ExactSizeIterator<Item = &'a [E]>,
    widths: Widths,
    to: &mut [f32],
) {
    let stride = widths.padded_words;
    let (to, rest) = to[..ROWS * stride].split_at_mut(rows.len() * stride);
    rest.fill(0.0);
    // A loop and no closure, which would be compiled for other instructions where it is not inlined.
    for (row, to) in rows.zip(to.chunks_exact_mut(stride)) {
        write_row(s, row, to);
    }
}

/// Lane words from row words.
#[inline(always)]
pub(super) fn lane_words<S: Simd>(s: S, rows: &[f32], widths: Widths, to: &mut [f32]) {
    transpose(s, rows, ROWS, widths.padded_words, to);
}

/// Step words from row words.
#[inline(always)]
pub(super) fn step_words<S: Simd>(_: S, rows: &[f32], widths: Widths, to: &mut [f32]) {
    let len = ROWS * widths.padded_words;
    if S::PAIR == 1 {
        return to[..len].copy_from_slice(&rows[..len]);
    }
    let rows = halves_of_words(&rows[..len]).chunks_exact(2 * widths.padded);
    for (rows, to) in rows.zip(to.chunks_exact_mut(widths.padded)) {
        let (first, second) = rows.split_at(widths.padded);
        for (to, (a, b)) in to.iter_mut().zip(first.iter().zip(second)) {
            *to = word(*a, *b);
        }
    }
}

/// Dimension words from row words; as many words of scratch.
#[inline(always)]
pub(super) fn dimension_words<S: Simd>(
    s: S,
    rows: &[f32],
    widths: Widths,
    scratch: &mut [f32],
    to: &mut [f32],
) {
    step_words(s, rows, widths, scratch);
    transpose(s, scratch, ROWS / S::PAIR, widths.padded, to);
}

/// Rounds values to storage.
#[inline(always)]
pub(super) fn write_values<S: Simd, E: Element>(s: S, from: &[f32], to: &mut [E]) {
    let mut done = 0;
    if S::PAIR == 2 {
        assert!(E::DTYPE == DType::BF16, "pairs are made of bf16");
        for to in to.chunks_exact_mut(2 * S::WIDTH) {
            let words = s.narrow(s.load(&from[done..]), s.load(&from[done + S::WIDTH..]));
            // SAFETY: a vector of words is as many bytes.
            unsafe { s.store_to(words, to.as_mut_ptr().cast()) }
            done += to.len();
        }
    }
    for (to, x) in to[done..].iter_mut().zip(&from[done..]) {
        *to = E::from_f32(*x);
    }
}

/// `from` [rows, columns] as `to` [columns, rows], both multiples of [`WIDEST`].
#[inline(always)]
pub(super) fn transpose<S: Simd>(s: S, from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
    assert!(rows.is_multiple_of(S::WIDTH) && columns.is_multiple_of(S::WIDTH));
    assert!(from.len() >= rows * columns && to.len() >= rows * columns);
    for i in (0..rows).step_by(S::WIDTH) {
        for j in (0..columns).step_by(S::WIDTH) {
            // SAFETY: a block of whole vectors inside both.
            unsafe {
                let from = from.as_ptr().add(i * columns + j);
                s.transpose(from, columns, to.as_mut_ptr().add(j * rows + i), rows);
            }
        }
    }
}
