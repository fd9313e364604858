//! A mixture of experts as data.

use sft_kernels::gated::Activation;
use sft_kernels::routing::Rule;

use crate::parameter::Stored;

/// A router, and experts of which each token goes to a few: y = Σ w·down_proj(act(gate(x)) · up(x)) over those.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeSpec {
    /// E.
    pub experts: usize,
    /// F of one expert.
    pub intermediate_size: usize,
    /// How experts are chosen and weighted.
    pub rule: Rule,
    /// What makes the logits.
    pub router: RouterSpec,
    /// Gate and up of all experts, [E, 2F, C].
    pub gate_up: ExpertNames,
    /// [E, C, F].
    pub down: ExpertNames,
    /// Whether both are stored with rows for columns: [E, C, 2F] and [E, F, C].
    pub transposed: bool,
    /// Whether their module does not say so to PEFT, which then has the matrix A of an adapter at the outputs.
    pub adapters_swapped: bool,
    /// Whether the outputs of gate and up take turns, rather than follow each other.
    pub interleaved: bool,
    /// On the gate.
    pub activation: Activation,
    /// Whether a weight multiplies its expert's input rather than the output.
    pub weighs_input: bool,
    /// Whether [`super::LayerSpec::mlp`] is an expert that all tokens go to.
    pub shared: bool,
    /// A linear layer to one number, whose σ multiplies the shared expert's output.
    pub shared_gate: Option<&'static str>,
}

/// The linear layer that makes a router's logits, [E, C].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterSpec {
    /// Its module inside the block.
    pub name: &'static str,
    /// How its weight lies in files, the first that is there.
    pub stored: &'static [Stored],
    /// Whether it has a bias.
    pub bias: bool,
    /// Whether it is a plain linear layer to transformers, which adapters on all linear layers go to.
    pub is_linear: bool,
    /// Whether PEFT puts adapters on it that transformers never runs: those in files are left aside.
    pub ignores_adapters: bool,
    /// What is added to scores for the choice.
    pub correction: Option<Correction>,
}

/// Numbers of a router, one for each expert, that training leaves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correction {
    /// Its name inside the block.
    pub name: &'static str,
    /// How it lies in files.
    pub stored: Stored,
    /// Whether it is [1, E] rather than [E].
    pub is_row: bool,
}

/// A weight of all experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// Its name inside the block.
    pub weight: &'static str,
    /// How it lies in files, the first that is there.
    pub stored: &'static [Stored],
    /// The bias' name, if there is one.
    pub bias: Option<&'static str>,
}

impl MoeSpec {
    /// k.
    pub fn top_k(&self) -> usize {
        self.rule.top_k
    }

    /// The linear layers that it has beside the shared expert, by their names inside the block.
    pub fn linear_names(&self) -> impl Iterator<Item = &'static str> {
        let router = self.router.is_linear.then_some(self.router.name);
        self.shared_gate.into_iter().chain(router)
    }

    /// What PEFT can adapt besides linear layers (`target_parameters`): the weights of the experts, and that of a router
    /// that is no plain linear layer. Their names inside the block, and those by which what carries the adapter is known.
    pub fn parameter_targets(&self) -> impl Iterator<Item = (String, &'static str)> {
        let router = self.router.name;
        let router = (!self.router.is_linear).then(|| (format!("{router}.weight"), router));
        let experts = [self.gate_up.weight, self.down.weight].map(|weight| (weight.to_owned(), weight));
        experts.into_iter().chain(router)
    }

    /// Whether another one needs as much room.
    pub fn is_shaped_as(&self, other: &Self) -> bool {
        let shape = |m: &Self| {
            (m.experts, m.intermediate_size, m.top_k(), m.shared, m.shared_gate, m.router.is_linear)
        };
        shape(self) == shape(other)
    }
}
