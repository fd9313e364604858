//! A gradient matrix in few dimensions: what GaLore and APOLLO keep moments of.
//!
//! Formula, with G [out, in] and rank R:
//!
//! > right: P [R, in], low = G·Pᵀ;  left: Q [out, R], low = Qᵀ·G;  full: low = Qᵀ·G·Pᵀ
//!
//! P and Q are the leading singular vectors of a gradient (GaLore, Zhao et al., 2024), or drawn (APOLLO, Zhu et al., 2024),
//! and made anew every so many updates. A singular vector has no sign of its own: here its largest element is positive.

use sft_kernels::matmul::Matmul;
use sft_kernels::{DType, Device, Tensor, View, ViewMut};

use super::singular;
use super::state::Slot;
use super::torch_random::{next_seed, normal};

/// Which side of a matrix is projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectionType {
    /// The shorter side stays out: right of a matrix that is not wide, else left.
    Std,
    /// The other one.
    ReverseStd,
    /// Always right.
    Right,
    /// Always left.
    Left,
    /// Both.
    Full,
}

/// Where a projection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subspace {
    /// Singular vectors of the gradient.
    Svd,
    /// Normal numbers over √R.
    Random,
}

/// How gradients are projected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// R.
    pub rank: usize,
    /// Updates with one projection.
    pub update_interval: u64,
    /// Strength of the projected update.
    pub scale: f64,
    /// Which side.
    pub kind: ProjectionType,
    /// From where.
    pub subspace: Subspace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Right,
    Left,
    Full,
}

/// The projection of a matrix of one shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Projected {
    pub side: Side,
    rank: usize,
    outputs: usize,
    inputs: usize,
}

impl Projection {
    /// Of a matrix [out, in].
    pub(super) fn of(&self, shape: &[usize]) -> Projected {
        let [outputs, inputs] = *shape else { unreachable!("matrices are projected") };
        let is_wide = outputs < inputs;
        let side = match (self.kind, is_wide) {
            (ProjectionType::Full, _) => Side::Full,
            (ProjectionType::Right, _)
            | (ProjectionType::Std, false)
            | (ProjectionType::ReverseStd, true) => Side::Right,
            _ => Side::Left,
        };
        // There are no more singular vectors; numbers can be drawn for any rank.
        let most = if self.subspace == Subspace::Svd { outputs.min(inputs) } else { usize::MAX };
        Projected { side, rank: self.rank.min(most), outputs, inputs }
    }

    /// Whether an update begins with a new projection; `done` are the updates before it.
    pub(super) fn is_due(&self, done: u64) -> bool {
        done.is_multiple_of(self.update_interval)
    }

    /// The seed after all projections that `done` updates took.
    pub(super) fn seed_after(&self, first: u64, done: u64) -> u64 {
        (0..done.div_ceil(self.update_interval)).fold(first, |seed, _| next_seed(seed))
    }
}

impl Projected {
    /// P, Q or both.
    pub fn slots(&self) -> Vec<Slot> {
        let right = || Slot::of("projection_right", &[self.rank, self.inputs]);
        let left = || Slot::of("projection_left", &[self.outputs, self.rank]);
        match self.side {
            Side::Right => vec![right()],
            Side::Left => vec![left()],
            Side::Full => vec![left(), right()],
        }
    }

    /// Of the projected gradient.
    pub fn low_shape(&self) -> [usize; 2] {
        match self.side {
            Side::Right => [self.outputs, self.rank],
            Side::Left => [self.rank, self.inputs],
            Side::Full => [self.rank, self.rank],
        }
    }

    /// Elements of the workspace that [`Projected::project`] and [`Projected::add_back`] take.
    pub fn between(&self) -> usize {
        if self.side == Side::Full { self.rank * self.inputs.max(self.outputs) } else { 0 }
    }

    /// Bytes that making the projections anew takes: the gradient in f64, and two squares of its shorter side.
    pub fn refresh_bytes(&self) -> usize {
        let short = self.outputs.min(self.inputs);
        (self.outputs * self.inputs + 2 * short * short) * size_of::<f64>()
    }

    /// Makes the projections anew from a gradient.
    pub fn refresh(&self, g: View<'_>, tensors: &mut [&mut Tensor]) {
        let found = singular::leading(g.as_slice(), self.outputs, self.inputs, self.rank);
        let right = |tensor: &mut Tensor| {
            let p = tensor.view_mut().as_mut_slice::<f32>();
            for (row, vector) in p.chunks_mut(self.inputs).zip(&found.right) {
                let sign = sign(vector);
                row.iter_mut().zip(vector).for_each(|(to, x)| *to = (sign * x) as f32);
            }
        };
        let left = |tensor: &mut Tensor| {
            let q = tensor.view_mut().as_mut_slice::<f32>();
            for (i, vector) in found.left.iter().enumerate() {
                let sign = sign(vector);
                q.iter_mut()
                    .skip(i)
                    .step_by(self.rank)
                    .zip(vector)
                    .for_each(|(to, x)| *to = (sign * x) as f32);
            }
        };
        match (self.side, tensors) {
            (Side::Right, [p]) => right(p),
            (Side::Left, [q]) => left(q),
            (Side::Full, [q, p]) => {
                left(q);
                right(p);
            }
            _ => unreachable!("as it was laid out"),
        }
    }

