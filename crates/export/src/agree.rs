//! Whether two decoders compute the same: a base model with its adapter beside it, and the merged model.

use sft_kernels::Device;
use sft_model::workspace::{Purpose, Workspace};
use sft_model::{Batch, Decoder};

use crate::ExportError;

/// How far the logits of two decoders are apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// max |Δlogit| over all positions.
    pub max_difference: f32,
    /// The largest |logit| of the first decoder, to judge the difference by.
    pub largest_logit: f32,
    /// Positions at which both find the same token likeliest.
    pub same_choice: usize,
    /// Positions compared.
    pub positions: usize,
}

/// Compares the logits of two decoders at every position of one row.
///
/// # Errors
/// Vocabularies of different sizes; a token id outside of them.
pub fn agree(dev: &Device, a: &Decoder, b: &Decoder, ids: &[u32]) -> Result<Agreement, ExportError> {
    let vocab_size = a.spec.vocab_size;
    if vocab_size != b.spec.vocab_size {
        return Err(ExportError::Vocabularies { left: vocab_size, right: b.spec.vocab_size });
    }
    let (a, b) = (logits(dev, a, ids)?, logits(dev, b, ids)?);
    let mut agreement =
        Agreement { max_difference: 0.0, largest_logit: 0.0, same_choice: 0, positions: ids.len() };
    for (a, b) in a.chunks(vocab_size).zip(b.chunks(vocab_size)) {
        for (a, b) in a.iter().zip(b) {
            agreement.largest_logit = agreement.largest_logit.max(a.abs());
            // NaN on either side must not pass as agreement.
            let difference = if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
            agreement.max_difference = agreement.max_difference.max(difference);
        }
        agreement.same_choice += usize::from(likeliest(a) == likeliest(b));
    }
    Ok(agreement)
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(token, _)| token)
}

fn logits(dev: &Device, decoder: &Decoder, ids: &[u32]) -> Result<Vec<f32>, ExportError> {
    let n = ids.len() as u32;
    let mut work =
        Workspace::new(dev, &decoder.spec, decoder.adapters(), decoder.compute, ids.len(), Purpose::Forward);
    let position_ids: Vec<u32> = (0..n).collect();
    let batch = Batch {
        input_ids: ids,
        position_ids: &position_ids,
        cu_seqlens: &[0, n],
        shared: None,
        targets: &[],
        weights: &[],
    };
    Ok(decoder.logits(dev, batch, &mut work)?.to_f32_vec())
}
