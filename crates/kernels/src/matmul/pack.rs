//! Copies an operand into the panels that a kernel reads.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::Matrix;
use super::kernel::{MicroKernel, Unit};
use super::vector::{prefetch, prefetch_l2};
use crate::isa::per_isa;
use crate::quantized::Decoder;
use crate::{DType, Device, Element, View, with_dtype};

/// `op(A)` by rows or `op(B)` by columns: lanes of values along `k`.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    /// The matrix as stored.
    pub stored: Stored<'a>,
    /// Rows and columns as stored.
    shape: [usize; 2],
    /// Whether the values of a lane lie side by side: `A` stored straight, `B` stored transposed.
    pub along_k: bool,
    /// Whether values are rounded to `bf16` first.
    pub round: bool,
}

/// A matrix as stored.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    Values(View<'a>),
    Codes(Decoder<'a>),
}

impl<'a> Operand<'a> {
    /// An operand in the host's memory.
    pub fn of(matrix: Matrix<'a>, along_k: bool, round: bool) -> Self {
        let shape = [matrix.dim(0), matrix.dim(1)];
        let stored = match matrix {
            Matrix::Values(view) => Stored::Values(view),
            Matrix::Quantized(weight) => Stored::Codes(weight.decoder()),
        };
        Self { stored, shape, along_k, round }
    }

    /// Rows and columns as stored.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Rows of `op(A)` or columns of `op(B)`.
    pub fn lanes(&self) -> usize {
        self.shape[usize::from(!self.along_k)]
    }

    /// Values of a lane: `K`.
    pub fn depth(&self) -> usize {
        self.shape[usize::from(self.along_k)]
    }
}

/// A range of an operand along `k`.
#[derive(Clone, Copy)]
pub(super) struct Slice<'a> {
    /// What it is of.
    pub of: Operand<'a>,
    /// The range.
    pub k: (usize, usize),
}

impl<'a> Slice<'a> {
    /// All of an operand.
    pub fn whole(of: Operand<'a>) -> Self {
        Self { of, k: (0, of.depth()) }
    }

    /// Where a kernel `K` can read it without packing, and the units of a row: lanes lie along `k`, values are as the
    /// kernel wants them, and rows are whole runs of units.
    pub fn as_stored<K: MicroKernel>(&self) -> Option<(*const Unit, usize)> {
        let Stored::Values(view) = self.of.stored else { return None };
        let (dtype, depth) = (view.dtype(), self.of.depth());
        let converted = dtype != K::Packed::DTYPE || (self.of.round && dtype == DType::F32);
        let start = view.bytes().as_ptr().cast::<Unit>();
        let run = K::UNIT * K::RUN;
        // A run of sixteen units is a cache line, which should not be cut in two.
        let aligned = start.cast::<u8>().align_offset(size_of::<Unit>() * K::RUN) == 0;
        let whole = depth.is_multiple_of(run) && self.k.0.is_multiple_of(run) && aligned;
        // Rows at multiples of a page fall into the same few lines of the first-level cache and push each other out.
        let apart = !(depth / K::UNIT * size_of::<Unit>()).is_multiple_of(PAGE);
        let suits = self.of.along_k && !converted && whole && apart && depth > K::UNIT;
        suits.then(|| (start.wrapping_add(self.k.0 / K::UNIT), depth / K::UNIT))
    }

    /// Units of kernel `K` that it fills, up to a whole run.
    pub fn units<K: MicroKernel>(&self) -> usize {
        (self.k.1 - self.k.0).div_ceil(K::UNIT).next_multiple_of(K::RUN)
    }

