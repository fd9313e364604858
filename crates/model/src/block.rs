//! One block of the decoder (stages 9 and 11 of the walk).
//!
//! > m = of_sum(x + r·after(mixer(before(x)))), y = of_sum(m + r·after(mlp(before(m))))
//!
//! The mixer is attention in most families. before, after and of_sum are norms, or nothing; r is 1 in most families. In
//! parallel blocks mlp reads before(x) instead, by a norm of its own or by attention's; few blocks have no mlp, and y is m.
//! Saved for backward: m, what the two layers saved, and what goes into `after` and `of_sum`; the outputs of `before` where
//! there is room, else they are computed again from x and m.
//!
//! Few families end a block with a layer that takes in [`crate::per_layer`], and multiply y by a number.

use sft_kernels::{DType, Device, Tensor, View, ViewMut, rows};

use crate::arena::Arena;
use crate::cache::LayerCaches;
use crate::feed_forward::{self, FeedForward};
use crate::inputs;
use crate::latent;
use crate::linear::{self, Linear};
use crate::method::{Adapters, LayerAdapters};
use crate::mixer::{self, Mixer};
use crate::moe::Moe;
use crate::norm::Norm;
use crate::norms::{Norms, SavedNorms};
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::per_layer::{self, PerLayer};
use crate::spec::{DecoderSpec, InputNames, LayerSpec, MixerSpec, Part, Projection};
use crate::workspace::Capacity;

/// A block.
#[derive(Debug)]
pub struct Block {
    /// Norms around the mixer of tokens.
    pub attention_norms: Norms,
    /// Attention, or what stands in its place.
    pub mixer: Mixer,
    /// Norms around the feed-forward layer.
    pub mlp_norms: Norms,
    /// The feed-forward layer, or experts, if there are any.
    pub mlp: Option<FeedForward>,
    /// Whether both layers read x.
    pub parallel: bool,
    /// At the end of the block.
    pub per_layer: Option<PerLayer>,
    /// Multiplies what the block puts out, [1]; never trained.
    pub output_scalar: Option<Parameter>,
    /// r.
    pub residual_multiplier: f32,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    /// What goes into the mixer, where a norm makes it and it is kept, [N, C].
    mixer_input: Option<Tensor>,
    /// The same of the mlp.
    mlp_input: Option<Tensor>,
    attention_norms: SavedNorms,
    mixer: mixer::Saved,
    /// Where mlp reads it.
    m: Option<Tensor>,
    mlp_norms: SavedNorms,
    mlp: Option<feed_forward::Saved>,
    per_layer: Option<per_layer::Saved>,
}

impl Saved {
    /// Room for `tokens` tokens in the block of this number; with `keeps_inputs`, for what enters its layers too.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        (model, layer): (&DecoderSpec, usize),
        adapters: &LayerAdapters,
        keeps_inputs: bool,
    ) -> Self {
        let (spec, norm, hidden) = (&model.layers[layer], model.norm, model.hidden_size);
        let shape = (tokens, hidden);
        // The two layers of a parallel block may read one norm's output, in workspace.
        let keeps_normed = keeps_inputs && !spec.parallel;
        let mut input = |before: Option<&str>| {
            before.filter(|_| keeps_normed).map(|_| arena.tensor(dtype, &[tokens, hidden]))
        };
        let (mixer_input, mlp_input) = (input(spec.attention_norms.before), input(spec.mlp_norms.before));
        Self {
            mixer_input,
            mlp_input,
            attention_norms: SavedNorms::new(arena, dtype, shape, spec.attention_norms, norm),
            mixer: mixer::Saved::new(arena, dtype, tokens, (model, spec), adapters),
            m: (spec.has_mlp && !spec.parallel).then(|| arena.tensor(dtype, &[tokens, hidden])),
            mlp_norms: SavedNorms::new(arena, dtype, shape, spec.mlp_norms, norm),
            mlp: spec
                .has_mlp
                .then(|| feed_forward::Saved::new(arena, dtype, shape, spec, adapters, keeps_inputs)),
            per_layer: spec
                .per_layer
                .map(|layer| per_layer::Saved::new(arena, dtype, tokens, (model, layer), adapters)),
        }
    }
}

/// Workspace that all blocks share.
#[derive(Debug)]
pub struct Scratch {
    /// The output of a norm before a layer, [N, C].
    h: Tensor,
    /// What a layer adds, or the gradient of its input, [N, C].
    t: Tensor,
    /// The gradient of a layer's output where it is not that of the sum, [N, C].
    dout: Option<Tensor>,
    /// Of parallel blocks: m, then the gradient of attention's input, [N, C].
    parallel: Option<Tensor>,
    inputs: inputs::Scratch,
    pub(crate) per_layer: Option<per_layer::Inputs>,
    pub(crate) mlp: feed_forward::Scratch,
    mixer: mixer::Scratch,
}

