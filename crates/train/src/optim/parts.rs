//! Parts of a model that are updated by themselves: what stands before the blocks, each block, what stands behind them.

use std::collections::HashMap;

use sft_kernels::Device;
use sft_model::parameter::{Outline, Parameter};

/// An optimizer that takes a step part by part: a part is updated when backward has passed it, and its gradients are gone before
/// those of the next one are made.
pub trait ByParts {
    /// Begins a step.
    fn begin_step(&mut self);

    /// Updates some of the trained parameters.
    fn update_part(&mut self, dev: &Device, part: &mut [&mut Parameter], learning_rate: f64);
}

/// The blocks that weights are in: by the name up to the first number.
pub(super) fn blocks(weights: &[Outline]) -> Vec<Vec<usize>> {
    let mut blocks: Vec<(String, Vec<usize>)> = Vec::new();
    for (i, weight) in weights.iter().enumerate() {
        let Some(name) = block_name(&weight.name) else { continue };
        match blocks.iter_mut().find(|(known, _)| known == name) {
            Some((_, of)) => of.push(i),
            None => blocks.push((name.to_owned(), vec![i])),
        }
    }
    blocks.into_iter().map(|(_, of)| of).collect()
}

fn block_name(name: &str) -> Option<&str> {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len();
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return Some(&name[..end]);
        }
        end += 1;
    }
    None
}

/// Bytes of the gradients that there are at a time where each part is updated by itself. Those of an embedding that is the head too
/// (`is_tied`) are there from the first part to the last.
pub(super) fn gradient_bytes(weights: &[Outline], is_tied: bool) -> usize {
    let bytes = |weight: &Outline| weight.elements() * size_of::<f32>();
    let blocks = blocks(weights);
    let all = |of: &[Outline]| of.iter().map(bytes).sum::<usize>();
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return all(weights) };
    let (before, behind) = (all(&weights[..first[0]]), all(&weights[last[last.len() - 1] + 1..]));
    let largest =
        blocks.iter().map(|of| of.iter().map(|i| bytes(&weights[*i])).sum()).fold(behind, usize::max);
    if is_tied { before + largest } else { before.max(largest) }
}

/// The places of trained weights in their fixed order, by name.
pub(super) fn places(weights: &[Outline]) -> HashMap<String, usize> {
    weights.iter().enumerate().map(|(i, weight)| (weight.name.clone(), i)).collect()
}

/// The parameters of a part at their places among all.
pub(super) fn placed<'a>(
    places: &HashMap<String, usize>,
    part: &'a mut [&mut Parameter],
) -> Vec<Option<&'a mut Parameter>> {
    let mut all: Vec<Option<&mut Parameter>> = places.iter().map(|_| None).collect();
    for parameter in part {
        let place = places[parameter.name()];
        all[place] = Some(parameter);
    }
    all
}
