//! Adam-mini (Zhang et al., 2024): one second moment for a block of weights: for a head of queries or keys, a row of every
//! other matrix, a norm as a whole. The rules go by names, as the package adam-mini has them (1.1.1).
//!
//! > m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)·mean of g² over the block
//! > p ← p·(1 − lr·wd) − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)

use sft_kernels::{Device, Tensor};
use sft_model::parameter::{Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::state::{Slot, State};
use super::{AdamWOptions, Optimizer, host};

/// Heads of the model's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// C.
    pub hidden_size: usize,
    /// H.
    pub heads: usize,
}

/// Settings of Adam-mini.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamMiniOptions {
    /// β₁, β₂, eps.
    pub adam: AdamWOptions,
    /// Pull of all but norms and biases towards 0.
    pub weight_decay: f64,
    /// What a block of queries and keys is.
    pub heads: Heads,
}

const QUERIES_AND_KEYS: [&str; 6] = ["k_proj", "q_proj", "wq", "wk", "query", "key"];
const BY_ROW: [&str; 15] = [
    "embed",
    "embd",
    "wte",
    "lm_head",
    "output",
    "final_layer",
    "v_proj",
    "wv",
    "value",
    "feed_forward",
    "linear",
    "mlp",
    "o_proj",
    "wo",
    "attn.proj",
];

impl AdamMiniOptions {
    /// Elements that share a second moment.
    ///
    /// # Errors
    /// Queries or keys that do not fall into heads of this size.
    pub fn block(&self, weight: &Outline) -> Result<usize, String> {
        let name = weight.name.to_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        let is_matrix = weight.shape.len() > 1;
        let elements = weight.elements();
        if name.contains("bias") {
            return Ok(1);
        }
        if is_matrix && has(&QUERIES_AND_KEYS) {
            let Heads { hidden_size, heads } = self.heads;
            let head = hidden_size * hidden_size / heads.max(1);
            return match head > 0 && elements.is_multiple_of(head) {
                true => Ok(head),
                false => Err(format!(
                    "{}: {elements} elements do not fall into heads of {head} (hidden_size² / num_attention_heads)",
                    weight.name
                )),
            };
        }
        let row = weight.shape.last().copied().unwrap_or(1);
        Ok(if is_matrix && has(&BY_ROW) { row } else { elements }.max(1))
    }

    fn block_of(&self, weight: &Outline) -> usize {
        self.block(weight).expect("checked when the run was prepared")
    }

    pub(super) fn layout(&self, weight: &Outline) -> Vec<Slot> {
        let blocks = weight.elements().div_ceil(self.block_of(weight));
        vec![Slot::of("exp_avg", &weight.shape), Slot::of("exp_avg_sq_mean", &[blocks])]
    }

    fn decay(&self, weight: &Outline) -> f64 {
        let name = weight.name.to_lowercase();
        let is_exempt = ["norm", "ln", "bias"].iter().any(|part| name.contains(part));
        if is_exempt { 0.0 } else { self.weight_decay }
    }
}

/// Adam-mini.
pub struct AdamMini {
    options: AdamMiniOptions,
    /// Of each weight.
    blocks: Vec<(usize, f64)>,
    state: State,
    updates: u64,
}

impl AdamMini {
    /// Moments of zero for the given parameters.
    pub fn new(options: AdamMiniOptions, parameters: &[&mut Parameter]) -> Self {
        let of = |p: &&mut Parameter| (options.block_of(&p.outline()), options.decay(&p.outline()));
        let state = State::new(parameters, |weight| options.layout(weight));
        Self { options, blocks: parameters.iter().map(of).collect(), state, updates: 0 }
    }
}

impl Optimizer for AdamMini {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        self.updates += 1;
        let AdamWOptions { beta1, beta2, eps } = self.options.adam;
        let t = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let rate = (learning_rate / (1.0 - beta1.powi(t))) as f32;
        let (root, eps) = ((1.0 - beta2.powi(t)).sqrt() as f32, eps as f32);
        let [rest1, keep2, rest2] = [1.0 - beta1, beta2, 1.0 - beta2].map(|x| x as f32);
        for ((parameter, tensors), (block, decay)) in
            parameters.iter_mut().zip(self.state.iter_mut()).zip(&self.blocks)
        {
            let Some((p, g)) = host::weight_and_gradient(parameter) else { continue };
            let [m, v]: [&mut Tensor; 2] = tensors.try_into().expect("as it was laid out");
            let (m, v) = (m.view_mut().as_mut_slice::<f32>(), v.view_mut().as_mut_slice::<f32>());
            let (block, decay) = (*block, (1.0 - learning_rate * decay) as f32);
            // Tasks of whole blocks, of about one size.
            let many = (host::CHUNK / block).max(1);
            dev.for_each_chunk(v, many, |i, v| {
                let g = &g[i * many * block..];
                for (v, g) in v.iter_mut().zip(g.chunks(block)) {
                    let squares = g.iter().map(|g| f64::from(g * grad_scale).powi(2));
                    let mean = (squares.sum::<f64>() / g.len() as f64) as f32;
                    *v = *v * keep2 + mean * rest2;
                }
            });
            let v = &*v;
            dev.for_each_chunk_pair((p, many * block), (m, many * block), |i, p, m| {
                let start = i * many;
                let blocks =
                    p.chunks_mut(block).zip(m.chunks_mut(block)).zip(g[start * block..].chunks(block));
                for (((p, m), g), v) in blocks.zip(&v[start..]) {
                    let step = rate / (v.sqrt() / root + eps);
                    for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
                        *m += (g * grad_scale - *m) * rest1;
                        *p = *p * decay - *m * step;
                    }
                }
            });
        }
    }

    fn state(&self) -> Vec<(String, &Tensor)> {
        self.state.named()
    }

    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String> {
        self.updates = updates;
        self.state.restore(files)
    }
}
