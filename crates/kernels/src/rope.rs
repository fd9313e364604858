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

use crate::{Device, Element, View, ViewMut, with_dtype};

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
    let (tokens, heads, width) = (x.dim(0), x.dim(1), x.dim(2));
    let pairs = cos.dim(1);
    assert_eq!(cos.shape(), sin.shape(), "rope: cos and sin");
    assert_eq!(cos.dim(0), tokens, "rope: tokens of x and of cos");
    assert!(2 * pairs <= width, "rope: {pairs} pairs in a head of width {width}");
    if x.elements() == 0 || pairs == 0 {
        return;
    }
    let (cos, sin) = (cos.as_slice::<f32>(), sin.as_slice::<f32>());
    let tokens_per_task = (ELEMENTS_PER_TASK / (heads * width)).max(1);
    with_dtype!(x.dtype(), E => {
        let x = x.as_mut_slice::<E>();
        dev.for_each_chunk(x, tokens_per_task * heads * width, |task, chunk| {
            let first = task * tokens_per_task;
            dev.isa().run(|| {
                for (n, token) in chunk.chunks_exact_mut(heads * width).enumerate() {
                    let angles = (first + n) * pairs..(first + n + 1) * pairs;
                    let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                    for head in token.chunks_exact_mut(width) {
                        rotate_head(head, cos, sin, style, sign);
                    }
                }
            });
        });
    });
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
