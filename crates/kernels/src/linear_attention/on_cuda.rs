//! The same on a GPU: `linear_attention.cu`.

use super::{Gradients, Inputs, LinearAttentionParams, Rule, Sizes};
use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
use crate::{View, ViewMut};

pub(crate) static SOURCE: Source = Source::new("linear_attention", include_str!("linear_attention.cu"));

/// Threads of a block.
const THREADS: usize = 128;
/// Threads of a block that sums.
const SUM_THREADS: usize = 256;
/// Sums of dq and of dk that one key head has, at most.
const MOST_SLOTS: usize = 16;
/// Columns of a state that a block has in backward, where it has the state's gradient too.
const BACKWARD_SLICE: usize = 16;

/// Tokens of a chunk, which with the state of a slice has to fit the 99 KiB of shared memory of every card.
pub fn chunk(sizes: Sizes) -> usize {
    if sizes.key_dim <= 128 { 32 } else { 16 }
}

/// Columns of a state that a block has in forward.
fn forward_slice(sizes: Sizes) -> usize {
    if sizes.key_dim <= 128 { 32 } else { 16 }
}

fn backward_slices(sizes: Sizes) -> usize {
    sizes.value_dim.div_ceil(BACKWARD_SLICE)
}

/// Sums of dq and of dk of a key head.
pub fn slots(sizes: Sizes) -> usize {
    (sizes.group() * backward_slices(sizes)).min(MOST_SLOTS)
}

/// f32 values that backward takes for parts of the gradients of steps and decays.
pub fn gates(sizes: Sizes) -> usize {
    2 * backward_slices(sizes) * sizes.tokens * sizes.heads
}

#[derive(Clone, Copy)]
#[repr(C)]
struct LinearAttention {
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    step: DevicePtr,
    decay: DevicePtr,
    skip: DevicePtr,
    starts: DevicePtr,
    out: DevicePtr,
    state: DevicePtr,
    dout: DevicePtr,
    dv: DevicePtr,
    states: DevicePtr,
    slots: DevicePtr,
    gates: DevicePtr,
    tokens: u32,
    key_heads: u32,
    heads: u32,
    key_dim: u32,
    value_dim: u32,
    chunk: u32,
    slice: u32,
    slices: u32,
    slot_count: u32,
    delta: u32,
    q_scale: f32,
    k_scale: f32,
}
// SAFETY: `LinearAttention` of linear_attention.cu; shapes were checked.
unsafe impl Params for LinearAttention {}

