//! The gated activation of a feed-forward layer (stages 9 and 11 of the walk).
//!
//! Formula (Shazeer, 2020): y = act(g) · u, element by element. Derivative:
//!
//! > dg = dy · u · act′(g), du = dy · act(g)
//!
//! `silu(g) = g·σ(g)`, `silu′(g) = σ(g)·(1 + g·(1 − σ(g)))`;
//! `relu2(g) = max(g, 0)²`; `gelu_tanh(g) = g·σ(2z)` with z = √(2/π)·(g + 0.044715·g³), since ½(1 + tanh z) = σ(2z);
//! `gelu(g) = g·Φ(g)`, `gelu′(g) = Φ(g) + g·φ(g)` with the normal distribution Φ(g) = ½(1 + erf(g/√2)) and its
//! density φ; `relu(g) = max(g, 0)`.
//!
//! Storage f32 or bf16 (one type for all), arithmetic f32. Saved for backward: g and u; y is computed again where
//! it is needed rather than kept. Memory-bound: 3 tensors forward, 5 backward.

use std::str::FromStr;

use crate::exp::exp;
use crate::isa::per_isa;
use crate::{Device, Element, View, ViewMut, with_dtype};

/// Elements that one task handles.
const CHUNK: usize = 4096;

/// The function on the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x), also called swish.
    Silu,
    /// x·Φ(x) (Hendrycks & Gimpel, 2016).
    Gelu,
    /// The tanh form of GELU.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0)² (So et al., 2021).
    Relu2,
}

impl FromStr for Activation {
    type Err = String;

    /// Reads Hugging Face's names (`hidden_act`).
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "relu2" => Ok(Activation::Relu2),
            other => Err(format!(
                "the activation `{other}` is not known here; silu, gelu, gelu_pytorch_tanh, relu and relu2 are"
            )),
        }
    }
}

/// An activation as a type, so that each has loops of its own, without a branch inside.
pub(crate) trait Gate: Copy + Send + Sync {
    /// (act(x), act′(x)).
    fn value_and_slope(self, x: f32) -> (f32, f32);
}

/// Evaluates an expression with `$act` as the type of an activation.
macro_rules! with_activation {
    ($activation:expr, $act:ident => $body:expr) => {
        match $activation {
            $crate::gated::Activation::Silu => {
                let $act = $crate::gated::Silu;
                $body
            }
            $crate::gated::Activation::Gelu => {
                let $act = $crate::gated::Gelu;
                $body
            }
            $crate::gated::Activation::GeluTanh => {
                let $act = $crate::gated::GeluTanh;
                $body
            }
            $crate::gated::Activation::Relu => {
                let $act = $crate::gated::Relu;
                $body
            }
            $crate::gated::Activation::Relu2 => {
                let $act = $crate::gated::Relu2;
                $body
            }
        }
    };
}
pub(crate) use with_activation;

#[derive(Clone, Copy)]
pub(crate) struct Silu;

impl Gate for Silu {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        let s = sigmoid(x);
        (x * s, s * (1.0 + x * (1.0 - s)))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Gelu;

impl Gate for Gelu {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        const OVER_SQRT_2PI: f32 = 0.398_942_3;
        let p = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        (x * p, p + x * OVER_SQRT_2PI * exp(-0.5 * x * x))
    }
}

/// The error function within 4e-7: a quotient of polynomials (Eigen's), and ±1 where that is the nearest f32.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const ABOVE: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_6e-5,
        -7.349_906e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const BELOW: [f32; 5] = [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    let (inside, sign) = (x.clamp(-4.0, 4.0), if x < 0.0 { -1.0 } else { 1.0 });
    let s = inside * inside;
    let horner = |coefficients: &[f32]| coefficients.iter().fold(0.0, |sum, c| sum * s + c);
    let quotient = inside * horner(&ABOVE) / horner(&BELOW);
    if s < 15.3 { quotient } else { sign }
}

