//! A digest of the trained weights: two runs with the same digest ended with the same bits.

use sft_model::Decoder;
use sha2::{Digest, Sha256};

/// SHA-256 over names and values of the trained weights, in the model's order.
pub fn digest(decoder: &mut Decoder) -> String {
    let mut hash = Sha256::new();
    for parameter in decoder.trained_mut() {
        hash.update(parameter.name().as_bytes());
        hash.update(parameter.to_host().view().bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
