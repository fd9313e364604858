//! What a run will take, known before anything is loaded.
//!
//! Buffers are counted by the code that makes them ([`Workspace::plan`], [`loading::count`]).

use sft_kernels::matmul::{self, PackedWeight};
use sft_kernels::{DType, Isa};
use sft_model::ModelError;
use sft_model::loading::{self, WeightCounts};
use sft_model::method::{Adapters, Method};
use sft_model::parameter::Outline;
use sft_model::quantization::Precision;
use sft_model::reference::Reference;
use sft_model::spec::DecoderSpec;
use sft_model::workspace::{Capacity, Purpose, Recomputed, Workspace, WorkspaceBytes, attention_bytes};

use crate::optim::Recipe;

/// The program: measured by `tools/measure_memory.py`.
const PROGRAM_BYTES: usize = 30 << 20;
/// A thread's buffers for packing: measured too.
const THREAD_BYTES: usize = 4 << 20;

/// The dictionary that cuts answers into words, measured.
const DICTIONARY_BYTES: usize = 34 << 20;

/// On a GPU: cuBLASLt's workspace, what ops reduce in, kernels, and what the libraries keep.
const CARD_BYTES: usize = 640 << 20;

/// What runs whatever is done, where weights and rows are: in memory, or on a GPU.
pub(crate) fn program_bytes(threads: usize, on_card: bool) -> usize {
    if on_card { CARD_BYTES } else { PROGRAM_BYTES + threads * THREAD_BYTES }
}

/// Bytes of a run, by component.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryPlan {
    /// Number of weights.
    pub counts: WeightCounts,
    /// Frozen weights, in the compute dtype or quantised.
    pub frozen_weights: usize,
    /// Trained weights, float32.
    pub trained_weights: usize,
    /// The gradients of those that a step updates, float32.
    pub gradients: usize,
    /// State of the optimizer, and what it works in.
    pub optimizer: usize,
    /// The model that the loss compares with, and its workspace.
    pub reference: usize,
    /// Activations and workspace.
    pub work: WorkspaceBytes,
    /// Sums of attention's backward pass, and on a CPU of deep products.
    pub sums: usize,
    /// The program and its threads.
    pub program: usize,
    /// The rows, tokenised.
    pub rows: usize,
    /// Keys, values and logits of rows that are answered.
    pub answers: usize,
    /// Tokens of the largest micro-batch.
    pub max_tokens: usize,
    /// Keys that the pieces of rows which begin alike see; 0 where rows share nothing.
    pub seen: usize,
    /// What backward computes again.
    pub recomputed: Recomputed,
    /// Whether there are steps.
    pub trains: bool,
    /// Whether frozen weights are packed for their products before the first step.
    pub pack: bool,
    /// Of a GPU: the largest quantised weight, decoded for its product.
    pub decoded: usize,
    /// Whether it is a GPU's memory.
    pub on_card: bool,
}

/// What a plan depends on.
#[derive(Debug)]
pub struct PlanInputs<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Whether there are steps; an evaluation alone goes forward only.
    pub trains: bool,
    /// What is trained.
    pub method: &'a Method,
    /// The weights that are.
    pub trained: &'a [Outline],
    /// What updates them.
    pub optimizer: &'a Recipe,
    /// Types of activations and of frozen weights.
    pub precision: Precision,
    /// Whether the loss compares with a frozen model beside the trained one.
    pub reference: bool,
    /// Tokens of the largest micro-batch.
    pub max_tokens: usize,
    /// Keys that the pieces of rows which begin alike see; 0 where rows share nothing.
    pub seen: usize,
    /// Tokens of the longest row.
    pub longest: usize,
    /// Threads of the CPU.
    pub threads: usize,
    /// Bytes of the tokenised rows.
    pub rows: usize,
    /// Bytes that rows in work take while the model answers them.
    pub answers: usize,
    /// Whether all blocks are computed again in backward, or none; `None`: as many as it takes to fit.
    pub recompute: Option<bool>,
    /// Whether frozen weights are packed before the first step; `None`: if the plan fits with it.
    pub pack: Option<bool>,
    /// The CPU's instruction set.
    pub isa: Isa,
    /// Whether it is a GPU's memory.
    pub on_card: bool,
    /// Bytes that are free, if that is known.
    pub available: Option<u64>,
}

impl MemoryPlan {
    /// Plans a run.
    ///
    /// # Errors
    /// `lora_target` that fits nothing.
    pub fn new(inputs: &PlanInputs<'_>) -> Result<Self, ModelError> {
        let adapters = inputs.method.adapters(inputs.spec)?;
        // Of the fastest ones the first that fits; if none does, the smallest.
        let blocks = inputs.spec.layers.len();
        let recomputed = match inputs.recompute {
            Some(true) => blocks..=blocks,
            None if inputs.trains => 0..=blocks,
            Some(false) | None => 0..=0,
        };
        // Of a step on a CPU they are less than 1 % (docs/log.md), which is not worth the memory.
        let least = (inputs.on_card && *recomputed.start() == 0).then_some(Recomputed::Least);
        let recomputed = least.into_iter().chain(recomputed.map(Recomputed::Blocks));
        let packs: &[bool] = match inputs.pack {
            Some(true) => &[true],
            Some(false) => &[false],
            None => &[true, false],
        };
        let mut plans = recomputed.flat_map(|recomputed| packs.iter().map(move |pack| (recomputed, *pack)));
        let mut plan =
            || plans.next().map(|(recomputed, pack)| Self::with(inputs, &adapters, recomputed, pack));
        let mut last = plan().expect("there is a choice")?;
        while inputs.available.is_some_and(|available| last.total() as u64 > available) {
            let Some(next) = plan() else { break };
            last = next?;
        }
        Ok(last)
    }

