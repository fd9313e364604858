//! Everything that is known of a run before its first step (stages 1 to 8 of the walk): data, labels, steps, memory.

use std::path::PathBuf;

use sft_config::{Amount, FinetuningType, IntervalStrategy, RunConfig, Stage};
use sft_data::batches::{Batches, StreamLoader};
use sft_data::cache::Tokenised;
use sft_data::conversation::Conversation;
use sft_data::dataset::DatasetReport;
use sft_data::dataset::stream::Stream;
use sft_data::labels::Example;
use sft_data::loader::{Loader, LoaderOptions};
use sft_data::pack::{Joining, most_seen};
use sft_data::pipeline::EncodeReport;
use sft_data::prefixes;
use sft_data::rows::RowProblem;
use sft_data::template::saved::Told;
use sft_infer::slots::Slots;
use sft_infer::{GenerationOptions, Questions};
use sft_kernels::matmul::PackedWeight;
use sft_kernels::{DType, DeviceError, cuda, give_back_freed};
use sft_model::ModelError;
use sft_model::loading;
use sft_model::method::Method;
use sft_model::quantization::Precision;
use sft_model::spec::DecoderSpec;
use sft_runs::memory;

use crate::memory_plan::{MemoryPlan, PlanInputs};
use crate::optim::{Outline, Recipe};
use crate::rows::{Rows, check_prompts};
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
    /// The weights that are trained.
    pub trained: Vec<Outline>,
    /// What updates them.
    pub optimizer: Recipe,
    /// Types of activations and of frozen weights.
    pub precision: Precision,
    /// How the data sets were read.
    pub datasets: Vec<DatasetReport>,
    /// Rows that were dropped as malformed.
    pub problems: Vec<RowProblem>,
    /// Where tokenised rows were read from, or why those that were kept are not used.
    pub rows_note: Option<String>,
    /// What the folders of the run are told of template and tokens.
    pub told: Option<Told>,
    /// What became of the training rows; of a stream, so far.
    pub encoded: EncodeReport,
    /// What became of the evaluation rows.
    pub eval_encoded: Option<EncodeReport>,
    /// The training rows in batches.
    pub train: Batches,
    /// The evaluation rows in batches: of each data set with `eval_on_each_dataset`, else all as one.
    pub eval: Vec<EvalRows>,
    /// The evaluation rows as they were read.
    pub eval_rows: Vec<Conversation>,
    /// Their questions, where the model is to answer them.
    pub questions: Option<Questions>,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Epochs of the whole run, with the fraction.
    pub epochs: f64,
    /// The learning rate.
    pub schedule: Schedule,
    /// Memory by component.
    pub plan: MemoryPlan,
    /// What the plan was free to choose.
    pub choices: PlanChoices,
    /// How rows are computed together ([`Job::join`]).
    pub joining: Joining,
    /// Bytes that were free when it was planned.
    pub available: Option<u64>,
    /// Whether weights are drawn at random, to time a job of a model that is not there.
    pub random_weights: bool,
}

/// What the plan of memory was given beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanChoices {
    sizes: Sizes,
    /// As in [`PlanInputs`].
    recompute: Option<bool>,
    /// As in [`PlanInputs`].
    pack: Option<bool>,
    /// As in [`PlanInputs`].
    on_card: bool,
}

/// Tokens of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    /// Of the largest micro-batch.
    largest_batch: usize,
    /// Of the largest micro-batch of training.
    trained: usize,
    /// What micro-batches of training are joined up to, if there is memory; 0 where none are.
    room: usize,
    /// Of the largest micro-batch of an evaluation.
    evaluated: usize,
    /// Whether rows can share what they begin with, and do begin alike.
    shares_prefixes: bool,
    /// Of the longest row.
    longest: usize,
    /// Bytes of all rows.
    bytes: usize,
    /// Of caches and logits of rows that are answered.
    answers: usize,
}

