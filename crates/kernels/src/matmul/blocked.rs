//! The product of two large matrices: both packed into panels, `C` computed block by block.
//!
//! ```text
//! for pieces of k, mostly one
//!   for columns of C, as many as PACKED_B bytes of packed B hold          (all of them, mostly)
//!     pack op(B)                                                        all threads
//!     for rows of C, as many as PACKED_A bytes of packed A hold          (all of them, if A is read as it is stored)
//!         pack op(A)                                                    all threads
//!         for each block of A_PANELS × B_PANELS tiles                   a task
//!             for each pass of PASS units along k
//!                 for each panel of B in the block                      stays in the first-level cache
//!                     for each panel of A in the block                  comes from the second-level cache
//!                         tile (+)= panel · panel                       the micro-kernel
//!             store the tiles, as part of the last pass
//! ```
//!
//! Every split depends on the shapes alone, and a tile sums along `k` in order: the result does not depend on
//! the number of threads.

use std::marker::PhantomData;
use std::ops::Range;

use super::kernel::{MicroKernel, Rows, Unit};
use super::output::Output;
use super::pack::{Operand, Slice, pack_panels};
use super::scratch::{self, Use};
use crate::isa::per_isa;
use crate::{Device, Element};

/// Bytes of packed `op(A)` at a time. Tests cut small matrices into shares, too.
const PACKED_A: usize = if cfg!(test) { 16 << 10 } else { 8 << 20 };
/// Bytes of packed `op(B)` at a time; a weight of a small model fits, the head does not.
const PACKED_B: usize = if cfg!(test) { 32 << 10 } else { 16 << 20 };
/// Blocks of `C` to aim at, so that many threads get even shares.
const ENOUGH_BLOCKS: usize = 48;

/// Values along `k` at a time. A deeper product (the gradient through the head) keeps its sums beside `C` meanwhile, so
/// that panels of many rows and columns fit into the caches and none is packed twice.
const DEPTH: usize = if cfg!(test) { 96 } else { 8192 };

/// Operands of a product, `op(A)` and `op(B)`.
pub(super) type Pair<'a> = (Operand<'a>, Operand<'a>);

/// `C = A·B + A₂·B₂` for operands of any size; `second` is thought of as shallow.
pub(super) fn run<K: MicroKernel, E: Element>(
    dev: &Device,
    first: Pair<'_>,
    second: Option<Pair<'_>>,
    c: &Output<'_, E>,
) {
    let depth = first.0.depth();
    let pieces = depth.div_ceil(DEPTH).max(1);
    let per_piece = depth.div_ceil(pieces).next_multiple_of(K::UNIT);
    let grid = Grid { rows: c.rows().div_ceil(K::MR), cols: c.cols().div_ceil(K::NR), tile: K::MR * K::NR };
    let partial = if pieces > 1 { grid.rows * grid.cols * grid.tile } else { 0 };
    scratch::with(Use::Partial, partial, |sums: &mut [f32]| {
        let sums = (pieces > 1).then_some(Partial { start: sums.as_mut_ptr(), grid });
        for piece in 0..pieces {
            let k = (piece * per_piece, depth.min((piece + 1) * per_piece));
            let (begins, ends) = (piece == 0, piece + 1 == pieces);
            let slice = |of| Slice { of, k };
            match second.filter(|_| ends) {
                None => Piece { a: &[slice(first.0)], b: &[slice(first.1)], begins, ends, sums }
                    .run::<K, E>(dev, c),
                Some(second) => {
                    let a = [slice(first.0), Slice::whole(second.0)];
                    let b = [slice(first.1), Slice::whole(second.1)];
                    Piece { a: &a, b: &b, begins, ends, sums }.run::<K, E>(dev, c);
                }
            }
        }
    });
}

/// Tiles of `C`.
#[derive(Clone, Copy)]
struct Grid {
    rows: usize,
    cols: usize,
    /// Sums of a tile.
    tile: usize,
}

/// Sums of every tile of `C`, as several threads write them, each its own tiles.
#[derive(Clone, Copy)]
struct Partial {
    start: *mut f32,
    grid: Grid,
}

// SAFETY: `tile` leaves it to the caller that no two threads take the same tile.
unsafe impl Send for Partial {}
// SAFETY: as above.
unsafe impl Sync for Partial {}

