//! Rotary position embedding, in place (stages 9 and 11 of the walk).
//!
//! Formula (Su et al., 2021), for each token n, head h and pair (a, b) of the first `rotary_dim` dimensions, with
//! the token's angle of pair i given as cos[n, i] and sin[n, i]:
//!
//! > a' = a · cos − b · sin, b' = b · cos + a · sin
//!
//! The derivative of a rotation is the rotation back: the same with −sin. Dimensions from `rotary_dim` on pass
//! through. The angles are the model's business: a scale folded into cos and sin (YaRN's) is applied both ways.
//!
//! Storage f32 or bf16, arithmetic f32; cos and sin are f32 [N, rotary_dim/2]. Nothing is saved. Overwrites `x`;
//! 3·N·H·rotary_dim FLOP, one pass over `x`.

use crate::isa::per_isa;
use crate::{Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Elements that one task rotates, about.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Which two dimensions form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// (i, i + rotary_dim/2): Hugging Face's `rotate_half`, in most families.
    Half,
    /// (2i, 2i + 1): GPT-J, Cohere, GLM.
    Interleaved,
}

/// Rotates `x` [N, H, D] in place by the angles of its tokens.
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(dev: &Device, x: ViewMut<'_>, cos: View<'_>, sin: View<'_>, style: RopeStyle) {
    rotate(dev, x, (cos, sin), style, 1.0);
}

/// Rotates the gradient `dx` [N, H, D] back, in place.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(dev: &Device, dx: ViewMut<'_>, cos: View<'_>, sin: View<'_>, style: RopeStyle) {
    rotate(dev, dx, (cos, sin), style, -1.0);
}

fn rotate(dev: &Device, x: ViewMut<'_>, (cos, sin): (View<'_>, View<'_>), style: RopeStyle, sign: f32) {
    let _timed = dev.pass("rope", 2 * x.byte_len());
    let (tokens, heads, width) = (x.dim(0), x.dim(1), x.dim(2));
    let pairs = cos.dim(1);
    assert_eq!(cos.shape(), sin.shape(), "rope: cos and sin");
    assert_eq!(cos.dim(0), tokens, "rope: tokens of x and of cos");
    assert!(2 * pairs <= width, "rope: {pairs} pairs in a head of width {width}");
    if x.elements() == 0 || pairs == 0 {
        return;
    }
    if let Some(cuda) = dev.cuda() {
        return on_cuda::rotate(cuda, x, (cos, sin), style, sign);
    }
    let (cos, sin) = (cos.as_slice::<f32>(), sin.as_slice::<f32>());
    let tokens_per_task = (ELEMENTS_PER_TASK / (heads * width)).max(1);
    with_dtype!(x.dtype(), E => {
        let x = x.as_mut_slice::<E>();
        dev.for_each_chunk(x, tokens_per_task * heads * width, |task, chunk| {
            let first = task * tokens_per_task;
            let (cos, sin) = (&cos[first * pairs..], &sin[first * pairs..]);
            rotate_tokens(dev.isa(), chunk, (heads, width), pairs, (cos, sin), style, sign);
        });
    });
}

per_isa! {
    fn rotate_tokens<E: Element>(
        chunk: &mut [E],
        token: (usize, usize),
        pairs: usize,
        angles: (&[f32], &[f32]),
        style: RopeStyle,
        sign: f32,
    ) {
        let (heads, width) = token;
        let angles = angles.0.chunks_exact(pairs).zip(angles.1.chunks_exact(pairs));
        for (token, (cos, sin)) in chunk.chunks_exact_mut(heads * width).zip(angles) {
            for head in token.chunks_exact_mut(width) {
                rotate_head(head, cos, sin, style, sign);
            }
        }
    }
}

