//! BAdam (Luo et al., 2024): AdamW on a part of the weights for some updates, then on the next part, with new moments: a
//! block of the model (layer mode), or a share of each matrix (ratio mode). As the package badam has it, with what
//! LLaMA-Factory sets; embeddings and heads stay as they are.

use std::ops::Range;

use sft_data::shuffle;
use sft_kernels::{Device, Tensor, View, random};
use sft_model::parameter::{Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::adafactor::Step;
use super::galore::{adam_rate, plain_adam};
use super::parts::blocks;
use super::state::Slot;
use super::{AdamW, AdamWOptions, Groups, Optimizer, host};

/// The order of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOrder {
    /// From the first one.
    Ascending,
    /// From the last one.
    Descending,
    /// Each once in an order that is drawn, then in another.
    Random,
    /// One alone.
    Fixed,
}

/// Settings of layer mode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BAdamLayers {
    /// β₁, β₂, eps.
    pub adam: AdamWOptions,
    /// Weight decay.
    pub groups: Groups,
    /// The order of the blocks.
    pub order: BlockOrder,
    /// The first block, unless the order says it.
    pub start: Option<usize>,
    /// Updates of a block; `None` stays with the first.
    pub switch_interval: Option<u64>,
    /// Of a drawn order.
    pub seed: u64,
}

/// Which elements of a matrix are updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskMode {
    /// One after the other.
    Adjacent,
    /// Here and there.
    Scatter,
}

/// Settings of ratio mode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BAdamRatio {
    /// β₁, β₂, eps.
    pub adam: AdamWOptions,
    /// Share of the elements.
    pub ratio: f64,
    /// Which of them.
    pub mask: MaskMode,
    /// Of elements here and there.
    pub seed: u64,
}

/// Updates of one share in ratio mode: the package's default, which LLaMA-Factory does not set.
const RATIO_SWITCHES_AFTER: u64 = 100;

impl BAdamLayers {
    /// Number of blocks that these weights are in.
    pub fn blocks(weights: &[Outline]) -> usize {
        blocks(weights).len()
    }

    /// Bytes of the moments of the largest block.
    pub(super) fn state_bytes(weights: &[Outline]) -> usize {
        let moments = |weight: &Outline| super::adamw::slots(super::Bits::B32, weight);
        Self::of_largest(weights, |weight| moments(weight).iter().map(Slot::bytes).sum())
    }

    /// Bytes of its gradients: the other blocks rest.
    pub(super) fn gradient_bytes(weights: &[Outline]) -> usize {
        Self::of_largest(weights, |weight| weight.elements() * size_of::<f32>())
    }

    /// The sum over the weights of a block, of the one that has most.
    fn of_largest(weights: &[Outline], bytes: impl Fn(&Outline) -> usize) -> usize {
        let of_block = |of: &Vec<usize>| of.iter().map(|i| bytes(&weights[*i])).sum();
        blocks(weights).iter().map(of_block).max().unwrap_or(0)
    }

    /// How many times blocks were switched before the update number `update` (from 1), and the number of the first update
    /// of its block. The first block has one update fewer, as in the package.
    fn switches(&self, update: u64) -> (u64, u64) {
        match self.switch_interval {
            None => (0, 1),
            Some(1) => (update - 1, update),
            Some(every) => (update / every, (update / every * every).max(1)),
        }
    }

    /// The block after so many switches.
    fn block(&self, switches: u64, blocks: usize) -> usize {
        let blocks = blocks as u64;
        let first = self.start.map(|start| start as u64);
        let at = match self.order {
            BlockOrder::Fixed => first.unwrap_or(0),
            BlockOrder::Ascending => first.unwrap_or(0) + switches,
            BlockOrder::Descending => {
                let first = first.unwrap_or(blocks - 1) % blocks;
                first + blocks - switches % blocks
            }
            BlockOrder::Random => match (first, switches) {
                (Some(first), 0) => first,
                (given, _) => {
                    let drawn = switches - u64::from(given.is_some());
                    shuffle::permutation(blocks as usize, self.seed, drawn / blocks)
                        [(drawn % blocks) as usize] as u64
                }
            },
        };
        (at % blocks) as usize
    }
}

/// AdamW on one block after the other.
pub struct BAdam {
    options: BAdamLayers,
    outlines: Vec<Outline>,
    blocks: Vec<Vec<usize>>,
    /// Of the block that was updated last.
    moments: Moments,
    updates: u64,
}

