//! Token mixers as data: what stands in a block where most families have attention.

/// What mixes the tokens of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerSpec {
    /// [`super::LayerSpec::attention`].
    Attention,
    /// A gated convolution over a few tokens.
    ShortConv(ShortConvSpec),
    /// A linear recurrence.
    Recurrent(RecurrentSpec),
    /// Attention and a recurrence, whose outputs are added.
    Both {
        /// The recurrence.
        recurrent: RecurrentSpec,
        /// Multiplies what attention puts out.
        attention_multiplier: f32,
        /// Multiplies what the recurrence puts out.
        recurrent_multiplier: f32,
    },
}

impl MixerSpec {
    /// The recurrence, alone or beside attention.
    pub fn recurrent(&self) -> Option<&RecurrentSpec> {
        match self {
            Self::Recurrent(recurrent) | Self::Both { recurrent, .. } => Some(recurrent),
            Self::Attention | Self::ShortConv(_) => None,
        }
    }

    /// Names of the modules with weights that are not linear layers, those of attention apart.
    pub fn other_modules(&self) -> impl Iterator<Item = &'static str> {
        let conv = if let Self::ShortConv(conv) = self { Some(conv.conv) } else { None };
        let recurrent = self.recurrent().into_iter();
        conv.into_iter().chain(recurrent.flat_map(|r| [Some(r.conv), r.gate.norm()].into_iter().flatten()))
    }
}

/// output(C · conv(B · x)) with B, C and x by one linear layer (LFM2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortConvSpec {
    /// To B, C and x, each as wide as the block.
    pub input: &'static str,
    /// The convolution.
    pub conv: &'static str,
    /// The output's linear layer.
    pub output: &'static str,
    /// W: tokens that the convolution sees, its own included.
    pub taps: usize,
    /// Whether all three have biases.
    pub bias: bool,
}

/// A linear recurrence with a state [D, E] for each head: Mamba-2's state space, or the gated delta rule.
///
/// > q, k, v = silu(conv(projections of x)), out = output(gate(recurrence(q, k, v, step, decay), z))
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentSpec {
    /// What is added to the state.
    pub rule: RuleSpec,
    /// K: heads of queries and keys (B and C of a state space).
    pub key_heads: usize,
    /// H: heads of values, a multiple of K.
    pub heads: usize,
    /// D.
    pub key_dim: usize,
    /// E.
    pub value_dim: usize,
    /// The linear layers that read x, and what each puts out.
    pub inputs: &'static [Projection],
    /// Whether they have biases.
    pub input_bias: bool,
    /// What q, k, v, z and a (in the order of [`Part`]) are multiplied by as they come out of the linear layers.
    pub multipliers: [f32; 6],
    /// The convolution, of channels in the order of `conv_order`.
    pub conv: &'static str,
    /// In which order q, k and v are the convolution's channels.
    pub conv_order: [Part; 3],
    /// W: tokens that it sees.
    pub taps: usize,
    /// Whether it has a bias.
    pub conv_bias: bool,
    /// A of [`sft_kernels::decay`], one number a head.
    pub a_log: &'static str,
    /// The bias beside it.
    pub dt_bias: &'static str,
    /// How z gates the output.
    pub gate: GateSpec,
    /// The output's linear layer.
    pub output: &'static str,
    /// Whether it has a bias.
    pub output_bias: bool,
}

/// A linear layer of a recurrence's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    /// Its name, or several, one for each part.
    pub names: &'static [&'static str],
    /// What it puts out.
    pub parts: &'static [Part],
    /// Whether one layer's output has as many groups of the parts as there are key heads, instead of one.
    pub by_key_head: bool,
}

/// What linear layers make for a recurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Queries, [K, D].
    Q,
    /// Keys, [K, D].
    K,
    /// Values, [H, E].
    V,
    /// The gate of the output, [H, E].
    Z,
    /// The step before its sigmoid, [H].
    B,
    /// What the decay depends on, [H].
    A,
}

/// What is added to a recurrence's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleSpec {
    /// The gated delta rule, with queries and keys of length 1.
    Delta,
    /// A state space; the name of what multiplies the values that are added to the output, one number a head.
    StateSpace {
        /// D in Mamba's words.
        skip: &'static str,
    },
}

/// How the gate z and a norm make the output of a recurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateSpec {
    /// x·silu(z).
    Plain,
    /// norm(x of each head)·silu(z), with a weight [E] under this name.
    NormOfHeads(&'static str),
    /// norm(x)·silu(z), with a weight [H·E].
    NormFirst(&'static str),
    /// norm(x·silu(z)), with a weight [H·E].
    NormLast(&'static str),
}

impl GateSpec {
    /// The norm's name.
    pub fn norm(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::NormOfHeads(name) | Self::NormFirst(name) | Self::NormLast(name) => Some(name),
        }
    }
}

impl RecurrentSpec {
    /// Width of a part of a token.
    pub fn width(&self, part: Part) -> usize {
        match part {
            Part::Q | Part::K => self.key_heads * self.key_dim,
            Part::V | Part::Z => self.heads * self.value_dim,
            Part::B | Part::A => self.heads,
        }
    }

    /// Channels of the convolution that are q's, k's and v's.
    pub fn conv_widths(&self) -> [usize; 3] {
        [Part::Q, Part::K, Part::V].map(|part| self.width(part))
    }

    /// Its linear layers by their names inside the block.
    pub fn linear_names(&self) -> impl Iterator<Item = &'static str> {
        self.inputs.iter().flat_map(|projection| projection.names).copied().chain([self.output])
    }
}
