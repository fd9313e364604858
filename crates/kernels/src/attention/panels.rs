//! Panels: rows of q, k, v or dout as words in the order in which a product reads them.
//!
//! In: rows of width D in storage type. Out, with P values in a word (see [`Simd`]):
//! - row words \[n\]\[⌈D/P⌉\], neighbours of a row in a word: left factor of a sum over D;
//! - lane words \[⌈D/P⌉\]\[64\], the same transposed: right factor of a sum over D;
//! - step words \[⌈n/P⌉\]\[D\], neighbouring rows in a word: either factor of a sum over the rows.
//!
//! What has no row or no dimension is zero.

use super::simd::Simd;
use crate::{DType, Element};

/// Queries of a tile, side by side in the vectors.
pub(super) const LANES: usize = 64;
/// Rows of panels are padded to a multiple of this many words: the widest vector.
pub(super) const WIDEST: usize = 16;

/// Sizes of panels for heads of width D.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    /// D.
    pub values: usize,
    /// D up to a whole vector.
    pub padded: usize,
    /// Words of D values.
    pub words: usize,
    /// Words of D values up to a whole vector.
    pub padded_words: usize,
}

impl Widths {
    #[inline(always)]
    pub fn of<S: Simd>(_: S, d: usize) -> Self {
        let words = d.div_ceil(S::PAIR);
        Self {
            values: d,
            padded: d.next_multiple_of(WIDEST),
            words,
            padded_words: words.next_multiple_of(WIDEST),
        }
    }
}

/// The bits of `bf16` values.
#[inline(always)]
fn halves<E: Element>(row: &[E]) -> &[u16] {
    assert!(E::DTYPE == DType::BF16, "pairs are made of bf16");
    // SAFETY: `E` is `bf16`, which is a transparent `u16`.
    unsafe { std::slice::from_raw_parts(row.as_ptr().cast(), row.len()) }
}

#[inline(always)]
fn word(first: u16, second: u16) -> f32 {
    f32::from_bits(u32::from(first) | u32::from(second) << 16)
}

/// One row as words; the rest of `to` is zero.
#[inline(always)]
fn write_row<S: Simd, E: Element>(_: S, row: &[E], to: &mut [f32]) {
    let words = row.len().div_ceil(S::PAIR);
    let (to, rest) = to.split_at_mut(words);
    rest.fill(0.0);
    if S::PAIR == 1 {
        to.iter_mut().zip(row).for_each(|(to, x)| *to = x.to_f32());
        return;
    }
    let pairs = halves(row).chunks_exact(2);
    if let [last] = pairs.remainder() {
        to[words - 1] = word(*last, 0);
    }
    to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = word(pair[0], pair[1]));
}

/// Row words, `stride` apart.
#[inline(always)]
pub(super) fn row_words<'a, S: Simd, E: Element>(
    s: S,
    rows: impl Iterator<Item = &'a [E]>,
    to: &mut [f32],
    stride: usize,
) {
    rows.zip(to.chunks_exact_mut(stride)).for_each(|(row, to)| write_row(s, row, to));
}

/// Lane words; `rows` words of scratch: [`LANES`] · `padded_words`, as many as `to`.
#[inline(always)]
pub(super) fn lane_words<'a, S: Simd, E: Element>(
    s: S,
    rows: impl ExactSizeIterator<Item = &'a [E]>,
    widths: Widths,
    scratch: &mut [f32],
    to: &mut [f32],
) {
    let stride = widths.padded_words;
    let lanes = rows.len();
    row_words(s, rows, scratch, stride);
    scratch[lanes * stride..LANES * stride].fill(0.0);
    transpose(s, scratch, LANES, stride, to);
}

/// Step words, `padded` columns; the rows up to a whole number of `steps` are zero.
#[inline(always)]
pub(super) fn step_words<'a, S: Simd, E: Element>(
    s: S,
    mut rows: impl ExactSizeIterator<Item = &'a [E]>,
    widths: Widths,
    to: &mut [f32],
) {
    if S::PAIR == 1 {
        return row_words(s, rows, to, widths.padded);
    }
    for to in to.chunks_exact_mut(widths.padded) {
        let Some(first) = rows.next() else { break };
        let (to, rest) = to.split_at_mut(widths.values);
        rest.fill(0.0);
        let first = halves(first);
        match rows.next() {
            Some(second) => {
                let pairs = first.iter().zip(halves(second));
                to.iter_mut().zip(pairs).for_each(|(to, (a, b))| *to = word(*a, *b));
            }
            None => to.iter_mut().zip(first).for_each(|(to, a)| *to = word(*a, 0)),
        }
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
