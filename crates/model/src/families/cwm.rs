//! CWM: Llama with a sliding window in three layers of four.

use super::{llama, set_windows};
use crate::hf_config::HfConfig;
use crate::spec::DecoderSpec;

pub(super) fn spec(config: &HfConfig) -> DecoderSpec {
    let mut spec = llama::spec(config);
    set_windows(config, &mut spec, Some(config.size_or("sliding_window", 8192)), |layer| layer % 4 != 0);
    spec
}
