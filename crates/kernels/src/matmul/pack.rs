//! Copies an operand into the panels that a kernel reads.

use half::bf16;

use super::kernel::MicroKernel;
use crate::{Device, Element, View, with_dtype};

/// `op(A)` by rows or `op(B)` by columns: `lanes` vectors of `depth` values along `k`.
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
    /// Vectors along `k`.
    pub fn lanes(&self) -> usize {
        self.view.dim(usize::from(!self.along_k))
    }

    /// Values of a lane.
    pub fn depth(&self) -> usize {
        self.view.dim(usize::from(self.along_k))
    }
}

/// Values of a panel of `width` lanes: its depth is filled up to whole units.
pub(super) fn panel_len<K: MicroKernel>(width: usize, depth: usize) -> usize {
    width * depth.next_multiple_of(K::K_UNIT)
}

/// Packs the lanes from `first` on into `out`, whole panels of `width` lanes, on all threads.
pub(super) fn pack_panels<K: MicroKernel>(
    dev: &Device,
    from: Operand<'_>,
    width: usize,
    first: usize,
    out: &mut [K::Packed],
) {
    let len = panel_len::<K>(width, from.depth());
    if len == 0 {
        return;
    }
    let bytes = len * size_of::<K::Packed>();
    // A task of 64 KiB or more hides what it costs to hand it to a thread.
    let panels_per_task = (64 * 1024usize).div_ceil(bytes);
    dev.for_each_chunk(out, len * panels_per_task, |task, panels| {
        for (i, panel) in panels.chunks_exact_mut(len).enumerate() {
            let lane = first + (task * panels_per_task + i) * width;
            with_dtype!(from.view.dtype(), S => {
                let source = Source {
                    values: from.view.as_slice::<S>(),
                    row: from.view.dim(1),
                };
                pack_panel::<K, S>(source, from, width, lane, panel);
            });
        }
    });
}

/// The stored values and the length of a stored row.
#[derive(Clone, Copy)]
struct Source<'a, S> {
    values: &'a [S],
    row: usize,
}

fn pack_panel<K: MicroKernel, S: Element>(
    source: Source<'_, S>,
    from: Operand<'_>,
    width: usize,
    lane: usize,
    panel: &mut [K::Packed],
) {
    let lanes = width.min(from.lanes() - lane);
    K::ISA.run(|| match (from.along_k, from.round) {
        (true, false) => along_k::<K, S, false>(source, lane, lanes, width, panel),
        (true, true) => along_k::<K, S, true>(source, lane, lanes, width, panel),
        (false, false) => across_k::<K, S, false>(source, lane, lanes, width, panel),
        (false, true) => across_k::<K, S, true>(source, lane, lanes, width, panel),
    });
}

/// Units that are packed lane by lane before the next ones, so that what is written stays in the cache.
const UNITS: usize = 64;

/// Lanes lie in rows: a transposition, a block of units at a time.
#[inline(always)]
fn along_k<K: MicroKernel, S: Element, const ROUND: bool>(
    source: Source<'_, S>,
    first: usize,
    lanes: usize,
    width: usize,
    panel: &mut [K::Packed],
) {
    let depth = source.row;
    for (block, out) in panel.chunks_mut(UNITS * width * K::K_UNIT).enumerate() {
        let k0 = block * UNITS * K::K_UNIT;
        if lanes < width {
            out.fill(K::Packed::default());
        }
        for lane in 0..lanes {
            let row = &source.values[(first + lane) * depth..][..depth][k0..];
            let units = out.chunks_exact_mut(width * K::K_UNIT);
            let values = row.chunks_exact(K::K_UNIT);
            let rest = values.remainder();
            let whole = values.len();
            for (unit, values) in units.zip(values) {
                for j in 0..K::K_UNIT {
                    unit[lane * K::K_UNIT + j] = convert::<S, K::Packed, ROUND>(values[j]);
                }
            }
            if !rest.is_empty() && whole < UNITS {
                let unit = &mut out[whole * width * K::K_UNIT + lane * K::K_UNIT..][..K::K_UNIT];
                unit.fill(K::Packed::default());
                for (to, from) in unit.iter_mut().zip(rest) {
                    *to = convert::<S, K::Packed, ROUND>(*from);
                }
            }
        }
    }
}

/// Lanes lie side by side in each row `k`: copies, with the rows of a unit interleaved.
#[inline(always)]
fn across_k<K: MicroKernel, S: Element, const ROUND: bool>(
    source: Source<'_, S>,
    first: usize,
    lanes: usize,
    width: usize,
    panel: &mut [K::Packed],
) {
    if source.row == 0 {
        return;
    }
    let depth = source.values.len() / source.row;
    for (u, unit) in panel.chunks_exact_mut(width * K::K_UNIT).enumerate() {
        for j in 0..K::K_UNIT {
            let k = u * K::K_UNIT + j;
            if lanes < width || k >= depth {
                unit.iter_mut().skip(j).step_by(K::K_UNIT).for_each(|x| *x = K::Packed::default());
            }
            if k < depth {
                let row = &source.values[k * source.row + first..][..lanes];
                for (to, from) in unit.iter_mut().skip(j).step_by(K::K_UNIT).zip(row) {
                    *to = convert::<S, K::Packed, ROUND>(*from);
                }
            }
        }
    }
}

/// One value as a kernel wants it, through `bf16` if `ROUND`.
#[inline(always)]
fn convert<S: Element, P: Element, const ROUND: bool>(x: S) -> P {
    if ROUND {
        P::from_f32(<bf16 as Element>::from_f32(x.to_f32()).to_f32())
    } else {
        P::from_f32(x.to_f32())
    }
}
