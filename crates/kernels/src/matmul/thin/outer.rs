//! Big lanes that lie side by side: stored row `k`, scaled by each thin lane's value, is added to its sums.

use std::marker::PhantomData;

use super::{THIN, Thin, load};
use crate::isa::per_isa;
use crate::matmul::kernel::MicroKernel;
use crate::matmul::output::Output;
use crate::matmul::scratch::{self, Use};
use crate::matmul::vector::{Vector, prefetch_l2};
use crate::{Device, Element, with_dtype};

/// Thin lanes in a group.
const GROUP: usize = 8;
/// Big lanes in a task at most: a few cache lines of each stored row.
const STRIP: usize = 256;
/// Big lanes in a task at least, and a divisor of their number.
const NARROW: usize = 64;
/// Stored rows at a time: with a strip's width they stay in the first-level cache.
const ROWS: usize = 64;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Registers of big lanes that a tile is wide.
const WIDE: usize = 2;

pub(super) fn run<K: MicroKernel, S: Element, E: Element>(
    dev: &Device,
    product: Thin<'_>,
    values: &[S],
    c: &Output<'_, E>,
) {
    let (depth, big) = (product.big.depth(), product.big.lanes());
    let groups = product.thin.lanes().div_ceil(GROUP);
    scratch::with(Use::Thin, groups * GROUP * depth, |packed: &mut [f32]| {
        let view = product.thin_values();
        with_dtype!(view.dtype(), P => {
            let values = view.as_slice::<P>();
            for (g, packed) in packed.chunks_exact_mut(GROUP * depth).enumerate() {
                pack_group(K::ISA, product, values, g * GROUP, packed);
            }
        });
        let packed = &*packed;
        // As many strips as keep all threads busy.
        let strip = (big / 16).next_multiple_of(NARROW).clamp(NARROW, STRIP);
        dev.for_each(big.div_ceil(strip), |task| {
            scratch::with(Use::Tiles, groups * GROUP * STRIP, |sums: &mut [f32]| {
                let first = task * strip;
                let lanes = strip.min(big - first);
                let vector = PhantomData::<K::Lanes>;
                let strip = Strip { product, values, row: big, first, lanes, depth, packed, sums, c, vector };
                sum_strip(K::ISA, strip);
            });
        });
    });
}

/// Some of the big lanes with all thin ones.
struct Strip<'a, V, S, E> {
    product: Thin<'a>,
    values: &'a [S],
    /// Length of a stored row.
    row: usize,
    first: usize,
    lanes: usize,
    depth: usize,
    packed: &'a [f32],
    /// `[group][GROUP][STRIP]`.
    sums: &'a mut [f32],
    c: &'a Output<'a, E>,
    vector: PhantomData<V>,
}

per_isa! {
    /// The thin lanes from `first` on, `GROUP` of them for each `k` in turn.
    fn pack_group<P: Element>(product: Thin<'_>, values: &[P], first: usize, packed: &mut [f32]) {
        let (lanes, depth) = (product.thin.lanes(), product.thin.depth());
        let whole = first + GROUP <= lanes;
        if whole && !product.thin.along_k {
            for (to, from) in packed.chunks_exact_mut(GROUP).zip(values.chunks_exact(lanes)) {
                for (to, from) in to.iter_mut().zip(&from[first..first + GROUP]) {
                    *to = product.rounded(*from);
                }
            }
        } else {
            for t in 0..GROUP {
                for k in 0..depth {
                    packed[k * GROUP + t] = product.value(values, first + t, k);
                }
            }
        }
    }

    fn sum_strip<V: Vector, S: Element, E: Element>(strip: Strip<'_, V, S, E>) {
        strip.run();
    }
}

impl<V: Vector, S: Element, E: Element> Strip<'_, V, S, E> {
    #[inline(always)]
    fn run(mut self) {
        self.sum();
        self.store();
    }
}