impl Scratch {
    /// Room for a workspace's tokens; for `backward_tokens` (0 where none follows) in what backward alone needs.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (capacity, backward_tokens): (Capacity, usize),
        spec: &DecoderSpec,
        adapters: &Adapters,
    ) -> Self {
        let (tokens, c) = (capacity.tokens, spec.hidden_size);
        let dense = spec.layers.iter().filter_map(LayerSpec::dense);
        let widest = dense.map(|mlp| mlp.intermediate_size).max().unwrap_or(0);
        let attention = || spec.layers.iter().filter_map(LayerSpec::attends);
        let latent = attention().filter_map(|a| a.latent).map(|latent| latent.widest_input());
        let recurrent = spec.layers.iter().filter_map(|layer| layer.mixer.recurrent());
        let mixers = attention().map(|a| a.heads * a.head_dim).chain(latent);
        let mixers = mixers.chain(recurrent.map(|recurrent| recurrent.width(Part::V))).max();
        let inputs = widest.max(c).max(mixers.unwrap_or(0));
        let changes_outputs = spec.layers.iter().any(LayerSpec::changes_outputs);
        let parallel = spec.layers.iter().any(|layer| layer.parallel);
        let (largest, dropout) = (adapters.largest(), adapters.has_dropout());
        let linears = linear::Scratch::new(arena, dtype, (tokens, backward_tokens), inputs, largest, dropout);
        let latent = latent::Scratch::new(arena, dtype, tokens, spec);
        Self {
            h: arena.tensor(dtype, &[tokens, c]),
            t: arena.tensor(dtype, &[tokens, c]),
            dout: changes_outputs.then(|| arena.tensor(dtype, &[backward_tokens, c])),
            parallel: parallel.then(|| arena.tensor(dtype, &[tokens, c])),
            inputs: inputs::Scratch::new(arena, dtype, tokens, widest_fused(spec), (linears, latent)),
            mlp: feed_forward::Scratch::new(arena, dtype, (tokens, backward_tokens), spec, adapters),
            per_layer: per_layer::Inputs::new(arena, dtype, tokens, spec, adapters),
            mixer: mixer::Scratch::new(arena, dtype, (capacity, backward_tokens), spec),
        }
    }
}

/// The widest output of a linear layer that makes several things at once.
fn widest_fused(spec: &DecoderSpec) -> Option<usize> {
    let widths = spec.layers.iter().flat_map(|layer| {
        let attention = layer.attends().into_iter().flat_map(|a| {
            let qkv = (a.inputs, (a.heads + 2 * a.kv_heads) * a.head_dim);
            // Queries and their gates.
            let gate = a.output_gate.then_some((FUSED, 2 * a.heads * a.head_dim));
            [qkv].into_iter().chain(gate)
        });
        let conv = matches!(layer.mixer, MixerSpec::ShortConv(_)).then_some((FUSED, 3 * spec.hidden_size));
        let recurrent = layer.mixer.recurrent().into_iter().flat_map(|recurrent| {
            let width = |p: &Projection| p.parts.iter().map(|part| recurrent.width(*part)).sum();
            recurrent.inputs.iter().map(move |p| (p.input_names(recurrent.key_heads), width(p)))
        });
        let mlp = layer.dense().map(|mlp| (mlp.inputs, mlp.intermediate_size * (1 + usize::from(mlp.gated))));
        attention.chain(conv).chain(recurrent).chain(mlp)
    });
    widths.filter(|(names, _)| matches!(names, InputNames::Fused { .. })).map(|(_, width)| width).max()
}

/// Outputs that are made at once.
const FUSED: InputNames = InputNames::Fused { name: "", groups: 1 };

