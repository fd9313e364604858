//! The AdamW update and the norm of gradients (stage 12 of the walk).
//!
//! Formula (Loshchilov & Hutter, 2019), in torch's order, with g the clipped gradient and t the step from 1:
//!
//! > p ← p·(1 − lr·wd);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
//! > p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)
//!
//! Everything is f32; parameters, m and v are overwritten. Memory-bound: 16 bytes read and 12 written an element.
//! A parameter may be in halves ([`MasterWeight`]): the update joins them, and splits what it is afterwards.
//!
//! All tensors of a model come at once: an adapter's are small and many, and a GPU takes one launch for them.

use half::bf16;
use rayon::prelude::*;

use crate::halves::{self, MasterWeight};
use crate::isa::per_isa;
use crate::lanes::sum_by;
use crate::{DType, Device, View, ViewMut};

pub(crate) use on_cuda::SOURCE;

/// Elements that one task handles, and that are added up in f32.
const CHUNK: usize = 8192;

/// Constants of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWParams {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment, β₁.
    pub beta1: f64,
    /// Decay of the second moment, β₂.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Number of this update, from 1.
    pub step: u64,
    /// The gradient is multiplied by it first: clipping.
    pub grad_scale: f32,
}

/// What one update changes: f32 all, of one length.
#[derive(Debug)]
pub struct AdamWState<'a> {
    /// Parameters.
    pub p: MasterWeight<'a>,
    /// First moment.
    pub m: ViewMut<'a>,
    /// Second moment.
    pub v: ViewMut<'a>,
}

/// The update of one tensor.
#[derive(Debug)]
pub struct AdamWUpdate<'a> {
    /// Its gradient, f32.
    pub g: View<'a>,
    /// What changes.
    pub state: AdamWState<'a>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// One update of every tensor.
///
/// # Panics
/// If lengths differ or types are others.
pub fn update_all<'a>(dev: &Device, params: &AdamWParams, updates: impl Iterator<Item = AdamWUpdate<'a>>) {
    let factors = Factors::of(params);
    let updates = updates.inspect(AdamWUpdate::check);
    match dev.cuda() {
        Some(cuda) => on_cuda::update_all((dev, cuda), params.learning_rate, factors, updates),
        None => updates.for_each(|update| update_on_cpu(dev, params.learning_rate, factors, update)),
    }
}

impl AdamWUpdate<'_> {
    fn check(&self) {
        let AdamWState { p, m, v } = &self.state;
        let n = self.g.elements();
        assert_eq!((p.elements(), m.elements(), v.elements()), (n, n, n), "adamw: lengths");
        let types = match p {
            MasterWeight::Whole(p) => [p.dtype(); 2],
            MasterWeight::Halves { high, low } => {
                assert_eq!([high.dtype(), low.dtype()], [DType::BF16; 2], "adamw: types of halves");
                assert_eq!(low.elements(), n, "adamw: lengths of halves");
                [DType::F32; 2]
            }
        };
        assert_eq!([self.g.dtype(), m.dtype(), v.dtype()], [DType::F32; 3], "adamw: types");
        assert_eq!(types, [DType::F32; 2], "adamw: types");
    }
}

fn update_on_cpu(dev: &Device, learning_rate: f64, factors: Factors, update: AdamWUpdate<'_>) {
    let _timed = dev.pass("adamw", 7 * update.g.byte_len());
    let AdamWUpdate { g, state: AdamWState { p, m, v }, weight_decay } = update;
    let decay = (1.0 - learning_rate * weight_decay) as f32;
    let g = g.as_slice::<f32>();
    let moments =
        m.as_mut_slice::<f32>().par_chunks_mut(CHUNK).zip(v.as_mut_slice::<f32>().par_chunks_mut(CHUNK));
    let update = |i: usize, p: &mut [f32], (m, v): (&mut [f32], &mut [f32])| {
        update_chunk(dev.isa(), factors, decay, &g[i * CHUNK..], p, m, v);
    };
    match p {
        MasterWeight::Whole(p) => {
            let chunks = p.as_mut_slice::<f32>().par_chunks_mut(CHUNK).zip(moments);
            dev.for_each_item(chunks.enumerate(), |(i, (p, moments))| update(i, p, moments));
        }
        MasterWeight::Halves { high, low } => {
            let (high, low) = (high.as_mut_slice::<bf16>(), low.as_mut_slice::<bf16>());
            let chunks = high.par_chunks_mut(CHUNK).zip(low.par_chunks_mut(CHUNK)).zip(moments);
            dev.for_each_item(chunks.enumerate(), |(i, ((high, low), moments))| {
                let mut whole = [0.0; CHUNK];
                let p = &mut whole[..high.len()];
                halves::join_into(high, low, p);
                update(i, p, moments);
                halves::split_into(p, high, low);
            });
        }
    }
}

