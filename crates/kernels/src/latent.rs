//! Queries, keys and values of multi-head latent attention, put together (stages 9 and 11 of the walk).
//!
//! DeepSeek-V2 rotates a part of each query and one key that all heads share, and has values narrower than keys. With
//! the projections q' [N, H, P + R], kv' [N, H, P + V] and the shared key r [N, R], for each head:
//!
//! > q = q'[P..] ‖ q'[..P], k = r ‖ kv'[..P], v = kv'[P..] ‖ 0
//!
//! all of width D = R + P: what turns stands first, where [`crate::rope`] turns it, and values are filled up with zeros.
//! Derivative: the same columns back, dr = Σ_heads dk[..R], and nothing of what was filled up.
//!
//! One type for all; the sum is f32, over heads in order. Nothing is saved; outputs are overwritten. Memory-bound: every
//! element is read and written once.

use crate::{Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

/// Columns of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// P: of queries and keys, not rotated.
    pub passed: usize,
    /// R: rotated.
    pub rotated: usize,
    /// V: of values, at most R + P.
    pub value: usize,
}

impl Columns {
    /// D.
    pub fn width(self) -> usize {
        self.passed + self.rotated
    }
}

/// q, k and v [N, H, D] from the projections.
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(
    dev: &Device,
    columns: Columns,
    (queries, key_values, shared): (View<'_>, View<'_>, View<'_>),
    [q, k, v]: [ViewMut<'_>; 3],
) {
    let _timed = dev.pass("latent heads", 2 * (queries.byte_len() + key_values.byte_len()));
    check(columns, [queries, key_values, shared], [&q, &k, &v].map(ViewMut::as_view));
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, columns, [queries, key_values, shared], [q, k, v]);
    }
    let Columns { passed: p, rotated: r, value } = columns;
    let (d, heads) = (columns.width(), q.dim(1));
    with_dtype!(q.dtype(), E => {
        let (queries, kv, shared) = (queries.as_slice::<E>(), key_values.as_slice::<E>(), shared.as_slice::<E>());
        dev.for_each_chunk(q.as_mut_slice::<E>(), d, |row, q| {
            let from = &queries[row * d..][..d];
            q[..r].copy_from_slice(&from[p..]);
            q[r..].copy_from_slice(&from[..p]);
        });
        dev.for_each_chunk_pair((k.as_mut_slice::<E>(), d), (v.as_mut_slice::<E>(), d), |row, k, v| {
            let from = &kv[row * (p + value)..][..p + value];
            k[..r].copy_from_slice(&shared[row / heads * r..][..r]);
            k[r..].copy_from_slice(&from[..p]);
            v[..value].copy_from_slice(&from[p..]);
            v[value..].fill(E::default());
        });
    });
}

/// The gradients of the projections from those of q, k and v.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(
    dev: &Device,
    columns: Columns,
    [dq, dk, dv]: [View<'_>; 3],
    (dqueries, dkey_values, dshared): (ViewMut<'_>, ViewMut<'_>, ViewMut<'_>),
) {
    let _timed = dev.pass("latent heads backward", 2 * (dqueries.byte_len() + dkey_values.byte_len()));
    check(columns, [&dqueries, &dkey_values, &dshared].map(ViewMut::as_view), [dq, dk, dv]);
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, columns, [dq, dk, dv], [dqueries, dkey_values, dshared]);
    }
    let Columns { passed: p, rotated: r, value } = columns;
    let (d, heads) = (columns.width(), dq.dim(1));
    with_dtype!(dq.dtype(), E => {
        let (dq, dk, dv) = (dq.as_slice::<E>(), dk.as_slice::<E>(), dv.as_slice::<E>());
        dev.for_each_chunk(dqueries.as_mut_slice::<E>(), d, |row, to| {
            let from = &dq[row * d..][..d];
            to[p..].copy_from_slice(&from[..r]);
            to[..p].copy_from_slice(&from[r..]);
        });
        let of_token = (dkey_values.as_mut_slice::<E>(), heads * (p + value));
        dev.for_each_chunk_pair(of_token, (dshared.as_mut_slice::<E>(), r), |token, to, dshared| {
            let first = token * heads;
            for (head, to) in to.chunks_exact_mut(p + value).enumerate() {
                let row = (first + head) * d;
                to[..p].copy_from_slice(&dk[row + r..][..p]);
                to[p..].copy_from_slice(&dv[row..][..value]);
            }
            for (i, dshared) in dshared.iter_mut().enumerate() {
                let sum: f32 = (first..first + heads).map(|row| dk[row * d + i].to_f32()).sum();
                *dshared = E::from_f32(sum);
            }
        });
    });
}

