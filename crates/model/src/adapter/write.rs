//! A decoder's adapter as a folder that PEFT reads.
//!
//! In: a decoder with an adapter → out: `adapter_model.safetensors` (f32, as trained) and `adapter_config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};
use sft_runs::disk;

use super::config::{self, Written};
use super::{PREFIX, TENSORS, is_saved, oft, path_of};
use crate::ModelError;
use crate::decoder::Decoder;
use crate::linear::{Linear, Lora};
use crate::method::{AdapterOptions, LoraInit, LoraOptions, last_two_parts, weight_paths};
use crate::moe::Moe;
use crate::parameter::{Parameter, Stored};
use crate::weights::{self, StoredTensor};
use sft_kernels::Tensor;

/// Writes the adapter on a decoder, and the weights of `modules_to_save`. Each file appears whole or not at all.
///
/// Ranks and scales of LoRA are the layers' own; where they differ from those of `options` they stand in `rank_pattern` and
/// `alpha_pattern`. `base_model` is what others are to load it on: a path or a hub's name.
///
/// # Errors
/// A decoder without an adapter; what the file system says.
pub fn write(
    decoder: &Decoder,
    options: &AdapterOptions,
    base_model: &str,
    folder: &Path,
) -> Result<(), ModelError> {
    let on_linears = decoder.linears().flat_map(Linear::adapter_parameters);
    let adapters = on_linears.chain(decoder.mixtures().flat_map(Moe::adapter_parameters));
    let tensors = adapters.flat_map(Parameter::in_files).collect();
    write_with(decoder, (options, 1), tensors, base_model, folder)
}

/// As [`write()`], of adapters that were taken out of their weights when they began ([`super::begin`]): what has come to
/// them since, as adapters of the model's own weights. Their rank is twice that of the trained ones (PEFT's
/// `path_initial_model_for_weight_conversion`):
///
/// > s·(B·A − B₀·A₀) = s·(B ‖ −B₀)·(A over A₀)
///
/// # Errors
/// As [`write()`].
pub fn write_converted(
    decoder: &Decoder,
    options: &LoraOptions,
    base_model: &str,
    folder: &Path,
) -> Result<(), ModelError> {
    let mut owned: Vec<(String, Tensor)> = Vec::new();
    for (_, lora) in carried(decoder) {
        let Some(start) = &lora.start else { continue };
        let (a, b) = (lora.a.to_host(), lora.b.to_host());
        let (rank, inputs, outputs) = (a.shape()[0], a.shape()[1], b.shape()[0]);
        let both = [a.to_f32_vec(), start.a.to_f32_vec()].concat();
        owned.push((lora.a.name().to_owned(), Tensor::from_slice(&both, &[2 * rank, inputs])));
        let (now, then) = (b.to_f32_vec(), start.b.to_f32_vec());
        let rows = now.chunks(rank).zip(then.chunks(rank));
        let both: Vec<f32> =
            rows.flat_map(|(now, then)| now.iter().copied().chain(then.iter().map(|b| -b))).collect();
        owned.push((lora.b.name().to_owned(), Tensor::from_slice(&both, &[outputs, 2 * rank])));
        let magnitude = lora.dora.as_ref().map(|dora| &dora.magnitude);
        owned.extend(magnitude.map(|m| (m.name().to_owned(), m.to_host())));
    }
    let tensors = owned.iter().map(|(name, tensor)| (name.clone(), StoredTensor::from(tensor))).collect();
    let alpha = options.alpha * if options.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
    let options = LoraOptions { rank: 2 * options.rank, alpha, init: LoraInit::Random, ..options.clone() };
    write_with(decoder, (&options.into(), 2), tensors, base_model, folder)
}

