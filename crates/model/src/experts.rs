//! A linear layer of all experts, plain or with low-rank adapters (stages 9 and 11 of the walk).
//!
//! Of the rows x of expert e, with its matrix of every tensor:
//!
//! > y = x·W[e]ᵀ + b[e] + s·(x·A[e]ᵀ)·B[e]ᵀ
//!
//! Derivative, with xa = s·x·A[e]ᵀ (saved), dxa = s·dy·B[e], and w the weights of the rows where y was multiplied by them
//! (dy is the gradient of w·y):
//!
//! > dW[e] = (w·dy)ᵀ·x, db[e] = Σ w·dy, dB[e] = dyᵀ·(w·xa), dA[e] = (w·dxa)ᵀ·x, dx = w·(dy·W[e] + dxa·A[e])
//!
//! [`Experts::backward_input`] leaves the last without its w, which [`sft_kernels::experts::weigh`] puts there, since
//! the gradient of w is had from it too.

use sft_kernels::experts::{self, ExpertAdapters, ExpertWeights, Grouping};
use sft_kernels::{DType, Device, Tensor, View, ViewMut};

use crate::arena::Arena;
use crate::method::{Carried, LowRank};
use crate::parameter::{Outline, Parameter, Stored};
use crate::spec::MoeSpec;

/// A linear layer of all experts.
#[derive(Debug)]
pub struct Experts {
    /// [E, out, in], or [E, in, out] if `transposed`.
    pub weight: Parameter,
    /// [E, out].
    pub bias: Option<Parameter>,
    /// How the weight lies.
    pub transposed: bool,
    /// The low-rank adapters, if the layer carries such.
    pub lora: Option<ExpertLora>,
}

/// Low-rank adapters, one of each expert.
#[derive(Debug)]
pub struct ExpertLora {
    /// A: [E, R, in].
    pub a: Parameter,
    /// B: [E, out, R].
    pub b: Parameter,
    /// s: alpha / R, or alpha / √R with rsLoRA.
    pub scale: f32,
}

/// What adapters of experts are called and how they lie in PEFT's files: as one linear layer from in to E·R, and one from
/// R·E to out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertOutlines {
    /// A: [E, R, in].
    pub a: Outline,
    /// B: [E, out, R].
    pub b: Outline,
}

impl ExpertOutlines {
    /// Of adapters of rank R on a weight of this name, and of E experts, and of these widths [out, in].
    ///
    /// PEFT wraps the module that holds the weight. Where both weights of a mixture are in one module and both carry
    /// adapters, the first is `nested` inside the other's wrapper. Its matrix `lora_A` is at the inputs, but if the
    /// weight's module has rows for columns and does not say so (`swapped`): then `lora_A` is what B is here.
    pub fn new(
        weight: &str,
        nested: bool,
        swapped: bool,
        (experts, rank): (usize, usize),
        [outputs, inputs]: [usize; 2],
    ) -> Self {
        let module = weight.rsplit_once('.').map_or("", |(module, _)| module);
        let module = if nested { format!("{module}.base_layer") } else { module.to_owned() };
        let outline = |name: &str, shape: [usize; 3], axes: [usize; 3]| Outline {
            name: format!("{module}.{name}.weight"),
            shape: shape.to_vec(),
            stored: Stored::Reordered(axes),
        };
        let (of_inputs, of_outputs) = ([experts, rank, inputs], [experts, outputs, rank]);
        if swapped {
            let (a, b) = ([2, 1, 0], [0, 2, 1]);
            return Self { a: outline("lora_B", of_inputs, a), b: outline("lora_A", of_outputs, b) };
        }
        let (a, b) = ([0, 1, 2], [1, 2, 0]);
        Self { a: outline("lora_A", of_inputs, a), b: outline("lora_B", of_outputs, b) }
    }
}

impl ExpertLora {
    /// R.
    pub fn rank(&self) -> usize {
        self.a.shape()[1]
    }

    fn adapters(&self) -> ExpertAdapters<'_> {
        ExpertAdapters { a: self.a.value(), b: self.b.value(), scale: self.scale }
    }
}

/// What forward leaves for backward.
#[derive(Debug)]
pub struct Saved {
    /// s·x·Aᵀ: [N·k · largest R].
    xa: Option<Tensor>,
}

impl Saved {
    /// Room for `slots` rows of all experts.
    pub fn new(arena: &mut Arena<'_>, dtype: DType, slots: usize, carried: Option<Carried>) -> Self {
        let carried = carried.and_then(Carried::low_rank);
        Self { xa: carried.map(|LowRank { rank, .. }| arena.tensor(dtype, &[slots * rank])) }
    }
}

/// A flat buffer's start as a matrix.
fn matrix(buffer: &Tensor, rows: usize, columns: usize) -> View<'_> {
    buffer.head(rows * columns).reshape(&[rows, columns])
}

fn matrix_mut(buffer: &mut Tensor, rows: usize, columns: usize) -> ViewMut<'_> {
    buffer.head_mut(rows * columns).reshape(&[rows, columns])
}

const MADE_FOR_ADAPTERS: &str = "the workspace was made for the adapters on this model";

