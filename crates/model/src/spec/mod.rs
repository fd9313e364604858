//! What a decoder is made of, as data: the families fill it in, everything else reads it.

use sft_kernels::gated::Activation;

use crate::ModelError;
use crate::new_rows::NewRows;
use crate::parameter::Stored;

mod latent;
mod mixer;
mod moe;
mod norm;
mod rope;

pub use latent::{LatentQueries, LatentSpec};
pub use mixer::{GateSpec, MixerSpec, Part, Projection, RecurrentSpec, RuleSpec, ShortConvSpec};
pub use moe::{Correction, ExpertNames, MoeSpec, RouterSpec};
pub use norm::{NormKind, NormNames, NormSpec, QkNorm, QkScope};
pub use rope::{RopeScaling, RopeSpec};

/// A decoder-only model.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Hugging Face's `model_type`.
    pub model_type: String,
    /// V: rows of the embedding.
    pub vocab_size: usize,
    /// Rows of the embedding and of the head that the model's files do not have.
    pub new_rows: Option<NewRows>,
    /// C.
    pub hidden_size: usize,
    /// The blocks in order; L of them.
    pub layers: Vec<LayerSpec>,
    /// Names of the modules outside of the blocks.
    pub names: ModuleNames,
    /// How the weights of the blocks' linear layers lie in files.
    pub linear_weights: Stored,
    /// Every norm, but for those of queries and keys that say otherwise.
    pub norm: NormSpec,
    /// Rotary positions.
    pub rope: Option<RopeSpec>,
    /// Rotary positions of the layers with [`LayerRope::Local`].
    pub local_rope: Option<RopeSpec>,
    /// Queries grow with their position.
    pub query_growth: Option<QueryGrowth>,
    /// Learned positions, added to the embedding.
    pub positions: Option<PositionsSpec>,
    /// The name of a norm of the embedding's rows.
    pub embedding_norm: Option<&'static str>,
    /// Inputs of their own for all blocks.
    pub per_layer: Option<PerLayerSpec>,
    /// Where the embedding and the head are not of width C: linear layers from their width to C and back.
    pub embedding_projection: Option<EmbeddingProjection>,
    /// Multiplies the rows of the embedding.
    pub embedding_multiplier: f32,
    /// Multiplies the logits.
    pub logit_scale: f32,
    /// Logits become cap·tanh(logit/cap), after they are scaled.
    pub final_logit_softcapping: Option<f32>,
    /// Whether the head uses the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Whether the head has a bias.
    pub head_bias: bool,
    /// Whether the head's rows have length 1, whatever they have in files (Baichuan 2's `NormHead`). Such a head is
    /// never trained.
    pub normalised_head: bool,
    /// Other names that the weights can have in files.
    pub moved: &'static [Moved],
    /// The longest row that the model was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f32,
    /// What the auxiliary loss of balance among experts is multiplied by; 0 for none.
    pub moe_aux_loss_coef: f32,
}

/// Weights whose names begin with `own`, in files that begin them with `files` instead: of a model with other parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// In the model.
    pub own: &'static str,
    /// In files.
    pub files: &'static str,
}

/// Names of the modules outside of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModuleNames {
    /// The embedding.
    pub embed_tokens: &'static str,
    /// The list of blocks.
    pub layers: &'static str,
    /// The final norm, if there is one.
    pub norm: Option<&'static str>,
    /// The head.
    pub lm_head: &'static str,
}

impl ModuleNames {
    /// Those of most families.
    pub const LLAMA: Self = Self {
        embed_tokens: "model.embed_tokens",
        layers: "model.layers",
        norm: Some("model.norm"),
        lm_head: "lm_head",
    };

    /// Name of the embedding's weight.
    pub fn embedding(&self) -> String {
        format!("{}.weight", self.embed_tokens)
    }

    /// Name of the head's weight.
    pub fn head(&self) -> String {
        format!("{}.weight", self.lm_head)
    }

    /// Full name of a module of a block.
    pub fn in_block(&self, block: usize, module: &str) -> String {
        format!("{}.{block}.{module}", self.layers)
    }
}

/// Learned positions: row position + offset of an embedding of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionsSpec {
    /// The embedding.
    pub name: &'static str,
    /// Its rows.
    pub rows: usize,
    /// Rows before that of position 0.
    pub offset: usize,
}

/// Queries at position p multiplied by 1 + beta·ln(1 + ⌊(p + offset) / span⌋) (Llama 4), in the layers that say so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// How fast they grow.
    pub beta: f64,
    /// Positions up to which nothing changes.
    pub span: usize,
    /// What the first position counts as.
    pub offset: usize,
}

/// Linear layers between the width of the embedding and C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingProjection {
    /// Width of the embedding.
    pub width: usize,
    /// [C, width], behind the embedding.
    pub into: &'static str,
    /// [width, C], before the head.
    pub out_of: &'static str,
}

