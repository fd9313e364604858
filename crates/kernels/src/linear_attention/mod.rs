//! Attention without softmax, as a recurrence over the rows of a micro-batch (stages 9 and 11 of the walk).
//!
//! Formula, for token t of a row and head h, which reads queries and keys number h / (H/K); S is a matrix [D, E], zero
//! before the row, α = e^decay, β the step:
//!
//! ```text
//! additive:  S_t = α·S_{t−1} + k_t·(β·v_t)ᵀ                       Mamba-2's state space (Dao & Gu, 2024)
//! delta:     S_t = α·S_{t−1} + k_t·(β·(v_t − α·S_{t−1}ᵀ·k_t))ᵀ      the gated delta rule (Yang et al., 2025)
//! out_t = S_tᵀ·q_t + skip·v_t
//! ```
//!
//! where q and k are multiplied by constants first. It is computed in chunks of tokens, so that nearly all work is
//! products of matrices. In a chunk with the state S₀ before it, G the decays summed from its beginning, and L the lower
//! triangle with its diagonal:
//!
//! ```text
//! P = L(q·kᵀ)·e^(G_i − G_j)        A = β_i·(strict L)(k·kᵀ)·e^(G_i − G_j)
//! V = β·v, or with the delta rule the solution of (1 + A)·V = β·(v − e^G·k·S₀)
//! out = e^G·q·S₀ + P·V + skip·v        S₁ = e^(G_n)·S₀ + (e^(G_n − G)·k)ᵀ·V
//! ```
//!
//! Backward goes through the chunks once forward, for the states between them, and once back; its formulas stand beside the
//! code (`backward`). The sequential form is `reference`.
//!
//! Storage f32 or bf16 (one type for q, k, v, out and their gradients); steps, decays, skips, states and their gradients f32,
//! arithmetic f32. Saved for backward: the inputs. Outputs are overwritten, dskip is added to. Chunks begin at multiples
//! of their length in the micro-batch, so that a row's results may differ in the last bits with its place; rows never see
//! each other. 6·D·E + 4·C·(D + E) FLOP a token and head forward about, C being the chunk's length.

mod backward;
mod chunk;
mod forward;
mod on_cuda;
mod product;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(crate) use self::on_cuda::SOURCE;
use crate::{DType, Device, View, ViewMut, with_dtype};

/// D, at most: what a GPU has room for beside the values.
pub const MOST_KEY_DIM: usize = 256;
/// Tokens of a chunk on a CPU.
const CHUNK: usize = 64;
/// Sums of dq and of dk that one key head has on a CPU, at most: so many tasks work on it.
const MOST_SLOTS: usize = 8;

/// What is added to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The value.
    Additive,
    /// What the value has more than the state knows of its key.
    Delta,
}

/// Constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearAttentionParams {
    /// What is added to the state.
    pub rule: Rule,
    /// Multiplies q.
    pub q_scale: f32,
    /// Multiplies k.
    pub k_scale: f32,
}

/// What both directions read.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries, [N, K, D].
    pub q: View<'a>,
    /// Keys, [N, K, D].
    pub k: View<'a>,
    /// Values, [N, H, E].
    pub v: View<'a>,
    /// β, f32 [N, H].
    pub step: View<'a>,
    /// ln α, f32 [N, H], at most 0.
    pub decay: View<'a>,
    /// Multiplies the value that is added to the output, f32 [H].
    pub skip: Option<View<'a>>,
}

/// What [`backward()`] writes.
pub struct Gradients<'a> {
    /// [N, K, D].
    pub dq: ViewMut<'a>,
    /// [N, K, D].
    pub dk: ViewMut<'a>,
    /// [N, H, E].
    pub dv: ViewMut<'a>,
    /// f32 [N, H].
    pub dstep: ViewMut<'a>,
    /// f32 [N, H].
    pub ddecay: ViewMut<'a>,
    /// f32 [H], added to.
    pub dskip: Option<ViewMut<'a>>,
}

/// N, K, H, D and E.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// N.
    pub tokens: usize,
    /// K.
    pub key_heads: usize,
    /// H, a multiple of K.
    pub heads: usize,
    /// D.
    pub key_dim: usize,
    /// E.
    pub value_dim: usize,
}

impl Sizes {
    /// Heads that read the same queries and keys.
    fn group(self) -> usize {
        self.heads / self.key_heads.max(1)
    }

    /// f32 values of scratch that [`backward()`] takes, on a GPU or on a CPU: the states between chunks, and parts of dq
    /// and dk, on a GPU of the gradients of steps and decays too.
    pub fn scratch_len(self, on_card: bool) -> usize {
        let keys = 2 * self.tokens * self.key_heads * self.key_dim;
        if on_card {
            self.states(on_cuda::chunk(self), self.value_dim)
                + on_cuda::slots(self) * keys
                + on_cuda::gates(self)
        } else {
            self.states(CHUNK, product::padded(self.value_dim)) + self.slots() * keys
        }
    }

    /// f32 values of the states between chunks of this length, their rows being so wide.
    fn states(self, chunk: usize, width: usize) -> usize {
        self.tokens.div_ceil(chunk) * self.heads * self.key_dim * width
    }

    fn slots(self) -> usize {
        self.group().min(MOST_SLOTS)
    }

    /// The heads that work on a key head's slot.
    fn heads_of(self, key_head: usize, slot: usize) -> Range<usize> {
        let (group, slots) = (self.group(), self.slots());
        let at = |slot: usize| key_head * group + slot * group / slots;
        at(slot)..at(slot + 1)
    }

