//! Where a decoder's weights come from: the files of a model folder, or a seed.

mod fresh;
mod weight;

use std::collections::BTreeMap;
use std::path::Path;

use sft_kernels::{DType, Device, Tensor};

use crate::ModelError;
use crate::attention::Attention;
use crate::block::Block;
use crate::decoder::Decoder;
use crate::entry::{Entry, Positions};
use crate::experts::{self, ExpertOutlines, Experts};
use crate::feed_forward::FeedForward;
use crate::inputs::Inputs;
use crate::latent::Latent;
use crate::linear::Linear;
use crate::method::{Adapters, Carried, LayerAdapters, Method};
use crate::mixer::Mixer;
use crate::mlp::{Act, Mlp, Xielu};
use crate::moe::Moe;
use crate::norm::Norm;
use crate::norms::Norms;
use crate::parameter::{Outline, Parameter, Stored};
use crate::per_layer::{PerLayer, PerLayerInputs};
use crate::quantization::{Precision, Quantization};
use crate::recurrent::Recurrent;
use crate::short_conv::ShortConv;
use crate::spec::{
    ActivationSpec, AttentionSpec, DecoderSpec, ExpertNames, GateSpec, InputNames, LatentQueries, LatentSpec,
    MixerSpec, MlpSpec, MoeSpec, Moved, NormNames, NormSpec, Part, QkNorm, QkScope, RecurrentSpec, RuleSpec,
    ShortConvSpec,
};
use crate::weights::WeightFiles;

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
    /// Of the frozen ones those that are quantised.
    pub quantized: usize,
    /// Bytes that these take.
    pub quantized_bytes: usize,
    /// Elements of the largest of them, which a GPU decodes whole.
    pub largest_quantized: usize,
    /// Frozen elements that packing copies, once for each of two products.
    pub packed: usize,
    /// Of these the ones that are read nowhere else and freed then: all, but for a head that is the embedding too.
    pub freed_by_packing: usize,
}

impl WeightCounts {
    /// Counts a matrix that packing copies, and frees if it is read nowhere else.
    fn packs(&mut self, elements: usize, freed: bool) {
        self.packed = self.packed.saturating_add(elements);
        if freed {
            self.freed_by_packing = self.freed_by_packing.saturating_add(elements);
        }
    }
}

/// The sizes of the weights that [`load`] would make, nothing loaded.
///
/// # Errors
/// `lora_target` that fits nothing; sizes of no model that there could be.
pub fn count(
    spec: &DecoderSpec,
    method: &Method,
    quantization: Option<Quantization>,
) -> Result<WeightCounts, ModelError> {
    let adapters = method.adapters(spec)?;
    let precision = Precision { compute: DType::F32, quantization };
    let mut loading = Loading::new(None, spec, &Source::Counting, method, precision, 0);
    loading.decoder(spec, adapters);
    let WeightCounts { trained, frozen, packed, .. } = loading.counts;
    if [trained, frozen, packed].into_iter().any(|count| count > MOST_WEIGHTS) {
        return Err(ModelError::Method {
            key: "model_name_or_path",
            reason: "the sizes in its config.json, or those of its adapters, come to more than 2^44 weights"
                .into(),
            help: "the file is damaged or was changed by hand".into(),
        });
    }
    Ok(loading.counts)
}

/// More than any machine holds, and few enough that bytes of buffers can be counted.
const MOST_WEIGHTS: usize = 1 << 44;

/// Elements of a shape that a file may have made up.
fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product: usize, size| product.saturating_mul(*size))
}

/// The weights that training changes, in the model's order, nothing loaded.
///
/// # Errors
/// `lora_target` that fits nothing.
pub fn trained(spec: &DecoderSpec, method: &Method) -> Result<Vec<Outline>, ModelError> {
    let adapters = method.adapters(spec)?;
    let mut loading = Loading::new(None, spec, &Source::Counting, method, DType::F32.into(), 0);
    loading.decoder(spec, adapters);
    Ok(loading.trained)
}

/// [out, in] of every linear layer but the head, by its full name, nothing loaded.
pub(crate) fn linear_widths(spec: &DecoderSpec) -> BTreeMap<String, [usize; 2]> {
    let mut loading = Loading::new(None, spec, &Source::Counting, &Method::Inference, DType::F32.into(), 0);
    loading.decoder(spec, Adapters::none(spec));
    loading.linear_widths
}