impl Partial {
    /// # Safety
    /// The tile is inside the grid, and no one else has it at the same time.
    unsafe fn tile<'a>(self, row: usize, col: usize) -> &'a mut [f32] {
        let at = (col * self.grid.rows + row) * self.grid.tile;
        // SAFETY: passed on to the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), self.grid.tile) }
    }
}

/// A product over a piece of its depth.
struct Piece<'a> {
    a: &'a [Slice<'a>],
    b: &'a [Slice<'a>],
    /// Whether it is the first piece: sums begin at zero.
    begins: bool,
    /// Whether it is the last one: sums go to `C`.
    ends: bool,
    /// Where sums are kept between pieces.
    sums: Option<Partial>,
}

impl Piece<'_> {
    fn run<K: MicroKernel, E: Element>(&self, dev: &Device, c: &Output<'_, E>) {
        let units: usize = self.a.iter().map(Slice::units::<K>).sum();
        let (a_len, b_len) = (K::MR * units, K::NR * units);
        // Whole panels of rows that are read as they are stored; the others are packed.
        let stored = self.a.iter().all(|slice| slice.as_stored::<K>().is_some());
        let stored = if stored { c.rows() / K::MR } else { 0 };
        let a_step = if stored > 0 {
            c.rows().div_ceil(K::MR)
        } else {
            share(c.rows().div_ceil(K::MR), a_len, PACKED_A)
        };
        let a_packed = a_step - stored;
        let b_step = share(c.cols().div_ceil(K::NR), b_len, PACKED_B);
        scratch::with(Use::PackedB, b_step * b_len, |packed_b| {
            scratch::with(Use::PackedA, a_packed * a_len, |packed_a| {
                let mut a_is = None;
                for col in (0..c.cols()).step_by(b_step * K::NR) {
                    let b_panels = (c.cols() - col).div_ceil(K::NR).min(b_step);
                    let packed_b = &mut packed_b[..b_panels * b_len];
                    pack_panels::<K>(dev, self.b, K::NR, col, packed_b);
                    for row in (0..c.rows()).step_by(a_step * K::MR) {
                        let a_panels = (c.rows() - row).div_ceil(K::MR).min(a_step);
                        let packed_a = &mut packed_a[..(a_panels - stored) * a_len];
                        if a_is != Some(row) {
                            pack_panels::<K>(dev, self.a, K::MR, row + stored * K::MR, packed_a);
                            a_is = Some(row);
                        }
                        let part = Part {
                            a: packed_a,
                            b: packed_b,
                            a_panels,
                            stored,
                            b_panels,
                            units,
                            kernel: PhantomData::<K>,
                            row,
                            col,
                            piece: self,
                        };
                        part.run(dev, c);
                    }
                }
            });
        });
    }
}

/// Panels to pack at a time: all if they fit into `bytes`, otherwise even shares.
fn share(panels: usize, len: usize, bytes: usize) -> usize {
    let fit = (bytes / (len * size_of::<Unit>()).max(1)).max(1);
    let shares = panels.div_ceil(fit).max(1);
    panels.div_ceil(shares).max(1)
}

/// A part of `C` whose operands are packed.
struct Part<'a, K: MicroKernel> {
    a: &'a [Unit],
    b: &'a [Unit],
    a_panels: usize,
    /// Panels of `A` before the packed ones, which are read as they are stored.
    stored: usize,
    b_panels: usize,
    /// Along `k`.
    units: usize,
    /// Where the part begins in `C`.
    row: usize,
    col: usize,
    piece: &'a Piece<'a>,
    kernel: PhantomData<K>,
}

