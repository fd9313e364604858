//! LoRA and OFT adapters in PEFT's format: read, continued, merged and written (stages 14 to 16 of the walk).
//!
//! In: a folder with `adapter_config.json` and `adapter_model.safetensors`, as PEFT 0.18 writes them. Out: a decoder
//! that carries the adapter, or has it in its weights; and such a folder from a decoder.
//!
//! A layer with an adapter computes x·Wᵀ + s·(x·Aᵀ)·Bᵀ, so the merged weight is W + s·B·A; of DoRA its rows have the
//! lengths that the adapter stores (`….q_proj.lora_magnitude_vector` [out]). Of OFT it is W·Rᵀ, R made of
//! `….q_proj.oft_R.weight` [K, b·(b−1)/2]. Tensor names are the
//! decoder's own behind `base_model.model.`: `….q_proj.lora_A.weight` [R, in], `….q_proj.lora_B.weight` [out, R], and
//! for each of `modules_to_save` its weights.
//!
//! As in PEFT, `modules_to_save` gives a module a copy of its own: where head and embedding are tied, naming one of
//! them separates the two, and the other keeps the weight of the base model.

mod config;
mod experts;
mod fit;
mod oft;
mod pissa;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sft_kernels::matmul::Matmul;
use sft_kernels::{DType, Device, Tensor};

use crate::ModelError;
use crate::decoder::Decoder;
use crate::dora::{self, Dora};
use crate::linear::{Linear, Lora, Start};
use crate::method::{
    AdapterOptions, Adapters, Carried, LayerAdapters, LoraInit, LowRank, Rotated, Targets, is_saved,
    linear_paths, weight_paths,
};
use crate::oft::{Oft, ROTATIONS};
use crate::parameter::Parameter;
use crate::spec::DecoderSpec;
use crate::weights::{WeightFiles, first_non_finite};
use fit::{Fit, LayerTensors, LowRankTensors};

pub use config::AdapterConfig;
pub use pissa::begin;
pub use write::{write, write_converted};

/// Name of the file of tensors.
pub(crate) const TENSORS: &str = "adapter_model.safetensors";

/// What PEFT puts before the names of the model.
const PREFIX: &str = "base_model.model.";

/// The name under which PEFT stores a weight.
pub fn stored_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// An adapter in a folder.
#[derive(Debug)]
pub struct PeftAdapter {
    folder: PathBuf,
    /// Its `adapter_config.json`.
    pub config: AdapterConfig,
    tensors: WeightFiles,
}

/// What the last of several adapters is for; those before it are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It is trained further.
    Continued,
    /// It stays beside the weights, frozen: evaluation and generation.
    Attached,
    /// It is merged too: a new adapter is begun (`create_new_adapter`), or the model is exported.
    Merged,
}

/// Puts the adapters of `adapter_name_or_path` on a decoder by LLaMA-Factory's rule: each is merged in turn, but the
/// last one only with [`Last::Merged`]. Returns the settings of the one that the decoder now carries.
///
/// # Errors
/// As [`PeftAdapter::read`], [`PeftAdapter::merge`] and [`PeftAdapter::attach`].
pub fn apply(
    dev: &Device,
    decoder: &mut Decoder,
    folders: &[PathBuf],
    last: Last,
) -> Result<Option<AdapterOptions>, ModelError> {
    // All are read before any is merged: a wrong path is told at once.
    let adapters: Vec<PeftAdapter> =
        folders.iter().map(|f| PeftAdapter::read(f)).collect::<Result<_, _>>()?;
    let carried = match last {
        Last::Merged => None,
        Last::Continued | Last::Attached => adapters.last(),
    };
    for adapter in &adapters[..adapters.len() - usize::from(carried.is_some())] {
        adapter.merge(dev, decoder)?;
    }
    carried.map(|adapter| adapter.attach(dev, decoder, last == Last::Continued)).transpose()
}

