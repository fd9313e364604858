//! The definition of a matrix product: plain loops, generic over `f32` and `f64`.

use std::ops::{AddAssign, Mul};

use half::bf16;

use super::{Matmul, Matrix};
use crate::{DType, Element, View};

/// `op(X)[i, j]` for stored `X`, rounded to `bf16` first if `round`.
fn at(x: &[f32], cols: usize, transposed: bool, round: bool, i: usize, j: usize) -> f32 {
    let value = if transposed { x[j * cols + i] } else { x[i * cols + j] };
    if round { Element::to_f32(<bf16 as Element>::from_f32(value)) } else { value }
}

/// What `C` becomes, before it is rounded to its type: `alpha·Σ op(A)·op(B) (+ C) (+ bias)`.
pub(super) fn product<T>(args: &Matmul<'_>) -> Vec<T>
where
    T: From<f32> + Copy + AddAssign + Mul<Output = T>,
{
    let (m, n, _) = args.sizes();
    let Matrix::Values(b) = args.b else { panic!("the reference multiplies values") };
    let pairs: Vec<_> = std::iter::once((args.a, b)).chain(args.second).collect();
    let round = pairs.iter().any(|(a, b)| a.dtype() != DType::F32 || b.dtype() != DType::F32);
    let c = args.c.as_view().to_f32_vec();
    let values: Vec<_> = pairs.iter().map(|(a, b)| (a.to_f32_vec(), b.to_f32_vec())).collect();
    let bias = args.bias.map(View::to_f32_vec);
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let mut sum = T::from(0.0);
            for ((a, b), (a_values, b_values)) in pairs.iter().zip(&values) {
                for kk in 0..a.dim(usize::from(!args.a_transposed)) {
                    let x = at(a_values, a.dim(1), args.a_transposed, round, i, kk);
                    let y = at(b_values, b.dim(1), args.b_transposed, round, kk, j);
                    sum += T::from(x) * T::from(y);
                }
            }
            let mut value = T::from(args.alpha) * sum;
            if args.accumulate {
                value += T::from(c[i * n + j]);
            }
            if let Some(bias) = &bias {
                value += T::from(bias[j]);
            }
            out.push(value);
        }
    }
    out
}