#[inline(always)]
fn rotate_head<E: Element>(head: &mut [E], cos: &[f32], sin: &[f32], style: RopeStyle, sign: f32) {
    let rotated = |a: E, b: E, cos: f32, sin: f32| {
        let (a, b) = (a.to_f32(), b.to_f32());
        (E::from_f32(a * cos - b * sin), E::from_f32(b * cos + a * sin))
    };
    match style {
        RopeStyle::Half => {
            let (first, second) = head[..2 * cos.len()].split_at_mut(cos.len());
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = rotated(*a, *b, *cos, sign * *sin);
            }
        }
        RopeStyle::Interleaved => {
            for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                (pair[0], pair[1]) = rotated(pair[0], pair[1], *cos, sign * *sin);
            }
        }
    }
}

mod on_cuda {
    use super::RopeStyle;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{DType, View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("rope", include_str!("rope.cu"));

    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Rope {
        x: DevicePtr,
        cos: DevicePtr,
        sin: DevicePtr,
        tokens: u32,
        heads: u32,
        width: u32,
        pairs: u32,
        sign: f32,
    }
    // SAFETY: `Rope` of rope.cu.
    unsafe impl Params for Rope {}

    pub fn rotate(
        cuda: &Cuda,
        mut x: ViewMut<'_>,
        (cos, sin): (View<'_>, View<'_>),
        style: RopeStyle,
        sign: f32,
    ) {
        assert_eq!((cos.dtype(), sin.dtype()), (DType::F32, DType::F32), "rope: angles are float32");
        let (tokens, heads, width, pairs) = (x.dim(0), x.dim(1), x.dim(2), cos.dim(1));
        let per_vector = 16 / x.dtype().bytes();
        let (name, pairs_per_thread) = match style {
            RopeStyle::Half => ("rope_half", per_vector),
            RopeStyle::Interleaved => ("rope_interleaved", per_vector / 2),
        };
        let threads = tokens * heads * pairs.div_ceil(pairs_per_thread);
        assert!(threads <= u32::MAX as usize - THREADS, "rope: {:?} in 32 bits", x.shape());
        let params = Rope {
            x: x.device(),
            cos: cos.device(),
            sin: sin.device(),
            tokens: tokens as u32,
            heads: heads as u32,
            width: width as u32,
            pairs: pairs as u32,
            sign,
        };
        cuda.launch(&SOURCE, name, &[x.dtype()], Grid::new(threads.div_ceil(THREADS), THREADS), params);
    }
}

#[cfg(test)]
mod reference {
    //! The definition: plain loops in f64.

    use super::RopeStyle;

