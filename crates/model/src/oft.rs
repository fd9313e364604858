//! Rotations of what a linear layer reads: OFT (stages 9 and 11 of the walk), a part of [`crate::linear::Linear`].
//!
//! > y = (x·R)·Wᵀ + b
//!
//! with R block-diagonal, as in [`sft_kernels::oft`]. The weight is only read, so that it may be quantised (QOFT).
//! Merged, a weight is W·Rᵀ.
//!
//! R is made anew in each pass, and nothing is kept for backward: what it needs of x is x itself.

use sft_kernels::oft::{self as kernel, Dropped, Rotations};
use sft_kernels::{DType, Device, Tensor, View, ViewMut, random};

use crate::arena::Arena;
use crate::method::Rotated;
use crate::parameter::Parameter;

/// How PEFT ends the name of the rotations.
pub(crate) const ROTATIONS: &str = "oft_R.weight";

/// Rotations of a layer's input.
#[derive(Debug)]
pub struct Oft {
    /// q: f32 [K, b·(b−1)/2].
    pub skew: Parameter,
    /// b.
    pub size: usize,
    /// Share of the blocks that stay as they are in a training pass.
    pub dropout: f32,
    /// Tells this layer's choices of blocks from the others'.
    pub dropout_id: u64,
    /// R [K, b, b], where nothing changes it.
    kept: Option<Tensor>,
}

/// Matrices of a layer's blocks that backward needs beside R.
const BACKWARD_MATRICES: usize = 6;
/// Those of them that forward needs too.
const FORWARD_MATRICES: usize = 2;

/// Workspace that all layers share.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// x·R, or its gradient: [N · widest input].
    rotated: Tensor,
    /// R: f32 [widest input · largest b].
    r: Tensor,
    /// The gradient of R.
    dr: Tensor,
    work: [Tensor; BACKWARD_MATRICES],
}

impl Scratch {
    /// Room for `tokens` tokens of the largest layer; for backward where any are to go back.
    pub fn new(
        arena: &mut Arena<'_>,
        dtype: DType,
        (tokens, backward_tokens): (usize, usize),
        largest: Rotated,
    ) -> Self {
        let Rotated { inputs, block_size } = largest;
        let mut matrices = |needed: bool| {
            arena.tensor(DType::F32, &[if needed { inputs.saturating_mul(block_size) } else { 0 }])
        };
        let goes_back = backward_tokens > 0;
        Self {
            r: matrices(true),
            dr: matrices(goes_back),
            work: std::array::from_fn(|i| matrices(goes_back || i < FORWARD_MATRICES)),
            rotated: arena.tensor(dtype, &[tokens * inputs]),
        }
    }

    fn work<const P: usize>(work: &mut [Tensor; BACKWARD_MATRICES], elements: usize) -> [ViewMut<'_>; P] {
        let mut all = work.iter_mut().map(|tensor| tensor.head_mut(elements));
        std::array::from_fn(|_| all.next().expect("no pass needs more than backward does"))
    }
}

impl Oft {
    /// Rotations of `[K, b·(b−1)/2]` numbers.
    pub(crate) fn new(skew: Parameter, size: usize, dropout: f32, path: &str) -> Self {
        Self { skew, size, dropout, dropout_id: random::name_part(path), kept: None }
    }

    /// Shape of the numbers for an input of this width.
    pub(crate) fn shape(inputs: usize, size: usize) -> [usize; 2] {
        [inputs / size.max(1), sft_kernels::oft::skew_elements(size)]
    }

    /// Elements of R.
    fn elements(&self) -> usize {
        self.skew.shape()[0] * self.size * self.size
    }

