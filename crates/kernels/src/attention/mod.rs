//! Causal softmax attention over the rows of a micro-batch (stages 9 and 11 of the walk).
//!
//! Formula, for query i of a row and head h, with the keys j that it sees and kv = h / (H/K):
//!
//! > s[j] = cap(scale · q[i,h]·k[j,kv]), p = softmax(s), out[i,h] = Σ_j p[j] · v[j,kv], lse[i,h] = ln Σ_j e^s[j]
//!
//! where cap(x) = softcap · tanh(x / softcap), or x without one. A query sees the keys of its own row at its
//! position and before it, and with a window w only the last w of them, its own included.
//!
//! Derivative (Dao et al., 2022), with delta[i,h] = dout[i,h]·out[i,h] and p recomputed from lse:
//!
//! > dv[j] = Σ p[j]·dout[i], dp[j] = dout[i]·v[j], ds[j] = p[j]·(dp[j] − delta)·cap'·scale,
//! > dq[i] = Σ_j ds[j]·k[j], dk[j] = Σ_i ds[j]·q[i]
//!
//! Storage f32 or bf16 (one type for q, k, v, out and their gradients), arithmetic f32, lse and delta f32.
//! Saved for backward: q, k, v, out, lse. Outputs are overwritten.

mod reference;

use crate::{Device, View, ViewMut};

/// Constants of attention. Fields to come have a neutral value in [`AttentionParams::scaled`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Multiplies q·k; 1/√D in most families.
    pub scale: f32,
    /// Number of keys that a query sees at most, its own included (Hugging Face's `sliding_window`).
    pub window: Option<usize>,
    /// Scores become cap·tanh(score/cap) (Gemma 2).
    pub softcap: Option<f32>,
}

impl AttentionParams {
    /// Plain causal attention: no window, no cap.
    pub const fn scaled(scale: f32) -> Self {
        Self { scale, window: None, softcap: None }
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

/// What [`forward`] reads and writes.
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

/// What [`backward`] reads and writes.
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
pub fn forward(_dev: &Device, params: &AttentionParams, rows: RowOffsets<'_>, io: Forward<'_>) {
    let heads = reference::Heads { query: io.q.dim(1), key: io.k.dim(1), width: io.q.dim(2) };
    let inputs = [io.q, io.k, io.v].map(View::to_f32_vec);
    let x = reference::Inputs { q: &inputs[0][..], k: &inputs[1], v: &inputs[2] };
    let (out, lse) = reference::forward(params, rows, heads, &x);
    io.out.copy_from(View::of(&out, &[out.len()]));
    if let Some(to) = io.lse {
        to.copy_from(View::of(&lse, &[lse.len()]));
    }
}

/// dq, dk and dv.
///
/// # Panics
/// If shapes, types or offsets do not fit.
pub fn backward(_dev: &Device, params: &AttentionParams, rows: RowOffsets<'_>, io: Backward<'_>) {
    let heads = reference::Heads { query: io.q.dim(1), key: io.k.dim(1), width: io.q.dim(2) };
    let inputs = [io.q, io.k, io.v, io.dout].map(View::to_f32_vec);
    let x = reference::Inputs { q: &inputs[0][..], k: &inputs[1], v: &inputs[2] };
    let (dq, dk, dv) = reference::backward(params, rows, heads, &x, &inputs[3]);
    io.dq.copy_from(View::of(&dq, &[dq.len()]));
    io.dk.copy_from(View::of(&dk, &[dk.len()]));
    io.dv.copy_from(View::of(&dv, &[dv.len()]));
}
