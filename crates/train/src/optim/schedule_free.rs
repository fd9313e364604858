//! Schedule-free AdamW: training goes on from a point between the newest one and the average of all; the average is what
//! is evaluated and written.
//!
//! The weights are y. While they are evaluated or written they are the average, which follows from y and z; y waits in the
//! memory of the gradients, so that it comes back to the bit.

use sft_kernels::update::{self, Group, States, Update, rules};
use sft_kernels::{Device, Tensor};
use sft_model::parameter::{ForExchange, ForUpdate, Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::groups::Grouped;
use super::state::{Slot, State, from_tensor, to_tensor};
use super::{Groups, Optimizer};

/// Settings; names as in the package schedulefree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScheduleFreeOptions {
    /// β₁: how far the weights are from the newest point.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Steps during which the learning rate climbs, besides the schedule's.
    pub warmup_steps: u64,
    /// A step counts in the average with its number to this power.
    pub r: f64,
    /// And with the largest learning rate so far to this one.
    pub weight_lr_power: f64,
}

/// Schedule-free AdamW.
pub struct ScheduleFree {
    options: ScheduleFreeOptions,
    groups: Grouped,
    state: State,
    updates: u64,
    /// Sum of what steps count in the average, and the largest learning rate: kept in a tensor for checkpoints.
    sums: Tensor,
}

const SUMS: &str = "weight_sum_and_lr_max";

impl ScheduleFree {
    /// Both points where the weights are.
    pub fn new(options: ScheduleFreeOptions, groups: Groups, parameters: &mut [&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let mut state = State::new(parameters, layout);
        for (parameter, mut tensors) in parameters.iter_mut().zip(state.iter_mut()) {
            tensors[0].view_mut().copy_from(parameter.to_host().view());
        }
        Self { options, groups: groups.group(&outlines), state, updates: 0, sums: to_tensor(&[0.0, -1.0]) }
    }

    /// This step's share of the average.
    fn share(&mut self, learning_rate: f64) -> f64 {
        let [sum, largest] = from_tensor(&self.sums)[..] else { unreachable!("two numbers") };
        let largest = largest.max(learning_rate);
        let weight = (self.updates as f64).powf(self.options.r) * largest.powf(self.options.weight_lr_power);
        let sum = sum + weight;
        self.sums = to_tensor(&[sum, largest]);
        if sum == 0.0 { 0.0 } else { weight / sum }
    }
}

pub(super) fn layout(weight: &Outline) -> Vec<Slot> {
    ["z", "exp_avg_sq"].map(|kind| Slot::of(kind, &weight.shape)).into()
}

impl Optimizer for ScheduleFree {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        self.updates += 1;
        let ScheduleFreeOptions { beta1, beta2, eps, warmup_steps, .. } = self.options;
        let climbed =
            if self.updates <= warmup_steps { self.updates as f64 / warmup_steps as f64 } else { 1.0 };
        let learning_rate = learning_rate * climbed;
        let share = self.share(learning_rate);
        let rule = rules::ScheduleFree { grad_scale, beta1, beta2, eps, share, step: self.updates };
        let weights = parameters.iter_mut().zip(self.state.iter_mut()).zip(&self.groups.of);
        let updates = weights.filter_map(|((parameter, tensors), group)| {
            let ForUpdate { weight: p, gradient: g } = parameter.for_update()?;
            Some(Update { g, p, states: super::elementwise::states(tensors, None), group: *group })
        });
        update::update_all(dev, &rule, &self.groups.at(learning_rate), updates);
    }

    fn state(&self) -> Vec<(String, &Tensor)> {
        self.state.named().into_iter().chain([(SUMS.to_owned(), &self.sums)]).collect()
    }

    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String> {
        self.updates = updates;
        let sums = files.tensor(SUMS, self.sums.shape())?;
        self.sums.view_mut().copy_from(sums.view());
        self.state.restore(files)
    }

    fn evaluates_elsewhere(&self) -> bool {
        true
    }

    fn begin_evaluation(&mut self, dev: &Device, parameters: &mut [&mut Parameter]) {
        let weights = parameters.iter_mut().zip(self.state.iter_mut());
        let updates = weights.filter_map(|(parameter, tensors)| {
            let ForExchange { weight: p, memory } = parameter.for_exchange()?;
            let z: &Tensor = tensors.into_iter().next()?;
            Some(Update { g: z.view(), p, states: States::Whole([memory]), group: 0 })
        });
        update::update_all(dev, &rules::Average { beta1: self.options.beta1 }, &[NO_GROUP], updates);
    }

    fn end_evaluation(&mut self, dev: &Device, parameters: &mut [&mut Parameter]) {
        let updates = parameters.iter_mut().filter_map(|parameter| {
            let ForUpdate { weight: p, gradient: g } = parameter.for_update()?;
            Some(Update { g, p, states: States::Whole([]), group: 0 })
        });
        update::update_all(dev, &rules::Replace, &[NO_GROUP], updates);
    }
}

/// For rules that read none.
const NO_GROUP: Group = Group { learning_rate: 0.0, weight_decay: 0.0 };