/// How a weight begins when it is drawn.
#[derive(Clone, Copy)]
enum Start {
    Normal,
    All(f32),
}

/// What fresh weights of an activation begin as: [`Xielu`]'s by its paper.
const XIELU_START: [(&str, f32); 4] =
    [("alpha_p", 0.203_382_3), ("alpha_n", -1.050_225_7), ("beta", 0.5), ("eps", -1e-6)];

/// Builds the decoder of `spec`, its frozen weights in the compute dtype or quantised, with the adapters of `method`.
///
/// # Errors
/// All weights that are missing or have another shape; a value that is not finite; `lora_target` that fits nothing.
pub fn load(
    dev: &Device,
    spec: &DecoderSpec,
    source: &Source<'_>,
    method: &Method,
    precision: impl Into<Precision>,
    seed: u64,
) -> Result<Decoder, ModelError> {
    let adapters = method.adapters(spec)?;
    let mut loading = Loading::new(Some(dev), spec, source, method, precision.into(), seed);
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
    /// Of the linear layers that stay as they are.
    quantization: Option<Quantization>,
    seed: u64,
    initializer_range: f64,
    moved: &'static [Moved],
    counts: WeightCounts,
    trained: Vec<Outline>,
    problems: Vec<String>,
    non_finite: Option<(String, usize)>,
    /// [out, in] of every linear layer but the head, by its full name.
    linear_widths: BTreeMap<String, [usize; 2]>,
}

impl<'a> Loading<'a> {
    fn new(
        dev: Option<&'a Device>,
        spec: &DecoderSpec,
        source: &'a Source<'a>,
        method: &'a Method,
        Precision { compute, quantization }: Precision,
        seed: u64,
    ) -> Self {
        Self {
            dev,
            source,
            method,
            compute,
            quantization,
            seed,
            initializer_range: f64::from(spec.initializer_range),
            moved: spec.moved,
            counts: WeightCounts::default(),
            trained: Vec::new(),
            problems: Vec::new(),
            non_finite: None,
            linear_widths: BTreeMap::new(),
        }
    }

    fn decoder(&mut self, spec: &DecoderSpec, adapters: Adapters) -> Decoder {
        let (v, c, names) = (spec.vocab_size, spec.hidden_size, spec.names);
        let width = spec.embedding_projection.map_or(c, |projection| projection.width);
        let (embedding, head) = (names.embedding(), names.head());
        // Where the embedding is tied, the file may hold it under the head's name alone.
        let is_head = matches!(self.source, Source::Files(files)
            if spec.tie_word_embeddings
                && !files.contains(&self.in_files(&embedding, Stored::Plain, &[]))
                && files.contains(&self.in_files(&head, Stored::Plain, &[])));
        let stored = if is_head { &head } else { &embedding };
        let embed_tokens = self.of_vocabulary(spec, &embedding, stored, &[v, width]);
        let entry = self.entry(spec, &adapters.outside);
        let layers = adapters.layers.iter().enumerate();
        let blocks = layers.map(|(i, adapters)| self.block(spec, i, adapters)).collect();
        let norm = names.norm.map(|name| self.norm(spec.norm, name, &[c]));
        let project_out = spec.embedding_projection.map(|projection| {
            let carried = adapters.outside.carried_by(projection.out_of);
            self.linear(projection.out_of, [width, c], (false, Stored::Plain), carried)
        });
        // As in PEFT: training one of a tied pair whole gives the head a weight of its own, which begins as the same.
        let separate = spec.tie_word_embeddings
            && self.method.adapter_options().is_some_and(|options| options.separates_head(&names));
        let lm_head = if separate {
            Some(self.of_vocabulary(spec, &head, stored, &[v, width]))
        } else {
            (!spec.tie_word_embeddings).then(|| self.of_vocabulary(spec, &head, &head, &[v, width]))
        };
        let lm_head =
            lm_head.map(|head| if spec.normalised_head { self.with_unit_rows(&head) } else { head });
        if !self.method.trains(if lm_head.is_some() { &head } else { &embedding }) {
            self.counts.packs(elements(&[v, width]), lm_head.is_some());
        }
        let head_bias = format!("{}.bias", names.lm_head);
        let head_bias = spec.head_bias.then(|| self.of_vocabulary(spec, &head_bias, &head_bias, &[v]));
        let spec = DecoderSpec { tie_word_embeddings: lm_head.is_none(), ..spec.clone() };
        let compute = self.compute;
        Decoder {
            spec,
            compute,
            embed_tokens,
            entry,
            blocks,
            norm,
            project_out,
            lm_head,
            head_bias,
            adapters,
        }
    }

