//! More blocks for a model that stays what it is: LLaMA-Pro's expansion (Wu et al., 2024), as LLaMA-Factory's
//! `scripts/llama_pro.py` does it (stage 16 of the walk).
//!
//! In: the weights of a model of L blocks, and a number E that divides L. Out: those of L + E blocks. After every L / E
//! blocks stands a copy of the last of them whose output layers are zero: it adds nothing until it is trained, which
//! `use_llama_pro` does with these blocks alone.

use serde_json::{Map, Value};
use sft_kernels::Tensor;

use crate::ModelError;
use crate::parameter::Parameter;
use crate::spec::{DecoderSpec, LayerSpec};
use crate::weights::StoredTensor;

/// Keys that count the blocks in a `config.json`.
const BLOCKS: [&str; 3] = ["num_hidden_layers", "n_layer", "num_layers"];

/// Which block each of the expanded model is, and whether it is a copy.
fn plan(blocks: usize, expand: usize) -> impl Iterator<Item = (usize, bool)> {
    let every = blocks.checked_div(expand).unwrap_or(usize::MAX);
    (0..blocks).flat_map(move |i| [Some((i, false)), ((i + 1) % every == 0).then_some((i, true))]).flatten()
}

/// Refuses numbers that do not divide that of the blocks.
///
/// # Errors
/// Such a number.
pub(crate) fn check(spec: &DecoderSpec, expand: usize) -> Result<(), ModelError> {
    let blocks = spec.layers.len();
    if expand == 0 || blocks.is_multiple_of(expand) {
        return Ok(());
    }
    let divisors: Vec<String> =
        (1..=blocks).filter(|n| blocks.is_multiple_of(*n)).map(|n| n.to_string()).collect();
    Err(ModelError::Method {
        key: "num_expand",
        reason: format!("{expand} new blocks cannot stand at even distances among {blocks}"),
        help: format!("choose one of {}", divisors.join(", ")),
    })
}

/// What copies hold in place of the weights of their output layers: zeros like each of them, by their names in files.
pub(crate) fn zeros(spec: &DecoderSpec, parameters: &[&Parameter], expand: usize) -> Vec<(String, Tensor)> {
    if expand == 0 {
        return Vec::new();
    }
    let is_output = |name: &str| {
        spec.layers.iter().enumerate().any(|(i, layer)| {
            let inside = name.strip_prefix(&spec.names.in_block(i, ""));
            inside.is_some_and(|inside| outputs(layer).any(|output| inside.starts_with(output)))
        })
    };
    let outputs = parameters.iter().filter(|parameter| is_output(parameter.name()));
    let zeros = |(name, tensor): (String, StoredTensor<'_>)| {
        (name, Tensor::zeros(tensor.dtype_in_memory(), tensor.shape()))
    };
    outputs.flat_map(|parameter| parameter.in_files()).map(zeros).collect()
}

/// Modules of a block, by their names inside it, whose outputs are added to its input.
fn outputs(layer: &LayerSpec) -> impl Iterator<Item = &'static str> {
    let attention = layer.attends().map(|attention| attention.output);
    let recurrent = layer.mixer.recurrent().map(|recurrent| recurrent.output);
    let conv =
        if let crate::spec::MixerSpec::ShortConv(conv) = &layer.mixer { Some(conv.output) } else { None };
    let dense = layer.dense().map(|mlp| mlp.output);
    let experts = layer.moe.as_ref().map(|moe| moe.down.weight);
    [attention, recurrent, conv, dense, experts].into_iter().flatten()
}

/// The tensors of the expanded model, in the order of its blocks.
pub(crate) fn tensors<'a>(
    spec: &DecoderSpec,
    tensors: Vec<(String, StoredTensor<'a>)>,
    zeros: &'a [(String, Tensor)],
    expand: usize,
) -> Vec<(String, StoredTensor<'a>)> {
    let mut all = Vec::new();
    let mut of_blocks: Vec<Vec<(String, StoredTensor<'a>)>> = vec![Vec::new(); spec.layers.len()];
    for (name, tensor) in tensors {
        let block = (0..spec.layers.len())
            .find_map(|i| Some((i, name.strip_prefix(&spec.names.in_block(i, ""))?.to_owned())));
        match block {
            Some((i, inside)) => of_blocks[i].push((inside, tensor)),
            None => all.push((name, tensor)),
        }
    }
    for (to, (from, is_copy)) in plan(spec.layers.len(), expand).enumerate() {
        for (inside, tensor) in &of_blocks[from] {
            let name = spec.names.in_block(from, inside);
            let zero = zeros.iter().find(|(zero, _)| is_copy && *zero == name);
            let dtype = Some(tensor.dtype_in_memory());
            let tensor =
                zero.map_or_else(|| tensor.clone(), |(_, zero)| StoredTensor::from(zero).in_type(dtype));
            all.push((spec.names.in_block(to, inside), tensor));
        }
    }
    all
}

/// `config.json` of the expanded model: the number of blocks, and whatever says something of each.
pub(crate) fn configure(config: &mut Map<String, Value>, blocks: usize, expand: usize) {
    for key in BLOCKS {
        if config.get(key).and_then(Value::as_u64) == Some(blocks as u64) {
            config.insert(key.into(), (blocks + expand).into());
        }
    }
    // `layer_types`, `no_rope_layers` and the like: other lists may happen to be as long.
    for (_, value) in config.iter_mut().filter(|(key, _)| key.contains("layer")) {
        if let Some(list) = value.as_array_mut().filter(|list| list.len() == blocks) {
            *list = plan(blocks, expand).map(|(from, _)| list[from].clone()).collect();
        }
    }
}

/// The blocks that the expanded model has to have.
pub(crate) fn layers(spec: &DecoderSpec, expand: usize) -> Vec<LayerSpec> {
    plan(spec.layers.len(), expand).map(|(from, _)| spec.layers[from].clone()).collect()
}