    /// The part of it in a range of its units.
    fn part<K: MicroKernel>(&self, units: Range<usize>) -> Self {
        let at = |unit: usize| self.k.1.min(self.k.0 + unit * K::UNIT);
        Self { of: self.of, k: (at(units.start), at(units.end)) }
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;
/// Bytes after which addresses fall into the same lines of the first-level cache.
const PAGE: usize = 4096;
/// A task of at least so many bytes hides what it costs to hand it to a thread.
const SMALL_TASK_BYTES: usize = 64 * 1024;
/// Bytes of a task where there are many: of a matrix whose lanes lie side by side, it reads that much wider a strip.
const TASK_BYTES: usize = 1024 * 1024;

/// Slices that follow each other along `k`, as panels are made of them.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    /// The slices.
    pub slices: &'a [Slice<'a>],
    /// Lanes of a panel.
    pub width: usize,
    /// Units of a lane that lie side by side.
    pub run: usize,
}

impl Panels<'_> {
    /// Units of all slices.
    pub fn units<K: MicroKernel>(&self) -> usize {
        self.slices.iter().map(Slice::units::<K>).sum()
    }

    /// Packs a range of the units of the lanes from `first` on into `out`, whole panels of these units.
    pub fn pack<K: MicroKernel>(&self, first: usize, units: Range<usize>, out: &mut [Unit]) {
        if units.is_empty() {
            return;
        }
        let mut before = 0;
        for slice in self.slices {
            let own = slice.units::<K>();
            let (from, to) = (units.start.max(before), units.end.min(before + own));
            if from < to {
                let part = Part {
                    slice: slice.part::<K>(from - before..to - before),
                    first,
                    width: self.width,
                    run: self.run,
                    own: from - units.start..to - units.start,
                    units: units.len(),
                };
                match slice.of.stored {
                    Stored::Codes(codes) => part.pack::<K, _>(codes, out),
                    Stored::Values(view) => with_dtype!(view.dtype(), S => {
                        let values = Values { values: view.as_slice::<S>(), columns: view.dim(1) };
                        part.pack::<K, _>(values, out);
                    }),
                }
            }
            before += own;
        }
    }

    /// Asks for a share of what [`Panels::pack`] will read for these lanes and units.
    #[inline(always)]
    pub fn prefetch<K: MicroKernel>(
        &self,
        lanes: Range<usize>,
        units: Range<usize>,
        (share, of): (usize, usize),
    ) {
        let Some(slice) = self.slices.first() else { return };
        let own = slice.units::<K>();
        let part = slice.part::<K>(units.start.min(own)..units.end.min(own));
        let (depth, all_lanes) = (part.of.depth(), part.of.lanes());
        let lanes = lanes.start..lanes.end.min(all_lanes);
        let (rows, inside, row) = match part.of.along_k {
            true => (lanes, part.k.0..part.k.1, depth),
            false => (part.k.0..part.k.1, lanes, all_lanes),
        };
        let Stored::Values(view) = part.of.stored else { return };
        let (size, start) = (view.dtype().bytes(), view.bytes().as_ptr());
        let at = |i: usize| rows.start + rows.len() * i / of;
        for r in at(share)..at(share + 1) {
            for byte in (inside.start * size..inside.end * size).step_by(64) {
                prefetch_l2(start.wrapping_add(r * row * size + byte));
            }
        }
    }

    /// The same of all units, on all threads.
    pub fn pack_whole<K: MicroKernel>(&self, dev: &Device, first: usize, out: &mut [Unit]) {
        let units = self.units::<K>();
        let len = self.width * units;
        if len == 0 {
            return;
        }
        let panels = out.len() / len;
        // As many tasks as keep all threads busy.
        let tasks = (size_of_val(out) / TASK_BYTES).max(dev.threads()).next_multiple_of(dev.threads());
        let least = SMALL_TASK_BYTES.div_ceil(len * size_of::<Unit>());
        let panels_per_task = panels.div_ceil(tasks).max(least);
        dev.for_each_chunk(out, len * panels_per_task, |task, panels| {
            self.pack::<K>(first + task * panels_per_task * self.width, 0..units, panels);
        });
    }
}

/// A lane beyond the matrix.
static ZEROS: [Unit; 16] = [0; 16];

