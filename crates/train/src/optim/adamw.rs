//! AdamW: `adamw_torch` in f32, and bitsandbytes' with states in 8 bits.

use sft_kernels::adamw::{self, AdamWParams, AdamWState, AdamWUpdate};
use sft_kernels::update::rules;
use sft_kernels::{Device, Tensor, ViewMut};
use sft_model::parameter::{ForUpdate, Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::elementwise::{Bits, Formula, layout};
use super::groups::Grouped;
use super::state::{Slot, State};
use super::{Groups, Optimizer};

/// Settings of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl AdamWOptions {
    pub(super) fn params(&self, learning_rate: f64, step: u64, grad_scale: f32) -> AdamWParams {
        let Self { beta1, beta2, eps } = *self;
        AdamWParams { learning_rate, beta1, beta2, eps, step, grad_scale }
    }
}

/// States in 8 bits.
impl Formula<2> for AdamWOptions {
    type Rule = rules::AdamW;
    const KINDS: [[&'static str; 2]; 2] = KINDS;

    fn rule(&self, step: u64, grad_scale: f32) -> rules::AdamW {
        rules::AdamW(self.params(0.0, step, grad_scale))
    }
}

const KINDS: [[&str; 2]; 2] = [["exp_avg", "exp_avg_absmax"], ["exp_avg_sq", "exp_avg_sq_absmax"]];

/// AdamW in f32: two moments for every trained element.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    groups: Grouped,
    state: State,
    updates: u64,
}

impl AdamW {
    /// The update of one weight alone.
    pub(super) fn update_one(
        dev: &Device,
        params: AdamWParams,
        parameter: &mut Parameter,
        [m, v]: [ViewMut<'_>; 2],
        weight_decay: f64,
    ) {
        let updates = parameter.for_update().map(|ForUpdate { weight: p, gradient: g }| AdamWUpdate {
            g,
            state: AdamWState { p, m, v },
            weight_decay,
        });
        adamw::update_all(dev, &params, updates.into_iter());
    }

    /// Moments of zero for the given parameters.
    pub fn new(options: AdamWOptions, groups: Groups, parameters: &[&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let state = State::new(parameters, |weight| slots(Bits::B32, weight));
        Self { options, groups: groups.group(&outlines), state, updates: 0 }
    }
}

/// What is kept for a weight.
pub(super) fn slots(bits: Bits, weight: &Outline) -> Vec<Slot> {
    layout(&KINDS, bits, weight)
}

impl Optimizer for AdamW {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        assert_eq!(parameters.len(), self.state.len(), "the parameters that the state was made for");
        self.updates += 1;
        let groups = self.groups.at(learning_rate);
        let mut rates: Vec<f64> = Vec::new();
        groups.iter().for_each(|group| {
            if !rates.contains(&group.learning_rate) {
                rates.push(group.learning_rate);
            }
        });
        for rate in rates {
            let params = self.options.params(rate, self.updates, grad_scale);
            let weights = parameters.iter_mut().zip(self.state.iter_mut()).zip(&self.groups.of);
            let updates = weights.filter_map(|((parameter, tensors), group)| {
                let group = groups[*group];
                if group.learning_rate != rate {
                    return None;
                }
                let ForUpdate { weight: p, gradient: g } = parameter.for_update()?;
                let [m, v]: [&mut Tensor; 2] = tensors.try_into().ok()?;
                let state = AdamWState { p, m: m.view_mut(), v: v.view_mut() };
                Some(AdamWUpdate { g, state, weight_decay: group.weight_decay })
            });
            adamw::update_all(dev, &params, updates);
        }
    }

    fn state(&self) -> Vec<(String, &Tensor)> {
        self.state.named()
    }

    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String> {
        self.updates = updates;
        self.state.restore(files)
    }
}
