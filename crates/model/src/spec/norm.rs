//! Norms as data: what they compute, where they stand, and those of queries and keys.

use crate::parameter::Stored;

/// A norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// What is computed.
    pub kind: NormKind,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// Added to the weight: 1 where weights are stored as distance from 1.
    pub offset: f32,
    /// Whether there is a weight.
    pub weight: bool,
    /// Whether there is a bias; no RMS norm has one.
    pub bias: bool,
}

/// What a norm computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Rows divided by their root mean square.
    Rms,
    /// Rows with their mean taken off, divided by their standard deviation.
    Layer,
}

impl NormSpec {
    /// RMS norm with a weight.
    pub const fn rms(eps: f32) -> Self {
        Self { kind: NormKind::Rms, eps, offset: 0.0, weight: true, bias: false }
    }

    /// Layer norm with weight and bias.
    pub const fn layer(eps: f32) -> Self {
        Self { kind: NormKind::Layer, eps, offset: 0.0, weight: true, bias: true }
    }
}

/// The norms around a layer of a block, by the names of their modules; `None` where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormNames {
    /// Of the layer's input.
    pub before: Option<&'static str>,
    /// Of the layer's output, before it is added.
    pub after: Option<&'static str>,
    /// Of the sum.
    pub of_sum: Option<&'static str>,
}

impl NormNames {
    /// No norm.
    pub const NONE: Self = Self { before: None, after: None, of_sum: None };

    /// A norm of the input alone.
    pub const fn before(name: &'static str) -> Self {
        Self { before: Some(name), ..Self::NONE }
    }

    /// A norm of the output alone.
    pub const fn after(name: &'static str) -> Self {
        Self { after: Some(name), ..Self::NONE }
    }

    /// Both.
    pub const fn around(before: &'static str, after: &'static str) -> Self {
        Self { before: Some(before), after: Some(after), ..Self::NONE }
    }

    /// A norm of the sum of input and output.
    pub const fn of_sum(name: &'static str) -> Self {
        Self { of_sum: Some(name), ..Self::NONE }
    }

    /// The names that are there.
    pub fn iter(self) -> impl Iterator<Item = &'static str> {
        [self.before, self.after, self.of_sum].into_iter().flatten()
    }
}

/// Norm of queries and of keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNorm {
    /// Names of the two modules inside the block.
    pub names: [&'static str; 2],
    /// What it is, where it is not [`super::DecoderSpec::norm`].
    pub norm: Option<NormSpec>,
    /// What is a row.
    pub scope: QkScope,
    /// After the rotation rather than before it.
    pub after_rope: bool,
}

/// What a norm of queries or keys takes for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkScope {
    /// A head, all by one weight [D].
    Head,
    /// A head, each by a weight of its own: [H, D], in files as it is said here.
    EachHead(Stored),
    /// All heads of a token at once: a weight [H·D].
    AllHeads,
}

impl QkNorm {
    /// `q_norm` and `k_norm` of each head, before the rotation.
    pub const PER_HEAD: Self = Self {
        names: ["self_attn.q_norm", "self_attn.k_norm"],
        norm: None,
        scope: QkScope::Head,
        after_rope: false,
    };

    /// The same under other names.
    pub const fn named(names: [&'static str; 2]) -> Self {
        Self { names, ..Self::PER_HEAD }
    }
}
