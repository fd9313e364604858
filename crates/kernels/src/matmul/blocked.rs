//! The product of two large matrices: `C` computed block by block, with operands packed into panels where they are not
//! read as they are stored.
//!
//! ```text
//! for parts of C, mostly one
//!  for pieces of DEPTH units along k                                       sums of parts are kept meanwhile
//!   for rows of C, as many as PACKED_A bytes of packed A hold              (all of them, if A is read as it is stored)
//!       pack op(A)                                                    all threads
//!       for each task: some columns by some rows of C
//!           for each block of at most A_PANELS × B_PANELS tiles
//!               for each pass of PASS units along k
//!                   pack op(B), for the first rows alone              into this thread's second-level cache
//!                   for each panel of B in the block                  stays in the first-level cache
//!                       for each panel of A in the block              comes from the second-level cache
//!                           tile (+)= panel · panel                   the micro-kernel
//!               store the tiles, as part of the last pass
//! ```
//!
//! How `C` is split among tasks depends on the number of threads; what a tile sums, and in which order, on the shapes
//! alone. So does the result.

use std::marker::PhantomData;
use std::ops::Range;

use super::kernel::{MicroKernel, Rows, Stretch, Unit};
use super::output::Output;
use super::pack::{Operand, Panels, Slice};
use super::scratch::{self, Use};
use crate::isa::per_isa;
use crate::{Device, Element};

/// Bytes of packed `op(A)` at a time. Tests cut small matrices into shares, too.
const PACKED_A: usize = if cfg!(test) { 16 << 10 } else { 8 << 20 };
/// Panels of rows that are worth packing panels of columns for.
const ENOUGH_ROWS: usize = 8;

/// Bytes of sums that are kept beside `C` at a time.
const PARTIAL: usize = if cfg!(test) { 16 << 10 } else { 32 << 20 };

/// Operands of a product, `op(A)` and `op(B)`.
pub(super) type Pair<'a> = (Operand<'a>, Operand<'a>);

/// What is multiplied.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    pub first: Pair<'a>,
    /// The panels of the first `op(B)`, if they are packed already.
    pub packed: Option<&'a [Unit]>,
    /// A second product to add; thought of as shallow.
    pub second: Option<Pair<'a>>,
}

/// `C = A·B + A₂·B₂` for operands of any size.
pub(super) fn run<K: MicroKernel, E: Element>(dev: &Device, factors: Factors<'_>, c: &Output<'_, E>) {
    let Factors { first, packed, second } = factors;
    let depth = first.0.depth();
    let pieces = pieces::<K>(depth);
    let per_piece = depth.div_ceil(pieces).next_multiple_of(K::UNIT * K::RUN);
    let (rows, cols) = (c.rows().div_ceil(K::MR), c.cols().div_ceil(K::NR));
    let tile = K::MR * K::NR;
    let (mut high, mut wide) = (rows, cols);
    if pieces > 1 {
        let packed = Slice { of: first.0, k: (0, per_piece) };
        let packed = if packed.as_stored::<K>().is_some() { 0 } else { packed.units::<K>() };
        high = share(rows, K::MR * packed, PACKED_A);
        wide = share(cols, high * tile, PARTIAL);
    }
    let partial = if pieces > 1 { high * wide * tile } else { 0 };
    scratch::with(Use::Partial, partial, |sums: &mut [f32]| {
        let starts =
            (0..rows).step_by(high).flat_map(|row| (0..cols).step_by(wide).map(move |col| (row, col)));
        for (row, col) in starts {
            let part = [row..rows.min(row + high), col..cols.min(col + wide)];
            let sums = (pieces > 1).then_some(Partial { start: sums.as_mut_ptr(), row, col, high, tile });
            for piece in 0..pieces {
                let k = (piece * per_piece, depth.min((piece + 1) * per_piece));
                let (begins, ends) = (piece == 0, piece + 1 == pieces);
                let slice = |of| Slice { of, k };
                let packed = packed.map(|units| Packed {
                    units,
                    panel: Slice::whole(first.1).units::<K>() * K::NR,
                    own: slice(first.1).units::<K>(),
                    start: k.0 / K::UNIT,
                });
                let part = part.clone();
                match second.filter(|_| ends) {
                    None => {
                        let (a, b) = (&[slice(first.0)], &[slice(first.1)]);
                        Piece { a, b, packed, part, begins, ends, sums }.run::<K, E>(dev, c);
                    }
                    Some(second) => {
                        let a = [slice(first.0), Slice::whole(second.0)];
                        let b = [slice(first.1), Slice::whole(second.1)];
                        Piece { a: &a, b: &b, packed, part, begins, ends, sums }.run::<K, E>(dev, c);
                    }
                }
            }
        }
    });
}

