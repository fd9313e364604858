//! Settings of adapters, by kind.

use super::{Adapters, Carried, LayerAdapters, LowRank, Rotated, is_saved};
use crate::ModelError;
use crate::parameter::Stored;
use crate::spec::{DecoderSpec, LayerSpec, ModuleNames, RuleSpec};

/// Settings of the adapters on a model.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterOptions {
    /// Low-rank matrices.
    Lora(LoraOptions),
    /// Rotations.
    Oft(OftOptions),
}

/// Linear layers that are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every one but the head.
    All,
    /// Those whose names end so; none of them without a name.
    Named(Vec<String>),
}

impl Targets {
    /// The names, if only some are meant.
    pub fn names(&self) -> &[String] {
        match self {
            Targets::All => &[],
            Targets::Named(names) => names,
        }
    }

    /// Those of these names.
    pub fn named<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Targets::Named(names.into_iter().map(Into::into).collect())
    }
}

/// Settings of LoRA; names as in PEFT's `LoraConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// R.
    pub rank: usize,
    /// Scale is alpha / R (or alpha / √R).
    pub alpha: f64,
    /// Probability of dropping an element of an adapter's input.
    pub dropout: f32,
    /// The linear layers that carry adapters.
    pub targets: Targets,
    /// PEFT's `target_parameters`: ends of the names of other weights that do, those of experts and of routers.
    pub target_parameters: Vec<String>,
    /// Scale by √R (Kalajdzievski, 2023).
    pub use_rslora: bool,
    /// Magnitudes of their own for the rows of adapted weights (DoRA; Liu et al., 2024).
    pub use_dora: bool,
    /// What A and B begin as.
    pub init: LoraInit,
    /// PEFT's `modules_to_save`: modules trained whole (`embed_tokens`, `lm_head`, `norm`).
    pub modules_to_save: Vec<String>,
}

/// What the matrices of an adapter begin as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoraInit {
    /// A random, B zero.
    #[default]
    Random,
    /// The largest singular values of the weight, which are taken out of it (PiSSA; Meng et al., 2024).
    Pissa {
        /// Iterations of a fast decomposition; `None` for as many as a full one's result takes.
        iterations: Option<usize>,
    },
}

/// Settings of OFT; names as in PEFT's `OFTConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct OftOptions {
    /// How an input is cut into blocks.
    pub blocks: OftBlocks,
    /// Share of the blocks that stay as they are in a training pass.
    pub dropout: f32,
    /// The linear layers whose inputs are rotated.
    pub targets: Targets,
    /// PEFT's `modules_to_save`: modules trained whole (`embed_tokens`, `lm_head`, `norm`).
    pub modules_to_save: Vec<String>,
}

/// How OFT cuts an input into blocks of neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OftBlocks {
    /// Blocks of this width (`oft_block_size`).
    Size(usize),
    /// So many blocks (`oft_rank`, PEFT's `r`).
    Count(usize),
}

impl OftBlocks {
    /// Width of a block of an input of this width: PEFT takes the nearest number that divides it, the lower one of two.
    pub fn size_of(self, inputs: usize) -> usize {
        match self {
            OftBlocks::Size(size) => nearest_divisor(inputs, size),
            OftBlocks::Count(count) => inputs / nearest_divisor(inputs, count).max(1),
        }
    }
}

fn nearest_divisor(of: usize, wanted: usize) -> usize {
    if wanted >= of {
        return of;
    }
    let divides = |number: &usize| of.is_multiple_of(*number);
    let lower = (1..=wanted.max(1)).rev().find(divides).unwrap_or(1);
    let higher = (wanted.max(1)..=of).find(divides).unwrap_or(of);
    if wanted.abs_diff(lower) <= wanted.abs_diff(higher) { lower } else { higher }
}

impl AdapterOptions {
    /// The linear layers that carry adapters.
    pub fn targets(&self) -> &Targets {
        match self {
            AdapterOptions::Lora(options) => &options.targets,
            AdapterOptions::Oft(options) => &options.targets,
        }
    }

    /// Ends of the names of other weights that do.
    pub fn target_parameters(&self) -> &[String] {
        match self {
            AdapterOptions::Lora(options) => &options.target_parameters,
            AdapterOptions::Oft(_) => &[],
        }
    }

    /// Whether `all` means the layer of this name. PEFT puts no LoRA on what comes out of a state space, and refuses
    /// adapters that are there: the kernels that it runs read this weight themselves.
    pub fn suits(&self, spec: &DecoderSpec, path: &str) -> bool {
        let comes_out = |(i, layer): (usize, &LayerSpec)| {
            let recurrent = layer.mixer.recurrent();
            let state_space =
                recurrent.filter(|recurrent| matches!(recurrent.rule, RuleSpec::StateSpace { .. }));
            state_space.is_some_and(|recurrent| spec.names.in_block(i, recurrent.output) == path)
        };
        !matches!(self, AdapterOptions::Lora(_)) || !spec.layers.iter().enumerate().any(comes_out)
    }

    /// Whether an adapter begins as more singular values than a weight of this shape has.
    pub(super) fn begins_above(&self, [outputs, inputs]: [usize; 2]) -> bool {
        let AdapterOptions::Lora(LoraOptions { rank, init: LoraInit::Pissa { .. }, .. }) = self else {
            return false;
        };
        *rank > outputs.min(inputs)
    }

