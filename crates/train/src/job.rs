//! Everything that is known of a run before its first step (stages 1 to 8 of the walk): data, labels, steps, memory.

use std::path::PathBuf;

use sft_config::{Amount, IntervalStrategy, RunConfig, Stage};
use sft_data::conversation::Conversation;
use sft_data::dataset::{self, DatasetReport, LoadedData};
use sft_data::labels::Example;
use sft_data::loader::{Loader, LoaderOptions};
use sft_data::pipeline::{EncodeReport, Pipeline};
use sft_data::pretrain::Pretrain;
use sft_data::rows::RowProblem;
use sft_data::tokenize::Tokenizer;
use sft_kernels::{DType, DeviceError, cuda};
use sft_model::method::Method;
use sft_model::spec::DecoderSpec;

use crate::memory_plan::{self, MemoryPlan, PlanInputs};
use crate::optim::AdamW;
use crate::schedule::Schedule;
use crate::{TrainError, setup};

/// A run that could begin.
#[derive(Debug)]
pub struct Job {
    /// The configuration.
    pub config: RunConfig,
    /// The model folder.
    pub base: PathBuf,
    /// The model.
    pub spec: DecoderSpec,
    /// What is trained.
    pub method: Method,
    /// Type of activations and of frozen weights.
    pub compute: DType,
    /// How the data sets were read.
    pub datasets: Vec<DatasetReport>,
    /// Rows that were dropped as malformed.
    pub problems: Vec<RowProblem>,
    /// What became of the training rows.
    pub encoded: EncodeReport,
    /// What became of the evaluation rows.
    pub eval_encoded: Option<EncodeReport>,
    /// The training rows in batches.
    pub train: Loader,
    /// The evaluation rows in batches: of each data set with `eval_on_each_dataset`, else all as one.
    pub eval: Vec<EvalRows>,
    /// The evaluation rows as they were read.
    pub eval_rows: Vec<Conversation>,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Epochs of the whole run, with the fraction.
    pub epochs: f64,
    /// The learning rate.
    pub schedule: Schedule,
    /// Memory by component.
    pub plan: MemoryPlan,
    /// Bytes that were free when it was planned.
    pub available: Option<u64>,
    /// Whether weights are drawn at random, to time a job of a model that is not there.
    pub random_weights: bool,
}

/// Rows that are evaluated together.
#[derive(Debug)]
pub struct EvalRows {
    /// The data set they are of, where each is evaluated by itself.
    pub dataset: Option<String>,
    /// The rows in batches.
    pub rows: Loader,
}

/// Steps from which on packing frozen weights before the first of them pays: it costs about as much as it saves in eight.
const PACKING_PAYS: u64 = 16;

impl Job {
    /// Reads and checks everything but the weights.
    ///
    /// # Errors
    /// Whatever is wrong with model folder, data or configuration; nothing to train on.
    pub fn prepare(config: RunConfig) -> Result<Self, TrainError> {
        let base = PathBuf::from(&config.model_name_or_path);
        let spec = setup::spec(&config)?;
        let method = setup::method(&config, &spec)?;
        let compute = setup::compute_dtype(&config);
        let encoder = Encoder::new(&config)?;
        let data = dataset::load(&setup::dataset_options(&config))?;
        let (examples, encoded) = encoder.encode(&data.train);
        encoded.proof.require()?;
        check_prompts(&encoded, config.cutoff_len)?;
        if examples.is_empty() {
            return Err(nothing_left("training", &encoded));
        }
        let limit = setup::dataset_options(&config).problem_limit;
        limit.check(&encoded.refused, encoded.rows as u64, "refused by the template")?;
        let (eval_sets, eval_encoded) = encode_eval(&encoder, &data)?;
        let eval_examples = || eval_sets.iter().flat_map(|(_, examples)| examples);
        check_vocabulary(&base, &spec, examples.iter().chain(eval_examples()))?;

        let pack_to = config.packing.then_some(config.cutoff_len);
        let train = LoaderOptions {
            batch_size: config.per_device_train_batch_size,
            accumulation: config.gradient_accumulation_steps,
            pack_to,
            in_order: config.disable_shuffling,
            seed: config.data_seed,
        };
        let eval = LoaderOptions {
            batch_size: config.per_device_eval_batch_size,
            accumulation: 1,
            pack_to: None,
            in_order: true,
            seed: config.data_seed,
        };
        let largest_eval = eval_sets.iter().map(|(_, examples)| largest_batch(examples, &eval)).max();
        let max_tokens = largest_batch(&examples, &train).max(largest_eval.unwrap_or(0));
        let rows = examples.iter().chain(eval_examples()).map(|e| e.len() * 8).sum();
        let train = Loader::new(examples, train)?;
        let eval = eval_sets
            .into_iter()
            .map(|(dataset, examples)| Ok(EvalRows { dataset, rows: Loader::new(examples, eval.clone())? }));
        let eval = eval.collect::<Result<Vec<_>, TrainError>>()?;
        let (total_steps, epochs) = length(&config, train.steps_per_epoch());
        let schedule = Schedule::new(
            config.lr_schedule(),
            config.learning_rate,
            config.warmup_steps.of(total_steps),
            total_steps,
        );
        let card = setup::card(&config);
        let available = match card {
            Some(card) => Some(cuda::free_bytes(card).map_err(DeviceError::from)? as u64),
            None => memory_plan::available_bytes(),
        };
        let plan = MemoryPlan::new(&PlanInputs {
            spec: &spec,
            method: &method,
            compute,
            max_tokens,
            rows,
            recompute: config.disable_gradient_checkpointing.map(|disabled| !disabled),
            pack: config.pack_weights.or((total_steps < PACKING_PAYS || card.is_some()).then_some(false)),
            on_card: card.is_some(),
            available,
        })?;
        Ok(Self {
            base,
            spec,
            method,
            compute,
            datasets: data.reports,
            problems: data.problems,
            encoded,
            eval_encoded: (!eval.is_empty()).then_some(eval_encoded),
            train,
            eval,
            eval_rows: data.eval,
            total_steps,
            epochs,
            schedule,
            plan,
            available,
            random_weights: false,
            config,
        })
    }

