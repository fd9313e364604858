//! Lion: the sign of a momentum.

use sft_kernels::update::rules;

use super::elementwise::Formula;

/// Settings of Lion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LionOptions {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
}

impl Formula<1> for LionOptions {
    type Rule = rules::Lion;
    const KINDS: [[&'static str; 2]; 1] = [["exp_avg", "exp_avg_absmax"]];

    fn rule(&self, _: u64, grad_scale: f32) -> rules::Lion {
        rules::Lion { grad_scale, beta1: self.beta1, beta2: self.beta2 }
    }
}
