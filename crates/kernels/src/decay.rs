//! Steps and decays of a linear recurrence (stages 9 and 11 of the walk): what [`crate::linear_attention`] takes.
//!
//! Formula, for token t and head h, with trained numbers A and bias of each head (Gu & Dao, 2023; Yang et al., 2025):
//!
//! > Δ = softplus(s·a + bias), decay = −e^A·Δ, step = σ(b), or Δ where there is no b
//!
//! Derivative, with dΔ = −e^A·ddecay (+ dstep where there is no b):
//!
//! > da = s·σ(s·a + bias)·dΔ, db = dstep·step·(1 − step), dbias = Σ_t da/s, dA = Σ_t ddecay·decay
//!
//! Storage f32 or bf16 for a and b and their gradients, f32 for step, decay and theirs; A and bias of one type, their
//! gradients f32. Saved for backward: a and b, which da and db replace. Memory-bound: 4 tensors forward, 8 backward.

use rayon::prelude::*;

use crate::exp::exp;
use crate::isa::per_isa;
use crate::{DType, Device, Element, View, ViewMut, rows, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Elements that one task handles, about.
const CHUNK: usize = 4096;

/// The numbers of each head.
#[derive(Debug, Clone, Copy)]
pub struct HeadNumbers<'a> {
    /// A, [H].
    pub a_log: View<'a>,
    /// [H], of A's type.
    pub dt_bias: View<'a>,
    /// s.
    pub scale: f32,
}

impl HeadNumbers<'_> {
    fn check(&self, a: View<'_>, b: Option<View<'_>>) {
        let heads = a.dim(1);
        assert_eq!(
            (self.a_log.elements(), self.dt_bias.elements()),
            (heads, heads),
            "decay: numbers of each head"
        );
        assert_eq!(self.a_log.dtype(), self.dt_bias.dtype(), "decay: one type for the numbers of each head");
        assert!(b.is_none_or(|b| b.shape() == a.shape() && b.dtype() == a.dtype()), "decay: a and b");
    }
}

/// step and decay, f32 [N, H], from a and b [N, H].
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(
    dev: &Device,
    numbers: HeadNumbers<'_>,
    a: View<'_>,
    b: Option<View<'_>>,
    step: ViewMut<'_>,
    decay: ViewMut<'_>,
) {
    let _timed = dev.pass("decay", 2 * a.byte_len() + 2 * step.byte_len());
    numbers.check(a, b);
    assert_eq!((step.shape(), decay.shape()), (a.shape(), a.shape()), "decay: step and decay");
    assert_eq!((step.dtype(), decay.dtype()), (DType::F32, DType::F32), "decay: step and decay are float32");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, numbers, a, b, step, decay);
    }
    let heads = a.dim(1);
    let len = chunk(heads);
    with_dtype!(a.dtype(), E => with_dtype!(numbers.a_log.dtype(), W => {
        let of = (numbers.a_log.as_slice::<W>(), numbers.dt_bias.as_slice::<W>(), numbers.scale);
        let (a, b) = (a.as_slice::<E>(), b.map(View::as_slice::<E>));
        let outputs = ((step.as_mut_slice::<f32>(), len), (decay.as_mut_slice::<f32>(), len));
        dev.for_each_chunk_pair(outputs.0, outputs.1, |i, step, decay| {
            values(dev.isa(), of, &a[i * len..], b.map(|b| &b[i * len..]), step, decay);
        });
    }));
}

/// What [`backward`] reads and writes.
pub struct Backward<'a> {
    /// a, then da.
    pub a: ViewMut<'a>,
    /// b, then db.
    pub b: Option<ViewMut<'a>>,
    /// f32 [N, H]; used up.
    pub dstep: ViewMut<'a>,
    /// f32 [N, H]; used up.
    pub ddecay: ViewMut<'a>,
    /// f32 [H], added to.
    pub da_log: Option<ViewMut<'a>>,
    /// f32 [H], added to.
    pub ddt_bias: Option<ViewMut<'a>>,
}

