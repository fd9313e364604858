//! Weights in the host's memory as slices, and sums over the columns of a matrix.
//!
//! For optimizers that look at whole matrices: these run on a CPU.

use sft_kernels::Device;
use sft_kernels::halves::MasterWeight;
use sft_model::parameter::{ForUpdate, Parameter};

/// Elements that one task handles.
pub(super) const CHUNK: usize = 8192;

/// Columns that one task sums.
const COLUMNS: usize = 256;

/// The weight and its gradient; `None` if it is frozen.
///
/// # Panics
/// If they are elsewhere: such optimizers are refused there.
pub(super) fn weight_and_gradient(parameter: &mut Parameter) -> Option<(&mut [f32], &[f32])> {
    let ForUpdate { weight, gradient } = parameter.for_update()?;
    let MasterWeight::Whole(weight) = weight else { panic!("an optimizer of the CPU is refused on a GPU") };
    Some((weight.as_mut_slice(), gradient.as_slice()))
}

/// Calls `f(to[j], Σᵢ term(matrix[i][j]))` for every column.
pub(super) fn fold_columns(
    dev: &Device,
    matrix: &[f32],
    columns: usize,
    term: impl Fn(f32) -> f32 + Send + Sync,
    to: &mut [f32],
    f: impl Fn(&mut f32, f64) + Send + Sync,
) {
    dev.for_each_chunk(to, COLUMNS, |i, to| {
        let start = i * COLUMNS;
        let mut sums = [0.0f64; COLUMNS];
        for row in matrix.chunks(columns) {
            sums.iter_mut()
                .zip(&row[start..start + to.len()])
                .for_each(|(sum, x)| *sum += f64::from(term(*x)));
        }
        to.iter_mut().zip(sums).for_each(|(to, sum)| f(to, sum));
    });
}

/// Σ x² in f64, over fixed chunks.
pub(super) fn sum_of_squares(dev: &Device, x: &[f32]) -> f64 {
    let mut sums = vec![0.0f64; x.len().div_ceil(CHUNK)];
    dev.for_each_chunk(&mut sums, 1, |i, sum| {
        let chunk = &x[i * CHUNK..x.len().min((i + 1) * CHUNK)];
        sum[0] = chunk.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    });
    sums.iter().sum()
}
