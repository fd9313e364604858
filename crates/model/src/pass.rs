//! What every layer needs to know of the micro-batch that passes through it.

use sft_kernels::attention::RowOffsets;
use sft_kernels::{Device, View};

/// A micro-batch without padding, as the model sees it: rows laid end to end.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids, [N].
    pub input_ids: &'a [u32],
    /// Place of each token in its row, [N].
    pub position_ids: &'a [u32],
    /// Where each row begins, and N.
    pub cu_seqlens: &'a [u32],
    /// The token that each position is to predict, or a negative number if it is not supervised, [N].
    pub targets: &'a [i32],
}

/// One pass of a micro-batch through the layers.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// Where it runs.
    pub dev: &'a Device,
    /// cos of every token, f32 [N, rotary_dim / 2].
    pub cos: View<'a>,
    /// sin of every token.
    pub sin: View<'a>,
    /// Row boundaries of queries and of keys.
    pub rows: RowOffsets<'a>,
    /// Key of the dropout masks of this micro-batch; `None` when nothing is trained.
    pub dropout: Option<u64>,
}
