//! The same on a GPU.

use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
use crate::{DType, View, ViewMut};

pub(crate) static SOURCE: Source = Source::new("experts", include_str!("experts.cu"));

const THREADS: usize = 256;

/// Threads of a block that has one row of so many columns.
fn threads(columns: usize, dtype: DType) -> usize {
    columns.div_ceil(16 / dtype.bytes()).next_multiple_of(32).clamp(32, THREADS)
}

#[derive(Clone, Copy)]
#[repr(C)]
struct ExpertsCombine {
    x: DevicePtr,
    y: DevicePtr,
    rows: DevicePtr,
    weights: DevicePtr,
    columns: u64,
    top_k: u32,
    accumulate: u32,
}
// SAFETY: the struct of the kernel; shapes were checked, and rows are those of a grouping.
unsafe impl Params for ExpertsCombine {}

pub(super) fn combine(
    cuda: &Cuda,
    rows: &[u32],
    x: View<'_>,
    weights: Option<View<'_>>,
    mut y: ViewMut<'_>,
    accumulate: bool,
) {
    let (tokens, columns, dtype) = (y.dim(0), y.dim(1), y.dtype());
    let params = ExpertsCombine {
        x: x.device(),
        y: y.device(),
        rows: cuda.indices(rows),
        weights: weights.map_or(DevicePtr::NULL, |weights| weights.device()),
        columns: columns as u64,
        top_k: (rows.len() / tokens) as u32,
        accumulate: u32::from(accumulate),
    };
    cuda.launch(&SOURCE, "experts_combine", &[dtype], Grid::new(tokens, threads(columns, dtype)), params);
}

#[derive(Clone, Copy)]
#[repr(C)]
struct ExpertsWeigh {
    a: DevicePtr,
    z: DevicePtr,
    slots: DevicePtr,
    weights: DevicePtr,
    dweights: DevicePtr,
    columns: u64,
}
// SAFETY: the struct of the kernel; shapes were checked, and slots are those of a grouping.
unsafe impl Params for ExpertsWeigh {}

fn run_weigh(cuda: &Cuda, (rows, dtype): (usize, DType), params: ExpertsWeigh) {
    let grid = Grid::new(rows, threads(params.columns as usize, dtype));
    cuda.launch(&SOURCE, "experts_weigh", &[dtype], grid, params);
}

pub(super) fn weigh(
    cuda: &Cuda,
    slots: &[u32],
    a: View<'_>,
    mut z: ViewMut<'_>,
    weights: View<'_>,
    mut dweights: ViewMut<'_>,
) {
    let params = ExpertsWeigh {
        a: a.device(),
        z: z.device(),
        slots: cuda.indices(slots),
        weights: weights.device(),
        dweights: dweights.device(),
        columns: z.dim(1) as u64,
    };
    run_weigh(cuda, (z.dim(0), z.dtype()), params);
}

pub(super) fn scale(cuda: &Cuda, slots: &[u32], weights: View<'_>, mut x: ViewMut<'_>) {
    let params = ExpertsWeigh {
        a: DevicePtr::NULL,
        z: x.device(),
        slots: cuda.indices(slots),
        weights: weights.device(),
        dweights: DevicePtr::NULL,
        columns: x.dim(1) as u64,
    };
    run_weigh(cuda, (x.dim(0), x.dtype()), params);
}

#[derive(Clone, Copy)]
#[repr(C)]
struct ExpertsWeighBias {
    bias: DevicePtr,
    dy: DevicePtr,
    slots: DevicePtr,
    experts: DevicePtr,
    dweights: DevicePtr,
    columns: u64,
}
// SAFETY: the struct of the kernel; shapes were checked, and slots and experts are those of a grouping.
unsafe impl Params for ExpertsWeighBias {}

pub(super) fn weigh_bias(
    cuda: &Cuda,
    [slots, experts]: [&[u32]; 2],
    bias: View<'_>,
    dy: View<'_>,
    mut dweights: ViewMut<'_>,
) {
    let params = ExpertsWeighBias {
        bias: bias.device(),
        dy: dy.device(),
        slots: cuda.indices(slots),
        experts: cuda.indices(experts),
        dweights: dweights.device(),
        columns: dy.dim(1) as u64,
    };
    let grid = Grid::new(dy.dim(0), threads(dy.dim(1), dy.dtype()));
    cuda.launch(&SOURCE, "experts_weigh_bias", &[bias.dtype(), dy.dtype()], grid, params);
}
