//! Where a decoder's weights come from: the files of a model folder, or a seed.

use std::path::Path;

use sft_kernels::{DType, Device, Tensor, random};

use crate::ModelError;
use crate::attention::Attention;
use crate::block::Block;
use crate::decoder::Decoder;
use crate::linear::{Linear, Lora};
use crate::method::{LayerAdapters, LoraOptions, Method};
use crate::mlp::Mlp;
use crate::parameter::Parameter;
use crate::spec::{DecoderSpec, LayerSpec};
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
}

/// How a weight begins when it is drawn.
#[derive(Clone, Copy)]
enum Start {
    Normal,
    Ones,
    Zeros,
}

/// Builds a decoder, collecting everything that does not fit.
struct Loading<'a> {
    dev: &'a Device,
    source: &'a Source<'a>,
    method: &'a Method,
    compute: DType,
    initializer_range: f64,
    problems: Vec<String>,
    non_finite: Option<(String, usize)>,
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
    let initializer_range = f64::from(spec.initializer_range);
    let mut l =
        Loading { dev, source, method, compute, initializer_range, problems: Vec::new(), non_finite: None };
    let (v, c) = (spec.vocab_size, spec.hidden_size);
    let embed_tokens = l.embedding(spec);
    let blocks = spec.layers.iter().enumerate().map(|(i, layer)| l.block(spec, i, layer)).collect();
    let norm = l.parameter("model.norm.weight", &[c], Start::Ones);
    let lm_head = (!spec.tie_word_embeddings).then(|| l.parameter("lm_head.weight", &[v, c], Start::Normal));
    let folder = match source {
        Source::Files(files) => files.folder(),
        Source::Random { .. } => Path::new(""),
    };
    if !l.problems.is_empty() {
        return Err(ModelError::Weights { folder: folder.to_owned(), problems: l.problems });
    }
    if let Some((name, element)) = l.non_finite {
        return Err(ModelError::NonFinite { folder: folder.to_owned(), name, element });
    }
    let mut decoder = Decoder { spec: spec.clone(), compute, embed_tokens, blocks, norm, lm_head, adapters };
    if let Method::Lora(options) = method {
        let adapters = decoder.adapters.clone();
        for (block, adapters) in decoder.blocks.iter_mut().zip(&adapters.layers) {
            add_lora(block, adapters, options, seed);
        }
    }
    Ok(decoder)
}

/// Puts fresh adapters on the linear layers of a block: A uniform in ±1/√in, B zero (PEFT's default).
fn add_lora(block: &mut Block, adapters: &LayerAdapters, options: &LoraOptions, seed: u64) {
    for (module, linear) in block.linears_mut() {
        let last = module.rsplit('.').next().unwrap_or(module);
        let Some(rank) = adapters.rank_of(last) else { continue };
        let path = linear.weight.name().trim_end_matches(".weight").to_owned();
        let (outputs, inputs) = (linear.weight.value().dim(0), linear.weight.value().dim(1));
        let bound = 1.0 / (inputs as f64).sqrt();
        let key = random::key(seed, &[random::name_part(&path)]);
        let draw = |i| ((2.0 * random::uniform(key, i) - 1.0) * bound) as f32;
        let a: Vec<f32> = (0..(rank * inputs) as u64).map(draw).collect();
        linear.lora = Some(Lora {
            a: Parameter::trained(format!("{path}.lora_A.weight"), Tensor::from_slice(&a, &[rank, inputs])),
            b: Parameter::trained(
                format!("{path}.lora_B.weight"),
                Tensor::zeros(DType::F32, &[outputs, rank]),
            ),
            scale: options.scale(rank),
            dropout: options.dropout,
            dropout_id: random::name_part(&path),
        });
    }
}

