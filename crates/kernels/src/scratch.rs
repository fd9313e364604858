//! Memory that an op uses inside a call: kept from call to call, so that a steady step allocates nothing.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// A cache line of `f32`.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Line {
    _values: [f32; Line::LEN],
}

impl Line {
    const LEN: usize = 16;
    const ZERO: Line = Line { _values: [0.0; Line::LEN] };
}

/// As values, aligned to a cache line.
fn values(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a `Line` is sixteen `f32` and nothing else.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * Line::LEN) }
}

thread_local! {
    static TILE: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Makes room for as many lines, whatever was in them: no more than that, and never beside the old ones.
fn grow(lines: &mut Vec<Line>, needed: usize) {
    if lines.len() < needed {
        *lines = Vec::new();
        lines.reserve_exact(needed);
        lines.resize(needed, Line::ZERO);
    }
}

/// Calls `f` with `len` values of this thread, of any content.
///
/// # Panics
/// If `f` calls it again.
pub(crate) fn with_tile<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    TILE.with_borrow_mut(|lines| {
        grow(lines, len.div_ceil(Line::LEN));
        f(&mut values(lines)[..len])
    })
}

/// Splits off the first `len` values, aligned to a cache line if `rest` is.
#[inline(always)]
pub(crate) fn take<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (taken, left) = std::mem::take(rest).split_at_mut(len.next_multiple_of(Line::LEN));
    *rest = left;
    &mut taken[..len]
}

/// Vectors that calls borrow and give back.
pub(crate) struct Pool<T>(Mutex<Vec<Vec<T>>>);

impl<T> Pool<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// A vector, with what is left in it from the last use.
    pub fn borrow(&self) -> Borrowed<'_, T> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Borrowed { pool: self, vec: free.pop().unwrap_or_default() }
    }
}

impl Pool<Line> {
    /// `len` values of any content.
    pub fn values(&self, len: usize) -> Values<'_> {
        let mut lines = self.borrow();
        grow(&mut lines, len.div_ceil(Line::LEN));
        Values { lines, len }
    }
}

/// A vector on loan.
pub(crate) struct Borrowed<'a, T> {
    pool: &'a Pool<T>,
    vec: Vec<T>,
}

impl<T> Deref for Borrowed<'_, T> {
    type Target = Vec<T>;
    fn deref(&self) -> &Vec<T> {
        &self.vec
    }
}

impl<T> DerefMut for Borrowed<'_, T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.vec
    }
}

impl<T> Drop for Borrowed<'_, T> {
    fn drop(&mut self) {
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(std::mem::take(&mut self.vec));
    }
}

/// Values on loan, aligned to a cache line.
pub(crate) struct Values<'a> {
    lines: Borrowed<'a, Line>,
    len: usize,
}

impl Values<'_> {
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut values(&mut self.lines)[..self.len]
    }
}

/// A slice of which tasks on several threads write disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the parts are disjoint by the contract of `part`.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub fn of(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// While this part lives, no other part overlaps it.
    ///
    /// # Panics
    /// If it is outside.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjoint parts, by contract")]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the slice; the caller promises that nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
