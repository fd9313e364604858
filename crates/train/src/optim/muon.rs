//! Muon (Jordan et al., 2024) as LLaMA-Factory has it, after Moonlight: the momentum of a matrix, made orthogonal by Newton
//! and Schulz's iteration in bfloat16. Embeddings, heads, vectors and tensors of matrices get AdamW.
//!
//! > b ← 0.95·b + g;  X = bf16(g + 0.95·b), with rows for columns where it is tall, over its norm
//! > five times: A = X·Xᵀ, X ← 3.4445·X + (−4.775·A + 2.0315·A·A)·X
//! > p ← p·(1 − lr·wd) − 0.2·√max(out, in)·lr·X
//!
//! Its AdamW adds eps before the correction of the second moment. Every weight decays, biases and norms too.

use half::bf16;
use sft_kernels::matmul::Matmul;
use sft_kernels::{DType, Device, Tensor, ViewMut};
use sft_model::parameter::{Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::adafactor::Step;
use super::galore::{adam_rate, plain_adam};
use super::state::{Slot, State};
use super::{AdamWOptions, Optimizer, host};

const MOMENTUM: f32 = 0.95;
const STEPS: usize = 5;
const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Settings of Muon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonOptions {
    /// Of the other weights.
    pub adam: AdamWOptions,
    /// Pull of all weights towards 0.
    pub weight_decay: f64,
}

/// Whether a weight is made orthogonal.
fn is_orthogonal(weight: &Outline) -> bool {
    weight.is_matrix() && !weight.name.contains("embed") && !weight.name.contains("lm_head")
}

pub(super) fn layout(weight: &Outline) -> Vec<Slot> {
    match is_orthogonal(weight) {
        true => vec![Slot::of("momentum_buffer", &weight.shape)],
        false => ["moment1", "moment2"].map(|kind| Slot::of(kind, &weight.shape)).into(),
    }
}

/// Elements of the matrices that the iteration works in: two like the largest weight, three of its shorter side squared.
fn workspace(weights: &[Outline]) -> [usize; 2] {
    let shapes = weights
        .iter()
        .filter(|weight| is_orthogonal(weight))
        .map(|weight| [weight.shape[0], weight.shape[1]]);
    shapes.fold([0, 0], |[like, square], [m, n]| [like.max(m * n), square.max(m.min(n).pow(2))])
}

pub(super) fn workspace_bytes(weights: &[Outline]) -> usize {
    let [like, square] = workspace(weights);
    (2 * like + 3 * square) * DType::BF16.bytes()
}

/// Muon.
pub struct Muon {
    options: MuonOptions,
    orthogonal: Vec<bool>,
    x: [Tensor; 2],
    squares: [Tensor; 3],
    state: State,
    updates: u64,
}

impl Muon {
    /// Moments of zero for the given parameters.
    pub fn new(options: MuonOptions, parameters: &[&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let [like, square] = workspace(&outlines);
        Self {
            options,
            orthogonal: outlines.iter().map(is_orthogonal).collect(),
            x: [(); 2].map(|()| Tensor::zeros(DType::BF16, &[like])),
            squares: [(); 3].map(|()| Tensor::zeros(DType::BF16, &[square])),
            state: State::new(parameters, layout),
            updates: 0,
        }
    }
}

impl Optimizer for Muon {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        self.updates += 1;
        let (step, adam) = (Step { updates: self.updates, grad_scale }, self.options.adam);
        let keep = 1.0 - learning_rate * self.options.weight_decay;
        let weights = parameters.iter_mut().zip(self.state.iter_mut()).zip(&self.orthogonal);
        for ((parameter, mut tensors), orthogonal) in weights {
            let shape = parameter.shape().to_vec();
            let Some((p, g)) = host::weight_and_gradient(parameter) else { continue };
            if !orthogonal {
                let rate = adam_rate(adam, step.updates) * learning_rate;
                plain_adam(dev, adam, (step, rate, keep), (p, g), &mut tensors);
                continue;
            }
            let buffer = tensors[0].view_mut().as_mut_slice::<f32>();
            dev.for_each_chunk(buffer, host::CHUNK, |i, buffer| {
                let g = &g[i * host::CHUNK..];
                buffer.iter_mut().zip(g).for_each(|(b, g)| *b = *b * MOMENTUM + g * grad_scale);
            });
            let buffer = &*buffer;
            let (rows, columns) = (shape[0], shape[1]);
            let is_tall = rows > columns;
            let value = |at: usize| bf16::from_f32(g[at] * grad_scale + MOMENTUM * buffer[at]);
            let [k, l] = if is_tall { [columns, rows] } else { [rows, columns] };
            let [mut x, next] = self.x.each_mut().map(|x| x.head_mut(k * l).reshape(&[k, l]));
            dev.for_each_chunk(x.reborrow().as_mut_slice::<bf16>(), l, |i, row| {
                let at = |j: usize| if is_tall { j * columns + i } else { i * columns + j };
                row.iter_mut().enumerate().for_each(|(j, x)| *x = value(at(j)));
            });
            let squares = self.squares.each_mut().map(|s| s.head_mut(k * k).reshape(&[k, k]));
            let u = orthogonalise(dev, x, next, squares);
            let rate = (learning_rate * 0.2 * (rows.max(columns) as f64).sqrt()) as f32;
            dev.for_each_chunk(p, columns, |i, p| {
                let at = |j: usize| if is_tall { j * l + i } else { i * l + j };
                p.iter_mut().enumerate().for_each(|(j, p)| *p = *p * keep as f32 - rate * u[at(j)].to_f32());
            });
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

/// The iteration on x [k, l], k ≤ l; returns where its result is. Every operation rounds to bf16, as torch's do.
fn orthogonalise<'a>(
    dev: &Device,
    mut x: ViewMut<'a>,
    mut next: ViewMut<'a>,
    [mut a, mut scaled, mut b]: [ViewMut<'_>; 3],
) -> &'a [bf16] {
    let round = bf16::from_f32;
    let [k, l] = [x.dim(0), x.dim(1)];
    let mut sums = vec![0.0f64; k];
    let rows = x.as_view().as_slice::<bf16>();
    dev.for_each_chunk(&mut sums, 1, |i, sum| {
        sum[0] = rows[i * l..][..l].iter().map(|x| f64::from(x.to_f32()).powi(2)).sum();
    });
    let norm = round(sums.iter().sum::<f64>().sqrt() as f32).to_f32();
    let norm = round(norm + 1e-7).to_f32();
    each(dev, x.reborrow(), |_, x| round(x.to_f32() / norm));
    let [c1, c3, c5] = QUINTIC;
    for _ in 0..STEPS {
        Matmul::x_wt(x.as_view(), x.as_view(), a.reborrow()).run(dev);
        let of_a = a.as_view().as_slice::<bf16>();
        each(dev, scaled.reborrow(), |i, _| round(c5 * of_a[i].to_f32()));
        Matmul::new(scaled.as_view(), a.as_view(), b.reborrow()).run(dev);
        each(dev, b.reborrow(), |i, b| round(round(c3 * of_a[i].to_f32()).to_f32() + b.to_f32()));
        Matmul::new(b.as_view(), x.as_view(), next.reborrow()).run(dev);
        let of_x = x.as_view().as_slice::<bf16>();
        each(dev, next.reborrow(), |i, bx| round(round(c1 * of_x[i].to_f32()).to_f32() + bx.to_f32()));
        std::mem::swap(&mut x, &mut next);
    }
    x.as_mut_slice()
}

/// Overwrites each element by `f(its index, it)`.
fn each(dev: &Device, to: ViewMut<'_>, f: impl Fn(usize, bf16) -> bf16 + Send + Sync) {
    dev.for_each_chunk(to.as_mut_slice::<bf16>(), host::CHUNK, |i, to| {
        to.iter_mut().enumerate().for_each(|(j, x)| *x = f(i * host::CHUNK + j, *x));
    });
}