    /// Every how many steps something of this amount is due.
    pub fn every(&self, amount: Amount) -> u64 {
        amount.of(self.total_steps).max(1)
    }

    /// Floating-point operations of a trained token as transformers' `Trainer.floating_point_ops` counts them: six for
    /// each weight outside of the embedding (two forward, four backward), frozen ones and adapters included.
    pub fn flops_per_token(&self) -> f64 {
        let counts = self.plan.counts;
        let embedding = self.spec.vocab_size * self.spec.hidden_size;
        6.0 * (counts.frozen + counts.trained).saturating_sub(embedding) as f64
    }

    /// Bytes that the run will write at least: the trained model, and one checkpoint if any falls due.
    pub fn written_bytes(&self) -> u64 {
        let (counts, c) = (self.plan.counts, &self.config);
        let frozen = match self.method {
            Method::Lora(_) => 0,
            _ => counts.frozen * self.compute.bytes(),
        };
        let trained = match self.method {
            Method::Lora(_) => DType::F32,
            _ => self.compute,
        };
        let due = match c.save_strategy {
            IntervalStrategy::No => false,
            IntervalStrategy::Steps => self.every(c.save_steps) <= self.total_steps,
            IntervalStrategy::Epoch => self.train.steps_per_epoch() <= self.total_steps,
        };
        let state = if c.save_only_model { 0 } else { counts.trained * AdamW::STATE_BYTES };
        let checkpoint = if due { frozen + counts.trained * DType::F32.bytes() + state } else { 0 };
        (frozen + counts.trained * trained.bytes() + checkpoint) as u64
    }

    /// Refuses a run that does not fit.
    ///
    /// # Errors
    /// What it needs, what there is, and which settings make it fit.
    pub fn check_memory(&self) -> Result<(), TrainError> {
        let (needed, Some(available)) = (self.plan.total() as u64, self.available) else { return Ok(()) };
        if needed <= available {
            return Ok(());
        }
        let mut advice = vec!["help: any of these takes less:".to_owned()];
        if self.plan.recomputed < self.spec.layers.len() {
            advice.push("  disable_gradient_checkpointing: false (computes the blocks twice)".into());
        }
        if self.plan.pack {
            advice.push("  pack_weights: false (packs frozen weights anew in every step)".into());
        }
        if self.compute == DType::F32 {
            advice.push("  bf16: true (halves activations and frozen weights)".into());
        }
        if self.method == Method::Full {
            advice.push("  finetuning_type: lora (no gradients and moments of the frozen weights)".into());
        }
        if self.config.per_device_train_batch_size > 1 {
            advice.push(
                "  a smaller per_device_train_batch_size, with more gradient_accumulation_steps".into(),
            );
        }
        advice.push("  a smaller cutoff_len".into());
        Err(TrainError::Memory { needed, available, advice: advice.join("\n") })
    }
}

/// Rows → examples: conversations with a template, or plain text.
enum Encoder {
    Conversations(Box<Pipeline>),
    Text(Box<Pretrain>),
}