/// Sixteen lanes of sixteen units.
#[repr(C, align(64))]
struct Block([[Unit; 16]; 16]);

/// Lanes to pack into some panels.
struct Part<'a> {
    slice: Slice<'a>,
    /// First lane.
    first: usize,
    /// Lanes of a panel.
    width: usize,
    /// Units of a lane that lie side by side.
    run: usize,
    /// The slice's own units in a panel.
    own: Range<usize>,
    /// Units of a panel.
    units: usize,
}

impl Part<'_> {
    fn pack<K: MicroKernel, S: Source>(self, source: S, panels: &mut [Unit]) {
        let run = self.run;
        let pack = Pack { part: self, source, panels, kernel: PhantomData::<K> };
        if run == 1 { pack_lanes(K::ISA, pack) } else { pack_runs(K::ISA, pack) }
    }
}

/// The same with what is read, and where it goes.
struct Pack<'a, K, S> {
    part: Part<'a>,
    source: S,
    panels: &'a mut [Unit],
    kernel: PhantomData<K>,
}

/// Where the values of stored rows are read.
trait Source: Copy {
    /// Some columns of a row, at most sixteen units, as kernel `K` wants them: where they are stored if they are sixteen
    /// units and need no conversion, otherwise in `staged`, zero beyond the columns.
    fn units<K: MicroKernel, const ROUND: bool>(
        self,
        row: usize,
        columns: Range<usize>,
        staged: &mut [Unit; 16],
    ) -> *const Unit;

    /// As many columns from `first` on as `to` has: a unit of each, of row `row`, and of the next if `pairs`.
    fn across<K: MicroKernel, const ROUND: bool>(
        self,
        row: usize,
        pairs: bool,
        first: usize,
        to: &mut [Unit],
    );
}

/// Values, as a tensor stores them.
#[derive(Clone, Copy)]
struct Values<'a, S> {
    values: &'a [S],
    columns: usize,
}

impl<S: Element> Source for Values<'_, S> {
    #[inline(always)]
    fn units<K: MicroKernel, const ROUND: bool>(
        self,
        row: usize,
        columns: Range<usize>,
        staged: &mut [Unit; 16],
    ) -> *const Unit {
        let from = &self.values[row * self.columns..][columns];
        prefetch(from.as_ptr().wrapping_add(AHEAD * 16 * K::UNIT));
        let as_stored = S::DTYPE == K::Packed::DTYPE && !(ROUND && S::DTYPE == DType::F32);
        if as_stored && from.len() == 16 * K::UNIT {
            return from.as_ptr().cast();
        }
        *staged = [0; 16];
        if K::UNIT == 1 {
            // SAFETY: this is compiled for `K::ISA` and runs because the device has it.
            unsafe { K::unit::<S, ROUND>(from, None, &mut staged[..from.len()]) };
        } else {
            convert_all::<S, K::Packed, ROUND>(from, as_packed(staged));
        }
        staged.as_ptr()
    }

    #[inline(always)]
    fn across<K: MicroKernel, const ROUND: bool>(
        self,
        row: usize,
        pairs: bool,
        first: usize,
        to: &mut [Unit],
    ) {
        let of = |row: usize| &self.values[row * self.columns + first..][..to.len()];
        let (low, high) = (of(row), pairs.then(|| of(row + 1)));
        // What the next `ROWS` units are made of: strips of rows are not what the CPU foresees itself.
        for row in row..=row + usize::from(pairs) {
            let strip = (row + ROWS * K::UNIT) * self.columns + first;
            for value in (strip..strip + to.len()).step_by(LINE / size_of::<S>()) {
                prefetch(self.values.as_ptr().wrapping_add(value));
            }
        }
        // SAFETY: this is compiled for `K::ISA` and runs because the device has it.
        unsafe { K::unit::<S, ROUND>(low, high, to) };
    }
}

/// Columns of a panel, for any kernel.
const WIDEST: usize = 64;

