//! Where a decoder's weights come from: the files of a model folder, or a seed.

use std::path::Path;

use sft_kernels::{DType, Device, Tensor, random};

use crate::ModelError;
use crate::attention::Attention;
use crate::block::{Block, Norms};
use crate::decoder::Decoder;
use crate::linear::{Linear, Lora};
use crate::method::{Adapters, EMBEDDING, HEAD, LayerAdapters, Method};
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::parameter::Parameter;
use crate::spec::{DecoderSpec, LayerSpec, NormNames};
use crate::weights::{WeightFiles, first_non_finite};

/// Where weights come from.
#[derive(Debug)]
pub enum Source<'a> {
    /// A model folder's files.
    Files(&'a WeightFiles),
    /// Freshly drawn: normal with `initializer_range`, norms 1, biases 0.
    Random {
        /// Seed of the draw.
        seed: u64,
    },
    /// Nowhere: weights of no rows, their sizes counted.
    Counting,
}

/// Sizes of a decoder's weights, adapters included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightCounts {
    /// Elements that stay as they are.
    pub frozen: usize,
    /// Elements that training changes.
    pub trained: usize,
    /// Of the frozen ones, those that are factors of products: of linear layers and of the head.
    pub frozen_factors: usize,
}

/// The sizes of the weights that [`load`] would make, nothing loaded.
///
/// # Errors
/// `lora_target` that fits nothing.
pub fn count(spec: &DecoderSpec, method: &Method) -> Result<WeightCounts, ModelError> {
    let adapters = method.adapters(spec)?;
    let mut loading = Loading::new(None, spec, &Source::Counting, method, DType::F32, 0);
    loading.decoder(spec, adapters);
    Ok(loading.counts)
}

/// How a weight begins when it is drawn.
#[derive(Clone, Copy)]
enum Start {
    Normal,
    Ones,
    Zeros,
}

/// Builds the decoder of `spec`, its frozen weights in `compute` dtype, with the adapters of `method`.
///
/// # Errors
/// All weights that are missing or have another shape; a value that is not finite; `lora_target` that fits nothing.
pub fn load(
    dev: &Device,
    spec: &DecoderSpec,
    source: &Source<'_>,
    method: &Method,
    compute: DType,
    seed: u64,
) -> Result<Decoder, ModelError> {
    let adapters = method.adapters(spec)?;
    let mut loading = Loading::new(Some(dev), spec, source, method, compute, seed);
    let decoder = loading.decoder(spec, adapters);
    let folder = match source {
        Source::Files(files) => files.folder(),
        Source::Random { .. } | Source::Counting => Path::new(""),
    };
    if !loading.problems.is_empty() {
        return Err(ModelError::Weights { folder: folder.to_owned(), problems: loading.problems });
    }
    if let Some((name, element)) = loading.non_finite {
        return Err(ModelError::NonFinite { folder: folder.to_owned(), name, element });
    }
    Ok(decoder)
}

/// Builds a decoder, collecting everything that does not fit.
struct Loading<'a> {
    dev: Option<&'a Device>,
    source: &'a Source<'a>,
    method: &'a Method,
    compute: DType,
    seed: u64,
    initializer_range: f64,
    counts: WeightCounts,
    problems: Vec<String>,
    non_finite: Option<(String, usize)>,
}

impl<'a> Loading<'a> {
    fn new(
        dev: Option<&'a Device>,
        spec: &DecoderSpec,
        source: &'a Source<'a>,
        method: &'a Method,
        compute: DType,
        seed: u64,
    ) -> Self {
        Self {
            dev,
            source,
            method,
            compute,
            seed,
            initializer_range: f64::from(spec.initializer_range),
            counts: WeightCounts::default(),
            problems: Vec::new(),
            non_finite: None,
        }
    }

