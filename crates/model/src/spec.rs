//! What a decoder is made of, as data: the families fill it in, everything else reads it.

use sft_kernels::gated::Activation;
use sft_kernels::rms_norm::RmsNormParams;
use sft_kernels::rope::RopeStyle;

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
    /// Positions of the layers with [`LayerRope::Local`].
    pub local_rope: Option<RopeSpec>,
    /// Multiplies the rows of the embedding.
    pub embedding_multiplier: f32,
    /// Multiplies the logits.
    pub logit_scale: f32,
    /// Logits become cap·tanh(logit/cap), after they are scaled.
    pub final_logit_softcapping: Option<f32>,
    /// Whether the head uses the embedding's weight.
    pub tie_word_embeddings: bool,
    /// The longest row that the model was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f32,
}

/// One block: attention, then a feed-forward layer, each between norms and added to its input.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Attention.
    pub attention: AttentionSpec,
    /// Norms around it.
    pub attention_norms: NormNames,
    /// Feed-forward layer.
    pub mlp: MlpSpec,
    /// Norms around it.
    pub mlp_norms: NormNames,
    /// Multiplies what either of the two adds to its input.
    pub residual_multiplier: f32,
}

/// The norms around a layer of a block, by the names of their modules; `None` where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormNames {
    /// Of the layer's input.
    pub before: Option<&'static str>,
    /// Of the layer's output, before it is added.
    pub after: Option<&'static str>,
}

impl NormNames {
    /// A norm of the input alone.
    pub const fn before(name: &'static str) -> Self {
        Self { before: Some(name), after: None }
    }

    /// A norm of the output alone.
    pub const fn after(name: &'static str) -> Self {
        Self { before: None, after: Some(name) }
    }

    /// Both.
    pub const fn around(before: &'static str, after: &'static str) -> Self {
        Self { before: Some(before), after: Some(after) }
    }

    /// The names that are there.
    pub fn iter(self) -> impl Iterator<Item = &'static str> {
        [self.before, self.after].into_iter().flatten()
    }
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
    /// Norm of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Which positions queries and keys are rotated by.
    pub rope: LayerRope,
    /// Multiplies q·k.
    pub scale: f32,
    /// Scores become cap·tanh(score/cap).
    pub softcap: Option<f32>,
    /// Sliding window, in keys.
    pub window: Option<usize>,
}

/// Norm of queries and of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkNorm {
    /// Names of the two modules.
    pub names: [&'static str; 2],
    /// Over all heads of a token at once, rather than each on its own.
    pub all_heads: bool,
    /// After the rotation rather than before it.
    pub after_rope: bool,
}

impl QkNorm {
    /// `q_norm` and `k_norm` of each head, before the rotation.
    pub const PER_HEAD: Self = Self { names: ["q_norm", "k_norm"], all_heads: false, after_rope: false };
}

/// Which positions a layer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerRope {
    /// None: the order of tokens shows in the causal mask alone.
    None,
    /// [`DecoderSpec::rope`].
    Global,
    /// [`DecoderSpec::local_rope`].
    Local,
}

/// down_proj(act(gate_proj(x)) · up_proj(x)), or down_proj(act(up_proj(x))).
#[derive(Debug, Clone, PartialEq)]
pub struct MlpSpec {
    /// F.
    pub intermediate_size: usize,
    /// Whether there is a gate.
    pub gated: bool,
    /// On the gate, or on what there is without one.
    pub activation: Activation,
    /// Whether the projections have biases.
    pub bias: bool,
}

impl LayerSpec {
    /// The linear layers by their names inside the block, in the model's order.
    pub fn linear_names(&self) -> impl Iterator<Item = &'static str> {
        const ATTENTION: [&str; 4] =
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let gate = self.mlp.gated.then_some("mlp.gate_proj");
        ATTENTION.into_iter().chain(gate).chain(["mlp.up_proj", "mlp.down_proj"])
    }

    /// Whether something happens to what a layer puts out before it is added.
    pub fn changes_outputs(&self) -> bool {
        self.residual_multiplier != 1.0
            || self.attention_norms.after.is_some()
            || self.mlp_norms.after.is_some()
    }
}

/// Rotary positions (Su et al., 2021) with the frequencies of one of the scaling rules.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How many of the D dimensions of a head are rotated.
    pub rotary_dim: usize,
    /// Which two of them form a pair.
    pub style: RopeStyle,
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