/// The moments of some weights.
#[derive(Default)]
struct Moments {
    since: u64,
    of: Vec<(usize, [(String, Tensor); 2])>,
}

impl Moments {
    fn new(since: u64, weights: impl Iterator<Item = (usize, usize, String)>) -> Self {
        let zeros = |(i, elements, name): (usize, usize, String)| {
            let named = |kind: &str| {
                let tensor = Tensor::zeros(sft_kernels::DType::F32, &[elements]);
                (format!("{kind}.{name}"), tensor)
            };
            (i, ["exp_avg", "exp_avg_sq"].map(named))
        };
        Self { since, of: weights.map(zeros).collect() }
    }

    fn named(&self) -> Vec<(String, &Tensor)> {
        self.of.iter().flat_map(|(_, of)| of).map(|(name, tensor)| (name.clone(), tensor)).collect()
    }

    fn restore(&mut self, files: &WeightFiles) -> Result<(), String> {
        for (name, tensor) in self.of.iter_mut().flat_map(|(_, of)| of) {
            let stored = files.tensor(name, tensor.shape())?;
            tensor.view_mut().copy_from(stored.view());
        }
        Ok(())
    }
}

impl BAdam {
    /// For the given parameters.
    pub fn new(options: BAdamLayers, parameters: &[&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let blocks = blocks(&outlines);
        Self { options, outlines, blocks, moments: Moments::default(), updates: 0 }
    }

    fn block_of(&self, update: u64) -> &[usize] {
        let (switches, _) = self.options.switches(update);
        &self.blocks[self.options.block(switches, self.blocks.len())]
    }

    fn moments_for(&self, update: u64) -> Moments {
        let weight = |i: &usize| (*i, self.outlines[*i].elements(), self.outlines[*i].name.clone());
        Moments::new(self.options.switches(update).1, self.block_of(update).iter().map(weight))
    }
}

impl Optimizer for BAdam {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        self.updates += 1;
        if self.options.switches(self.updates).1 == self.updates {
            self.moments = Moments::default();
            self.moments = self.moments_for(self.updates);
        }
        let groups = self.options.groups.group(&self.outlines);
        let rates = groups.at(learning_rate);
        let params =
            self.options.adam.params(learning_rate, self.updates - self.moments.since + 1, grad_scale);
        for (i, [(_, m), (_, v)]) in &mut self.moments.of {
            let moments = [m.view_mut(), v.view_mut()];
            AdamW::update_one(dev, params, parameters[*i], moments, rates[groups.of[*i]].weight_decay);
        }
    }

    fn choose(&mut self, parameters: &mut [&mut Parameter]) {
        let block = self.block_of(self.updates + 1);
        // What rests gives its memory back before others take some.
        for rests in [true, false] {
            for (i, parameter) in parameters.iter_mut().enumerate() {
                if rests != block.contains(&i) {
                    parameter.set_rest(rests);
                }
            }
        }
    }

    fn state(&self) -> Vec<(String, &Tensor)> {
        self.moments.named()
    }

    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String> {
        self.updates = updates;
        if updates > 0 {
            self.moments = self.moments_for(updates);
            self.moments.restore(files)?;
        }
        Ok(())
    }
}

/// AdamW without decay on a share of each matrix after the other.
pub struct BAdamShares {
    options: BAdamRatio,
    /// Of each weight, how many elements are updated; of embedding and head none.
    shares: Vec<usize>,
    outlines: Vec<Outline>,
    moments: Moments,
    updates: u64,
    /// What the next update updates of each weight, and the number of its choice.
    chosen: (Option<u64>, Vec<Share>),
}

impl BAdamRatio {
    fn share(&self, weight: &Outline) -> usize {
        match weight.name.contains("embed") || weight.name.contains("lm_head") {
            true => 0,
            false => (weight.elements() as f64 * self.ratio) as usize,
        }
    }

    pub(super) fn layout(&self, weight: &Outline) -> Vec<Slot> {
        ["exp_avg", "exp_avg_sq"].map(|kind| Slot::of(kind, &[self.share(weight)])).into()
    }

    /// Bytes of the gradients and weights of a share, and of the numbers of scattered elements.
    pub(super) fn workspace_bytes(&self, weights: &[Outline]) -> usize {
        let shares = || weights.iter().map(|weight| self.share(weight));
        let scattered = match self.mask {
            MaskMode::Adjacent => 0,
            // Those of all weights, and the order of all elements of one that they are taken of.
            MaskMode::Scatter => {
                shares().sum::<usize>() * size_of::<u32>()
                    + weights.iter().map(Outline::elements).max().unwrap_or(0) * size_of::<usize>()
            }
        };
        2 * shares().max().unwrap_or(0) * size_of::<f32>() + scattered
    }
}

