//! How a GPU shares the rows of a norm among threads, and the gradient of a norm's weight there: the host's side of
//! `norm_rows.cuh`, which [`crate::rms_norm`] and [`crate::layer_norm`] have in common.

use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
use crate::{DType, View, ViewMut};

/// 16-byte vectors of a row that a thread keeps.
const KEPT: usize = 2;
/// Threads of a block that has several rows.
const THREADS: usize = 128;
const WARP: usize = 32;
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

/// Elements in 16 bytes.
fn per_vector(dtype: DType) -> usize {
    16 / dtype.bytes()
}

/// Threads of a block of the first step.
const WEIGHT_THREADS: usize = 256;
/// Blocks of the first step, about: enough for the largest card, whatever the card, so that sums have one order.
const WEIGHT_BLOCKS: usize = 1024;
/// Columns of a block of the second step, which has 1024 threads.
const COLUMNS_PER_SUM: usize = 32;

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

#[derive(Clone, Copy)]
#[repr(C)]
struct NormWeightSum {
    parts: DevicePtr,
    dw: DevicePtr,
    columns: u32,
    count: u32,
}
// SAFETY: `NormWeightSum` of norm_rows.cuh.
unsafe impl Params for NormWeightSum {}

/// The entry points of a norm.
pub(crate) struct WeightKernels {
    pub source: &'static Source,
    pub parts: &'static str,
    pub sum: &'static str,
}

/// Adds to `dw` (f32 [C] or [G, C]) for dy and x [rows, C] and so many statistics of each row.
pub(crate) fn backward_weight(
    cuda: &Cuda,
    kernels: &WeightKernels,
    dy: View<'_>,
    (x, statistics): (View<'_>, View<'_>),
    (mut dw, groups): (ViewMut<'_>, usize),
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
    cuda.launch(kernels.source, kernels.parts, &[dy.dtype()], grid, params);
    let params =
        NormWeightSum { parts: sums.start(), dw: dw.device(), columns: columns as u32, count: count as u32 };
    let grid = Grid::new(columns.div_ceil(COLUMNS_PER_SUM), LARGEST_BLOCK);
    cuda.launch(kernels.source, kernels.sum, &[], grid, params);
}
