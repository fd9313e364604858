//! A linear layer, plain or with a LoRA adapter (stages 9 and 11 of the walk).
//!
//! Formula, with weight W [out, in], bias b and adapter A [R, in], B [out, R] (Hu et al., 2021):
//!
//! > y = x·Wᵀ + b + s·(drop(x)·Aᵀ)·Bᵀ
//!
//! Derivative, with xa = s·drop(x)·Aᵀ (saved) and dxa = s·dy·B:
//!
//! > dW = dyᵀ·x, db = Σ dy, dB = dyᵀ·xa, dA = dxaᵀ·drop(x), dx = dy·W + drop(dxa·A)
//!
//! The adapter's part of y, and of dx where nothing is dropped, is summed with the base's in one product.
//!
//! Nothing outside of this file knows whether a layer carries an adapter.

use sft_kernels::lora::{self, BackwardInput, BackwardOutput, Down};
use sft_kernels::matmul::Matmul;
use sft_kernels::{DType, Device, Tensor, View, ViewMut, dropout, random, rows};

use crate::arena::Arena;
use crate::parameter::Parameter;

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    /// [out, in].
    pub weight: Parameter,
    /// [out].
    pub bias: Option<Parameter>,
    /// The adapter, if the layer carries one.
    pub lora: Option<Lora>,
}

/// A low-rank adapter.
#[derive(Debug)]
pub struct Lora {
    /// A: [R, in].
    pub a: Parameter,
    /// B: [out, R].
    pub b: Parameter,
    /// s: alpha / R, or alpha / √R with rsLoRA.
    pub scale: f32,
    /// Probability that an element of the adapter's input is dropped in training.
    pub dropout: f32,
    /// Tells this layer's dropout masks from the others'.
    pub dropout_id: u64,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    /// s·drop(x)·Aᵀ: [N · largest R], since blocks that share it may carry adapters of different ranks.
    xa: Option<Tensor>,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(arena: &mut Arena<'_>, dtype: DType, tokens: usize, rank: Option<usize>) -> Self {
        Self { xa: rank.map(|rank| arena.tensor(dtype, &[tokens * rank])) }
    }
}

/// Workspace that all linear layers share.
#[derive(Debug)]
pub struct Scratch {
    /// drop(x), and the gradient through it: [N · widest input].
    dropped: Option<Tensor>,
    /// dxa: [N · largest R].
    dxa: Option<Tensor>,
}

impl Scratch {
    /// Room for `tokens` tokens, inputs of at most `width` and adapters of at most `rank`.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        width: usize,
        rank: Option<usize>,
        dropout: bool,
    ) -> Self {
        Self {
            dropped: (rank.is_some() && dropout).then(|| arena.tensor(dtype, &[tokens * width])),
            dxa: rank.map(|rank| arena.tensor(dtype, &[tokens * rank])),
        }
    }
}

/// The first elements of a flat buffer as a matrix.
fn matrix(buffer: &mut Tensor, rows: usize, columns: usize) -> ViewMut<'_> {
    buffer.head_mut(rows * columns).reshape(&[rows, columns])
}