fn check(columns: Columns, [queries, kv, shared]: [View<'_>; 3], heads: [View<'_>; 3]) {
    let (n, h, d) = (heads[0].dim(0), heads[0].dim(1), columns.width());
    assert!(columns.value <= d, "latent: values of width {} beside keys of width {d}", columns.value);
    let all = [queries, kv, shared, heads[1], heads[2]];
    assert!(all.iter().all(|view| view.dtype() == heads[0].dtype()), "latent: one type");
    heads.iter().for_each(|view| assert_eq!(view.shape(), [n, h, d], "latent: q, k and v"));
    let expected = [n * h * d, n * h * (columns.passed + columns.value), n * columns.rotated];
    assert_eq!([queries, kv, shared].map(|view| view.elements()), expected, "latent: projections");
}

mod on_cuda {
    //! The same on a GPU: a block has one token.

    use super::Columns;
    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("latent", include_str!("latent.cu"));

    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct LatentHeads {
        queries: DevicePtr,
        key_values: DevicePtr,
        shared: DevicePtr,
        q: DevicePtr,
        k: DevicePtr,
        v: DevicePtr,
        heads: u32,
        passed: u32,
        rotated: u32,
        value: u32,
    }
    // SAFETY: `LatentHeads` of latent.cu; shapes were checked.
    unsafe impl Params for LatentHeads {}

    fn params(
        columns: Columns,
        heads: usize,
        [queries, key_values, shared]: [DevicePtr; 3],
        [q, k, v]: [DevicePtr; 3],
    ) -> LatentHeads {
        let [passed, rotated, value] = [columns.passed, columns.rotated, columns.value].map(|c| c as u32);
        LatentHeads { queries, key_values, shared, q, k, v, heads: heads as u32, passed, rotated, value }
    }

    pub fn forward(cuda: &Cuda, columns: Columns, from: [View<'_>; 3], mut to: [ViewMut<'_>; 3]) {
        let (n, heads, dtype) = (to[0].dim(0), to[0].dim(1), to[0].dtype());
        let params =
            params(columns, heads, from.map(|view| view.device()), to.each_mut().map(|view| view.device()));
        cuda.launch(&SOURCE, "latent_forward", &[dtype], Grid::new(n, THREADS), params);
    }

    pub fn backward(cuda: &Cuda, columns: Columns, from: [View<'_>; 3], mut to: [ViewMut<'_>; 3]) {
        let (n, heads, dtype) = (from[0].dim(0), from[0].dim(1), from[0].dtype());
        let params =
            params(columns, heads, to.each_mut().map(|view| view.device()), from.map(|view| view.device()));
        cuda.launch(&SOURCE, "latent_backward", &[dtype], Grid::new(n, THREADS), params);
    }
}

#[cfg(test)]
mod reference {
    use super::Columns;

    /// [q, k, v] of one token.
    pub fn forward(columns: Columns, q: &[f64], kv: &[f64], shared: &[f64]) -> [Vec<f64>; 3] {
        let Columns { passed: p, value, .. } = columns;
        let q = q.chunks(columns.width()).flat_map(|q| [&q[p..], &q[..p]].concat()).collect();
        let heads = || kv.chunks(p + value);
        let k = heads().flat_map(|kv| [shared, &kv[..p]].concat()).collect();
        let zeros = vec![0.0; columns.width() - value];
        [q, k, heads().flat_map(|kv| [&kv[p..], &zeros].concat()).collect()]
    }

