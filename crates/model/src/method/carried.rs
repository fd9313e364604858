//! Which linear layers carry adapters, as far as buffers depend on them.

use std::collections::BTreeMap;

use crate::spec::DecoderSpec;

/// The adapters of every block, all of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapters {
    /// One for each block.
    pub layers: Vec<LayerAdapters>,
    /// Of the linear layers outside of the blocks, by full names.
    pub outside: LayerAdapters,
    dropout: bool,
}

impl Adapters {
    /// No adapters.
    pub fn none(spec: &DecoderSpec) -> Self {
        Self::of(vec![LayerAdapters::default(); spec.layers.len()], false)
    }

    /// These adapters, one entry for each block.
    pub fn of(layers: Vec<LayerAdapters>, dropout: bool) -> Self {
        Self { layers, outside: LayerAdapters::default(), dropout }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.largest().is_none()
    }

    /// What holds every adapter of the model: for buffers that all layers share.
    pub fn largest(&self) -> Option<Carried> {
        let all = self.layers.iter().chain([&self.outside]).flat_map(|layer| layer.carried.values());
        all.copied().reduce(Carried::or)
    }

    /// What holds the adapters on each linear layer of all blocks: for buffers that blocks share.
    pub fn merged(&self) -> LayerAdapters {
        let mut carried = BTreeMap::new();
        for (name, one) in self.layers.iter().flat_map(|layer| &layer.carried) {
            let largest = carried.entry(name.clone()).or_insert(*one);
            *largest = largest.or(*one);
        }
        LayerAdapters { carried }
    }

    /// Whether their inputs are dropped in training.
    pub fn has_dropout(&self) -> bool {
        self.dropout
    }
}

/// The adapter on a linear layer, as far as buffers depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Low-rank matrices.
    LowRank(LowRank),
    /// Rotations of the input.
    Rotated(Rotated),
}

/// Low-rank matrices beside a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowRank {
    /// R.
    pub rank: usize,
    /// Width of the layer's output.
    pub outputs: usize,
    /// Whether the rows of the layer's weight have magnitudes of their own.
    pub dora: bool,
}

/// Rotations of what a layer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// Width of a block.
    pub block_size: usize,
    /// Width of the layer's input.
    pub inputs: usize,
}

impl Carried {
    /// What holds either of two of one kind.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Carried::LowRank(a), Carried::LowRank(b)) => Carried::LowRank(LowRank {
                rank: a.rank.max(b.rank),
                outputs: a.outputs.max(b.outputs),
                dora: a.dora || b.dora,
            }),
            (Carried::Rotated(a), Carried::Rotated(b)) => Carried::Rotated(Rotated {
                block_size: a.block_size.max(b.block_size),
                inputs: a.inputs.max(b.inputs),
            }),
            (one, _) => one,
        }
    }

    /// The low-rank matrices, if it is such.
    pub fn low_rank(self) -> Option<LowRank> {
        if let Carried::LowRank(low_rank) = self { Some(low_rank) } else { None }
    }

    /// The rotations, if it is such.
    pub fn rotated(self) -> Option<Rotated> {
        if let Carried::Rotated(rotated) = self { Some(rotated) } else { None }
    }
}

/// The adapters of one block, by the linear layer's name inside it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerAdapters {
    /// What each carries, by name.
    pub carried: BTreeMap<String, Carried>,
}

impl LayerAdapters {
    /// What a linear layer carries.
    pub fn carried_by(&self, module: &str) -> Option<Carried> {
        self.carried.get(module).copied()
    }
}
