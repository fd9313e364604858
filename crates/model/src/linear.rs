//! A linear layer, plain or with an adapter: LoRA, DoRA, whose part is in [`crate::dora`], or OFT, whose part is in
//! [`crate::oft`] (stages 9 and 11 of the walk).
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
use crate::dora::{self, Dora};
use crate::method::{Carried, LowRank};
use crate::oft::{self, Oft};
use crate::parameter::Parameter;

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    /// [out, in].
    pub weight: Parameter,
    /// [out].
    pub bias: Option<Parameter>,
    /// The low-rank adapter, if the layer carries one.
    pub lora: Option<Lora>,
    /// The rotations of its input, if it carries such.
    pub oft: Option<Oft>,
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
    /// Magnitudes of the weight's rows.
    pub dora: Option<Dora>,
    /// What A and B began as, if the weight was changed for it (PiSSA).
    pub start: Option<Start>,
}

/// What an adapter began as, f32 in the host's memory.
#[derive(Debug)]
pub struct Start {
    /// [R, in].
    pub a: Tensor,
    /// [out, R].
    pub b: Tensor,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    /// s·drop(x)·Aᵀ: [N · largest R], since blocks that share it may carry adapters of different ranks.
    xa: Option<Tensor>,
    dora: Option<dora::Saved>,
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(arena: &mut Arena<'_>, dtype: DType, tokens: usize, carried: Option<Carried>) -> Self {
        let carried = carried.and_then(Carried::low_rank);
        let dora = carried.filter(|carried| carried.dora);
        Self {
            xa: carried.map(|carried| arena.tensor(dtype, &[tokens * carried.rank])),
            dora: dora.map(|carried| dora::Saved::new(arena, dtype, tokens, carried)),
        }
    }

    /// xa [N, R], of a layer that carries an adapter.
    fn xa(&self, n: usize, rank: usize) -> View<'_> {
        let xa = self.xa.as_ref().expect(MADE_FOR_ADAPTERS);
        xa.head(n * rank).reshape(&[n, rank])
    }
}

/// What holds of every workspace.
const MADE_FOR_ADAPTERS: &str = "the workspace was made for the adapters on this model";

/// Most linear layers that read one input: queries, keys and values.
const MOST_OF_ONE_INPUT: usize = 3;

/// Workspace that all linear layers share.
#[derive(Debug)]
pub struct Scratch {
    /// drop(x), and the gradient through it: [N · widest input].
    dropped: Option<Tensor>,
    /// dxa of each of the layers that read one input: [N · largest R].
    dxa: Option<[Tensor; MOST_OF_ONE_INPUT]>,
    dora: Option<dora::Scratch>,
    oft: Option<oft::Scratch>,
}

