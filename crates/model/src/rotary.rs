//! cos and sin of every token of a micro-batch, from its position and the length of its row.
//!
//! > angle[t, i] = position[t] · inv_freq[i], inv_freq[i] = theta^(−2i / rotary_dim), changed by the scaling rule
//!
//! Formulas of the scaling rules as in transformers' `modeling_rope_utils.py`; angles are f32 products as there.
//! Computed once a micro-batch and shared by all layers.

use std::f64::consts::TAU;

use sft_kernels::{DType, Device, View};

use crate::column::Column;
use crate::pass::Angles;
use crate::spec::{DecoderSpec, QueryGrowth, RopeScaling, RopeSpec};

/// Tokens whose angles one task computes.
const TOKENS_PER_TASK: usize = 128;

/// What all layers of a decoder need to know of positions.
#[derive(Debug)]
pub struct Rotaries {
    /// Of most layers.
    pub rope: Option<Rotary>,
    /// Of the layers with [`crate::spec::LayerRope::Local`].
    pub local_rope: Option<Rotary>,
    /// How queries grow, and what each token's are multiplied by, f32 [N].
    query_scale: Option<(QueryGrowth, Column)>,
    /// Rows in chunks, for the layers that have them.
    chunks: Option<ChunkRows>,
}

/// Row boundaries with those of chunks, that begin at multiples of their size in each row.
#[derive(Debug)]
struct ChunkRows {
    size: usize,
    starts: Vec<u32>,
}

impl ChunkRows {
    /// Of rows `rows[r]..rows[r + 1]`, each from position 0 on.
    fn fill(&mut self, rows: &[u32]) {
        self.starts.clear();
        self.starts.extend(rows.first());
        for row in rows.windows(2) {
            let inside = (row[0]..row[1]).step_by(self.size).skip(1);
            self.starts.extend(inside);
            self.starts.extend((row[0] < row[1]).then_some(row[1]));
        }
    }
}

impl Rotaries {
    /// Room for `max_tokens` tokens.
    pub fn new(dev: &Device, spec: &DecoderSpec, max_tokens: usize) -> Self {
        let rotary = |rope: &Option<RopeSpec>| rope.as_ref().map(|rope| Rotary::new(dev, rope, max_tokens));
        let scale = spec.query_growth.map(|growth| (growth, Column::new(dev, &[max_tokens])));
        let chunk = spec.layers.iter().find_map(|layer| layer.attention.chunk);
        let chunks = chunk.map(|size| ChunkRows { size, starts: Vec::new() });
        Self { rope: rotary(&spec.rope), local_rope: rotary(&spec.local_rope), query_scale: scale, chunks }
    }

    /// As [`Rotary::fill`].
    pub fn fill(&mut self, dev: &Device, position_ids: &[u32], rows: &[u32]) {
        for rope in self.rope.iter_mut().chain(&mut self.local_rope) {
            rope.fill(dev, position_ids, rows);
        }
        if let Some(chunks) = &mut self.chunks {
            chunks.fill(rows);
        }
        if let Some((growth, scale)) = &mut self.query_scale {
            let n = position_ids.len();
            let values = scale.values(n).iter_mut().zip(position_ids);
            values.for_each(|(scale, position)| *scale = growth.at(*position));
            scale.send(n);
        }
    }

    /// Row boundaries with those of chunks.
    pub fn chunks(&self) -> Option<&[u32]> {
        self.chunks.as_ref().map(|chunks| &chunks.starts[..])
    }

    /// What the queries of the first `tokens` tokens are multiplied by.
    pub fn query_scale(&self, tokens: usize) -> Option<View<'_>> {
        self.query_scale.as_ref().map(|(_, scale)| scale.view(tokens))
    }

    /// Bytes that they hold for `max_tokens` tokens.
    pub fn bytes(spec: &DecoderSpec, max_tokens: usize) -> usize {
        let ropes = spec.rope.iter().chain(&spec.local_rope);
        let scale = if spec.query_growth.is_some() { max_tokens * DType::F32.bytes() } else { 0 };
        ropes.map(|rope| Rotary::bytes(rope, max_tokens)).sum::<usize>() + scale
    }
}

impl QueryGrowth {
    /// What queries at this position are multiplied by.
    fn at(&self, position: u32) -> f32 {
        (1.0 + self.beta * (1.0 + ((position as usize + self.offset) / self.span) as f64).ln()) as f32
    }
}

/// cos and sin of the tokens of one micro-batch, [N, rotary_dim / 2] each, f32.
#[derive(Debug)]
pub struct Rotary {
    spec: RopeSpec,
    inv_freq: Vec<f32>,
    factor: f32,
    cos: Column,
    sin: Column,
}

