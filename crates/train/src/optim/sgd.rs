//! SGD, without momentum (nothing is kept) or with it.

use sft_kernels::update::rules;

use super::elementwise::Formula;

/// Settings of SGD; names as in `torch.optim.SGD`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdOptions {
    /// Memory of the gradients; 0 for none.
    pub momentum: f64,
    /// Share of a new gradient that the momentum leaves out.
    pub dampening: f64,
    /// Nesterov's step.
    pub nesterov: bool,
}

/// SGD without momentum.
pub(super) struct Plain;

impl Formula<0> for Plain {
    type Rule = rules::Sgd;
    const KINDS: [[&'static str; 2]; 0] = [];

    fn rule(&self, _: u64, grad_scale: f32) -> rules::Sgd {
        rules::Sgd { grad_scale }
    }
}

/// SGD with momentum.
pub(super) struct Momentum(pub SgdOptions);

impl Formula<1> for Momentum {
    type Rule = rules::Momentum;
    const KINDS: [[&'static str; 2]; 1] = [["momentum_buffer", ""]];

    fn rule(&self, step: u64, grad_scale: f32) -> rules::Momentum {
        let SgdOptions { momentum, dampening, nesterov } = self.0;
        rules::Momentum { grad_scale, momentum, dampening, nesterov, step }
    }
}
