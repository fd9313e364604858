//! Small products of panels that sit in cache: the inner loops of attention, with softmax and without.
//!
//! In: `a` and `b` in words (see [`Simd`]), `c` in `f32`. Out: `c` or `c` plus the product. An element of `c`
//! sums over the steps in their order, whatever block it falls into.
//!
//! Where there are AMX registers, `tiles` computes it, and elsewhere `words`.

#[cfg(target_arch = "x86_64")]
mod tiles;
mod words;

#[cfg(target_arch = "x86_64")]
pub(super) use self::tiles::BLOCK as TILES;
use super::{Job, Simd};

/// Words of the left factor: word of row i and step p at `i · row + p · step`. In AMX registers the step is 1.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub words: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// Words of the right factor: word of step p and column j at `p · step + j`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub words: &'a [f32],
    pub step: usize,
}

/// The result: row i and column j at `i · row + j`.
pub(crate) struct Sum<'a> {
    pub values: &'a mut [f32],
    pub row: usize,
    /// Add to what is there.
    pub accumulate: bool,
}

/// Rows and columns of the result, and words that are multiplied for each of its elements.
///
/// Each may be taken up to a multiple of [`Simd::BLOCK`]: there the result holds anything, and of steps one factor
/// holds zeros and the other one finite values.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub rows: usize,
    pub columns: usize,
    pub steps: usize,
}

/// `c[i, j] (+)= Σ_p a[i, p] · b[p, j]`.
///
/// # Panics
/// If a factor or the result is too short.
// Apart from its callers: it is large, and its work pays for a call.
#[inline(never)]
pub(crate) fn product<S: Simd>(s: S, size: Size, a: Left<'_>, b: Right<'_>, c: Sum<'_>) {
    let [rows, columns, steps] = S::BLOCK;
    let size = Size {
        rows: size.rows.next_multiple_of(rows),
        columns: size.columns.next_multiple_of(columns),
        steps: size.steps.next_multiple_of(steps),
    };
    if size.rows == 0 || size.columns == 0 {
        return;
    }
    assert!((size.rows - 1) * c.row + size.columns <= c.values.len());
    if size.steps > 0 {
        assert!((size.rows - 1) * a.row + (size.steps - 1) * a.step < a.words.len());
        assert!((size.steps - 1) * b.step + size.columns <= b.words.len());
    }
    let checked = Checked { size, a, b, c };
    #[cfg(target_arch = "x86_64")]
    if let Some(registers) = s.tiles() {
        return tiles::multiply(registers, checked);
    }
    s.enter(checked);
}

/// A product whose factors and result are long enough for its size, a multiple of [`Simd::BLOCK`] that is not empty.
struct Checked<'a> {
    size: Size,
    a: Left<'a>,
    b: Right<'a>,
    c: Sum<'a>,
}

impl Job for Checked<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        words::multiply(s, self);
    }
}