    fn entry(&mut self, spec: &DecoderSpec, adapters: &LayerAdapters) -> Entry {
        let c = spec.hidden_size;
        let project_in = spec.embedding_projection.map(|projection| {
            let carried = adapters.carried_by(projection.into);
            self.linear(projection.into, [c, projection.width], (false, Stored::Plain), carried)
        });
        let positions = spec.positions.map(|positions| {
            let name = format!("{}.weight", positions.name);
            Positions::new(positions, self.parameter(&name, &[positions.rows, c], Start::Normal))
        });
        let norm = spec.embedding_norm.map(|name| self.norm(spec.norm, name, &[c]));
        let per_layer = spec.per_layer.map(|per_layer| {
            let all = per_layer.width * spec.layers.len();
            let carried = adapters.carried_by(per_layer.projection);
            let embedding = format!("{}.weight", per_layer.embedding);
            PerLayerInputs {
                embedding: self.parameter(&embedding, &[per_layer.vocab_size, all], Start::Normal),
                projection: self.linear(per_layer.projection, [all, c], (false, Stored::Plain), carried),
                norm: self.norm(spec.norm, per_layer.norm, &[per_layer.width]),
                spec: per_layer,
            }
        });
        let multiplier = spec.embedding_multiplier;
        Entry { multiplier, project_in, positions, norm, noise: None, per_layer }
    }

    /// The layer at the end of a block.
    fn per_layer(&mut self, spec: &DecoderSpec, i: usize, adapters: &LayerAdapters) -> Option<PerLayer> {
        let layer = spec.layers[i].per_layer?;
        // Its gate has the function of the feed-forward layer's.
        let ActivationSpec::Fixed(activation) = spec.layers[i].mlp.activation else { return None };
        let (c, p) = (spec.hidden_size, layer.width);
        Some(PerLayer {
            gate: self.in_block(spec, i, (layer.gate, false), [p, c], adapters),
            output: self.in_block(spec, i, (layer.output, false), [c, p], adapters),
            norm: self.norm(spec.norm, &spec.names.in_block(i, layer.output_norm), &[c]),
            activation,
            spec: layer,
            layer: i,
        })
    }

    fn block(&mut self, spec: &DecoderSpec, i: usize, adapters: &LayerAdapters) -> Block {
        let layer = &spec.layers[i];
        let norms = |l: &mut Self, names: NormNames| {
            let mut norm = |name: Option<&str>| {
                name.map(|name| l.norm(spec.norm, &spec.names.in_block(i, name), &[spec.hidden_size]))
            };
            Norms { before: norm(names.before), after: norm(names.after), of_sum: norm(names.of_sum) }
        };
        Block {
            attention_norms: norms(self, layer.attention_norms),
            mixer: self.mixer(spec, i, adapters),
            mlp_norms: norms(self, layer.mlp_norms),
            mlp: layer.has_mlp.then(|| self.feed_forward(spec, i, adapters)),
            parallel: layer.parallel,
            per_layer: self.per_layer(spec, i, adapters),
            output_scalar: layer
                .output_scalar
                .map(|name| self.constant(&spec.names.in_block(i, name), &[1], 1.0)),
            residual_multiplier: layer.residual_multiplier,
        }
    }

    fn mixer(&mut self, spec: &DecoderSpec, i: usize, adapters: &LayerAdapters) -> Mixer {
        let layer = &spec.layers[i];
        let attention = layer.attends().map(|a| Box::new(self.attention(spec, i, a, adapters)));
        let recurrent = layer.mixer.recurrent().map(|r| Box::new(self.recurrent(spec, i, r, adapters)));
        match (&layer.mixer, attention, recurrent) {
            (MixerSpec::ShortConv(conv), ..) => {
                Mixer::ShortConv(Box::new(self.short_conv(spec, i, *conv, adapters)))
            }
            (
                MixerSpec::Both { attention_multiplier, recurrent_multiplier, .. },
                Some(attention),
                Some(recurrent),
            ) => {
                let multipliers = [*attention_multiplier, *recurrent_multiplier];
                Mixer::Both { attention, recurrent, multipliers }
            }
            (_, Some(attention), None) => Mixer::Attention(attention),
            (_, _, Some(recurrent)) => Mixer::Recurrent(recurrent),
            (_, None, None) => unreachable!("a mixer is one of these"),
        }
    }

