//! The rules: formula, source, states.
//!
//! g is the gradient after clipping, lr the learning rate, wd the weight decay, t the number of the update from 1.

use super::{Constants, Factors, Group, Rule};
use crate::Isa;
use crate::adamw::AdamWParams;
use crate::isa::per_isa;

fn filled<const N: usize>(values: &[f64]) -> [f32; N] {
    std::array::from_fn(|i| values.get(i).copied().unwrap_or(0.0) as f32)
}

/// βᵗ as Python has it, for t of any size.
fn power(beta: f64, t: u64) -> f64 {
    beta.powi(i32::try_from(t).unwrap_or(i32::MAX))
}

/// SGD as `torch.optim.SGD` has it without momentum:
///
/// > p ← p − lr·(g + wd·p)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// The gradient is multiplied by it first.
    pub grad_scale: f32,
}

impl Rule<0> for Sgd {
    const NAME: &'static str = "sgd";
    const KERNEL: &'static str = "update_sgd";
    const SIGNED: [bool; 0] = [];

    fn factors(&self, group: Group) -> Factors {
        filled(&[group.learning_rate, group.weight_decay])
    }

    fn constants(&self) -> Constants {
        filled(&[f64::from(self.grad_scale)])
    }

    fn apply(isa: Isa, c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], []: [&mut [f32]; 0]) {
        sgd(isa, c, f, g, p);
    }
}

/// SGD with momentum as `torch.optim.SGD` has it; state: the momentum m, which begins as the first gradient.
///
/// > g ← g + wd·p;  m ← μ·m + (1 − dampening)·g;  p ← p − lr·m, or with Nesterov's step p − lr·(g + μ·m)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Momentum {
    /// The gradient is multiplied by it first.
    pub grad_scale: f32,
    /// μ.
    pub momentum: f64,
    /// Share of a new gradient that the momentum leaves out.
    pub dampening: f64,
    /// Nesterov's step.
    pub nesterov: bool,
    /// t.
    pub step: u64,
}

impl Rule<1> for Momentum {
    const NAME: &'static str = "momentum";
    const KERNEL: &'static str = "update_momentum";
    const SIGNED: [bool; 1] = [true];

    fn factors(&self, group: Group) -> Factors {
        filled(&[group.learning_rate, group.weight_decay])
    }

    fn constants(&self) -> Constants {
        let (keeps, takes) = if self.step == 1 { (0.0, 1.0) } else { (self.momentum, 1.0 - self.dampening) };
        // What is subtracted is a·m + b·g.
        let (a, b) = if self.nesterov { (self.momentum, 1.0) } else { (1.0, 0.0) };
        filled(&[f64::from(self.grad_scale), keeps, takes, a, b])
    }

    fn apply(isa: Isa, c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], [m]: [&mut [f32]; 1]) {
        momentum(isa, c, f, g, p, m);
    }
}

/// AdamW of `adamw.rs`, for states in 8 bits: bitsandbytes' AdamW. States: m, v.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW(pub AdamWParams);

impl Rule<2> for AdamW {
    const NAME: &'static str = "adamw";
    const KERNEL: &'static str = "update_adamw";
    const KERNEL_OF_BLOCKS: &'static str = "update_adamw_blocks";
    const SIGNED: [bool; 2] = [true, false];

    fn factors(&self, group: Group) -> Factors {
        let correction1 = 1.0 - power(self.0.beta1, self.0.step);
        filled(&[group.learning_rate / correction1, 1.0 - group.learning_rate * group.weight_decay])
    }

    fn constants(&self) -> Constants {
        let AdamWParams { beta1, beta2, eps, step, grad_scale, .. } = self.0;
        let root2 = (1.0 - power(beta2, step)).sqrt();
        filled(&[f64::from(grad_scale), 1.0 - beta1, beta2, 1.0 - beta2, root2, eps])
    }

    fn apply(isa: Isa, c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], [m, v]: [&mut [f32]; 2]) {
        adamw(isa, c, f, g, p, m, v);
    }
}