/// How many pieces a product goes through its depth in. Tests cut small matrices into pieces, too.
fn pieces<K: MicroKernel>(depth: usize) -> usize {
    depth.div_ceil(if cfg!(test) { 96 } else { K::UNIT * K::DEPTH }).max(1)
}

/// Bytes of the sums that are kept between pieces, for a product of `[rows, depth]` by `[depth, cols]`: at most.
pub(super) fn kept_bytes<K: MicroKernel>([rows, cols, depth]: [usize; 3]) -> usize {
    let sums = rows.next_multiple_of(K::MR) * cols.next_multiple_of(K::NR) * size_of::<f32>();
    if pieces::<K>(depth) > 1 { sums.min(PARTIAL) } else { 0 }
}

/// Panels of the first slice of `op(B)` that are packed already.
#[derive(Clone, Copy)]
struct Packed<'a> {
    units: &'a [Unit],
    /// Length of a panel.
    panel: usize,
    /// Units along `k` that the slice takes of a panel.
    own: usize,
    /// Where the slice begins in a panel, in units along `k`.
    start: usize,
}

/// Sums of every tile of a part of `C`, as several threads write them, each its own tiles.
#[derive(Clone, Copy)]
struct Partial {
    start: *mut f32,
    /// The part's first panel of rows.
    row: usize,
    /// Its first panel of columns.
    col: usize,
    /// Its panels of rows, at most.
    high: usize,
    /// Sums of a tile.
    tile: usize,
}

// SAFETY: `tile` leaves it to the caller that no two threads take the same tile.
unsafe impl Send for Partial {}
// SAFETY: as above.
unsafe impl Sync for Partial {}

impl Partial {
    /// # Safety
    /// The tile is inside the part, and no one else has it at the same time.
    unsafe fn tile<'a>(self, row: usize, col: usize) -> &'a mut [f32] {
        let at = ((col - self.col) * self.high + row - self.row) * self.tile;
        // SAFETY: passed on to the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), self.tile) }
    }
}

/// A product over a piece of its depth.
struct Piece<'a> {
    a: &'a [Slice<'a>],
    b: &'a [Slice<'a>],
    packed: Option<Packed<'a>>,
    /// Panels of rows and of columns of `C`.
    part: [Range<usize>; 2],
    /// Whether it is the first piece: sums begin at zero.
    begins: bool,
    /// Whether it is the last one: sums go to `C`.
    ends: bool,
    /// Where sums are kept between pieces.
    sums: Option<Partial>,
}

impl Piece<'_> {
    fn run<K: MicroKernel, E: Element>(&self, dev: &Device, c: &Output<'_, E>) {
        let b = Panels { slices: self.b, width: K::NR, run: 1 };
        let a = Panels { slices: self.a, width: K::MR, run: K::RUN };
        // Of a whole panel of rows only what cannot be read as it is stored is packed; of the last rows everything.
        let packed = self.a.iter().filter(|slice| slice.as_stored::<K>().is_none()).copied();
        let mut slices = [self.a[0]; 2];
        let count = slices.iter_mut().zip(packed).map(|(to, slice)| *to = slice).count();
        let a_whole = Panels { slices: &slices[..count], ..a };
        let [Range { start, end: panels }, _] = self.part;
        let whole = panels.min(c.rows() / K::MR);
        let (len, last_len) = (K::MR * a_whole.units::<K>(), K::MR * a.units::<K>());
        let share = share(whole - start, len, PACKED_A);
        scratch::with(Use::PackedA, share * len + last_len, |packed_a| {
            let (packed_a, last) = packed_a.split_at_mut(share * len);
            if panels > whole {
                a.pack::<K>(whole * K::MR, 0..a.units::<K>(), last);
            }
            for first in (start..panels).step_by(share.max(1)) {
                // The last rows go with the last share, or are one of their own.
                let end = if first + share >= whole { panels } else { first + share };
                let here = whole.min(end).saturating_sub(first);
                a_whole.pack_whole::<K>(dev, first * K::MR, &mut packed_a[..here * len]);
                let kernel = PhantomData::<K>;
                Part { rows: first..end, whole, a: packed_a, len, last, b, piece: self, kernel }.run(dev, c);
                if end == panels {
                    break;
                }
            }
        });
    }
}

/// Panels to pack at a time: all if they fit into `bytes`, otherwise even shares.
fn share(panels: usize, len: usize, bytes: usize) -> usize {
    let fit = (bytes / (len * size_of::<Unit>()).max(1)).max(1);
    let shares = panels.div_ceil(fit).max(1);
    panels.div_ceil(shares)
}

