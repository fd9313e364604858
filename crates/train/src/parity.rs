//! Proof that a model is computed as transformers and PEFT compute it: a case folder in, differences out.
//!
//! A case holds a small model, a batch, and what transformers made of it: logits, loss, the gradient of every weight,
//! the losses of six AdamW steps on all weights and on adapters. `tools/make_parity_case.py` makes one of any model,
//! `tools/make_adapter_curves.py` adds adapters of other kinds.
//! Everything is computed twice, with the rows packed into one micro-batch, where those that begin alike share their
//! beginning, and with each row alone; the larger difference counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use sft_data::conversation::Origin;
use sft_data::labels::Example;
use sft_data::loader::{Cursor, StepBatch};
use sft_data::pack::{PackedBatch, most_seen};
use sft_kernels::objective::Loss;
use sft_kernels::{DType, Device};
use sft_model::adapter::{self, PeftAdapter};
use sft_model::method::{Adapters, Method};
use sft_model::reference::Reference;
use sft_model::spec::DecoderSpec;
use sft_model::weights::WeightFiles;
use sft_model::workspace::{Capacity, Purpose, Recomputed, Workspace};
use sft_model::{Decoder, ModelError, families, quantization};

use crate::optim::{AdamWOptions, Bits, Decays, Groups, Optimizer, Recipe, Rule};
use crate::step::{UpdateOptions, as_batch, by_parts, gradients, update};

/// The largest differences that still count as equal.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Limits {
    /// Of logits, relative to the largest logit.
    pub logits: f64,
    /// Of the loss, relative.
    pub loss: f64,
    /// Of a gradient, relative, in the L2 norm.
    pub gradient: f64,
    /// Of the losses of training all weights, relative.
    pub full: f64,
    /// The same of adapters; a case may have none.
    #[serde(default)]
    pub lora: f64,
}

impl Limits {
    /// What float32 reaches.
    pub const FLOAT32: Limits = Limits { logits: 1e-4, loss: 1e-5, gradient: 1e-3, full: 1e-4, lora: 1e-4 };

    /// Those of a case. bfloat16 has those of the case itself: [`OF_ITS_OWN`] times what transformers' own is off there.
    /// A model in which a token may change its expert is further off than a dense one.
    ///
    /// # Errors
    /// As [`Limits::transformers_bf16`].
    pub fn of(case: &Path, dtype: DType) -> Result<Self, ModelError> {
        if dtype == DType::F32 {
            return Ok(Self::FLOAT32);
        }
        let Self { logits, loss, gradient, full, lora } = Self::transformers_bf16(case)?;
        let [logits, loss, gradient, full, lora] =
            [logits, loss, gradient, full, lora].map(|own| OF_ITS_OWN * own);
        Ok(Self { logits, loss, gradient, full, lora })
    }

    /// How far transformers' own bfloat16 is off its float32 in a case: what `tools/make_bf16_spread.py` measures and
    /// leaves in the case's folder.
    ///
    /// # Errors
    /// A case without that file; one that is malformed.
    pub fn transformers_bf16(case: &Path) -> Result<Self, ModelError> {
        let path = case.join("bfloat16.json");
        if !path.exists() {
            return Err(ModelError::Missing {
                folder: case.to_owned(),
                what: "bfloat16.json".into(),
                help: "tools/make_bf16_spread.py CASE measures how far transformers' own bfloat16 is off"
                    .into(),
            });
        }
        let text =
            fs::read_to_string(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
        serde_json::from_str(&text).map_err(|source| ModelError::Json { path, source })
    }
}

/// bfloat16 is allowed this many times the largest difference that transformers' own shows in several roundings: the
/// largest of a few draws is not the largest there is.
pub const OF_ITS_OWN: f64 = 2.0;

/// A gradient smaller than this part of all of them is compared as if it were as large: of some weights the gradient
/// is zero but for rounding (a bias of keys adds the same to all scores of a query where nothing is rotated). In
/// float32 a thousandth of the part is still less than it resolves; in bfloat16 a hundredth of it is.
fn least_gradient(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 1e-2 }
}