impl Scratch {
    /// Room for `tokens` tokens, of which `backward_tokens` go back (0 where none follows), inputs of at most `width` and
    /// adapters that `largest` holds.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (all_tokens, tokens): (usize, usize),
        width: usize,
        largest: Option<Carried>,
        dropout: bool,
    ) -> Self {
        let rotated = largest.and_then(Carried::rotated);
        let oft = rotated.map(|rotated| oft::Scratch::new(arena, dtype, (all_tokens, tokens), rotated));
        let largest = largest.and_then(Carried::low_rank);
        let mut dxa = |rank: usize| std::array::from_fn(|_| arena.tensor(dtype, &[tokens * rank]));
        let dxa = largest.map(|largest| dxa(largest.rank));
        let dora = largest.filter(|largest| largest.dora);
        Self {
            dropped: (largest.is_some() && dropout).then(|| arena.tensor(dtype, &[tokens * width])),
            dxa,
            dora: dora.map(|largest: LowRank| dora::Scratch::new(arena, dtype, tokens, largest)),
            oft,
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
        self.weight.shape()[0]
    }

    /// Weight and bias.
    pub fn base_parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.weight].into_iter().chain(&self.bias)
    }

    /// What its adapter is made of.
    pub fn adapter_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let lora = self.lora.iter().flat_map(Lora::parameters);
        lora.chain(self.oft.as_ref().map(|oft| &oft.skew))
    }

    /// Weight and bias, and the adapter's.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let lora = self.lora.as_mut().into_iter().flat_map(Lora::parameters_mut);
        let oft = self.oft.as_mut().map(|oft| &mut oft.skew);
        [&mut self.weight].into_iter().chain(&mut self.bias).chain(lora).chain(oft)
    }

    /// Takes the magnitudes of a fresh adapter from the weight again, which has changed.
    pub(crate) fn begin_magnitudes(&mut self) {
        let weight = &self.weight;
        self.lora.iter_mut().filter_map(|lora| lora.dora.as_mut()).for_each(|dora| dora.begin(weight));
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
        down(dev, x, [(self, &mut *saved)], scratch, dropout);
        self.output(dev, x, y, saved, scratch, dropout);
    }

    /// y of [`Linear::forward`] once [`down`] has left xa.
    pub fn output(
        &self,
        dev: &Device,
        x: View<'_>,
        y: ViewMut<'_>,
        saved: &mut Saved,
        scratch: &mut Scratch,
        dropout: Option<u64>,
    ) {
        let bias = self.bias.as_ref().map(Parameter::value);
        if let Some(oft) = &self.oft {
            let rotated = oft.rotate(dev, x, scratch.oft.as_mut().expect(MADE_FOR_ADAPTERS), dropout);
            return self.weight.x_wt(rotated, y).bias(bias).run(dev);
        }
        let Some(lora) = &self.lora else { return self.weight.x_wt(x, y).bias(bias).run(dev) };
        let (n, rank) = (x.dim(0), lora.rank());
        let Some(dora) = &lora.dora else {
            let product = self.weight.x_wt(x, y).bias(bias);
            return product.plus(saved.xa(n, rank), lora.b.value()).run(dev);
        };
        let drops = lora.dropout_key(dropout).is_some();
        if drops {
            lora.dropped(dev, x, &mut scratch.dropped, dropout);
        }
        let dropped = scratch.dropped.as_mut().filter(|_| drops);
        let Saved { xa, dora: saved } = saved;
        let xa = xa.as_ref().expect(MADE_FOR_ADAPTERS).head(n * rank).reshape(&[n, rank]);
        let (saved, scratch) = (saved.as_mut(), scratch.dora.as_mut());
        let (saved, scratch) = saved.zip(scratch).expect(MADE_FOR_ADAPTERS);
        lora.output_with_magnitudes(dev, dora, (&self.weight, bias), (x, dropped), xa, y, saved, scratch);
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
        let (layer, saved) = (std::slice::from_mut(self), std::slice::from_ref(saved));
        backward(dev, layer, x, [dy], dx, accumulate, saved, scratch, dropout);
    }

    /// The first half of [`Linear::backward`]: what needs no x, and dx with it.
    pub fn backward_to_input(
        &mut self,
        dev: &Device,
        dy: View<'_>,
        dx: ViewMut<'_>,
        saved: &Saved,
        scratch: &mut Scratch,
        dropout: Option<u64>,
    ) {
        let (layer, saved) = (std::slice::from_mut(self), std::slice::from_ref(saved));
        backward_to_input(dev, layer, [dy], Some((dx, false)), saved, scratch, dropout);
    }

    /// The other half: the gradients of the matrices that x went through.
    pub fn backward_of_input(
        &mut self,
        dev: &Device,
        x: View<'_>,
        dy: View<'_>,
        scratch: &mut Scratch,
        dropout: Option<u64>,
    ) {
        backward_of_input(dev, std::slice::from_mut(self), x, [dy], scratch, dropout);
    }

    /// The gradient of the bias, dxa, and the gradients of B and of magnitudes.
    fn backward_output(
        &mut self,
        dev: &Device,
        dy: View<'_>,
        saved: &Saved,
        dxa: Option<&mut Tensor>,
        scratch: &mut Option<dora::Scratch>,
    ) {
        if let Some(db) = self.bias.as_mut().and_then(Parameter::gradient_mut) {
            rows::sum_rows(dev, dy, db);
        }
        if let (Some(lora), Some(dxa)) = (&mut self.lora, dxa) {
            let (n, rank, scale) = (dy.dim(0), lora.rank(), lora.scale);
            let mut dy = dy;
            if let (true, Some(saved), Some(scratch)) = (lora.dora.is_some(), &saved.dora, scratch.as_mut()) {
                lora.backward_magnitudes(dev, dy, saved, scratch);
                dy = scratch.du(n, dy.dim(1));
            }
            let (b, db) = lora.b.value_and_gradient();
            let (xa, dxa) = (saved.xa(n, rank), matrix(dxa, n, rank));
            lora::backward_output(dev, BackwardOutput { dy, b, xa, scale, dxa, db });
        }
    }

    /// The gradient of the input; what `backward_output` has left is in `saved` and in workspace.
    fn input_gradient(
        &self,
        dev: &Device,
        dy: View<'_>,
        (mut dx, accumulate): (ViewMut<'_>, bool),
        dxa: Option<&Tensor>,
        (saved, dropped, scratch): (&Saved, &mut Option<Tensor>, &mut Option<dora::Scratch>),
        dropout: Option<u64>,
    ) {
        let Some((lora, dxa)) = self.lora.as_ref().zip(dxa) else {
            return self.weight.dy_w(dy, dx.reborrow()).accumulate_if(accumulate).run(dev);
        };
        let (n, rank, inputs) = (dy.dim(0), lora.rank(), lora.a.shape()[1]);
        let dxa = dxa.head(n * rank).reshape(&[n, rank]);
        if let (true, Some(saved), Some(scratch)) = (lora.dora.is_some(), &saved.dora, scratch) {
            let dropped = dropped.as_mut().zip(lora.dropout_key(dropout));
            let (dy, dx) = ((dy, dxa), (dx, accumulate));
            return lora.input_gradient_with_magnitudes(dev, &self.weight, dy, dx, dropped, saved, scratch);
        }
        let product = self.weight.dy_w(dy, dx.reborrow()).accumulate_if(accumulate);
        match lora.dropout_key(dropout).zip(dropped.as_mut()) {
            None => product.plus(dxa, lora.a.value()).run(dev),
            Some((key, buffer)) => {
                product.run(dev);
                Matmul::dy_w(dxa, lora.a.value(), matrix(buffer, n, inputs)).run(dev);
                let through = buffer.head(n * inputs).reshape(&[n, inputs]);
                dropout::apply(dev, lora.dropout, key, through, dx, true);
            }
        }
    }
}

