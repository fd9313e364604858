//! The gated activation of a feed-forward layer (stages 9 and 11 of the walk).
//!
//! Formula (Shazeer, 2020): y = act(g) · u, element by element. Derivative:
//!
//! > dg = dy · u · act′(g), du = dy · act(g)
//!
//! gpt-oss clamps: y = act(g) · (clamp(u, ±7) + 1) with act(g) = g'·σ(1.702·g'), g' = min(g, 7); beyond the limits the
//! derivatives are 0.
//!
//! `silu(g) = g·σ(g)`, `silu′(g) = σ(g)·(1 + g·(1 − σ(g)))`;
//! `relu2(g) = max(g, 0)²`; `gelu_tanh(g) = g·σ(2z)` with z = √(2/π)·(g + 0.044715·g³), since ½(1 + tanh z) = σ(2z);
//! `gelu(g) = g·Φ(g)`, `gelu′(g) = Φ(g) + g·φ(g)` with the normal distribution Φ(g) = ½(1 + erf(g/√2)) and its
//! density φ; `relu(g) = max(g, 0)`; σ and g themselves.
//!
//! Storage f32 or bf16 (one type for all), arithmetic f32. Saved for backward: g and u; where y is not kept, it is computed
//! again with its gradient at hand: what it went into needs it last. Memory-bound: 3 tensors forward, 6 backward, 5 without y.
//!
//! A block at a time goes through loops of one thing each, in `f32` that stays in the first-level cache: that lets σ
//! and the rounding of results have loops of their own for an instruction set. On a GPU a thread has 16 bytes of each.

use std::str::FromStr;

use rayon::prelude::*;

use crate::dtype::round;
use crate::exp::{exp, sigmoid_all};
use crate::isa::per_isa;
use crate::{Device, Element, Isa, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Elements that one task handles.
const CHUNK: usize = 8192;
/// Elements that go through the loops together.
pub(crate) const BLOCK: usize = 512;

/// The function on the gate; kernels know it by its number.
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
    /// 1/(1 + e⁻ˣ).
    Sigmoid,
    /// x: the gate alone is a product.
    Identity,
    /// x'·σ(1.702·x'), x' = min(x, 7), which multiplies a clamped u + 1 (gpt-oss).
    ClampedSwish,
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
            "sigmoid" => Ok(Activation::Sigmoid),
            "linear" => Ok(Activation::Identity),
            other => Err(format!(
                "the activation `{other}` is not known here; silu, gelu, gelu_pytorch_tanh, relu and relu2 are"
            )),
        }
    }
}