impl Encoder {
    fn new(config: &RunConfig) -> Result<Self, TrainError> {
        Ok(match config.stage {
            Stage::Sft => Encoder::Conversations(Box::new(setup::pipeline(config)?)),
            Stage::Pt => {
                let tokenizer = Tokenizer::load(&config.model_name_or_path)?;
                Encoder::Text(Box::new(Pretrain::new(
                    tokenizer,
                    Some(&config.template),
                    config.cutoff_len,
                    config.packing,
                )?))
            }
        })
    }

    fn encode(&self, rows: &[Conversation]) -> (Vec<Example>, EncodeReport) {
        match self {
            Encoder::Conversations(pipeline) => pipeline.encode_all(rows),
            Encoder::Text(text) => text.encode_all(rows),
        }
    }
}

/// The examples of the evaluation rows, of each data set by itself or of all, and what became of all rows.
type EvalExamples = (Vec<(Option<String>, Vec<Example>)>, EncodeReport);

fn encode_eval(encoder: &Encoder, data: &LoadedData) -> Result<EvalExamples, TrainError> {
    if data.eval.is_empty() {
        return Ok((Vec::new(), EncodeReport::default()));
    }
    let sets: Vec<(Option<String>, &[Conversation])> = match data.eval_sets.as_slice() {
        [] => vec![(None, &data.eval)],
        sets => sets.iter().map(|set| (Some(set.name.clone()), &data.eval[set.rows.clone()])).collect(),
    };
    let (mut encoded_sets, mut all) = (Vec::new(), EncodeReport::default());
    for (name, rows) in sets {
        let (examples, encoded) = encoder.encode(rows);
        encoded.proof.require()?;
        if examples.is_empty() {
            return Err(nothing_left(&format!("evaluation{}", of(&name)), &encoded));
        }
        encoded_sets.push((name, examples));
        all.merge(encoded);
    }
    Ok((encoded_sets, all))
}

fn of(name: &Option<String>) -> String {
    name.as_ref().map_or(String::new(), |name| format!(" ({name})"))
}

/// Refuses a `cutoff_len` that leaves no prompt whole: every row would teach the model to answer a part of its question.
fn check_prompts(encoded: &EncodeReport, cutoff_len: usize) -> Result<(), TrainError> {
    match encoded.shortest_prompt {
        Some(shortest) if shortest >= cutoff_len => Err(TrainError::NothingToTrain {
            what: format!(
                "cutoff_len: {cutoff_len} leaves no prompt whole: the shortest has {shortest} tokens"
            ),
            help: format!("raise cutoff_len above {shortest}, or take a shorter template or system message"),
        }),
        _ => Ok(()),
    }
}

fn nothing_left(kind: &str, encoded: &EncodeReport) -> TrainError {
    let first = encoded.refused.iter().chain(&encoded.untrained).next();
    let example = first.map_or(String::new(), |problem| format!("; the first: {problem}"));
    TrainError::NothingToTrain {
        what: format!(
            "none of {} {kind} rows is left: {} were refused by the template, {} have no supervised token{example}",
            encoded.rows,
            encoded.refused.len(),
            encoded.untrained.len()
        ),
        help: "raise cutoff_len if it is shorter than the prompts; look at the rows with `sft data show`"
            .into(),
    }
}

fn check_vocabulary<'a>(
    base: &std::path::Path,
    spec: &DecoderSpec,
    examples: impl Iterator<Item = &'a Example>,
) -> Result<(), TrainError> {
    let largest = examples.flat_map(|e| e.input_ids.iter().copied()).max().unwrap_or(0);
    if (largest as usize) < spec.vocab_size {
        return Ok(());
    }
    Err(TrainError::Vocabulary { folder: base.to_owned(), largest, vocab_size: spec.vocab_size })
}

/// Tokens of the largest micro-batch that any order of the rows can give.
fn largest_batch(examples: &[Example], options: &LoaderOptions) -> usize {
    let mut lengths: Vec<usize> = examples.iter().map(Example::len).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let rows: usize = lengths.iter().take(options.batch_size).sum();
    match options.pack_to {
        None => rows,
        Some(bin) => (bin * options.batch_size).min(lengths.iter().sum()).max(rows),
    }
}

/// (updates, epochs) of the run.
fn length(config: &RunConfig, steps_per_epoch: u64) -> (u64, f64) {
    let per_epoch = steps_per_epoch.max(1) as f64;
    match u64::try_from(config.max_steps) {
        Ok(steps) if steps > 0 => (steps, steps as f64 / per_epoch),
        _ => ((config.num_train_epochs * per_epoch).ceil() as u64, config.num_train_epochs),
    }
}
