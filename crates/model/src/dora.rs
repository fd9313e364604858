//! Magnitudes of the rows of an adapted weight: DoRA (stages 9 and 11 of the walk), a part of [`Lora`].
//!
//! > y = m / ‖W + s·B·A‖ ⊙ (x·Wᵀ + s·(x·Aᵀ)·Bᵀ) + b
//!
//! as in [`sft_kernels::dora`]. Where the adapter's input is dropped, PEFT drops that of the base weight's part with it,
//! but not of the layer's own output; with d = drop(x) and u = d·Wᵀ + s·(d·Aᵀ)·Bᵀ:
//!
//! > y = (x − d)·Wᵀ + b + m / ‖W + s·B·A‖ ⊙ u
//!
//! The norms of W's own rows are known from the beginning, since W is frozen.

use sft_kernels::dora::{self as kernel, FACTORS, Norms};
use sft_kernels::matmul::Matmul;
use sft_kernels::{DType, Device, Tensor, View, ViewMut, dropout};

use crate::arena::Arena;
use crate::linear::Lora;
use crate::method::LowRank;
use crate::parameter::Parameter;

/// How PEFT ends the name of the magnitudes.
pub(crate) const MAGNITUDE: &str = "lora_magnitude_vector";

/// Magnitudes beside a low-rank adapter.
#[derive(Debug)]
pub struct Dora {
    /// m: f32 [out].
    pub magnitude: Parameter,
    /// ‖W_j‖²: f32 [out].
    squares: Tensor,
    /// The factors f32 [2, out], where nothing changes them.
    kept: Option<Tensor>,
}

/// What forward leaves for backward.
#[derive(Debug)]
pub(crate) struct Saved {
    /// u: [N · out].
    u: Tensor,
    /// f32 [2 · out].
    factors: Tensor,
}

/// Workspace that all layers share.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// A·Wᵀ: f32 [R · out].
    a_wt: Tensor,
    /// A·Aᵀ: f32 [R · R].
    gram: Tensor,
    /// The gradient of u, [N · out].
    du: Tensor,
}

impl Saved {
    /// Room for `tokens` tokens of a layer.
    pub fn new(arena: &mut Arena<'_>, dtype: DType, tokens: usize, carried: LowRank) -> Self {
        Self {
            u: arena.tensor(dtype, &[tokens * carried.outputs]),
            factors: arena.tensor(DType::F32, &[FACTORS * carried.outputs]),
        }
    }

    fn u(&self, n: usize, outputs: usize) -> View<'_> {
        self.u.head(n * outputs).reshape(&[n, outputs])
    }
}

impl Scratch {
    /// Room for `tokens` tokens of the largest layer.
    pub fn new(arena: &mut Arena<'_>, dtype: DType, tokens: usize, carried: LowRank) -> Self {
        Self {
            a_wt: arena.tensor(DType::F32, &[carried.rank * carried.outputs]),
            gram: arena.tensor(DType::F32, &[carried.rank * carried.rank]),
            du: arena.tensor(dtype, &[tokens * carried.outputs]),
        }
    }

    /// The gradient of u [N, out].
    pub fn du(&self, n: usize, outputs: usize) -> View<'_> {
        self.du.head(n * outputs).reshape(&[n, outputs])
    }
}

/// ‖W_j‖ of each row of a weight.
pub(crate) fn row_norms(weight: &Parameter) -> Vec<f32> {
    row_squares(weight).into_iter().map(f32::sqrt).collect()
}

fn row_squares(weight: &Parameter) -> Vec<f32> {
    let inputs = weight.shape()[1].max(1);
    let square = |row: &[f32]| row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() as f32;
    weight.to_host().to_f32_vec().chunks(inputs).map(square).collect()
}

/// A merged weight W + s·B·A [out, in] with rows of these magnitudes, in the host's memory.
pub(crate) fn with_magnitudes(merged: &Tensor, magnitude: &Tensor) -> Tensor {
    let (mut values, inputs) = (merged.to_f32_vec(), merged.shape()[1]);
    for (row, m) in values.chunks_mut(inputs.max(1)).zip(magnitude.to_f32_vec()) {
        let norm = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        let factor = f64::from(m) / norm.max(f64::from(f32::MIN_POSITIVE).sqrt());
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
    }
    Tensor::from_slice(&values, merged.shape())
}

impl Dora {
    /// Magnitudes of the rows of a weight.
    pub fn new(magnitude: Parameter, weight: &Parameter) -> Self {
        let squares = row_squares(weight);
        let squares = Tensor::from_slice(&squares, &[squares.len()]);
        let mut beside = magnitude.value().zeros_beside(DType::F32, squares.shape());
        beside.view_mut().copy_from(squares.view());
        Self { magnitude, squares: beside, kept: None }
    }