/// s·drop(x)·Aᵀ of all adapters on layers that read one x [N, in].
pub fn down<'a>(
    dev: &Device,
    x: View<'_>,
    layers: impl IntoIterator<Item = (&'a Linear, &'a mut Saved)>,
    scratch: &mut Scratch,
    dropout: Option<u64>,
) {
    let sharing = layers.into_iter().filter_map(|(layer, saved)| {
        let lora = layer.lora.as_ref()?;
        let xa = saved.xa.as_mut().expect(MADE_FOR_ADAPTERS);
        let xa = matrix(xa, x.dim(0), lora.rank());
        let adapter = Down { a: lora.a.value(), scale: lora.scale, xa };
        if lora.dropout_key(dropout).is_none() {
            return Some(adapter);
        }
        // What it reads is its own.
        lora::down(dev, lora.dropped(dev, x, &mut scratch.dropped, dropout), [adapter]);
        None
    });
    lora::down(dev, x, sharing);
}

/// [`Linear::backward`] of layers that read one x [N, in], whose gradients go to one dx.
///
/// # Panics
/// If there are more than three.
#[expect(clippy::too_many_arguments, reason = "x, dy and dx are the formula's own; the rest is workspace")]
pub fn backward<const P: usize>(
    dev: &Device,
    layers: &mut [Linear],
    x: View<'_>,
    gradients: [View<'_>; P],
    mut dx: Option<ViewMut<'_>>,
    accumulate: bool,
    saved: &[Saved],
    scratch: &mut Scratch,
    dropout: Option<u64>,
) {
    if layers.iter().any(|layer| layer.oft.is_some()) {
        // One after the other: the gradient of what a layer rotates is in workspace that all share.
        for (i, ((layer, dy), saved)) in layers.iter_mut().zip(gradients).zip(saved).enumerate() {
            let (layer, saved) = (std::slice::from_mut(layer), std::slice::from_ref(saved));
            let dx = dx.as_mut().map(|dx| (dx.reborrow(), accumulate || i > 0));
            backward_to_input(dev, layer, [dy], dx, saved, scratch, dropout);
            backward_of_input(dev, layer, x, [dy], scratch, dropout);
        }
        return;
    }
    backward_to_input(dev, layers, gradients, dx.map(|dx| (dx, accumulate)), saved, scratch, dropout);
    backward_of_input(dev, layers, x, gradients, scratch, dropout);
}

/// The gradients of biases, dxa, those of B, and dx, which is overwritten or, with `true`, added to.
fn backward_to_input<const P: usize>(
    dev: &Device,
    layers: &mut [Linear],
    gradients: [View<'_>; P],
    dx: Option<(ViewMut<'_>, bool)>,
    saved: &[Saved],
    scratch: &mut Scratch,
    dropout: Option<u64>,
) {
    assert!(layers.len() <= MOST_OF_ONE_INPUT, "{} linear layers of one input", layers.len());
    let Scratch { dropped, dxa, dora, oft } = scratch;
    let mut dx = dx;
    for (i, ((layer, dy), saved)) in layers.iter_mut().zip(gradients).zip(saved).enumerate() {
        layer.backward_output(dev, dy, saved, dxa.as_mut().map(|dxa| &mut dxa[i]), dora);
        if let Some(rotations) = &layer.oft {
            let (n, scratch) = (dy.dim(0), oft.as_mut().expect(MADE_FOR_ADAPTERS));
            layer.weight.dy_w(dy, rotations.gradient(n, layer.weight.shape()[1], scratch)).run(dev);
            if let Some((dx, accumulate)) = &mut dx {
                let to = (dx.reborrow(), *accumulate || i > 0);
                rotations.input_gradient(dev, to, scratch, dropout);
            }
            continue;
        }
        let Some((dx, accumulate)) = &mut dx else { continue };
        let to = (dx.reborrow(), *accumulate || i > 0);
        let work = (saved, &mut *dropped, &mut *dora);
        layer.input_gradient(dev, dy, to, dxa.as_ref().map(|dxa| &dxa[i]), work, dropout);
    }
}

/// The gradients of weights, of A and of rotations, dxa or that of the rotated input being there.
fn backward_of_input<const P: usize>(
    dev: &Device,
    layers: &mut [Linear],
    x: View<'_>,
    gradients: [View<'_>; P],
    scratch: &mut Scratch,
    dropout: Option<u64>,
) {
    let Scratch { dropped, dxa, oft, .. } = scratch;
    for (layer, dy) in layers.iter_mut().zip(gradients) {
        match (&mut layer.oft, &mut *oft) {
            // A weight beside rotations is frozen.
            (Some(rotations), Some(scratch)) => rotations.backward_rotations(dev, x, scratch, dropout),
            _ => layer.weight.add_dyt_x(dev, dy, x, 1.0),
        }
    }
    if let Some(dxa) = dxa {
        let sharing = layers
            .iter_mut()
            .zip(&*dxa)
            .filter_map(|(layer, dxa)| layer.lora.as_mut()?.backward_input(dev, x, dxa, dropped, dropout));
        lora::backward_input(dev, x, sharing);
    }
}

impl Lora {
    /// R.
    fn rank(&self) -> usize {
        self.a.shape()[0]
    }

    /// A, B and magnitudes.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.a, &self.b].into_iter().chain(self.dora.as_ref().map(|dora| &dora.magnitude))
    }

    /// A, B and magnitudes.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [&mut self.a, &mut self.b].into_iter().chain(self.dora.as_mut().map(|dora| &mut dora.magnitude))
    }

    /// drop(x), in workspace; or x itself where nothing is dropped.
    fn dropped<'a>(
        &self,
        dev: &Device,
        x: View<'a>,
        buffer: &'a mut Option<Tensor>,
        key: Option<u64>,
    ) -> View<'a> {
        match (buffer, self.dropout_key(key)) {
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

    /// The gradient of A; or, where it is trained and reads x itself, what it takes.
    fn backward_input<'a>(
        &'a mut self,
        dev: &Device,
        x: View<'_>,
        dxa: &'a Tensor,
        dropped: &mut Option<Tensor>,
        dropout: Option<u64>,
    ) -> Option<BackwardInput<'a>> {
        let (n, rank) = (x.dim(0), self.rank());
        let dxa = dxa.head(n * rank).reshape(&[n, rank]);
        if !self.a.takes_gradient() || self.dropout_key(dropout).is_none() {
            return self.a.gradient_mut().map(|da| BackwardInput { dxa, da });
        }
        let input = self.dropped(dev, x, dropped, dropout);
        let da = self.a.gradient_mut();
        lora::backward_input(dev, input, da.map(|da| BackwardInput { dxa, da }));
        None
    }
}