impl Source for Decoder<'_> {
    #[inline(always)]
    fn units<K: MicroKernel, const ROUND: bool>(
        self,
        row: usize,
        columns: Range<usize>,
        staged: &mut [Unit; 16],
    ) -> *const Unit {
        let mut values = [0.0; 32];
        let values = &mut values[..columns.len()];
        // SAFETY: this is compiled for `K::ISA` and runs because the device has it.
        unsafe { self.decode::<K::Lanes>(row, columns.start, values) };
        *staged = [0; 16];
        convert_all::<f32, K::Packed, ROUND>(values, as_packed(staged));
        staged.as_ptr()
    }

    #[inline(always)]
    fn across<K: MicroKernel, const ROUND: bool>(
        self,
        row: usize,
        pairs: bool,
        first: usize,
        to: &mut [Unit],
    ) {
        let mut values = [[0.0; WIDEST]; 2];
        let [low, high] = &mut values;
        let (low, high) = (&mut low[..to.len()], &mut high[..to.len()]);
        // SAFETY: as above.
        unsafe {
            self.decode::<K::Lanes>(row, first, low);
            if pairs {
                self.decode::<K::Lanes>(row + 1, first, high);
            }
            K::unit::<f32, ROUND>(low, pairs.then_some(&*high), to);
        }
    }
}

per_isa! {
    fn pack_lanes<K: MicroKernel, S: Source>(pack: Pack<'_, K, S>) {
        match (pack.part.slice.of.along_k, pack.part.slice.of.round) {
            (true, false) => pack.along_k::<false>(),
            (true, true) => pack.along_k::<true>(),
            (false, false) => pack.across_k::<false>(),
            (false, true) => pack.across_k::<true>(),
        }
    }

    /// As `pack_lanes`, runs of sixteen units of a lane side by side.
    fn pack_runs<K: MicroKernel, S: Source>(pack: Pack<'_, K, S>) {
        match (pack.part.slice.of.along_k, pack.part.slice.of.round) {
            (true, false) => pack.runs_along_k::<false>(),
            (true, true) => pack.runs_along_k::<true>(),
            (false, false) => pack.runs_across_k::<false>(),
            (false, true) => pack.runs_across_k::<true>(),
        }
    }
}

/// Blocks along `k` to prefetch ahead of the transposition.
const AHEAD: usize = 4;
/// Units that are packed for one panel before the next: rows are read across all panels of a task.
const ROWS: usize = 8;