/// What a case came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Parity {
    /// Largest difference of logits, relative to the largest logit.
    pub logits: f64,
    /// Difference of the loss, relative.
    pub loss: f64,
    /// Largest difference of a gradient, relative in the L2 norm, and its weight; `None` for a quantised model, whose
    /// weights have none.
    pub gradient: Option<(f64, String)>,
    /// Largest difference of the losses of training all weights, relative; `None` likewise.
    pub full: Option<f64>,
    /// The same for LoRA's adapter; `None` where the case has none.
    pub lora: Option<f64>,
    /// The same for adapters of other kinds, by the names of their folders.
    pub others: BTreeMap<&'static str, f64>,
}

/// Folders of adapters of other kinds than LoRA's.
pub const OTHER_ADAPTERS: [&str; 4] = ["dora", "pissa", "oft", "experts"];

impl Parity {
    /// The largest part of its limit that a difference takes, and of what; above 1, or NaN, it does not hold.
    pub fn share(&self, limits: &Limits) -> (f64, &'static str) {
        let adapters = self.lora.iter().chain(self.others.values());
        let all = [
            (Some(self.logits), limits.logits, "logits"),
            (Some(self.loss), limits.loss, "loss"),
            (self.gradient.as_ref().map(|(gradient, _)| *gradient), limits.gradient, "gradient"),
            (self.full, limits.full, "full"),
            (adapters.copied().reduce(larger), limits.lora, "lora"),
        ];
        let shares = all.into_iter().filter_map(|(found, limit, of)| Some((found? / limit, of)));
        // NaN of either sign is the largest.
        shares.max_by(|a, b| a.0.is_nan().cmp(&b.0.is_nan()).then(a.0.total_cmp(&b.0))).unwrap_or_default()
    }

    /// Whether every difference is within its limit. NaN is not.
    pub fn holds(&self, limits: &Limits) -> bool {
        self.share(limits).0 <= 1.0
    }
}

/// Compares a case, computed in float32 or in bfloat16 (frozen weights and activations; what is trained stays float32).
/// Adapters of other kinds than LoRA's are compared in float32 alone.
///
/// # Errors
/// Files that are missing or malformed; a model that is not supported.
pub fn compare(dev: &Device, case: &Path, dtype: DType) -> Result<Parity, ModelError> {
    dev.install(|| Case { dtype, ..Case::read(case)? }.compare(dev))
}

/// Trains all weights of a case's model, or its adapter, by an optimizer; returns the loss at each step before its update,
/// and the model with the weights that are evaluated.
///
/// # Errors
/// As [`compare`]; what `make` says.
pub fn train(
    dev: &Device,
    case: &Path,
    adapter: bool,
    learning_rates: &[f64],
    make: impl FnOnce(&mut Decoder) -> Result<Box<dyn Optimizer>, ModelError> + Send,
) -> Result<(Vec<f64>, Decoder), ModelError> {
    dev.install(|| {
        let case = Case::read(case)?;
        let method = if adapter { Method::Inference } else { Method::Full };
        let mut decoder = Decoder::read(dev, &case.folder, &method, DType::F32, 0)?;
        if adapter {
            PeftAdapter::read(&case.folder.join("adapter"))?.attach(dev, &mut decoder, true)?;
        }
        let mut work = case.workspace(dev, &decoder);
        let mut optimizer = make(&mut decoder)?;
        let (step, model) = (case.step(true, &decoder.spec), (&mut decoder, &mut work));
        let losses = take_steps(dev, model, &step, optimizer.as_mut(), learning_rates)?;
        optimizer.begin_evaluation(dev, &mut decoder.trained_mut());
        Ok((losses, decoder))
    })
}

/// Steps on one batch, without clipping; their losses.
fn take_steps(
    dev: &Device,
    (decoder, work): (&mut Decoder, &mut Workspace),
    step: &StepBatch,
    optimizer: &mut dyn Optimizer,
    learning_rates: &[f64],
) -> Result<Vec<f64>, ModelError> {
    let mut losses = Vec::new();
    for learning_rate in learning_rates {
        if let Some(optimizer) = optimizer.by_parts() {
            losses.push(by_parts(dev, decoder, step, 0, work, optimizer, *learning_rate)?.loss);
            continue;
        }
        optimizer.choose(&mut decoder.trained_mut());
        let sums = gradients(dev, decoder, step, 0, work)?;
        let options = UpdateOptions { learning_rate: *learning_rate, max_grad_norm: 0.0 };
        losses.push(update(dev, decoder, optimizer, options, sums).loss);
    }
    Ok(losses)
}

