//! Matrix product: `C = alpha·op(A)·op(B) (+ C) (+ bias)`.
//!
//! In: `A` and `B` in `f32` or `bf16`, each stored straight or transposed. Out: `C` in `f32` or `bf16`,
//! overwritten, or added to if `accumulate`.
//!
//! ```text
//! C[m, n] = alpha · (Σₖ op(A)[m, k] · op(B)[k, n]  (+ the same of a second pair))  (+ C[m, n])  (+ bias[n])
//! ```
//!
//! The three products of a linear layer `y = x·Wᵀ` with `W` stored `[out, in]` have constructors of their own:
//! [`Matmul::x_wt`] for `y`, [`Matmul::dy_w`] for `dx`, [`Matmul::dyt_x`] for `dW`.
//!
//! # Arithmetic
//! Both operands `f32`: products in `f32`. Otherwise both operands are rounded to `bf16`, products are exact and
//! are summed in `f32`. The sum over all of `K` stays in `f32` and is rounded to `C`'s type once.
//! Sums have a fixed order that depends on the shapes and the instruction set alone. On a GPU cuBLASLt multiplies, and
//! `C` is rounded after each of two products.

use std::marker::PhantomData;

use crate::quantized::{self, Decoder};
use crate::{DType, Device, Element, Isa, View, ViewMut, with_dtype};

