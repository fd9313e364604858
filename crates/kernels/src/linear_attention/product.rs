//! Products of matrices as small as a chunk, and the triangular systems of the delta rule: f32, in one thread.
//!
//! Rows of a matrix lie [`padded`] apart, so that vectors are whole; what is between two rows is zero. Of a triangle the
//! blocks on the other side of the diagonal hold anything: nothing reads them.

use crate::Isa;
use crate::simd::product::{self, Right, Size, Sum};
use crate::simd::{Job, Simd, run};

/// Rows that triangles are cut into.
const BAND: usize = 16;

/// Values from a row to the next one.
pub const fn padded(width: usize) -> usize {
    width.next_multiple_of(16)
}

/// A left factor: element (i, k) lies at i·`row` + k·`step`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    values: &'a [f32],
    row: usize,
    step: usize,
    shape: Shape,
}

/// Where a square left factor is not zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Full,
    /// On the diagonal and below.
    Lower,
    /// On the diagonal and above.
    Upper,
}

impl<'a> Left<'a> {
    /// Rows of so many values.
    pub fn straight(values: &'a [f32], columns: usize) -> Self {
        Self { values, row: padded(columns), step: 1, shape: Shape::Full }
    }

    /// The transpose of rows of so many values.
    pub fn transposed(values: &'a [f32], rows: usize) -> Self {
        Self { values, row: 1, step: padded(rows), shape: Shape::Full }
    }

    pub fn lower(self) -> Self {
        Self { shape: Shape::Lower, ..self }
    }

    pub fn upper(self) -> Self {
        Self { shape: Shape::Upper, ..self }
    }
}

/// c [m, n] = a [m, k] · b [k, n], added to c if `add`; sizes are m, n, k.
pub fn product(isa: Isa, c: &mut [f32], a: Left<'_>, b: &[f32], sizes: [usize; 3], add: bool) {
    run::<f32, _>(isa, Product { c, a, b, sizes, add, is_lower: false });
}

/// The same for the lower triangle of a square result, diagonal included.
pub fn lower_product(isa: Isa, c: &mut [f32], a: Left<'_>, b: &[f32], [n, k]: [usize; 2]) {
    run::<f32, _>(isa, Product { c, a, b, sizes: [n, n, k], add: false, is_lower: true });
}

/// Replaces r [n, e] by the solution x of x = r + system·x, system [n, n] being strictly lower.
pub fn solve_lower(isa: Isa, system: &[f32], n: usize, r: &mut [f32], e: usize) {
    run::<f32, _>(isa, System { system, n, r, e, is_transposed: false });
}

/// Replaces r [n, e] by the solution x of x = r + systemᵀ·x.
pub fn solve_lower_transposed(isa: Isa, system: &[f32], n: usize, r: &mut [f32], e: usize) {
    run::<f32, _>(isa, System { system, n, r, e, is_transposed: true });
}

/// to [columns, rows] = from [rows, columns]ᵀ.
pub fn transpose(isa: Isa, from: &[f32], [rows, columns]: [usize; 2], to: &mut [f32]) {
    run::<f32, _>(isa, Transpose { from, rows, columns, to });
}

struct Product<'a> {
    c: &'a mut [f32],
    a: Left<'a>,
    b: &'a [f32],
    sizes: [usize; 3],
    add: bool,
    is_lower: bool,
}

impl Job for Product<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ([m, n, k], a) = (self.sizes, self.a);
        let band = if self.is_lower || a.shape != Shape::Full { BAND } else { m.max(1) };
        for first in (0..m).step_by(band) {
            let end = m.min(first + band);
            let steps = match a.shape {
                Shape::Full => 0..k,
                Shape::Lower => 0..k.min(end),
                Shape::Upper => first..k,
            };
            let columns = if self.is_lower { n.min(end) } else { n };
            let size = Size { rows: end - first, columns, steps: steps.len() };
            let words = &a.values[first * a.row + steps.start * a.step..];
            let b = &self.b[steps.start * padded(n)..];
            let c = &mut self.c[first * padded(n)..];
            multiply(s, size, product::Left { words, row: a.row, step: a.step }, b, (c, padded(n)), self.add);
        }
    }
}

/// c = or += a·b, whose rows are as far apart.
#[inline(always)]
fn multiply<S: Simd>(
    s: S,
    size: Size,
    a: product::Left<'_>,
    b: &[f32],
    (c, row): (&mut [f32], usize),
    add: bool,
) {
    product::product(s, size, a, Right { words: b, step: row }, Sum { values: c, row, accumulate: add });
}

struct System<'a> {
    system: &'a [f32],
    n: usize,
    r: &'a mut [f32],
    e: usize,
    is_transposed: bool,
}

impl Job for System<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // What is solved is added to the rows of a band at once, and inside a band to a row at a time.
        let bands = (0..self.n).step_by(BAND).map(|first| first..self.n.min(first + BAND));
        let (row, width, columns) = (padded(self.n), padded(self.e), self.e);
        if self.is_transposed {
            let mut add_later = |rows: std::ops::Range<usize>, later: std::ops::Range<usize>| {
                let (r, done) = self.r.split_at_mut(later.start * width);
                let size = Size { rows: rows.len(), columns, steps: later.len() };
                let words = self.system.get(later.start * row + rows.start..).unwrap_or_default();
                let left = product::Left { words, row: 1, step: row };
                multiply(s, size, left, done, (&mut r[rows.start * width..], width), true);
            };
            for band in bands.rev() {
                add_later(band.clone(), band.end..self.n);
                (band.start..band.end - 1).rev().for_each(|i| add_later(i..i + 1, i + 1..band.end));
            }
        } else {
            let mut add_earlier = |rows: std::ops::Range<usize>, earlier: std::ops::Range<usize>| {
                let (done, r) = self.r.split_at_mut(rows.start * width);
                let size = Size { rows: rows.len(), columns, steps: earlier.len() };
                let words = &self.system[rows.start * row + earlier.start..];
                let left = product::Left { words, row, step: 1 };
                multiply(s, size, left, &done[earlier.start * width..], (r, width), true);
            };
            for band in bands {
                add_earlier(band.clone(), 0..band.start);
                (band.start + 1..band.end).for_each(|i| add_earlier(i..i + 1, band.start..i));
            }
        }
    }
}

struct Transpose<'a> {
    from: &'a [f32],
    rows: usize,
    columns: usize,
    to: &'a mut [f32],
}

impl Job for Transpose<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from, rows, columns, to } = self;
        let (from_row, to_row) = (padded(columns), padded(rows));
        assert!(rows * from_row <= from.len() && columns * to_row <= to.len());
        for i in (0..rows).step_by(S::WIDTH) {
            for j in (0..columns).step_by(S::WIDTH) {
                if i + S::WIDTH <= rows && j + S::WIDTH <= columns {
                    let (from, to) = (&from[i * from_row + j..], &mut to[j * to_row + i..]);
                    // SAFETY: `WIDTH` rows and columns are left of both, which are as long as was checked above.
                    unsafe { s.transpose(from.as_ptr(), from_row, to.as_mut_ptr(), to_row) };
                } else {
                    for i in i..rows.min(i + S::WIDTH) {
                        (j..columns.min(j + S::WIDTH))
                            .for_each(|j| to[j * to_row + i] = from[i * from_row + j]);
                    }
                }
            }
        }
        to[..columns * to_row].chunks_exact_mut(to_row).for_each(|to| to[rows..].fill(0.0));
    }
}
