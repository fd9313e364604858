//! Causal softmax attention over the rows of a micro-batch (stages 9 and 11 of the walk).
//!
//! Formula, for query i of a row and head h, with the keys j that it sees and kv = h / (H/K):
//!
//! ```text
//! s[j] = cap(scale · q[i,h]·k[j,kv]) + slope[h] · (j − i)     p = softmax(s)
//! out[i,h] = Σ_j p[j] · v[j,kv]          lse[i,h] = ln Σ_j e^s[j]
//! ```
//!
//! where cap(x) = softcap · tanh(x / softcap), or x without one, and the slopes are 0 but for ALiBi (Press et al.,
//! 2021). A query sees the keys of its own row at its position and before it, and with a window w only the last w of
//! them, its own included.
//!
//! Derivative (Dao et al., 2022), with p recomputed from lse:
//!
//! ```text
//! delta[i,h] = dout[i,h]·out[i,h]        dv[j] = Σ_i p[j] · dout[i]
//! ds[j] = p[j] · (dout[i]·v[j] − delta[i]) · cap' · scale
//! dq[i] = Σ_j ds[j] · k[j]               dk[j] = Σ_i ds[j] · q[i]
//! ```
//!
//! Storage f32 or bf16 (one type for q, k, v, out and their gradients), lse and delta f32. Sums are f32; with
//! bf16 storage p and ds may be rounded to bf16 before they are multiplied. Saved for backward: q, k, v, out, lse.
//! Outputs are overwritten. A pair of a query and a key that it sees costs 4·D FLOP a head forward and 10·D
//! backward; blocks of which no query sees a key cost nothing, and no array of scores larger than 64 × 64 exists.
//! Backward sums in memory of its own, [`backward_scratch_bytes`] and [`backward_scratch_bytes_on_gpu`].
//!
//! A row's results depend on that row alone, to the last bit, whatever lies beside it and however many threads run.
//!
//! `tiling` lays the queries out, `parts` shares them out in backward, `forward` and `backward` go through the blocks,
//! `softmax` holds the elementwise part, `panels` and `product` the matrix part, `simd` the instructions, `reference` the
//! definition. On a GPU, `on_cuda` launches `hopper.cu`,
//! `attention.cu` and `plain.cu`.

mod backward;
mod forward;
mod on_cuda;
mod panels;
mod parts;
#[cfg(test)]
mod reference;
mod softmax;
#[cfg(test)]
mod tests;
mod tiling;

use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use self::on_cuda::sources;
use self::tiling::Heads;
use crate::isa::per_isa;
use crate::lanes::dot;
use crate::scratch::Disjoint;
use crate::{Device, Element, View, ViewMut, with_dtype};

/// Columns of a head at most, on a GPU.
pub const MOST_COLUMNS_ON_GPU: usize = 512;

/// Rows of dout·out that one task computes.
const DELTAS_PER_TASK: usize = 256;

/// Constants of attention. Fields to come have a neutral value in [`AttentionParams::scaled`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams<'a> {
    /// Multiplies q·k, above 0; 1/√D in most families.
    pub scale: f32,
    /// Number of keys that a query sees at most, its own included (Hugging Face's `sliding_window`).
    pub window: Option<usize>,
    /// Scores become cap·tanh(score/cap) (Gemma 2).
    pub softcap: Option<f32>,
    /// What a score loses for each key between query and key, one a head, [H] (ALiBi); not with a cap.
    pub slopes: Option<&'a [f32]>,
}

impl AttentionParams<'_> {
    /// Plain causal attention: no window, no cap, no slopes.
    pub const fn scaled(scale: f32) -> Self {
        Self { scale, window: None, softcap: None, slopes: None }
    }
}

/// Rows of a micro-batch: queries of row r are `q[r]..q[r + 1]`, its keys and values `k[r]..k[r + 1]`.
///
/// In training both are `cu_seqlens`. With a key/value cache a row has more keys than queries, and the queries
/// are its last positions: query i of a row sits at key position `k_len − q_len + i`.
#[derive(Clone, Copy, Debug)]
pub struct RowOffsets<'a> {
    /// Row boundaries in q, from 0 to Nq.
    pub q: &'a [u32],
    /// Row boundaries in k and v, from 0 to Nk.
    pub k: &'a [u32],
}

impl<'a> RowOffsets<'a> {
    /// As many keys as queries in each row.
    pub fn same(rows: &'a [u32]) -> Self {
        Self { q: rows, k: rows }
    }
}

