//! APOLLO (Zhu et al., 2024): moments of gradients in few dimensions say how much each channel of the whole gradient, or
//! all of it, is scaled; as the package apollo-torch has it.
//!
//! > low = project(g);  u = m / (√v + eps) with the moments of low
//! > f = ‖u‖ / (‖low‖ + 1e−8) of each channel (a row of a matrix that is not wide, else a column), or of all
//! > d = g·f, and no more than 1.01 times as long as the one before
//! > p ← (p − lr·√(1−β₂ᵗ)/(1−β₁ᵗ)·√scale·d)·(1 − lr·wd)
//!
//! Drawn projections have the numbers and seeds of the package: torch's generator, seeded with the place of the matrix.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sft_kernels::{Device, Tensor, View};
use sft_model::parameter::{Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::adafactor::Step;
use super::galore::{adam_direction, adam_rate, plain_adam};
use super::groups::Grouped;
use super::projection::{Projected, Workspace};
use super::state::{Slot, State};
use super::{AdamWOptions, ByParts, Groups, Optimizer, Projection, Subspace, host, parts};

/// What has a factor of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleOf {
    /// A row, or a column of a wide matrix.
    Channel,
    /// A matrix.
    Tensor,
}

/// Settings of APOLLO.
#[derive(Debug, Clone, PartialEq)]
pub struct ApolloOptions {
    /// How gradients are projected.
    pub projection: Projection,
    /// What has a factor of its own.
    pub scale_of: ScaleOf,
    /// Whether growth is limited after the strength is applied, not before.
    pub scale_front: bool,
    /// β₁, β₂, eps.
    pub adam: AdamWOptions,
    /// Names of the weights that are projected.
    pub projected: Arc<BTreeSet<String>>,
    /// Whether each part of the model is updated as soon as its gradients are whole.
    pub by_parts: bool,
}

/// Most growth of an update's length.
const MOST_GROWTH: f64 = 1.01;

impl ApolloOptions {
    pub(super) fn layout(&self, weight: &Outline) -> Vec<Slot> {
        let moments = |shape: &[usize]| vec![Slot::of("exp_avg", shape), Slot::of("exp_avg_sq", shape)];
        match self.of(weight) {
            Some(projected) => {
                let norm = Slot::of("scaled_grad_norm", &[1]);
                [projected.slots(), moments(&projected.low_shape()), vec![norm]].concat()
            }
            None => moments(&weight.shape),
        }
    }

    fn of(&self, weight: &Outline) -> Option<Projected> {
        self.projected.contains(&weight.name).then(|| self.projection.of(&weight.shape))
    }

    /// Bytes of the room that all weights share: a projected gradient, and a copy of it.
    pub(super) fn workspace_bytes(&self, weights: &[Outline]) -> usize {
        let all: Vec<Projected> = weights.iter().filter_map(|weight| self.of(weight)).collect();
        let copy = Workspace::elements(&all)[0] * size_of::<f32>();
        Workspace::bytes(&all, self.projection.subspace) + copy
    }
}

/// APOLLO.
pub struct Apollo {
    options: ApolloOptions,
    groups: Grouped,
    /// With the first seed of each.
    projected: Vec<Option<(Projected, u64)>>,
    places: HashMap<String, usize>,
    work: Workspace,
    of_low: Vec<f32>,
    state: State,
    updates: u64,
}

