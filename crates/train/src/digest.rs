//! A digest of the trained weights: two runs with the same digest ended with the same bits.

use std::convert::Infallible;

use sft_data::labels::Example;
use sft_model::Decoder;
use sha2::{Digest, Sha256};

/// SHA-256 over names and values of the trained weights, in the model's order.
pub fn digest(decoder: &mut Decoder) -> String {
    let mut hash = Sha256::new();
    for parameter in decoder.trained_mut() {
        hash.update(parameter.name().as_bytes());
        let Ok(()) = parameter.as_used().try_for_each_piece(|bytes| -> Result<(), Infallible> {
            hash.update(bytes);
            Ok(())
        });
    }
    hexadecimal(hash)
}

/// SHA-256 over ids, labels and weights of rows: whether a run that is resumed has the rows that it began with.
pub fn digest_of_rows(rows: &[Example]) -> String {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for row in rows {
        bytes.clear();
        bytes.extend((row.input_ids.len() as u64).to_le_bytes());
        bytes.extend(row.input_ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend(row.labels.iter().flat_map(|label| label.to_le_bytes()));
        bytes.extend(row.weights.iter().flat_map(|weight| weight.to_le_bytes()));
        hash.update(&bytes);
    }
    hexadecimal(hash)
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