impl<K: MicroKernel, S: Source> Pack<'_, K, S> {
    /// Lanes lie in rows: a transposition, sixteen lanes by sixteen units at a time.
    #[inline(always)]
    fn along_k<const ROUND: bool>(mut self) {
        let panels = std::mem::take(&mut self.panels);
        let mut staged = Block([[0; 16]; 16]);
        let (width, lanes) = (self.part.width, self.part.slice.of.lanes());
        for (first, panel) in
            (self.part.first..).step_by(width).zip(panels.chunks_exact_mut(width * self.part.units))
        {
            let panel = &mut panel[self.part.own.start * width..self.part.own.end * width];
            for (i, out) in panel.chunks_mut(16 * width).enumerate() {
                let k0 = self.part.slice.k.1.min(self.part.slice.k.0 + i * 16 * K::UNIT);
                let k1 = self.part.slice.k.1.min(k0 + 16 * K::UNIT);
                for group in (0..width).step_by(16) {
                    let wanted = first + group..(first + width.min(group + 16)).min(lanes);
                    let group_lanes = 16.min(width - group);
                    let mut rows = [ZEROS.as_ptr(); 16];
                    self.rows::<ROUND>(wanted, k0..k1, &mut staged, &mut rows);
                    // SAFETY: this is compiled for `K::ISA` and runs because the device has it; `rows` are good for
                    // sixteen units, and whatever is written to holds sixteen units of its stride.
                    unsafe {
                        if out.len() == 16 * width {
                            K::transpose(&rows, out[group..].as_mut_ptr(), group_lanes, width);
                            continue;
                        }
                        let mut turned = Block([[0; 16]; 16]);
                        K::transpose(&rows, turned.0.as_mut_ptr().cast(), 16, 16);
                        for (unit, from) in out.chunks_exact_mut(width).zip(&turned.0) {
                            unit[group..][..group_lanes].copy_from_slice(&from[..group_lanes]);
                        }
                    }
                }
            }
        }
    }

    /// Where sixteen units of up to sixteen lanes are read: where they are stored if they are whole and need no
    /// conversion, otherwise in `staged`, zero beyond the matrix. Lanes beyond it keep what `rows` has. (Returned, the
    /// array would be copied by registers that wait for each of its pointers to be stored.)
    #[inline(always)]
    fn rows<const ROUND: bool>(
        &self,
        lanes: Range<usize>,
        k: Range<usize>,
        staged: &mut Block,
        rows: &mut [*const Unit; 16],
    ) {
        for ((lane, to), row) in lanes.zip(&mut staged.0).zip(rows) {
            *row = self.source.units::<K, ROUND>(lane, k.clone(), to);
        }
    }

    /// Lanes lie side by side in each row `k`: copies, with the rows of a unit interleaved.
    #[inline(always)]
    fn across_k<const ROUND: bool>(mut self) {
        let panels = std::mem::take(&mut self.panels);
        let width = self.part.width;
        for run in self.part.own.clone().step_by(ROWS) {
            let all =
                (self.part.first..).step_by(width).zip(panels.chunks_exact_mut(width * self.part.units));
            for (first, panel) in all {
                for unit in run..self.part.own.end.min(run + ROWS) {
                    self.unit::<ROUND>(unit, first, &mut panel[unit * width..][..width]);
                }
            }
        }
    }

    /// Lanes lie in rows: copies of runs.
    #[inline(always)]
    fn runs_along_k<const ROUND: bool>(mut self) {
        let panels = std::mem::take(&mut self.panels);
        let mut staged = Block([[0; 16]; 16]);
        let (width, lanes) = (self.part.width, self.part.slice.of.lanes());
        for (first, panel) in
            (self.part.first..).step_by(width).zip(panels.chunks_exact_mut(width * self.part.units))
        {
            let panel = &mut panel[self.part.own.start * width..self.part.own.end * width];
            for (i, out) in panel.chunks_exact_mut(16 * width).enumerate() {
                let k0 = self.part.slice.k.1.min(self.part.slice.k.0 + i * 16 * K::UNIT);
                let k1 = self.part.slice.k.1.min(k0 + 16 * K::UNIT);
                for (group, out) in out.chunks_mut(16 * 16).enumerate() {
                    let wanted = first + group * 16..(first + group * 16 + out.len() / 16).min(lanes);
                    let mut rows = [ZEROS.as_ptr(); 16];
                    self.rows::<ROUND>(wanted, k0..k1, &mut staged, &mut rows);
                    for (row, out) in rows.iter().zip(out.chunks_exact_mut(16)) {
                        // SAFETY: rows are good for sixteen units, which need no alignment.
                        let row = unsafe { row.cast::<[Unit; 16]>().read_unaligned() };
                        out.copy_from_slice(&row);
                    }
                }
            }
        }
    }

    /// Lanes lie side by side in each row `k`: sixteen units of sixteen lanes are interleaved, then transposed.
    #[inline(always)]
    fn runs_across_k<const ROUND: bool>(mut self) {
        let panels = std::mem::take(&mut self.panels);
        let mut staged = Block([[0; 16]; 16]);
        let width = self.part.width;
        for run in self.part.own.clone().step_by(16) {
            let all =
                (self.part.first..).step_by(width).zip(panels.chunks_exact_mut(width * self.part.units));
            for (first, panel) in all {
                let panel = &mut panel[run * width..][..16 * width];
                for (group, out) in panel.chunks_mut(16 * 16).enumerate() {
                    let group_lanes = out.len() / 16;
                    for (i, unit) in staged.0.iter_mut().enumerate() {
                        self.unit::<ROUND>(run + i, first + group * 16, &mut unit[..group_lanes]);
                    }
                    let rows: [*const Unit; 16] = std::array::from_fn(|i| staged.0[i].as_ptr());
                    let mut turned = Block([[0; 16]; 16]);
                    // SAFETY: this is compiled for `K::ISA` and runs because the device has it; both are sixteen
                    // times sixteen units.
                    unsafe { K::transpose(&rows, turned.0.as_mut_ptr().cast(), 16, 16) };
                    for (out, lane) in out.chunks_exact_mut(16).zip(&turned.0) {
                        out.copy_from_slice(lane);
                    }
                }
            }
        }
    }

    /// A unit of a panel, for as many lanes from `first` on as `to` has; zero beyond the matrix.
    #[inline(always)]
    fn unit<const ROUND: bool>(&self, unit: usize, first: usize, to: &mut [Unit]) {
        let (lanes, k) =
            (self.part.slice.of.lanes(), self.part.slice.k.0 + (unit - self.part.own.start) * K::UNIT);
        let (there, to_len) = (lanes.saturating_sub(first), to.len());
        if k >= self.part.slice.k.1 || there < to.len() {
            to.fill(0);
        }
        if k >= self.part.slice.k.1 || there == 0 {
            return;
        }
        let to = &mut to[..there.min(to_len)];
        let pairs = K::UNIT == 2 && k + 1 < self.part.slice.k.1;
        self.source.across::<K, ROUND>(k, pairs, first, to);
    }
}