    /// Rotates `x` [N, H, width] by `cos` and `sin` [N, pairs].
    pub fn rotate(
        x: &[f64],
        [heads, width]: [usize; 2],
        (cos, sin): (&[f64], &[f64]),
        pairs: usize,
        style: RopeStyle,
    ) -> Vec<f64> {
        let mut y = x.to_vec();
        for row in 0..x.len() / width {
            for i in 0..pairs {
                let (a, b) = match style {
                    RopeStyle::Half => (i, i + pairs),
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                };
                let (a, b) = (row * width + a, row * width + b);
                let (cos, sin) = (cos[row / heads * pairs + i], sin[row / heads * pairs + i]);
                y[a] = x[a] * cos - x[b] * sin;
                y[b] = x[b] * cos + x[a] * sin;
            }
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};
    use crate::{DType, Tensor};

    const STYLES: [RopeStyle; 2] = [RopeStyle::Half, RopeStyle::Interleaved];

    /// cos and sin of random angles, f32 [tokens, pairs].
    fn angles(random: &mut Random, tokens: usize, pairs: usize) -> [Tensor; 2] {
        let angles = random.f64s(tokens * pairs);
        [f64::cos, f64::sin].map(|f| {
            let values: Vec<f32> = angles.iter().map(|x| f(x * 9.0) as f32).collect();
            Tensor::from_slice(&values, &[tokens, pairs])
        })
    }

    #[test]
    fn gradcheck_of_the_reference() {
        for style in STYLES {
            let mut random = Random::new(2);
            let [cos, sin] = angles(&mut random, 2, 2).map(|t| to_f64(&t));
            let (x, dy) = (random.f64s(2 * 3 * 5), random.f64s(2 * 3 * 5));
            let back: Vec<f64> = sin.iter().map(|x| -x).collect();
            let dx = reference::rotate(&dy, [3, 5], (&cos, &back), 2, style);
            let loss = |x: &[f64]| {
                let y = reference::rotate(x, [3, 5], (&cos, &sin), 2, style);
                y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            gradcheck(loss, &x, &dx);
        }
    }

    #[test]
    fn matches_torch() {
        let cases: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../goldens/rope.json")).unwrap();
        for case in &cases {
            let values = |name: &str| -> Vec<f64> { serde_json::from_value(case[name].clone()).unwrap() };
            let number = |name: &str| case[name].as_u64().unwrap() as usize;
            let style = match case["style"].as_str().unwrap() {
                "half" => RopeStyle::Half,
                _ => RopeStyle::Interleaved,
            };
            let (shape, pairs) = ([number("heads"), number("width")], number("rotary") / 2);
            let (cos, sin) = (values("cos"), values("sin"));
            let y = reference::rotate(&values("x"), shape, (&cos, &sin), pairs, style);
            assert_close("y", &y, &values("y"), 1e-11);
            let back: Vec<f64> = sin.iter().map(|x| -x).collect();
            let dx = reference::rotate(&values("dy"), shape, (&cos, &back), pairs, style);
            assert_close("dx", &dx, &values("dx"), 1e-11);
        }
    }

    #[test]
    fn device_matches_reference() {
        for (tokens, heads, width, pairs) in [(1, 1, 2, 1), (3, 2, 7, 2), (70, 5, 64, 32), (9, 1, 96, 24)] {
            for (dtype, tolerance) in [(DType::F32, 2e-7), (DType::BF16, 4e-3)] {
                let mut random = Random::new(3);
                let x = random.tensor(dtype, &[tokens, heads, width]);
                let [cos, sin] = angles(&mut random, tokens, pairs);
                for (style, dev) in
                    STYLES.into_iter().flat_map(|style| devices().into_iter().map(move |d| (style, d)))
                {
                    let mut y = x.to_dtype(dtype).on(&dev);
                    let [cos, sin] = [&cos, &sin].map(|t| t.to_dtype(DType::F32).on(&dev));
                    forward(&dev, y.view_mut(), cos.view(), sin.view(), style);
                    let (c, s) = (to_f64(&cos), to_f64(&sin));
                    let expected = reference::rotate(&to_f64(&x), [heads, width], (&c, &s), pairs, style);
                    assert_close(&format!("{style:?}, {}", dev.isa()), &to_f64(&y), &expected, tolerance);
                    backward(&dev, y.view_mut(), cos.view(), sin.view(), style);
                    assert_close("there and back", &to_f64(&y), &to_f64(&x), 2.0 * tolerance);
                }
            }
        }
    }

    #[test]
    fn edges() {
        for dev in devices() {
            // No token; no dimension that rotates; large values.
            for (tokens, pairs) in [(0, 2), (2, 0)] {
                let mut x = Random::new(0).tensor(DType::F32, &[tokens, 1, 4]).on(&dev);
                let before = x.to_f32_vec();
                let [cos, sin] = [0; 2].map(|_| dev.zeros(DType::F32, &[tokens, pairs]));
                forward(&dev, x.view_mut(), cos.view(), sin.view(), RopeStyle::Half);
                assert_eq!(x.to_f32_vec(), before);
            }
            let mut x = Tensor::from_slice(&[3e37f32, -4e37, 1.0], &[1, 1, 3]).on(&dev);
            let [cos, sin] = [0.6f32, 0.8].map(|x| Tensor::from_slice(&[x], &[1, 1]).on(&dev));
            forward(&dev, x.view_mut(), cos.view(), sin.view(), RopeStyle::Interleaved);
            assert_close("rotated", &to_f64(&x), &[5e37, 0.0, 1.0], 1e-7);
        }
    }
}