    fn rotations(&self, key: Option<u64>) -> Rotations<'_> {
        let dropped = key.filter(|_| self.dropout > 0.0).and_then(|key| {
            let key = random::key(key, &[self.dropout_id]);
            Dropped::choose(key, self.dropout, self.skew.shape()[0])
        });
        Rotations { skew: self.skew.value(), size: self.size, dropped }
    }

    /// Makes R of frozen rotations once, for all passes.
    pub(crate) fn keep_matrices(&mut self, dev: &Device) {
        if !self.skew.takes_gradient() {
            self.kept = Some(self.matrices(dev));
        }
    }

    fn matrices(&self, dev: &Device) -> Tensor {
        let [mut r, mut q, mut h] =
            [(); 3].map(|()| self.skew.value().zeros_beside(DType::F32, &[self.elements()]));
        kernel::matrices(dev, self.rotations(None), [q.view_mut(), h.view_mut()], r.view_mut());
        r
    }

    /// W·Rᵀ of a weight [out, in], f32.
    pub(crate) fn merged(&self, dev: &Device, weight: View<'_>) -> Tensor {
        let (r, weight) = (self.matrices(dev), weight.to_dtype(DType::F32));
        let mut merged = weight.zeros_beside(DType::F32, weight.shape());
        kernel::backward_input(dev, weight.view(), (r.view(), self.size), merged.view_mut(), false);
        merged
    }

    /// R in workspace, or as it is kept.
    fn ready<'a>(
        &'a self,
        dev: &Device,
        r: &'a mut Tensor,
        work: &mut [Tensor; BACKWARD_MATRICES],
        key: Option<u64>,
    ) -> View<'a> {
        if let Some(kept) = &self.kept {
            return kept.view();
        }
        let elements = self.elements();
        let work = Scratch::work(work, elements);
        kernel::matrices(dev, self.rotations(key), work, r.head_mut(elements));
        r.head(elements)
    }

    /// x·R [N, in], in workspace.
    pub(crate) fn rotate<'a>(
        &self,
        dev: &Device,
        x: View<'_>,
        scratch: &'a mut Scratch,
        key: Option<u64>,
    ) -> View<'a> {
        let Scratch { rotated, r, work, .. } = scratch;
        let r = self.ready(dev, r, work, key);
        kernel::forward(dev, x, (r, self.size), rotated.head_mut(x.elements()).reshape(x.shape()));
        rotated.head(x.elements()).reshape(x.shape())
    }

    /// Memory for the gradient of x·R, [N, in].
    pub(crate) fn gradient<'a>(&self, n: usize, inputs: usize, scratch: &'a mut Scratch) -> ViewMut<'a> {
        scratch.rotated.head_mut(n * inputs).reshape(&[n, inputs])
    }

    /// The gradient of x from that of x·R, which is in workspace.
    pub(crate) fn input_gradient(
        &self,
        dev: &Device,
        (dx, accumulate): (ViewMut<'_>, bool),
        scratch: &mut Scratch,
        key: Option<u64>,
    ) {
        let Scratch { rotated, r, work, .. } = scratch;
        let r = self.ready(dev, r, work, key);
        let dy = rotated.head(dx.elements()).reshape(dx.shape());
        kernel::backward_input(dev, dy, (r, self.size), dx, accumulate);
    }

    /// Adds to the gradient of the rotations; that of x·R is in workspace.
    pub(crate) fn backward_rotations(
        &mut self,
        dev: &Device,
        x: View<'_>,
        scratch: &mut Scratch,
        key: Option<u64>,
    ) {
        if !self.skew.takes_gradient() {
            return;
        }
        let (elements, size) = (self.elements(), self.size);
        let Scratch { rotated, dr, work, .. } = scratch;
        let dy = rotated.head(x.elements()).reshape(x.shape());
        kernel::backward_matrices(dev, x, dy, (dr.head_mut(elements), size));
        let dropped = self.rotations(key).dropped;
        let (skew, gradient) = self.skew.value_and_gradient();
        let Some(gradient) = gradient else { return };
        let rotations = Rotations { skew, size, dropped };
        kernel::backward_skew(dev, rotations, dr.head_mut(elements), Scratch::work(work, elements), gradient);
    }
}