    fn short_conv(
        &mut self,
        spec: &DecoderSpec,
        i: usize,
        conv: ShortConvSpec,
        adapters: &LayerAdapters,
    ) -> ShortConv {
        let c = spec.hidden_size;
        let in_proj = self.inputs(spec, i, (conv.inputs(), conv.bias), &[c, c, c], adapters);
        let (weight, bias) = self.convolution(&spec.names.in_block(i, conv.conv), [c, conv.taps], conv.bias);
        let out_proj = self.in_block(spec, i, (conv.output, conv.bias), [c, c], adapters);
        ShortConv { in_proj, conv: weight, conv_bias: bias, out_proj, spec: conv }
    }

    /// The weight [channels, 1, W] of a convolution, and its bias.
    fn convolution(
        &mut self,
        path: &str,
        [channels, taps]: [usize; 2],
        bias: bool,
    ) -> (Parameter, Option<Parameter>) {
        let weight = self.parameter(&format!("{path}.weight"), &[channels, 1, taps], Start::Normal);
        let bias = bias.then(|| self.parameter(&format!("{path}.bias"), &[channels], Start::All(0.0)));
        // Read together, and so of one type.
        (weight, bias.map(|bias| bias.as_bias(self.compute)))
    }

    fn recurrent(
        &mut self,
        spec: &DecoderSpec,
        i: usize,
        r: &RecurrentSpec,
        adapters: &LayerAdapters,
    ) -> Recurrent {
        let (c, values) = (spec.hidden_size, r.width(Part::V));
        let mut inputs = Vec::new();
        for projection in r.inputs {
            let widths: Vec<usize> = projection.parts.iter().map(|part| r.width(*part)).collect();
            let names = (projection.input_names(r.key_heads), r.input_bias);
            inputs.push(self.inputs(spec, i, names, &widths, adapters));
        }
        let channels = r.conv_widths().iter().sum();
        let (conv, conv_bias) =
            self.convolution(&spec.names.in_block(i, r.conv), [channels, r.taps], r.conv_bias);
        let norm = r.gate.norm().map(|name| {
            let width = if let GateSpec::NormOfHeads(_) = r.gate { r.value_dim } else { values };
            self.norm(NormSpec::rms(spec.norm.eps), &spec.names.in_block(i, name), &[width])
        });
        let out_proj = self.in_block(spec, i, (r.output, r.output_bias), [c, values], adapters);
        // Of the precision of what they make: a decay is multiplied with itself from token to token.
        let compute = std::mem::replace(&mut self.compute, DType::F32);
        let mut of_heads = |name: &str, start: f32| {
            self.parameter(&spec.names.in_block(i, name), &[r.heads], Start::All(start))
        };
        let (a_log, dt_bias) = (of_heads(r.a_log, 0.0), of_heads(r.dt_bias, 1.0));
        let skip = match r.rule {
            RuleSpec::StateSpace { skip } => Some(of_heads(skip, 1.0)),
            RuleSpec::Delta => None,
        };
        self.compute = compute;
        Recurrent { inputs, conv, conv_bias, a_log, dt_bias, skip, norm, out_proj, spec: r.clone() }
    }