/// Lion (Chen et al., 2023), as bitsandbytes has it; state: the momentum m.
///
/// > p ← p·(1 − lr·wd) − lr·sign(β₁m + (1−β₁)g);  m ← β₂m + (1−β₂)g
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lion {
    /// The gradient is multiplied by it first.
    pub grad_scale: f32,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
}

impl Rule<1> for Lion {
    const NAME: &'static str = "lion";
    const KERNEL: &'static str = "update_lion";
    const KERNEL_OF_BLOCKS: &'static str = "update_lion_blocks";
    const SIGNED: [bool; 1] = [true];

    fn factors(&self, group: Group) -> Factors {
        filled(&[group.learning_rate, 1.0 - group.learning_rate * group.weight_decay])
    }

    fn constants(&self) -> Constants {
        let Self { grad_scale, beta1, beta2 } = *self;
        filled(&[f64::from(grad_scale), beta1, 1.0 - beta1, beta2, 1.0 - beta2])
    }

    fn apply(isa: Isa, c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], [m]: [&mut [f32]; 1]) {
        lion(isa, c, f, g, p, m);
    }
}

/// AdEMAMix (Pagliardini et al., 2024), as bitsandbytes has it; states: the fast m₁, the slow m₂, v.
///
/// > m₁ ← β₁m₁ + (1−β₁)g;  m₂ ← β₃m₂ + (1−β₃)g;  v ← β₂v + (1−β₂)g²
/// > p ← p·(1 − lr·wd) − lr·(m₁/(1−β₁ᵗ) + α·m₂) / (√v/√(1−β₂ᵗ) + eps)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdEMAMix {
    /// The gradient is multiplied by it first.
    pub grad_scale: f32,
    /// β₁, β₂ and β₃, the last one of this step.
    pub betas: [f64; 3],
    /// α of this step.
    pub alpha: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// t.
    pub step: u64,
}

impl Rule<3> for AdEMAMix {
    const NAME: &'static str = "ademamix";
    const KERNEL: &'static str = "update_ademamix";
    const KERNEL_OF_BLOCKS: &'static str = "update_ademamix_blocks";
    const SIGNED: [bool; 3] = [true, true, false];

    fn factors(&self, group: Group) -> Factors {
        filled(&[group.learning_rate, 1.0 - group.learning_rate * group.weight_decay])
    }

    fn constants(&self) -> Constants {
        let [b1, b2, b3] = self.betas;
        let (correction1, root2) = (1.0 - power(b1, self.step), (1.0 - power(b2, self.step)).sqrt());
        let scale = f64::from(self.grad_scale);
        filled(&[scale, b1, 1.0 - b1, b3, 1.0 - b3, b2, 1.0 - b2, correction1, self.alpha, root2, self.eps])
    }

    fn apply(isa: Isa, c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], states: [&mut [f32]; 3]) {
        ademamix(isa, c, f, g, p, states);
    }
}

/// AdamW without a schedule (Defazio et al., 2024), as the package schedulefree has it; states: z and v. The weight is
/// the point y between z and the average x, and moves with both.
///
/// > v ← β₂v + (1−β₂)g²;  d = g / (√(v/(1−β₂ᵗ)) + eps) + wd·y
/// > y ← y + c·(z − y) + lr·(β₁(1−c) − 1)·d;  z ← z − lr·d
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScheduleFree {
    /// The gradient is multiplied by it first.
    pub grad_scale: f32,
    /// β₁: how far y is from z.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// c: the share of this step's point in the average.
    pub share: f64,
    /// t.
    pub step: u64,
}

impl Rule<2> for ScheduleFree {
    const NAME: &'static str = "schedule_free";
    const KERNEL: &'static str = "update_schedule_free";
    const SIGNED: [bool; 2] = [true, false];

    fn factors(&self, group: Group) -> Factors {
        let lr = group.learning_rate;
        filled(&[lr, lr * (self.beta1 * (1.0 - self.share) - 1.0), group.weight_decay])
    }

    fn constants(&self) -> Constants {
        let correction2 = 1.0 - power(self.beta2, self.step);
        let scale = f64::from(self.grad_scale);
        filled(&[scale, self.beta2, 1.0 - self.beta2, correction2, self.eps, self.share])
    }

