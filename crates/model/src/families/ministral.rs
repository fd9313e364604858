//! Ministral: Mistral with windows in the layers that `layer_types` names.

use super::{llama_shaped, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama_shaped(config);
    let window = config.size_or_none("sliding_window");
    set_windows(config, &mut spec, window, |_| true);
    spec
}