impl Block {
    /// y [N, C] from x [N, C].
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut y: ViewMut<'_>,
        saved: &mut Saved,
        scratch: &mut Scratch,
        caches: Option<LayerCaches<'_>>,
    ) {
        let (n, dev, r) = (x.dim(0), pass.dev, self.residual_multiplier);
        let (s, w) = (saved, scratch);
        let h = s.mixer_input.as_mut().unwrap_or(&mut w.h);
        let h = self.attention_norms.input(dev, x, h, &mut s.attention_norms);
        pass.see("input norm", h);
        self.attention_norms.output(dev, &mut w.t, n, &mut s.attention_norms, |out| {
            self.mixer.forward(pass, h, out, &mut s.mixer, (&mut w.mixer, &mut w.inputs), caches);
        });
        pass.see("norm of the mixer's output", w.t.head(n));
        let (Some(mlp), Some(of_mlp)) = (&self.mlp, &mut s.mlp) else {
            self.attention_norms.sum(dev, x, (r, w.t.head(n)), y.reborrow(), &mut s.attention_norms);
            return self.forward_end(pass, y, s, w);
        };
        let m = s.m.as_mut().or(w.parallel.as_mut()).expect("saved, or scratch of a parallel block");
        let (norms, t) = (&self.attention_norms, (r, w.t.head(n)));
        let (m, h) = if self.parallel {
            norms.sum(dev, x, t, m.head_mut(n), &mut s.attention_norms);
            let is_shared = self.mlp_norms.before.is_none();
            let h = if is_shared {
                w.h.head(n)
            } else {
                self.mlp_norms.input(dev, x, &mut w.h, &mut s.mlp_norms)
            };
            (m.head(n), h)
        } else {
            let h = s.mlp_input.as_mut().unwrap_or(&mut w.h);
            let next = (&self.mlp_norms, &mut s.mlp_norms, h);
            norms.sum_and_input(dev, x, t, m, &mut s.attention_norms, next)
        };
        pass.see("sum of input and mixer", m);
        pass.see("norm before the mlp", h);
        self.mlp_norms.output(dev, &mut w.t, n, &mut s.mlp_norms, |out| {
            mlp.forward(pass, h, out, of_mlp, (&mut w.mlp, &mut w.inputs));
        });
        pass.see("norm of the mlp's output", w.t.head(n));
        self.mlp_norms.sum(dev, m, (r, w.t.head(n)), y.reborrow(), &mut s.mlp_norms);
        self.forward_end(pass, y, s, w);
    }

    /// From the sum behind the last layer to y.
    fn forward_end(&self, pass: &Pass<'_>, mut y: ViewMut<'_>, s: &mut Saved, w: &mut Scratch) {
        if let (Some(layer), Some(saved), Some(p)) = (&self.per_layer, &mut s.per_layer, &w.per_layer) {
            layer.forward(pass, y.reborrow(), &mut w.t, saved, (p, &mut w.inputs.linears));
        }
        self.scale_output(pass.dev, y.reborrow(), &mut w.t);
        pass.see("output", y.as_view());
    }

    /// Multiplies the block's output, or the gradient of it.
    fn scale_output(&self, dev: &Device, y: ViewMut<'_>, t: &mut Tensor) {
        let Some(scalar) = &self.output_scalar else { return };
        let n = y.dim(0);
        rows::scale(dev, y.as_view(), scalar.value().to_f32_vec()[0], t.head_mut(n));
        y.copy_from(t.head(n));
    }

    /// From the gradient of y in `d` to that of the sum before the last layer.
    fn backward_end(&mut self, pass: &Pass<'_>, mut d: ViewMut<'_>, s: &mut Saved, w: &mut Scratch) {
        self.scale_output(pass.dev, d.reborrow(), &mut w.t);
        if let (Some(layer), Some(saved), Some(p)) = (&mut self.per_layer, &mut s.per_layer, &mut w.per_layer)
        {
            layer.backward(pass, d, &mut w.t, saved, (p, &mut w.inputs.linears));
        }
    }

    /// Turns the gradient of y in `d` into that of x. Below the first trained layer no one asks for it: with
    /// `needs_dx` false what is in `d` afterwards means nothing.
    pub fn backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut d: ViewMut<'_>,
        needs_dx: bool,
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        self.backward_end(pass, d.reborrow(), saved, scratch);
        if self.parallel {
            return self.backward_parallel(pass, x, d, needs_dx, saved, scratch);
        }
        let (n, dev, r) = (x.dim(0), pass.dev, self.residual_multiplier);
        let (s, w) = (saved, scratch);

        // y = of_sum(m + r·after(mlp(before(m))))
        if let (Some(mlp), Some(of_mlp), Some(m)) = (&mut self.mlp, &mut s.mlp, &s.m) {
            let (norms, m) = (&mut self.mlp_norms, m.head(n));
            norms.sum_gradient(dev, d.reborrow(), &mut w.t, &s.mlp_norms);
            let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.mlp_norms);
            let h = norms.input_again(dev, m, s.mlp_input.as_ref(), &mut w.h, &mut s.mlp_norms);
            let scratches = (&mut w.mlp, &mut w.inputs);
            mlp.backward(pass, h, dout, w.t.head_mut(n), of_mlp, scratches);
            pass.see("mlp", w.t.head(n));
            norms.input_gradient(dev, m, w.t.head(n), Some(d.reborrow()), &s.mlp_norms);
        }

        // m = of_sum(x + r·after(attention(before(x))))
        let norms = &mut self.attention_norms;
        norms.sum_gradient(dev, d.reborrow(), &mut w.t, &s.attention_norms);
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.attention_norms);
        let h = norms.input_again(dev, x, s.mixer_input.as_ref(), &mut w.h, &mut s.attention_norms);
        let needs_dh = needs_dx || norms.before.as_ref().is_some_and(Norm::takes_gradient);
        let dh = needs_dh.then(|| w.t.head_mut(n));
        self.mixer.backward(pass, h, dout, dh, &mut s.mixer, (&mut w.mixer, &mut w.inputs));
        if needs_dh {
            pass.see("mixer", w.t.head(n));
            norms.input_gradient(dev, x, w.t.head(n), needs_dx.then_some(d), &s.attention_norms);
        }
    }

    /// The same where y = x + r·after(attention(before(x))) + r·after(mlp(before(x))).
    fn backward_parallel(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut d: ViewMut<'_>,
        needs_dx: bool,
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        let (n, dev, r) = (x.dim(0), pass.dev, self.residual_multiplier);
        let (s, w) = (saved, scratch);
        let dh_attention = w.parallel.as_mut().expect("scratch of parallel blocks");
        let norms = &mut self.attention_norms;
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.attention_norms);
        let h = norms.input(dev, x, &mut w.h, &mut s.attention_norms);
        let (dh, scratches) = (Some(dh_attention.head_mut(n)), (&mut w.mixer, &mut w.inputs));
        self.mixer.backward(pass, h, dout, dh, &mut s.mixer, scratches);

        let is_shared = self.mlp_norms.before.is_none();
        let norms = &mut self.mlp_norms;
        let dout = norms.output_gradient(dev, d.as_view(), r, &mut w.dout, &s.mlp_norms);
        let h = if is_shared { w.h.head(n) } else { norms.input(dev, x, &mut w.h, &mut s.mlp_norms) };
        let scratches = (&mut w.mlp, &mut w.inputs);
        let (mlp, saved) = (self.mlp.as_mut(), s.mlp.as_mut());
        let (mlp, saved) = mlp.zip(saved).expect("parallel blocks have both layers");
        mlp.backward(pass, h, dout, w.t.head_mut(n), saved, scratches);

        // `d` is the gradient of y until both layers have read it.
        if is_shared {
            rows::add(dev, w.t.head(n), dh_attention.head_mut(n));
        } else {
            let dx = needs_dx.then(|| d.reborrow());
            norms.input_gradient(dev, x, w.t.head(n), dx, &s.mlp_norms);
        }
        let dx = needs_dx.then_some(d);
        self.attention_norms.input_gradient(dev, x, dh_attention.head(n), dx, &s.attention_norms);
    }

    /// Its experts, if it has some.
    pub(crate) fn mixture_mut(&mut self) -> Option<&mut Moe> {
        self.mlp.as_mut()?.moe.as_mut()
    }

    /// Every linear layer with its name inside the block.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear)> {
        let (_, mixer) = self.mixer.parts_mut();
        let per_layer = self.per_layer.iter_mut().flat_map(PerLayer::linears_mut);
        let mlp = self.mlp.iter_mut().flat_map(FeedForward::linears_mut);
        mixer.into_iter().chain(mlp).chain(per_layer)
    }

    /// Every linear layer with its name inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        let per_layer = self.per_layer.iter().flat_map(PerLayer::linears);
        let mlp = self.mlp.iter().flat_map(FeedForward::linears);
        self.mixer.linears().chain(mlp).chain(per_layer)
    }

    /// Every weight but the adapters', in the order of [`Block::parameters_mut`].
    pub fn base_parameters(&self) -> Vec<&Parameter> {
        let mut all: Vec<&Parameter> = self.attention_norms.parameters().collect();
        all.extend(self.mixer.parameters());
        all.extend(self.linears().flat_map(|(_, linear)| linear.base_parameters()));
        all.extend(self.mlp.iter().flat_map(FeedForward::other_parameters));
        all.extend(self.mlp_norms.parameters());
        all.extend(self.per_layer.iter().flat_map(|layer| layer.norm.parameters()));
        all.extend(&self.output_scalar);
        all
    }

    /// Every weight, adapters included, in a fixed order.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let mut all: Vec<&mut Parameter> = self.attention_norms.parameters_mut().collect();
        let (parameters, linears) = self.mixer.parts_mut();
        all.extend(parameters);
        all.extend(linears.into_iter().flat_map(|(_, linear)| linear.parameters_mut()));
        let [linears, others] = self.mlp.as_mut().map(FeedForward::parameters_mut).unwrap_or_default();
        all.extend(linears);
        let per_layer =
            self.per_layer.as_mut().map(|layer| (&mut layer.gate, &mut layer.output, &mut layer.norm));
        let (per_layer, per_layer_norm) =
            per_layer.map_or((None, None), |(gate, output, norm)| (Some([gate, output]), Some(norm)));
        all.extend(per_layer.into_iter().flatten().flat_map(Linear::parameters_mut));
        all.extend(others);
        all.extend(self.mlp_norms.parameters_mut());
        all.extend(per_layer_norm.into_iter().flat_map(Norm::parameters_mut));
        all.extend(&mut self.output_scalar);
        all
    }
}