impl<K: MicroKernel> Part<'_, K> {
    fn run<E: Element>(&self, dev: &Device, c: &Output<'_, E>) {
        let mut tall = K::A_PANELS;
        let wide = K::B_PANELS.min(self.b_panels);
        let across = self.b_panels.div_ceil(wide);
        while tall > 1 && self.a_panels.div_ceil(tall) * across < ENOUGH_BLOCKS {
            tall = tall.div_ceil(2);
        }
        let down = self.a_panels.div_ceil(tall);
        dev.for_each(down * across, |i| {
            let (i, j) = (i / across, i % across);
            self.block(
                c,
                (i * tall, self.a_panels.min((i + 1) * tall)),
                (j * wide, self.b_panels.min((j + 1) * wide)),
            );
        });
    }

    /// One block: the panels `a0..a1` of `A` with `b0..b1` of `B`.
    fn block<E: Element>(&self, c: &Output<'_, E>, (a0, a1): (usize, usize), (b0, b1): (usize, usize)) {
        let tile_len = K::MR * K::NR;
        let passes = self.units.div_ceil(K::PASS).max(1);
        let per_pass = self.units.div_ceil(passes);
        // With a single pass a tile is stored at once, and they can share one place.
        let tiles = match (passes, self.piece.sums) {
            (_, Some(_)) => 0,
            (1, None) => 1,
            _ => (a1 - a0) * (b1 - b0),
        };
        scratch::with(Use::Tiles, tiles * tile_len, |sums: &mut [f32]| {
            for pass in 0..passes {
                let units = pass * per_pass..self.units.min((pass + 1) * per_pass);
                for j in b0..b1 {
                    for i in a0..a1 {
                        let tile = match self.piece.sums {
                            // SAFETY: a tile is computed by one task, and pieces follow each other.
                            Some(sums) => unsafe { sums.tile(self.row / K::MR + i, self.col / K::NR + j) },
                            None => {
                                let at = ((j - b0) * (a1 - a0) + i - a0) % tiles * tile_len;
                                &mut sums[at..][..tile_len]
                            }
                        };
                        self.tile(tile, i, j, units.clone());
                        if pass + 1 == passes && self.piece.ends {
                            self.store(c, tile, i, j);
                        }
                    }
                }
            }
        });
    }

    /// Adds the products of a range of units to a tile, or sets it if they are the first.
    #[inline(always)]
    fn tile(&self, tile: &mut [f32], i: usize, j: usize, units: Range<usize>) {
        let b = &self.b[(j * self.units + units.start) * K::NR..][..units.len() * K::NR];
        let mut add = units.start > 0 || !self.piece.begins;
        if i >= self.stored {
            let a = &self.a[((i - self.stored) * self.units + units.start) * K::MR..][..units.len() * K::MR];
            let rows = Rows::Packed(a.as_ptr());
            // SAFETY: the slices are as long as the kernel reads, `tile` as long as it writes; buffers begin at
            // multiples of 64 bytes and tiles are whole cache lines; the device's CPU has the kernel's
            // instruction set, or `matmul::run` would not have chosen it.
            return unsafe { K::tile(units.len(), rows, b.as_ptr(), tile.as_mut_ptr(), add) };
        }
        let mut before = 0;
        for slice in self.piece.a {
            let (own, Some((start, row))) = (slice.units::<K>(), slice.as_stored::<K>()) else { return };
            let (from, to) = (units.start.max(before), units.end.min(before + own));
            if from < to {
                let start = start.wrapping_add((self.row + i * K::MR) * row + from - before);
                let b = &b[(from - units.start) * K::NR..];
                let rows = Rows::Stored { start, row };
                // SAFETY: as above; a stored panel is `MR` rows inside the matrix, read inside the slice.
                unsafe { K::tile(to - from, rows, b.as_ptr(), tile.as_mut_ptr(), add) };
                add = true;
            }
            before += own;
        }
    }

    fn store<E: Element>(&self, c: &Output<'_, E>, tile: &[f32], i: usize, j: usize) {
        let (row, col) = (self.row + i * K::MR, self.col + j * K::NR);
        let store = Store { c, tile, row, col, kernel: PhantomData::<K> };
        store_tile(K::ISA, store);
    }
}

/// A tile and its place in `C`.
struct Store<'a, K, E> {
    c: &'a Output<'a, E>,
    tile: &'a [f32],
    row: usize,
    col: usize,
    kernel: PhantomData<K>,
}

per_isa! {
    fn store_tile<K: MicroKernel, E: Element>(store: Store<'_, K, E>) {
        store.run();
    }
}

impl<K: MicroKernel, E: Element> Store<'_, K, E> {
    #[inline(always)]
    fn run(self) {
        let rows = K::MR.min(self.c.rows() - self.row);
        let cols = K::NR.min(self.c.cols() - self.col);
        for (row, sums) in (self.row..).zip(self.tile.chunks_exact(K::NR).take(rows)) {
            // SAFETY: a tile is computed by one task.
            unsafe {
                if cols == K::NR {
                    // A constant length, which unrolls.
                    self.c.store_row(row, self.col, &sums[..K::NR]);
                } else {
                    self.c.store_row(row, self.col, &sums[..cols]);
                }
            }
        }
    }
}
