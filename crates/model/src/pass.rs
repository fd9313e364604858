//! What every layer needs to know of the micro-batch that passes through it.

use sft_kernels::attention::RowOffsets;
use sft_kernels::copies::Places;
use sft_kernels::rope::RopeStyle;
use sft_kernels::{Device, View};

use crate::spec::LayerRope;
use crate::watch::Watch;

/// A micro-batch without padding, as the model sees it: rows laid end to end, or the pieces of rows that begin alike.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids, [N].
    pub input_ids: &'a [u32],
    /// Place of each token in its row, [N].
    pub position_ids: &'a [u32],
    /// Where each row, or piece, begins, and N.
    pub cu_seqlens: &'a [u32],
    /// What pieces see beside themselves; `None` where each row is one.
    pub shared: Option<Shared<'a>>,
    /// The token that each position is to predict, or a negative number if it is not supervised, [N].
    pub targets: &'a [i32],
    /// How much each position with a target counts in the loss, [N]; empty where all count the same, 1.
    pub weights: &'a [f32],
}

/// What the pieces of rows that begin alike see: their own tokens, and before them those of the pieces that they continue.
#[derive(Debug, Clone, Copy)]
pub struct Shared<'a> {
    /// Where what each piece sees begins in `seen`, and its length, [P + 1].
    pub starts: &'a [u32],
    /// The tokens, [M].
    pub seen: &'a [u32],
    /// Where each token is in `seen`.
    pub places: Places<'a>,
}

/// cos and sin of every token of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// f32 [N, rotary_dim / 2].
    pub cos: View<'a>,
    /// The same of the sine.
    pub sin: View<'a>,
    /// Which dimensions form a pair.
    pub style: RopeStyle,
}

/// One pass of a micro-batch through the layers.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// Where it runs.
    pub dev: &'a Device,
    /// Rotary positions of most layers.
    pub rope: Option<Angles<'a>>,
    /// Rotary positions of the layers with [`LayerRope::Local`].
    pub local_rope: Option<Angles<'a>>,
    /// What each token's queries are multiplied by, f32 [N].
    pub query_scale: Option<View<'a>>,
    /// Boundaries of rows, or of pieces.
    pub rows: &'a [u32],
    /// What pieces see beside themselves.
    pub shared: Option<Shared<'a>>,
    /// The same with those of chunks, for the layers that see their own chunk alone; not for rows in caches.
    pub chunks: Option<&'a [u32]>,
    /// Key of the dropout masks of this micro-batch; `None` when nothing is trained.
    pub dropout: Option<u64>,
    /// Looks for the first value that is not finite; `None` in any pass but the one that is made to find it.
    pub watch: Option<&'a Watch>,
}

impl<'a> Pass<'a> {
    /// Boundaries of queries and of the keys that they see, for a layer with such chunks, or without.
    pub fn rows_of(&self, chunk: Option<usize>) -> RowOffsets<'a> {
        match self.shared {
            Some(shared) => RowOffsets { q: self.rows, k: shared.starts },
            None => RowOffsets::same(chunk.and(self.chunks).unwrap_or(self.rows)),
        }
    }

    /// Shows what an op of the current block put out, [N, …], to whoever watches.
    pub(crate) fn see(&self, op: &str, values: View<'_>) {
        if let Some(watch) = self.watch {
            watch.see(self.dev, op, values, Some);
        }
    }

    /// The angles that a layer rotates by.
    pub fn angles(&self, rope: LayerRope) -> Option<Angles<'a>> {
        match rope {
            LayerRope::None => None,
            LayerRope::Global => self.rope,
            LayerRope::Local => self.local_rope,
        }
    }
}