impl Apollo {
    /// Moments of zero for the given parameters.
    pub fn new(options: ApolloOptions, groups: Groups, parameters: &[&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let projected: Vec<Option<Projected>> = outlines.iter().map(|weight| options.of(weight)).collect();
        let all: Vec<Projected> = projected.iter().flatten().copied().collect();
        // The package counts from 1, and projected weights come last; by parts each weight has an optimizer of its own.
        let mut seed = (outlines.len() - all.len()) as u64;
        let mut seeded = |projected: Projected| {
            seed += 1;
            (projected, if options.by_parts { 1 } else { seed })
        };
        let projected = projected.into_iter().map(|p| p.map(&mut seeded)).collect::<Vec<_>>();
        let state = State::new(parameters, |weight| options.layout(weight));
        let of_low = vec![0.0; Workspace::elements(&all)[0]];
        let (groups, work) = (groups.group(&outlines), Workspace::new(&all));
        Self { options, groups, projected, places: parts::places(&outlines), work, of_low, state, updates: 0 }
    }

    /// New projections of the matrices, each by one thread.
    fn refresh(&mut self, dev: &Device, parameters: &[Option<&mut Parameter>]) {
        let projection = self.options.projection;
        let done = self.updates - 1;
        let weights = parameters.iter().zip(self.state.iter_mut()).zip(&self.projected);
        let mut jobs: Vec<_> = weights
            .filter_map(|((parameter, mut tensors), projected)| {
                let (projected, seed) = (*projected)?;
                tensors.truncate(projected.slots().len());
                Some((projected, seed, parameter.as_ref()?.gradient()?, tensors))
            })
            .collect();
        dev.for_each_chunk(&mut jobs, 1, |_, jobs| {
            for (projected, seed, g, tensors) in jobs {
                match projection.subspace {
                    Subspace::Svd => projected.refresh(*g, tensors),
                    Subspace::Random => projected.draw(projection.seed_after(*seed, done), tensors),
                }
            }
        });
    }

    /// The update of those that are there, in a step that has begun.
    fn update_those(
        &mut self,
        dev: &Device,
        parameters: Vec<Option<&mut Parameter>>,
        learning_rate: f64,
        grad_scale: f32,
    ) {
        if self.options.projection.is_due(self.updates - 1) {
            self.refresh(dev, &parameters);
        }
        let (step, adam) = (Step { updates: self.updates, grad_scale }, self.options.adam);
        let groups = self.groups.at(learning_rate);
        let weights =
            parameters.into_iter().zip(self.state.iter_mut()).zip(&self.projected).zip(&self.groups.of);
        for (((parameter, mut tensors), projected), group) in weights {
            let Some(parameter) = parameter else { continue };
            let group = groups[*group];
            let keep = 1.0 - group.learning_rate * group.weight_decay;
            let rate = adam_rate(adam, step.updates) * group.learning_rate;
            let shape = parameter.shape().to_vec();
            let Some((p, g)) = host::weight_and_gradient(parameter) else { continue };
            let Some((projected, _)) = projected else {
                plain_adam(dev, adam, (step, rate * keep, keep), (p, g), &mut tensors);
                continue;
            };
            let mut moments = tensors.split_off(projected.slots().len());
            let before = moments.pop().expect("the norm comes last").view_mut().as_mut_slice::<f32>();
            projected.project(dev, View::of(g, &shape), grad_scale, &tensors, self.work.of(projected));
            let (low, _) = self.work.of(projected);
            let low = low.as_mut_slice::<f32>();
            let of_low = &mut self.of_low[..low.len()];
            of_low.copy_from_slice(low);
            adam_direction(dev, adam, low, &mut moments);
            let columns = shape[1];
            let is_wide = shape[0] < columns;
            let factors = match self.options.scale_of {
                ScaleOf::Channel => Factors::of_channels(dev, low, of_low, projected.low_shape()[1], is_wide),
                ScaleOf::Tensor => {
                    let norm = |x: &[f32]| host::sum_of_squares(dev, x).sqrt();
                    Factors::Tensor((norm(low) / (norm(of_low) + 1e-8)) as f32)
                }
            };
            let strength = self.options.projection.scale.sqrt();
            let front = if self.options.scale_front { strength } else { 1.0 };
            let norm = f64::from(grad_scale) * front * factors.norm_of_scaled(dev, g, columns);
            let limiter = match step.updates {
                1 => 1.0,
                _ => (norm / (f64::from(before[0]) + 1e-8)).max(MOST_GROWTH) / MOST_GROWTH,
            };
            before[0] = (norm / limiter) as f32;
            let rate = (rate * keep * strength / limiter) as f32 * grad_scale;
            dev.for_each_chunk(p, columns, |i, p| {
                let g = &g[i * columns..];
                p.iter_mut().zip(g).enumerate().for_each(|(j, (p, g))| {
                    *p = *p * keep as f32 - rate * (g * factors.at(i, j));
                });
            });
        }
    }
}

impl ByParts for Apollo {
    fn begin_step(&mut self) {
        self.updates += 1;
    }

    fn update_part(&mut self, dev: &Device, part: &mut [&mut Parameter], learning_rate: f64) {
        self.update_those(dev, parts::placed(&self.places, part), learning_rate, 1.0);
    }
}

impl Optimizer for Apollo {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        self.begin_step();
        self.update_those(dev, parts::placed(&self.places, parameters), learning_rate, grad_scale);
    }

    fn by_parts(&mut self) -> Option<&mut dyn ByParts> {
        if self.options.by_parts { Some(self) } else { None }
    }

    fn state(&self) -> Vec<(String, &Tensor)> {
        self.state.named()
    }

    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String> {
        self.updates = updates;
        self.state.restore(files)
    }
}

/// What elements of a gradient are multiplied by.
enum Factors {
    Rows(Vec<f32>),
    Columns(Vec<f32>),
    Tensor(f32),
}

impl Factors {
    fn of_channels(dev: &Device, direction: &[f32], low: &[f32], columns: usize, is_wide: bool) -> Self {
        let factor = |direction: f64, low: f64| (direction.sqrt() / (low.sqrt() + 1e-8)) as f32;
        if is_wide {
            let sums = |x: &[f32]| {
                let mut sums = vec![0.0f32; columns];
                host::fold_columns(dev, x, columns, |x| x * x, &mut sums, |to, sum| *to = sum as f32);
                sums
            };
            let pairs = sums(direction).into_iter().zip(sums(low));
            return Self::Columns(pairs.map(|(d, l)| factor(f64::from(d), f64::from(l))).collect());
        }
        let mut factors = vec![0.0f32; low.len() / columns.max(1)];
        dev.for_each_chunk(&mut factors, 1, |i, to| {
            let sum = |x: &[f32]| -> f64 {
                x[i * columns..][..columns].iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
            };
            to[0] = factor(sum(direction), sum(low));
        });
        Self::Rows(factors)
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        match self {
            Self::Rows(factors) => factors[row],
            Self::Columns(factors) => factors[column],
            Self::Tensor(factor) => *factor,
        }
    }

    /// ‖g·f‖.
    fn norm_of_scaled(&self, dev: &Device, g: &[f32], columns: usize) -> f64 {
        let mut sums = vec![0.0f64; g.len() / columns];
        dev.for_each_chunk(&mut sums, 1, |i, sum| {
            let row = g[i * columns..][..columns].iter().enumerate();
            sum[0] = row.map(|(j, g)| f64::from(g * self.at(i, j)).powi(2)).sum();
        });
        sums.iter().sum::<f64>().sqrt()
    }
}