impl PeftAdapter {
    /// Reads the configuration and opens the tensors.
    ///
    /// # Errors
    /// Missing or malformed files; a kind of adapter that is not supported.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let config = AdapterConfig::read(folder)?;
        let path = folder.join(TENSORS);
        if !path.exists() {
            let help = if folder.join("adapter_model.bin").exists() {
                "only adapter_model.bin is here; it can run code when read. Load it with PEFT and save it again"
            } else {
                "the download is incomplete, or the run that wrote it was killed; take another checkpoint"
            };
            return Err(ModelError::Missing {
                folder: folder.to_owned(),
                what: TENSORS.into(),
                help: help.into(),
            });
        }
        let tensors = WeightFiles::open(folder, &[path])?;
        Ok(Self { folder: folder.to_owned(), config, tensors })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tells other tensors from these ([`WeightFiles::fingerprint`]).
    pub fn fingerprint(&self) -> String {
        self.tensors.fingerprint()
    }

    /// Rows of the embedding, or of the head, that the adapter stores whole.
    pub fn rows_of_vocabulary(&self, spec: &DecoderSpec) -> Option<usize> {
        let names = [spec.names.embedding(), spec.names.head()];
        names.iter().filter_map(|name| self.tensors.shape(&stored_name(name))?.first().copied()).max()
    }

    /// Puts the adapter on a decoder: with `trained` to train it further (with its own dropout), else frozen
    /// in the compute dtype. Returns its settings as options of a method. Workspaces made before do not fit.
    ///
    /// # Errors
    /// Tensors that do not fit or are missing, all of them; values that are not finite; a decoder with adapters.
    pub fn attach(
        &self,
        dev: &Device,
        decoder: &mut Decoder,
        trained: bool,
    ) -> Result<AdapterOptions, ModelError> {
        if !decoder.adapters.is_empty() {
            return Err(self.error("the model carries an adapter already", "merge all adapters but the last"));
        }
        let Fit { mut layers, mut experts, saved } = Fit::of(self, dev, decoder)?;
        let mut starts = self.take_starts(dev, decoder, &layers)?;
        separate_head(decoder, &self.config.options(Targets::All, Vec::new()));
        for (name, value) in &saved {
            replace(decoder, name, value, trained && is_saved(&self.config.modules_to_save, name));
        }
        let dropout = if trained { self.config.dropout } else { 0.0 };
        let mut adapters = Adapters::of(Adapters::none(&decoder.spec).layers, dropout > 0.0);
        let compute = decoder.compute;
        let mut put = |linear: &mut Linear, name: &str, carriers: &mut LayerAdapters| {
            let path = path_of(linear).to_owned();
            let Some(tensors) = layers.remove(&path) else { return };
            let carried = match tensors {
                LayerTensors::LowRank(tensors) => {
                    let (rank, outputs) = (tensors.a.shape()[0], linear.outputs());
                    let carried = LowRank { rank, outputs, dora: tensors.magnitude.is_some() };
                    let start = starts.remove(&path);
                    let lora = tensors.into_lora(dev, (&path, &linear.weight), compute, dropout, trained);
                    linear.lora = Some(Lora { start, ..lora });
                    Carried::LowRank(carried)
                }
                LayerTensors::Rotations { skew, size } => {
                    linear.oft = Some(rotations(dev, &path, (skew, size), dropout, trained));
                    Carried::Rotated(Rotated { block_size: size, inputs: linear.weight.shape()[1] })
                }
            };
            carriers.carried.insert(name.to_owned(), carried);
        };
        for (block, carriers) in decoder.blocks.iter_mut().zip(&mut adapters.layers) {
            block.linears_mut().for_each(|(name, linear)| put(linear, name, carriers));
            let Some(moe) = block.mixture_mut() else { continue };
            if !moe.spec.router.is_linear {
                put(&mut moe.router, moe.spec.router.name, carriers);
            }
            experts::attach(moe, &mut experts, compute, trained, carriers);
        }
        for linear in decoder.entry.linears_mut().chain(&mut decoder.project_out) {
            let name = path_of(linear).to_owned();
            put(linear, &name, &mut adapters.outside);
        }
        decoder.adapters = adapters;
        Ok(self.options_for(&decoder.spec))
    }

