//! Products on a GPU: cuBLASLt, once all operands have one type.

use std::sync::Arc;

use super::Matmul;
use crate::cuda::{Cuda, DevicePtr, Product};
use crate::{DType, Tensor, View};

/// `args`, with C [m, n] and K = `k`; `in_f32` if all operands are f32.
pub(super) fn run(cuda: &Arc<Cuda>, mut args: Matmul<'_>, (m, n, k): (usize, usize, usize), in_f32: bool) {
    let dtype = if in_f32 { DType::F32 } else { DType::BF16 };
    let c_dtype = args.c.dtype();
    let c = args.c.device();
    let mut product = Product {
        m,
        n,
        k,
        a: DevicePtr::NULL,
        a_transposed: args.a_transposed,
        b: DevicePtr::NULL,
        b_transposed: args.b_transposed,
        dtype,
        c,
        c_dtype,
        alpha: args.alpha,
        accumulate: args.accumulate,
        bias: None,
    };
    let bias = args.bias.map(|bias| Operand::of(bias, c_dtype));
    let pairs = [Some((args.a, args.b, bias.as_ref())), args.second.map(|(a, b)| (a, b, None))];
    for (a, b, bias) in pairs.into_iter().flatten() {
        let (a, b) = (Operand::of(a, dtype), Operand::of(b, dtype));
        product.k = a.view().elements() / m;
        product.bias = bias.map(|bias| bias.view().device());
        (product.a, product.b) = (a.view().device(), b.view().device());
        cuda.product(&product);
        product.accumulate = true;
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
