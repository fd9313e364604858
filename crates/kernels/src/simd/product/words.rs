//! Products in vectors: every word of `a` against vectors of words of `b`.

use super::{Checked, Size};
use crate::simd::Simd;

/// The whole product.
#[inline(always)]
pub(super) fn multiply<S: Simd>(s: S, product: Checked<'_>) {
    let Checked { size: Size { rows, columns, steps }, a, b, c } = product;
    assert!(columns.is_multiple_of(S::WIDTH));
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
        // SAFETY: a checked product's factors and result reach as far as its size.
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

#[derive(Clone, Copy)]
struct Block {
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    /// Of a's rows and steps, b's steps, c's rows.
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
                1 => rows_by_vectors::<S, 1, N>(s, block),
                2 => rows_by_vectors::<S, 2, N>(s, block),
                3 => rows_by_vectors::<S, 3, N>(s, block),
                4 => rows_by_vectors::<S, 4, N>(s, block),
                5 => rows_by_vectors::<S, 5, N>(s, block),
                6 => rows_by_vectors::<S, 6, N>(s, block),
                7 => rows_by_vectors::<S, 7, 1>(s, block),
                8 => rows_by_vectors::<S, 8, 1>(s, block),
                9 => rows_by_vectors::<S, 9, 1>(s, block),
                10 => rows_by_vectors::<S, 10, 1>(s, block),
                11 => rows_by_vectors::<S, 11, 1>(s, block),
                _ => rows_by_vectors::<S, 12, 1>(s, block),
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
unsafe fn rows_by_vectors<S: Simd, const M: usize, const N: usize>(s: S, block: Block) {
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