impl Sizes {
    fn of(
        config: &RunConfig,
        rows: &Tokenised,
        (spec, method): (&DecoderSpec, &Method),
        questions: Option<&Questions>,
    ) -> Result<Self, ModelError> {
        let at_a_time = config.per_device_eval_batch_size;
        let dtype = setup::compute_dtype(config);
        let on_card = setup::card(config).is_some();
        let mut answers = questions.map_or(0, |questions| questions.bytes(spec, dtype, at_a_time, on_card));
        let shown = if config.do_train { config.show_answers.min(rows.eval_rows.len()) } else { 0 };
        if shown > 0 {
            let examples = rows.eval.iter().flat_map(|(_, examples)| examples);
            let prompt = examples.map(Example::len).max().unwrap_or(0);
            let longest = GenerationOptions::from_config(config, &[]).longest(spec, prompt);
            let rows = (shown.min(at_a_time), on_card);
            answers = answers.max(Slots::bytes(spec, dtype, rows, longest));
        }
        // Where nothing is trained they decide in which pieces prompts are read, else they take what there is.
        let asked = questions.map_or(0, |questions| match config.do_train {
            true => at_a_time.min(questions.len()),
            false => questions.piece().max(at_a_time.min(questions.len())),
        });
        let trained = match config.streaming {
            _ if !config.do_train => 0,
            // A stream has no largest row that is known: any may be as long as rows may be.
            true => config.cutoff_len * config.per_device_train_batch_size,
            false => largest_batch(&rows.train, config.per_device_train_batch_size, pack_to(config)),
        };
        let of_set = |(_, examples): &(_, Vec<Example>)| largest_batch(examples, at_a_time, None);
        let sets = rows.eval.iter().filter(|_| has_losses(config));
        let evaluated = sets.map(of_set).max().unwrap_or(0).max(asked);
        let longest = match config.streaming {
            true if config.do_train => config.cutoff_len,
            _ => all_examples(rows).map(Example::len).max().unwrap_or(0),
        };
        // An id and a label of four bytes.
        let bytes = all_examples(rows).map(|example| example.len() * 8).sum();
        let largest_batch = trained.max(evaluated);
        let room = Self::room(config, rows).max(trained);
        let room = if joins(config, spec) { room } else { 0 };
        let shares_prefixes = shares_prefixes(config, (spec, method))? && begin_alike(config, rows);
        Ok(Self { largest_batch, trained, room, evaluated, shares_prefixes, longest, bytes, answers })
    }

    /// What joining can make of the micro-batches of a step: all of it, but no more than as many rows of `cutoff_len` as a
    /// micro-batch has, which is what a recipe asks to have memory for, and than is of use.
    fn room(config: &RunConfig, rows: &Tokenised) -> usize {
        let (batch, steps) = (config.per_device_train_batch_size, config.gradient_accumulation_steps);
        let asked = (batch * config.cutoff_len).min(JOINED_TOKENS);
        match config.streaming {
            true => asked,
            false => largest_batch(&rows.train, batch * steps, pack_to(config)).min(asked),
        }
    }
}

/// Tokens from which on larger micro-batches gain nothing that could be told.
const JOINED_TOKENS: usize = 4096;

/// Whether micro-batches may be joined: all that a token has of the others of its micro-batch is the loss of balance among
/// experts.
fn joins(config: &RunConfig, spec: &DecoderSpec) -> bool {
    config.do_train && spec.moe_aux_loss_coef == 0.0
}

/// Whether rows may share what they begin with: where a token is the same in each of them, whatever is drawn at random, and
/// nothing looks at the tokens of a micro-batch as a whole.
fn shares_prefixes(config: &RunConfig, (spec, method): (&DecoderSpec, &Method)) -> Result<bool, ModelError> {
    let is_drawn = config.neftune_noise_alpha.is_some() || method.adapters(spec)?.has_dropout();
    Ok(config.share_prefixes && spec.shares_prefixes() && spec.moe_aux_loss_coef == 0.0 && !is_drawn)
}

/// Whether rows begin alike that are computed together. Of a stream nobody knows; but where all tokens are trained they share
/// nothing.
fn begin_alike(config: &RunConfig, rows: &Tokenised) -> bool {
    let mut sets = rows.eval.iter().map(|(_, examples)| examples).chain([&rows.train]);
    let trains_all = config.stage == Stage::Pt || config.train_on_prompt;
    let are_together = config.per_device_train_batch_size * config.gradient_accumulation_steps > 1
        || config.packing
        || config.per_device_eval_batch_size > 1 && has_losses(config);
    are_together && (config.streaming && !trains_all || sets.any(|examples| prefixes::begin_alike(examples)))
}

impl PlanChoices {
    fn of(config: &RunConfig, precision: Precision, total_steps: u64, sizes: Sizes) -> Self {
        let on_card = setup::card(config).is_some();
        let widened = PackedWeight::dtype(setup::isa(), precision.compute) != precision.compute;
        let pays = config.do_train && total_steps >= PACKING_PAYS && !widened && !on_card;
        Self {
            sizes,
            recompute: config.disable_gradient_checkpointing.map(|disabled| !disabled),
            pack: config.pack_weights.or((!pays).then_some(false)),
            on_card,
        }
    }

