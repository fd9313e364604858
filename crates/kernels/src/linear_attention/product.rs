//! Products of matrices as small as a chunk, and the triangular systems of the delta rule: f32, in one thread.

use std::ops::Range;

use crate::isa::per_isa;

/// Rows and columns of a block of the result that stays in registers.
const ROWS: usize = 4;
const COLUMNS: usize = 32;

/// A left factor: element (i, k) lies at i·`row` + k·`column`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub column: usize,
    pub shape: Shape,
}

/// Where a square left factor is not zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Full,
    /// On the diagonal and below.
    Lower,
    /// On the diagonal and above.
    Upper,
}

impl<'a> Left<'a> {
    /// Rows of so many values.
    pub fn straight(values: &'a [f32], columns: usize) -> Self {
        Self { values, row: columns, column: 1, shape: Shape::Full }
    }

    /// The transpose of rows of so many values.
    pub fn transposed(values: &'a [f32], rows: usize) -> Self {
        Self { values, row: 1, column: rows, shape: Shape::Full }
    }

    pub fn lower(self) -> Self {
        Self { shape: Shape::Lower, ..self }
    }

    pub fn upper(self) -> Self {
        Self { shape: Shape::Upper, ..self }
    }
}

/// A block of rows from `row` on and columns from `column` on, of a result with `width` columns.
struct Place {
    row: usize,
    column: usize,
    width: usize,
    depth: Range<usize>,
    add: bool,
}

impl Place {
    /// A whole block.
    #[inline(always)]
    fn block(&self, c: &mut [f32], a: Left<'_>, b: &[f32]) {
        let mut sums = [[0.0f32; COLUMNS]; ROWS];
        for k in self.depth.clone() {
            let b: &[f32; COLUMNS] = b[k * self.width + self.column..].first_chunk().expect("a whole block");
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = a.values[(self.row + r) * a.row + k * a.column];
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let c = &mut c[(self.row + r) * self.width + self.column..][..COLUMNS];
            for (c, sum) in c.iter_mut().zip(sums) {
                *c = if self.add { *c + sum } else { *sum };
            }
        }
    }

    /// One row of a block, or of a part of it at the result's edge.
    #[inline(always)]
    fn row(&self, c: &mut [f32], a: Left<'_>, b: &[f32], row: usize) {
        let columns = self.column..self.width.min(self.column + COLUMNS);
        let mut sums = [0.0f32; COLUMNS];
        for k in self.depth.clone() {
            let a = a.values[row * a.row + k * a.column];
            for (sum, b) in sums.iter_mut().zip(&b[k * self.width..][columns.clone()]) {
                *sum += a * b;
            }
        }
        for (c, sum) in c[row * self.width..][columns].iter_mut().zip(&sums) {
            *c = if self.add { *c + sum } else { *sum };
        }
    }
}

per_isa! {
    /// c [m, n] = a [m, k] · b [k, n], added to c if `add`; sizes are m, n, k.
    pub fn product(c: &mut [f32], a: Left<'_>, b: &[f32], sizes: [usize; 3], add: bool) {
        let [m, n, k] = sizes;
        for j in (0..n).step_by(COLUMNS) {
            for i in (0..m).step_by(ROWS) {
                let depth = match a.shape {
                    Shape::Full => 0..k,
                    Shape::Lower => 0..k.min(i + ROWS),
                    Shape::Upper => i..k,
                };
                let place = Place { row: i, column: j, width: n, depth, add };
                if j + COLUMNS <= n && i + ROWS <= m {
                    place.block(c, a, b);
                } else {
                    (i..m.min(i + ROWS)).for_each(|row| place.row(c, a, b, row));
                }
            }
        }
    }

    /// Replaces r [n, e] by the solution x of (1 + A)·x = r, A [n, n] being strictly lower.
    pub fn solve_lower(a: &[f32], n: usize, r: &mut [f32], e: usize) {
        for first in (0..e).step_by(COLUMNS) {
            let columns = first..e.min(first + COLUMNS);
            for i in 0..n {
                let (done, rest) = r.split_at_mut(i * e);
                let mut sums = [0.0f32; COLUMNS];
                for (a, done) in a[i * n..i * n + i].iter().zip(done.chunks_exact(e)) {
                    sums.iter_mut().zip(&done[columns.clone()]).for_each(|(sum, x)| *sum += a * x);
                }
                rest[columns.clone()].iter_mut().zip(&sums).for_each(|(r, sum)| *r -= sum);
            }
        }
    }

    /// Replaces r [n, e] by the solution x of (1 + Aᵀ)·x = r.
    pub fn solve_lower_transposed(a: &[f32], n: usize, r: &mut [f32], e: usize) {
        for first in (0..e).step_by(COLUMNS) {
            let columns = first..e.min(first + COLUMNS);
            for i in (0..n).rev() {
                let (rest, done) = r.split_at_mut((i + 1) * e);
                let mut sums = [0.0f32; COLUMNS];
                for (j, done) in (i + 1..n).zip(done.chunks_exact(e)) {
                    let a = a[j * n + i];
                    sums.iter_mut().zip(&done[columns.clone()]).for_each(|(sum, x)| *sum += a * x);
                }
                let row = &mut rest[i * e..];
                row[columns.clone()].iter_mut().zip(&sums).for_each(|(r, sum)| *r -= sum);
            }
        }
    }

    /// to [columns, rows] = from [rows, columns]ᵀ.
    pub fn transpose(from: &[f32], columns: usize, to: &mut [f32]) {
        let rows = from.len() / columns.max(1);
        for (i, from) in from.chunks_exact(columns).enumerate() {
            from.iter().enumerate().for_each(|(j, x)| to[j * rows + i] = *x);
        }
    }
}