    /// Magnitudes of another weight, which are its own: those that DoRA begins with.
    pub(crate) fn begin(&mut self, weight: &Parameter) {
        self.rebase(weight, &row_norms(weight));
    }

    /// Other magnitudes of another weight.
    pub(crate) fn rebase(&mut self, weight: &Parameter, magnitudes: &[f32]) {
        let (squares, shape) = (row_squares(weight), [magnitudes.len()]);
        self.magnitude.set(View::of(magnitudes, &shape));
        self.squares.view_mut().copy_from(View::of(&squares, &shape));
    }
}

impl Lora {
    /// Computes the factors of a frozen adapter once, for all passes.
    pub(crate) fn keep_factors(&mut self, dev: &Device, weight: &Parameter) {
        let Some(dora) = &self.dora else { return };
        if dora.magnitude.takes_gradient() {
            return;
        }
        let (rank, outputs) = (self.a.shape()[0], weight.shape()[0]);
        let f32s = |shape: &[usize]| self.a.value().zeros_beside(DType::F32, shape);
        let (mut a_wt, mut gram, mut kept) =
            (f32s(&[rank, outputs]), f32s(&[rank, rank]), f32s(&[FACTORS, outputs]));
        self.compute_factors(dev, dora, weight, [a_wt.view_mut(), gram.view_mut(), kept.view_mut()]);
        self.dora.iter_mut().for_each(|dora| dora.kept = Some(std::mem::replace(&mut kept, f32s(&[0]))));
    }