    /// Its settings as options of a method, on what carries it in a model.
    pub fn options_for(&self, spec: &DecoderSpec) -> AdapterOptions {
        let linears: Vec<String> = linear_paths(spec).collect();
        let weights: Vec<String> = weight_paths(spec).collect();
        let carriers: Vec<String> =
            linears.iter().filter(|path| self.config.targets(path)).cloned().collect();
        self.config.options(
            Targets::Named(write::target_modules(&carriers, &linears)),
            write::target_parameters(&self.parameters(spec), &weights),
        )
    }

    /// W ← W + s·B·A, with DoRA's magnitudes, or W·Rᵀ, computed in f32 and rounded once to the weight's type; modules stored whole replace the
    /// model's. A weight that was mapped from its file is owned afterwards.
    ///
    /// # Errors
    /// Tensors that do not fit or are missing, all of them; values that are not finite, in the sum too.
    pub fn merge(&self, dev: &Device, decoder: &mut Decoder) -> Result<(), ModelError> {
        if decoder.a_quantized_weight().is_some() {
            return Err(self.error(
                "the model is quantised, and an adapter is not merged into codes",
                "merge it into the model in 16 bits (`sft export` without `quantization_bit`); of a model whose files are \
                 quantised, `sft export` without an adapter writes such a one, but of bitsandbytes' files",
            ));
        }
        let Fit { mut layers, mut experts, saved } = Fit::of(self, dev, decoder)?;
        self.take_starts(dev, decoder, &layers)?;
        separate_head(decoder, &self.config.options(Targets::All, Vec::new()));
        for (name, value) in &saved {
            let trained = decoder.base_parameters().iter().any(|p| p.name() == name && p.is_trained());
            replace(decoder, name, value, trained);
        }
        let check = |name: &str, merged: &Tensor| match first_non_finite(dev, merged.view()) {
            None => Ok(()),
            Some(element) => {
                let name = format!("{name} with the adapter merged");
                Err(ModelError::NonFinite { folder: self.folder.clone(), name, element })
            }
        };
        let mut merge = |linear: &mut Linear| -> Result<(), ModelError> {
            let path = path_of(linear).to_owned();
            let Some(tensors) = layers.remove(&path) else { return Ok(()) };
            let dtype = linear.weight.value().dtype();
            let merged = match tensors {
                LayerTensors::LowRank(tensors) => tensors.merged(dev, &linear.weight, dtype),
                LayerTensors::Rotations { skew, size } => {
                    let oft = rotations(dev, &path, (skew, size), 0.0, false);
                    oft.merged(dev, linear.weight.value()).to_dtype(dtype)
                }
            };
            check(linear.weight.name(), &merged)?;
            linear.weight = linear.weight.with_value(merged);
            linear.begin_magnitudes();
            Ok(())
        };
        decoder.linears_mut().try_for_each(&mut merge)?;
        for moe in decoder.mixtures_mut() {
            merge(&mut moe.router)?;
            for part in [&mut moe.gate_up, &mut moe.down] {
                let Some(tensors) = experts.remove(part.weight.name()) else { continue };
                let merged = tensors.merged(dev, part);
                check(part.weight.name(), &merged)?;
                part.weight = part.weight.with_value(merged);
            }
        }
        Ok(())
    }

    /// Takes what the adapter began as out of the weights that carry it, if it began as their largest singular values.
    fn take_starts(
        &self,
        dev: &Device,
        decoder: &mut Decoder,
        layers: &BTreeMap<String, LayerTensors>,
    ) -> Result<BTreeMap<String, Start>, ModelError> {
        let LoraInit::Pissa { iterations } = self.config.init else { return Ok(BTreeMap::new()) };
        let mut starts = BTreeMap::new();
        for linear in decoder.linears_mut() {
            let path = path_of(linear).to_owned();
            let Some(LayerTensors::LowRank(layer)) = layers.get(&path) else { continue };
            let size = (layer.a.shape()[0], layer.scale);
            let start = pissa::take_start(dev, linear, size, iterations)?;
            starts.insert(path, Start { a: start.a.to_host(), b: start.b.to_host() });
        }
        Ok(starts)
    }

