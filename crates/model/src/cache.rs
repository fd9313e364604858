//! What the tokens of a row so far leave for the next one: keys and values of attention, the last inputs of convolutions,
//! the states of recurrences.

use std::ops::Range;

use sft_kernels::attention::RowOffsets;
use sft_kernels::{DType, Device, Tensor, View, ViewMut};

use crate::arena::Arena;
use crate::spec::{DecoderSpec, LayerSpec, MixerSpec};

/// The cache of one layer, for one row.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys and values of all tokens, [capacity, K, D] each.
    keys: Option<(Tensor, Tensor)>,
    /// Of each convolution the inputs before the next token, [W − 1, channels]; they are written beside where they are read.
    histories: Vec<[Tensor; 2]>,
    /// f32 [H, D, E].
    state: Option<Tensor>,
    len: usize,
}

impl LayerCache {
    fn new(
        arena: &mut Arena<'_>,
        spec: &DecoderSpec,
        layer: &LayerSpec,
        dtype: DType,
        capacity: usize,
    ) -> Self {
        let keys = layer.attends().map(|attention| {
            let shape = [capacity, attention.kv_heads, attention.head_dim];
            (arena.tensor(dtype, &shape), arena.tensor(dtype, &shape))
        });
        let (taps, widths) = match (&layer.mixer, layer.mixer.recurrent()) {
            (MixerSpec::ShortConv(conv), _) => (conv.taps, vec![spec.hidden_size]),
            (_, Some(recurrent)) => (recurrent.taps, recurrent.conv_widths().to_vec()),
            _ => (1, Vec::new()),
        };
        let mut history = |width: &usize| [(); 2].map(|()| arena.tensor(dtype, &[taps - 1, *width]));
        let histories = widths.iter().map(&mut history).collect();
        let state = layer.mixer.recurrent();
        let state = state.map(|r| arena.tensor(DType::F32, &[r.heads, r.key_dim, r.value_dim]));
        Self { keys, histories, state, len: 0 }
    }

    /// Appends keys and values [N, K, D]; returns all.
    ///
    /// # Panics
    /// If there is no room: callers ask [`KvCache::room`] first; or if the layer has no attention.
    pub fn append(&mut self, k: View<'_>, v: View<'_>) -> (View<'_>, View<'_>) {
        let (keys, values) = self.keys.as_mut().expect("made for a layer with attention");
        let range = self.len..self.len + k.dim(0);
        assert!(range.end <= keys.shape()[0], "the key/value cache has room for {}", keys.shape()[0]);
        keys.view_mut().into_rows(range.clone()).copy_from(k);
        values.view_mut().into_rows(range.clone()).copy_from(v);
        (keys.head(range.end), values.head(range.end))
    }

    /// The inputs of a convolution before the next token, [W − 1, channels].
    pub fn history(&self, conv: usize) -> View<'_> {
        self.histories[conv][0].view()
    }

    /// Keeps the last inputs of a convolution that has just read x [N, channels].
    pub fn remember(&mut self, conv: usize, x: View<'_>) {
        let [now, next] = &mut self.histories[conv];
        let (kept, n) = (now.shape()[0], x.dim(0));
        let old = kept.saturating_sub(n);
        next.view_mut().into_rows(0..old).copy_from(now.view().rows(kept - old..kept));
        next.view_mut().into_rows(old..kept).copy_from(x.rows(n - (kept - old)..n));
        std::mem::swap(now, next);
    }

    /// The recurrence's state.
    ///
    /// # Panics
    /// If the layer has none.
    pub fn state(&mut self) -> ViewMut<'_> {
        self.state.as_mut().expect("made for a layer with a recurrence").view_mut()
    }

    /// Whether what it holds can be taken back to an earlier token.
    fn can_go_back(&self) -> bool {
        self.histories.is_empty() && self.state.is_none()
    }

    fn clear(&mut self) {
        self.len = 0;
        self.histories.iter_mut().for_each(|[now, _]| now.view_mut().zero());
        self.state.iter_mut().for_each(|state| state.view_mut().zero());
    }
}

/// The cache of all layers, for one row.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    capacity: usize,
}

impl KvCache {
    /// So many, each with room for `capacity` tokens, side by side in memory.
    pub fn several(
        dev: &Device,
        spec: &DecoderSpec,
        dtype: DType,
        capacity: usize,
        count: usize,
    ) -> Vec<Self> {
        let mut arena = Arena::allocating(dev);
        (0..count).map(|_| Self::build(&mut arena, spec, dtype, capacity)).collect()
    }

    /// Room for `capacity` tokens.
    pub fn new(dev: &Device, spec: &DecoderSpec, dtype: DType, capacity: usize) -> Self {
        Self::build(&mut Arena::allocating(dev), spec, dtype, capacity)
    }

    /// Bytes of one.
    pub fn bytes(spec: &DecoderSpec, dtype: DType, capacity: usize) -> usize {
        let mut arena = Arena::counting(false);
        Self::build(&mut arena, spec, dtype, capacity);
        arena.bytes()
    }