    fn decoder(&mut self, spec: &DecoderSpec, adapters: Adapters) -> Decoder {
        let (v, c) = (spec.vocab_size, spec.hidden_size);
        let embed_tokens = self.embedding(spec);
        let layers = spec.layers.iter().zip(&adapters.layers).enumerate();
        let blocks = layers.map(|(i, (layer, adapters))| self.block(spec, i, layer, adapters)).collect();
        let norm = self.norm(spec, "model.norm", c);
        // As in PEFT: training one of a tied pair whole gives the head a weight of its own, which begins as the same.
        let separate =
            spec.tie_word_embeddings && matches!(self.method, Method::Lora(lora) if lora.separates_head());
        let lm_head = if separate {
            Some(self.stored_as(HEAD, self.embedding_stored_as(spec), &[v, c], Start::Normal))
        } else {
            (!spec.tie_word_embeddings).then(|| self.parameter(HEAD, &[v, c], Start::Normal))
        };
        if !self.method.trains(lm_head.as_ref().map_or(EMBEDDING, |_| HEAD)) {
            self.counts.frozen_factors += v * c;
        }
        let spec = DecoderSpec { tie_word_embeddings: lm_head.is_none(), ..spec.clone() };
        Decoder { spec, compute: self.compute, embed_tokens, blocks, norm, lm_head, adapters }
    }

    fn block(&mut self, spec: &DecoderSpec, i: usize, layer: &LayerSpec, adapters: &LayerAdapters) -> Block {
        let (c, name) = (spec.hidden_size, |part: &str| format!("model.layers.{i}.{part}"));
        let a = &layer.attention;
        let (q, kv, f) = (a.heads * a.head_dim, a.kv_heads * a.head_dim, layer.mlp.intermediate_size);
        let norms = |l: &mut Self, names: NormNames| Norms {
            before: names.before.map(|module| l.norm(spec, &name(module), c)),
            after: names.after.map(|module| l.norm(spec, &name(module), c)),
        };
        let qk_norm = |l: &mut Self, which: usize, width: usize| {
            let norm = a.qk_norm?;
            let width = if norm.all_heads { width } else { a.head_dim };
            Some(l.norm(spec, &name(&format!("self_attn.{}", norm.names[which])), width))
        };
        let linear = |l: &mut Self, module: &str, shape, bias| {
            let last = module.rsplit('.').next().unwrap_or(module);
            l.linear(&name(module), shape, bias, adapters.rank_of(last))
        };
        Block {
            attention_norms: norms(self, layer.attention_norms),
            self_attn: Attention {
                q_proj: linear(self, "self_attn.q_proj", [q, c], a.qkv_bias),
                k_proj: linear(self, "self_attn.k_proj", [kv, c], a.qkv_bias),
                v_proj: linear(self, "self_attn.v_proj", [kv, c], a.qkv_bias),
                o_proj: linear(self, "self_attn.o_proj", [c, q], a.o_bias),
                q_norm: qk_norm(self, 0, q),
                k_norm: qk_norm(self, 1, kv),
                spec: a.clone(),
            },
            mlp_norms: norms(self, layer.mlp_norms),
            mlp: Mlp {
                gate_proj: layer.mlp.gated.then(|| linear(self, "mlp.gate_proj", [f, c], layer.mlp.bias)),
                up_proj: linear(self, "mlp.up_proj", [f, c], layer.mlp.bias),
                down_proj: linear(self, "mlp.down_proj", [c, f], layer.mlp.bias),
                activation: layer.mlp.activation,
            },
            residual_multiplier: layer.residual_multiplier,
        }
    }

    fn norm(&mut self, spec: &DecoderSpec, path: &str, width: usize) -> Norm {
        // The norm multiplies by offset + w: fresh weights make that 1.
        let start = if spec.norm.offset == 0.0 { Start::Ones } else { Start::Zeros };
        Norm { weight: self.parameter(&format!("{path}.weight"), &[width], start), params: spec.norm }
    }

    fn linear(&mut self, path: &str, shape: [usize; 2], bias: bool, rank: Option<usize>) -> Linear {
        let weight = format!("{path}.weight");
        if !self.method.trains(&weight) {
            self.counts.frozen_factors += shape[0] * shape[1];
        }
        Linear {
            weight: self.parameter(&weight, &shape, Start::Normal),
            bias: bias.then(|| self.parameter(&format!("{path}.bias"), &shape[..1], Start::Zeros)),
            lora: rank.and_then(|rank| self.lora(path, shape, rank)),
        }
    }