/// The constants of one step, in `f32`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Factors {
    grad_scale: f32,
    rest1: f32,
    b2: f32,
    rest2: f32,
    step_size: f32,
    root2: f32,
    eps: f32,
}

impl Factors {
    /// Bias corrections in f64, as torch computes them in Python floats.
    fn of(params: &AdamWParams) -> Self {
        let t = params.step.min(i32::MAX as u64) as i32;
        let correction1 = 1.0 - params.beta1.powi(t);
        let correction2 = 1.0 - params.beta2.powi(t);
        Self {
            grad_scale: params.grad_scale,
            rest1: (1.0 - params.beta1) as f32,
            b2: params.beta2 as f32,
            rest2: (1.0 - params.beta2) as f32,
            step_size: (params.learning_rate / correction1) as f32,
            root2: correction2.sqrt() as f32,
            eps: params.eps as f32,
        }
    }
}

per_isa! {
    fn update_chunk(f: Factors, decay: f32, g: &[f32], p: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * f.grad_scale;
            *m += (g - *m) * f.rest1;
            *v = *v * f.b2 + g * g * f.rest2;
            *p = *p * decay - f.step_size * (*m / (v.sqrt() / f.root2 + f.eps));
        }
    }

    fn squares(g: &[f32]) -> f32 {
        sum_by(g, |g| g * g)
    }
}

/// Σ g² of all gradients, in f64 over fixed chunks.
///
/// # Panics
/// If one is not f32.
pub fn sum_of_squares_all<'a>(dev: &Device, gradients: impl Iterator<Item = View<'a>>) -> f64 {
    let gradients = gradients.inspect(|g| assert_eq!(g.dtype(), DType::F32, "gradient norm: types"));
    match dev.cuda() {
        Some(cuda) => on_cuda::sum_of_squares_all((dev, cuda), gradients),
        None => gradients.map(|g| sum_of_squares(dev, g.as_slice())).sum(),
    }
}

fn sum_of_squares(dev: &Device, g: &[f32]) -> f64 {
    let _timed = dev.pass("gradient norm", size_of_val(g));
    let mut sums = vec![0.0f64; g.len().div_ceil(CHUNK)];
    dev.for_each_chunk(&mut sums, 1, |i, sum| {
        let chunk = &g[i * CHUNK..g.len().min((i + 1) * CHUNK)];
        sum[0] = f64::from(squares(dev.isa(), chunk));
    });
    sums.iter().sum()
}

/// Sets all gradients to zero.
///
/// # Panics
/// If one is not f32.
pub fn zero_all<'a>(dev: &Device, gradients: impl Iterator<Item = ViewMut<'a>>) {
    let gradients = gradients.inspect(|g| assert_eq!(g.dtype(), DType::F32, "zero gradients: types"));
    match dev.cuda() {
        Some(cuda) => on_cuda::zero_all((dev, cuda), gradients),
        None => gradients.for_each(ViewMut::zero),
    }
}

mod on_cuda {
    //! The same on a GPU, all tensors in one launch: `adamw.cu`.
    //!
    //! The table of tensors is the same in every step, so that it is sent once.

