//! A linear recurrence in the place of attention (stages 9 and 11 of the walk): Mamba-2's state space, or the gated delta
//! rule.
//!
//! > q, k, v, z, b, a = projections of x; q, k, v = silu(conv(q, k, v)), with the delta rule q and k of length 1
//! > step, decay from b and a; y = out_proj(gate(recurrence(q, k, v, step, decay), z))
//!
//! Saved for backward: what the projections put out, which backward overwrites by its gradients, and the recurrence's
//! output; the rest is computed again. A key is divided by its length as a norm without weights divides it, √D apart.

use std::ops::Range;

use sft_kernels::conv1d::{self, Conv1dParams, Taps};
use sft_kernels::decay::{self, HeadNumbers};
use sft_kernels::gated::{self, Activation};
use sft_kernels::linear_attention::{self, Gradients, LinearAttentionParams, Rule, Sizes};
use sft_kernels::rms_norm::{self, RmsNormParams};
use sft_kernels::{DType, Device, Tensor, View, ViewMut, rows};

use crate::arena::Arena;
use crate::cache::{LayerCache, LayerCaches};
use crate::inputs::{self, Inputs, in_rows, in_rows_mut};
use crate::linear::{self, Linear};
use crate::method::LayerAdapters;
use crate::mixer::PartsMut;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::spec::{DecoderSpec, GateSpec, InputNames, Part, Projection, RecurrentSpec, RuleSpec};

/// Added to the square of a key's length (flash-linear-attention's `l2norm`).
const LENGTH_EPS: f32 = 1e-6;

/// A recurrence.
#[derive(Debug)]
pub struct Recurrent {
    /// What makes the parts, in the order of the spec's.
    pub inputs: Vec<Inputs>,
    /// [channels, 1, W].
    pub conv: Parameter,
    /// [channels].
    pub conv_bias: Option<Parameter>,
    /// [H].
    pub a_log: Parameter,
    /// [H].
    pub dt_bias: Parameter,
    /// [H].
    pub skip: Option<Parameter>,
    /// Beside the gate.
    pub norm: Option<Norm>,
    /// [C, H·E].
    pub out_proj: Linear,
    /// Its sizes and names.
    pub spec: RecurrentSpec,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    /// What the projections put out, by [`Part`]: [N, width] each, but for a part that there is not.
    parts: [Option<Tensor>; 6],
    /// The recurrence's output, [N, H·E].
    o: Tensor,
    inputs: Vec<inputs::Saved>,
    out_proj: linear::Saved,
}

impl Projection {
    /// The linear layers' names.
    pub fn input_names(&self, key_heads: usize) -> InputNames {
        match self.names {
            [name] => InputNames::Fused { name, groups: if self.by_key_head { key_heads } else { 1 } },
            names => InputNames::Each(names),
        }
    }
}

impl RecurrentSpec {
    fn sizes(&self, tokens: usize) -> Sizes {
        let Self { key_heads, heads, key_dim, value_dim, .. } = *self;
        Sizes { tokens, key_heads, heads, key_dim, value_dim }
    }

    /// The constants of the recurrence: of queries and keys with the delta rule 1/√D is missing from their norm, and
    /// queries have it once more.
    fn params(&self) -> LinearAttentionParams {
        let root = (self.key_dim as f32).sqrt().recip();
        match self.rule {
            RuleSpec::Delta => {
                LinearAttentionParams { rule: Rule::Delta, q_scale: root * root, k_scale: root }
            }
            RuleSpec::StateSpace { .. } => {
                LinearAttentionParams { rule: Rule::Additive, q_scale: 1.0, k_scale: 1.0 }
            }
        }
    }

    fn length_params(&self) -> RmsNormParams {
        RmsNormParams { eps: LENGTH_EPS / self.key_dim as f32, offset: 0.0 }
    }

    fn has(&self, part: Part) -> bool {
        self.inputs.iter().any(|projection| projection.parts.contains(&part))
    }

    /// The convolution's channels of a part.
    fn channels_of(&self, part: Part) -> std::ops::Range<usize> {
        let before = self.conv_order.iter().take_while(|other| **other != part);
        let first = before.map(|part| self.width(*part)).sum();
        first..first + self.width(part)
    }