    /// A fresh adapter: A uniform in ±1/√in, B zero (PEFT's default).
    fn lora(&mut self, path: &str, [outputs, inputs]: [usize; 2], rank: usize) -> Option<Lora> {
        let Method::Lora(options) = self.method else { return None };
        self.counts.trained += rank * (inputs + outputs);
        let counting = matches!(self.source, Source::Counting);
        let (inputs, outputs, rank) = if counting { (0, 0, 0) } else { (inputs, outputs, rank) };
        let bound = 1.0 / (inputs as f64).sqrt();
        let key = random::key(self.seed, &[random::name_part(path)]);
        let draw = |i| ((2.0 * random::uniform(key, i) - 1.0) * bound) as f32;
        let a: Vec<f32> = (0..(rank * inputs) as u64).map(draw).collect();
        Some(Lora {
            a: Parameter::trained(format!("{path}.lora_A.weight"), Tensor::from_slice(&a, &[rank, inputs])),
            b: Parameter::trained(
                format!("{path}.lora_B.weight"),
                Tensor::zeros(DType::F32, &[outputs, rank]),
            ),
            scale: options.scale(rank),
            dropout: options.dropout,
            dropout_id: random::name_part(path),
        })
    }

    fn embedding(&mut self, spec: &DecoderSpec) -> Parameter {
        let stored = self.embedding_stored_as(spec);
        self.stored_as(EMBEDDING, stored, &[spec.vocab_size, spec.hidden_size], Start::Normal)
    }

    /// Where the embedding is tied, the file may hold it under the head's name alone.
    fn embedding_stored_as(&self, spec: &DecoderSpec) -> &'static str {
        let head_only = matches!(self.source, Source::Files(files)
            if spec.tie_word_embeddings && !files.contains(EMBEDDING) && files.contains(HEAD));
        if head_only { HEAD } else { EMBEDDING }
    }

    fn parameter(&mut self, name: &str, shape: &[usize], start: Start) -> Parameter {
        self.stored_as(name, name, shape, start)
    }

    fn stored_as(&mut self, name: &str, stored: &str, shape: &[usize], start: Start) -> Parameter {
        let trained = self.method.trains(name);
        let elements = shape.iter().product::<usize>();
        *if trained { &mut self.counts.trained } else { &mut self.counts.frozen } += elements;
        let value = match self.source {
            Source::Counting => return Parameter::frozen(name, Tensor::zeros(self.compute, &[0, 0])),
            Source::Random { seed } => self.draw(*seed, stored, shape, start),
            Source::Files(files) => match files.tensor(stored, shape) {
                Ok(tensor) => tensor,
                Err(problem) => {
                    self.problems.push(problem);
                    Tensor::zeros(self.compute, &[0])
                }
            },
        };
        if let (None, Some(dev)) = (&self.non_finite, self.dev) {
            let found = first_non_finite(dev, value.view());
            self.non_finite = found.map(|element| (stored.to_owned(), element));
        }
        if trained {
            Parameter::trained(name, value)
        } else if value.dtype() == self.compute {
            Parameter::frozen(name, value)
        } else {
            Parameter::frozen(name, value.to_dtype(self.compute))
        }
    }

    fn draw(&self, seed: u64, name: &str, shape: &[usize], start: Start) -> Tensor {
        let key = random::key(seed, &[random::name_part(name)]);
        let value = |i: usize| match start {
            Start::Zeros => 0.0,
            Start::Ones => 1.0,
            Start::Normal => (random::normal(key, i as u64) * self.initializer_range) as f32,
        };
        const CHUNK: usize = 4096;
        let mut tensor = Tensor::zeros(DType::F32, shape);
        let fill = |chunk: usize, values: &mut [f32]| {
            values.iter_mut().enumerate().for_each(|(i, v)| *v = value(chunk * CHUNK + i));
        };
        if let Some(dev) = self.dev {
            dev.for_each_chunk(tensor.view_mut().as_mut_slice::<f32>(), CHUNK, fill);
        }
        tensor
    }
}