/// An activation as a type, so that each has loops of its own, without a branch inside.
pub(crate) trait Gate: Copy + Send + Sync {
    /// Whether it has a σ in it.
    const HAS_SIGMOID: bool = true;
    /// What σ is taken of.
    fn argument(self, x: f32) -> f32;
    /// act(x), from x and σ of its argument.
    fn value(self, x: f32, s: f32) -> f32;
    /// act′(x), from the same.
    fn slope(self, x: f32, s: f32) -> f32;
    /// What multiplies act(g), from u.
    #[inline(always)]
    fn factor(self, u: f32) -> f32 {
        u
    }
    /// Its derivative.
    #[inline(always)]
    fn factor_slope(self, _: f32) -> f32 {
        1.0
    }
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
            $crate::gated::Activation::Sigmoid => {
                let $act = $crate::gated::Sigmoid;
                $body
            }
            $crate::gated::Activation::Identity => {
                let $act = $crate::gated::Identity;
                $body
            }
            $crate::gated::Activation::ClampedSwish => {
                let $act = $crate::gated::ClampedSwish;
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
    fn argument(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn value(self, x: f32, s: f32) -> f32 {
        x * s
    }
    #[inline(always)]
    fn slope(self, x: f32, s: f32) -> f32 {
        s * (1.0 + x * (1.0 - s))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Gelu;

impl Gate for Gelu {
    const HAS_SIGMOID: bool = false;
    #[inline(always)]
    fn argument(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn value(self, x: f32, _: f32) -> f32 {
        x * distribution(x)
    }
    #[inline(always)]
    fn slope(self, x: f32, _: f32) -> f32 {
        const OVER_SQRT_2PI: f32 = 0.398_942_3;
        distribution(x) + x * OVER_SQRT_2PI * exp(-0.5 * x * x)
    }
}

/// Φ(x), the normal distribution.
#[inline(always)]
fn distribution(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
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
    const HAS_SIGMOID: bool = false;
    #[inline(always)]
    fn argument(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn value(self, x: f32, _: f32) -> f32 {
        if x > 0.0 { x } else { 0.0 }
    }
    #[inline(always)]
    fn slope(self, x: f32, _: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

impl Gate for GeluTanh {
    #[inline(always)]
    fn argument(self, x: f32) -> f32 {
        2.0 * SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)
    }
    #[inline(always)]
    fn value(self, x: f32, s: f32) -> f32 {
        x * s
    }
    #[inline(always)]
    fn slope(self, x: f32, s: f32) -> f32 {
        let dz = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x);
        s + x * s * (1.0 - s) * 2.0 * dz
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Relu2;

impl Gate for Relu2 {
    const HAS_SIGMOID: bool = false;
    #[inline(always)]
    fn argument(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn value(self, x: f32, _: f32) -> f32 {
        let positive = if x > 0.0 { x } else { 0.0 };
        positive * positive
    }
    #[inline(always)]
    fn slope(self, x: f32, _: f32) -> f32 {
        2.0 * if x > 0.0 { x } else { 0.0 }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Sigmoid;

impl Gate for Sigmoid {
    #[inline(always)]
    fn argument(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn value(self, _: f32, s: f32) -> f32 {
        s
    }
    #[inline(always)]
    fn slope(self, _: f32, s: f32) -> f32 {
        s * (1.0 - s)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Identity;

impl Gate for Identity {
    const HAS_SIGMOID: bool = false;
    #[inline(always)]
    fn argument(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn value(self, x: f32, _: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn slope(self, _: f32, _: f32) -> f32 {
        1.0
    }
}

#[derive(Clone, Copy)]
pub(crate) struct ClampedSwish;

/// α and the limit of gpt-oss.
const SWISH_ALPHA: f32 = 1.702;
const SWISH_LIMIT: f32 = 7.0;

impl Gate for ClampedSwish {
    #[inline(always)]
    fn argument(self, x: f32) -> f32 {
        SWISH_ALPHA * if x < SWISH_LIMIT { x } else { SWISH_LIMIT }
    }
    #[inline(always)]
    fn value(self, x: f32, s: f32) -> f32 {
        s * if x < SWISH_LIMIT { x } else { SWISH_LIMIT }
    }
    #[inline(always)]
    fn slope(self, x: f32, s: f32) -> f32 {
        let slope = s * (1.0 + SWISH_ALPHA * x * (1.0 - s));
        if x <= SWISH_LIMIT { slope } else { 0.0 }
    }
    #[inline(always)]
    fn factor(self, u: f32) -> f32 {
        1.0 + u.clamp(-SWISH_LIMIT, SWISH_LIMIT)
    }
    #[inline(always)]
    fn factor_slope(self, u: f32) -> f32 {
        if u.abs() <= SWISH_LIMIT { 1.0 } else { 0.0 }
    }
}

/// σ of the arguments of a block.
pub(crate) fn sigmoids<E: Element, G: Gate>(isa: Isa, act: G, x: &[E], s: &mut [f32]) {
    if G::HAS_SIGMOID {
        arguments(isa, act, x, s);
        sigmoid_all(isa, s);
    }
}

per_isa! {
    fn arguments<E: Element, G: Gate>(act: G, x: &[E], s: &mut [f32]) {
        s.iter_mut().zip(x).for_each(|(s, x)| *s = act.argument(x.to_f32()));
    }

    /// Replaces σ by y.
    fn products<E: Element, G: Gate>(act: G, g: &[E], u: &[E], s: &mut [f32]) {
        for (s, (g, u)) in s.iter_mut().zip(g.iter().zip(u)) {
            *s = act.value(g.to_f32(), *s) * act.factor(u.to_f32());
        }
    }

    /// From dy, g and u: replaces σ by dg, and fills in du and y.
    fn gradients<E: Element, G: Gate>(act: G, from: [&[E]; 3], s: &mut [f32], du: &mut [f32], y: &mut [f32]) {
        let [dy, g, u] = from;
        let out = s.iter_mut().zip(du).zip(y);
        for (((s, du), y), (dy, (g, u))) in out.zip(dy.iter().zip(g.iter().zip(u))) {
            let (g, u, dy) = (g.to_f32(), u.to_f32(), dy.to_f32());
            let (value, factor) = (act.value(g, *s), act.factor(u));
            *du = dy * value * act.factor_slope(u);
            *y = value * factor;
            *s = dy * factor * act.slope(g, *s);
        }
    }
}

fn gate<E: Element, G: Gate>(isa: Isa, act: G, g: &[E], u: &[E], y: &mut [E]) {
    let mut s = [0.0; BLOCK];
    for (y, (g, u)) in y.chunks_mut(BLOCK).zip(g.chunks(BLOCK).zip(u.chunks(BLOCK))) {
        let s = &mut s[..y.len()];
        sigmoids(isa, act, g, s);
        products(isa, act, g, u, s);
        round(isa, s, y);
    }
}

fn gate_backward<E: Element, G: Gate>(
    isa: Isa,
    act: G,
    dy: &mut [E],
    g: &mut [E],
    u: &mut [E],
    leaves_y: bool,
) {
    let [mut s, mut du, mut y] = [[0.0; BLOCK]; 3];
    for ((g, u), dy) in g.chunks_mut(BLOCK).zip(u.chunks_mut(BLOCK)).zip(dy.chunks_mut(BLOCK)) {
        let (s, du, y) = (&mut s[..g.len()], &mut du[..g.len()], &mut y[..g.len()]);
        sigmoids(isa, act, g, s);
        gradients(isa, act, [dy, g, u], s, du, y);
        round(isa, s, g);
        round(isa, du, u);
        if leaves_y {
            round(isa, y, dy);
        }
    }
}

/// y = act(g)·u.
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(dev: &Device, act: Activation, g: View<'_>, u: View<'_>, y: ViewMut<'_>) {
    let _timed = dev.pass("gated activation", 3 * g.byte_len());
    assert_eq!((g.shape(), u.shape()), (y.shape(), y.shape()), "gated: g, u and y");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, act, g, u, y);
    }
    with_dtype!(y.dtype(), E => {
        let (g, u) = (g.as_slice::<E>(), u.as_slice::<E>());
        dev.for_each_chunk(y.as_mut_slice::<E>(), CHUNK, |i, y| {
            let (g, u) = (&g[i * CHUNK..], &u[i * CHUNK..]);
            with_activation!(act, act => gate(dev.isa(), act, g, u, y));
        });
    });
}

/// Replaces g by dg, u by du, and, with `leaves_y`, dy by y.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(
    dev: &Device,
    act: Activation,
    dy: ViewMut<'_>,
    g: ViewMut<'_>,
    u: ViewMut<'_>,
    leaves_y: bool,
) {
    let _timed = dev.pass("gated activation backward", (5 + usize::from(leaves_y)) * dy.byte_len());
    assert_eq!((g.shape(), u.shape()), (dy.shape(), dy.shape()), "gated: g, u and dy");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, act, dy, g, u, leaves_y);
    }
    with_dtype!(dy.dtype(), E => {
        let (g, u) = (g.as_mut_slice::<E>(), u.as_mut_slice::<E>());
        let chunks = dy.as_mut_slice::<E>().par_chunks_mut(CHUNK);
        let chunks = chunks.zip(g.par_chunks_mut(CHUNK).zip(u.par_chunks_mut(CHUNK)));
        dev.for_each_item(chunks, |(dy, (g, u))| {
            with_activation!(act, act => gate_backward(dev.isa(), act, dy, g, u, leaves_y));
        });
    });
}

mod on_cuda {
    use super::Activation;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new(
        "gated",
        concat!(
            include_str!("activation_functions.cuh"),
            "\n#line 1 \"gated.cu\"\n",
            include_str!("gated.cu")
        ),
    );

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct GatedForward {
        g: DevicePtr,
        u: DevicePtr,
        y: DevicePtr,
        elements: u64,
        activation: u32,
    }
    // SAFETY: `GatedForward` of gated.cu.
    unsafe impl Params for GatedForward {}

    pub fn forward(cuda: &Cuda, act: Activation, g: View<'_>, u: View<'_>, mut y: ViewMut<'_>) {
        assert_eq!((g.dtype(), u.dtype()), (y.dtype(), y.dtype()), "gated: one type");
        let (g, u, elements) = (g.device(), u.device(), y.elements());
        let grid = Grid::element_wise(elements, y.dtype());
        let params = GatedForward { g, u, y: y.device(), elements: elements as u64, activation: act as u32 };
        cuda.launch(&SOURCE, "gated_forward", &[y.dtype()], grid, params);
    }

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct GatedBackward {
        dy: DevicePtr,
        g: DevicePtr,
        u: DevicePtr,
        elements: u64,
        activation: u32,
        leaves_y: u32,
    }
    // SAFETY: `GatedBackward` of gated.cu.
    unsafe impl Params for GatedBackward {}

    pub fn backward(
        cuda: &Cuda,
        act: Activation,
        mut dy: ViewMut<'_>,
        mut g: ViewMut<'_>,
        mut u: ViewMut<'_>,
        leaves_y: bool,
    ) {
        assert_eq!((g.dtype(), u.dtype()), (dy.dtype(), dy.dtype()), "gated: one type");
        let (g, u, elements) = (g.device(), u.device(), dy.elements());
        let grid = Grid::element_wise(elements, dy.dtype());
        let params = GatedBackward {
            dy: dy.device(),
            g,
            u,
            elements: elements as u64,
            activation: act as u32,
            leaves_y: leaves_y.into(),
        };
        cuda.launch(&SOURCE, "gated_backward", &[dy.dtype()], grid, params);
    }
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
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Identity => x,
            Activation::ClampedSwish => {
                let x = x.min(7.0);
                x / (1.0 + (-1.702 * x).exp())
            }
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
        g.iter().zip(u).map(|(g, u)| activation(act, *g) * factor(act, *u)).collect()
    }

    /// What multiplies the activation.
    fn factor(act: Activation, u: f64) -> f64 {
        if act == Activation::ClampedSwish { u.clamp(-7.0, 7.0) + 1.0 } else { u }
    }

    fn factor_slope(act: Activation, u: f64) -> f64 {
        if act == Activation::ClampedSwish && u.abs() > 7.0 { 0.0 } else { 1.0 }
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
            Activation::Sigmoid => (-x).exp() / (1.0 + (-x).exp()).powi(2),
            Activation::Identity => 1.0,
            Activation::ClampedSwish if x > 7.0 => 0.0,
            Activation::ClampedSwish => {
                let s = 1.0 / (1.0 + (-1.702 * x).exp());
                s * (1.0 + 1.702 * x * (1.0 - s))
            }
        }
    }

    /// (dg, du).
    pub fn backward(act: Activation, g: &[f64], u: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let dg = (0..g.len()).map(|i| dy[i] * factor(act, u[i]) * slope(act, g[i])).collect();
        let du = (0..g.len()).map(|i| dy[i] * activation(act, g[i]) * factor_slope(act, u[i])).collect();
        (dg, du)
    }
}

#[cfg(test)]
mod tests;