    fn attention(
        &mut self,
        spec: &DecoderSpec,
        i: usize,
        a: &AttentionSpec,
        adapters: &LayerAdapters,
    ) -> Attention {
        let (c, q, kv) = (spec.hidden_size, a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let of_queries = if a.output_gate { 2 * q } else { q };
        let qkv = self.inputs(spec, i, (a.inputs, a.qkv_bias), &[of_queries, kv, kv], adapters);
        let latent = a.latent.as_ref().map(|latent| self.latent(spec, i, (a.heads, latent), adapters));
        let values = a.latent.map_or(a.head_dim, |latent| latent.columns.value);
        let o_proj = self.in_block(spec, i, (a.output, a.o_bias), [c, a.heads * values], adapters);
        let sinks = a.sinks.map(|name| {
            // Of the precision of the softmax that they are a part of.
            let compute = std::mem::replace(&mut self.compute, DType::F32);
            let sinks = self.parameter(&spec.names.in_block(i, name), &[a.heads], Start::Normal);
            self.compute = compute;
            sinks
        });
        let mut qk_norm = |QkNorm { names, norm, scope, .. }: QkNorm, which: usize, heads: usize| {
            let (shape, stored): (&[usize], _) = match scope {
                QkScope::Head => (&[a.head_dim], Stored::Plain),
                QkScope::EachHead(stored) => (&[heads, a.head_dim], stored),
                QkScope::AllHeads => (&[heads * a.head_dim], Stored::Plain),
            };
            let path = spec.names.in_block(i, names[which]);
            self.norm_in(norm.unwrap_or(spec.norm), &path, (shape, stored))
        };
        let q_norm = a.qk_norm.map(|norm| qk_norm(norm, 0, a.heads));
        let k_norm = a.qk_norm.map(|norm| qk_norm(norm, 1, a.kv_heads));
        let v_norm = NormSpec { weight: false, bias: false, ..spec.norm };
        let v_norm = a.v_norm.then_some(Norm { weight: None, bias: None, spec: v_norm });
        Attention { qkv, latent, o_proj, q_norm, k_norm, v_norm, sinks, spec: a.clone() }
    }

    fn latent(
        &mut self,
        spec: &DecoderSpec,
        i: usize,
        (heads, latent): (usize, &LatentSpec),
        adapters: &LayerAdapters,
    ) -> Latent {
        let (c, columns, rank) = (spec.hidden_size, latent.columns, latent.kv_rank);
        let q = heads * columns.width();
        let norm = |l: &mut Self, name: &str, width: usize| {
            l.norm(spec.norm, &spec.names.in_block(i, name), &[width])
        };
        let (q_a, q_b) = match latent.queries {
            LatentQueries::Direct(name) => (None, self.in_block(spec, i, (name, false), [q, c], adapters)),
            LatentQueries::Narrow { rank, a, norm: name, b } => {
                let linear = self.in_block(spec, i, (a, latent.bias), [rank, c], adapters);
                let norm = norm(self, name, rank);
                (Some((linear, norm)), self.in_block(spec, i, (b, false), [q, rank], adapters))
            }
        };
        let kv_a = (latent.kv_a, latent.bias);
        let kv_b = [heads * (columns.passed + columns.value), rank];
        Latent {
            q_a,
            q_b,
            kv_a: self.in_block(spec, i, kv_a, [rank + columns.rotated, c], adapters),
            kv_a_norm: norm(self, latent.kv_a_norm, rank),
            kv_b: self.in_block(spec, i, (latent.kv_b, false), kv_b, adapters),
            spec: *latent,
        }
    }

    fn feed_forward(&mut self, spec: &DecoderSpec, i: usize, adapters: &LayerAdapters) -> FeedForward {
        let layer = &spec.layers[i];
        let mlp = layer.dense().map(|mlp| self.mlp(spec, i, mlp, adapters));
        let gate = layer.moe.as_ref().and_then(|moe| moe.shared_gate);
        let shared_gate =
            gate.map(|name| self.in_block(spec, i, (name, false), [1, spec.hidden_size], adapters));
        let moe = layer.moe.as_ref().map(|moe| self.moe(spec, i, moe, adapters));
        FeedForward { mlp, shared_gate, moe }
    }

    fn moe(&mut self, spec: &DecoderSpec, i: usize, moe: &MoeSpec, adapters: &LayerAdapters) -> Moe {
        let (e, c, f) = (moe.experts, spec.hidden_size, moe.intermediate_size);
        let path = |name: &str| spec.names.in_block(i, name);
        let router = path(moe.router.name);
        let weight = format!("{router}.weight");
        let stored = self.stored_in(&weight, moe.router.stored, &[e, c]);
        let (before, quantization) = (self.counts, self.quantization);
        let carried = adapters.carried_by(moe.router.name);
        // Only the layers that a block names as linear are quantised or packed.
        self.quantization = quantization.filter(|_| moe.router.is_linear);
        let router = self.linear(&router, [e, c], (moe.router.bias, stored), carried);
        self.quantization = quantization;
        if !moe.router.is_linear {
            self.counts.packed = before.packed;
            self.counts.freed_by_packing = before.freed_by_packing;
        }
        let correction = moe.router.correction.map(|correction| {
            let shape = if correction.is_row { &[1, e][..] } else { &[e] };
            // Of the precision of scores: in bf16 it would choose other experts.
            let compute = std::mem::replace(&mut self.compute, DType::F32);
            let correction = self.constant_in(&path(correction.name), correction.stored, shape, 0.0);
            self.compute = compute;
            correction
        });
        let ranks =
            [moe.gate_up, moe.down].map(|names| Some(adapters.carried_by(names.weight)?.low_rank()?.rank));
        let [of_gate_up, of_down] = experts::outlines(moe, c, ranks, path);
        let mut experts =
            |names: ExpertNames, [outputs, inputs]: [usize; 2], lora: Option<ExpertOutlines>| {
                let shape = if moe.transposed { [e, inputs, outputs] } else { [e, outputs, inputs] };
                let weight = path(names.weight);
                let stored = self.stored_in(&weight, names.stored, &shape);
                let bias = names.bias.map(|bias| self.parameter(&path(bias), &[e, outputs], Start::All(0.0)));
                let weight = self.parameter_in(&weight, stored, &shape, Start::Normal);
                let lora = lora.and_then(|outlines| self.expert_lora(&outlines));
                Experts { weight, bias, transposed: moe.transposed, lora }
            };
        let gate_up = experts(moe.gate_up, [2 * f, c], of_gate_up);
        let down = experts(moe.down, [c, f], of_down);
        Moe { router, correction, gate_up, down, spec: moe.clone() }
    }

    /// A frozen matrix with rows of length 1 (torch's `normalize`).
    fn with_unit_rows(&self, matrix: &Parameter) -> Parameter {
        if let Source::Counting = self.source {
            return matrix.with_value(matrix.to_host());
        }
        let mut values = matrix.to_host().to_f32_vec();
        for row in values.chunks_mut(matrix.shape()[1]) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            row.iter_mut().for_each(|x| *x /= length);
        }
        let tensor = Tensor::from_slice(&values, matrix.shape()).to_dtype(self.compute);
        matrix.with_value(self.placed(tensor))
    }