/// The losses of so many steps of training all weights of a case with a loss of another kind.
///
/// # Errors
/// As [`compare`].
pub fn curve(dev: &Device, case: &Path, loss: Loss, steps: usize) -> Result<Vec<f64>, ModelError> {
    let case = Case::read(case)?;
    dev.install(|| {
        let mut decoder = Decoder::read(dev, &case.folder, &Method::Full, DType::F32, 0)?;
        let mut work = case.workspace(dev, &decoder);
        let reference = || -> Result<Reference, ModelError> {
            let frozen = Decoder::read(dev, &case.folder, &Method::Inference, DType::F32, 0)?;
            Ok(Reference::new(dev, frozen, work.capacity()))
        };
        let reference = loss.needs_reference().then(reference).transpose()?;
        work.set_loss(loss, reference);
        let step = case.step(false, &decoder.spec);
        case.losses(dev, &mut decoder, &step, &mut work, steps)
    })
}

/// A row of a case.
fn example(row: usize, ids: Vec<i64>, labels: Vec<i64>) -> Example {
    let (dataset, file) = ("parity".into(), Arc::new(PathBuf::from("case.safetensors")));
    Example {
        input_ids: ids.into_iter().map(|id| id as u32).collect(),
        labels: labels.into_iter().map(|label| label as i32).collect(),
        weights: Vec::new(),
        origin: Origin { dataset, file, line: row as u64 + 1, row: row as u64 },
    }
}

struct Case {
    folder: PathBuf,
    /// What it is computed in.
    dtype: DType,
    rows: Vec<Example>,
    logits: Vec<f32>,
    loss: f64,
}

