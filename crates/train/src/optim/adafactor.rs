//! Adafactor (Shazeer & Stern, 2018) as transformers' Trainer sets it: no momentum, no scale of the weights, the learning
//! rate of the schedule. Of a matrix only means of rows and of columns are kept.
//!
//! Formula, with β = 1 − t^−0.8 and s = g² + 1e−30:
//!
//! > row ← β·row + (1−β)·mean of s over columns;  col ← β·col + (1−β)·mean of s over rows
//! > u = g / √(row·col / mean(row)), of a vector g / √v with v ← β·v + (1−β)·s
//! > p ← p·(1 − lr·wd) − lr·u / max(1, rms(u))
//!
//! A tensor of matrices has means of each; rms is of the whole tensor.

use sft_kernels::{Device, Tensor};
use sft_model::parameter::{Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::groups::Grouped;
use super::state::{Slot, State};
use super::{Groups, Optimizer, host};

/// Adafactor.
pub struct Adafactor {
    groups: Grouped,
    state: State,
    updates: u64,
}

impl Adafactor {
    /// Means of zero for the given parameters.
    pub fn new(groups: Groups, parameters: &[&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let state = State::new(parameters, |weight| layout(&weight.shape));
        Self { groups: groups.group(&outlines), state, updates: 0 }
    }
}

/// What is kept for a weight of this shape.
pub(super) fn layout(shape: &[usize]) -> Vec<Slot> {
    match shape {
        [batches @ .., rows, columns] => {
            let with = |last: &usize| [batches, &[*last]].concat();
            vec![Slot::of("exp_avg_sq_row", &with(rows)), Slot::of("exp_avg_sq_col", &with(columns))]
        }
        vector => vec![Slot::of("exp_avg_sq", vector)],
    }
}

impl Optimizer for Adafactor {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        self.updates += 1;
        let groups = self.groups.at(learning_rate);
        for ((parameter, mut tensors), group) in
            parameters.iter_mut().zip(self.state.iter_mut()).zip(&self.groups.of)
        {
            let shape = parameter.shape().to_vec();
            let Some((p, g)) = host::weight_and_gradient(parameter) else { continue };
            let group = groups[*group];
            let step = Step { updates: self.updates, grad_scale };
            let direction = Direction::new(dev, step, g, &shape, &mut tensors);
            let decay = (1.0 - group.learning_rate * group.weight_decay) as f32;
            let rate = group.learning_rate as f32 / direction.divisor();
            direction.for_each_chunk(dev, p, |p, u| *p = *p * decay - rate * u);
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

/// Which update it is.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// t, from 1.
    pub updates: u64,
    /// The gradient is multiplied by it first.
    pub grad_scale: f32,
}

/// Added to the squares.
const EPS: f32 = 1e-30;

/// u, worked out where it is asked for.
pub(super) struct Direction<'a> {
    g: &'a [f32],
    scale: f32,
    factors: Factors,
    /// Length of the chunks of a task.
    chunk: usize,
    rms: f64,
}

enum Factors {
    /// Of each row (of all matrices), and of each column of each matrix.
    Matrix { rows: Vec<f32>, columns: Vec<f32>, rows_of_one: usize },
    /// Of each element.
    Vector(Vec<f32>),
}

impl<'a> Direction<'a> {
    /// Takes the gradient into the means, and makes the direction of them.
    pub fn new(dev: &Device, step: Step, g: &'a [f32], shape: &[usize], means: &mut [&mut Tensor]) -> Self {
        let beta = 1.0 - (step.updates as f64).powf(-0.8);
        let (keep, take, scale) = (beta as f32, (1.0 - beta) as f32, step.grad_scale);
        let square = |g: f32| (g * scale) * (g * scale) + EPS;
        let (factors, chunk) = match (shape, means) {
            ([.., rows, columns], [row, col]) => {
                let (rows, columns) = (*rows, *columns);
                let row = row.view_mut().as_mut_slice::<f32>();
                dev.for_each_chunk(row, 1, |i, mean| {
                    let sum: f64 = g[i * columns..][..columns].iter().map(|g| f64::from(square(*g))).sum();
                    mean[0] = mean[0] * keep + (sum / columns as f64) as f32 * take;
                });
                let col = col.view_mut().as_mut_slice::<f32>();
                for (matrix, col) in g.chunks(rows * columns).zip(col.chunks_mut(columns)) {
                    host::fold_columns(dev, matrix, columns, square, col, |mean, sum| {
                        *mean = *mean * keep + (sum / rows as f64) as f32 * take;
                    });
                }
                let rows_of_one = rows;
                let row_factors = |row: &[f32]| {
                    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
                    let mean = mean as f32;
                    row.iter().map(|x| 1.0 / (x / mean).sqrt()).collect::<Vec<_>>()
                };
                let rows = row.chunks(rows).flat_map(row_factors).collect();
                let columns_factors = col.iter().map(|x| 1.0 / x.sqrt()).collect();
                (Factors::Matrix { rows, columns: columns_factors, rows_of_one }, columns)
            }
            (_, [v, ..]) => {
                let v = v.view_mut().as_mut_slice::<f32>();
                v.iter_mut().zip(g).for_each(|(v, g)| *v = *v * keep + square(*g) * take);
                (Factors::Vector(v.iter().map(|v| 1.0 / v.sqrt()).collect()), host::CHUNK)
            }
            _ => unreachable!("as it was laid out"),
        };
        let mut direction = Self { g, scale, factors, chunk, rms: 0.0 };
        let mut sums = vec![0.0f64; g.len().div_ceil(chunk)];
        dev.for_each_chunk(&mut sums, 1, |i, sum| {
            direction.of_chunk(i, |_, u| sum[0] += f64::from(u) * f64::from(u));
        });
        direction.rms = (sums.iter().sum::<f64>() / g.len().max(1) as f64).sqrt();
        direction
    }

    /// max(1, rms(u)).
    pub fn divisor(&self) -> f32 {
        self.rms.max(1.0) as f32
    }

    /// Calls `f(element, u)` for every element of something as large as the gradient.
    pub fn for_each_chunk(&self, dev: &Device, to: &mut [f32], f: impl Fn(&mut f32, f32) + Send + Sync) {
        dev.for_each_chunk(to, self.chunk, |i, to| self.of_chunk(i, |at, u| f(&mut to[at], u)));
    }

    fn of_chunk(&self, i: usize, mut f: impl FnMut(usize, f32)) {
        let start = i * self.chunk;
        let g = &self.g[start..self.g.len().min(start + self.chunk)];
        match &self.factors {
            Factors::Matrix { rows, columns, rows_of_one } => {
                let columns = &columns[i / rows_of_one * self.chunk..][..self.chunk];
                let row = rows[i] * self.scale;
                g.iter().zip(columns).enumerate().for_each(|(at, (g, column))| f(at, row * column * g));
            }
            Factors::Vector(factors) => {
                let factors = &factors[start..];
                g.iter()
                    .zip(factors)
                    .enumerate()
                    .for_each(|(at, (g, factor))| f(at, g * self.scale * factor));
            }
        }
    }
}