    fn conv_params(&self, part: Part) -> Conv1dParams {
        Conv1dParams { scale: self.multipliers[part as usize], silu: true }
    }

    /// Rows of the norm beside the gate, of one token.
    fn norm_rows(&self) -> usize {
        if matches!(self.gate, GateSpec::NormOfHeads(_)) { self.heads } else { 1 }
    }
}

impl Saved {
    /// Room for `tokens` tokens.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        tokens: usize,
        spec: &RecurrentSpec,
        adapters: &LayerAdapters,
    ) -> Self {
        let part = |part: Part| spec.has(part).then(|| arena.tensor(dtype, &[tokens, spec.width(part)]));
        let parts = ALL_PARTS.map(part);
        let names = spec.inputs.iter().map(|projection| projection.input_names(spec.key_heads));
        Self {
            parts,
            o: arena.tensor(dtype, &[tokens, spec.width(Part::V)]),
            inputs: names.map(|names| inputs::Saved::new(arena, dtype, tokens, names, adapters)).collect(),
            out_proj: linear::Saved::new(arena, dtype, tokens, adapters.carried_by(spec.output)),
        }
    }

    fn part(&self, part: Part, n: usize) -> View<'_> {
        self.parts[part as usize].as_ref().expect("a part that the spec has").head(n)
    }

    fn part_mut(&mut self, part: Part, n: usize) -> ViewMut<'_> {
        self.parts[part as usize].as_mut().expect("a part that the spec has").head_mut(n)
    }
}

const ALL_PARTS: [Part; 6] = [Part::Q, Part::K, Part::V, Part::Z, Part::B, Part::A];
/// Those that go through the convolution.
const CONVOLVED: [Part; 3] = [Part::Q, Part::K, Part::V];

/// Workspace that all recurrences of a model share, of the size of the widest.
#[derive(Debug)]
pub struct Scratch {
    /// q, k and v behind the convolution.
    convolved: [Tensor; 3],
    /// q and k of length 1, and statistics, with the delta rule.
    normed: Option<[(Tensor, Tensor); 2]>,
    step: Tensor,
    decay: Tensor,
    /// The gate's norm: its input or its output, and statistics.
    t: Option<(Tensor, Tensor)>,
    /// What goes into `out_proj`.
    inner: Tensor,
    back: Back,
}

/// What backward alone needs.
#[derive(Debug)]
struct Back {
    /// The gradient of `inner`.
    dinner: Tensor,
    /// Of the recurrence's output.
    d_o: Tensor,
    /// Of what it reads.
    parts: [Tensor; 3],
    /// Of what is before the norms, and before the convolution.
    before: [Tensor; 3],
    dstep: Tensor,
    ddecay: Tensor,
    recurrence: Tensor,
}

impl Scratch {
    /// Room for `tokens` tokens, `backward_tokens` in what backward alone needs; nothing for models without recurrences.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, backward_tokens): (usize, usize),
        spec: &DecoderSpec,
    ) -> Option<Self> {
        // Sizes are those of the first: families have one.
        let recurrent = spec.layers.iter().find_map(|layer| layer.mixer.recurrent())?;
        let on_card = arena.is_on_card();
        let width = |part: Part| recurrent.width(part);
        let mut parts = |tokens: usize| CONVOLVED.map(|part| arena.tensor(dtype, &[tokens, width(part)]));
        let (convolved, of_back, before) = (parts(tokens), parts(backward_tokens), parts(backward_tokens));
        let has_lengths = recurrent.rule == RuleSpec::Delta;
        let normed = has_lengths.then(|| {
            [Part::Q, Part::K].map(|part| {
                let statistics = arena.tensor(DType::F32, &[tokens, recurrent.key_heads]);
                (arena.tensor(dtype, &[tokens, width(part)]), statistics)
            })
        });
        let [step, decay] = [(); 2].map(|()| arena.tensor(DType::F32, &[tokens, recurrent.heads]));
        let [dstep, ddecay] = [(); 2].map(|()| arena.tensor(DType::F32, &[backward_tokens, recurrent.heads]));
        let values = width(Part::V);
        let t = recurrent.gate.norm().map(|_| {
            let statistics = arena.tensor(DType::F32, &[tokens, recurrent.norm_rows()]);
            (arena.tensor(dtype, &[tokens, values]), statistics)
        });
        let inner = arena.tensor(dtype, &[tokens, values]);
        let [dinner, d_o] = [(); 2].map(|()| arena.tensor(dtype, &[backward_tokens, values]));
        let recurrence = arena.tensor(DType::F32, &[recurrent.sizes(backward_tokens).scratch_len(on_card)]);
        let back = Back { dinner, d_o, parts: of_back, before, dstep, ddecay, recurrence };
        Some(Self { convolved, normed, step, decay, t, inner, back })
    }
}