impl<V: Vector, S: Element, E: Element> Strip<'_, V, S, E> {
    /// Sums over the whole depth.
    #[inline(always)]
    fn sum(&mut self) {
        let width = WIDE * V::LANES;
        let mut padded = [S::default(); ROWS * WIDE * 16];
        for k0 in (0..self.depth).step_by(ROWS) {
            let rows = ROWS.min(self.depth - k0);
            for at in (0..self.lanes).step_by(width) {
                self.ask_for(k0 + ROWS, at, width);
                let lanes = width.min(self.lanes - at);
                let start = &self.values[k0 * self.row + self.first + at..];
                let (from, stride) = if lanes == width {
                    (start, self.row)
                } else {
                    for k in 0..rows {
                        let row = &start[k * self.row..][..lanes];
                        padded[k * width..][..lanes].copy_from_slice(row);
                    }
                    (&padded[..], width)
                };
                assert!(from.len() >= (rows - 1) * stride + width);
                let packed = self.packed.chunks_exact(GROUP * self.depth);
                for (thin, sums) in packed.zip(self.sums.chunks_exact_mut(GROUP * STRIP)) {
                    let thin = &thin[k0 * GROUP..][..rows * GROUP];
                    let tile = &mut sums[at..][..(GROUP - 1) * STRIP + width];
                    // SAFETY: `thin` holds `rows` times `GROUP` values, `from` as many rows as asserted, `tile`
                    // the sums; this is compiled for the kernel's instruction set and runs because the device
                    // has it.
                    unsafe {
                        add_rows::<V, S>(
                            rows,
                            thin.as_ptr(),
                            (from.as_ptr(), stride),
                            tile.as_mut_ptr(),
                            k0 > 0,
                        );
                    }
                }
            }
        }
    }

    /// Asks for a share of the rows from `k0` on, the whole strip of them: the share of the tile at `at`.
    #[inline(always)]
    fn ask_for(&self, k0: usize, at: usize, width: usize) {
        let share = ROWS.div_ceil(self.lanes.div_ceil(width));
        let first = k0 + at / width * share;
        for k in first..self.depth.min(first + share) {
            let row = self.values.as_ptr().wrapping_add(k * self.row + self.first);
            for lane in (0..self.lanes).step_by(LINE / size_of::<S>()) {
                prefetch_l2(row.wrapping_add(lane));
            }
        }
    }

    #[inline(always)]
    fn store(&self) {
        let Self { product, sums, c, .. } = self;
        let thin = product.thin.lanes();
        if product.thin_is_a {
            for (t, sums) in sums.chunks_exact(STRIP).take(thin).enumerate() {
                // SAFETY: a strip of big lanes is computed by one task.
                unsafe { c.store_row(t, self.first, &sums[..self.lanes]) };
            }
        } else {
            for lane in 0..self.lanes {
                let mut row = [0.0; THIN];
                for (t, sum) in row.iter_mut().enumerate().take(thin) {
                    *sum = sums[t * STRIP + lane];
                }
                // SAFETY: a strip of big lanes is computed by one task.
                unsafe { c.store_row(self.first + lane, 0, &row[..thin]) };
            }
        }
    }
}

/// Adds `rows` scaled rows to `GROUP` rows of `WIDE` registers, `STRIP` apart, or sets them.
///
/// # Safety
/// That of [`Vector`]; `thin` holds `rows·GROUP` floats, `big` that many rows of a tile's width at its stride.
#[inline(always)]
unsafe fn add_rows<V: Vector, S: Element>(
    rows: usize,
    thin: *const f32,
    (big, stride): (*const S, usize),
    tile: *mut f32,
    add: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); WIDE]; GROUP];
        if add {
            for (t, row) in sums.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = V::load(tile.add(t * STRIP + j * V::LANES));
                }
            }
        }
        for k in 0..rows {
            let mut x = [V::splat(0.0); WIDE];
            for (j, x) in x.iter_mut().enumerate() {
                let at = big.add(k * stride + j * V::LANES);
                *x = load(at);
            }
            for (t, row) in sums.iter_mut().enumerate() {
                let scale = V::splat(*thin.add(k * GROUP + t));
                for (sum, x) in row.iter_mut().zip(x) {
                    *sum = scale.mul_add(x, *sum);
                }
            }
        }
        for (t, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                sum.store(tile.add(t * STRIP + j * V::LANES));
            }
        }
    }
}