impl Loading<'_> {
    fn block(&mut self, spec: &DecoderSpec, i: usize, layer: &LayerSpec) -> Block {
        let (c, norm, name) = (spec.hidden_size, spec.norm, |part: &str| format!("model.layers.{i}.{part}"));
        let a = &layer.attention;
        let (q, kv, d, f) =
            (a.heads * a.head_dim, a.kv_heads * a.head_dim, a.head_dim, layer.mlp.intermediate_size);
        let head_norm = |l: &mut Self, which: &str| {
            a.qk_norm.then(|| l.parameter(&name(&format!("self_attn.{which}.weight")), &[d], Start::Ones))
        };
        Block {
            input_layernorm: self.parameter(&name("input_layernorm.weight"), &[c], Start::Ones),
            self_attn: Attention {
                q_proj: self.linear(&name("self_attn.q_proj"), [q, c], a.qkv_bias),
                k_proj: self.linear(&name("self_attn.k_proj"), [kv, c], a.qkv_bias),
                v_proj: self.linear(&name("self_attn.v_proj"), [kv, c], a.qkv_bias),
                o_proj: self.linear(&name("self_attn.o_proj"), [c, q], a.o_bias),
                q_norm: head_norm(self, "q_norm"),
                k_norm: head_norm(self, "k_norm"),
                spec: a.clone(),
                norm,
            },
            post_attention_layernorm: self.parameter(
                &name("post_attention_layernorm.weight"),
                &[c],
                Start::Ones,
            ),
            mlp: Mlp {
                gate_proj: self.linear(&name("mlp.gate_proj"), [f, c], layer.mlp.bias),
                up_proj: self.linear(&name("mlp.up_proj"), [f, c], layer.mlp.bias),
                down_proj: self.linear(&name("mlp.down_proj"), [c, f], layer.mlp.bias),
                activation: layer.mlp.activation,
            },
            norm,
        }
    }

    fn linear(&mut self, path: &str, shape: [usize; 2], bias: bool) -> Linear {
        Linear {
            weight: self.parameter(&format!("{path}.weight"), &shape, Start::Normal),
            bias: bias.then(|| self.parameter(&format!("{path}.bias"), &shape[..1], Start::Zeros)),
            lora: None,
        }
    }

    /// The embedding; where it is tied, the file may hold it under the head's name alone.
    fn embedding(&mut self, spec: &DecoderSpec) -> Parameter {
        const NAME: &str = "model.embed_tokens.weight";
        let head_only = matches!(self.source, Source::Files(files)
            if spec.tie_word_embeddings && !files.contains(NAME) && files.contains("lm_head.weight"));
        let stored = if head_only { "lm_head.weight" } else { NAME };
        self.stored_as(NAME, stored, &[spec.vocab_size, spec.hidden_size], Start::Normal)
    }

    fn parameter(&mut self, name: &str, shape: &[usize], start: Start) -> Parameter {
        self.stored_as(name, name, shape, start)
    }

    fn stored_as(&mut self, name: &str, stored: &str, shape: &[usize], start: Start) -> Parameter {
        let value = match self.source {
            Source::Random { seed } => self.draw(*seed, name, shape, start),
            Source::Files(files) => match files.tensor(stored, shape) {
                Ok(tensor) => tensor,
                Err(problem) => {
                    self.problems.push(problem);
                    Tensor::zeros(self.compute, &[0])
                }
            },
        };
        if self.non_finite.is_none() {
            let found = first_non_finite(self.dev, value.view());
            self.non_finite = found.map(|element| (stored.to_owned(), element));
        }
        if self.method.trains(name) {
            Parameter::trained(name, value)
        } else if value.dtype() == self.compute {
            Parameter::frozen(name, value)
        } else {
            Parameter::frozen(name, value.to_dtype(self.compute))
        }
    }

    fn draw(&self, seed: u64, name: &str, shape: &[usize], start: Start) -> Tensor {
        let mut tensor = Tensor::zeros(DType::F32, shape);
        let key = random::key(seed, &[random::name_part(name)]);
        const CHUNK: usize = 4096;
        self.dev.for_each_chunk(
            tensor.view_mut().as_mut_slice::<f32>(),
            CHUNK,
            |chunk, values| match start {
                Start::Zeros => {}
                Start::Ones => values.fill(1.0),
                Start::Normal => {
                    for (i, value) in values.iter_mut().enumerate() {
                        let normal = random::normal(key, (chunk * CHUNK + i) as u64);
                        *value = (normal * self.initializer_range) as f32;
                    }
                }
            },
        );
        tensor
    }
}
