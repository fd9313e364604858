//! Fresh adapters beside the weights of a decoder.

use sft_kernels::{DType, Tensor, random};

use super::{Loading, Source, elements};
use crate::dora::{self, Dora};
use crate::experts::{ExpertLora, ExpertOutlines};
use crate::linear::Lora;
use crate::method::{Method, Rotated};
use crate::oft::{self, Oft};
use crate::parameter::{Outline, Parameter, Stored};

impl Loading<'_> {
    /// A fresh adapter: A uniform in ±1/√in, B zero (PEFT's default); of DoRA with the magnitudes that the rows of the
    /// weight have.
    pub(super) fn lora(
        &mut self,
        (path, weight): (&str, &Parameter),
        [outputs, inputs]: [usize; 2],
        rank: usize,
    ) -> Option<Lora> {
        let Method::Lora(options) = self.method else { return None };
        let mut adds = vec![("lora_A.weight", vec![rank, inputs]), ("lora_B.weight", vec![outputs, rank])];
        if options.use_dora {
            adds.push((dora::MAGNITUDE, vec![outputs]));
        }
        for (kind, shape) in adds {
            self.counts.trained = self.counts.trained.saturating_add(elements(&shape));
            self.trained.push(Outline { name: format!("{path}.{kind}"), shape, stored: Stored::Plain });
        }
        let counting = matches!(self.source, Source::Counting);
        let (inputs, outputs, rank) = if counting { (0, 0, 0) } else { (inputs, outputs, rank) };
        let a = uniform(self.key(path), 1.0 / (inputs as f64).sqrt(), rank * inputs);
        Some(Lora {
            a: self.trained_of(format!("{path}.lora_A.weight"), Tensor::from_slice(&a, &[rank, inputs])),
            b: self.trained_of(format!("{path}.lora_B.weight"), Tensor::zeros(DType::F32, &[outputs, rank])),
            scale: options.scale(rank),
            dropout: options.dropout,
            dropout_id: random::name_part(path),
            dora: (options.use_dora && !counting).then(|| {
                let magnitudes = Tensor::from_slice(&dora::row_norms(weight), &[outputs]);
                let name = format!("{path}.{}", dora::MAGNITUDE);
                Dora::new(Parameter::trained(name, self.placed(magnitudes), DType::F32), weight)
            }),
            start: None,
        })
    }

    /// Fresh adapters of all experts, as PEFT draws them: of what it calls A each expert's rows uniform in ±1/√width, what
    /// it calls B zero.
    pub(super) fn expert_lora(&mut self, outlines: &ExpertOutlines) -> Option<ExpertLora> {
        let Method::Lora(options) = self.method else { return None };
        let ExpertOutlines { a, b } = outlines;
        let [a, b] = [(a, a.shape[2]), (b, b.shape[1])].map(|(outline, width)| {
            self.counts.trained = self.counts.trained.saturating_add(elements(&outline.shape));
            self.trained.push(outline.clone());
            let counting = matches!(self.source, Source::Counting);
            let shape = if counting { &[0; 3][..] } else { &outline.shape };
            let value = if outline.name.ends_with("lora_A.weight") {
                let (key, bound) = (self.key(&outline.name), 1.0 / (width as f64).sqrt());
                Tensor::from_slice(&uniform(key, bound, elements(shape)), shape)
            } else {
                Tensor::zeros(DType::F32, shape)
            };
            self.trained_of(outline.name.clone(), value).stored(outline.stored)
        });
        Some(ExpertLora { a, b, scale: options.scale(outlines.a.shape[1]) })
    }

    /// Fresh rotations, which turn nothing.
    pub(super) fn oft(&mut self, path: &str, Rotated { block_size, inputs }: Rotated) -> Option<Oft> {
        let Method::Oft(options) = self.method else { return None };
        let (name, shape) = (format!("{path}.{}", oft::ROTATIONS), Oft::shape(inputs, block_size));
        self.counts.trained = self.counts.trained.saturating_add(elements(&shape));
        self.trained.push(Outline { name: name.clone(), shape: shape.to_vec(), stored: Stored::Plain });
        let shape = if matches!(self.source, Source::Counting) { [0, 0] } else { shape };
        let skew = self.placed(Tensor::zeros(DType::F32, &shape));
        // Float32 whatever the model computes in: no product reads them.
        let skew = Parameter::trained(name, skew, DType::F32);
        Some(Oft::new(skew, block_size, options.dropout, path))
    }

    fn key(&self, name: &str) -> u64 {
        random::key(self.seed, &[random::name_part(name)])
    }
}

/// So many numbers, uniform in ±bound.
fn uniform(key: u64, bound: f64, count: usize) -> Vec<f32> {
    (0..count as u64).map(|i| ((2.0 * random::uniform(key, i) - 1.0) * bound) as f32).collect()
}
