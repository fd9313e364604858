//! Products on a GPU: cuBLASLt, once all operands have types that it takes together.

use std::sync::Arc;

use super::{Matmul, Matrix};
use crate::cuda::{Cuda, DevicePtr, Product, Scratch};
use crate::quantized::on_cuda::decode;
use crate::{DType, Tensor, View};

/// `args`, with C [m, n]; `in_f32` if operands are multiplied as f32.
pub(super) fn run(cuda: &Arc<Cuda>, mut args: Matmul<'_>, (m, n): (usize, usize), in_f32: bool) {
    let dtype = if in_f32 { DType::F32 } else { DType::BF16 };
    if args.c.dtype() != DType::F32 && (in_f32 || would_round_twice(&args, m, n)) {
        // It adds f32 products up in f32 alone.
        let mut sum = args.c.as_view().to_dtype(DType::F32);
        run(cuda, Matmul { c: sum.view_mut(), ..args.reborrow() }, (m, n), in_f32);
        args.c.copy_from(sum.view());
        return;
    }
    let mut bias = args.bias.map(|bias| Operand::of(bias, args.c.dtype()));
    let mut accumulate = args.accumulate;
    // The thin product first: a product of great depth reads what is there almost for nothing, a thin one takes as long
    // for that as for its own sum.
    let second = args.second.map(|(a, b)| (a, b.into()));
    let pairs = [second, Some((args.a, args.b))].into_iter().flatten();
    let mut pairs = pairs.filter(|(a, _)| a.elements() > 0).peekable();
    while let Some((a, b)) = pairs.next() {
        let a = Operand::of(a, dtype);
        let b = Factor::of(cuda, b, dtype);
        let bias = if pairs.peek().is_none() { bias.take() } else { None };
        cuda.product(&Product {
            m,
            n,
            k: a.view().elements() / m,
            a: a.view().device(),
            a_transposed: args.a_transposed,
            b: b.device(),
            b_transposed: args.b_transposed,
            dtype,
            c: args.c.device(),
            c_dtype: args.c.dtype(),
            alpha: args.alpha,
            accumulate,
            bias: bias.as_ref().map(|bias| bias.view().device()),
        });
        accumulate = true;
    }
    without_depth(args.c, bias.as_ref(), accumulate);
}

/// Whether cuBLASLt would round a product to 16 bits and then add something to it: its kernels for matrices whose rows
/// are no whole 16 bytes do so.
fn would_round_twice(args: &Matmul<'_>, m: usize, n: usize) -> bool {
    let k = args.a.elements() / m.max(1);
    let rows = [n, if args.a_transposed { m } else { k }, if args.b_transposed { k } else { n }];
    let adds = args.accumulate || args.bias.is_some() || args.second.is_some();
    adds && rows.iter().any(|row| !row.is_multiple_of(8))
}

/// What is left of a product of depth 0.
fn without_depth(mut c: crate::ViewMut<'_>, bias: Option<&Operand<'_>>, accumulate: bool) {
    if !accumulate {
        c.reborrow().zero();
    }
    let Some(bias) = bias else { return };
    assert!(!accumulate, "a bias is not added to what is there where there is no product");
    let (rows, columns) = (c.dim(0), c.dim(1));
    for row in 0..rows {
        c.reborrow().into_rows(row..row + 1).reshape(&[columns]).copy_from(bias.view());
    }
}

/// An operand in the type that the product takes.
enum Operand<'a> {
    Stored(View<'a>),
    Converted(Tensor),
}

impl<'a> Operand<'a> {
    fn of(view: View<'a>, dtype: DType) -> Self {
        if view.dtype() == dtype { Self::Stored(view) } else { Self::Converted(view.to_dtype(dtype)) }
    }

    fn view(&self) -> View<'_> {
        match self {
            Operand::Stored(view) => *view,
            Operand::Converted(tensor) => tensor.view(),
        }
    }
}

/// The second operand of a product: decoded, if it is quantised, into memory that no other op writes meanwhile.
enum Factor<'a> {
    Values(Operand<'a>),
    Decoded(Scratch<'a>),
}

impl<'a> Factor<'a> {
    fn of(cuda: &'a Cuda, matrix: Matrix<'a>, dtype: DType) -> Self {
        match matrix {
            Matrix::Values(view) => Factor::Values(Operand::of(view, dtype)),
            Matrix::Quantized(weight) => {
                let room = cuda.scratch(matrix.elements() * dtype.bytes());
                decode(cuda, weight, dtype, room.start());
                Factor::Decoded(room)
            }
        }
    }

    fn device(&self) -> DevicePtr {
        match self {
            Factor::Values(operand) => operand.view().device(),
            Factor::Decoded(room) => room.start(),
        }
    }
}