/// Rows of `C` whose operand is packed, or read as it is stored.
struct Part<'a, K: MicroKernel> {
    /// Panels of rows.
    rows: Range<usize>,
    /// Panels before this one have all their rows.
    whole: usize,
    /// What is packed of the whole panels.
    a: &'a [Unit],
    /// Units of each of them.
    len: usize,
    /// The panel of the last rows.
    last: &'a [Unit],
    b: Panels<'a>,
    piece: &'a Piece<'a>,
    kernel: PhantomData<K>,
}

/// Columns of a block, with their operand packed for a pass.
struct Columns<'a> {
    /// Panels.
    panels: Range<usize>,
    /// What the pass reads of each panel, but for what was packed before.
    packed: &'a [Unit],
}

/// What a later pass will pack: asked for meanwhile.
struct Ahead {
    /// Panels of columns.
    panels: Range<usize>,
    units: Range<usize>,
}

impl<K: MicroKernel> Part<'_, K> {
    fn run<E: Element>(&self, dev: &Device, c: &Output<'_, E>) {
        let [_, cols] = &self.piece.part;
        let (rows, first, cols) = (self.rows.len(), cols.start, cols.len());
        let Split { down, across, tasks } = split(dev.threads(), rows, cols, K::B_PANELS);
        let part = |all: usize, parts: usize, i: usize| all * i / parts..all * (i + 1) / parts;
        dev.for_each(down * tasks, |i| {
            let rows = part(rows, down, i % down);
            let rows = self.rows.start + rows.start..self.rows.start + rows.end;
            // SAFETY: the device's CPU has the kernel's instructions, or `matmul::run` would not have chosen it.
            let _session = unsafe { K::begin() };
            let blocks = part(across, tasks, i / down);
            let columns = |block| {
                let columns = part(cols, across, block);
                first + columns.start..first + columns.end
            };
            for block in blocks.clone() {
                let next = (block + 1 < blocks.end).then(|| columns(block + 1));
                self.columns(c, rows.clone(), columns(block), next);
            }
        });
    }

    /// Some panels of rows by at most `B_PANELS` panels of columns; `next` come next.
    fn columns<E: Element>(
        &self,
        c: &Output<'_, E>,
        rows: Range<usize>,
        cols: Range<usize>,
        next: Option<Range<usize>>,
    ) {
        let units = self.b.units::<K>();
        let passes = units.div_ceil(K::PASS).max(1);
        let per_pass = units.div_ceil(passes).next_multiple_of(K::RUN);
        let pass = |i: usize| units.min(i * per_pass)..units.min((i + 1) * per_pass);
        let height = rows.len().div_ceil(rows.len().div_ceil(K::A_PANELS));
        // With a single pass a tile is stored at once, and they can share one place.
        let tiles = match (passes, self.piece.sums) {
            (_, Some(_)) => 0,
            (1, None) => 1,
            _ => height * cols.len(),
        };
        // Units before this one are packed already.
        let there = self.piece.packed.map_or(0, |packed| packed.own);
        let rest = |units: &Range<usize>| units.start.max(there)..units.end.max(there);
        let room = cols.len() * K::NR * (units - there);
        scratch::with(Use::PackedB, room, |packed: &mut [Unit]| {
            scratch::with(Use::Tiles, tiles * K::MR * K::NR, |sums: &mut [f32]| {
                for first in rows.clone().step_by(height) {
                    let block = first..rows.end.min(first + height);
                    let packs = first == rows.start;
                    for at in 0..passes {
                        let units = pass(at);
                        let own = rest(&units);
                        let stride = K::NR * cols.len();
                        let packed = &mut packed[(own.start - there) * stride..(own.end - there) * stride];
                        if packs {
                            self.b.pack::<K>(cols.start * K::NR, own, packed);
                        }
                        let ahead = if there > 0 {
                            None
                        } else if packs && at + 1 < passes {
                            Some(Ahead { panels: cols.clone(), units: pass(at + 1) })
                        } else if block.end == rows.end {
                            next.clone().map(|panels| Ahead { panels, units: units.clone() })
                        } else {
                            None
                        };
                        let columns = Columns { panels: cols.clone(), packed };
                        self.pass(c, block.clone(), columns, units, ahead, sums);
                    }
                }
            });
        });
    }

    /// A pass along `k` over a block.
    fn pass<E: Element>(
        &self,
        c: &Output<'_, E>,
        rows: Range<usize>,
        cols: Columns<'_>,
        units: Range<usize>,
        ahead: Option<Ahead>,
        sums: &mut [f32],
    ) {
        let tile_len = K::MR * K::NR;
        let tiles = (sums.len() / tile_len).max(1);
        let add = units.start > 0 || !self.piece.begins;
        let ends = units.end == self.b.units::<K>() && self.piece.ends;
        let b_len = cols.packed.len() / cols.panels.len();
        for j in cols.panels.clone() {
            let b = &cols.packed[(j - cols.panels.start) * b_len..][..b_len];
            for i in rows.clone() {
                let at = (j - cols.panels.start) * rows.len() + i - rows.start;
                let tile = match self.piece.sums {
                    // SAFETY: a tile is computed by one task, and pieces follow each other.
                    Some(sums) => unsafe { sums.tile(i, j) },
                    None => &mut sums[at % tiles * tile_len..][..tile_len],
                };
                if let Some(Ahead { panels, units }) = &ahead {
                    let share = (at, cols.panels.len() * rows.len());
                    self.b.prefetch::<K>(panels.start * K::NR..panels.end * K::NR, units.clone(), share);
                }
                if ends {
                    c.prefetch(i * K::MR..(i + 1) * K::MR, j * K::NR..(j + 1) * K::NR);
                }
                self.tile(tile, (i, j), units.clone(), b, add);
                if ends {
                    self.store(c, tile, i, j);
                }
            }
        }
    }

    /// Adds the products of a range of units to a tile, or sets it. `b` is the panel of these units, but for those that
    /// were packed before.
    #[inline(always)]
    fn tile(&self, tile: &mut [f32], (i, j): (usize, usize), units: Range<usize>, b: &[Unit], add: bool) {
        let mut stretches = [Stretch { units: 0, a: Rows::Packed(b.as_ptr()), b: b.as_ptr() }; 2];
        // Units before a slice: of all, and of those that are packed.
        let (mut before, mut packed_before) = (0, 0);
        let there = self.piece.packed.map_or(0, |packed| packed.own);
        for (slice, stretch) in self.piece.a.iter().zip(&mut stretches) {
            let own = slice.units::<K>();
            let from = units.start.max(before);
            let stored = if i < self.whole { slice.as_stored::<K>() } else { None };
            stretch.units = units.end.min(before + own).saturating_sub(from);
            if stretch.units > 0 {
                let b = match self.piece.packed {
                    Some(packed) if from < there => {
                        &packed.units[j * packed.panel + (packed.start + from) * K::NR..]
                    }
                    _ => &b[(from - units.start.max(there)) * K::NR..],
                };
                stretch.b = b[..stretch.units * K::NR].as_ptr();
                stretch.a = if let Some((start, row)) = stored {
                    Rows::Stored { start: start.wrapping_add(i * K::MR * row + from - before), row }
                } else {
                    let at = (packed_before + from - before) * K::MR;
                    let panel = match i < self.whole {
                        true => &self.a[(i - self.rows.start) * self.len + at..],
                        false => &self.last[at..],
                    };
                    Rows::Packed(panel[..stretch.units * K::MR].as_ptr())
                };
            }
            packed_before += if stored.is_none() { own } else { 0 };
            before += own;
        }
        assert!(tile.len() == K::MR * K::NR);
        // SAFETY: packed panels are as long as a stretch says, by the slices above; a stored one is `MR` rows inside the
        // matrix, read inside its slice; buffers begin at multiples of 64 bytes and tiles are whole cache lines; the
        // caller has begun.
        unsafe { K::tile(&stretches[..self.piece.a.len()], tile.as_mut_ptr(), add) };
    }

    fn store<E: Element>(&self, c: &Output<'_, E>, tile: &[f32], i: usize, j: usize) {
        let (row, col) = (i * K::MR, j * K::NR);
        let store = Store { c, tile, row, col, kernel: PhantomData::<K> };
        store_tile(K::ISA, store);
    }
}

/// How `C` is split.
struct Split {
    /// Ranges of rows.
    down: usize,
    /// Blocks of columns.
    across: usize,
    /// Tasks for each range of rows: some blocks of columns that follow each other.
    tasks: usize,
}

/// Splits `C` so that every thread gets as much as the others, in blocks of at most `widest` panels of columns. Ranges of
/// rows beside each other pack the same columns, so there are several only where columns do not suffice.
fn split(threads: usize, rows: usize, cols: usize, widest: usize) -> Split {
    let across = cols.div_ceil(widest).next_multiple_of(threads).min(cols);
    let down = threads.div_ceil(across).min(rows.div_ceil(ENOUGH_ROWS)).max(1);
    // A second task for each thread evens out what other programs take of the cores.
    let tasks = if across >= 4 * threads { 2 * threads } else { threads.min(across) };
    Split { down, across, tasks }
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
