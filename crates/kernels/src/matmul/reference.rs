//! The definition of a matrix product: plain loops, generic over `f32` and `f64`.

use half::bf16;

use super::Matmul;
use crate::{DType, Device, Element, View, with_dtype};

/// `op(X)` as a dense row-major matrix, rounded to `bf16` first if `round`.
fn dense(x: View<'_>, transposed: bool, round: bool) -> Vec<f32> {
    let mut values = x.to_f32_vec();
    if round {
        values
            .iter_mut()
            .for_each(|v| *v = Element::to_f32(<bf16 as Element>::from_f32(*v)));
    }
    if !transposed {
        return values;
    }
    let (rows, cols) = (x.dim(0), x.dim(1));
    (0..rows * cols)
        .map(|i| values[i % rows * cols + i / rows])
        .collect()
}

pub(super) fn run(dev: &Device, args: Matmul<'_>, (m, n, k): (usize, usize, usize)) {
    if m == 0 || n == 0 {
        return;
    }
    let round = args.a.dtype() != DType::F32 || args.b.dtype() != DType::F32;
    let a = dense(args.a, args.a_transposed, round);
    let b = dense(args.b, args.b_transposed, round);
    let bias = args.bias.map(View::to_f32_vec);
    with_dtype!(args.c.dtype(), E => {
        dev.for_each_chunk(args.c.as_mut_slice::<E>(), n, |i, row| {
            let mut sum = vec![0f32; n];
            for kk in 0..k {
                let x = a[i * k + kk];
                sum.iter_mut().zip(&b[kk * n..][..n]).for_each(|(s, y)| *s += x * y);
            }
            for (j, c) in row.iter_mut().enumerate() {
                let mut value = args.alpha * sum[j];
                if args.accumulate {
                    value += Element::to_f32(*c);
                }
                if let Some(bias) = &bias {
                    value += bias[j];
                }
                *c = <E as Element>::from_f32(value);
            }
        });
    });
}