    fn with(
        inputs: &PlanInputs<'_>,
        adapters: &Adapters,
        recomputed: Recomputed,
        pack: bool,
    ) -> Result<Self, ModelError> {
        let Precision { compute, quantization } = inputs.precision;
        let counts = loading::count(inputs.spec, inputs.method, quantization)?;
        // Weights that backward does not pass are not worth it, and nothing is frozen in full tuning.
        let pack = pack && inputs.method.adapter_options().is_some();
        let packing_adds = match pack {
            true => {
                let packed_as = PackedWeight::dtype(inputs.isa, compute);
                2 * counts.packed * packed_as.bytes() - counts.freed_by_packing * compute.bytes()
            }
            false => 0,
        };
        let capacity = inputs.capacity();
        let f32_bytes = counts.trained * DType::F32.bytes();
        let reference = || -> Result<usize, ModelError> {
            let counts = loading::count(inputs.spec, &Method::Inference, quantization)?;
            let weights = counts.quantized_bytes + (counts.frozen - counts.quantized) * compute.bytes();
            Ok(weights + Reference::plan(inputs.spec, compute, capacity, inputs.on_card).total())
        };
        Ok(Self {
            counts,
            frozen_weights: counts.quantized_bytes
                + (counts.frozen - counts.quantized) * compute.bytes()
                + packing_adds,
            trained_weights: f32_bytes,
            gradients: inputs.optimizer.gradient_bytes(inputs.trained, inputs.spec.tie_word_embeddings),
            optimizer: inputs.optimizer.state_bytes(inputs.trained)
                + inputs.optimizer.workspace_bytes(inputs.trained),
            reference: if inputs.reference { reference()? } else { 0 },
            work: Workspace::plan(
                inputs.spec,
                adapters,
                compute,
                capacity,
                purpose(inputs.trains, recomputed),
                inputs.on_card,
            ),
            sums: sums(inputs),
            program: program_bytes(inputs.threads, false)
                + if inputs.answers > 0 { DICTIONARY_BYTES } else { 0 },
            rows: inputs.rows,
            answers: inputs.answers,
            max_tokens: inputs.max_tokens,
            seen: inputs.seen,
            recomputed,
            trains: inputs.trains,
            pack,
            decoded: if inputs.on_card { counts.largest_quantized * compute.bytes() } else { 0 },
            on_card: inputs.on_card,
        })
    }

    /// Components with their bytes, largest first.
    pub fn components(&self) -> Vec<(&'static str, usize)> {
        let mut all = vec![
            ("frozen weights", self.frozen_weights),
            ("trained weights (float32)", self.trained_weights),
            ("gradients (float32)", self.gradients),
            ("optimizer state", self.optimizer),
            ("activations", self.work.activations),
            ("workspace of the blocks", self.work.scratch + self.sums),
            ("logits and loss", self.work.head),
        ];
        if self.answers > 0 {
            all.push(("keys and values of answers", self.answers));
        }
        if self.reference > 0 {
            all.push(("reference model", self.reference));
        }
        if self.on_card {
            let tensors = all.iter().map(|(_, bytes)| bytes).sum::<usize>();
            // The driver hands out whole pages of 2 MiB, about 1 % more than what large models ask for.
            all.push(("workspace and libraries", CARD_BYTES + self.decoded + tensors / 100));
        } else {
            all.extend([("tokenised rows", self.rows), ("program", self.program)]);
        }
        all.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        all
    }

    /// What the workspace has room for.
    pub fn capacity(&self) -> Capacity {
        Capacity { tokens: self.max_tokens, seen: self.seen }
    }

    /// What the workspace is for.
    pub fn purpose(&self) -> Purpose {
        purpose(self.trains, self.recomputed)
    }

    /// The sum.
    pub fn total(&self) -> usize {
        self.components().iter().map(|(_, bytes)| bytes).sum()
    }
}

fn purpose(trains: bool, recomputed: Recomputed) -> Purpose {
    if trains { Purpose::Training(recomputed) } else { Purpose::Forward }
}

impl PlanInputs<'_> {
    fn capacity(&self) -> Capacity {
        Capacity { tokens: self.max_tokens, seen: self.seen }
    }
}

/// Bytes of the sums that ops keep: of attention's backward pass, and on a CPU of deep products. The deepest are the gradient
/// through the head, and those of weights; the widest of those as deep as the hidden size is into a feed-forward layer.
fn sums(inputs: &PlanInputs<'_>) -> usize {
    let (spec, tokens) = (inputs.spec, inputs.max_tokens);
    let on_cpu = (!inputs.on_card).then_some((inputs.threads, inputs.longest));
    let attention = if inputs.trains { attention_bytes(spec, inputs.capacity(), on_cpu) } else { 0 };
    if inputs.on_card {
        return attention;
    }
    let of = |product| matmul::kept_bytes(inputs.isa, inputs.precision.compute == DType::F32, product);
    let of_weights = inputs.trained.iter().map(|weight| match weight.shape[..] {
        [.., out, inputs] => of([out, inputs, tokens]),
        _ => 0,
    });
    let into_mlps = spec.layers.iter().filter_map(|layer| layer.dense());
    let into_mlps = into_mlps.map(|mlp| of([tokens, mlp.intermediate_size, spec.hidden_size]));
    let products =
        of_weights.chain(into_mlps).fold(of([tokens, spec.hidden_size, spec.vocab_size]), usize::max);
    products + attention
}
