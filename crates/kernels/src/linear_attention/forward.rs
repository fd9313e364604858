//! Forward on a CPU: one task for each head of each row.

use super::chunk::{Chunk, Values, scale_rows};
use super::product::{Left, padded, product};
use super::{CHUNK, Inputs, LinearAttentionParams, Sizes, chunks};
use crate::isa::per_isa;
use crate::scratch::{Disjoint, take, with_tile};
use crate::{Device, Element, View, ViewMut};

/// A head's factor of the value in the output.
pub fn skips(skip: Option<View<'_>>, head: usize) -> f32 {
    skip.map_or(0.0, |skip| skip.as_slice::<f32>()[head])
}

pub fn run<T: Element>(
    dev: &Device,
    params: LinearAttentionParams,
    cu_seqlens: &[u32],
    (inputs, sizes): (Inputs<'_>, Sizes),
    state: Option<ViewMut<'_>>,
    out: ViewMut<'_>,
) {
    let (values, isa) = (Values::<T>::of(&inputs), dev.isa());
    let Sizes { heads, key_dim: d, value_dim: e, .. } = sizes;
    let out = Disjoint::of(out.as_mut_slice::<T>());
    let given = state.map(|state| Disjoint::of(state.as_mut_slice::<f32>()));
    let rows = cu_seqlens.len().saturating_sub(1);
    let width = padded(e);
    let len = Chunk::len(sizes) + CHUNK * width + d * width;
    dev.for_each(rows * heads, |task| {
        let (row, head) = (task / heads, task % heads);
        let tokens = cu_seqlens[row] as usize..cu_seqlens[row + 1] as usize;
        with_tile(len, |mut tile| {
            let mut chunk = Chunk::take(&mut tile, sizes);
            let (o, state) = (take(&mut tile, CHUNK * width), take(&mut tile, d * width));
            // SAFETY: tasks have states of their own.
            let given = given.as_ref().map(|given| unsafe { given.part(head * d * e, d * e) });
            state.fill(0.0);
            if let Some(given) = &given {
                let rows = state.chunks_exact_mut(width).zip(given.chunks_exact(e));
                rows.for_each(|(to, from)| to[..e].copy_from_slice(from));
            }
            let skip = skips(inputs.skip, head);
            for (i, tokens) in chunks(tokens).enumerate() {
                let before = (i > 0 || given.is_some()).then_some(&*state);
                chunk.read(isa, params, values, sizes, (tokens.clone(), head));
                chunk.weigh(isa);
                chunk.mix(isa, params.rule, before);
                let n = chunk.n;
                let to = &mut o[..n * width];
                if let Some(state) = before {
                    product(isa, chunk.y, Left::straight(chunk.q, d), state, [n, e, d], false);
                    scale_rows(isa, &chunk.y[..n * width], &chunk.exp_g[..n], to);
                }
                product(isa, to, Left::straight(chunk.p, n).lower(), chunk.new, [n, e, n], before.is_some());
                for (i, t) in tokens.enumerate() {
                    // SAFETY: tasks have heads and rows of their own.
                    let out = unsafe { out.part((t * heads + head) * e, e) };
                    finish(isa, &to[i * width..][..e], &chunk.v[i * width..][..e], skip, out);
                }
                chunk.move_state(isa, state);
            }
            if let Some(given) = given {
                let rows = given.chunks_exact_mut(e).zip(state.chunks_exact(width));
                rows.for_each(|(to, from)| to.copy_from_slice(&from[..e]));
            }
        });
    });
}

per_isa! {
    fn finish<T: Element>(o: &[f32], v: &[f32], skip: f32, out: &mut [T]) {
        for (out, (o, v)) in out.iter_mut().zip(o.iter().zip(v)) {
            *out = T::from_f32(o + skip * v);
        }
    }
}
