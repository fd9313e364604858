//! How a GPU shares the rows of a norm among threads, and the gradient of a norm's weight there: the host's side of
//! `norm_rows.cuh`, which [`crate::rms_norm`] and [`crate::layer_norm`] have in common.

use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
use crate::{DType, View, ViewMut, rows};

/// 16-byte vectors of a row that a thread keeps.
const KEPT: usize = 2;
/// Threads of a block that has several rows.
const THREADS: usize = 128;
const WARP: usize = 32;
const VECTOR_BYTES: u64 = 16;
const LARGEST_BLOCK: usize = 1024;

/// Threads of a row, and the launch: a row has a part of a warp if that can keep it, else a block.
pub(crate) fn teams(rows: usize, columns: usize, dtype: DType) -> (u32, Grid) {
    let lanes = columns.div_ceil(per_vector(dtype) * KEPT).max(1);
    let (lanes, grid) = if lanes <= WARP {
        let lanes = lanes.next_power_of_two();
        (lanes, Grid::new(rows.div_ceil(THREADS / lanes), THREADS))
    } else {
        let lanes = lanes.next_multiple_of(WARP).min(LARGEST_BLOCK);
        (lanes, Grid::new(rows, lanes))
    };
    (lanes as u32, grid)
}

/// Whether teams of so many threads keep their rows in registers, which vectors at these addresses or none allow.
pub(crate) fn keeps(columns: usize, lanes: u32, dtype: DType, addresses: &[DevicePtr]) -> bool {
    let vector = per_vector(dtype);
    let fits = columns.is_multiple_of(vector) && columns <= KEPT * vector * lanes as usize;
    fits && addresses.iter().all(|start| start.address().is_multiple_of(VECTOR_BYTES))
}

/// Elements in 16 bytes.
fn per_vector(dtype: DType) -> usize {
    16 / dtype.bytes()
}

/// Threads of a block of the first step.
const WEIGHT_THREADS: usize = 256;
/// Blocks of the first step, about: enough for the largest card, whatever the card, so that sums have one order.
const WEIGHT_BLOCKS: usize = 1024;

#[derive(Clone, Copy)]
#[repr(C)]
struct NormWeightParts {
    dy: DevicePtr,
    x: DevicePtr,
    statistics: DevicePtr,
    parts: DevicePtr,
    rows: u64,
    rows_per_part: u64,
    columns: u32,
    groups: u32,
    lanes: u32,
}
// SAFETY: `NormWeightParts` of norm_rows.cuh.
unsafe impl Params for NormWeightParts {}

/// Adds to `dw` (f32 [C] or [G, C]) for dy and x [rows, C] and so many statistics of each row, by a norm's kernel.
pub(crate) fn backward_weight(
    cuda: &Cuda,
    (source, kernel): (&'static Source, &'static str),
    dy: View<'_>,
    (x, statistics): (View<'_>, View<'_>),
    (dw, groups): (ViewMut<'_>, usize),
) {
    let columns = dw.elements();
    let rows = dy.elements() * groups / columns.max(1);
    let wide_rows = rows.div_ceil(groups.max(1));
    if wide_rows == 0 {
        return;
    }
    let lanes = columns.div_ceil(per_vector(dy.dtype())).next_power_of_two().min(WARP);
    let tiles = columns.div_ceil(lanes * per_vector(dy.dtype()));
    let parts = (WEIGHT_BLOCKS / tiles).clamp(1, wide_rows.div_ceil(WEIGHT_THREADS / lanes));
    let rows_per_part = wide_rows.div_ceil(parts);
    let count = wide_rows.div_ceil(rows_per_part);
    let sums = cuda.scratch(count * columns * size_of::<f32>());
    let mut grid = Grid::new(tiles, WEIGHT_THREADS);
    grid.blocks[1] = count as u32;
    let params = NormWeightParts {
        dy: dy.device(),
        x: x.device(),
        statistics: statistics.device(),
        parts: sums.start(),
        rows: rows as u64,
        rows_per_part: rows_per_part as u64,
        columns: columns as u32,
        groups: groups as u32,
        lanes: lanes as u32,
    };
    cuda.launch(source, kernel, &[dy.dtype()], grid, params);
    rows::add_parts(cuda, sums.start(), count, dw);
}
