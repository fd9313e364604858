//! Where sums end: scaled, added to what is in `C` and to the bias, rounded once.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::pack::LINE;
use super::vector::prefetch;
use crate::{DType, Element, View, ViewMut};

/// `C` as several threads write it, each its own elements.
pub(super) struct Output<'a, E> {
    start: *mut E,
    rows: usize,
    cols: usize,
    finish: Finish<'a>,
    borrow: PhantomData<&'a mut [E]>,
}

// SAFETY: it is a mutable borrow of `C`; the methods that write need callers to keep to elements of their own.
unsafe impl<E: Send> Send for Output<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for Output<'_, E> {}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// Factor of the sum.
    pub alpha: f32,
    /// Add what is in `C`.
    pub accumulate: bool,
    /// Added by column.
    pub bias: Option<Bias<'a>>,
}

/// One value for each column.
#[derive(Clone, Copy)]
pub(super) enum Bias<'a> {
    /// In `f32`.
    F32(&'a [f32]),
    /// In `bf16`.
    Bf16(&'a [bf16]),
}

impl<'a> Bias<'a> {
    /// The values of a view.
    pub fn new(view: View<'a>) -> Self {
        match view.dtype() {
            DType::F32 => Bias::F32(view.as_slice()),
            DType::BF16 => Bias::Bf16(view.as_slice()),
            DType::F16 => unreachable!("float16 is converted when a file is read"),
        }
    }

    #[inline(always)]
    fn at(self, col: usize) -> f32 {
        match self {
            Bias::F32(values) => values[col],
            Bias::Bf16(values) => Element::to_f32(values[col]),
        }
    }
}

impl<'a, E: Element> Output<'a, E> {
    /// Takes `C`, a matrix of `E`.
    pub fn new(c: ViewMut<'a>, finish: Finish<'a>) -> Self {
        let (rows, cols) = (c.dim(0), c.dim(1));
        Self { start: c.as_mut_slice::<E>().as_mut_ptr(), rows, cols, finish, borrow: PhantomData }
    }

    /// Rows of `C`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of `C`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Asks for what storing these rows and columns will read of `C`.
    #[inline(always)]
    pub fn prefetch(&self, rows: Range<usize>, cols: Range<usize>) {
        if !self.finish.accumulate {
            return;
        }
        for row in rows.start..rows.end.min(self.rows) {
            let at = |col: usize| self.start.wrapping_add(row * self.cols + col);
            for col in (cols.start..cols.end.min(self.cols)).step_by(LINE / size_of::<E>()) {
                prefetch(at(col));
            }
        }
    }

    /// Stores sums of a row from column `col` on.
    ///
    /// # Safety
    /// No other thread touches these elements meanwhile.
    #[inline(always)]
    pub unsafe fn store_row(&self, row: usize, col: usize, sums: &[f32]) {
        assert!(row < self.rows && col + sums.len() <= self.cols);
        // SAFETY: inside `C`, by the assertion; nobody else's, by the caller's promise.
        let out =
            unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.cols + col), sums.len()) };
        let Finish { alpha, accumulate, .. } = self.finish;
        match (self.finish.bias, accumulate) {
            (None, false) => {
                for (c, sum) in out.iter_mut().zip(sums) {
                    *c = E::from_f32(alpha * sum);
                }
            }
            (None, true) => {
                for (c, sum) in out.iter_mut().zip(sums) {
                    *c = E::from_f32(alpha * sum + c.to_f32());
                }
            }
            (Some(Bias::F32(bias)), false) => {
                for ((c, sum), b) in out.iter_mut().zip(sums).zip(&bias[col..]) {
                    *c = E::from_f32(alpha * sum + b);
                }
            }
            (Some(Bias::Bf16(bias)), false) => {
                for ((c, sum), b) in out.iter_mut().zip(sums).zip(&bias[col..]) {
                    *c = E::from_f32(alpha * sum + b.to_f32());
                }
            }
            (Some(bias), true) => {
                for (i, (c, sum)) in out.iter_mut().zip(sums).enumerate() {
                    *c = E::from_f32(alpha * sum + bias.at(col + i) + c.to_f32());
                }
            }
        }
    }
}