    fn apply(isa: Isa, c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], [z, v]: [&mut [f32]; 2]) {
        schedule_free(isa, c, f, g, p, z, v);
    }
}

/// The averaged point of [`ScheduleFree`] in the place of y, which is kept: z is given in the place of the gradient, and
/// y goes into the state.
///
/// > kept ← y;  p ← y + (1 − 1/β₁)·(z − y)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Average {
    /// β₁.
    pub beta1: f64,
}

impl Rule<1> for Average {
    const NAME: &'static str = "schedule_free_average";
    const KERNEL: &'static str = "update_average";
    const SIGNED: [bool; 1] = [true];

    fn factors(&self, _: Group) -> Factors {
        filled(&[])
    }

    fn constants(&self) -> Constants {
        filled(&[1.0 - 1.0 / self.beta1])
    }

    fn apply(isa: Isa, c: &Constants, _: &Factors, z: &[f32], p: &mut [f32], [kept]: [&mut [f32]; 1]) {
        average(isa, c, z, p, kept);
    }
}

/// A weight that becomes what is given in the place of the gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Replace;

impl Rule<0> for Replace {
    const NAME: &'static str = "replace";
    const KERNEL: &'static str = "update_replace";
    const SIGNED: [bool; 0] = [];

    fn factors(&self, _: Group) -> Factors {
        filled(&[])
    }

    fn constants(&self) -> Constants {
        filled(&[])
    }

    fn apply(_: Isa, _: &Constants, _: &Factors, value: &[f32], p: &mut [f32], []: [&mut [f32]; 0]) {
        p.copy_from_slice(value);
    }
}

per_isa! {
    fn sgd(c: &Constants, f: &Factors, g: &[f32], p: &mut [f32]) {
        for (p, g) in p.iter_mut().zip(g) {
            let g = g * c[0] + f[1] * *p;
            *p -= f[0] * g;
        }
    }

    fn momentum(c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], m: &mut [f32]) {
        for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
            let g = g * c[0] + f[1] * *p;
            *m = c[1] * *m + c[2] * g;
            *p -= f[0] * (c[3] * *m + c[4] * g);
        }
    }

    fn adamw(c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * c[0];
            *m += (g - *m) * c[1];
            *v = *v * c[2] + g * g * c[3];
            *p = *p * f[1] - f[0] * (*m / (v.sqrt() / c[4] + c[5]));
        }
    }

    fn lion(c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], m: &mut [f32]) {
        for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
            let g = g * c[0];
            let direction = *m * c[1] + g * c[2];
            // Not `signum`, which has one for zero too.
            let step = if direction > 0.0 { f[0] } else if direction < 0.0 { -f[0] } else { 0.0 };
            *p = *p * f[1] - step;
            *m = *m * c[3] + g * c[4];
        }
    }

    fn ademamix(c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], states: [&mut [f32]; 3]) {
        let [fast, slow, v] = states;
        for ((((p, fast), slow), v), g) in p.iter_mut().zip(fast).zip(slow).zip(v).zip(g) {
            let g = g * c[0];
            *fast = *fast * c[1] + g * c[2];
            *slow = *slow * c[3] + g * c[4];
            *v = *v * c[5] + g * g * c[6];
            let mixed = *fast / c[7] + c[8] * *slow;
            *p = *p * f[1] - f[0] * (mixed / (v.sqrt() / c[9] + c[10]));
        }
    }

    fn schedule_free(c: &Constants, f: &Factors, g: &[f32], p: &mut [f32], z: &mut [f32], v: &mut [f32]) {
        for (((y, z), v), g) in p.iter_mut().zip(z).zip(v).zip(g) {
            let g = g * c[0];
            *v = *v * c[1] + g * g * c[2];
            let d = g / ((*v / c[3]).sqrt() + c[4]) + f[2] * *y;
            *y = *y + c[5] * (*z - *y) + f[1] * d;
            *z -= f[0] * d;
        }
    }

    fn average(c: &Constants, z: &[f32], p: &mut [f32], kept: &mut [f32]) {
        for ((p, z), kept) in p.iter_mut().zip(z).zip(kept) {
            *kept = *p;
            *p += c[0] * (*z - *p);
        }
    }
}