    /// Draws the projections anew.
    pub fn draw(&self, seed: u64, tensors: &mut [&mut Tensor]) {
        for tensor in tensors {
            let scale = (self.rank as f64).sqrt() as f32;
            let drawn = normal(seed, tensor.elements());
            let to = tensor.view_mut().as_mut_slice::<f32>();
            to.iter_mut().zip(drawn).for_each(|(to, x)| *to = x / scale);
        }
    }

    /// low ← alpha · the projected gradient.
    pub fn project(
        &self,
        dev: &Device,
        g: View<'_>,
        alpha: f32,
        tensors: &[&mut Tensor],
        (low, between): Low<'_>,
    ) {
        let g = g.reshape(&[self.outputs, self.inputs]);
        match (self.side, tensors) {
            (Side::Right, [p]) => Matmul::x_wt(g, p.view(), low).alpha(alpha).run(dev),
            (Side::Left, [q]) => Matmul::dyt_x(q.view(), g, low).alpha(alpha).run(dev),
            (Side::Full, [q, p]) => {
                let mut half =
                    between.into_rows(0..self.rank * self.inputs).reshape(&[self.rank, self.inputs]);
                Matmul::dyt_x(q.view(), g, half.reborrow()).alpha(alpha).run(dev);
                Matmul::x_wt(half.as_view(), p.view(), low).run(dev);
            }
            _ => unreachable!("as it was laid out"),
        }
    }

    /// weight ← weight + alpha · what `low` is in the weight's dimensions.
    pub fn add_back(
        &self,
        dev: &Device,
        low: View<'_>,
        alpha: f32,
        tensors: &[&mut Tensor],
        (weight, between): (&mut [f32], ViewMut<'_>),
    ) {
        let weight = ViewMut::of(weight, &[self.outputs, self.inputs]);
        match (self.side, tensors) {
            (Side::Right, [p]) => add(dev, low, p.view(), alpha, weight),
            (Side::Left, [q]) => add(dev, q.view(), low, alpha, weight),
            (Side::Full, [q, p]) => {
                let mut half =
                    between.into_rows(0..self.outputs * self.rank).reshape(&[self.outputs, self.rank]);
                Matmul::new(q.view(), low, half.reborrow()).run(dev);
                add(dev, half.as_view(), p.view(), alpha, weight);
            }
            _ => unreachable!("as it was laid out"),
        }
    }
}

/// The projected gradient, and workspace.
pub(super) type Low<'a> = (ViewMut<'a>, ViewMut<'a>);

fn add(dev: &Device, a: View<'_>, b: View<'_>, alpha: f32, to: ViewMut<'_>) {
    Matmul::new(a, b, to).alpha(alpha).accumulate_if(true).run(dev);
}

/// 1 or −1, so that the largest element becomes positive.
fn sign(vector: &[f64]) -> f64 {
    let largest = vector.iter().fold(0.0f64, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
    if largest < 0.0 { -1.0 } else { 1.0 }
}

/// Room for the largest projected gradient, and for what is between.
pub(super) struct Workspace {
    low: Tensor,
    between: Tensor,
}

impl Workspace {
    pub fn new(all: &[Projected]) -> Self {
        let [low, between] = Self::elements(all);
        Self { low: Tensor::zeros(DType::F32, &[low]), between: Tensor::zeros(DType::F32, &[between]) }
    }

    /// Of both tensors.
    pub fn elements(all: &[Projected]) -> [usize; 2] {
        let largest = |of: &dyn Fn(&Projected) -> usize| all.iter().map(of).max().unwrap_or(0);
        [largest(&|p| p.low_shape().iter().product()), largest(&|p| p.between())]
    }

    /// Bytes of both tensors, and of what all threads take at once to make projections anew.
    pub fn bytes(all: &[Projected], subspace: Subspace) -> usize {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut refresh: Vec<usize> = all.iter().map(Projected::refresh_bytes).collect();
        refresh.sort_unstable_by(|a, b| b.cmp(a));
        let refresh = match subspace {
            Subspace::Svd => refresh.iter().take(threads).sum(),
            Subspace::Random => 0,
        };
        Self::elements(all).iter().sum::<usize>() * size_of::<f32>() + refresh
    }

    /// For one matrix.
    pub fn of(&mut self, projected: &Projected) -> Low<'_> {
        let shape = projected.low_shape();
        let low = self.low.head_mut(shape.iter().product()).reshape(&shape);
        (low, self.between.view_mut())
    }
}