/// What [`forward()`] reads and writes.
pub struct Forward<'a> {
    /// Queries, [Nq, H, D].
    pub q: View<'a>,
    /// Keys, [Nk, K, D].
    pub k: View<'a>,
    /// Values, [Nk, K, D].
    pub v: View<'a>,
    /// [Nq, H, D].
    pub out: ViewMut<'a>,
    /// f32 [Nq, H]: ln Σ e^score; `None` when no backward follows.
    pub lse: Option<ViewMut<'a>>,
}

/// What [`backward()`] reads and writes.
pub struct Backward<'a> {
    /// Queries, [Nq, H, D].
    pub q: View<'a>,
    /// Keys, [Nk, K, D].
    pub k: View<'a>,
    /// Values, [Nk, K, D].
    pub v: View<'a>,
    /// From forward, [Nq, H, D].
    pub out: View<'a>,
    /// Gradient of `out`, [Nq, H, D].
    pub dout: View<'a>,
    /// From forward, f32 [Nq, H].
    pub lse: View<'a>,
    /// Scratch, f32 [Nq, H]: receives dout·out.
    pub delta: ViewMut<'a>,
    /// Gradient of q, [Nq, H, D].
    pub dq: ViewMut<'a>,
    /// Gradient of k, [Nk, K, D].
    pub dk: ViewMut<'a>,
    /// Gradient of v, [Nk, K, D].
    pub dv: ViewMut<'a>,
}

/// out and lse.
///
/// # Panics
/// If shapes, types or offsets do not fit.
pub fn forward(dev: &Device, params: &AttentionParams<'_>, rows: RowOffsets<'_>, io: Forward<'_>) {
    let heads = checked_heads(params, rows, io.q, io.k);
    let _timed = dev.op("attention", [0; 2], || {
        let pairs = visible_pairs(params, rows) * io.q.dim(1);
        [4 * pairs * io.q.dim(2), 2 * (io.q.byte_len() + io.k.byte_len())]
    });
    assert_eq!(io.k.shape(), io.v.shape(), "attention: k and v");
    assert_eq!(io.q.shape(), io.out.shape(), "attention: q and out");
    if let Some(lse) = &io.lse {
        assert_eq!(io.q.shape()[..2], *lse.shape(), "attention: q and lse");
    }
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, params, rows, heads, io);
    }
    with_dtype!(io.q.dtype(), E => {
        let call = forward::Call {
            params,
            rows,
            heads,
            q: io.q.as_slice::<E>(),
            k: io.k.as_slice::<E>(),
            v: io.v.as_slice::<E>(),
            out: Disjoint::of(io.out.as_mut_slice::<E>()),
            lse: io.lse.map(|lse| Disjoint::of(lse.as_mut_slice::<f32>())),
        };
        forward::forward(dev, &call);
    });
}

/// dq, dk and dv.
///
/// # Panics
/// If shapes, types or offsets do not fit.
pub fn backward(dev: &Device, params: &AttentionParams<'_>, rows: RowOffsets<'_>, io: Backward<'_>) {
    let heads = checked_heads(params, rows, io.q, io.k);
    let _timed = dev.op("attention backward", [0; 2], || {
        let pairs = visible_pairs(params, rows) * io.q.dim(1);
        [10 * pairs * io.q.dim(2), 4 * (io.q.byte_len() + io.k.byte_len())]
    });
    for (name, view) in [("out", io.out), ("dout", io.dout), ("dq", io.dq.as_view())] {
        assert_eq!(io.q.shape(), view.shape(), "attention: q and {name}");
    }
    for (name, view) in [("v", io.v), ("dk", io.dk.as_view()), ("dv", io.dv.as_view())] {
        assert_eq!(io.k.shape(), view.shape(), "attention: k and {name}");
    }
    for (name, view) in [("lse", io.lse), ("delta", io.delta.as_view())] {
        assert_eq!(io.q.shape()[..2], *view.shape(), "attention: q and {name}");
    }
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, params, rows, heads, io);
    }
    let width = heads.width.max(1);
    with_dtype!(io.q.dtype(), E => {
        let (out, dout) = (io.out.as_slice::<E>(), io.dout.as_slice::<E>());
        let delta = io.delta.as_mut_slice::<f32>();
        dev.for_each_chunk(delta, DELTAS_PER_TASK, |task, delta| {
            let first = task * DELTAS_PER_TASK * width;
            dots(dev.isa(), width, &out[first..], &dout[first..], delta);
        });
        let call = backward::Call {
            params,
            rows,
            heads,
            q: io.q.as_slice::<E>(),
            k: io.k.as_slice::<E>(),
            v: io.v.as_slice::<E>(),
            dout,
            lse: io.lse.as_slice::<f32>(),
            delta,
            dq: Disjoint::of(io.dq.as_mut_slice::<E>()),
            dk: Disjoint::of(io.dk.as_mut_slice::<E>()),
            dv: Disjoint::of(io.dv.as_mut_slice::<E>()),
        };
        backward::backward(dev, &call);
    });
}