    use super::{AdamWUpdate, Factors};
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::halves::MasterWeight;
    use crate::tensor_table::TensorTable;
    use crate::{Device, View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new(
        "adamw",
        concat!(
            include_str!("halves.cuh"),
            include_str!("tensor_table.cuh"),
            "\n#line 1 \"adamw.cu\"\n",
            include_str!("adamw.cu")
        ),
    );

    /// Threads of the block that adds up the sums of chunks.
    const TOTAL_THREADS: usize = 1024;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Update {
        tensors: DevicePtr,
        learning_rate: f64,
        factors: Factors,
        count: u32,
    }

    // SAFETY: the struct of the kernel; the table has `count` rows of its struct, whose lengths were checked.
    unsafe impl Params for Update {}

    pub(super) fn update_all<'a>(
        (dev, cuda): (&Device, &Cuda),
        learning_rate: f64,
        factors: Factors,
        updates: impl Iterator<Item = AdamWUpdate<'a>>,
    ) {
        let mut table = TensorTable::default();
        for AdamWUpdate { g, mut state, weight_decay } in updates {
            let (p, low) = match &mut state.p {
                MasterWeight::Whole(p) => (p.device(), DevicePtr::NULL),
                MasterWeight::Halves { high, low } => (high.device(), low.device()),
            };
            let addresses = [g.device(), p, low, state.m.device(), state.v.device()];
            let [g, p, low, m, v] = addresses.map(DevicePtr::address);
            table.push(state.p.elements(), [g, p, low, m, v, weight_decay.to_bits()]);
        }
        let _timed = dev.pass("adamw", 7 * table.bytes());
        let tensors = cuda.indices(table.words());
        let params = Update { tensors, learning_rate, factors, count: table.tensors() };
        cuda.launch(&SOURCE, "adamw_update", &[], table.grid(), params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Squares {
        tensors: DevicePtr,
        sums: DevicePtr,
        count: u32,
    }

    // SAFETY: the struct of the kernel; the table has `count` rows of its struct, and there is a sum for each chunk.
    unsafe impl Params for Squares {}

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Total {
        sums: DevicePtr,
        total: DevicePtr,
        count: u64,
    }

    // SAFETY: the struct of the kernel.
    unsafe impl Params for Total {}

    pub(super) fn sum_of_squares_all<'a>(
        (dev, cuda): (&Device, &Cuda),
        gradients: impl Iterator<Item = View<'a>>,
    ) -> f64 {
        let mut table = TensorTable::default();
        gradients.for_each(|g| table.push(g.elements(), [g.device().address()]));
        if table.chunks() == 0 {
            return 0.0;
        }
        let _timed = dev.pass("gradient norm", table.bytes());
        let scratch = cuda.scratch((table.chunks() + 1) * size_of::<f64>());
        let sums = scratch.start();
        let total = sums.offset(table.chunks() * size_of::<f64>());
        let params = Squares { tensors: cuda.indices(table.words()), sums, count: table.tensors() };
        cuda.launch(&SOURCE, "adamw_squares", &[], table.grid(), params);
        let params = Total { sums, total, count: table.chunks() as u64 };
        cuda.launch(&SOURCE, "adamw_total", &[], Grid::new(1, TOTAL_THREADS), params);
        cuda.read_f64(total, 1)[0]
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Zero {
        tensors: DevicePtr,
        count: u32,
    }

    // SAFETY: the struct of the kernel; the table has `count` rows of its struct.
    unsafe impl Params for Zero {}

    pub(super) fn zero_all<'a>((dev, cuda): (&Device, &Cuda), gradients: impl Iterator<Item = ViewMut<'a>>) {
        let mut table = TensorTable::default();
        gradients.for_each(|mut g| table.push(g.elements(), [g.device().address()]));
        let _timed = dev.pass("zero gradients", table.bytes());
        let params = Zero { tensors: cuda.indices(table.words()), count: table.tensors() };
        cuda.launch(&SOURCE, "adamw_zero", &[], table.grid(), params);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use crate::halves::Halves;
    use crate::testing::{Random, assert_close, devices, to_f64};

    fn params(step: u64) -> AdamWParams {
        AdamWParams { learning_rate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, step, grad_scale: 1.0 }
    }

    #[test]
    fn three_updates_match_torch() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../goldens/adamw.json")).unwrap();
        let read = |value: &serde_json::Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
        for dev in devices() {
            let start = read(&golden["start"]);
            let n = start.len();
            let mut p = Tensor::from_slice(&start, &[n]).on(&dev);
            let mut in_halves = Halves::of(p.to_dtype(DType::F32));
            let [mut m, mut v, mut m2, mut v2] = [(); 4].map(|()| dev.zeros(DType::F32, &[n]));
            for (i, step) in golden["steps"].as_array().unwrap().iter().enumerate() {
                let g = Tensor::from_slice(&read(&step["gradient"]), &[n]).on(&dev);
                let whole = MasterWeight::Whole(p.view_mut());
                let states = [
                    AdamWState { p: whole, m: m.view_mut(), v: v.view_mut() },
                    AdamWState { p: in_halves.master(), m: m2.view_mut(), v: v2.view_mut() },
                ];
                let updates = states.map(|state| AdamWUpdate { g: g.view(), state, weight_decay: 0.1 });
                update_all(&dev, &params(i as u64 + 1), updates.into_iter());
                let expected: Vec<f64> = serde_json::from_value(step["parameter"].clone()).unwrap();
                assert_close("parameter", &to_f64(&p), &expected, 1e-6);
                assert_eq!(in_halves.to_host().to_f32_vec(), p.to_f32_vec(), "in halves");
            }
        }
    }

    #[test]
    fn many_tensors_at_once_are_as_one_after_the_other() {
        let sizes = [3, 0, CHUNK, 1, 2 * CHUNK + 7, 64, 0];
        for dev in devices() {
            let mut random = Random::new(11);
            let mut tensors = |scale: f32| -> Vec<Tensor> {
                let mut values =
                    |n: usize| random.f64s(n).iter().map(|x| *x as f32 * scale).collect::<Vec<_>>();
                sizes.iter().map(|n| Tensor::from_slice(&values(*n), &[*n]).on(&dev)).collect()
            };
            let (mut g, mut ps) = (tensors(1.0), tensors(1.0));
            let zeros = || sizes.map(|n| dev.zeros(DType::F32, &[n]));
            let (mut ms, mut vs) = (zeros(), zeros());
            let before: Vec<Vec<f64>> = ps.iter().map(to_f64).collect();
            let moments = ms.iter_mut().zip(&mut vs);
            let all = ps.iter_mut().zip(moments).zip(&g).enumerate();
            let updates = all.map(|(i, ((p, (m, v)), g))| {
                let p = MasterWeight::Whole(p.view_mut());
                let state = AdamWState { p, m: m.view_mut(), v: v.view_mut() };
                AdamWUpdate { g: g.view(), state, weight_decay: 0.1 * i as f64 }
            });
            update_all(&dev, &params(1), updates);
            for (i, (g, p)) in g.iter().zip(&ps).enumerate() {
                // After one step both moments are those of the gradient alone.
                let decay = 1.0 - 0.01 * 0.1 * i as f64;
                let pairs = before[i].iter().zip(to_f64(g));
                let expected: Vec<f64> =
                    pairs.map(|(p, g)| p * decay - 0.01 * g / (g.abs() + 1e-8)).collect();
                assert_close("parameter", &to_f64(p), &expected, 1e-6);
            }
            let expected: f64 = g.iter().flat_map(to_f64).map(|g| g * g).sum();
            let found = sum_of_squares_all(&dev, g.iter().map(Tensor::view));
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} and not {expected}");
            zero_all(&dev, g.iter_mut().map(Tensor::view_mut));
            assert!(g.iter().flat_map(to_f64).all(|g| g == 0.0));
            assert_eq!(sum_of_squares_all(&dev, std::iter::empty()), 0.0);
        }
    }

    #[test]
    fn sum_of_squares_is_exact_where_f32_alone_is_not() {
        for dev in devices() {
            let g = Tensor::from_slice(&vec![0.1f32; 1_000_003], &[1_000_003]).on(&dev);
            let expected = 1_000_003.0 * f64::from(0.1f32) * f64::from(0.1f32);
            let found = sum_of_squares_all(&dev, std::iter::once(g.view()));
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} and not {expected}");
        }
    }
}