    /// [dq', dkv', dr] of one token: the transpose.
    pub fn backward(columns: Columns, [dq, dk, dv]: [&[f64]; 3]) -> [Vec<f64>; 3] {
        let (Columns { rotated: r, value, .. }, d) = (columns, columns.width());
        let queries = dq.chunks(d).flat_map(|q| [&q[r..], &q[..r]].concat()).collect();
        let kv = dk.chunks(d).zip(dv.chunks(d)).flat_map(|(k, v)| [&k[r..], &v[..value]].concat()).collect();
        let shared = (0..r).map(|i| dk.chunks(d).map(|k| k[i]).sum()).collect();
        [queries, kv, shared]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

    const ALL: [Columns; 3] = [
        Columns { passed: 4, rotated: 2, value: 4 },
        Columns { passed: 1, rotated: 2, value: 3 },
        Columns { passed: 16, rotated: 8, value: 16 },
    ];

    #[test]
    fn gradcheck_of_the_reference() {
        for columns in ALL {
            let (heads, mut random) = (3, Random::new(1));
            let lens = [heads * columns.width(), heads * (columns.passed + columns.value), columns.rotated];
            let [q, kv, shared] = lens.map(|len| random.f64s(len));
            let d: Vec<Vec<f64>> = (0..3).map(|_| random.f64s(lens[0])).collect();
            let [dq, dkv, dshared] = reference::backward(columns, [&d[0], &d[1], &d[2]]);
            let loss = |q: &[f64], kv: &[f64], shared: &[f64]| -> f64 {
                let found = reference::forward(columns, q, kv, shared);
                found.iter().flatten().zip(d.iter().flatten()).map(|(x, d)| x * d).sum()
            };
            gradcheck(|q| loss(q, &kv, &shared), &q, &dq);
            gradcheck(|kv| loss(&q, kv, &shared), &kv, &dkv);
            gradcheck(|shared| loss(&q, &kv, shared), &shared, &dshared);
        }
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, columns) in [DType::F32, DType::BF16].into_iter().flat_map(|t| ALL.map(|c| (t, c))) {
                let (n, heads, mut random) = (5, 3, Random::new(2));
                let lens =
                    [heads * columns.width(), heads * (columns.passed + columns.value), columns.rotated];
                let from = lens.map(|len| random.tensor(dtype, &[n, len]).on(&dev));
                let shape = [n, heads, columns.width()];
                let mut to: [_; 3] = std::array::from_fn(|_| random.tensor(dtype, &shape).on(&dev));
                let [q, k, v] = to.each_mut().map(|tensor| tensor.view_mut());
                forward(&dev, columns, (from[0].view(), from[1].view(), from[2].view()), [q, k, v]);
                let values = from.each_ref().map(to_f64);
                let found = to.each_ref().map(to_f64);
                let row =
                    |values: &[f64], t: usize, i: usize| values[t * lens[i]..(t + 1) * lens[i]].to_vec();
                for t in 0..n {
                    let [q, kv, shared] = [0, 1, 2].map(|i| row(&values[i], t, i));
                    let expected = reference::forward(columns, &q, &kv, &shared);
                    for (found, expected) in found.iter().zip(expected) {
                        assert_close("head", &row(found, t, 0), &expected, 0.0);
                    }
                }
                let mut back = from.each_ref().map(|tensor| dev.zeros(dtype, tensor.shape()));
                let [q, kv, shared] = back.each_mut().map(|tensor| tensor.view_mut());
                let [dq, dk, dv] = to.each_ref().map(|tensor| tensor.view());
                backward(&dev, columns, [dq, dk, dv], (q, kv, shared));
                let back = back.each_ref().map(to_f64);
                let tolerance = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
                for t in 0..n {
                    let [dq, dk, dv] = [0, 1, 2].map(|i| row(&found[i], t, 0));
                    let expected = reference::backward(columns, [&dq, &dk, &dv]);
                    for (i, expected) in expected.iter().enumerate() {
                        assert_close("gradient", &row(&back[i], t, i), expected, tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn edges_no_token() {
        for dev in devices() {
            let columns = ALL[0];
            let empty = |columns: usize| dev.zeros(DType::F32, &[0, columns]);
            let (q, kv, shared) = (empty(6), empty(8), empty(2));
            let mut to: [_; 3] = std::array::from_fn(|_| dev.zeros(DType::F32, &[0, 1, 6]));
            let [a, b, c] = to.each_mut().map(|tensor| tensor.view_mut());
            forward(&dev, columns, (q.view(), kv.view(), shared.view()), [a, b, c]);
        }
    }
}
