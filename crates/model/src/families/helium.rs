//! Helium: Llama with pairs of neighbouring dimensions rotated.

use super::{llama, rotate_neighbours};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    rotate_neighbours(&mut spec);
    // transformers builds the output projection without a bias whatever `attention_bias` says.
    spec.layers.iter_mut().for_each(|layer| layer.attention.o_bias = false);
    spec
}