impl Rotary {
    /// Room for `max_tokens` tokens.
    pub fn new(dev: &Device, spec: &RopeSpec, max_tokens: usize) -> Self {
        let shape = [max_tokens, spec.rotary_dim / 2];
        let (inv_freq, factor) = frequencies(spec, 0);
        Self {
            spec: spec.clone(),
            inv_freq,
            factor,
            cos: Column::new(dev, &shape),
            sin: Column::new(dev, &shape),
        }
    }

    /// Computes cos and sin for the rows of a micro-batch: row r holds tokens `rows[r]..rows[r + 1]`.
    ///
    /// # Panics
    /// If there are more tokens than there is room for.
    pub fn fill(&mut self, dev: &Device, position_ids: &[u32], rows: &[u32]) {
        let pairs = self.inv_freq.len();
        let changes = self.spec.scaling.depends_on_length();
        let sign = if self.spec.reversed { -self.factor } else { self.factor };
        let (cos, sin) = (self.cos.values(position_ids.len()), self.sin.values(position_ids.len()));
        for row in rows.windows(2) {
            let row = row[0] as usize..row[1] as usize;
            if changes {
                let length = position_ids[row.clone()].iter().max().map_or(0, |last| *last as usize + 1);
                (self.inv_freq, self.factor) = frequencies(&self.spec, length);
            }
            let (inv_freq, factor) = (&self.inv_freq, self.factor);
            let out = row.start * pairs..row.end * pairs;
            let (cos, sin, positions) = (&mut cos[out.clone()], &mut sin[out], &position_ids[row]);
            let chunk = TOKENS_PER_TASK * pairs;
            dev.for_each_chunk_pair((cos, chunk), (sin, chunk), |task, cos, sin| {
                let positions = &positions[task * TOKENS_PER_TASK..];
                let tokens = cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs)).zip(positions);
                for ((cos, sin), position) in tokens {
                    for ((cos, sin), inv_freq) in cos.iter_mut().zip(sin).zip(inv_freq) {
                        let (s, c) = (*position as f32 * inv_freq).sin_cos();
                        (*cos, *sin) = (c * factor, s * sign);
                    }
                }
            });
        }
        self.cos.send(position_ids.len());
        self.sin.send(position_ids.len());
    }

    /// cos and sin of the first `tokens` tokens.
    pub fn angles(&self, tokens: usize) -> Angles<'_> {
        Angles { cos: self.cos.view(tokens), sin: self.sin.view(tokens), style: self.spec.style }
    }

    /// Bytes that it holds for `max_tokens` tokens.
    pub fn bytes(spec: &RopeSpec, max_tokens: usize) -> usize {
        2 * max_tokens * spec.rotary_dim / 2 * DType::F32.bytes()
    }
}

/// The inverse frequencies, and what cos and sin are multiplied by, for rows of `length` tokens.
fn frequencies(spec: &RopeSpec, length: usize) -> (Vec<f32>, f32) {
    let plain = |theta: f64| inverse_powers(theta, spec.rotary_dim);
    match &spec.scaling {
        RopeScaling::Default => (plain(spec.theta), 1.0),
        RopeScaling::Linear { factor } => {
            (plain(spec.theta).into_iter().map(|f| f / *factor as f32).collect(), 1.0)
        }
        RopeScaling::Proportional { pairs, factor } => {
            let turning = plain(spec.theta).into_iter().enumerate();
            let turning = turning.map(|(i, f)| if i < *pairs { f / *factor as f32 } else { 0.0 });
            (turning.collect(), 1.0)
        }
        RopeScaling::Dynamic { factor, max_position_embeddings: max } => {
            let (dim, stretch) = (spec.rotary_dim as f64, length.max(*max) as f64 / *max as f64);
            let base = spec.theta * (factor * stretch - (factor - 1.0)).powf(dim / (dim - 2.0));
            (plain(base), 1.0)
        }
        RopeScaling::Yarn { attention_factor, .. } => (yarn(spec), *attention_factor as f32),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_max_position_embeddings,
            attention_factor,
        } => {
            let is_long = length > *original_max_position_embeddings;
            let factors = if is_long { long_factor } else { short_factor };
            // Divided after the power, as in transformers: 1 / (factor · theta^…).
            let powers = plain(spec.theta).into_iter().zip(factors);
            let scaled = powers.map(|(f, factor)| 1.0 / (*factor as f32 * (1.0 / f)));
            (scaled.collect(), *attention_factor as f32)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f64;
            let scaled = plain(spec.theta).into_iter().map(|f| {
                let wavelength = TAU / f64::from(f);
                if wavelength < original / high_freq_factor {
                    return f;
                }
                if wavelength > original / low_freq_factor {
                    return f / *factor as f32;
                }
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                ((1.0 - smooth) * f64::from(f) / factor + smooth * f64::from(f)) as f32
            });
            (scaled.collect(), 1.0)
        }
    }
}