fn params(
    cuda: &Cuda,
    p: LinearAttentionParams,
    cu_seqlens: &[u32],
    (inputs, sizes): (Inputs<'_>, Sizes),
    slice: usize,
) -> LinearAttention {
    let null = DevicePtr::NULL;
    LinearAttention {
        q: inputs.q.device(),
        k: inputs.k.device(),
        v: inputs.v.device(),
        step: inputs.step.device(),
        decay: inputs.decay.device(),
        skip: inputs.skip.map_or(null, |skip| skip.device()),
        starts: cuda.indices(cu_seqlens),
        out: null,
        state: null,
        dout: null,
        dv: null,
        states: null,
        slots: null,
        gates: null,
        tokens: sizes.tokens as u32,
        key_heads: sizes.key_heads as u32,
        heads: sizes.heads as u32,
        key_dim: sizes.key_dim as u32,
        value_dim: sizes.value_dim as u32,
        chunk: chunk(sizes) as u32,
        slice: slice as u32,
        slices: sizes.value_dim.div_ceil(slice) as u32,
        slot_count: slots(sizes) as u32,
        delta: (p.rule == Rule::Delta).into(),
        q_scale: p.q_scale,
        k_scale: p.k_scale,
    }
}

/// Bytes of shared memory of a chunk, and what backward has beside it: as the kernels' `place` shares them out.
fn shared_bytes(sizes: Sizes, slice: usize, backward: bool) -> usize {
    let (c, d, s) = (chunk(sizes), sizes.key_dim, slice + 1);
    let of_chunk = 2 * c * (d + 1) + d * s + 4 * c * s + 2 * c * (c + 1) + 2 * c;
    let beside = d * s + 4 * c * s + 2 * c * (c + 1) + 2 * c + 32;
    (of_chunk + if backward { beside } else { 0 }) * size_of::<f32>()
}

pub fn forward(
    cuda: &Cuda,
    p: LinearAttentionParams,
    cu_seqlens: &[u32],
    (inputs, sizes): (Inputs<'_>, Sizes),
    state: Option<ViewMut<'_>>,
    mut out: ViewMut<'_>,
) {
    let slice = forward_slice(sizes);
    let state = state.map_or(DevicePtr::NULL, |mut state| state.device());
    let params = params(cuda, p, cu_seqlens, (inputs, sizes), slice);
    let blocks = cu_seqlens.len().saturating_sub(1) * sizes.heads * params.slices as usize;
    let grid = Grid::new(blocks, THREADS).shared(shared_bytes(sizes, slice, false));
    let params = LinearAttention { out: out.device(), state, ..params };
    cuda.launch(&SOURCE, "linear_attention_forward", &[inputs.q.dtype()], grid, params);
}

#[derive(Clone, Copy)]
#[repr(C)]
struct LinearAttentionSum {
    parts: DevicePtr,
    to: DevicePtr,
    elements: u64,
    count: u32,
}
// SAFETY: `LinearAttentionSum` of linear_attention.cu.
unsafe impl Params for LinearAttentionSum {}

fn sum(cuda: &Cuda, parts: DevicePtr, count: usize, mut to: ViewMut<'_>) {
    let (elements, dtype) = (to.elements(), to.dtype());
    let params =
        LinearAttentionSum { parts, to: to.device(), elements: elements as u64, count: count as u32 };
    let grid = Grid::new(elements.div_ceil(SUM_THREADS), SUM_THREADS);
    cuda.launch(&SOURCE, "linear_attention_sum", &[dtype], grid, params);
}

#[derive(Clone, Copy)]
#[repr(C)]
struct LinearAttentionSkip {
    dout: DevicePtr,
    v: DevicePtr,
    dskip: DevicePtr,
    tokens: u64,
    heads: u32,
    value_dim: u32,
}
// SAFETY: `LinearAttentionSkip` of linear_attention.cu.
unsafe impl Params for LinearAttentionSkip {}

pub fn backward(
    cuda: &Cuda,
    p: LinearAttentionParams,
    cu_seqlens: &[u32],
    (inputs, sizes): (Inputs<'_>, Sizes),
    dout: View<'_>,
    gradients: Gradients<'_>,
    mut scratch: ViewMut<'_>,
) {
    let Gradients { dq, dk, mut dv, dstep, ddecay, dskip } = gradients;
    let (slots, f32_bytes) = (slots(sizes), size_of::<f32>());
    let keys = slots * sizes.tokens * sizes.key_heads * sizes.key_dim;
    let states = sizes.states(chunk(sizes), sizes.value_dim);
    let states_at = scratch.device();
    let slots_at = states_at.offset(states * f32_bytes);
    let gates_at = slots_at.offset(2 * keys * f32_bytes);
    let params = LinearAttention {
        dout: dout.device(),
        dv: dv.device(),
        states: states_at,
        slots: slots_at,
        gates: gates_at,
        ..params(cuda, p, cu_seqlens, (inputs, sizes), BACKWARD_SLICE)
    };
    let blocks = cu_seqlens.len().saturating_sub(1) * sizes.key_heads * slots;
    let grid = Grid::new(blocks, THREADS).shared(shared_bytes(sizes, BACKWARD_SLICE, true));
    cuda.launch(&SOURCE, "linear_attention_backward", &[inputs.q.dtype()], grid, params);
    sum(cuda, slots_at, slots, dq);
    sum(cuda, slots_at.offset(keys * f32_bytes), slots, dk);
    let slices = backward_slices(sizes);
    sum(cuda, gates_at, slices, dstep);
    sum(cuda, gates_at.offset(gates(sizes) / 2 * f32_bytes), slices, ddecay);
    if let Some(mut dskip) = dskip {
        let params = LinearAttentionSkip {
            dout: dout.device(),
            v: inputs.v.device(),
            dskip: dskip.device(),
            tokens: sizes.tokens as u64,
            heads: sizes.heads as u32,
            value_dim: sizes.value_dim as u32,
        };
        let grid = Grid::new(sizes.heads, SUM_THREADS);
        cuda.launch(&SOURCE, "linear_attention_skip", &[inputs.v.dtype()], grid, params);
    }
}