impl Experts {
    fn weights(&self) -> ExpertWeights<'_> {
        ExpertWeights {
            weight: self.weight.value(),
            transposed: self.transposed,
            bias: self.bias.as_ref().map(Parameter::value),
        }
    }

    /// Weight and bias.
    pub fn base_parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.weight].into_iter().chain(&self.bias)
    }

    /// What its adapters are made of.
    pub fn adapter_parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.lora.iter().flat_map(|lora| [&lora.a, &lora.b])
    }

    /// Weight and bias, and the adapters'.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let lora = self.lora.iter_mut().flat_map(|lora| [&mut lora.a, &mut lora.b]);
        [&mut self.weight].into_iter().chain(&mut self.bias).chain(lora)
    }

    /// Number of experts, and widths [out, in].
    pub fn sizes(&self) -> (usize, [usize; 2]) {
        let shape = self.weight.shape();
        (shape[0], if self.transposed { [shape[2], shape[1]] } else { [shape[1], shape[2]] })
    }

    /// Whether weight or bias takes a gradient, for which dy needs its rows' weights.
    pub fn base_takes_gradient(&self) -> bool {
        self.base_parameters().any(Parameter::takes_gradient)
    }

    /// Whether a gradient is made of x.
    pub fn reads_input_backward(&self) -> bool {
        self.base_takes_gradient() || self.lora.as_ref().is_some_and(|lora| lora.a.takes_gradient())
    }

    /// y [N·k, out] from x [N·k, in], rows in the order of their experts.
    pub fn forward(&self, dev: &Device, grouping: &Grouping, x: View<'_>, y: ViewMut<'_>, saved: &mut Saved) {
        let Some(lora) = &self.lora else { return self.weights().forward(dev, grouping, x, y, None) };
        let (slots, rank) = (x.dim(0), lora.rank());
        let xa = saved.xa.as_mut().expect(MADE_FOR_ADAPTERS);
        lora.adapters().down(dev, grouping, x, matrix_mut(xa, slots, rank));
        let plus = (matrix(xa, slots, rank), lora.b.value());
        self.weights().forward(dev, grouping, x, y, Some(plus));
    }

    /// dx without the weights of the rows, and the gradients of B; leaves dxa with these weights.
    pub fn backward_input(
        &mut self,
        dev: &Device,
        grouping: &Grouping,
        (dy, weights): (View<'_>, Option<View<'_>>),
        dx: ViewMut<'_>,
        saved: &mut Saved,
        dxa: &mut Option<Tensor>,
    ) {
        let Some(lora) = &mut self.lora else {
            return self.weights().backward_input(dev, grouping, dy, dx, None);
        };
        let (slots, rank) = (dy.dim(0), lora.rank());
        let (xa, dxa) = (saved.xa.as_mut(), dxa.as_mut());
        let (xa, dxa) = xa.zip(dxa).expect(MADE_FOR_ADAPTERS);
        if let Some(weights) = weights {
            experts::scale(dev, grouping, weights, matrix_mut(xa, slots, rank));
        }
        let (b, db) = lora.b.value_and_gradient();
        let adapters = ExpertAdapters { a: lora.a.value(), b, scale: lora.scale };
        let io = (dy, matrix(xa, slots, rank));
        adapters.backward_output(dev, grouping, io, matrix_mut(dxa, slots, rank), db);
        let plus = (matrix(dxa, slots, rank), lora.a.value());
        let weight = ExpertWeights { weight: self.weight.value(), transposed: self.transposed, bias: None };
        weight.backward_input(dev, grouping, dy, dx, Some(plus));
        if let Some(weights) = weights {
            experts::scale(dev, grouping, weights, matrix_mut(dxa, slots, rank));
        }
    }

    /// The gradients of weight and bias, dy being multiplied by the weights of its rows, and of A.
    pub fn backward_of_input(
        &mut self,
        dev: &Device,
        grouping: &Grouping,
        x: View<'_>,
        dy: View<'_>,
        dxa: &Option<Tensor>,
    ) {
        let transposed = self.transposed;
        if let (weight, Some(dw)) = self.weight.value_and_gradient() {
            let weights = ExpertWeights { weight, transposed, bias: None };
            weights.backward_weight(dev, grouping, (x, dy), dw);
        }
        if let Some(bias) = &mut self.bias {
            bias.accumulate(|db| ExpertWeights::backward_bias(dev, grouping, dy, db));
        }
        let Some(lora) = &mut self.lora else { return };
        let (slots, rank) = (x.dim(0), lora.rank());
        let dxa = matrix(dxa.as_ref().expect(MADE_FOR_ADAPTERS), slots, rank);
        lora.a.accumulate(|da| ExpertAdapters::backward_input(dev, grouping, (x, dxa), da));
    }
}

/// Which of a mixture's two weights of these names are adapted inside the wrapper of the other: the first, where both
/// are of one module and the second carries adapters too.
pub(crate) fn nested(weights: [&str; 2], second_carries: bool) -> [bool; 2] {
    let [a, b] = weights.map(|weight| weight.rsplit_once('.').map(|(module, _)| module));
    [second_carries && a == b, false]
}

/// What adapters of a mixture's two layers are in files, at these ranks; see [`ExpertOutlines::new`]. `path` makes full
/// names.
pub fn outlines(
    spec: &MoeSpec,
    hidden: usize,
    ranks: [Option<usize>; 2],
    path: impl Fn(&str) -> String,
) -> [Option<ExpertOutlines>; 2] {
    let [gate_up, down] = [path(spec.gate_up.weight), path(spec.down.weight)];
    let nested = nested([&gate_up, &down], ranks[1].is_some());
    let f = spec.intermediate_size;
    let of = |weight: &str, nested, rank: Option<usize>, widths| {
        let new =
            |rank| ExpertOutlines::new(weight, nested, spec.adapters_swapped, (spec.experts, rank), widths);
        rank.map(new)
    };
    [of(&gate_up, nested[0], ranks[0], [2 * f, hidden]), of(&down, nested[1], ranks[1], [hidden, f])]
}