/// The gradients.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(dev: &Device, numbers: HeadNumbers<'_>, io: Backward<'_>) {
    let _timed = dev.pass("decay backward", 4 * io.a.byte_len() + 4 * io.dstep.byte_len());
    let Backward { a, b, mut dstep, mut ddecay, da_log, ddt_bias } = io;
    numbers.check(a.as_view(), b.as_ref().map(ViewMut::as_view));
    assert_eq!((dstep.shape(), ddecay.shape()), (a.shape(), a.shape()), "decay: gradients");
    assert_eq!((dstep.dtype(), ddecay.dtype()), (DType::F32, DType::F32), "decay: gradients are float32");
    if let Some(cuda) = dev.cuda() {
        on_cuda::backward(cuda, numbers, (a, b), dstep.reborrow(), ddecay.reborrow());
    } else {
        let (len, has_b) = (chunk(a.dim(1)), b.is_some());
        with_dtype!(a.dtype(), E => with_dtype!(numbers.a_log.dtype(), W => {
            let of = (numbers.a_log.as_slice::<W>(), numbers.dt_bias.as_slice::<W>(), numbers.scale);
            if let Some(b) = b {
                let dstep = dstep.as_view().as_slice::<f32>();
                dev.for_each_chunk(b.as_mut_slice::<E>(), len, |i, b| {
                    sigmoid_gradients(dev.isa(), &dstep[i * len..], b);
                });
            }
            let dstep = dstep.reborrow().as_mut_slice::<f32>().par_chunks_mut(len);
            let ddecay = ddecay.reborrow().as_mut_slice::<f32>().par_chunks_mut(len);
            let tasks = a.as_mut_slice::<E>().par_chunks_mut(len).zip(dstep.zip(ddecay));
            dev.for_each_item(tasks, |(a, (dstep, ddecay))| gradients(dev.isa(), of, has_b, a, dstep, ddecay));
        }));
    }
    if let Some(db) = ddt_bias {
        rows::sum_rows(dev, dstep.as_view(), db);
    }
    if let Some(da_log) = da_log {
        rows::sum_rows(dev, ddecay.as_view(), da_log);
    }
}

/// Elements of a task, whole tokens.
fn chunk(heads: usize) -> usize {
    (CHUNK / heads.max(1)).max(1) * heads.max(1)
}

/// ln(1 + eˣ).
#[inline(always)]
fn softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    // ln(1 + e) without the library's `ln_1p`, which no loop vectorises: its series where e is small.
    let series = e * (1.0 - e * (0.5 - e * (1.0 / 3.0 - e * 0.25)));
    x.max(0.0) + if e < 1e-2 { series } else { (1.0 + e).ln() }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// A, bias and s.
type Numbers<'a, W> = (&'a [W], &'a [W], f32);

per_isa! {
    fn values<E: Element, W: Element>(
        numbers: Numbers<'_, W>,
        a: &[E],
        b: Option<&[E]>,
        step: &mut [f32],
        decay: &mut [f32],
    ) {
        let (a_log, bias, scale) = numbers;
        let heads = a_log.len();
        for (i, (step, decay)) in step.iter_mut().zip(decay).enumerate() {
            let h = i % heads;
            let delta = softplus(scale * a[i].to_f32() + bias[h].to_f32());
            *decay = -exp(a_log[h].to_f32()) * delta;
            *step = b.map_or(delta, |b| sigmoid(b[i].to_f32()));
        }
    }

    fn sigmoid_gradients<E: Element>(dstep: &[f32], b: &mut [E]) {
        for (b, dstep) in b.iter_mut().zip(dstep) {
            let s = sigmoid(b.to_f32());
            *b = E::from_f32(dstep * s * (1.0 - s));
        }
    }

    /// Replaces a by da, dstep by what the bias's gradient is the sum of, and ddecay by that of A's.
    fn gradients<E: Element, W: Element>(
        numbers: Numbers<'_, W>,
        has_b: bool,
        a: &mut [E],
        dstep: &mut [f32],
        ddecay: &mut [f32],
    ) {
        let (a_log, bias, scale) = numbers;
        let heads = a_log.len();
        for (i, (a, (dstep, ddecay))) in a.iter_mut().zip(dstep.iter_mut().zip(ddecay)).enumerate() {
            let h = i % heads;
            let (u, rate) = (scale * a.to_f32() + bias[h].to_f32(), -exp(a_log[h].to_f32()));
            let du = sigmoid(u) * (rate * *ddecay + if has_b { 0.0 } else { *dstep });
            *ddecay *= rate * softplus(u);
            *dstep = du;
            *a = E::from_f32(scale * du);
        }
    }
}

mod on_cuda {
    //! The same on a GPU: `decay.cu`.

    use super::HeadNumbers;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("decay", include_str!("decay.cu"));

    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Decay {
        a: DevicePtr,
        b: DevicePtr,
        a_log: DevicePtr,
        dt_bias: DevicePtr,
        step: DevicePtr,
        decay: DevicePtr,
        elements: u64,
        heads: u32,
        scale: f32,
    }
    // SAFETY: `Decay` of decay.cu.
    unsafe impl Params for Decay {}