/// Inputs of their own for every block (Gemma 3n): P numbers a token, from an embedding and a projection of the blocks'
/// first input, which a third layer of each block multiplies its gate by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerLayerSpec {
    /// P.
    pub width: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The embedding, [vocab_size, L·P].
    pub embedding: &'static str,
    /// The projection, [L·P, C].
    pub projection: &'static str,
    /// The norm of what it puts out.
    pub norm: &'static str,
    /// In each block, from C to P.
    pub gate: &'static str,
    /// In each block, from P to C.
    pub output: &'static str,
    /// In each block, the norm of that.
    pub output_norm: &'static str,
}

/// One block: attention or another mixer of tokens, then a feed-forward layer, each between norms and added to its input.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// What mixes tokens.
    pub mixer: MixerSpec,
    /// Attention, where `mixer` has it.
    pub attention: AttentionSpec,
    /// Norms around the mixer.
    pub attention_norms: NormNames,
    /// Whether there is a second layer: a feed-forward layer or experts.
    pub has_mlp: bool,
    /// Feed-forward layer; in a block with experts the one that all tokens go to, if [`MoeSpec::shared`].
    pub mlp: MlpSpec,
    /// Experts in its place, or beside it.
    pub moe: Option<MoeSpec>,
    /// Norms around it.
    pub mlp_norms: NormNames,
    /// Both layers read the block's input; where `mlp_norms` has no norm before, both read the same norm's output.
    pub parallel: bool,
    /// Multiplies what either of the two adds to its input.
    pub residual_multiplier: f32,
    /// A third layer behind them.
    pub per_layer: Option<PerLayerSpec>,
    /// The name of a number, stored and never trained, that multiplies the block's output.
    pub output_scalar: Option<&'static str>,
}

/// The linear layers that read a layer's input, by their names inside the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputNames {
    /// One for each output.
    Each(&'static [&'static str]),
    /// One for all outputs, which lie side by side in its own, in as many groups: with as many as key/value heads,
    /// each head's queries, its keys and its values follow each other.
    Fused {
        /// Its name.
        name: &'static str,
        /// Number of groups.
        groups: usize,
    },
}

impl InputNames {
    /// `q_proj`, `k_proj` and `v_proj`.
    pub const QKV: Self = Self::Each(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
    /// `gate_proj` and `up_proj`.
    pub const GATE_UP: Self = Self::Each(&["mlp.gate_proj", "mlp.up_proj"]);

    /// The names in order.
    pub fn names(&self) -> &[&'static str] {
        match self {
            Self::Each(names) => names,
            Self::Fused { name, .. } => std::slice::from_ref(name),
        }
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
    /// What makes queries, keys and values.
    pub inputs: InputNames,
    /// Whether that has biases.
    pub qkv_bias: bool,
    /// The output's linear layer.
    pub output: &'static str,
    /// Whether it has a bias.
    pub o_bias: bool,
    /// Whether the queries' linear layer makes of each head a gate as well, behind its queries: what goes into the
    /// output's linear layer is multiplied by the gate's sigmoid.
    pub output_gate: bool,
    /// Norm of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Whether the values of each head are normalised, by a norm without a weight.
    pub v_norm: bool,
    /// Which positions queries and keys are rotated by.
    pub rope: LayerRope,
    /// Multiplies q·k.
    pub scale: f32,
    /// Scores become cap·tanh(score/cap).
    pub softcap: Option<f32>,
    /// Sliding window, in keys.
    pub window: Option<usize>,
    /// What a score loses for each key between query and key, one a head (ALiBi: Press et al., 2021).
    pub alibi: Option<Vec<f32>>,
    /// Queries, keys and values from narrow ones, in place of `inputs`.
    pub latent: Option<LatentSpec>,
    /// The name of numbers, one a head, that join every softmax of it without a value.
    pub sinks: Option<&'static str>,
    /// Positions in chunks of so many: a query sees the keys of its own chunk alone.
    pub chunk: Option<usize>,
    /// Whether [`DecoderSpec::query_growth`] is this layer's.
    pub grows: bool,
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
    /// What makes gate and up, or up alone.
    pub inputs: InputNames,
    /// Whether there is a gate.
    pub gated: bool,
    /// On the gate, or on what there is without one.
    pub activation: ActivationSpec,
    /// The output's linear layer.
    pub output: &'static str,
    /// Whether the linear layers have biases.
    pub bias: bool,
    /// Multiplies the gate before its activation.
    pub gate_multiplier: f32,
    /// Multiplies what goes into the output's linear layer.
    pub inner_multiplier: f32,
}

impl MlpSpec {
    /// Makes it one without a gate, with these linear layers.
    pub fn without_gate(&mut self, input: &'static [&'static str; 1], output: &'static str) {
        (self.gated, self.inputs, self.output) = (false, InputNames::Each(input), output);
    }
}

/// The activation of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationSpec {
    /// A function.
    Fixed(Activation),
    /// xIELU, with numbers that are trained, under the name of its module.
    Xielu(&'static str),
}

impl LayerSpec {
    /// Attention, if the block has it.
    pub fn attends(&self) -> Option<&AttentionSpec> {
        matches!(self.mixer, MixerSpec::Attention | MixerSpec::Both { .. }).then_some(&self.attention)
    }