    fn error(&self, reason: &str, help: &str) -> ModelError {
        ModelError::Adapter { folder: self.folder.clone(), reason: reason.into(), help: help.into() }
    }
}

/// Rotations of what the layer of this name reads.
fn rotations(dev: &Device, path: &str, (skew, size): (Tensor, usize), dropout: f32, trained: bool) -> Oft {
    let name = format!("{path}.{ROTATIONS}");
    let skew =
        if trained { Parameter::trained(name, skew, DType::F32) } else { Parameter::frozen(name, skew) };
    let mut oft = Oft::new(skew, size, dropout, path);
    oft.keep_matrices(dev);
    oft
}

impl LowRankTensors {
    /// W + s·B·A of a weight, its rows of DoRA's magnitudes, in its type.
    fn merged(&self, dev: &Device, weight: &Parameter, dtype: DType) -> Tensor {
        // A copy of the same type: `Matmul` adds to it in f32 and rounds the sum once.
        let wide = if self.magnitude.is_some() { DType::F32 } else { dtype };
        let mut merged = weight.value().to_dtype(wide);
        let product = Matmul::new(self.b.view(), self.a.view(), merged.view_mut());
        product.alpha(self.scale).accumulate().run(dev);
        match &self.magnitude {
            None => merged,
            Some(magnitude) => dora::with_magnitudes(&merged, magnitude).to_dtype(dtype).on(dev),
        }
    }

    /// The adapter on the layer of this name with this weight.
    fn into_lora(
        self,
        dev: &Device,
        (path, weight): (&str, &Parameter),
        compute: DType,
        dropout: f32,
        trained: bool,
    ) -> Lora {
        let parameter = |which: &str, value: Tensor| {
            let name = format!("{path}.{which}");
            // Magnitudes stay float32: no product reads them.
            let compute = if which == dora::MAGNITUDE { DType::F32 } else { compute };
            if trained {
                Parameter::trained(name, value, compute)
            } else {
                Parameter::frozen(name, value.to_dtype(compute))
            }
        };
        let mut lora = Lora {
            a: parameter("lora_A.weight", self.a),
            b: parameter("lora_B.weight", self.b),
            scale: self.scale,
            dropout,
            dropout_id: sft_kernels::random::name_part(path),
            dora: None,
            start: None,
        };
        if let Some(magnitude) = self.magnitude {
            let magnitude = parameter(dora::MAGNITUDE, magnitude);
            lora.dora = Some(Dora::new(magnitude, weight));
            lora.keep_factors(dev, weight);
        }
        lora
    }
}

/// Full name of a linear layer.
fn path_of(linear: &Linear) -> &str {
    let name = linear.weight.name();
    name.strip_suffix(".weight").unwrap_or(name)
}

/// Gives a tied head a weight of its own, if the adapter stores it or the embedding.
fn separate_head(decoder: &mut Decoder, options: &AdapterOptions) {
    let names = decoder.spec.names;
    if decoder.lm_head.is_none() && options.separates_head(&names) {
        let copy = decoder.embed_tokens.value().to_dtype(decoder.compute);
        decoder.lm_head = Some(Parameter::frozen(names.head(), copy));
        decoder.spec.tie_word_embeddings = false;
    }
}

/// Another value for a weight of the model, in the type that it has.
fn replace(decoder: &mut Decoder, name: &str, value: &Tensor, trained: bool) {
    let compute = decoder.compute;
    if let Some(parameter) = decoder.parameters_mut().into_iter().find(|p| p.name() == name) {
        let stored = parameter.stored_as();
        let new = if trained {
            Parameter::trained(name, value.to_dtype(DType::F32), compute)
        } else {
            Parameter::frozen(name, value.to_dtype(compute))
        };
        *parameter = new.stored(stored);
    }
}