    fn launch(
        cuda: &Cuda,
        name: &'static str,
        numbers: HeadNumbers<'_>,
        (a, b): (View<'_>, Option<View<'_>>),
        (mut step, mut decay): (ViewMut<'_>, ViewMut<'_>),
    ) {
        let params = Decay {
            a: a.device(),
            b: b.map_or(DevicePtr::NULL, |b| b.device()),
            a_log: numbers.a_log.device(),
            dt_bias: numbers.dt_bias.device(),
            step: step.device(),
            decay: decay.device(),
            elements: a.elements() as u64,
            heads: a.dim(1) as u32,
            scale: numbers.scale,
        };
        let grid = Grid::new(a.elements().div_ceil(THREADS), THREADS);
        cuda.launch(&SOURCE, name, &[a.dtype(), numbers.a_log.dtype()], grid, params);
    }

    pub fn forward(
        cuda: &Cuda,
        numbers: HeadNumbers<'_>,
        a: View<'_>,
        b: Option<View<'_>>,
        step: ViewMut<'_>,
        decay: ViewMut<'_>,
    ) {
        launch(cuda, "decay_forward", numbers, (a, b), (step, decay));
    }

    /// a, b, step and decay are replaced.
    pub fn backward(
        cuda: &Cuda,
        numbers: HeadNumbers<'_>,
        (a, b): (ViewMut<'_>, Option<ViewMut<'_>>),
        dstep: ViewMut<'_>,
        ddecay: ViewMut<'_>,
    ) {
        let b = b.as_ref().map(ViewMut::as_view);
        launch(cuda, "decay_backward", numbers, (a.as_view(), b), (dstep, ddecay));
    }
}

#[cfg(test)]
mod reference {
    pub struct Decay<'a> {
        pub a_log: &'a [f64],
        pub dt_bias: &'a [f64],
        pub scale: f64,
        pub has_b: bool,
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    impl Decay<'_> {
        fn delta(&self, a: f64, h: usize) -> f64 {
            let u = self.scale * a + self.dt_bias[h];
            u.max(0.0) + (-u.abs()).exp().ln_1p()
        }

        /// (step, decay).
        pub fn forward(&self, a: &[f64], b: &[f64]) -> [Vec<f64>; 2] {
            let head = |i: usize| i % self.a_log.len();
            let delta = |i: usize| self.delta(a[i], head(i));
            let step = |i: usize| if self.has_b { sigmoid(b[i]) } else { delta(i) };
            let decay = |i: usize| -self.a_log[head(i)].exp() * delta(i);
            [(0..a.len()).map(step).collect(), (0..a.len()).map(decay).collect()]
        }

