//! Small products of panels that sit in cache: the inner loops of attention.
//!
//! In: `a` and `b` in words (see [`Simd`]), `c` in `f32`. Out: `c` or `c` plus the product. An element of `c`
//! sums over the steps in their order, whatever block it falls into.

use super::simd::{Job, Simd};

/// Words of the left factor: word of row i and step p at `i · row + p · step`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub words: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// Words of the right factor: word of step p and column j at `p · step + j`.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub words: &'a [f32],
    pub step: usize,
}

/// The result: row i and column j at `i · row + j`.
pub(super) struct Sum<'a> {
    pub values: &'a mut [f32],
    pub row: usize,
    /// Add to what is there.
    pub accumulate: bool,
}

/// Rows and columns of the result, and words that are multiplied for each of its elements.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub rows: usize,
    /// A multiple of [`Simd::WIDTH`].
    pub columns: usize,
    pub steps: usize,
}

/// `c[i, j] (+)= Σ_p a[i, p] · b[p, j]`.
///
/// # Panics
/// If a factor or the result is too short.
// Apart from its callers: it is large, and its work pays for a call.
#[inline(never)]
pub(super) fn product<S: Simd>(s: S, size: Size, a: Left<'_>, b: Right<'_>, c: Sum<'_>) {
    s.enter(Product { size, a, b, c });
}

struct Product<'a> {
    size: Size,
    a: Left<'a>,
    b: Right<'a>,
    c: Sum<'a>,
}

impl Job for Product<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { size: Size { rows, columns, steps }, a, b, c } = self;
        if rows == 0 || columns == 0 {
            return;
        }
        assert!(columns.is_multiple_of(S::WIDTH));
        assert!((rows - 1) * c.row + columns <= c.values.len());
        if steps > 0 {
            assert!((rows - 1) * a.row + (steps - 1) * a.step < a.words.len());
            assert!((steps - 1) * b.step + columns <= b.words.len());
        }
        let mut block = Block {
            a: a.words.as_ptr(),
            b: b.words.as_ptr(),
            c: c.values.as_mut_ptr(),
            strides: [a.row, a.step, b.step, c.row],
            steps,
            accumulate: c.accumulate,
        };
        let mut left = columns / S::WIDTH;
        while left > 0 {
            let width = if S::COLUMNS == 4 && left >= 4 { 4 } else { left.min(2) };
            // SAFETY: the assertions above cover all rows and columns.
            unsafe {
                match width {
                    4 => column_of_blocks::<S, 4>(s, block, rows),
                    2 => column_of_blocks::<S, 2>(s, block, rows),
                    _ => column_of_blocks::<S, 1>(s, block, rows),
                }
                block.b = block.b.add(width * S::WIDTH);
                block.c = block.c.add(width * S::WIDTH);
            }
            left -= width;
        }
    }
}

#[derive(Clone, Copy)]
struct Block {
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    /// Of a's rows, a's steps, b's steps, c's rows.
    strides: [usize; 4],
    steps: usize,
    accumulate: bool,
}

/// All rows of `N` vectors of columns.
///
/// # Safety
/// The rows, columns and steps can be read and written.
#[inline(always)]
unsafe fn column_of_blocks<S: Simd, const N: usize>(s: S, mut block: Block, rows: usize) {
    // As many sums as registers hold, or, for a single vector, as many as hide the latency.
    let most = if N == 1 { 12 } else { 6 };
    let mut left = rows;
    while left > 0 {
        let taken = left.min(most);
        // SAFETY: `taken` rows are left.
        unsafe {
            match taken {
                1 => multiply::<S, 1, N>(s, block),
                2 => multiply::<S, 2, N>(s, block),
                3 => multiply::<S, 3, N>(s, block),
                4 => multiply::<S, 4, N>(s, block),
                5 => multiply::<S, 5, N>(s, block),
                6 => multiply::<S, 6, N>(s, block),
                7 => multiply::<S, 7, 1>(s, block),
                8 => multiply::<S, 8, 1>(s, block),
                9 => multiply::<S, 9, 1>(s, block),
                10 => multiply::<S, 10, 1>(s, block),
                11 => multiply::<S, 11, 1>(s, block),
                _ => multiply::<S, 12, 1>(s, block),
            }
            block.a = block.a.add(taken * block.strides[0]);
            block.c = block.c.add(taken * block.strides[3]);
        }
        left -= taken;
    }
}

/// `M` rows by `N` vectors, in registers over all steps.
///
/// # Safety
/// They can be read and written.
#[inline(always)]
unsafe fn multiply<S: Simd, const M: usize, const N: usize>(s: S, block: Block) {
    let [a_row, a_step, b_step, c_row] = block.strides;
    // SAFETY: the caller promises `M` rows, `N` vectors and `steps` steps.
    unsafe {
        let mut sums = [[s.splat(0.0); N]; M];
        if block.accumulate {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load_from(block.c.add(i * c_row + j * S::WIDTH));
                }
            }
        }
        for p in 0..block.steps {
            let b = block.b.add(p * b_step);
            let b: [S::V; N] = std::array::from_fn(|j| s.load_from(b.add(j * S::WIDTH)));
            let a = block.a.add(p * a_step);
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = s.splat(*a.add(i * a_row));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = s.dot(a, b, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                s.store_to(*sum, block.c.add(i * c_row + j * S::WIDTH));
            }
        }
    }
}