impl Recurrent {
    /// y [N, C] from x [N, C]. With caches the recurrence of each row goes on with its own state.
    pub fn forward(
        &self,
        pass: &Pass<'_>,
        x: View<'_>,
        y: ViewMut<'_>,
        saved: &mut Saved,
        (scratch, inputs): (&mut Scratch, &mut inputs::Scratch),
        mut caches: Option<LayerCaches<'_>>,
    ) {
        let (n, dev, s, w) = (x.dim(0), pass.dev, saved, scratch);
        self.project(pass, x, s, inputs);
        if self.spec.multipliers[Part::Z as usize] != 1.0 {
            rows::scale_in_place(dev, self.spec.multipliers[Part::Z as usize], s.part_mut(Part::Z, n));
        }
        self.prepare(dev, pass.rows, n, s, w, caches.as_mut().map(LayerCaches::reborrow));
        LayerCaches::each(caches, pass.rows, |tokens, starts, cache| {
            let shape = [tokens.len(), self.spec.heads, self.spec.value_dim];
            let out = s.o.view_mut().into_rows(tokens.clone()).reshape(&shape);
            let (io, params) = (self.recurrence_inputs(tokens, w), self.spec.params());
            linear_attention::forward(dev, params, starts, io, cache.map(LayerCache::state), out);
        });
        self.gate(dev, n, s, w);
        let linears = &mut inputs.linears;
        self.out_proj.forward(dev, w.inner.head(n), y, &mut s.out_proj, linears, pass.dropout);
    }

    /// All parts from x.
    fn project(&self, pass: &Pass<'_>, x: View<'_>, s: &mut Saved, scratch: &mut inputs::Scratch) {
        let n = x.dim(0);
        for (i, projection) in self.spec.inputs.iter().enumerate() {
            let (layers, saved) = (&self.inputs[i], &mut s.inputs[i]);
            let mut parts = s.parts.each_mut().map(|part| part.as_mut().map(|part| part.head_mut(n)));
            let mut take = |part: Part| parts[part as usize].take().expect("each part once");
            match *projection.parts {
                [a, b] => layers.forward(pass, x, [a, b].map(take), saved, scratch),
                [a, b, c] => layers.forward(pass, x, [a, b, c].map(take), saved, scratch),
                [a, b, c, d] => layers.forward(pass, x, [a, b, c, d].map(take), saved, scratch),
                [a, b, c, d, e] => layers.forward(pass, x, [a, b, c, d, e].map(take), saved, scratch),
                _ => layers.forward(pass, x, [take(projection.parts[0])], saved, scratch),
            }
        }
    }

    /// What the recurrence reads, from what is saved.
    fn prepare(
        &self,
        dev: &Device,
        starts: &[u32],
        n: usize,
        s: &Saved,
        w: &mut Scratch,
        caches: Option<LayerCaches<'_>>,
    ) {
        LayerCaches::each(caches, starts, |tokens, starts, mut cache| {
            for (i, part) in CONVOLVED.into_iter().enumerate() {
                let (taps, params) = (self.taps(part), self.spec.conv_params(part));
                let (x, y) = (s.part(part, n).rows(tokens.clone()), w.convolved[i].view_mut());
                let history = cache.as_ref().map(|cache| cache.history(i));
                conv1d::forward(dev, params, starts, (x, history), taps, y.into_rows(tokens.clone()));
                cache.iter_mut().for_each(|cache| cache.remember(i, x));
            }
        });
        if let Some(normed) = &mut w.normed {
            let rows = n * self.spec.key_heads;
            for ((y, rstd), x) in normed.iter_mut().zip(&w.convolved) {
                let (x, y) = (in_rows(x.head(n), rows), in_rows_mut(y.head_mut(n), rows));
                let rstd = rstd.head_mut(n).reshape(&[rows]);
                rms_norm::forward(dev, self.spec.length_params(), x, None, y, rstd);
            }
        }
        let b = self.spec.has(Part::B).then(|| s.part(Part::B, n));
        let outputs = (w.step.head_mut(n), w.decay.head_mut(n));
        decay::forward(dev, self.numbers(), s.part(Part::A, n), b, outputs.0, outputs.1);
    }

