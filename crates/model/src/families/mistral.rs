//! Mistral: Llama with a sliding window in every layer (`null` in the later releases).

use super::llama_shaped;
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    // `null` means none; older files leave the key out and mean transformers' default.
    let window =
        if config.has("sliding_window") { config.size_or_none("sliding_window") } else { Some(4096) };
    spec.layers.iter_mut().for_each(|layer| layer.attention.window = window);
    spec
}