impl Linear {
    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.weight.value().dim(0)
    }

    /// Weight and bias.
    pub fn base_parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.weight].into_iter().chain(&self.bias)
    }

    /// Weight and bias, and the adapter's.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let lora = self.lora.as_mut().map(|lora| [&mut lora.a, &mut lora.b]);
        [&mut self.weight].into_iter().chain(&mut self.bias).chain(lora.into_iter().flatten())
    }

    /// y = x·Wᵀ + b + adapter. x is [N, in], y is [N, out]. `dropout` is the key of this micro-batch, `None` when
    /// nothing is trained.
    pub fn forward(
        &self,
        dev: &Device,
        x: View<'_>,
        y: ViewMut<'_>,
        saved: &mut Saved,
        scratch: &mut Scratch,
        dropout: Option<u64>,
    ) {
        let bias = self.bias.as_ref().map(Parameter::value);
        let Some(lora) = &self.lora else {
            return self.weight.x_wt(x, y).bias(bias).run(dev);
        };
        let xa = saved.xa.as_mut().expect("the workspace was made for the adapters on this model");
        let input = lora.dropped(dev, x, scratch, dropout);
        let (n, rank) = (x.dim(0), lora.rank());
        let (a, scale, to) = (lora.a.operand(), lora.scale, matrix(xa, n, rank));
        lora::down(dev, input, [Down { a, scale, xa: to }]);
        let xa = xa.head(n * rank).reshape(&[n, rank]);
        self.weight.x_wt(x, y).bias(bias).plus(xa, lora.b.operand()).run(dev);
    }

    /// Adds to the gradients of what is trained; writes the input's gradient to `dx` if there is one, or adds to it
    /// with `accumulate`.
    #[expect(
        clippy::too_many_arguments,
        reason = "x, dy and dx are the formula's own; the rest is workspace"
    )]
    pub fn backward(
        &mut self,
        dev: &Device,
        x: View<'_>,
        dy: View<'_>,
        dx: Option<ViewMut<'_>>,
        accumulate: bool,
        saved: &Saved,
        scratch: &mut Scratch,
        dropout: Option<u64>,
    ) {
        if let Some(dw) = self.weight.gradient_mut() {
            Matmul::dyt_x(dy, x, dw).accumulate().run(dev);
        }
        if let Some(db) = self.bias.as_mut().and_then(Parameter::gradient_mut) {
            rows::sum_rows(dev, dy, db);
        }
        let lora = self.lora.as_mut().zip(saved.xa.as_ref());
        let Some((lora, xa)) = lora else {
            if let Some(dx) = dx {
                self.weight.dy_w(dy, dx).accumulate_if(accumulate).run(dev);
            }
            return;
        };
        let (n, rank) = (x.dim(0), lora.rank());
        let Some(mut dxa) = scratch.dxa.take() else { return };
        lora.gradients(dev, x, dy, (xa.head(n * rank).reshape(&[n, rank]), &mut dxa), scratch, dropout);
        if let Some(mut dx) = dx {
            let dxa = dxa.head(n * rank).reshape(&[n, rank]);
            let product = self.weight.dy_w(dy, dx.reborrow()).accumulate_if(accumulate);
            match lora.dropout_key(dropout).zip(scratch.dropped.as_mut()) {
                None => product.plus(dxa, lora.a.operand()).run(dev),
                Some((key, buffer)) => {
                    product.run(dev);
                    Matmul::dy_w(dxa, lora.a.operand(), matrix(buffer, n, x.dim(1))).run(dev);
                    let through = buffer.head(x.elements()).reshape(x.shape());
                    dropout::apply(dev, lora.dropout, key, through, dx, true);
                }
            }
        }
        scratch.dxa = Some(dxa);
    }
}

impl Lora {
    /// R.
    fn rank(&self) -> usize {
        self.a.value().dim(0)
    }

    /// drop(x), in scratch; or x itself where nothing is dropped.
    fn dropped<'a>(&self, dev: &Device, x: View<'a>, scratch: &'a mut Scratch, key: Option<u64>) -> View<'a> {
        match (&mut scratch.dropped, self.dropout_key(key)) {
            (Some(buffer), Some(key)) => {
                dropout::apply(dev, self.dropout, key, x, matrix(buffer, x.dim(0), x.dim(1)), false);
                buffer.head(x.elements()).reshape(x.shape())
            }
            _ => x,
        }
    }

    fn dropout_key(&self, key: Option<u64>) -> Option<u64> {
        key.filter(|_| self.dropout > 0.0).map(|key| random::key(key, &[self.dropout_id]))
    }

    /// dxa, and the gradients of A and B.
    fn gradients(
        &mut self,
        dev: &Device,
        x: View<'_>,
        dy: View<'_>,
        (xa, dxa): (View<'_>, &mut Tensor),
        scratch: &mut Scratch,
        dropout: Option<u64>,
    ) {
        let (n, rank) = (x.dim(0), xa.dim(1));
        let (scale, (b, db)) = (self.scale, self.b.operand_and_gradient());
        lora::backward_output(dev, BackwardOutput { dy, b, xa, scale, dxa: matrix(dxa, n, rank), db });
        if self.a.is_trained() {
            let input = self.dropped(dev, x, scratch, dropout);
            if let Some(da) = self.a.gradient_mut() {
                let dxa = dxa.head(n * rank).reshape(&[n, rank]);
                lora::backward_input(dev, input, [BackwardInput { dxa, da }]);
            }
        }
    }
}