    /// The feed-forward layer that all tokens go through, if there is one.
    pub fn dense(&self) -> Option<&MlpSpec> {
        let is_there = self.has_mlp && self.moe.as_ref().is_none_or(|moe| moe.shared);
        is_there.then_some(&self.mlp)
    }

    /// The linear layers by their names inside the block, in the model's order.
    pub fn linear_names(&self) -> impl Iterator<Item = &'static str> {
        let attention = self.attends().into_iter().flat_map(|attention| {
            let latent = attention.latent.iter().flat_map(LatentSpec::linear_names);
            attention.inputs.names().iter().copied().chain(latent).chain([attention.output])
        });
        let short_conv = match self.mixer {
            MixerSpec::ShortConv(conv) => Some([conv.input, conv.output]),
            _ => None,
        };
        let recurrent = self.mixer.recurrent().into_iter().flat_map(RecurrentSpec::linear_names);
        let mixer = attention.chain(short_conv.into_iter().flatten()).chain(recurrent);
        let per_layer = self.per_layer.iter().flat_map(|layer| [layer.gate, layer.output]);
        let mlp = self.dense().into_iter();
        let mlp = mlp.flat_map(|mlp| mlp.inputs.names().iter().copied().chain([mlp.output]));
        let moe = self.moe.iter().flat_map(MoeSpec::linear_names);
        mixer.chain(mlp).chain(moe).chain(per_layer)
    }

    /// Whether what this block saves and needs for scratch has the same shapes as another's.
    pub fn is_shaped_as(&self, other: &Self) -> bool {
        let shape = |layer: &Self| {
            let attention = layer.attends().map(|a| {
                let AttentionSpec { heads, kv_heads, head_dim, qk_norm, v_norm, output_gate, latent, .. } =
                    *a;
                (heads, kv_heads, head_dim, qk_norm, v_norm, output_gate, latent)
            });
            let mlp = layer.dense().map(|mlp| (mlp.intermediate_size, mlp.gated));
            (attention, mlp, layer.linear_names().collect::<Vec<_>>())
        };
        let norms = |layer: &Self| (layer.attention_norms, layer.mlp_norms, layer.parallel);
        let experts = match (&self.moe, &other.moe) {
            (Some(one), Some(other)) => one.is_shaped_as(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        shape(self) == shape(other) && self.mixer == other.mixer && norms(self) == norms(other) && experts
    }

    /// Whether something happens to what a layer puts out before it is added.
    pub fn changes_outputs(&self) -> bool {
        let norms = [self.attention_norms, self.mlp_norms];
        self.residual_multiplier != 1.0
            || norms.iter().any(|norms| norms.after.is_some() || norms.of_sum.is_some())
    }
}

impl DecoderSpec {
    /// Whether any block has experts.
    pub fn has_experts(&self) -> bool {
        self.layers.iter().any(|layer| layer.moe.is_some())
    }

    /// Gives embedding and head so many rows, those that the files do not have made by `new`.
    ///
    /// # Errors
    /// A model with a table of tokens for each block.
    pub fn resize_vocab(&mut self, rows: usize, new: NewRows) -> Result<(), ModelError> {
        if self.per_layer.is_some() {
            return Err(ModelError::Method {
                key: "resize_vocab",
                reason: format!("a {} model looks tokens up in every block", self.model_type),
                help: "use tokens that the vocabulary has and that no text uses, such as `<unused0>`".into(),
            });
        }
        self.vocab_size = rows;
        self.new_rows = Some(new);
        Ok(())
    }

    /// Whether rows can share what they begin with: whether a token takes what it does from those before it through attention
    /// over all of them alone, and does not depend on how long its row is.
    pub fn shares_prefixes(&self) -> bool {
        let sees_all = |layer: &LayerSpec| {
            matches!(layer.mixer, MixerSpec::Attention) && layer.attention.chunk.is_none()
        };
        let mut ropes = self.rope.iter().chain(&self.local_rope);
        self.layers.iter().all(sees_all) && !ropes.any(|rope| rope.scaling.depends_on_length())
    }

    /// Makes room for rows of `length` tokens as LLaMA-Factory's `rope_scaling` does: where the model was made for
    /// fewer, positions are scaled by the next whole factor. Returns whether anything changed.
    pub fn enlarge(&mut self, length: usize, rule: fn(factor: f64, original: usize) -> RopeScaling) -> bool {
        let original = self.max_position_embeddings;
        let Some(rope) = &mut self.rope else { return false };
        if length <= original {
            return false;
        }
        rope.scaling = rule(length.div_ceil(original) as f64, original);
        self.max_position_embeddings = length;
        true
    }
}
