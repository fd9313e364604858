//! Whether an adapter's tensors are those that its configuration and the model ask for: all differences at once.

use std::collections::{BTreeMap, BTreeSet};

use sft_kernels::{DType, Device, Tensor};

use super::config::MERGE;
use super::experts::ExpertTensors;
use super::{PREFIX, PeftAdapter, is_saved, path_of};
use crate::ModelError;
use crate::decoder::Decoder;
use crate::dora;
use crate::method::OftBlocks;
use crate::oft::{self, Oft};
use crate::parameter::Stored;
use crate::spec::DecoderSpec;
use crate::weights::first_non_finite;

/// Why what an adapter has for them has no place.
const OF_HEAD: &str = "adapters on the head and the embedding are not supported";

/// The tensors of one layer, f32.
#[derive(Debug)]
pub(super) enum LayerTensors {
    /// Of a low-rank adapter.
    LowRank(LowRankTensors),
    /// Rotations: [K, b·(b−1)/2].
    Rotations {
        /// q.
        skew: Tensor,
        /// b.
        size: usize,
    },
}

/// The tensors of a low-rank adapter.
#[derive(Debug)]
pub(super) struct LowRankTensors {
    /// [R, in].
    pub a: Tensor,
    /// [out, R].
    pub b: Tensor,
    /// DoRA's magnitudes, [out].
    pub magnitude: Option<Tensor>,
    /// s.
    pub scale: f32,
}

impl LayerTensors {
    /// With the ends of their names.
    fn named(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            LayerTensors::LowRank(LowRankTensors { a, b, magnitude, .. }) => {
                let both = [("lora_A.weight", a), ("lora_B.weight", b)];
                both.into_iter().chain(magnitude.as_ref().map(|m| (dora::MAGNITUDE, m))).collect()
            }
            LayerTensors::Rotations { skew, .. } => vec![(oft::ROTATIONS, skew)],
        }
    }
}

/// An adapter's tensors, each of which has its place in a decoder.
#[derive(Debug)]
pub(super) struct Fit {
    /// By the full name of the layer.
    pub layers: BTreeMap<String, LayerTensors>,
    /// By the full name of the weight of all experts.
    pub experts: BTreeMap<String, ExpertTensors>,
    /// Modules stored whole: weights by the model's names, f32.
    pub saved: Vec<(String, Tensor)>,
}

/// Looks up tensors, and collects what does not fit.
pub(super) struct Fitting<'a> {
    pub dev: &'a Device,
    pub adapter: &'a PeftAdapter,
    /// Tensors of the file that have found their place.
    pub placed: BTreeSet<String>,
    /// Names of embedding and head.
    outside: [&'static str; 2],
    /// Routers whose adapters have no effect.
    ignored: Vec<String>,
    pub problems: Vec<String>,
}

impl Fit {
    /// Finds the place of every tensor.
    ///
    /// # Errors
    /// Every tensor that is missing, too much or of another shape; else the first value that is not finite.
    pub fn of(adapter: &PeftAdapter, dev: &Device, decoder: &Decoder) -> Result<Self, ModelError> {
        let mut fitting = Fitting {
            dev,
            adapter,
            placed: BTreeSet::new(),
            outside: [decoder.spec.names.embed_tokens, decoder.spec.names.lm_head],
            ignored: ignored_routers(&decoder.spec),
            problems: Vec::new(),
        };
        let mut layers = fitting.layers(decoder);
        let mut experts = BTreeMap::new();
        for moe in decoder.mixtures() {
            layers.extend(fitting.router(moe));
            experts.extend(fitting.experts_of(moe));
        }
        if layers.is_empty() && experts.is_empty() && fitting.problems.is_empty() {
            let what = "target_modules and target_parameters name no layer of the model";
            fitting.problems.push(what.into());
        }
        let saved = fitting.saved(decoder);
        fitting.leftovers();
        let folder = adapter.folder.clone();
        if !fitting.problems.is_empty() {
            let base = adapter.config.base_model.as_deref().filter(|name| !name.is_empty());
            let base =
                base.map(|base| format!(" (its adapter_config.json names `{base}`)")).unwrap_or_default();
            let help = match fitting.problems.iter().all(|problem| problem.ends_with(OF_HEAD)) {
                true => MERGE.to_owned(),
                false => format!("was it trained on another base model{base}? check model_name_or_path"),
            };
            return Err(ModelError::AdapterTensors { folder, problems: fitting.problems, help });
        }
        let named = layers.iter().flat_map(|(path, layer)| {
            layer.named().into_iter().map(move |(which, tensor)| (format!("{path}.{which}"), tensor))
        });
        for (name, tensor) in named.chain(saved.iter().map(|(name, tensor)| (name.clone(), tensor))) {
            if let Some(element) = first_non_finite(dev, tensor.view()) {
                return Err(ModelError::NonFinite { folder, name: format!("{PREFIX}{name}"), element });
            }
        }
        Ok(Self { layers, experts, saved })
    }
}

