//! Which weights share a learning rate and a weight decay.

use std::collections::BTreeSet;

use sft_kernels::update::Group;
use sft_model::parameter::Outline;

/// Which weights decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decays {
    /// Not biases and norms: Hugging Face's Trainer.
    Matrices,
    /// Not biases and `LayerNorm`s, while the norms of most models, which are of other classes, do: LLaMA-Factory's rule
    /// wherever it makes the groups itself.
    AllButBiases,
    /// Every weight.
    All,
}

/// LoRA+ (Hayou et al., 2024): B learns faster than A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraPlus {
    /// Learning rate of B over that of A.
    pub ratio: f64,
}

/// How weights are grouped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Groups {
    /// Pull towards 0.
    pub weight_decay: f64,
    /// Of which weights.
    pub decays: Decays,
    /// Whether matrices B have a learning rate of their own.
    pub lora_plus: Option<LoraPlus>,
}

/// The group of each weight.
#[derive(Debug, Clone)]
pub(super) struct Grouped {
    /// Of each weight, an index into `kinds`.
    pub of: Vec<usize>,
    kinds: Vec<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Kind {
    factor: f64,
    weight_decay: f64,
}

impl Groups {
    /// AdamW's groups of Hugging Face's Trainer.
    pub fn of_trainer(weight_decay: f64) -> Self {
        Self { weight_decay, decays: Decays::Matrices, lora_plus: None }
    }

    pub(super) fn group(&self, weights: &[Outline]) -> Grouped {
        let layer_norms = layer_norms(weights);
        let mut grouped = Grouped { of: Vec::new(), kinds: Vec::new() };
        for weight in weights {
            let kind = self.kind(weight, &layer_norms);
            let known = grouped.kinds.iter().position(|known| *known == kind);
            grouped.of.push(known.unwrap_or(grouped.kinds.len()));
            if known.is_none() {
                grouped.kinds.push(kind);
            }
        }
        grouped
    }

    fn kind(&self, weight: &Outline, layer_norms: &BTreeSet<String>) -> Kind {
        let decays = match self.decays {
            Decays::Matrices => weight.decays(),
            Decays::AllButBiases => !is_bias(weight) && !layer_norms.contains(&weight.name),
            Decays::All => true,
        };
        // LLaMA-Factory puts vectors beside B.
        let is_b = weight.name.contains("lora_B") || weight.shape.len() == 1;
        Kind {
            factor: self.lora_plus.filter(|_| is_b).map_or(1.0, |plus| plus.ratio),
            weight_decay: if decays { self.weight_decay } else { 0.0 },
        }
    }
}

fn is_bias(weight: &Outline) -> bool {
    weight.name.contains("bias")
}

/// Weights of `LayerNorm`s: vectors with a bias beside them.
fn layer_norms(weights: &[Outline]) -> BTreeSet<String> {
    let biases: BTreeSet<&str> = weights.iter().filter_map(|w| w.name.strip_suffix(".bias")).collect();
    let vectors = weights.iter().filter(|w| w.shape.len() == 1);
    let has_bias =
        |w: &&Outline| w.name.strip_suffix(".weight").is_some_and(|module| biases.contains(module));
    vectors.filter(has_bias).map(|w| w.name.clone()).collect()
}

impl Grouped {
    /// The groups at a learning rate.
    pub fn at(&self, learning_rate: f64) -> Vec<Group> {
        let group = |kind: &Kind| Group {
            learning_rate: learning_rate * kind.factor,
            weight_decay: kind.weight_decay,
        };
        self.kinds.iter().map(group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sft_model::parameter::Stored;

    fn outline(name: &str, shape: &[usize]) -> Outline {
        Outline { name: name.into(), shape: shape.to_vec(), stored: Stored::Plain }
    }

    fn decaying(decays: Decays) -> Vec<bool> {
        let weights = [
            outline("h.0.attn.c_proj.weight", &[4, 4]),
            outline("h.0.attn.c_proj.bias", &[4]),
            outline("h.0.ln_1.weight", &[4]),
            outline("h.0.ln_1.bias", &[4]),
            outline("model.norm.weight", &[4]),
        ];
        let grouped = Groups { weight_decay: 0.5, decays, lora_plus: None }.group(&weights);
        let groups = grouped.at(1.0);
        grouped.of.iter().map(|group| groups[*group].weight_decay > 0.0).collect()
    }

    #[test]
    fn each_rule_lets_its_own_weights_decay() {
        assert_eq!(decaying(Decays::Matrices), [true, false, false, false, false]);
        assert_eq!(decaying(Decays::AllButBiases), [true, false, false, false, true]);
        assert_eq!(decaying(Decays::All), [true; 5]);
    }

    #[test]
    fn b_and_vectors_learn_faster_with_lora_plus() {
        let weights = [
            outline("q.lora_A.weight", &[2, 4]),
            outline("q.lora_B.weight", &[4, 2]),
            outline("norm.weight", &[4]),
        ];
        let lora_plus = Some(LoraPlus { ratio: 16.0 });
        let grouped = Groups { weight_decay: 0.0, decays: Decays::AllButBiases, lora_plus }.group(&weights);
        let rates: Vec<f64> = grouped.of.iter().map(|group| grouped.at(0.5)[*group].learning_rate).collect();
        assert_eq!(rates, [0.5, 8.0, 8.0]);
    }
}
