//! The auxiliary loss that keeps the experts of a mixture busy (Fedus et al., 2021), as transformers'
//! `load_balancing_loss_func` has it.
//!
//! > aux = E · Σ_e f_e · P_e, loss += coefficient · aux
//!
//! f_e: how often expert e was chosen, per token and layer; P_e: the mean of the softmax of the router's logits, over
//! tokens and layers. f is a constant to the derivative, so ∂aux/∂p[t, e] = E·f_e / (tokens·layers), known once all
//! layers have chosen. Blocks that are computed again in backward choose the same, and are not counted again.
//!
//! The loss of a step is the mean over its micro-batches, each as heavy as it has tokens.

use sft_kernels::experts::Grouping;

/// Counts in forward; slopes for backward.
#[derive(Debug)]
pub struct Balance {
    coefficient: f32,
    /// The part that this micro-batch is of the step.
    share: f32,
    counts: Vec<usize>,
    /// Tokens times layers.
    rows: usize,
    /// coefficient · ∂aux/∂p, once it is known.
    slopes: Option<Vec<f32>>,
}

impl Balance {
    /// For layers of at most so many experts.
    pub fn new(coefficient: f32, experts: usize) -> Self {
        Self { coefficient, share: 1.0, counts: vec![0; experts], rows: 0, slopes: None }
    }

    /// What part of its step a micro-batch is from now on.
    pub fn set_share(&mut self, share: f32) {
        self.share = share;
    }

    /// Begins a micro-batch.
    pub fn begin(&mut self) {
        self.counts.fill(0);
        (self.rows, self.slopes) = (0, None);
    }

    /// The choices of one layer for `tokens` tokens.
    pub fn count(&mut self, grouping: &Grouping, tokens: usize) {
        if self.coefficient != 0.0 && self.slopes.is_none() {
            grouping.groups().for_each(|(expert, rows)| self.counts[expert] += rows.len());
            self.rows += tokens;
        }
    }

    /// All layers have chosen.
    pub fn finish(&mut self) {
        if self.coefficient == 0.0 {
            return;
        }
        let (rows, experts) = (self.rows.max(1) as f64, self.counts.len() as f64);
        let factor = f64::from(self.coefficient) * f64::from(self.share) * experts / (rows * rows);
        self.slopes = Some(self.counts.iter().map(|count| (factor * *count as f64) as f32).collect());
    }

    /// The gradient by the softmax of every token's logits, if there is such a loss.
    pub fn slopes(&self, experts: usize) -> Option<&[f32]> {
        self.slopes.as_ref().map(|slopes| &slopes[..experts])
    }
}

#[cfg(test)]
mod tests {
    use sft_kernels::routing::{self, Rule, Scoring};
    use sft_kernels::{CpuOptions, Device, View, ViewMut};

    use super::*;

    #[test]
    fn slopes_are_those_of_the_counts_of_all_layers() {
        let mut balance = Balance::new(0.5, 3);
        balance.begin();
        let mut grouping = Grouping::default();
        // Two layers, two tokens, two of three experts.
        for index in [[0, 1, 0, 2], [0, 1, 1, 2]] {
            grouping.sort(&index, 3, 2);
            balance.count(&grouping, 2);
        }
        balance.finish();
        // f = [3, 3, 2] / 4; 0.5 · 3 · f / 4.
        assert_eq!(balance.slopes(3), Some(&[0.281_25, 0.281_25, 0.187_5][..]));
        // Recomputation is not counted.
        balance.count(&grouping, 2);
        assert_eq!(balance.slopes(1), Some(&[0.281_25][..]));
        balance.begin();
        assert_eq!(balance.slopes(3), None);
    }

    #[test]
    fn gradients_are_those_of_transformers() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../goldens/balance.json")).unwrap();
        let list = |key: &str| -> Vec<f32> { serde_json::from_value(golden[key].clone()).unwrap() };
        let (layers, tokens, experts, k) = (2, 5, 6, 2);
        let (logits, expected) = (list("logits"), list("dlogits"));
        let dev = Device::cpu(CpuOptions { threads: Some(1), isa: None }).unwrap();
        let rule = Rule { scoring: Scoring::Softmax, top_k: k, groups: None, normalised: true, scale: 1.0 };
        let mut balance = Balance::new(0.25, experts);
        balance.begin();
        let size = tokens * experts;
        let (mut weights, mut grouping) = (vec![0.0f32; tokens * k], Grouping::default());
        let mut indices = vec![vec![0; tokens * k]; layers];
        for (logits, index) in logits.chunks(size).zip(&mut indices) {
            let (logits, weights) =
                (View::of(logits, &[tokens, experts]), ViewMut::of(&mut weights, &[tokens, k]));
            routing::forward(&dev, &rule, logits, None, weights, index);
            grouping.sort(index, experts, k);
            balance.count(&grouping, tokens);
        }
        balance.finish();
        for (layer, index) in indices.iter().enumerate() {
            let (range, mut dlogits) = (layer * size..(layer + 1) * size, vec![0.0f32; size]);
            let io = routing::Backward {
                logits: View::of(&logits[range.clone()], &[tokens, experts]),
                index,
                dweights: View::of(&[0.0f32; 10], &[tokens, k]),
                balance: balance.slopes(experts),
                dlogits: ViewMut::of(&mut dlogits, &[tokens, experts]),
            };
            routing::backward(&dev, &rule, io);
            for (found, expected) in dlogits.iter().zip(&expected[range]) {
                assert!((found - expected).abs() < 1e-8, "{found} and not {expected}");
            }
        }
    }
}
