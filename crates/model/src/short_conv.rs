//! A gated convolution in the place of attention (stages 9 and 11 of the walk).
//!
//! > B, C, u = in_proj(x), y = out_proj(C · conv(B · u))
//!
//! Saved for backward: B, C and u, which backward overwrites by their gradients; the rest is computed again.

use sft_kernels::conv1d::{self, Conv1dParams, Taps};
use sft_kernels::gated::{self, Activation};
use sft_kernels::{DType, Device, Tensor, View, ViewMut};

use crate::arena::Arena;
use crate::cache::LayerCaches;
use crate::inputs::{self, Inputs};
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::mixer::PartsMut;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{InputNames, ShortConvSpec};

const PARAMS: Conv1dParams = Conv1dParams { scale: 1.0, silu: false };

/// A gated convolution.
#[derive(Debug)]
pub struct ShortConv {
    /// To B, C and u, [3·C, C].
    pub in_proj: Inputs,
    /// [C, 1, W].
    pub conv: Parameter,
    /// [C].
    pub conv_bias: Option<Parameter>,
    /// [C, C].
    pub out_proj: Linear,
    /// Its names.
    pub spec: ShortConvSpec,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    b: Tensor,
    c: Tensor,
    u: Tensor,
    in_proj: inputs::Saved,
    out_proj: linear::Saved,
}

impl ShortConvSpec {
    /// What makes B, C and u.
    pub fn inputs(&self) -> InputNames {
        InputNames::Fused { name: self.input, groups: 1 }
    }
}

impl Saved {
    /// Room for `tokens` tokens of width `hidden`.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, hidden): (usize, usize),
        spec: &ShortConvSpec,
        adapters: &LayerAdapters,
    ) -> Self {
        let [b, c, u] = [(); 3].map(|()| arena.tensor(dtype, &[tokens, hidden]));
        Self {
            b,
            c,
            u,
            in_proj: inputs::Saved::new(arena, dtype, tokens, spec.inputs(), adapters),
            out_proj: linear::Saved::new(arena, dtype, tokens, adapters.carried_by(spec.output)),
        }
    }
}

/// Workspace that all such layers share, [N, C] each.
#[derive(Debug)]
pub struct Scratch {
    /// B·u.
    bu: Tensor,
    /// conv(B·u), and its gradient.
    convolved: Tensor,
    /// What goes into `out_proj`, then the gradient of B·u.
    inner: Tensor,
    /// The gradient of what goes into `out_proj`.
    dinner: Tensor,
}

impl Scratch {
    /// Room for `tokens` tokens, `backward_tokens` in what backward alone needs, of width `hidden`.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, backward_tokens): (usize, usize),
        hidden: usize,
    ) -> Self {
        let mut buffer = |tokens: usize| arena.tensor(dtype, &[tokens, hidden]);
        Self {
            bu: buffer(tokens),
            convolved: buffer(tokens),
            inner: buffer(tokens),
            dinner: buffer(backward_tokens),
        }
    }
}

impl ShortConv {
    /// y [N, C] from x [N, C]. With caches the convolution sees the tokens of each row before, and leaves those for the
    /// next.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        y: ViewMut<'_>,
        saved: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
        caches: Option<LayerCaches<'_>>,
    ) {
        let (n, dev, s, w) = (x.dim(0), pass.dev, saved, scratch);
        let outputs = [s.b.head_mut(n), s.c.head_mut(n), s.u.head_mut(n)];
        self.in_proj.forward(pass, x, outputs, &mut s.in_proj, inputs);
        self.convolve(dev, pass.rows, n, s, w, caches);
        let linears = &mut inputs.linears;
        self.out_proj.forward(dev, w.inner.head(n), y, &mut s.out_proj, linears, pass.dropout);
    }

    /// What goes into `out_proj`, from what is saved.
    fn convolve(
        &self,
        dev: &Device,
        rows: &[u32],
        n: usize,
        s: &Saved,
        w: &mut Scratch,
        caches: Option<LayerCaches<'_>>,
    ) {
        gated::forward(dev, Activation::Identity, s.b.head(n), s.u.head(n), w.bu.head_mut(n));
        LayerCaches::each(caches, rows, |tokens, starts, cache| {
            let (x, y) = (w.bu.view().rows(tokens.clone()), w.convolved.view_mut().into_rows(tokens));
            let history = cache.as_ref().map(|cache| cache.history(0));
            conv1d::forward(dev, PARAMS, starts, (x, history), self.taps(), y);
            cache.into_iter().for_each(|cache| cache.remember(0, x));
        });
        gated::forward(dev, Activation::Identity, s.c.head(n), w.convolved.head(n), w.inner.head_mut(n));
    }

    fn taps(&self) -> Taps<'_> {
        Taps { w: self.conv.value(), b: self.conv_bias.as_ref().map(Parameter::value) }
    }

    /// The gradient of x (if wanted) from that of y; `saved` is used up.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        dy: View<'_>,
        dx: Option<ViewMut<'_>>,
        saved: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
    ) {
        let (n, dev, s, w) = (x.dim(0), pass.dev, saved, scratch);
        self.convolve(dev, pass.rows, n, s, w, None);
        let (inner, dinner, linears) = (w.inner.head(n), Some(w.dinner.head_mut(n)), &mut inputs.linears);
        self.out_proj.backward(dev, inner, dy, dinner, false, &s.out_proj, linears, pass.dropout);
        let (dinner, convolved) = (w.dinner.head_mut(n), w.convolved.head_mut(n));
        gated::backward(dev, Activation::Identity, dinner, s.c.head_mut(n), convolved, false);
        let Self { conv, conv_bias, .. } = self;
        let (weight, dw) = conv.value_and_gradient();
        let (bias, db) = conv_bias.as_mut().map(Parameter::value_and_gradient).unzip();
        let io = conv1d::Backward {
            x: w.bu.head(n),
            dy: w.convolved.head_mut(n),
            dx: w.inner.head_mut(n),
            dw,
            db: db.flatten(),
        };
        conv1d::backward(dev, PARAMS, pass.rows, Taps { w: weight, b: bias }, io);
        gated::backward(
            dev,
            Activation::Identity,
            w.inner.head_mut(n),
            s.b.head_mut(n),
            s.u.head_mut(n),
            false,
        );
        let gradients = [s.b.head(n), s.c.head(n), s.u.head(n)];
        self.in_proj.backward(pass, x, gradients, dx, &s.in_proj, inputs);
    }

    /// Its weights beside those of linear layers.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.conv].into_iter().chain(&self.conv_bias)
    }

    /// Its linear layers with their names inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        self.in_proj.iter().chain([(self.spec.output, &self.out_proj)])
    }

    /// Its weights beside those of linear layers, and its linear layers.
    pub fn parts_mut(&mut self) -> PartsMut<'_> {
        let Self { in_proj, conv, conv_bias, out_proj, spec } = self;
        let parameters = [conv].into_iter().chain(conv_bias).collect();
        (parameters, in_proj.iter_mut().chain([(spec.output, out_proj)]).collect())
    }
}