    /// The name that a weight has in the source, which can be that of a part of a larger model.
    fn in_files(&self, name: &str, form: Stored, shape: &[usize]) -> String {
        let Source::Files(files) = self.source else { return name.to_owned() };
        let renamed =
            |moved: &Moved| name.strip_prefix(moved.own).map(|rest| format!("{}{rest}", moved.files));
        let first = |name: &str| form.shapes(name, shape).swap_remove(0).0;
        let is_there = |name: &String| files.has_weight(&first(name));
        self.moved.iter().filter_map(renamed).find(is_there).unwrap_or_else(|| name.to_owned())
    }

    /// The form that a weight has in the source: the first whose tensors are there, or the first.
    fn stored_in(&self, name: &str, forms: &[Stored], shape: &[usize]) -> Stored {
        let Source::Files(files) = self.source else { return forms.first().copied().unwrap_or_default() };
        let is_there = |form: &&Stored| {
            let name = self.in_files(name, **form, shape);
            form.shapes(&name, shape).first().is_some_and(|(name, _)| files.has_weight(name))
        };
        forms.iter().find(is_there).or(forms.first()).copied().unwrap_or_default()
    }

    fn mlp(&mut self, spec: &DecoderSpec, i: usize, mlp: &MlpSpec, adapters: &LayerAdapters) -> Mlp {
        let (c, f) = (spec.hidden_size, mlp.intermediate_size);
        let widths = [f; 2];
        let widths = if mlp.gated { &widths[..] } else { &widths[..1] };
        let activation = match mlp.activation {
            ActivationSpec::Fixed(function) => Act::Fixed(function),
            ActivationSpec::Xielu(module) => Act::Xielu(Box::new(self.xielu(spec, i, module))),
        };
        Mlp {
            gate_up: self.inputs(spec, i, (mlp.inputs, mlp.bias), widths, adapters),
            down_proj: self.in_block(spec, i, (mlp.output, mlp.bias), [c, f], adapters),
            output: mlp.output,
            activation,
            multipliers: [mlp.gate_multiplier, mlp.inner_multiplier],
        }
    }