/// [`MicroKernel::unit`] for any kernel of values packed as `P`.
#[inline(always)]
pub(super) fn unit<S: Element, P: Element, const ROUND: bool>(
    low: &[S],
    high: Option<&[S]>,
    to: &mut [Unit],
) {
    let one = |x: S| bits(convert::<S, P, ROUND>(x));
    match high {
        None => to.iter_mut().zip(low).for_each(|(to, x)| *to = one(*x)),
        Some(high) => {
            for ((to, x), y) in to.iter_mut().zip(low).zip(high) {
                *to = one(*x) | one(*y) << 16;
            }
        }
    }
}

/// The bits of an `f32`, or those of a `bf16` in the lower half.
#[inline(always)]
fn bits<P: Element>(x: P) -> Unit {
    if size_of::<P>() == 4 { x.to_f32().to_bits() } else { x.to_f32().to_bits() >> 16 }
}

/// Units as the values that they hold.
#[inline(always)]
fn as_packed<P: Element>(units: &mut [Unit; 16]) -> &mut [P] {
    let len = size_of_val(units) / size_of::<P>();
    // SAFETY: plain old data of a smaller or the same alignment; every bit pattern of an `Element` is valid.
    unsafe { std::slice::from_raw_parts_mut(units.as_mut_ptr().cast(), len) }
}

#[inline(always)]
fn convert_all<S: Element, P: Element, const ROUND: bool>(from: &[S], to: &mut [P]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = convert::<S, P, ROUND>(*from);
    }
}

/// One value as a kernel wants it, through `bf16` if `ROUND`.
#[inline(always)]
fn convert<S: Element, P: Element, const ROUND: bool>(x: S) -> P {
    if S::DTYPE == P::DTYPE && !(ROUND && S::DTYPE == DType::F32) {
        // SAFETY: the types are the same, and the value is as wanted already.
        unsafe { std::mem::transmute_copy(&x) }
    } else if ROUND && S::DTYPE == DType::F32 && P::DTYPE == DType::F32 {
        P::from_f32(<bf16 as Element>::from_f32(x.to_f32()).to_f32())
    } else {
        // To `bf16`, which rounds, or widened.
        P::from_f32(x.to_f32())
    }
}