    fn of(inputs: &Inputs<'_>, cu_seqlens: &[u32]) -> Self {
        let Inputs { q, k, v, step, decay, skip } = *inputs;
        let sizes = Self {
            tokens: q.dim(0),
            key_heads: q.dim(1),
            heads: v.dim(1),
            key_dim: q.dim(2),
            value_dim: v.dim(2),
        };
        assert_eq!((k.shape(), k.dtype()), (q.shape(), q.dtype()), "linear_attention: q and k");
        assert_eq!((v.dim(0), v.dtype()), (q.dim(0), q.dtype()), "linear_attention: q and v");
        assert!(
            sizes.key_heads > 0 && sizes.heads.is_multiple_of(sizes.key_heads),
            "linear_attention: heads"
        );
        for gate in [step, decay] {
            assert_eq!(gate.shape(), [sizes.tokens, sizes.heads], "linear_attention: steps and decays");
            assert_eq!(gate.dtype(), DType::F32, "linear_attention: steps and decays are float32");
        }
        let is_skip = |skip: View<'_>| skip.elements() == sizes.heads && skip.dtype() == DType::F32;
        assert!(skip.is_none_or(is_skip), "linear_attention: skip is float32, one a head");
        let last = cu_seqlens.last().copied().unwrap_or(0);
        assert_eq!(last as usize, sizes.tokens, "linear_attention: rows of q");
        sizes
    }
}

/// out [N, H, E] of rows that begin at `cu_seqlens`. `state`, f32 [H, D, E], is that before a single row, and that behind
/// it afterwards.
///
/// # Panics
/// If shapes or types do not fit, or there is a state and not one row.
pub fn forward(
    dev: &Device,
    params: LinearAttentionParams,
    cu_seqlens: &[u32],
    inputs: Inputs<'_>,
    state: Option<ViewMut<'_>>,
    out: ViewMut<'_>,
) {
    let sizes = Sizes::of(&inputs, cu_seqlens);
    let _timed = dev.op("linear attention", [0; 2], || sizes.work(2, &inputs));
    assert_eq!((out.shape(), out.dtype()), (inputs.v.shape(), inputs.v.dtype()), "linear_attention: out");
    if let Some(state) = &state {
        let elements = sizes.heads * sizes.key_dim * sizes.value_dim;
        assert_eq!((state.elements(), state.dtype()), (elements, DType::F32), "linear_attention: the state");
        assert_eq!(cu_seqlens.len(), 2, "linear_attention: a state is that of one row");
    }
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, params, cu_seqlens, (inputs, sizes), state, out);
    }
    with_dtype!(out.dtype(), T => forward::run::<T>(dev, params, cu_seqlens, (inputs, sizes), state, out));
}

/// The gradients of a forward without a state, `dout` being that of out. `scratch` is f32, [`Sizes::scratch_len`] of it.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(
    dev: &Device,
    params: LinearAttentionParams,
    cu_seqlens: &[u32],
    inputs: Inputs<'_>,
    dout: View<'_>,
    gradients: Gradients<'_>,
    scratch: ViewMut<'_>,
) {
    let sizes = Sizes::of(&inputs, cu_seqlens);
    let _timed = dev.op("linear attention backward", [0; 2], || sizes.work(6, &inputs));
    let g = &gradients;
    for (d, of) in [(&g.dq, inputs.q), (&g.dk, inputs.k), (&g.dv, inputs.v)] {
        assert_eq!((d.shape(), d.dtype()), (of.shape(), of.dtype()), "linear_attention: gradients");
    }
    for d in [&g.dstep, &g.ddecay] {
        assert_eq!((d.shape(), d.dtype()), (inputs.step.shape(), DType::F32), "linear_attention: gradients");
    }
    let is_skip = |d: &ViewMut<'_>| d.elements() == sizes.heads && d.dtype() == DType::F32;
    assert!(g.dskip.as_ref().is_none_or(is_skip), "linear_attention: dskip");
    assert_eq!((dout.shape(), dout.dtype()), (inputs.v.shape(), inputs.v.dtype()), "linear_attention: dout");
    let needed = sizes.scratch_len(dev.cuda().is_some());
    assert!(scratch.dtype() == DType::F32 && scratch.elements() >= needed, "linear_attention: scratch");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, params, cu_seqlens, (inputs, sizes), dout, gradients, scratch);
    }
    with_dtype!(dout.dtype(), T => {
        backward::run::<T>(dev, params, cu_seqlens, (inputs, sizes), dout, gradients, scratch);
    });
}

impl Sizes {
    /// FLOP and bytes, about.
    fn work(self, passes: usize, inputs: &Inputs<'_>) -> [usize; 2] {
        let (d, e) = (self.key_dim, self.value_dim);
        let a_head = 3 * d * e + 2 * CHUNK * (d + e);
        let bytes = 2 * inputs.q.byte_len() + 2 * inputs.v.byte_len() + 2 * inputs.step.byte_len();
        [passes * self.tokens * self.heads * a_head, passes / 2 * bytes]
    }
}

/// The chunks of a row: tokens from one multiple of the length to the next, the ends cut off.
fn chunks(row: Range<usize>) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let count = if row.is_empty() { 0 } else { (row.end - 1) / CHUNK - row.start / CHUNK + 1 };
    let first = row.start / CHUNK;
    (0..count).map(move |i| row.start.max((first + i) * CHUNK)..row.end.min((first + i + 1) * CHUNK))
}