fn inverse_powers(theta: f64, dim: usize) -> Vec<f32> {
    let power = |i: usize| (theta as f32).powf(2.0 * i as f32 / dim as f32);
    (0..dim / 2).map(|i| 1.0 / power(i)).collect()
}

fn yarn(spec: &RopeSpec) -> Vec<f32> {
    let RopeScaling::Yarn {
        factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, ..
    } = spec.scaling
    else {
        unreachable!("called for YaRN alone");
    };
    let dim = spec.rotary_dim as f64;
    let dimension_of = |rotations: f64| {
        dim * (original_max_position_embeddings as f64 / (rotations * TAU)).ln() / (2.0 * spec.theta.ln())
    };
    let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let blend = |(i, f): (usize, f32)| {
        let interpolated = (((i as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
        f / factor as f32 * interpolated + f * (1.0 - interpolated)
    };
    inverse_powers(spec.theta, spec.rotary_dim).into_iter().enumerate().map(blend).collect()
}

#[cfg(test)]
#[expect(clippy::excessive_precision, reason = "golden values as torch prints them")]
mod tests {
    use sft_kernels::rope::RopeStyle;

    use super::*;

    fn spec(theta: f64, rotary_dim: usize, scaling: RopeScaling) -> RopeSpec {
        RopeSpec { theta, rotary_dim, style: RopeStyle::Half, reversed: false, scaling }
    }

    fn assert_frequencies(found: Vec<f32>, expected: &[f32]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 2e-6, "{found:e} and not {expected:e}");
        }
    }

    // Expected values: transformers 5.6, ROPE_INIT_FUNCTIONS, with head_dim 8.
    #[test]
    fn yarn_frequencies_are_those_of_transformers() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 16,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            truncate: true,
        };
        let (found, _) = frequencies(&spec(1e6, 8, scaling), 0);
        assert_frequencies(found, &YARN);
    }

    #[test]
    fn llama3_frequencies_are_those_of_transformers() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 16,
        };
        let (found, _) = frequencies(&spec(500_000.0, 8, scaling), 0);
        assert_frequencies(found, &LLAMA3);
    }

    #[test]
    fn dynamic_frequencies_change_beyond_the_trained_length_only() {
        let scaling = RopeScaling::Dynamic { factor: 4.0, max_position_embeddings: 8 };
        let spec = spec(10_000.0, 8, scaling);
        assert_eq!(frequencies(&spec, 8), (inverse_powers(10_000.0, 8), 1.0));
        assert_frequencies(frequencies(&spec, 17).0, &DYNAMIC_17);
    }

    #[test]
    fn long_rows_have_wavelengths_of_their_own() {
        let scaling = RopeScaling::LongRope {
            short_factor: vec![1.0; 4],
            long_factor: vec![1.0, 2.0, 4.0, 8.0],
            original_max_position_embeddings: 8,
            attention_factor: 1.25,
        };
        let spec = spec(10_000.0, 8, scaling);
        assert_eq!(frequencies(&spec, 8), (inverse_powers(10_000.0, 8), 1.25));
        assert_frequencies(frequencies(&spec, 9).0, &[1.0, 0.05, 0.0025, 0.000125]);
    }

    #[test]
    fn rows_are_cut_where_chunks_begin() {
        let mut chunks = ChunkRows { size: 4, starts: Vec::new() };
        // Rows of 5, no, 3 and 8 tokens.
        chunks.fill(&[0, 5, 5, 8, 16]);
        assert_eq!(chunks.starts, [0, 4, 5, 8, 12, 16]);
    }

    #[test]
    fn queries_grow_with_the_logarithm_of_whole_spans() {
        let growth = QueryGrowth { beta: 0.5, span: 4, offset: 0 };
        assert_eq!([growth.at(0), growth.at(3)], [1.0, 1.0]);
        assert_eq!(growth.at(11), (1.0 + 0.5 * 3f64.ln()) as f32);
        assert_eq!(QueryGrowth { offset: 1, ..growth }.at(3), growth.at(4));
    }

    const YARN: [f32; 4] = [1.00000000e+00, 7.90569466e-03, 2.50000012e-04, 7.90569356e-06];
    const LLAMA3: [f32; 4] = [5.76056361e-01, 4.70075384e-03, 1.76776681e-04, 6.64786967e-06];
    const DYNAMIC_17: [f32; 4] = [1.00000000e+00, 5.66516370e-02, 3.20940767e-03, 1.81818177e-04];
}
