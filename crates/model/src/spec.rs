//! What a decoder is made of, as data: the families fill it in, everything else reads it.

use sft_kernels::gated::Activation;
use sft_kernels::rms_norm::RmsNormParams;

/// A decoder-only model.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Hugging Face's `model_type`.
    pub model_type: String,
    /// V: rows of the embedding.
    pub vocab_size: usize,
    /// C.
    pub hidden_size: usize,
    /// The blocks in order; L of them.
    pub layers: Vec<LayerSpec>,
    /// Constants of every norm.
    pub norm: RmsNormParams,
    /// Positions.
    pub rope: RopeSpec,
    /// Whether the head uses the embedding's weight.
    pub tie_word_embeddings: bool,
    /// The longest row that the model was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f32,
}

/// One block: attention, then a gated feed-forward layer, each behind a norm and added to its input.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Attention.
    pub attention: AttentionSpec,
    /// Feed-forward layer.
    pub mlp: MlpSpec,
}

/// Grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// H.
    pub heads: usize,
    /// K; H is a multiple of it.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Whether `q_proj`, `k_proj` and `v_proj` have biases.
    pub qkv_bias: bool,
    /// Whether `o_proj` has a bias.
    pub o_bias: bool,
    /// Whether queries and keys are normalised per head.
    pub qk_norm: bool,
    /// Sliding window, in keys.
    pub window: Option<usize>,
}

/// down_proj(act(gate_proj(x)) · up_proj(x)).
#[derive(Debug, Clone, PartialEq)]
pub struct MlpSpec {
    /// F.
    pub intermediate_size: usize,
    /// On the gate.
    pub activation: Activation,
    /// Whether the three projections have biases.
    pub bias: bool,
}

/// Rotary positions (Su et al., 2021) with the frequencies of one of the scaling rules.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How many of the D dimensions of a head are rotated.
    pub rotary_dim: usize,
    /// How frequencies are changed for rows longer than the model was made for.
    pub scaling: RopeScaling,
}

/// Rules for rows longer than the model was made for; names as in Hugging Face's `rope_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
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

impl DecoderSpec {
    /// Makes room for rows of `length` tokens as LLaMA-Factory's `rope_scaling` does: where the model was made for
    /// fewer, positions are scaled by the next whole factor. Returns whether anything changed.
    pub fn enlarge(&mut self, length: usize, rule: fn(factor: f64, original: usize) -> RopeScaling) -> bool {
        let original = self.max_position_embeddings;
        if length <= original {
            return false;
        }
        self.rope.scaling = rule(length.div_ceil(original) as f64, original);
        self.max_position_embeddings = length;
        true
    }
}