    fn taps(&self, part: Part) -> Taps<'_> {
        let channels = self.spec.channels_of(part);
        let bias = self.conv_bias.as_ref().map(|bias| bias.value().rows(channels.clone()));
        Taps { w: self.conv.value().rows(channels), b: bias }
    }

    fn numbers(&self) -> HeadNumbers<'_> {
        let scale = self.spec.multipliers[Part::A as usize];
        HeadNumbers { a_log: self.a_log.value(), dt_bias: self.dt_bias.value(), scale }
    }

    fn recurrence_inputs<'a>(&'a self, tokens: Range<usize>, w: &'a Scratch) -> linear_attention::Inputs<'a> {
        let RecurrentSpec { key_heads, heads, key_dim, value_dim, .. } = self.spec;
        let n = tokens.len();
        let of = |x: &'a Tensor| x.view().rows(tokens.clone());
        let [q, k, v] = &w.convolved;
        let [q, k] = match &w.normed {
            Some([(q, _), (k, _)]) => [q, k],
            None => [q, k],
        };
        let [q, k] = [q, k].map(|x| of(x).reshape(&[n, key_heads, key_dim]));
        let v = of(v).reshape(&[n, heads, value_dim]);
        let skip = self.skip.as_ref().map(Parameter::value);
        linear_attention::Inputs { q, k, v, step: of(&w.step), decay: of(&w.decay), skip }
    }

    /// What goes into `out_proj`, from the recurrence's output and z.
    fn gate(&self, dev: &Device, n: usize, s: &Saved, w: &mut Scratch) {
        let (z, o, silu) = (s.part(Part::Z, n), s.o.head(n), Activation::Silu);
        let rows = n * self.spec.norm_rows();
        match (self.spec.gate, &self.norm, &mut w.t) {
            (GateSpec::NormOfHeads(_) | GateSpec::NormFirst(_), Some(norm), Some((t, rstd))) => {
                let (y, rstd) = (in_rows_mut(t.head_mut(n), rows), in_rows_mut(rstd.head_mut(n), rows));
                norm.forward(dev, in_rows(o, rows), y, rstd);
                gated::forward(dev, silu, z, t.head(n), w.inner.head_mut(n));
            }
            (GateSpec::NormLast(_), Some(norm), Some((t, rstd))) => {
                gated::forward(dev, silu, z, o, t.head_mut(n));
                norm.forward(dev, t.head(n), w.inner.head_mut(n), rstd.head_mut(n));
            }
            _ => gated::forward(dev, silu, z, o, w.inner.head_mut(n)),
        }
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
        self.prepare(dev, pass.rows, n, s, w, None);
        self.gate(dev, n, s, w);
        let (inner, dinner, linears) =
            (w.inner.head(n), Some(w.back.dinner.head_mut(n)), &mut inputs.linears);
        self.out_proj.backward(dev, inner, dy, dinner, false, &s.out_proj, linears, pass.dropout);
        self.gate_backward(dev, n, s, w);
        self.recurrence_backward(pass, n, s, w);
        self.prepare_backward(dev, pass.rows, n, s, w);
        self.project_backward(pass, x, dx, s, (w, inputs));
    }

    /// Whether the norm beside the gate reads the recurrence's output itself.
    fn norm_is_first(&self) -> bool {
        matches!(self.spec.gate, GateSpec::NormOfHeads(_) | GateSpec::NormFirst(_))
    }

    /// From the gradient of `inner` in `dinner` to that of z, and that of the recurrence's output: in `d_o` where a norm
    /// has read it, else in its own place.
    fn gate_backward(&mut self, dev: &Device, n: usize, s: &mut Saved, w: &mut Scratch) {
        let (silu, rows) = (Activation::Silu, n * self.spec.norm_rows());
        let (back, z) = (&mut w.back, Part::Z);
        match (self.spec.gate, &mut self.norm, &mut w.t) {
            (GateSpec::NormOfHeads(_) | GateSpec::NormFirst(_), Some(norm), Some((t, rstd))) => {
                gated::backward(dev, silu, back.dinner.head_mut(n), s.part_mut(z, n), t.head_mut(n), false);
                let saved = (in_rows(s.o.head(n), rows), in_rows(rstd.head(n), rows));
                let (dy, to) = (in_rows(t.head(n), rows), in_rows_mut(back.d_o.head_mut(n), rows));
                norm.backward_over(dev, saved, dy, to);
            }
            (GateSpec::NormLast(_), Some(norm), Some((t, rstd))) => {
                let saved = (t.head(n), rstd.head(n));
                norm.backward_over(dev, saved, back.dinner.head(n), back.d_o.head_mut(n));
                let Saved { parts, o, .. } = s;
                let z = parts[z as usize].as_mut().expect("a part that the spec has").head_mut(n);
                gated::backward(dev, silu, back.d_o.head_mut(n), z, o.head_mut(n), false);
            }
            _ => {
                let Saved { parts, o, .. } = s;
                let z = parts[z as usize].as_mut().expect("a part that the spec has").head_mut(n);
                gated::backward(dev, silu, back.dinner.head_mut(n), z, o.head_mut(n), false);
            }
        }
        if self.spec.multipliers[z as usize] != 1.0 {
            rows::scale_in_place(dev, self.spec.multipliers[z as usize], s.part_mut(z, n));
        }
    }

    /// From the gradient of the recurrence's output to those of what it reads.
    fn recurrence_backward(&mut self, pass: &Pass<'_>, n: usize, s: &Saved, w: &mut Scratch) {
        let RecurrentSpec { key_heads, heads, key_dim, value_dim, .. } = self.spec;
        let params = self.spec.params();
        let mut skip = self.skip.take();
        let (value, dskip) = skip.as_mut().map(Parameter::value_and_gradient).unzip();
        let Scratch { convolved, normed, step, decay, back, .. } = w;
        let [q, k, v] = &*convolved;
        let [q, k] = match normed {
            Some([(q, _), (k, _)]) => [&*q, &*k],
            None => [q, k],
        };
        let [q, k] = [q, k].map(|x| x.head(n).reshape(&[n, key_heads, key_dim]));
        let v = v.head(n).reshape(&[n, heads, value_dim]);
        let io = linear_attention::Inputs { q, k, v, step: step.head(n), decay: decay.head(n), skip: value };
        let [dq, dk, dv] = &mut back.parts;
        let [dq, dk] = [dq, dk].map(|d| d.head_mut(n).reshape(&[n, key_heads, key_dim]));
        let gradients = Gradients {
            dq,
            dk,
            dv: dv.head_mut(n).reshape(&[n, heads, value_dim]),
            dstep: back.dstep.head_mut(n),
            ddecay: back.ddecay.head_mut(n),
            dskip: dskip.flatten(),
        };
        let d_o = if self.norm_is_first() { &back.d_o } else { &s.o };
        let d_o = d_o.head(n).reshape(&[n, heads, value_dim]);
        let scratch = back.recurrence.view_mut();
        linear_attention::backward(pass.dev, params, pass.rows, io, d_o, gradients, scratch);
        self.skip = skip;
    }

    /// From the gradients of what the recurrence reads to those of what the projections put out.
    fn prepare_backward(&mut self, dev: &Device, starts: &[u32], n: usize, s: &mut Saved, w: &mut Scratch) {
        let (spec, back) = (&self.spec, &mut w.back);
        if let Some(normed) = &w.normed {
            let (params, rows) = (spec.length_params(), n * spec.key_heads);
            for (i, (_, rstd)) in normed.iter().enumerate() {
                let x = in_rows(w.convolved[i].head(n), rows);
                let saved = rms_norm::Saved { x, rstd: rstd.head(n).reshape(&[rows]) };
                let dy = in_rows(back.parts[i].head(n), rows);
                let dx = in_rows_mut(back.before[i].head_mut(n), rows);
                let into = rms_norm::Gradients { dx: Some((dx, false)), dw: None };
                rms_norm::backward(dev, params, None, dy, saved, into);
            }
        }
        for (i, part) in CONVOLVED.into_iter().enumerate() {
            // q and k are behind their norms where there are such.
            let is_normed = w.normed.is_some() && i < 2;
            let (dy, dx) = (&mut back.parts[i], &mut back.before[i]);
            let (dy, dx) = if is_normed { (dx, dy) } else { (dy, dx) };
            let channels = spec.channels_of(part);
            let (weight, dw) = self.conv.value_and_gradient();
            let (bias, db) = self.conv_bias.as_mut().map(Parameter::value_and_gradient).unzip();
            let taps = Taps { w: weight.rows(channels.clone()), b: bias.map(|b| b.rows(channels.clone())) };
            let io = conv1d::Backward {
                x: s.parts[part as usize].as_ref().expect("a part that the spec has").head(n),
                dy: dy.head_mut(n),
                dx: dx.head_mut(n),
                dw: dw.map(|dw| dw.into_rows(channels.clone())),
                db: db.flatten().map(|db| db.into_rows(channels)),
            };
            conv1d::backward(dev, spec.conv_params(part), starts, taps, io);
        }
        let scale = spec.multipliers[Part::A as usize];
        let (a_log, da_log) = self.a_log.value_and_gradient();
        let (dt_bias, ddt_bias) = self.dt_bias.value_and_gradient();
        let [.., b, a] = s.parts.each_mut().map(|part| part.as_mut().map(|part| part.head_mut(n)));
        let io = decay::Backward {
            a: a.expect("every recurrence has decays"),
            b,
            dstep: back.dstep.head_mut(n),
            ddecay: back.ddecay.head_mut(n),
            da_log,
            ddt_bias,
        };
        decay::backward(dev, HeadNumbers { a_log, dt_bias, scale }, io);
    }

    fn project_backward(
        &mut self,
        pass: &Pass<'_>,
        x: View<'_>,
        mut dx: Option<ViewMut<'_>>,
        s: &Saved,
        (w, scratch): (&Scratch, &mut inputs::Scratch),
    ) {
        let n = x.dim(0);
        // As `prepare_backward` leaves them.
        let gradient = |part: Part| match CONVOLVED.into_iter().position(|other| other == part) {
            Some(i) if w.normed.is_some() && i < 2 => w.back.parts[i].head(n),
            Some(i) => w.back.before[i].head(n),
            None => s.part(part, n),
        };
        for (i, projection) in self.spec.inputs.iter().enumerate() {
            let (layers, saved) = (&mut self.inputs[i], &s.inputs[i]);
            let part = gradient;
            let dx = (dx.as_mut().map(ViewMut::reborrow), i > 0);
            match *projection.parts {
                [a, b] => layers.backward_to(pass, x, [a, b].map(part), dx, saved, scratch),
                [a, b, c] => layers.backward_to(pass, x, [a, b, c].map(part), dx, saved, scratch),
                [a, b, c, d] => layers.backward_to(pass, x, [a, b, c, d].map(part), dx, saved, scratch),
                [a, b, c, d, e] => layers.backward_to(pass, x, [a, b, c, d, e].map(part), dx, saved, scratch),
                _ => layers.backward_to(pass, x, [part(projection.parts[0])], dx, saved, scratch),
            }
        }
    }

    /// Its weights beside those of linear layers.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let conv = [&self.conv].into_iter().chain(&self.conv_bias);
        let heads = [&self.a_log, &self.dt_bias].into_iter().chain(&self.skip);
        conv.chain(heads).chain(self.norm.iter().flat_map(Norm::parameters))
    }

    /// Its weights beside those of linear layers, and its linear layers.
    pub fn parts_mut(&mut self) -> PartsMut<'_> {
        let Self { inputs, conv, conv_bias, a_log, dt_bias, skip, norm, out_proj, spec } = self;
        let heads = [a_log, dt_bias].into_iter().chain(skip);
        let all = [conv].into_iter().chain(conv_bias).chain(heads);
        let all = all.chain(norm.iter_mut().flat_map(Norm::parameters_mut)).collect();
        let linears = inputs.iter_mut().flat_map(Inputs::iter_mut).chain([(spec.output, out_proj)]);
        (all, linears.collect())
    }

    /// Its linear layers with their names inside the block.
    pub fn linears(&self) -> impl Iterator<Item = (&'static str, &Linear)> {
        self.inputs.iter().flat_map(Inputs::iter).chain([(self.spec.output, &self.out_proj)])
    }
}
