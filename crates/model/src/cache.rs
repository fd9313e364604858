//! Keys and values of the tokens that a conversation has had so far.

use sft_kernels::{DType, Device, Tensor, View};

use crate::spec::DecoderSpec;

/// The cache of one layer, for one row.
#[derive(Debug)]
pub struct LayerCache {
    k: Tensor,
    v: Tensor,
    len: usize,
}

impl LayerCache {
    /// Appends keys and values [N, K, D]; returns all.
    ///
    /// # Panics
    /// If there is no room: callers ask [`KvCache::room`] first.
    pub fn append(&mut self, k: View<'_>, v: View<'_>) -> (View<'_>, View<'_>) {
        let range = self.len..self.len + k.dim(0);
        assert!(range.end <= self.k.shape()[0], "the key/value cache has room for {}", self.k.shape()[0]);
        self.k.view_mut().into_rows(range.clone()).copy_from(k);
        self.v.view_mut().into_rows(range.clone()).copy_from(v);
        self.len = range.end;
        (self.k.head(self.len), self.v.head(self.len))
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
        let layer = |layer: &crate::spec::LayerSpec| {
            let shape = [capacity, layer.attention.kv_heads, layer.attention.head_dim];
            LayerCache { k: dev.zeros(dtype, &shape), v: dev.zeros(dtype, &shape), len: 0 }
        };
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

    /// Forgets all tokens from the `len`-th on.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.len = layer.len.min(len));
    }
}