/// Evaluates an expression with `K` the kernel of an instruction set, for operands that are all `f32` or not.
macro_rules! with_kernel {
    ($isa:expr, $in_f32:expr, $K:ident => $body:expr) => {
        match ($isa, $in_f32) {
            #[cfg(target_arch = "x86_64")]
            ($crate::Isa::Amx, false) => {
                type $K = $crate::matmul::amx::Amx;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::Isa::Avx512Bf16, false) => {
                type $K = $crate::matmul::avx512bf16::Avx512Bf16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::Isa::Amx | $crate::Isa::Avx512Bf16 | $crate::Isa::Avx512, _) => {
                type $K = $crate::matmul::avx512::Avx512F32;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            ($crate::Isa::Avx2, _) => {
                type $K = $crate::matmul::avx2::Avx2F32;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            ($crate::Isa::NeonBf16, false) => {
                type $K = $crate::matmul::neonbf16::NeonBf16;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            ($crate::Isa::Neon | $crate::Isa::NeonBf16, _) => {
                type $K = $crate::matmul::neon::NeonF32;
                $body
            }
            _ => {
                type $K = $crate::matmul::portable::PortableF32;
                $body
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod blocked;
mod kernel;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neonbf16;
mod on_cuda;
mod output;
mod pack;
mod packed;
pub(crate) mod portable;
#[cfg(test)]
mod reference;
mod scratch;
#[cfg(test)]
mod tests;
mod thin;
pub(crate) mod vector;

use blocked::Factors;
use kernel::MicroKernel;
pub use matrix::Matrix;
use output::{Bias, Finish, Output};
use pack::Operand;
pub use packed::{PackedWeight, Reads};
use thin::Thin;

/// One matrix product; run it with [`Matmul::run`] or [`run`].
pub struct Matmul<'a> {
    /// `op(A)` is `[M, K]`; stored `[K, M]` if `a_transposed`.
    pub a: View<'a>,
    /// Whether `a` is stored `[K, M]`.
    pub a_transposed: bool,
    /// `op(B)` is `[K, N]`; stored `[N, K]` if `b_transposed`.
    pub b: Matrix<'a>,
    /// Whether `b` is stored `[N, K]`.
    pub b_transposed: bool,
    /// `[M, N]`, `f32` or `bf16`.
    pub c: ViewMut<'a>,
    /// `[N]`, added to every row; not scaled by `alpha`.
    pub bias: Option<View<'a>>,
    /// Factor of the product.
    pub alpha: f32,
    /// Add to `c` instead of overwriting it.
    pub accumulate: bool,
    /// A second product `op(A₂)·op(B₂)` to add, stored as the first is; its `K` is its own.
    pub second: Option<(View<'a>, View<'a>)>,
    /// `b`, packed already.
    pub packed: Option<&'a PackedWeight>,
}

impl<'a> Matmul<'a> {
    /// `c = a·b`, all stored straight.
    pub fn new(a: View<'a>, b: impl Into<Matrix<'a>>, c: ViewMut<'a>) -> Self {
        Self {
            a,
            a_transposed: false,
            b: b.into(),
            b_transposed: false,
            c,
            bias: None,
            alpha: 1.0,
            accumulate: false,
            second: None,
            packed: None,
        }
    }

    /// Forward of a linear layer: `y [N, out] = x [N, in] · Wᵀ`, `w` stored `[out, in]`.
    pub fn x_wt(x: View<'a>, w: impl Into<Matrix<'a>>, y: ViewMut<'a>) -> Self {
        Self { b_transposed: true, ..Self::new(x, w, y) }
    }

    /// Gradient of a linear layer's input: `dx [N, in] = dy [N, out] · W`, `w` stored `[out, in]`.
    pub fn dy_w(dy: View<'a>, w: impl Into<Matrix<'a>>, dx: ViewMut<'a>) -> Self {
        Self::new(dy, w, dx)
    }

    /// Gradient of a linear layer's weight: `dW [out, in] = dyᵀ · x`, `dy` stored `[N, out]`, `x` stored `[N, in]`.
    pub fn dyt_x(dy: View<'a>, x: View<'a>, dw: ViewMut<'a>) -> Self {
        Self { a_transposed: true, ..Self::new(dy, x, dw) }
    }

    /// Adds `bias [N]` to every row of `C`.
    pub fn bias(self, bias: Option<View<'a>>) -> Self {
        Self { bias, ..self }
    }

    /// Adds a second product of operands that are stored as the first ones are: an adapter's, of small depth. Both are
    /// one sum, rounded once; with a thin first product (decoding) `C` is rounded after each.
    pub fn plus(self, a: View<'a>, b: View<'a>) -> Self {
        Self { second: Some((a, b)), ..self }
    }

    /// Takes the panels of `b` from `packed` if they are there, and what this product packs.
    pub fn packed(self, packed: Option<&'a PackedWeight>) -> Self {
        Self { packed, ..self }
    }

    /// Scales the product (not the bias, not what is in `C`).
    pub fn alpha(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    /// Adds to `C` instead of overwriting it.
    pub fn accumulate(self) -> Self {
        Self { accumulate: true, ..self }
    }

    /// Adds to `C` instead of overwriting it, if `accumulate`.
    pub fn accumulate_if(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    /// The same product for a shorter time.
    fn reborrow(&mut self) -> Matmul<'_> {
        Matmul { c: self.c.reborrow(), ..*self }
    }

    /// Runs it.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn run(self, dev: &Device) {
        run(dev, self);
    }

    /// `(M, N, K)`, with every shape checked against every other.
    fn sizes(&self) -> (usize, usize, usize) {
        let two = |shape: &[usize]| -> [usize; 2] {
            shape.try_into().unwrap_or_else(|_| {
                panic!("matmul takes matrices, and one of its operands has shape {shape:?}")
            })
        };
        let ([a0, a1], [b0, b1]) = (two(self.a.shape()), two(self.b.shape()));
        let (m, k) = if self.a_transposed { (a1, a0) } else { (a0, a1) };
        let (kb, n) = if self.b_transposed { (b1, b0) } else { (b0, b1) };
        assert_eq!(k, kb, "matmul: op(A) is [{m}, {k}] and op(B) is [{kb}, {n}]");
        assert_eq!(
            two(self.c.shape()),
            [m, n],
            "matmul: op(A) is [{m}, {k}], op(B) is [{k}, {n}], C is {:?}",
            self.c.shape()
        );
        if let Some((a2, b2)) = self.second {
            let (a, b) = (two(a2.shape()), two(b2.shape()));
            let (m2, ka) = if self.a_transposed { (a[1], a[0]) } else { (a[0], a[1]) };
            let (kb, n2) = if self.b_transposed { (b[1], b[0]) } else { (b[0], b[1]) };
            assert_eq!((m2, n2, ka), (m, n, kb), "matmul: the second product, beside [{m}, {n}]");
        }
        if let Some(bias) = self.bias {
            assert_eq!(bias.shape(), [n], "matmul: C is [{m}, {n}] and the bias is {:?}", bias.shape());
        }
        (m, n, k)
    }
}

/// Runs one matrix product.
///
/// # Panics
/// If the shapes do not fit; the message names them.
pub fn run(dev: &Device, args: Matmul<'_>) {
    let (m, n, k) = args.sizes();
    if m == 0 || n == 0 {
        return;
    }
    let (name, weight) = match (args.a_transposed, args.b_transposed) {
        (false, true) => ("matmul x·Wᵀ", [n, k]),
        (false, false) => ("matmul dy·W", [k, n]),
        (true, _) => ("matmul dyᵀ·x", [m, n]),
    };
    let _timed = dev.op(name, weight, || {
        let c = args.c.byte_len() * if args.accumulate { 2 } else { 1 };
        let (a2, b2) = args.second.map_or((0, 0), |(a, b)| (a.byte_len(), b.byte_len()));
        let k2 = args.second.map_or(0, |(a, _)| a.elements() / m);
        [2 * m * n * (k + k2), args.a.byte_len() + args.b.byte_len() + c + a2 + b2]
    });
    let views = [Some(args.a), args.second.map(|s| s.0), args.second.map(|s| s.1)];
    let dtypes = views.into_iter().flatten().map(|view| view.dtype()).chain([args.b.dtype()]);
    let in_f32 = dtypes.into_iter().all(|dtype| dtype == DType::F32);
    if let Some(cuda) = dev.cuda() {
        return on_cuda::run(cuda, args, (m, n), in_f32);
    }
    with_kernel!(dev.isa(), in_f32, K => run_with::<K>(dev, args, in_f32));
}

/// Bytes that a CPU keeps beside `C [M, N]` while a product goes through its depth `K` in pieces. The products of a step
/// follow each other and use the same bytes.
pub fn kept_bytes(isa: Isa, in_f32: bool, [m, n, k]: [usize; 3]) -> usize {
    with_kernel!(isa, in_f32, K => blocked::kept_bytes::<K>([m, n, k]))
}

/// All values of a quantised weight.
pub(crate) fn decode_all<E: Element>(isa: Isa, decoder: Decoder<'_>, to: &mut [E]) {
    with_kernel!(isa, true, K => {
        quantized::decode_rows(isa, decoder, 0, to, PhantomData::<<K as MicroKernel>::Lanes>);
    });
}

fn run_with<K: MicroKernel>(dev: &Device, mut args: Matmul<'_>, in_f32: bool) {
    let round = !in_f32;
    let a_of = |a| Operand::of(Matrix::Values(a), !args.a_transposed, round);
    let b_of = |b| Operand::of(b, args.b_transposed, round);
    let first = (a_of(args.a), b_of(args.b));
    let second = args.second.map(|(a, b)| (a_of(a), b_of(b.into())));
    let finish = Finish { alpha: args.alpha, accumulate: args.accumulate, bias: args.bias.map(Bias::new) };
    with_dtype!(args.c.dtype(), E => {
        let Some(thin) = Thin::new::<K>(first.0, first.1) else {
            let packed = args.packed.and_then(|packed| packed.panels(dev.isa(), in_f32, &first.1));
            let factors = Factors { first, packed, second };
            return blocked::run::<K, E>(dev, factors, &Output::<E>::new(args.c, finish));
        };
        thin.run::<K, E>(dev, &Output::<E>::new(args.c.reborrow(), finish));
        if let Some(second) = second {
            let c = Output::<E>::new(args.c, Finish { accumulate: true, bias: None, ..finish });
            match Thin::new::<K>(second.0, second.1) {
                Some(thin) => thin.run::<K, E>(dev, &c),
                None => {
                    blocked::run::<K, E>(dev, Factors { first: second, packed: None, second: None }, &c);
                }
            }
        }
    });
}