    /// What a plan of training micro-batches of so many tokens, with so many bytes free, depends on.
    fn inputs<'a>(
        &self,
        config: &RunConfig,
        (spec, method, trained, optimizer): (&'a DecoderSpec, &'a Method, &'a [Outline], &'a Recipe),
        precision: Precision,
        (trained_tokens, available): (usize, Option<u64>),
    ) -> PlanInputs<'a> {
        let evaluated = self.sizes.evaluated;
        // Those of an evaluation are not joined.
        let seen = most_seen(trained_tokens, config.gradient_accumulation_steps > 1)
            .max(most_seen(evaluated, false));
        PlanInputs {
            spec,
            trains: config.do_train,
            method,
            trained,
            optimizer,
            precision,
            reference: config.do_train && setup::loss(config).needs_reference(),
            max_tokens: trained_tokens.max(evaluated),
            seen: if self.sizes.shares_prefixes { seen } else { 0 },
            longest: self.sizes.longest,
            threads: setup::threads(config),
            rows: self.sizes.bytes,
            answers: self.sizes.answers,
            recompute: self.recompute,
            pack: self.pack,
            isa: setup::isa(),
            on_card: self.on_card,
            available,
        }
    }
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
/// Where the CPU's products widen weights it never does: what is packed is twice as large and as slow to read as to pack.
const PACKING_PAYS: u64 = 16;

impl Job {
    /// Reads and checks everything but the weights.
    ///
    /// # Errors
    /// Whatever is wrong with model folder, data or configuration; nothing to train on.
    pub fn prepare(config: RunConfig) -> Result<Self, TrainError> {
        setup::check_output(&config)?;
        setup::check_weights(&config)?;
        let base = config.model_folder();
        let spec = setup::spec(&config)?;
        let method = setup::method(&config, &spec)?;
        let precision =
            Precision { compute: setup::compute_dtype(&config), quantization: setup::quantization(&config)? };
        let Rows { tokenised, note, told } = Rows::prepare(&config)?;
        give_back_freed();
        check_vocabulary(&base, &spec, all_examples(&tokenised))?;
        let questions = setup::questions(&config, &spec, &tokenised.eval_rows)?;
        let sizes = Sizes::of(&config, &tokenised, (&spec, &method), questions.as_ref())?;
        let Tokenised { train: examples, eval: eval_sets, eval_rows, .. } = tokenised;
        let Tokenised { mut reports, mut problems, mut encoded, eval_encoded, .. } = tokenised;
        let train = batches(&config, examples)?;
        if let Batches::Streamed(stream) = &train {
            check_prompts(stream.report(), config.cutoff_len)?;
            (encoded, problems) = (stream.report().clone(), stream.problems().to_vec());
            reports.splice(0..0, stream.reports());
        }
        let eval = eval_sets.into_iter().map(|(dataset, examples)| {
            Ok(EvalRows { dataset, rows: Loader::new(examples, evaluation_batches(&config))? })
        });
        let eval = eval.collect::<Result<Vec<_>, TrainError>>()?;
        let (total_steps, epochs) = length(&config, &train);
        let warmup_steps = config.warmup_steps.of(total_steps);
        let schedule = Schedule::new(config.lr_schedule(), config.learning_rate, warmup_steps, total_steps);
        let trained = loading::trained(&spec, &method)?;
        let optimizer = setup::optimizer(&config, &spec, &trained, total_steps)?;
        let choices = PlanChoices::of(&config, precision, total_steps, sizes);
        optimizer.check(&trained, choices.on_card)?;
        if choices.on_card {
            setup::check_on_card(&spec)?;
        }
        let available = available_bytes(&config)?;
        let model = (&spec, &method, &trained[..], &optimizer);
        let plan = MemoryPlan::new(&choices.inputs(&config, model, precision, (sizes.trained, available)))?;
        let mut job = Self {
            base,
            spec,
            method,
            trained,
            optimizer,
            precision,
            datasets: reports,
            problems,
            rows_note: note,
            told,
            encoded,
            eval_encoded: (!eval.is_empty()).then_some(eval_encoded),
            train,
            eval,
            eval_rows,
            questions,
            total_steps,
            epochs,
            schedule,
            plan,
            available,
            choices,
            joining: Joining::default(),
            random_weights: false,
            config,
        };
        job.join(sizes.room)?;
        Ok(job)
    }

