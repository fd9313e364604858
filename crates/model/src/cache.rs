//! What a conversation's tokens so far leave for the next one: keys and values of attention, the last inputs of
//! convolutions, the states of recurrences.

use sft_kernels::{DType, Device, Tensor, View, ViewMut};

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
    fn new(dev: &Device, spec: &DecoderSpec, layer: &LayerSpec, dtype: DType, capacity: usize) -> Self {
        let keys = layer.attends().map(|attention| {
            let shape = [capacity, attention.kv_heads, attention.head_dim];
            (dev.zeros(dtype, &shape), dev.zeros(dtype, &shape))
        });
        let (taps, widths) = match (&layer.mixer, layer.mixer.recurrent()) {
            (MixerSpec::ShortConv(conv), _) => (conv.taps, vec![spec.hidden_size]),
            (_, Some(recurrent)) => (recurrent.taps, recurrent.conv_widths().to_vec()),
            _ => (1, Vec::new()),
        };
        let history = |width: &usize| [(); 2].map(|()| dev.zeros(dtype, &[taps - 1, *width]));
        let state =
            layer.mixer.recurrent().map(|r| dev.zeros(DType::F32, &[r.heads, r.key_dim, r.value_dim]));
        Self { keys, histories: widths.iter().map(history).collect(), state, len: 0 }
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
    /// Room for `capacity` tokens.
    pub fn new(dev: &Device, spec: &DecoderSpec, dtype: DType, capacity: usize) -> Self {
        let layer = |layer| LayerCache::new(dev, spec, layer, dtype, capacity);
        Self { layers: spec.layers.iter().map(layer).collect(), capacity }
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

    /// Counts tokens that have passed through all layers.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.layers.iter_mut().for_each(|layer| layer.len += tokens);
    }

    /// Forgets all tokens from the `len`-th on; where convolutions or recurrences cannot go back to it, all tokens.
    /// Returns how many are left.
    pub fn truncate(&mut self, len: usize) -> usize {
        if len < self.len() {
            let goes_back = self.layers.iter().all(LayerCache::can_go_back);
            for layer in &mut self.layers {
                if goes_back { layer.len = len } else { layer.clear() }
            }
        }
        self.len()
    }
}