impl Case {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("case.safetensors");
        let invalid = |reason: String| ModelError::Safetensors { path: path.clone(), reason };
        let bytes = fs::read(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| invalid(e.to_string()))?;
        let get = |name: &str, dtype: Dtype| {
            let tensor = tensors.tensor(name).map_err(|e| invalid(format!("{name}: {e}")))?;
            if tensor.dtype() == dtype { Ok(tensor) } else { Err(invalid(format!("{name}: not {dtype:?}"))) }
        };
        let integers = |name: &str| -> Result<Vec<Vec<i64>>, ModelError> {
            let tensor = get(name, Dtype::I64)?;
            let [_, t] = *tensor.shape() else { return Err(invalid(format!("{name}: not two dimensions"))) };
            let (values, _) = tensor.data().as_chunks::<8>();
            let values: Vec<i64> = values.iter().map(|b| i64::from_le_bytes(*b)).collect();
            Ok(values.chunks(t.max(1)).map(<[i64]>::to_vec).collect())
        };
        let floats = |name: &str| -> Result<Vec<f32>, ModelError> {
            let (values, _) = get(name, Dtype::F32)?.data().as_chunks::<4>();
            Ok(values.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let (rows, labels) = (integers("input_ids")?, integers("labels")?);
        let lengths = |rows: &[Vec<i64>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
        if rows.is_empty() || lengths(&rows).contains(&0) || lengths(&rows) != lengths(&labels) {
            return Err(invalid("input_ids and labels: not the same number of tokens, at least one".into()));
        }
        Ok(Self {
            folder: folder.to_owned(),
            dtype: DType::F32,
            rows: rows
                .into_iter()
                .zip(labels)
                .enumerate()
                .map(|(i, (row, labels))| example(i, row, labels))
                .collect(),
            logits: floats("logits")?,
            loss: floats("loss")?.first().map_or(f64::NAN, |loss| f64::from(*loss)),
        })
    }

    fn compare(&self, dev: &Device) -> Result<Parity, ModelError> {
        let mut parity = Parity {
            logits: 0.0,
            loss: 0.0,
            gradient: None,
            full: None,
            lora: None,
            others: BTreeMap::new(),
        };
        let frozen =
            quantization::of_checkpoint(&families::text_config(&self.folder)?).is_ok_and(|s| s.is_some());
        let method = if frozen { Method::Inference } else { Method::Full };
        for packed in [true, false] {
            let mut decoder = Decoder::read(dev, &self.folder, &method, self.dtype, 0)?;
            let step = &self.step(packed, &decoder.spec);
            let mut work = self.workspace(dev, &decoder);
            self.compare_logits(dev, &mut decoder, step, &mut work, &mut parity)?;
            if !frozen {
                let worst = self.worst_gradient(&mut decoder)?;
                let before = parity.gradient.take();
                parity.gradient =
                    before.filter(|before| !(worst.0.is_nan() || worst.0 > before.0)).or(Some(worst));
                let full = self.train(dev, &mut decoder, step, &mut work, "full_losses.json")?;
                parity.full = Some(larger(parity.full.unwrap_or(0.0), full));
            }
            if let Some(lora) = self.train_adapter(dev, step, "adapter")? {
                parity.lora = Some(larger(parity.lora.unwrap_or(0.0), lora));
            }
            for kind in OTHER_ADAPTERS.into_iter().filter(|_| self.dtype == DType::F32) {
                if let Some(other) = self.train_adapter(dev, step, kind)? {
                    let largest = parity.others.entry(kind).or_default();
                    *largest = larger(*largest, other);
                }
            }
        }
        Ok(parity)
    }

    /// As [`Case::train`], of the adapter in a folder of the case, if it is there.
    fn train_adapter(&self, dev: &Device, step: &StepBatch, kind: &str) -> Result<Option<f64>, ModelError> {
        let losses = format!("{kind}/lora_losses.json");
        if !self.folder.join(&losses).exists() {
            return Ok(None);
        }
        let mut decoder = Decoder::read(dev, &self.folder, &Method::Inference, self.dtype, 0)?;
        PeftAdapter::read(&self.folder.join(kind))?.attach(dev, &mut decoder, true)?;
        let mut work = self.workspace(dev, &decoder);
        let losses = self.train(dev, &mut decoder, step, &mut work, &losses)?;
        Ok(Some(larger(losses, self.trained_weights(&mut decoder, kind)?)))
    }

    /// The largest relative difference of a trained tensor of an adapter, where the case has them.
    fn trained_weights(&self, decoder: &mut Decoder, kind: &str) -> Result<f64, ModelError> {
        let path = self.folder.join(kind).join("trained.safetensors");
        if !path.exists() {
            return Ok(0.0);
        }
        let files = WeightFiles::open(&self.folder, &[path])?;
        let mut largest = 0.0;
        for parameter in decoder.trained_mut() {
            let name = adapter::stored_name(parameter.name());
            let expected = files.weight(&name, parameter.shape(), parameter.stored_as());
            let difference = expected.map_or(f64::INFINITY, |expected| {
                let found = parameter.to_host().to_f32_vec();
                let (difference, norm) = difference_and_norm(&found, &expected.to_f32_vec());
                difference / norm
            });
            largest = larger(largest, difference);
        }
        Ok(largest)
    }

    fn workspace(&self, dev: &Device, decoder: &Decoder) -> Workspace {
        let adapters: &Adapters = decoder.adapters();
        let tokens: usize = self.rows.iter().map(Example::len).sum();
        let capacity = Capacity { tokens, seen: most_seen(tokens, false) };
        // As the plan has it where there is room enough.
        let recomputed = if dev.cuda().is_some() { Recomputed::Least } else { Recomputed::Blocks(0) };
        Workspace::new(dev, &decoder.spec, adapters, self.dtype, capacity, Purpose::Training(recomputed))
    }

    /// The rows as one optimizer step: in one micro-batch, where they share what they begin with if the model can, or in one
    /// each.
    fn step(&self, packed: bool, spec: &DecoderSpec) -> StepBatch {
        let all = 0..self.rows.len();
        let micro_batches = match packed {
            true if spec.shares_prefixes() => vec![PackedBatch::sharing(&self.rows, all)],
            true => vec![PackedBatch::new(&self.rows, all)],
            false => all.map(|row| PackedBatch::new(&self.rows, [row])).collect(),
        };
        StepBatch { at: Cursor::default(), micro_batches }
    }

    /// Logits and loss; leaves the gradients of what is trained.
    fn compare_logits(
        &self,
        dev: &Device,
        decoder: &mut Decoder,
        step: &StepBatch,
        work: &mut Workspace,
        parity: &mut Parity,
    ) -> Result<(), ModelError> {
        let mut logits = Vec::new();
        for batch in &step.micro_batches {
            let found = decoder.logits(dev, as_batch(batch), work)?.to_f32_vec();
            let places = (0..batch.rows.len()).flat_map(|row| batch.row_places(row));
            let vocabulary = decoder.spec.vocab_size;
            places.for_each(|at| logits.extend_from_slice(&found[at as usize * vocabulary..][..vocabulary]));
        }
        let largest = self.logits.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let differences = logits.iter().zip(&self.logits).map(|(a, b)| f64::from((a - b).abs() / largest));
        parity.logits = differences.fold(parity.logits, larger);
        if logits.len() != self.logits.len() {
            parity.logits = f64::INFINITY;
        }
        let sums = gradients(dev, decoder, step, 0, work)?;
        let loss = sums.mean();
        parity.loss = larger(parity.loss, (loss / self.loss - 1.0).abs());
        Ok(())
    }

    /// The largest difference of a gradient, and its name. A tensor that one side alone has is infinitely far off.
    fn worst_gradient(&self, decoder: &mut Decoder) -> Result<(f64, String), ModelError> {
        let path = self.folder.join("grads.safetensors");
        let files = WeightFiles::open(&self.folder, &[path])?;
        let mut left: BTreeSet<String> = files.names().into_iter().map(str::to_owned).collect();
        let mut norms = Vec::new();
        for parameter in decoder.trained_mut() {
            for (name, gradient) in parameter.gradient_in_modules() {
                left.remove(&name);
                match files.tensor(&name, gradient.shape()) {
                    Ok(expected) => {
                        let found = gradient.to_tensor().to_f32_vec();
                        norms.push((name, difference_and_norm(&found, &expected.to_f32_vec())));
                    }
                    Err(_) => return Ok((f64::INFINITY, name)),
                }
            }
        }
        if let Some(name) = left.pop_first() {
            return Ok((f64::INFINITY, name));
        }
        let all = norms.iter().map(|(_, (_, norm))| norm * norm).sum::<f64>().sqrt();
        let relative = |(name, (difference, norm)): (String, (f64, f64))| {
            let norm = f64::max(norm, least_gradient(self.dtype) * all);
            (if difference == 0.0 { 0.0 } else { difference / norm }, name)
        };
        let worst = norms.into_iter().map(relative).max_by(|a, b| a.0.total_cmp(&b.0));
        Ok(worst.unwrap_or_default())
    }

    /// Trains on the case and returns the largest relative difference from the losses in `file`.
    fn train(
        &self,
        dev: &Device,
        decoder: &mut Decoder,
        step: &StepBatch,
        work: &mut Workspace,
        file: &str,
    ) -> Result<f64, ModelError> {
        let path = self.folder.join(file);
        let text =
            fs::read_to_string(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
        let expected: Vec<f64> =
            serde_json::from_str(&text).map_err(|source| ModelError::Json { path: path.clone(), source })?;
        let found = self.losses(dev, decoder, step, work, expected.len())?;
        Ok(found
            .iter()
            .zip(&expected)
            .fold(0.0, |m, (found, expected)| larger(m, (found / expected - 1.0).abs())))
    }

    /// Trains on the case with AdamW as the cases' script does; the losses of the steps.
    fn losses(
        &self,
        dev: &Device,
        decoder: &mut Decoder,
        step: &StepBatch,
        work: &mut Workspace,
        steps: usize,
    ) -> Result<Vec<f64>, ModelError> {
        let adam = AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let groups = Groups { weight_decay: 0.01, decays: Decays::All, lora_plus: None };
        let recipe = Recipe { groups, rule: Rule::AdamW(adam, Bits::B32) };
        let mut optimizer = recipe.make(&mut decoder.trained_mut());
        take_steps(dev, (decoder, work), step, optimizer.as_mut(), &vec![1e-3; steps])
    }
}

/// The larger of two differences, where NaN is the largest of all.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Norms of the difference and of what is expected.
fn difference_and_norm(found: &[f32], expected: &[f32]) -> (f64, f64) {
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    (difference.sqrt(), norm.sqrt())
}