/// Elements of a weight.
enum Share {
    Ranges([Range<usize>; 2]),
    Scattered(Vec<u32>),
}

impl Share {
    fn gather(&self, from: &[f32]) -> Vec<f32> {
        match self {
            Share::Ranges(ranges) => ranges.iter().flat_map(|range| &from[range.clone()]).copied().collect(),
            Share::Scattered(at) => at.iter().map(|i| from[*i as usize]).collect(),
        }
    }

    fn scatter(&self, from: &[f32], to: &mut [f32]) {
        match self {
            Share::Ranges([first, second]) => {
                to[first.clone()].copy_from_slice(&from[..first.len()]);
                to[second.clone()].copy_from_slice(&from[first.len()..]);
            }
            Share::Scattered(at) => at.iter().zip(from).for_each(|(i, x)| to[*i as usize] = *x),
        }
    }
}

impl BAdamShares {
    /// For the given parameters.
    pub fn new(options: BAdamRatio, parameters: &[&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let shares: Vec<usize> = outlines.iter().map(|weight| options.share(weight)).collect();
        let moments = Moments::default();
        let mut new = Self { options, shares, outlines, moments, updates: 0, chosen: Default::default() };
        new.moments = new.zeros();
        new
    }

    fn zeros(&self) -> Moments {
        let weights = self.shares.iter().zip(&self.outlines).enumerate();
        Moments::new(1, weights.map(|(i, (share, weight))| (i, *share, weight.name.clone())))
    }

    /// What is updated of a weight after `switches` choices.
    fn share(&self, weight: usize, switches: u64) -> Share {
        let (elements, share) = (self.outlines[weight].elements(), self.shares[weight]);
        let start = ((switches as u128 * share as u128) % elements.max(1) as u128) as usize;
        let end = start + share;
        let ranges = [start..end.min(elements), 0..end.saturating_sub(elements)];
        match self.options.mask {
            MaskMode::Adjacent => Share::Ranges(ranges),
            MaskMode::Scatter => {
                // The package draws a seed below 1000 for each weight.
                let name = random::name_part(&self.outlines[weight].name);
                let seed = random::key(self.options.seed, &[name]) % 1000;
                let order = shuffle::permutation(elements, seed, 0);
                let numbers = ranges.into_iter().flat_map(|range| &order[range]);
                Share::Scattered(numbers.map(|i| *i as u32).collect())
            }
        }
    }
}

impl Optimizer for BAdamShares {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        self.updates += 1;
        let local = (self.updates - 1) % RATIO_SWITCHES_AFTER + 1;
        if local == 1 {
            self.moments
                .of
                .iter_mut()
                .flat_map(|(_, of)| of)
                .for_each(|(_, tensor)| tensor.view_mut().zero());
        }
        let step = Step { updates: local, grad_scale };
        let rate = adam_rate(self.options.adam, local) * learning_rate;
        for (i, parameter) in parameters.iter_mut().enumerate() {
            let share = &self.chosen.1[i];
            let Some((p, g)) = host::weight_and_gradient(parameter) else { continue };
            let (mut of_p, of_g) = (share.gather(p), share.gather(g));
            let (_, [(_, m), (_, v)]) = &mut self.moments.of[i];
            plain_adam(dev, self.options.adam, (step, rate, 1.0), (&mut of_p, &of_g), &mut [m, v]);
            share.scatter(&of_p, p);
        }
    }

    fn choose(&mut self, _parameters: &mut [&mut Parameter]) {
        let switches = self.updates / RATIO_SWITCHES_AFTER;
        if self.chosen.0 != Some(switches) {
            let shares = (0..self.outlines.len()).map(|weight| self.share(weight, switches)).collect();
            self.chosen = (Some(switches), shares);
        }
    }

    fn state(&self) -> Vec<(String, &Tensor)> {
        self.moments.named()
    }

    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String> {
        self.updates = updates;
        self.moments.restore(files)
    }

    fn sum_of_squares(&self, dev: &Device, parameters: &[&mut Parameter]) -> f64 {
        let of = |(i, parameter): (usize, &&mut Parameter)| {
            let gradient = parameter.gradient().map(View::as_slice::<f32>)?;
            Some(host::sum_of_squares(dev, &self.chosen.1[i].gather(gradient)))
        };
        parameters.iter().enumerate().filter_map(of).sum()
    }
}