/// Writes these tensors of adapters, whose ranks are so many times those on the decoder.
fn write_with(
    decoder: &Decoder,
    (options, times): (&AdapterOptions, usize),
    adapters: Vec<(String, StoredTensor<'_>)>,
    base_model: &str,
    folder: &Path,
) -> Result<(), ModelError> {
    let carriers = decoder.linears().filter(|linear| linear.adapter_parameters().next().is_some());
    let paths: Vec<String> = carriers.map(|linear| path_of(linear).to_owned()).collect();
    let all: Vec<String> = decoder.linears().map(|linear| path_of(linear).to_owned()).collect();
    let target_modules = target_modules(&paths, &all);
    let carriers: Vec<String> = other_carriers(decoder).map(|carrier| carrier.0).collect();
    let weights: Vec<String> = weight_paths(&decoder.spec).collect();
    let target_parameters = target_parameters(&carriers, &weights);
    if target_modules.is_empty() && target_parameters.is_empty() {
        return Err(ModelError::Adapter {
            folder: folder.to_owned(),
            reason: "the model carries no adapter that could be written".into(),
            help: "write the whole model instead".into(),
        });
    }
    let saved =
        decoder.base_parameters().into_iter().filter(|p| is_saved(options.modules_to_save(), p.name()));
    let tensors = adapters.into_iter().chain(saved.flat_map(Parameter::in_modules));
    let tensors: Vec<_> = tensors.map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)).collect();
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone()));
    weights::write_file(&folder.join(TENSORS), named)?;
    let text = match options {
        AdapterOptions::Lora(options) => {
            lora_text(decoder, (options, times), base_model, (target_modules, target_parameters))
        }
        AdapterOptions::Oft(options) => oft::text(options, base_model, &target_modules),
    };
    let path = folder.join(config::FILE);
    disk::write(&path, text.as_bytes()).map_err(|source| ModelError::File { path, source })
}

/// The configuration of low-rank adapters.
fn lora_text(
    decoder: &Decoder,
    (options, times): (&LoraOptions, usize),
    base_model: &str,
    (target_modules, target_parameters): (Vec<String>, Vec<String>),
) -> String {
    let (rank_pattern, alpha_pattern) = patterns(decoder, options, times);
    // PEFT's word for weights that are [in, out].
    let is_transposed = |(linear, _): (&Linear, &Lora)| linear.weight.stored_as() == Stored::Transposed;
    let fan_in_fan_out = carried(decoder).any(is_transposed);
    config::text(&Written {
        options,
        base_model,
        target_modules,
        target_parameters,
        fan_in_fan_out,
        rank_pattern,
        alpha_pattern,
    })
}

/// Layers with their low-rank adapters.
fn carried(decoder: &Decoder) -> impl Iterator<Item = (&Linear, &Lora)> {
    decoder.linears().filter_map(|linear| linear.lora.as_ref().map(|lora| (linear, lora)))
}

/// What else carries adapters: the names of the weights, ranks and scales.
fn other_carriers(decoder: &Decoder) -> impl Iterator<Item = (String, usize, f32)> {
    decoder.mixtures().flat_map(|moe| {
        let router = moe.router.lora.as_ref().filter(|_| !moe.spec.router.is_linear);
        let router = router.map(|lora| (moe.router.weight.name().to_owned(), lora.a.shape()[0], lora.scale));
        let experts = [&moe.gate_up, &moe.down].into_iter().filter_map(|experts| {
            let lora = experts.lora.as_ref()?;
            Some((experts.weight.name().to_owned(), lora.rank(), lora.scale))
        });
        router.into_iter().chain(experts)
    })
}

/// `target_modules` for layers of these full names: short names where they mean the same among `all` layers.
pub(super) fn target_modules(paths: &[String], all: &[String]) -> Vec<String> {
    short_names(paths, all, |path| path.rsplit('.').next().unwrap_or(path))
}

/// `target_parameters` for weights of these full names among `all` that could be meant.
pub(super) fn target_parameters(paths: &[String], all: &[String]) -> Vec<String> {
    short_names(paths, all, last_two_parts)
}

fn short_names(paths: &[String], all: &[String], short: fn(&str) -> &str) -> Vec<String> {
    let last = |path: &'_ String| short(path).to_owned();
    let mut names: Vec<String> = Vec::new();
    for name in paths.iter().map(last) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let meant = all.iter().filter(|path| names.contains(&last(path))).count();
    if meant == paths.len() { names } else { paths.to_vec() }
}

/// `rank_pattern` and `alpha_pattern`: layers whose adapter differs from the options.
fn patterns(
    decoder: &Decoder,
    options: &LoraOptions,
    times: usize,
) -> (Map<String, Value>, Map<String, Value>) {
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    let linears =
        carried(decoder).map(|(linear, lora)| (path_of(linear).to_owned(), lora.a.shape()[0], lora.scale));
    for (path, rank, scale) in linears.chain(other_carriers(decoder)) {
        let rank = times * rank;
        if rank != options.rank {
            ranks.insert(path.clone(), json!(rank));
        }
        if scale != options.scale(rank) {
            let divisor = if options.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            let alpha = f64::from(scale) * divisor;
            // Six digits undo the rounding of the scale to f32, where alpha was a plain number.
            let plain = (alpha * 1e6).round() / 1e6;
            alphas.insert(path, config::whole(if (plain / divisor) as f32 == scale { plain } else { alpha }));
        }
    }
    (ranks, alphas)
}