    /// Plans anew, for micro-batches of a step that are joined up to `room` tokens: weights are read and packed less often
    /// then. What they are joined to follows from the recipe and the rows, so that a run ends with the same bits whatever memory
    /// is free; where it would not fit even with all blocks computed again, they are joined within the memory of the
    /// largest one.
    ///
    /// # Errors
    /// As [`Job::plan_of`].
    pub fn join(&mut self, room: usize) -> Result<(), TrainError> {
        let Sizes { largest_batch, trained, .. } = self.choices.sizes;
        let mut room = if joins(&self.config, &self.spec) { room } else { 0 };
        self.plan = self.plan_of(room.max(trained))?;
        let fits = self.available.is_none_or(|available| self.plan.total() as u64 <= available);
        if room > largest_batch && !fits {
            self.plan = self.plan_of(trained)?;
            room = trained;
        }
        self.joining = Joining { room, shares_prefixes: self.choices.sizes.shares_prefixes };
        self.train.set_joining(self.joining);
        self.eval.iter_mut().for_each(|eval| eval.rows.set_joining(self.joining));
        Ok(())
    }

    /// Computes rows together as a run did that goes on now, to the bit, though other memory may be free; what to say where
    /// that cannot be.
    ///
    /// # Errors
    /// As [`Job::join`] and [`Job::check_memory`].
    pub fn join_as(&mut self, before: Joining) -> Result<Vec<String>, TrainError> {
        let anew = self.joining.shares_prefixes;
        let allowed = shares_prefixes(&self.config, (&self.spec, &self.method))?;
        self.choices.sizes.shares_prefixes = before.shares_prefixes && allowed;
        self.join(before.room)?;
        self.check_memory()?;
        let now = self.joining;
        let mut notes = Vec::new();
        if now.room != before.room {
            notes.push(format!(
                "micro-batches were joined up to {} tokens and are up to {} now, for want of memory or for the balance of \
                 experts: what follows differs in rounding and in the masks of dropout",
                before.room, now.room
            ));
        }
        if now.shares_prefixes != before.shares_prefixes {
            notes.push(
                "what rows begin with in common was computed once and is computed for each row now, by `share_prefixes`, \
                 dropout, noise or the balance of experts: what follows differs in rounding"
                    .to_owned(),
            );
        } else if now.shares_prefixes != anew {
            notes.push(match anew {
                true => {
                    "what rows begin with in common is computed for each row, as this run began".to_owned()
                }
                false => "what rows begin with in common is computed once, as this run began".to_owned(),
            });
        }
        Ok(notes)
    }

    /// Steps of an epoch; of a stream all of the run, as transformers counts them where a length is not known.
    pub fn steps_per_epoch(&self) -> u64 {
        self.train.steps_per_epoch().unwrap_or(self.total_steps).max(1)
    }

