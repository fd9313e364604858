//! AdamW with Hugging Face's parameter groups: weight decay on matrices, none on biases and norms.

use sft_kernels::adamw::{self, AdamWParams, AdamWState, AdamWUpdate};
use sft_kernels::{Device, Tensor};
use sft_model::parameter::{ForUpdate, Parameter};
use sft_model::weights::WeightFiles;

use super::Optimizer;

/// Settings of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of matrices.
    pub weight_decay: f64,
    /// Decays biases and norms too, as plain torch does.
    pub decay_all: bool,
}

/// AdamW: two moments for every trained element.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    moments: Vec<Moments>,
    updates: u64,
}

#[derive(Debug)]
struct Moments {
    name: String,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    /// Bytes of state for each trained element.
    pub const STATE_BYTES: usize = 8;

    /// Moments of zero for the given parameters.
    pub fn new(options: AdamWOptions, parameters: &[&mut Parameter]) -> Self {
        let moments = |p: &&mut Parameter| Moments { name: p.name().to_owned(), m: p.zeros(), v: p.zeros() };
        Self { options, moments: parameters.iter().map(moments).collect(), updates: 0 }
    }
}

impl Optimizer for AdamW {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        assert_eq!(parameters.len(), self.moments.len(), "the parameters that the state was made for");
        self.updates += 1;
        let AdamWOptions { beta1, beta2, eps, weight_decay, decay_all } = self.options;
        let params = AdamWParams { learning_rate, beta1, beta2, eps, step: self.updates, grad_scale };
        let pairs = parameters.iter_mut().zip(&mut self.moments);
        let updates = pairs.filter_map(|(parameter, moments)| {
            let decays = decay_all || parameter.decays();
            let ForUpdate { weight: p, gradient: g } = parameter.for_update()?;
            let state = AdamWState { p, m: moments.m.view_mut(), v: moments.v.view_mut() };
            Some(AdamWUpdate { g, state, weight_decay: if decays { weight_decay } else { 0.0 } })
        });
        adamw::update_all(dev, &params, updates);
    }

    fn state(&self) -> Vec<(String, &Tensor)> {
        let named = |m: &'_ Moments| [format!("exp_avg.{}", m.name), format!("exp_avg_sq.{}", m.name)];
        self.moments.iter().flat_map(|m| named(m).into_iter().zip([&m.m, &m.v])).collect()
    }

    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String> {
        for moments in &mut self.moments {
            let Moments { name, m, v } = moments;
            for (kind, tensor) in [("exp_avg", m), ("exp_avg_sq", v)] {
                let stored = files.tensor(&format!("{kind}.{name}"), tensor.shape())?;
                tensor.view_mut().copy_from(stored.view());
            }
        }
        self.updates = updates;
        Ok(())
    }
}