#[derive(Clone, Copy)]
pub(crate) struct Relu;

impl Gate for Relu {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;

impl Gate for GeluTanh {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        let s = sigmoid(2.0 * SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x));
        let dz = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
        (x * s, s + x * s * (1.0 - s) * 2.0 * dz)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Relu2;

impl Gate for Relu2 {
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        let positive = if x > 0.0 { x } else { 0.0 };
        (positive * positive, 2.0 * positive)
    }
}

per_isa! {
    fn gate<E: Element, G: Gate>(act: G, g: &[E], u: &[E], y: &mut [E]) {
        for (y, (g, u)) in y.iter_mut().zip(g.iter().zip(u)) {
            *y = E::from_f32(act.value_and_slope(g.to_f32()).0 * u.to_f32());
        }
    }

    fn gate_backward<E: Element, G: Gate>(act: G, dy: &[E], g: &mut [E], u: &mut [E]) {
        for ((g, u), dy) in g.iter_mut().zip(u).zip(dy) {
            let (value, slope) = act.value_and_slope(g.to_f32());
            let (up, dy) = (u.to_f32(), dy.to_f32());
            *g = E::from_f32(dy * up * slope);
            *u = E::from_f32(dy * value);
        }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// y = act(g)·u.
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(dev: &Device, act: Activation, g: View<'_>, u: View<'_>, y: ViewMut<'_>) {
    let _timed = dev.pass("gated activation", 3 * g.bytes().len());
    assert_eq!((g.shape(), u.shape()), (y.shape(), y.shape()), "gated: g, u and y");
    with_dtype!(y.dtype(), E => {
        let (g, u) = (g.as_slice::<E>(), u.as_slice::<E>());
        dev.for_each_chunk(y.as_mut_slice::<E>(), CHUNK, |i, y| {
            let (g, u) = (&g[i * CHUNK..], &u[i * CHUNK..]);
            with_activation!(act, act => gate(dev.isa(), act, g, u, y));
        });
    });
}

/// Replaces g by dg and u by du.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(dev: &Device, act: Activation, dy: View<'_>, g: ViewMut<'_>, u: ViewMut<'_>) {
    let _timed = dev.pass("gated activation backward", 5 * dy.bytes().len());
    assert_eq!((g.shape(), u.shape()), (dy.shape(), dy.shape()), "gated: g, u and dy");
    with_dtype!(dy.dtype(), E => {
        let dy = dy.as_slice::<E>();
        let (g, u) = (g.as_mut_slice::<E>(), u.as_mut_slice::<E>());
        dev.for_each_chunk_pair((g, CHUNK), (u, CHUNK), |i, g, u| {
            let dy = &dy[i * CHUNK..];
            with_activation!(act, act => gate_backward(dev.isa(), act, dy, g, u));
        });
    });
}

#[cfg(test)]
pub(crate) mod reference {
    use super::Activation;

    pub fn activation(act: Activation, x: f64) -> f64 {
        match act {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + z.tanh())
            }
            Activation::Gelu => x * distribution(x),
            Activation::Relu => x.max(0.0),
            Activation::Relu2 => x.max(0.0).powi(2),
        }
    }

    /// Φ(x): Simpson's rule over the density from 0 to x.
    fn distribution(x: f64) -> f64 {
        let (steps, density) = (2000, |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt());
        let h = x / f64::from(steps);
        let weight = |i: i32| if i == 0 || i == steps { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
        0.5 + h / 3.0 * (0..=steps).map(|i| weight(i) * density(f64::from(i) * h)).sum::<f64>()
    }

    pub fn forward(act: Activation, g: &[f64], u: &[f64]) -> Vec<f64> {
        g.iter().zip(u).map(|(g, u)| activation(act, *g) * u).collect()
    }

    pub fn slope(act: Activation, x: f64) -> f64 {
        match act {
            Activation::Silu => {
                let s = 1.0 / (1.0 + (-x).exp());
                s * (1.0 + x * (1.0 - s))
            }
            Activation::GeluTanh => {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                let t = (c * (x + 0.044715 * x.powi(3))).tanh();
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x)
            }
            Activation::Gelu => distribution(x) + x * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt(),
            Activation::Relu => f64::from(u8::from(x > 0.0)),
            Activation::Relu2 => 2.0 * x.max(0.0),
        }
    }

    /// (dg, du).
    pub fn backward(act: Activation, g: &[f64], u: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let dg = (0..g.len()).map(|i| dy[i] * u[i] * slope(act, g[i])).collect();
        let du = (0..g.len()).map(|i| dy[i] * activation(act, g[i])).collect();
        (dg, du)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

    const ALL: [Activation; 5] =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2];

    #[test]
    fn gradcheck_of_the_reference() {
        for act in ALL {
            let mut random = Random::new(3);
            let (g, u, dy) = (random.f64s(9), random.f64s(9), random.f64s(9));
            let (dg, du) = reference::backward(act, &g, &u, &dy);
            let loss = |g: &[f64], u: &[f64]| -> f64 {
                reference::forward(act, g, u).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            gradcheck(|g| loss(g, &u), &g, &dg);
            gradcheck(|u| loss(&g, u), &u, &du);
        }
    }

    #[test]
    fn matches_torch() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../goldens/gated.json")).unwrap();
        let x: Vec<f64> = serde_json::from_value(golden["x"].clone()).unwrap();
        for (act, name) in ALL.into_iter().zip(["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"]) {
            assert_eq!(name.parse::<Activation>(), Ok(act));
            let y: Vec<f64> = x.iter().map(|x| reference::activation(act, *x)).collect();
            let expected: Vec<f64> = serde_json::from_value(golden[name].clone()).unwrap();
            assert_close(name, &y, &expected, 1e-12);
        }
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 1e-2)] {
                for (act, n) in ALL.into_iter().zip([CHUNK + 77, 9, 5, 7, CHUNK + 3]) {
                    let mut random = Random::new(5);
                    let mut tensor = || random.tensor(dtype, &[n, 1]);
                    let (mut g, mut u, dy) = (tensor(), tensor(), tensor());
                    let mut y = crate::Tensor::zeros(dtype, &[n, 1]);
                    let (gs, us) = (to_f64(&g), to_f64(&u));
                    forward(&dev, act, g.view(), u.view(), y.view_mut());
                    assert_close("y", &to_f64(&y), &reference::forward(act, &gs, &us), tolerance);
                    let (dg, du) = reference::backward(act, &gs, &us, &to_f64(&dy));
                    backward(&dev, act, dy.view(), g.view_mut(), u.view_mut());
                    assert_close("dg", &to_f64(&g), &dg, tolerance);
                    assert_close("du", &to_f64(&u), &du, tolerance);
                }
            }
        }
    }

    #[test]
    fn edges_large_magnitudes_saturate() {
        fn saturates(gate: impl Gate) {
            assert_eq!(gate.value_and_slope(200.0), (200.0, 1.0));
            assert_eq!(gate.value_and_slope(-200.0).0.abs(), 0.0);
        }
        saturates(Silu);
        saturates(Gelu);
        saturates(GeluTanh);
        saturates(Relu);
    }

    #[test]
    fn erf_is_within_4e_7_of_the_definition() {
        for i in -600..=600 {
            let x = f64::from(i) / 100.0;
            // erf(x) = 2Φ(√2·x) − 1, and gelu(x) = x·Φ(x).
            let root = std::f64::consts::SQRT_2 * x;
            let truth =
                if i == 0 { 0.0 } else { 2.0 * reference::activation(Activation::Gelu, root) / root - 1.0 };
            assert!(
                (f64::from(erf(x as f32)) - truth).abs() < 4e-7,
                "{x}: {} and not {truth}",
                erf(x as f32)
            );
        }
    }
}
