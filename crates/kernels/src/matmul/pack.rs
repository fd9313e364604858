//! Copies an operand into the panels that a kernel reads.

use half::bf16;

use super::kernel::{Block, MicroKernel, Unit};
use crate::{DType, Device, Element, View, with_dtype};

/// `op(A)` by rows or `op(B)` by columns: lanes of values along `k`.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    /// The matrix as stored.
    pub view: View<'a>,
    /// Whether the values of a lane lie side by side: `A` stored straight, `B` stored transposed.
    pub along_k: bool,
    /// Whether values are rounded to `bf16` first.
    pub round: bool,
}

impl Operand<'_> {
    /// Rows of `op(A)` or columns of `op(B)`.
    pub fn lanes(&self) -> usize {
        self.view.dim(usize::from(!self.along_k))
    }

    /// Values of a lane: `K`.
    pub fn depth(&self) -> usize {
        self.view.dim(usize::from(self.along_k))
    }
}

/// A task of at least so many bytes hides what it costs to hand it to a thread.
const TASK_BYTES: usize = 64 * 1024;

/// Packs the lanes from `first` on into `out`, whole panels of `width` lanes, on all threads.
pub(super) fn pack_panels<K: MicroKernel>(
    dev: &Device,
    from: Operand<'_>,
    width: usize,
    first: usize,
    out: &mut [Unit],
) {
    let len = width * from.depth().div_ceil(K::UNIT);
    if len == 0 {
        return;
    }
    let panels_per_task = TASK_BYTES.div_ceil(len * size_of::<Unit>());
    dev.for_each_chunk(out, len * panels_per_task, |task, panels| {
        let first = first + task * panels_per_task * width;
        with_dtype!(from.view.dtype(), S => {
            let source = Source {
                values: from.view.as_slice::<S>(),
                row: from.view.dim(1),
                depth: from.depth(),
                lanes: from.lanes(),
            };
            K::ISA.run(|| match (from.along_k, from.round) {
                (true, false) => along_k::<K, S, false>(source, first, width, panels),
                (true, true) => along_k::<K, S, true>(source, first, width, panels),
                (false, false) => across_k::<K, S, false>(source, first, width, panels),
                (false, true) => across_k::<K, S, true>(source, first, width, panels),
            });
        });
    });
}

/// The stored values.
#[derive(Clone, Copy)]
struct Source<'a, S> {
    values: &'a [S],
    /// Length of a stored row.
    row: usize,
    depth: usize,
    lanes: usize,
}

/// Lanes lie in rows: a transposition, sixteen lanes by sixteen units at a time.
#[inline(always)]
fn along_k<K: MicroKernel, S: Element, const ROUND: bool>(
    source: Source<'_, S>,
    first: usize,
    width: usize,
    panels: &mut [Unit],
) {
    let len = width * source.depth.div_ceil(K::UNIT);
    for (p, panel) in panels.chunks_exact_mut(len).enumerate() {
        let first = first + p * width;
        for (block16, out) in panel.chunks_mut(16 * width).enumerate() {
            let k0 = block16 * 16 * K::UNIT;
            let k1 = source.depth.min(k0 + 16 * K::UNIT);
            for group in (0..width).step_by(16) {
                let mut block = Block([[0; 16]; 16]);
                let wanted = first + group..(first + width.min(group + 16)).min(source.lanes);
                for (lane, row) in wanted.zip(&mut block.0) {
                    let from = &source.values[lane * source.row..][k0..k1];
                    let to = as_packed::<K::Packed>(row);
                    if from.len() == to.len() {
                        convert_all::<S, K::Packed, ROUND>(from, to);
                    } else {
                        convert_all::<S, K::Packed, ROUND>(from, &mut to[..from.len()]);
                    }
                }
                // SAFETY: this is compiled for `K::ISA` and runs because the device has it.
                unsafe { K::transpose(&mut block) };
                if width - group >= 16 {
                    for (unit, from) in out.chunks_exact_mut(width).zip(&block.0) {
                        unit[group..][..16].copy_from_slice(from);
                    }
                } else {
                    for (unit, from) in out.chunks_exact_mut(width).zip(&block.0) {
                        unit[group..].copy_from_slice(&from[..width % 16]);
                    }
                }
            }
        }
    }
}

/// Units that are packed for one panel before the next: rows are read in runs of all panels of a task.
const RUN: usize = 8;

/// Lanes lie side by side in each row `k`: copies, with the rows of a unit interleaved.
#[inline(always)]
fn across_k<K: MicroKernel, S: Element, const ROUND: bool>(
    source: Source<'_, S>,
    first: usize,
    width: usize,
    panels: &mut [Unit],
) {
    let units = source.depth.div_ceil(K::UNIT);
    for run in (0..units).step_by(RUN) {
        for (p, panel) in panels.chunks_exact_mut(width * units).enumerate() {
            let first = first + p * width;
            let lanes = width.min(source.lanes - first);
            for u in run..units.min(run + RUN) {
                let unit = &mut panel[u * width..][..width];
                if lanes < width {
                    unit.fill(0);
                    fill_unit::<K, S, ROUND>(source, u, first, &mut unit[..lanes]);
                } else {
                    fill_unit::<K, S, ROUND>(source, u, first, unit);
                }
            }
        }
    }
}

/// Unit `u` of the lanes from `first` on.
#[inline(always)]
fn fill_unit<K: MicroKernel, S: Element, const ROUND: bool>(
    source: Source<'_, S>,
    u: usize,
    first: usize,
    unit: &mut [Unit],
) {
    let lanes = unit.len();
    let row = |k: usize| &source.values[k * source.row + first..][..lanes];
    let k = u * K::UNIT;
    let low = row(k);
    if K::UNIT == 1 {
        for (unit, x) in unit.iter_mut().zip(low) {
            *unit = bits(convert::<S, K::Packed, ROUND>(*x));
        }
    } else if k + 1 < source.depth {
        for ((unit, x), y) in unit.iter_mut().zip(low).zip(row(k + 1)) {
            let (x, y) = (convert::<S, K::Packed, ROUND>(*x), convert::<S, K::Packed, ROUND>(*y));
            *unit = bits(x) | bits(y) << 16;
        }
    } else {
        for (unit, x) in unit.iter_mut().zip(low) {
            *unit = bits(convert::<S, K::Packed, ROUND>(*x));
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
