//! GaLore (Zhao et al., 2024): the moments of AdamW or Adafactor of gradients in few dimensions, as the package
//! galore-torch has them.
//!
//! > low = project(g);  u = m / (√v + eps) with the moments of low
//! > p ← (p − lr·√(1−β₂ᵗ)/(1−β₁ᵗ)·scale·back(u))·(1 − lr·wd)
//!
//! Weights that are not projected are updated alike, without projection. Its eps is added before the correction of the
//! second moment, and weights decay after the update, other than in torch's AdamW.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sft_kernels::{Device, Tensor, View};
use sft_model::parameter::{Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::adafactor::{self, Direction, Step};
use super::groups::Grouped;
use super::projection::{Projected, Workspace};
use super::state::{Slot, State};
use super::{AdamWOptions, ByParts, Groups, Optimizer, Projection, host, parts};

/// What moments are kept of a projected gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Inner {
    /// AdamW's.
    AdamW(AdamWOptions),
    /// Adafactor's.
    Adafactor,
}

/// Settings of GaLore.
#[derive(Debug, Clone, PartialEq)]
pub struct GaLoreOptions {
    /// How gradients are projected.
    pub projection: Projection,
    /// What becomes of them.
    pub inner: Inner,
    /// Names of the weights that are projected.
    pub projected: Arc<BTreeSet<String>>,
    /// Whether each part of the model is updated as soon as its gradients are whole.
    pub by_parts: bool,
}

impl GaLoreOptions {
    pub(super) fn layout(&self, weight: &Outline) -> Vec<Slot> {
        let moments = |shape: &[usize]| match self.inner {
            Inner::AdamW(_) => vec![Slot::of("exp_avg", shape), Slot::of("exp_avg_sq", shape)],
            Inner::Adafactor => adafactor::layout(shape),
        };
        match self.of(weight) {
            Some(projected) => [projected.slots(), moments(&projected.low_shape())].concat(),
            None => moments(&weight.shape),
        }
    }

    fn of(&self, weight: &Outline) -> Option<Projected> {
        self.projected.contains(&weight.name).then(|| self.projection.of(&weight.shape))
    }

    /// Bytes of the room that all weights share.
    pub(super) fn workspace_bytes(&self, weights: &[Outline]) -> usize {
        let all: Vec<Projected> = weights.iter().filter_map(|weight| self.of(weight)).collect();
        // Adafactor reads the projected gradient while it writes the direction.
        let copy = if self.inner == Inner::Adafactor { Workspace::elements(&all)[0] } else { 0 };
        Workspace::bytes(&all, self.projection.subspace) + copy * size_of::<f32>()
    }
}

/// GaLore.
pub struct GaLore {
    options: GaLoreOptions,
    groups: Grouped,
    projected: Vec<Option<Projected>>,
    places: HashMap<String, usize>,
    work: Workspace,
    state: State,
    updates: u64,
}