    /// The key that names them.
    pub fn target_key(&self) -> &'static str {
        match self {
            AdapterOptions::Lora(_) => "lora_target",
            AdapterOptions::Oft(_) => "oft_target",
        }
    }

    /// Modules trained whole.
    pub fn modules_to_save(&self) -> &[String] {
        match self {
            AdapterOptions::Lora(options) => &options.modules_to_save,
            AdapterOptions::Oft(options) => &options.modules_to_save,
        }
    }

    /// What is dropped in training, as a share.
    pub fn dropout(&self) -> f32 {
        match self {
            AdapterOptions::Lora(options) => options.dropout,
            AdapterOptions::Oft(options) => options.dropout,
        }
    }

    /// What a linear layer of these widths [out, in] carries.
    pub(super) fn carried(&self, [outputs, inputs]: [usize; 2]) -> Carried {
        match self {
            AdapterOptions::Lora(options) => {
                Carried::LowRank(LowRank { rank: options.rank, outputs, dora: options.use_dora })
            }
            AdapterOptions::Oft(options) => {
                Carried::Rotated(Rotated { block_size: options.blocks.size_of(inputs), inputs })
            }
        }
    }

    /// Refuses layers that the adapters do not fit.
    pub(super) fn check(&self, spec: &DecoderSpec, adapters: &Adapters) -> Result<(), ModelError> {
        match self {
            AdapterOptions::Lora(options) => {
                options.check_routers(spec, adapters)?;
                options.check_experts()
            }
            AdapterOptions::Oft(_) => check_rotations(spec, adapters),
        }
    }

    /// Whether `modules_to_save` takes the embedding or the head, which parts them where they are tied.
    pub(crate) fn separates_head(&self, names: &ModuleNames) -> bool {
        [names.embedding(), names.head()].iter().any(|weight| is_saved(self.modules_to_save(), weight))
    }
}

impl From<AdapterOptions> for super::Method {
    fn from(options: AdapterOptions) -> Self {
        match options {
            AdapterOptions::Lora(options) => Self::Lora(options),
            AdapterOptions::Oft(options) => Self::Oft(options),
        }
    }
}

impl From<LoraOptions> for AdapterOptions {
    fn from(options: LoraOptions) -> Self {
        Self::Lora(options)
    }
}

impl From<OftOptions> for AdapterOptions {
    fn from(options: OftOptions) -> Self {
        Self::Oft(options)
    }
}

/// Refuses layers that PEFT has no rotations for, and blocks in which nothing turns.
fn check_rotations(spec: &DecoderSpec, adapters: &Adapters) -> Result<(), ModelError> {
    let error = |key, reason, help: &str| Err(ModelError::Method { key, reason, help: help.into() });
    if spec.linear_weights == Stored::Transposed {
        let reason =
            "this model's linear layers are stored as [in, out], and PEFT has no OFT for such".into();
        return error("finetuning_type", reason, "use `finetuning_type: lora`");
    }
    let all = adapters.layers.iter().chain([&adapters.outside]).flat_map(|layer| &layer.carried);
    let mut rotated = all.filter_map(|(name, carried)| Some((name, carried.rotated()?)));
    match rotated.find(|(_, rotated)| rotated.block_size < 2) {
        None => Ok(()),
        Some((name, rotated)) => error(
            "oft_rank",
            format!(
                "the {} inputs of `{name}` would be blocks of one, in which nothing turns",
                rotated.inputs
            ),
            "choose fewer blocks, or an `oft_block_size` of at least 2",
        ),
    }
}

impl LoraOptions {
    /// What B·A·x is multiplied by.
    pub fn scale(&self, rank: usize) -> f32 {
        let rank = rank as f64;
        (self.alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Refuses what PEFT has not for weights that are no linear layers': it adds B·A to them, and so has no input of A.
    fn check_experts(&self) -> Result<(), ModelError> {
        let with = [
            (self.dropout > 0.0, "lora_dropout", "dropout"),
            (self.use_dora, "use_dora", "magnitudes"),
            (self.init != LoraInit::Random, "pissa_init", "start out of the weight"),
        ];
        let hit = with.into_iter().find(|(is_set, ..)| *is_set && !self.target_parameters.is_empty());
        hit.map_or(Ok(()), |(_, key, what)| {
            Err(ModelError::Method {
                key,
                reason: format!("adapters on `lora_target_parameters` have no {what}, here as in PEFT"),
                help: format!(
                    "leave `{key}` out, or `lora_target_parameters`; an adapter of experts that is trained further has it in \
                     its adapter_config.json"
                ),
            })
        })
    }

    /// Refuses magnitudes for routers: their outputs are float32, whatever the other layers compute in.
    fn check_routers(&self, spec: &DecoderSpec, adapters: &Adapters) -> Result<(), ModelError> {
        let routers = spec.layers.iter().filter_map(|layer| Some(layer.moe.as_ref()?.router.name));
        let with = |(router, layer): &(&str, &LayerAdapters)| layer.carried_by(router).is_some();
        let hit = routers.zip(&adapters.layers).find(with).filter(|_| self.use_dora);
        hit.map_or(Ok(()), |(router, _)| {
            Err(ModelError::Method {
                key: "use_dora",
                reason: format!("`{router}` chooses among experts, and a router has no magnitudes"),
                help: "name the other linear layers in `lora_target`, or leave `use_dora` out".into(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::OftBlocks;

    /// By PEFT 0.18's `OFTLayer.adjust_oft_parameters`.
    #[test]
    fn blocks_that_do_not_divide_an_input_become_the_nearest_that_do() {
        let size = |size, inputs| OftBlocks::Size(size).size_of(inputs);
        assert_eq!(
            [size(32, 64), size(32, 48), size(32, 36), size(7, 30), size(100, 64)],
            [32, 24, 36, 6, 64]
        );
        let count = |count, inputs| OftBlocks::Count(count).size_of(inputs);
        assert_eq!([count(8, 64), count(5, 64), count(64, 64), count(65, 64)], [8, 16, 1, 1]);
    }
}