    fn xielu(&mut self, spec: &DecoderSpec, i: usize, module: &str) -> Xielu {
        let [alpha_p, alpha_n, beta, eps] = XIELU_START.map(|(name, start)| {
            let path = spec.names.in_block(i, &format!("{module}.{name}"));
            if matches!(name, "alpha_p" | "alpha_n") {
                self.parameter(&path, &[1], Start::All(start))
            } else {
                self.constant(&path, &[], start)
            }
        });
        Xielu { alpha_p, alpha_n, beta, eps }
    }

    /// A number that is stored with the weights and never trained.
    fn constant(&mut self, name: &str, shape: &[usize], start: f32) -> Parameter {
        self.constant_in(name, Stored::Plain, shape, start)
    }

    fn constant_in(&mut self, name: &str, stored: Stored, shape: &[usize], start: f32) -> Parameter {
        let method = std::mem::replace(&mut self.method, &Method::Inference);
        let constant = self.parameter_in(name, stored, shape, Start::All(start));
        self.method = method;
        constant
    }

    fn norm(&mut self, norm: NormSpec, path: &str, shape: &[usize]) -> Norm {
        self.norm_in(norm, path, (shape, Stored::Plain))
    }

    fn norm_in(&mut self, norm: NormSpec, path: &str, (shape, stored): (&[usize], Stored)) -> Norm {
        // The norm multiplies by offset + w: fresh weights make that 1.
        let start = Start::All(1.0 - norm.offset);
        let weight = norm.weight.then(|| self.parameter_in(&format!("{path}.weight"), stored, shape, start));
        let bias = norm.bias.then(|| self.parameter(&format!("{path}.bias"), shape, Start::All(0.0)));
        Norm { weight, bias, spec: norm }
    }

    /// The linear layers of one input of width C, with outputs of these widths.
    fn inputs(
        &mut self,
        spec: &DecoderSpec,
        i: usize,
        (names, bias): (InputNames, bool),
        widths: &[usize],
        adapters: &LayerAdapters,
    ) -> Inputs {
        let together = [widths.iter().sum()];
        let widths = if matches!(names, InputNames::Fused { .. }) { &together } else { widths };
        let named = names.names().iter().zip(widths);
        let linears = named
            .map(|(name, width)| self.in_block(spec, i, (name, bias), [*width, spec.hidden_size], adapters))
            .collect();
        Inputs { linears, names }
    }

    /// A linear layer of a block.
    fn in_block(
        &mut self,
        spec: &DecoderSpec,
        i: usize,
        (name, bias): (&str, bool),
        shape: [usize; 2],
        adapters: &LayerAdapters,
    ) -> Linear {
        let (path, carried) = (spec.names.in_block(i, name), adapters.carried_by(name));
        self.linear(&path, shape, (bias, spec.linear_weights), carried)
    }

    fn linear(
        &mut self,
        path: &str,
        shape: [usize; 2],
        (bias, stored): (bool, Stored),
        carried: Option<Carried>,
    ) -> Linear {
        let name = format!("{path}.weight");
        self.linear_widths.insert(path.to_owned(), shape);
        let in_codes = self.quantized(&name, stored, shape);
        let is_whole = in_codes.is_none() || self.quantization.is_some_and(Quantization::is_decoded);
        if is_whole && !self.method.trains(&name) {
            self.counts.packs(elements(&shape), true);
        }
        let weight = in_codes.unwrap_or_else(|| self.parameter_in(&name, stored, &shape, Start::Normal));
        let bias = bias.then(|| self.parameter(&format!("{path}.bias"), &shape[..1], Start::All(0.0)));
        let low_rank = carried.and_then(Carried::low_rank);
        let lora = low_rank.and_then(|low_rank| self.lora((path, &weight), shape, low_rank.rank));
        let oft = carried.and_then(Carried::rotated).and_then(|rotated| self.oft(path, rotated));
        Linear { weight, bias: bias.map(|bias| bias.as_bias(self.compute)), lora, oft }
    }
}
