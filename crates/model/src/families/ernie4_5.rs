//! ERNIE 4.5 (dense): Llama with pairs of neighbouring dimensions rotated, and one switch for all biases.

use super::{llama_shaped, rotate_neighbours, set_biases};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    rotate_neighbours(&mut spec);
    spec.tie_word_embeddings = config.flag_or("tie_word_embeddings", true);
    set_biases(&mut spec, config.flag_or("use_bias", false));
    spec
}
