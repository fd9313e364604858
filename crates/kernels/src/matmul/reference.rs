//! The definition of a matrix product: plain loops, generic over `f32` and `f64`.

use std::ops::{AddAssign, Mul};

use half::bf16;

use super::Matmul;
use crate::{DType, Element, View};

/// `op(X)[i, j]` for stored `X`, rounded to `bf16` first if `round`.
fn at(x: &[f32], cols: usize, transposed: bool, round: bool, i: usize, j: usize) -> f32 {
    let value = if transposed { x[j * cols + i] } else { x[i * cols + j] };
    if round { Element::to_f32(<bf16 as Element>::from_f32(value)) } else { value }
}

/// What `C` becomes, before it is rounded to its type: `alpha·op(A)·op(B) (+ C) (+ bias)`.
pub(super) fn product<T>(args: &Matmul<'_>) -> Vec<T>
where
    T: From<f32> + Copy + AddAssign + Mul<Output = T>,
{
    let (m, n, k) = args.sizes();
    let round = args.a.dtype() != DType::F32 || args.b.dtype() != DType::F32;
    let (a, b, c) = (args.a.to_f32_vec(), args.b.to_f32_vec(), args.c.as_view().to_f32_vec());
    let bias = args.bias.map(View::to_f32_vec);
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let mut sum = T::from(0.0);
            for kk in 0..k {
                let x = at(&a, args.a.dim(1), args.a_transposed, round, i, kk);
                let y = at(&b, args.b.dim(1), args.b_transposed, round, kk, j);
                sum += T::from(x) * T::from(y);
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