/// Pairs of a query and a key that it sees.
fn visible_pairs(params: &AttentionParams<'_>, rows: RowOffsets<'_>) -> usize {
    let window = params.window.unwrap_or(usize::MAX);
    let rows = rows.q.windows(2).zip(rows.k.windows(2));
    rows.map(|(q, k)| {
        let (queries, keys) = ((q[1] - q[0]) as usize, (k[1] - k[0]) as usize);
        (keys - queries..keys).map(|before| (before + 1).min(window)).sum::<usize>()
    })
    .sum()
}

per_isa! {
    /// The dot product of each row of `a` with that of `b`.
    fn dots<E: Element>(width: usize, a: &[E], b: &[E], sums: &mut [f32]) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.chunks_exact(width).zip(b.chunks_exact(width))) {
            *sum = dot(a, b);
        }
    }
}

/// Bytes that [`backward()`] keeps for its sums on a CPU, from the first call on: f32 dq where keys come in chunks, and dk
/// and dv of each part of a long row.
///
/// `heads` are H, K and D; queries and keys are those of the largest micro-batch, in rows of `longest` keys.
pub fn backward_scratch_bytes(
    heads: [usize; 3],
    queries_and_keys: [usize; 2],
    longest: usize,
    threads: usize,
) -> usize {
    let [query, key, width] = heads;
    backward::scratch_bytes(Heads { query, key, width }, queries_and_keys, longest, threads)
}

/// The same on a GPU, of so many keys: dk and dv of each part of the query heads.
pub fn backward_scratch_bytes_on_gpu(heads: [usize; 3], keys: usize) -> usize {
    let [query, key, width] = heads;
    on_cuda::backward_scratch_bytes(Heads { query, key, width }, keys)
}

/// Heads of q [Nq, H, D] and k [Nk, K, D], after a look at what every call must fulfil.
fn checked_heads(params: &AttentionParams<'_>, rows: RowOffsets<'_>, q: View<'_>, k: View<'_>) -> Heads {
    let heads = Heads { query: q.dim(1), key: k.dim(1), width: q.dim(2) };
    assert_eq!(heads.width, k.dim(2), "attention: width of q and k");
    assert!(heads.key > 0 && heads.query.is_multiple_of(heads.key), "attention: {heads:?}");
    assert!(params.scale > 0.0, "attention: scale {}", params.scale);
    assert!(params.window != Some(0), "attention: a window holds at least the query's own key");
    assert!(
        params.slopes.is_none_or(|slopes| slopes.len() == heads.query),
        "attention: a slope for each head"
    );
    assert!(params.slopes.is_none() || params.softcap.is_none(), "attention: slopes or a cap");
    assert_eq!(rows.q.len(), rows.k.len(), "attention: rows of q and k");
    for (offsets, tokens) in [(rows.q, q.dim(0)), (rows.k, k.dim(0))] {
        assert_eq!(offsets.first(), Some(&0), "attention: offsets begin at 0");
        assert_eq!(offsets.last(), Some(&(tokens as u32)), "attention: offsets end at the number of tokens");
    }
    for (q, k) in rows.q.windows(2).zip(rows.k.windows(2)) {
        assert!(q[0] <= q[1] && k[0] <= k[1], "attention: offsets rise");
        assert!(q[1] - q[0] <= k[1] - k[0], "attention: a row has at least as many keys as queries");
    }
    heads
}

/// Calls `f` for each task; whichever thread is free takes the next.
fn share_out<T: Sync>(dev: &Device, tasks: &[T], f: impl Fn(&T) + Send + Sync) {
    let next = AtomicUsize::new(0);
    dev.for_each(dev.threads().min(tasks.len()), |_| {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            f(task);
        }
    });
}