/// Full names of the routers that adapters have no effect on.
fn ignored_routers(spec: &DecoderSpec) -> Vec<String> {
    let layers = spec.layers.iter().enumerate();
    let routers = layers.filter_map(|(i, layer)| Some((i, layer.moe.as_ref()?.router)));
    routers.filter(|(_, r)| r.ignores_adapters).map(|(i, r)| spec.names.in_block(i, r.name)).collect()
}

impl Fitting<'_> {
    /// The tensors of every linear layer that carries an adapter, by the configuration or by the file.
    fn layers(&mut self, decoder: &Decoder) -> BTreeMap<String, LayerTensors> {
        let config = &self.adapter.config;
        let mut layers = BTreeMap::new();
        for linear in decoder.linears() {
            let path = path_of(linear);
            if !config.targets(path) {
                // Tensors of it are told among the leftovers.
                continue;
            }
            let shape = [linear.weight.shape()[0], linear.weight.shape()[1]];
            let found = match config.oft {
                Some(blocks) => self.rotations(path, shape[1], blocks),
                None => self.low_rank(path, shape),
            };
            layers.extend(found.map(|found| (path.to_owned(), found)));
        }
        layers
    }

    /// A and B on a layer [out, in], and magnitudes.
    pub fn low_rank(&mut self, path: &str, [outputs, inputs]: [usize; 2]) -> Option<LayerTensors> {
        let config = &self.adapter.config;
        let rank = config.rank_of(path);
        let a = self.take(format!("{PREFIX}{path}.lora_A.weight"), &[rank, inputs]);
        let b = self.take(format!("{PREFIX}{path}.lora_B.weight"), &[outputs, rank]);
        let name = || format!("{PREFIX}{path}.{}", dora::MAGNITUDE);
        let magnitude = config.use_dora.then(|| self.take(name(), &[outputs]));
        let (Some(a), Some(b), None | Some(Some(_))) = (a, b, &magnitude) else { return None };
        let (magnitude, scale) = (magnitude.flatten(), config.scale_of(path, rank));
        Some(LayerTensors::LowRank(LowRankTensors { a, b, magnitude, scale }))
    }

    /// The rotations of a layer's input.
    fn rotations(&mut self, path: &str, inputs: usize, blocks: OftBlocks) -> Option<LayerTensors> {
        let size = blocks.size_of(inputs);
        let skew = self.take(format!("{PREFIX}{path}.{}", oft::ROTATIONS), &Oft::shape(inputs, size))?;
        Some(LayerTensors::Rotations { skew, size })
    }

    /// The weights of `modules_to_save`.
    fn saved(&mut self, decoder: &Decoder) -> Vec<(String, Tensor)> {
        let (config, tensors) = (&self.adapter.config, &self.adapter.tensors);
        let head = decoder.spec.names.head();
        let mut weights: Vec<(&str, &[usize], Stored)> =
            decoder.base_parameters().iter().map(|p| (p.name(), p.shape(), p.stored_as())).collect();
        if decoder.lm_head.is_none() {
            weights.push((&head, decoder.embed_tokens.shape(), Stored::Plain));
        }
        for module in &config.modules_to_save {
            if !weights.iter().any(|(name, ..)| is_saved(std::slice::from_ref(module), name)) {
                self.problems.push(format!("modules_to_save: the model has no module `{module}`"));
            }
        }
        // PEFT writes embedding and head of a resized vocabulary too, trained or not; a tied pair under both names.
        let ends = [decoder.spec.names.embedding(), head.clone()];
        let is_resized = |name: &str| {
            let is_own = name != head || decoder.lm_head.is_some();
            ends.iter().any(|end| end == name) && is_own && tensors.contains(&format!("{PREFIX}{name}"))
        };
        weights.retain(|(name, ..)| is_saved(&config.modules_to_save, name) || is_resized(name));
        if decoder.lm_head.is_none() && weights.iter().any(|(name, ..)| ends[0] == **name) {
            self.placed.insert(format!("{PREFIX}{head}"));
        }
        let mut saved = Vec::new();
        for (name, shape, stored) in weights {
            let in_file = format!("{PREFIX}{name}");
            // Of transformers 4 it can be in the form of a model's file.
            let stored = if tensors.contains(&in_file) { stored.in_modules() } else { stored };
            self.placed.extend(stored.shapes(&in_file, shape).into_iter().map(|(part, _)| part));
            match tensors.weight(&in_file, shape, stored) {
                Ok(weight) => saved.push((name.to_owned(), weight.to_dtype(DType::F32).on(self.dev))),
                Err(problems) => self.problems.extend(problems),
            }
        }
        saved
    }

    /// A tensor as f32, or a problem.
    pub fn take(&mut self, name: String, shape: &[usize]) -> Option<Tensor> {
        let found = self.adapter.tensors.tensor(&name, shape);
        self.placed.insert(name);
        // A copy, so that the file may be written again while the adapter is in use.
        found
            .map(|tensor| tensor.to_dtype(DType::F32).on(self.dev))
            .map_err(|problem| self.problems.push(problem))
            .ok()
    }

    /// Whether a tensor is what PEFT's wrapper of a module stored whole holds: its weight a second time, or the weight
    /// that the base model had. PEFT writes both beside the weight where a vocabulary was resized.
    fn is_second_copy(&self, name: &str) -> bool {
        ["modules_to_save", "original_module"].iter().any(|copy| {
            let parts = name.split_once(&format!(".{copy}."));
            parts.is_some_and(|(module, weight)| self.placed.contains(&format!("{module}.{weight}")))
        })
    }

    /// Tensors of the file that have no place.
    fn leftovers(&mut self) {
        let tensors = &self.adapter.tensors;
        for name in tensors.names() {
            let is_of = |module: &str, text: &str| {
                ["lora_", "oft_"].iter().any(|kind| text.contains(&format!("{module}.{kind}")))
            };
            let is_ignored = |router: &String| is_of(&format!("{PREFIX}{router}"), name);
            if self.placed.contains(name) || self.ignored.iter().any(is_ignored) || self.is_second_copy(name)
            {
                continue;
            }
            let shape = tensors.shape(name).unwrap_or_default();
            let outside = self.outside.iter().any(|module| is_of(module, name));
            let reason = if outside {
                OF_HEAD
            } else if name.contains(".lora_magnitude_vector") {
                "magnitudes of DoRA, and adapter_config.json has no `use_dora: true`"
            } else if is_of("", name) {
                "no layer that target_modules or target_parameters name"
            } else {
                "no weight of modules_to_save"
            };
            self.problems.push(format!("{name}: found shape {shape:?}, expected nothing: {reason}"));
        }
    }
}
