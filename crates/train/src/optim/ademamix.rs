//! AdEMAMix: AdamW with a second, slow mean of the gradients.

use sft_kernels::update::rules;

use super::elementwise::Formula;

/// Settings of AdEMAMix; names as in bitsandbytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdEMAMixOptions {
    /// β₁, β₂, and β₃ of the slow mean.
    pub betas: [f64; 3],
    /// Weight of the slow mean.
    pub alpha: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Steps during which alpha climbs to its value.
    pub t_alpha: Option<u64>,
    /// Steps during which β₃ climbs from β₁ to its value.
    pub t_beta3: Option<u64>,
}

impl AdEMAMixOptions {
    fn alpha_at(&self, step: u64) -> f64 {
        let climbing = |steps: u64| (step as f64 * self.alpha / steps as f64).min(self.alpha);
        self.t_alpha.map_or(self.alpha, climbing)
    }

    /// β₃ of a step: its half-life grows in a straight line.
    fn beta3_at(&self, step: u64) -> f64 {
        let [beta1, _, beta3] = self.betas;
        let climbing = |steps: u64| {
            let (from, to, share) = (beta1.ln(), beta3.ln(), step as f64 / steps as f64);
            (from * to / ((1.0 - share) * to + share * from)).exp().min(beta3)
        };
        self.t_beta3.map_or(beta3, climbing)
    }
}

impl Formula<3> for AdEMAMixOptions {
    type Rule = rules::AdEMAMix;
    const KINDS: [[&'static str; 2]; 3] = [
        ["exp_avg", "exp_avg_absmax"],
        ["exp_avg_slow", "exp_avg_slow_absmax"],
        ["exp_avg_sq", "exp_avg_sq_absmax"],
    ];

    fn rule(&self, step: u64, grad_scale: f32) -> rules::AdEMAMix {
        let [beta1, beta2, _] = self.betas;
        let betas = [beta1, beta2, self.beta3_at(step)];
        rules::AdEMAMix { grad_scale, betas, alpha: self.alpha_at(step), eps: self.eps, step }
    }
}