        /// da, db, dA and dbias.
        pub fn backward(&self, a: &[f64], b: &[f64], dstep: &[f64], ddecay: &[f64]) -> [Vec<f64>; 4] {
            let heads = self.a_log.len();
            let mut d = [vec![0.0; a.len()], vec![0.0; a.len()], vec![0.0; heads], vec![0.0; heads]];
            for i in 0..a.len() {
                let (h, s) = (i % heads, sigmoid(b[i]));
                let rate = -self.a_log[h].exp();
                let ddelta = rate * ddecay[i] + if self.has_b { 0.0 } else { dstep[i] };
                let du = sigmoid(self.scale * a[i] + self.dt_bias[h]) * ddelta;
                d[0][i] = self.scale * du;
                d[1][i] = if self.has_b { dstep[i] * s * (1.0 - s) } else { 0.0 };
                d[2][h] += ddecay[i] * rate * self.delta(a[i], h);
                d[3][h] += du;
            }
            d
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reference::Decay;
    use super::*;
    use crate::Tensor;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

    #[test]
    fn gradcheck_of_the_reference() {
        for has_b in [false, true] {
            let mut random = Random::new(6);
            let [a, b, dstep, ddecay] = [0; 4].map(|_| random.f64s(12));
            let [a_log, dt_bias] = [0; 2].map(|_| random.f64s(3));
            let loss = |a: &[f64], b: &[f64], a_log: &[f64], dt_bias: &[f64]| -> f64 {
                let [step, decay] = Decay { a_log, dt_bias, scale: 0.8, has_b }.forward(a, b);
                let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                dot(&step, &dstep) + dot(&decay, &ddecay)
            };
            let decay = Decay { a_log: &a_log, dt_bias: &dt_bias, scale: 0.8, has_b };
            let [da, db, da_log, ddt_bias] = decay.backward(&a, &b, &dstep, &ddecay);
            gradcheck(|a| loss(a, &b, &a_log, &dt_bias), &a, &da);
            gradcheck(|b| loss(&a, b, &a_log, &dt_bias), &b, &db);
            gradcheck(|a_log| loss(&a, &b, a_log, &dt_bias), &a_log, &da_log);
            gradcheck(|dt_bias| loss(&a, &b, &a_log, dt_bias), &dt_bias, &ddt_bias);
        }
    }

    #[test]
    fn matches_torch() {
        // -exp(A)·softplus(a + bias) and sigmoid(b) for three tokens of two heads, torch.nn.functional in float64.
        let golden: serde_json::Value = serde_json::from_str(include_str!("../goldens/decay.json")).unwrap();
        let list = |name: &str| -> Vec<f64> { serde_json::from_value(golden[name].clone()).unwrap() };
        let [a, b, a_log, dt_bias] = ["a", "b", "a_log", "dt_bias"].map(list);
        let of = |has_b| Decay { a_log: &a_log, dt_bias: &dt_bias, scale: 1.0, has_b };
        let [step, decay] = of(true).forward(&a, &b);
        assert_close("step", &step, &list("step"), 1e-12);
        assert_close("decay", &decay, &list("decay"), 1e-12);
        assert_close("delta", &of(false).forward(&a, &b)[0], &list("delta"), 1e-12);
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 4e-6), (DType::BF16, 1e-2)] {
                for (n, heads, has_b) in [(1, 1, true), (70, 5, false), (900, 16, true), (3, 5000, false)] {
                    let mut random = Random::new(8);
                    let [mut a, mut b] = [0; 2].map(|_| random.tensor(dtype, &[n, heads]).on(&dev));
                    let [a_log, dt_bias] = [0; 2].map(|_| random.tensor(dtype, &[heads]).on(&dev));
                    let numbers = HeadNumbers { a_log: a_log.view(), dt_bias: dt_bias.view(), scale: 3.0 };
                    let [mut step, mut decay] = [0; 2].map(|_| dev.zeros(DType::F32, &[n, heads]));
                    let of_b = has_b.then(|| b.view());
                    forward(&dev, numbers, a.view(), of_b, step.view_mut(), decay.view_mut());
                    let (logs, biases, values, bs) =
                        (to_f64(&a_log), to_f64(&dt_bias), to_f64(&a), to_f64(&b));
                    let reference = Decay { a_log: &logs, dt_bias: &biases, scale: 3.0, has_b };
                    let expected = reference.forward(&values, &bs);
                    assert_close("step", &to_f64(&step), &expected[0], 4e-6);
                    assert_close("decay", &to_f64(&decay), &expected[1], 4e-6);

                    let [mut dstep, mut ddecay] =
                        [0; 2].map(|_| random.tensor(DType::F32, &[n, heads]).on(&dev));
                    let expected = reference.backward(&values, &bs, &to_f64(&dstep), &to_f64(&ddecay));
                    let [mut da_log, mut ddt_bias] = [0; 2].map(|_| dev.zeros(DType::F32, &[heads]));
                    let io = Backward {
                        a: a.view_mut(),
                        b: has_b.then(|| b.view_mut()),
                        dstep: dstep.view_mut(),
                        ddecay: ddecay.view_mut(),
                        da_log: Some(da_log.view_mut()),
                        ddt_bias: Some(ddt_bias.view_mut()),
                    };
                    backward(&dev, numbers, io);
                    assert_close("da", &to_f64(&a), &expected[0], tolerance);
                    if has_b {
                        assert_close("db", &to_f64(&b), &expected[1], tolerance);
                    }
                    assert_close("dA", &to_f64(&da_log), &expected[2], 1e-5);
                    assert_close("dbias", &to_f64(&ddt_bias), &expected[3], 1e-5);
                }
            }
        }
    }

    #[test]
    fn edges_no_token_and_large_magnitudes() {
        for dev in devices() {
            let ones = Tensor::from_slice(&[0.0f32; 2], &[2]).on(&dev);
            let numbers = HeadNumbers { a_log: ones.view(), dt_bias: ones.view(), scale: 1.0 };
            let none = dev.zeros(DType::F32, &[0, 2]);
            let [mut step, mut decay] = [0; 2].map(|_| dev.zeros(DType::F32, &[0, 2]));
            forward(&dev, numbers, none.view(), None, step.view_mut(), decay.view_mut());
            let a = Tensor::from_slice(&[300.0f32, -300.0], &[1, 2]).on(&dev);
            let [mut step, mut decay] = [0; 2].map(|_| dev.zeros(DType::F32, &[1, 2]));
            forward(&dev, numbers, a.view(), Some(a.view()), step.view_mut(), decay.view_mut());
            assert_eq!((step.to_f32_vec(), decay.to_f32_vec()), (vec![1.0, 0.0], vec![-300.0, 0.0]));
        }
    }
}