impl GaLore {
    /// Moments of zero for the given parameters.
    pub fn new(options: GaLoreOptions, groups: Groups, parameters: &[&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let projected: Vec<Option<Projected>> = outlines.iter().map(|weight| options.of(weight)).collect();
        let all: Vec<Projected> = projected.iter().flatten().copied().collect();
        let state = State::new(parameters, |weight| options.layout(weight));
        Self {
            options,
            groups: groups.group(&outlines),
            projected,
            places: parts::places(&outlines),
            work: Workspace::new(&all),
            state,
            updates: 0,
        }
    }

    /// New projections of the matrices, each by one thread.
    fn refresh(&mut self, dev: &Device, parameters: &[Option<&mut Parameter>]) {
        let weights = parameters.iter().zip(self.state.iter_mut()).zip(&self.projected);
        let mut jobs: Vec<_> = weights
            .filter_map(|((parameter, mut tensors), projected)| {
                let projected = (*projected)?;
                tensors.truncate(projected.slots().len());
                Some((projected, parameter.as_ref()?.gradient()?, tensors))
            })
            .collect();
        dev.for_each_chunk(&mut jobs, 1, |_, jobs| {
            jobs.iter_mut().for_each(|(projected, g, tensors)| projected.refresh(*g, tensors));
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
        let step = Step { updates: self.updates, grad_scale };
        let groups = self.groups.at(learning_rate);
        let scale = self.options.projection.scale;
        let weights =
            parameters.into_iter().zip(self.state.iter_mut()).zip(&self.projected).zip(&self.groups.of);
        for (((parameter, mut tensors), projected), group) in weights {
            let Some(parameter) = parameter else { continue };
            let group = groups[*group];
            let keep = 1.0 - group.learning_rate * group.weight_decay;
            let shape = parameter.shape().to_vec();
            let Some((p, g)) = host::weight_and_gradient(parameter) else { continue };
            let Some(projected) = projected else {
                match self.options.inner {
                    Inner::AdamW(adam) => {
                        let rate = adam_rate(adam, step.updates) * group.learning_rate * keep;
                        plain_adam(dev, adam, (step, rate, keep), (p, g), &mut tensors);
                    }
                    Inner::Adafactor => {
                        let direction = Direction::new(dev, step, g, &shape, &mut tensors);
                        let rate = group.learning_rate as f32 / direction.divisor();
                        direction.for_each_chunk(dev, p, |p, u| *p = *p * keep as f32 - rate * u);
                    }
                }
                continue;
            };
            let mut moments = tensors.split_off(projected.slots().len());
            let g = View::of(g, &shape);
            let (low, between) = self.work.of(projected);
            projected.project(dev, g, step.grad_scale, &tensors, (low, between));
            let (low, between) = self.work.of(projected);
            let low_shape = projected.low_shape();
            let low = low.as_mut_slice::<f32>();
            let rate = match self.options.inner {
                Inner::AdamW(adam) => {
                    adam_direction(dev, adam, low, &mut moments);
                    adam_rate(adam, step.updates) * keep
                }
                Inner::Adafactor => {
                    let of_low = low.to_vec();
                    let step = Step { grad_scale: 1.0, ..step };
                    let direction = Direction::new(dev, step, &of_low, &low_shape, &mut moments);
                    direction.for_each_chunk(dev, low, |low, u| *low = u);
                    1.0 / f64::from(direction.divisor())
                }
            };
            if keep != 1.0 {
                dev.for_each_chunk(p, host::CHUNK, |_, p| p.iter_mut().for_each(|p| *p *= keep as f32));
            }
            let alpha = (-group.learning_rate * rate * scale) as f32;
            projected.add_back(dev, View::of(low, &low_shape), alpha, &tensors, (p, between));
        }
    }
}

impl ByParts for GaLore {
    fn begin_step(&mut self) {
        self.updates += 1;
    }

    fn update_part(&mut self, dev: &Device, part: &mut [&mut Parameter], learning_rate: f64) {
        self.update_those(dev, parts::placed(&self.places, part), learning_rate, 1.0);
    }
}

impl Optimizer for GaLore {
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

/// √(1−β₂ᵗ)/(1−β₁ᵗ).
pub(super) fn adam_rate(adam: AdamWOptions, updates: u64) -> f64 {
    let t = i32::try_from(updates).unwrap_or(i32::MAX);
    (1.0 - adam.beta2.powi(t)).sqrt() / (1.0 - adam.beta1.powi(t))
}

/// x ← m / (√v + eps), with x taken into the moments.
pub(super) fn adam_direction(dev: &Device, adam: AdamWOptions, x: &mut [f32], moments: &mut [&mut Tensor]) {
    let [m, v] = moments else { unreachable!("two moments were laid out") };
    let [keep1, rest1, keep2, rest2] =
        [adam.beta1, 1.0 - adam.beta1, adam.beta2, 1.0 - adam.beta2].map(|x| x as f32);
    let eps = adam.eps as f32;
    let m = m.view_mut().as_mut_slice::<f32>();
    let v = v.view_mut().as_mut_slice::<f32>();
    dev.for_each_chunk_pair((v, host::CHUNK), (x, host::CHUNK), |_, v, x| {
        v.iter_mut().zip(x).for_each(|(v, x)| *v = *v * keep2 + *x * *x * rest2);
    });
    dev.for_each_chunk_pair((m, host::CHUNK), (x, host::CHUNK), |_, m, x| {
        m.iter_mut().zip(x).for_each(|(m, x)| {
            *m = *m * keep1 + *x * rest1;
            *x = *m;
        });
    });
    let v = &*v;
    dev.for_each_chunk(x, host::CHUNK, |i, x| {
        x.iter_mut().zip(&v[i * host::CHUNK..]).for_each(|(x, v)| *x /= v.sqrt() + eps);
    });
}

/// p ← keep·p − rate·m / (√v + eps), with the gradient taken into the moments.
pub(super) fn plain_adam(
    dev: &Device,
    adam: AdamWOptions,
    (step, rate, keep): (Step, f64, f64),
    (p, g): (&mut [f32], &[f32]),
    moments: &mut [&mut Tensor],
) {
    let [m, v] = moments else { unreachable!("two moments were laid out") };
    let [keep1, rest1, keep2, rest2] =
        [adam.beta1, 1.0 - adam.beta1, adam.beta2, 1.0 - adam.beta2].map(|x| x as f32);
    let (eps, scale) = (adam.eps as f32, step.grad_scale);
    let (rate, keep) = (rate as f32, keep as f32);
    let m = m.view_mut().as_mut_slice::<f32>();
    let v = v.view_mut().as_mut_slice::<f32>();
    dev.for_each_chunk(v, host::CHUNK, |i, v| {
        v.iter_mut().zip(&g[i * host::CHUNK..]).for_each(|(v, g)| {
            let g = g * scale;
            *v = *v * keep2 + g * g * rest2;
        });
    });
    let v = &*v;
    dev.for_each_chunk_pair((p, host::CHUNK), (m, host::CHUNK), |i, p, m| {
        let (g, v) = (&g[i * host::CHUNK..], &v[i * host::CHUNK..]);
        for (((p, m), g), v) in p.iter_mut().zip(m).zip(g).zip(v) {
            *m = *m * keep1 + g * scale * rest1;
            *p = *p * keep - rate * (*m / (v.sqrt() + eps));
        }
    });
}
