//! Rotary positions as data: which dimensions turn, and how fast.

use sft_kernels::rope::RopeStyle;

/// Rotary positions (Su et al., 2021) with the frequencies of one of the scaling rules.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How many of the D dimensions of a head are rotated.
    pub rotary_dim: usize,
    /// Which two of them form a pair.
    pub style: RopeStyle,
    /// Whether pairs are turned the other way round.
    pub reversed: bool,
    /// How frequencies are changed for rows longer than the model was made for.
    pub scaling: RopeScaling,
}

/// Rules for rows longer than the model was made for; names as in Hugging Face's `rope_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// The first `pairs` of a head's pairs turn, by wavelengths as if all did, divided by `factor`.
    Proportional {
        /// How many turn.
        pairs: usize,
        /// How many times longer.
        factor: f64,
    },
    /// Positions divided by `factor`.
    Linear {
        /// How many times longer.
        factor: f64,
    },
    /// The base grows with the length of the row beyond `max_position_embeddings`.
    Dynamic {
        /// How many times longer.
        factor: f64,
        /// Length up to which nothing changes.
        max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., 2023).
    Yarn {
        /// How many times longer.
        factor: f64,
        /// Length that the model was first trained for.
        original_max_position_embeddings: usize,
        /// Rotations above which a dimension is left alone.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated fully.
        beta_slow: f64,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Whether the range of dimensions is rounded to whole ones.
        truncate: bool,
    },
    /// LongRoPE (Ding et al., 2024): wavelengths multiplied one by one.
    LongRope {
        /// For rows up to the original length, rotary_dim / 2 of them.
        short_factor: Vec<f64>,
        /// For longer rows.
        long_factor: Vec<f64>,
        /// Length that the model was first trained for.
        original_max_position_embeddings: usize,
        /// Multiplies cos and sin.
        attention_factor: f64,
    },
    /// The rule of Llama 3.1.
    Llama3 {
        /// How many times longer.
        factor: f64,
        /// Below this many wavelengths per original context: interpolated.
        low_freq_factor: f64,
        /// Above: left alone.
        high_freq_factor: f64,
        /// Length that the model was first trained for.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// Whether a position turns otherwise in a longer row.
    pub fn depends_on_length(&self) -> bool {
        matches!(self, Self::Dynamic { .. } | Self::LongRope { .. })
    }
}