    /// Epochs behind the first so many steps; of a stream, parts of the run.
    pub fn epochs_after(&self, steps: u64) -> f64 {
        self.train.epochs_after(steps).unwrap_or(steps as f64 / self.total_steps.max(1) as f64)
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

    /// Bytes that the run will write at least: the trained model, and one checkpoint unless there are to be none.
    pub fn written_bytes(&self) -> u64 {
        let (counts, c) = (self.plan.counts, &self.config);
        // An adapter is written alone, in float32.
        let adapter = self.method.adapter_options().is_some();
        let frozen = if adapter { 0 } else { counts.frozen * self.precision.compute.bytes() };
        let trained = if adapter { DType::F32 } else { self.precision.compute };
        let due = c.save_strategy != IntervalStrategy::No;
        let state = if c.save_only_model { 0 } else { self.optimizer.checkpoint_bytes(&self.trained) };
        let checkpoint = if due { frozen + counts.trained * DType::F32.bytes() + state } else { 0 };
        (frozen + counts.trained * trained.bytes() + checkpoint) as u64
    }

    /// The plan of this run with training micro-batches of at most so many tokens.
    ///
    /// # Errors
    /// `lora_target` or `oft_target` that fits nothing.
    pub fn plan_of(&self, max_tokens: usize) -> Result<MemoryPlan, TrainError> {
        let model = (&self.spec, &self.method, &self.trained[..], &self.optimizer);
        Ok(MemoryPlan::new(&self.choices.inputs(
            &self.config,
            model,
            self.precision,
            (max_tokens, self.available),
        ))?)
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
        let trains = self.config.do_train;
        if self.plan.answers as u64 > needed / 10 {
            advice.push("  a smaller max_new_tokens (or max_length): keys and values of answers".into());
            if self.config.per_device_eval_batch_size > 1 {
                advice.push("  a smaller per_device_eval_batch_size: fewer answers at a time".into());
            }
        }
        if trains && self.plan.recomputed.blocks() < self.spec.layers.len() {
            advice.push("  disable_gradient_checkpointing: false (computes the blocks twice)".into());
        }
        if self.plan.seen > 0 {
            advice.push(
                "  share_prefixes: false (no copies of keys and values of rows that begin alike)".into(),
            );
        }
        if self.plan.pack {
            advice.push("  pack_weights: false (packs frozen weights anew in every step)".into());
        }
        let by_adapter = matches!(self.config.finetuning_type, FinetuningType::Lora | FinetuningType::Oft);
        if self.precision.quantization.is_none() && by_adapter {
            advice.push("  quantization_bit: 4 (frozen linear layers in 4.1 bits instead of 16)".into());
        }
        if self.precision.compute == DType::F32 {
            advice.push("  bf16: true (halves activations and frozen weights)".into());
        }
        if self.method == Method::Full {
            advice.push("  finetuning_type: lora (no gradients and moments of the frozen weights)".into());
        }
        if self.choices.sizes.evaluated == self.plan.max_tokens {
            // Rows of an evaluation are not packed, so that one row is the least.
            if self.config.per_device_eval_batch_size > 1 && has_losses(&self.config) {
                advice.push("  a smaller per_device_eval_batch_size".into());
            }
        } else if self.config.per_device_train_batch_size > 1 {
            advice.push(
                "  a smaller per_device_train_batch_size, with more gradient_accumulation_steps".into(),
            );
        }
        if trains || has_losses(&self.config) {
            advice.push("  a smaller cutoff_len".into());
        }
        Err(TrainError::Memory { needed, available, advice: advice.join("\n") })
    }
}

/// Whether losses of rows to evaluate on are computed.
fn has_losses(config: &RunConfig) -> bool {
    config.do_eval || config.eval_on_start || config.eval_strategy != IntervalStrategy::No
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

/// Bytes that are free where the run will be, if that is known.
pub(crate) fn available_bytes(config: &RunConfig) -> Result<Option<u64>, TrainError> {
    Ok(match setup::card(config) {
        Some(card) => Some(cuda::free_bytes(card).map_err(DeviceError::from)? as u64),
        None => memory::available_bytes(),
    })
}

fn all_examples(rows: &Tokenised) -> impl Iterator<Item = &Example> {
    rows.train.iter().chain(rows.eval.iter().flat_map(|(_, examples)| examples))
}

/// Tokens of a bin of training rows, if they are packed.
pub(crate) fn pack_to(config: &RunConfig) -> Option<usize> {
    config.packing.then_some(config.cutoff_len)
}

fn training_batches(config: &RunConfig) -> LoaderOptions {
    LoaderOptions {
        batch_size: config.per_device_train_batch_size,
        accumulation: config.gradient_accumulation_steps,
        pack_to: pack_to(config),
        in_order: config.disable_shuffling,
        seed: config.data_seed,
    }
}

fn evaluation_batches(config: &RunConfig) -> LoaderOptions {
    LoaderOptions {
        batch_size: config.per_device_eval_batch_size,
        accumulation: 1,
        pack_to: None,
        in_order: true,
        seed: config.data_seed,
    }
}

/// Tokens of the largest micro-batch that any order of examples can give: of so many rows, or bins to pack to.
pub(crate) fn largest_batch(examples: &[Example], rows: usize, pack_to: Option<usize>) -> usize {
    let mut lengths: Vec<usize> = examples.iter().map(Example::len).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let longest: usize = lengths.iter().take(rows).sum();
    match pack_to {
        None => longest,
        Some(bin) => (bin * rows).min(lengths.iter().sum()).max(longest),
    }
}

/// The training rows, or what reads them as they are trained.
fn batches(config: &RunConfig, examples: Vec<Example>) -> Result<Batches, TrainError> {
    let train = training_batches(config);
    let none =
        if config.streaming { config.dataset.is_empty() } else { examples.is_empty() && !config.do_train };
    if none {
        return Ok(Batches::Kept(Loader::empty(train)));
    }
    if !config.streaming {
        return Ok(Batches::Kept(Loader::new(examples, train)?));
    }
    let options = setup::dataset_options(config);
    let stream = Stream::open(&options, !config.disable_shuffling)?;
    let stream = StreamLoader::new(stream, setup::encoder(config)?, train, options.problem_limit)?;
    Ok(Batches::Streamed(Box::new(stream)))
}

/// (updates, epochs) of the run.
fn length(config: &RunConfig, train: &Batches) -> (u64, f64) {
    match u64::try_from(config.max_steps) {
        Ok(steps) if steps > 0 => (steps, train.epochs_after(steps).unwrap_or(1.0)),
        _ => {
            // A stream is refused without `max_steps`.
            let of_epoch = train.steps_per_epoch().unwrap_or(1).max(1);
            ((config.num_train_epochs * of_epoch as f64).ceil() as u64, config.num_train_epochs)
        }
    }
}