    fn compute_factors(
        &self,
        dev: &Device,
        dora: &Dora,
        weight: &Parameter,
        [mut a_wt, mut gram, factors]: [ViewMut<'_>; 3],
    ) {
        let a = self.a.value();
        weight.x_wt(a, a_wt.reborrow()).run(dev);
        Matmul::x_wt(a, a, gram.reborrow()).run(dev);
        let norms = Norms {
            squares: dora.squares.view(),
            magnitude: dora.magnitude.value(),
            a_wt: a_wt.as_view(),
            gram: gram.as_view(),
            b: self.b.value(),
            scale: self.scale,
        };
        kernel::factors(dev, norms, factors);
    }

    /// y [N, out] of a layer with magnitudes, where `input` is what the adapter reads and `xa` what it made of it.
    /// `dropped` is workspace that holds `input` where elements of x are dropped.
    #[expect(clippy::too_many_arguments, reason = "the formula's own, and workspace")]
    pub(crate) fn output_with_magnitudes(
        &self,
        dev: &Device,
        dora: &Dora,
        (weight, bias): (&Parameter, Option<View<'_>>),
        (x, dropped): (View<'_>, Option<&mut Tensor>),
        xa: View<'_>,
        mut y: ViewMut<'_>,
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        let (n, outputs, rank) = (x.dim(0), weight.shape()[0], self.a.shape()[0]);
        let factors = saved.factors.head_mut(FACTORS * outputs);
        match &dora.kept {
            Some(kept) => {
                let mut factors = factors;
                factors.reborrow().copy_from(kept.view().reshape(&[FACTORS * outputs]));
            }
            None => {
                let a_wt = scratch.a_wt.head_mut(rank * outputs).reshape(&[rank, outputs]);
                let gram = scratch.gram.head_mut(rank * rank).reshape(&[rank, rank]);
                self.compute_factors(dev, dora, weight, [a_wt, gram, factors]);
            }
        }
        let mut u = saved.u.head_mut(n * outputs).reshape(&[n, outputs]);
        let factors = saved.factors.head(FACTORS * outputs);
        let Some(dropped) = dropped else {
            weight.x_wt(x, u.reborrow()).plus(xa, self.b.value()).run(dev);
            return kernel::forward(dev, factors, u.as_view(), bias, y, false);
        };
        let d = dropped.head(x.elements()).reshape(x.shape());
        weight.x_wt(d, u.reborrow()).plus(xa, self.b.value()).run(dev);
        kernel::rest(dev, x, dropped.head_mut(x.elements()).reshape(x.shape()));
        let others = dropped.head(x.elements()).reshape(x.shape());
        weight.x_wt(others, y.reborrow()).bias(bias).run(dev);
        kernel::forward(dev, factors, u.as_view(), None, y, true);
    }

    /// The gradient of u into workspace, and what comes to that of the magnitudes.
    pub(crate) fn backward_magnitudes(
        &mut self,
        dev: &Device,
        dy: View<'_>,
        saved: &Saved,
        scratch: &mut Scratch,
    ) {
        let Some(dora) = &mut self.dora else { return };
        let (n, outputs) = (dy.dim(0), dy.dim(1));
        let factors = saved.factors.head(FACTORS * outputs);
        let du = scratch.du.head_mut(n * outputs).reshape(&[n, outputs]);
        kernel::backward(dev, factors, (dy, saved.u(n, outputs)), du, dora.magnitude.gradient_mut());
    }

    /// The gradient of the input, du being in workspace, which is used up; `dropped` is workspace.
    #[expect(clippy::too_many_arguments, reason = "the formula's own, and workspace")]
    pub(crate) fn input_gradient_with_magnitudes(
        &self,
        dev: &Device,
        weight: &Parameter,
        (dy, dxa): (View<'_>, View<'_>),
        (mut dx, accumulate): (ViewMut<'_>, bool),
        dropped: Option<(&mut Tensor, u64)>,
        saved: &Saved,
        scratch: &mut Scratch,
    ) {
        let (n, outputs, a) = (dy.dim(0), dy.dim(1), self.a.value());
        let Some((buffer, key)) = dropped else {
            let product = weight.dy_w(scratch.du(n, outputs), dx).accumulate_if(accumulate);
            return product.plus(dxa, a).run(dev);
        };
        weight.dy_w(dy, dx.reborrow()).accumulate_if(accumulate).run(dev);
        let du = scratch.du.head_mut(n * outputs).reshape(&[n, outputs]);
        kernel::less(dev, saved.factors.head(FACTORS * outputs), 1.0, dy, du);
        let (elements, shape) = (dx.elements(), [n, dx.dim(1)]);
        let through = buffer.head_mut(elements).reshape(&shape);
        weight.dy_w(scratch.du(n, outputs), through).plus(dxa, a).run(dev);
        let through = buffer.head(elements).reshape(&shape);
        dropout::apply(dev, self.dropout, key, through, dx, true);
    }
}

#[cfg(test)]
mod tests {
    use sft_kernels::{CpuOptions, random};

    use super::*;
    use crate::linear::{self, Linear};
    use crate::method::Carried;

    const KEY: u64 = 77;
    const N: usize = 4;
    const IN: usize = 6;
    const OUT: usize = 5;
    const R: usize = 2;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        (0..count as u64).map(|i| random::normal(seed, i) as f32).collect()
    }

    fn layer(dropout: f32) -> Linear {
        let trained = |name: &str, seed: u64, shape: &[usize]| {
            let value = Tensor::from_slice(&values(seed, shape.iter().product()), shape);
            Parameter::trained(name, value, DType::F32)
        };
        let weight = Parameter::frozen("w.weight", Tensor::from_slice(&values(1, OUT * IN), &[OUT, IN]));
        let dora = Dora::new(trained("w.lora_magnitude_vector", 4, &[OUT]), &weight);
        let bias = Parameter::frozen("w.bias", Tensor::from_slice(&values(5, OUT), &[OUT]));
        let (a, b) = (trained("w.lora_A.weight", 2, &[R, IN]), trained("w.lora_B.weight", 3, &[OUT, R]));
        let lora = Lora { a, b, scale: 0.7, dropout, dropout_id: 9, dora: Some(dora), start: None };
        Linear { weight, bias: Some(bias), lora: Some(lora), oft: None }
    }

    /// [rows, depth] · [depth, columns].
    fn times(a: &[f64], b: &[f64], [rows, depth, columns]: [usize; 3]) -> Vec<f64> {
        let element = |i: usize, j: usize| (0..depth).map(|k| a[i * depth + k] * b[k * columns + j]).sum();
        (0..rows * columns).map(|at| element(at / columns, at % columns)).collect()
    }

    fn transposed(a: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
        (0..rows * columns).map(|at| a[at % rows * columns + at / rows]).collect()
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|x| f64::from(*x)).collect()
    }

    fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (f64::from(*found) - expected).abs() < 2e-5 * expected.abs().max(1.0),
                "{what}: {found} {expected}"
            );
        }
    }

    /// PEFT's formula written out in f64: y = x·Wᵀ + b + (g − 1) ⊙ d·Wᵀ + g ⊙ s·(d·Aᵀ)·Bᵀ, and its derivative with g held.
    fn matches_pefts_formula(dropout: f32) {
        let dev = Device::cpu(CpuOptions::default()).unwrap();
        let mut layer = layer(dropout);
        let largest = Carried::LowRank(LowRank { rank: R, outputs: OUT, dora: true });
        let arena = &mut Arena::allocating(&dev);
        let mut saved = linear::Saved::new(arena, DType::F32, N, Some(largest));
        let mut scratch = linear::Scratch::new(arena, DType::F32, (N, N), IN, Some(largest), dropout > 0.0);
        let (x, dy) = (values(6, N * IN), values(7, N * OUT));
        let [x, dy] = [Tensor::from_slice(&x, &[N, IN]), Tensor::from_slice(&dy, &[N, OUT])];
        let [mut y, mut dx] = [OUT, IN].map(|width| Tensor::zeros(DType::F32, &[N, width]));
        layer.forward(&dev, x.view(), y.view_mut(), &mut saved, &mut scratch, Some(KEY));
        layer.backward(
            &dev,
            x.view(),
            dy.view(),
            Some(dx.view_mut()),
            false,
            &saved,
            &mut scratch,
            Some(KEY),
        );

        let mut mask = Tensor::zeros(DType::F32, &[N, IN]);
        let ones = Tensor::from_slice(&[1.0f32; N * IN], &[N, IN]);
        let key = random::key(KEY, &[9]);
        dropout::apply(&dev, dropout, key, ones.view(), mask.view_mut(), false);
        let [x, dy, mask] = [&x, &dy, &mask].map(|t| wide(&t.to_f32_vec()));
        let [w, a, b, m, bias] =
            [(1, OUT * IN), (2, R * IN), (3, OUT * R), (4, OUT), (5, OUT)].map(|(s, n)| wide(&values(s, n)));
        let s = f64::from(0.7f32);
        let d: Vec<f64> = x.iter().zip(&mask).map(|(x, m)| x * m).collect();
        let ba = times(&b, &a, [OUT, R, IN]);
        let norm =
            |j: usize| (0..IN).map(|i| (w[j * IN + i] + s * ba[j * IN + i]).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = (0..OUT).map(norm).collect();
        let g = |at: usize| m[at % OUT] / norms[at % OUT];
        let (wt, at, bt) = (transposed(&w, [OUT, IN]), transposed(&a, [R, IN]), transposed(&b, [OUT, R]));
        let (xw, dw) = (times(&x, &wt, [N, IN, OUT]), times(&d, &wt, [N, IN, OUT]));
        let da = times(&d, &at, [N, IN, R]);
        let dab = times(&da, &bt, [N, R, OUT]);
        let expected: Vec<f64> =
            (0..N * OUT).map(|i| xw[i] + bias[i % OUT] + (g(i) - 1.0) * dw[i] + g(i) * s * dab[i]).collect();
        assert_close("y", &y.to_f32_vec(), &expected);

        let du: Vec<f64> = dy.iter().enumerate().map(|(i, dy)| g(i) * dy).collect();
        let less: Vec<f64> = dy.iter().enumerate().map(|(i, dy)| (g(i) - 1.0) * dy).collect();
        let dxa: Vec<f64> = times(&du, &b, [N, OUT, R]).iter().map(|x| s * x).collect();
        let (through, plain) = (times(&less, &w, [N, OUT, IN]), times(&dy, &w, [N, OUT, IN]));
        let by_a = times(&dxa, &a, [N, R, IN]);
        let expected: Vec<f64> = (0..N * IN).map(|i| plain[i] + mask[i] * (through[i] + by_a[i])).collect();
        assert_close("dx", &dx.to_f32_vec(), &expected);
        let lora = layer.lora.as_ref().unwrap();
        let gradient = |p: &Parameter| p.gradient().unwrap().to_f32_vec();
        assert_close("dA", &gradient(&lora.a), &times(&transposed(&dxa, [N, R]), &d, [R, N, IN]));
        let sda: Vec<f64> = da.iter().map(|x| s * x).collect();
        assert_close("dB", &gradient(&lora.b), &times(&transposed(&du, [N, OUT]), &sda, [OUT, N, R]));
        let mut dm = vec![0.0; OUT];
        for i in 0..N * OUT {
            dm[i % OUT] += dy[i] * (dw[i] + s * dab[i]) / norms[i % OUT];
        }
        assert_close("dm", &gradient(&lora.dora.as_ref().unwrap().magnitude), &dm);
    }

    #[test]
    fn a_layer_computes_what_peft_does() {
        matches_pefts_formula(0.0);
    }

    #[test]
    fn a_layer_whose_input_is_dropped_computes_what_peft_does() {
        matches_pefts_formula(0.4);
    }

    #[test]
    fn magnitudes_decay_as_in_transformers_and_biases_do_not() {
        let layer = layer(0.0);
        assert!(layer.lora.as_ref().unwrap().dora.as_ref().unwrap().magnitude.outline().decays());
        assert!(!layer.bias.unwrap().outline().decays());
    }
}