    fn build(arena: &mut Arena<'_>, spec: &DecoderSpec, dtype: DType, capacity: usize) -> Self {
        let layers = spec.layers.iter().map(|layer| LayerCache::new(arena, spec, layer, dtype, capacity));
        Self { layers: layers.collect(), capacity }
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that still fit.
    pub fn room(&self) -> usize {
        self.capacity - self.len()
    }

    /// Takes over the first `len` tokens of another one, if it holds more of the same row and layers can go back to there.
    /// Returns how many tokens are held.
    ///
    /// # Panics
    /// If the two are of different models, the other one holds less, or there is no room.
    pub fn copy_beginning(&mut self, from: &Self, len: usize) -> usize {
        let held = self.len();
        assert!(len <= from.len(), "{len} tokens of a cache of {}", from.len());
        if len > held && from.layers.iter().all(LayerCache::can_go_back) {
            for (to, from) in self.layers.iter_mut().zip(&from.layers) {
                let range = held..len;
                if let (Some(to), Some(from)) = (&mut to.keys, &from.keys) {
                    to.0.view_mut().into_rows(range.clone()).copy_from(from.0.view().rows(range.clone()));
                    to.1.view_mut().into_rows(range.clone()).copy_from(from.1.view().rows(range));
                }
                to.len = len;
            }
        }
        self.len()
    }

    /// Counts tokens that have passed through all layers.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.layers.iter_mut().for_each(|layer| layer.len += tokens);
    }

    /// How many tokens [`KvCache::truncate`] leaves.
    pub fn kept(&self, len: usize) -> usize {
        match len < self.len() {
            true if self.layers.iter().all(LayerCache::can_go_back) => len,
            true => 0,
            false => self.len(),
        }
    }

    /// Forgets all tokens from the `len`-th on; where convolutions or recurrences cannot go back to it, all tokens.
    /// Returns how many are left.
    pub fn truncate(&mut self, len: usize) -> usize {
        let kept = self.kept(len);
        if kept < self.len() {
            self.layers.iter_mut().for_each(|layer| if kept > 0 { layer.len = kept } else { layer.clear() });
        }
        kept
    }
}

/// The caches of the rows of a pass, at one layer.
#[derive(Debug)]
pub struct LayerCaches<'a> {
    /// One of each row.
    pub(crate) rows: &'a mut [KvCache],
    /// The layer.
    pub(crate) layer: usize,
}

impl LayerCaches<'_> {
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> LayerCaches<'_> {
        LayerCaches { rows: self.rows, layer: self.layer }
    }

    /// Calls `f` for what a sequence is carried through: with caches for each row that has tokens, with its own, else for
    /// all rows `starts[r]..starts[r + 1]` at once. `f` gets the tokens, the row boundaries among them, and the cache.
    pub fn each(
        caches: Option<LayerCaches<'_>>,
        starts: &[u32],
        mut f: impl FnMut(Range<usize>, &[u32], Option<&mut LayerCache>),
    ) {
        let Some(LayerCaches { rows, layer }) = caches else {
            return f(0..starts.last().map_or(0, |end| *end as usize), starts, None);
        };
        for (row, cache) in starts.windows(2).zip(rows).filter(|(row, _)| row[0] < row[1]) {
            let tokens = row[0] as usize..row[1] as usize;
            f(tokens, &[0, row[1] - row[0]], Some(&mut cache.layers[layer]));
        }
    }
}

/// What the last tokens of a row in a cache see of it.
#[derive(Debug)]
pub(crate) struct SeenInCache {
    q: Vec<u32>,
    k: Vec<u32>,
    /// No token sees a key before it.
    pub first_key: usize,
}

impl SeenInCache {
    /// Tokens `tokens` of a row, which see their own chunk of it alone, if it is cut into chunks of this size.
    pub fn new(chunk: Option<usize>, tokens: Range<usize>) -> Self {
        let size = chunk.unwrap_or(usize::MAX);
        let first_key = tokens.start / size * size;
        let (mut q, mut k, mut start) = (vec![0], vec![0], first_key);
        while start < tokens.end {
            start = tokens.end.min(start.saturating_add(size));
            q.push((start - tokens.start) as u32);
            k.push((start - first_key) as u32);
        }
        Self { q, k, first_key }
    }

    /// Boundaries of the tokens, and of the keys from the first one on.
    pub fn offsets(&self) -> RowOffsets<'_> {
        RowOffsets { q: &self.q, k: &self.k }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_behind_a_cache_see_all_of_it_or_their_own_chunk() {
        let seen = SeenInCache::new(None, 6..9);
        assert_eq!((&seen.q[..], &seen.k[..], seen.first_key), (&[0, 3][..], &[0, 9][..], 0));
        // The first two keys of the second chunk are in the cache.
        let seen = SeenInCache::new(Some(4), 6..9);
        assert_eq!((&seen.q[..], &seen.k[..], seen.first_key), (&[0, 2, 3][..], &[0, 4, 5][..], 4));
    }
}
