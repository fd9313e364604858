//! What two or more keys say together: contradictions, and keys that another key makes idle.
//!
//! In: a configuration whose values are each fine. Out: every contradiction, at the place of the
//! first key given, and the idle keys for the list of keys without effect.
//! The rules are LLaMA-Factory's (`hparams/parser.py`, `*_args.py`, 0.9.5) and transformers'
//! (`TrainingArguments.__post_init__`, 5.6); where a rule is our own, it says so.

mod optimizer;

use std::collections::BTreeMap;

use crate::choices::{
    ComputeDtype, FinetuningType, InitSpecialTokens, IntervalStrategy, LrSchedulerType, MixStrategy, Optim,
    OverLength, Stage,
};
use crate::device::Device;
use crate::keys::RunConfig;
use crate::problem::{ConfigError, NoEffect, Place, Problem};
use crate::resolve::Purpose;
use crate::schedule::{LrSchedule, schedule};
use crate::value::{Amount, Resume, expand_home};

/// Keys that were given: where, and whether their value was taken.
type Given = BTreeMap<String, (Place, bool)>;

/// Checks `config` as a whole and settles what follows from several keys.
pub(crate) fn check(
    config: &mut RunConfig,
    given: &Given,
    home: &Place,
    purpose: Purpose,
) -> (Vec<Problem>, Vec<NoEffect>) {
    let mut checks = Checks { given, home, problems: Vec::new() };
    checks.data(config);
    checks.method(config);
    checks.quantization(config);
    checks.quantized_adapters(config);
    checks.new_tokens(config);
    checks.optimizer(config);
    checks.loss(config);
    checks.precision(config);
    checks.lengths(config);
    checks.schedule(config);
    checks.refuse_if(
        matches!(purpose, Purpose::Chat | Purpose::Export)
            && config.rope_scaling.is_some()
            && !given.contains_key("cutoff_len"),
        &["rope_scaling"],
        "`rope_scaling` scales positions by `cutoff_len`, and the one that the model was trained with is not given",
        "add the `cutoff_len` of training",
    );
    if purpose == Purpose::Train {
        checks.evaluation(config);
        checks.best_model(config);
    }
    let problems = checks.problems;
    let idle = idle_keys(config, given);
    settle(config);
    (problems, idle)
}

/// What LLaMA-Factory and transformers set silently, set here once for every reader.
fn settle(config: &mut RunConfig) {
    let named = [&mut config.dataset, &mut config.eval_dataset, &mut config.adapter_name_or_path];
    let named = named.into_iter().flatten().chain([&mut config.model_name_or_path]);
    named.chain(config.ledger.as_mut()).for_each(expand_home);
    config.bf16 |= config.pure_bf16;
    config.packing |= config.neat_packing;
    config.save_total_limit = config.save_total_limit.filter(|limit| *limit > 0);
    config.do_sample &= config.temperature > 0.0;
    if config.warmup_ratio.is_some() {
        config.warmup_steps = config.warmup_amount();
    }
    if config.overwrite_output_dir && config.resume_from_checkpoint == Resume::Automatic {
        config.resume_from_checkpoint = Resume::No;
    }
}

impl RunConfig {
    /// The learning-rate schedule, every parameter set.
    ///
    /// # Panics
    /// For a configuration that did not come from [`load`](crate::load) and asks for a schedule
    /// that cannot be built.
    pub fn lr_schedule(&self) -> LrSchedule {
        schedule(self.lr_scheduler_type, &self.lr_scheduler_kwargs, self.learning_rate)
            .expect("load refuses a schedule that cannot be built")
    }

    /// What `warmup_ratio` makes of `warmup_steps`; 1 is all steps.
    pub(crate) fn warmup_amount(&self) -> Amount {
        match self.warmup_ratio {
            None | Some(0.0) => Amount::Count(0),
            Some(ratio) => Amount::Fraction(ratio),
        }
    }
}

struct Checks<'a> {
    given: &'a Given,
    home: &'a Place,
    problems: Vec<Problem>,
}

impl Checks<'_> {
    /// Reports `message` at the first of `keys` that was given, unless the value of one of them was
    /// refused already.
    fn refuse_if(&mut self, wrong: bool, keys: &[&str], message: &str, help: &str) {
        let refused = keys.iter().any(|key| self.given.get(*key).is_some_and(|(_, taken)| !taken));
        if !wrong || refused {
            return;
        }
        let mut places = keys.iter().filter_map(|key| self.given.get(*key)).map(|(place, _)| place);
        let place = places.next().unwrap_or(self.home);
        let message = places.fold(message.to_string(), |m, other| format!("{m} (and {other})"));
        self.problems.push(Problem::new(place, ConfigError::Contradiction(message)).help(help));
    }

    fn data(&mut self, c: &RunConfig) {
        let folder = c.dataset_dir.to_string_lossy();
        if folder.starts_with("REMOTE:") {
            let place = self.given.get("dataset_dir").map_or(self.home, |(place, _)| place);
            let error = ConfigError::NotYet { key: "dataset_dir".into(), value: folder.into_owned() };
            self.problems.push(Problem::new(place, error).help("download the data and name its folder"));
        }
        self.refuse_if(
            !c.eval_dataset.is_empty() && !c.val_size.is_zero(),
            &["val_size", "eval_dataset"],
            "`val_size` holds rows out for evaluation, but `eval_dataset` names them",
            "keep one of the two",
        );
        self.mixing(c);
        self.streaming(c);
        self.refuse_if(
            c.mask_history && c.train_on_prompt,
            &["mask_history", "train_on_prompt"],
            "`mask_history` trains on the last answer only, `train_on_prompt` on everything",
            "keep one of the two",
        );
        self.refuse_if(
            c.stage == Stage::Pt && (c.train_on_prompt || c.mask_history),
            &["stage", "train_on_prompt", "mask_history"],
            "`stage: pt` knows no prompts, so `train_on_prompt` and `mask_history` cannot hold",
            "remove them, or use `stage: sft`",
        );
    }

    fn mixing(&mut self, c: &RunConfig) {
        let shares = c.interleave_probs.0.len();
        self.refuse_if(
            shares > 0 && c.mix_strategy == MixStrategy::Concat,
            &["interleave_probs", "mix_strategy"],
            "`interleave_probs` needs an interleaving `mix_strategy`, and it is `concat`",
            "set `mix_strategy: interleave_under`, or remove `interleave_probs`",
        );
        for (key, sets) in [("dataset", &c.dataset), ("eval_dataset", &c.eval_dataset)] {
            self.refuse_if(
                shares > 0 && !sets.is_empty() && sets.len() != shares,
                &["interleave_probs", key],
                &format!("`interleave_probs` has {shares} numbers, and `{key}` names {}", sets.len()),
                "give one number for each data set",
            );
        }
    }

    fn streaming(&mut self, c: &RunConfig) {
        if !c.streaming {
            return;
        }
        self.refuse_if(
            c.max_steps <= 0,
            &["streaming", "max_steps"],
            "`streaming` needs `max_steps`: the number of rows is not known",
            "set `max_steps`",
        );
        self.refuse_if(
            matches!(c.val_size, Amount::Fraction(_)),
            &["val_size", "streaming"],
            "`val_size` is a fraction, and the number of rows of a stream is not known",
            "give a number of rows",
        );
        self.refuse_if(
            c.max_samples.is_some(),
            &["max_samples", "streaming"],
            "`max_samples` cannot be set together with `streaming`",
            "remove it: `max_steps` ends the run",
        );
        self.refuse_if(
            c.tokenized_path.is_some(),
            &["tokenized_path", "streaming"],
            "`tokenized_path` keeps all tokenised rows, which `streaming` never has",
            "remove one of the two",
        );
    }

    fn method(&mut self, c: &RunConfig) {
        self.adapters(c);
        self.oft(c);
        self.lora(c);
        self.new_blocks(c);
        // Our own rule: low-rank matrices beside random frozen weights learn nothing.
        self.refuse_if(
            c.train_from_scratch && c.finetuning_type != FinetuningType::Full,
            &["train_from_scratch", "finetuning_type"],
            "`train_from_scratch` begins with random weights, most of which would stay as they are",
            "use `finetuning_type: full`",
        );
        self.refuse_if(
            c.finetuning_type == FinetuningType::Freeze
                && c.freeze_trainable_layers == 0
                && c.freeze_extra_modules.is_empty(),
            &["freeze_trainable_layers", "finetuning_type"],
            "`freeze_trainable_layers: 0` leaves nothing to train",
            "train at least one layer, or name `freeze_extra_modules`",
        );
    }

    fn adapters(&mut self, c: &RunConfig) {
        let adapter = !c.adapter_name_or_path.is_empty();
        self.refuse_if(
            adapter && !c.finetuning_type.is_adapter(),
            &["adapter_name_or_path", "finetuning_type"],
            "`adapter_name_or_path` needs `finetuning_type: lora` or `oft`",
            "merge the adapter with `sft export` and tune the result, or use `finetuning_type: lora`",
        );
        self.refuse_if(
            c.create_new_adapter && !adapter,
            &["create_new_adapter"],
            "`create_new_adapter` needs `adapter_name_or_path`",
            "without an adapter to merge the adapter is new anyway: leave `create_new_adapter` out",
        );
        // LLaMA-Factory begins nothing there, in silence.
        self.refuse_if(
            c.pissa_init && adapter && !c.create_new_adapter,
            &["pissa_init", "adapter_name_or_path"],
            "`pissa_init` begins a new adapter, but that of `adapter_name_or_path` is trained further",
            "remove `pissa_init`, or set `create_new_adapter: true`",
        );
    }

    fn oft(&mut self, c: &RunConfig) {
        // PEFT's own rule: one follows from the other.
        let oft = c.finetuning_type == FinetuningType::Oft;
        self.refuse_if(
            oft && c.oft_rank > 0 && c.oft_block_size > 0,
            &["oft_rank", "oft_block_size"],
            &format!(
                "`oft_rank: {}` and `oft_block_size: {}` both say how inputs are cut into blocks",
                c.oft_rank, c.oft_block_size
            ),
            "set one of them to 0",
        );
        self.refuse_if(
            oft && c.oft_rank == 0 && c.oft_block_size == 0,
            &["oft_rank", "oft_block_size"],
            "`oft_rank` and `oft_block_size` are both 0, and nothing says how inputs are cut into blocks",
            "set `oft_block_size: 32`",
        );
        self.refuse_if(
            oft && c.oft_rank == 0 && c.oft_block_size == 1,
            &["oft_block_size"],
            "`oft_block_size: 1` leaves nothing to rotate",
            "set at least 2",
        );
    }

    fn lora(&mut self, c: &RunConfig) {
        let lora = c.finetuning_type == FinetuningType::Lora;
        let kinds = [(c.use_rslora, "use_rslora"), (c.use_dora, "use_dora"), (c.pissa_init, "pissa_init")];
        for (is_set, key) in kinds {
            self.refuse_if(
                is_set && !lora,
                &[key, "finetuning_type"],
                &format!("`{key}` needs `finetuning_type: lora`"),
                "remove it, or use `finetuning_type: lora`",
            );
        }
        let experts = !c.lora_target_parameters.is_empty();
        let by_names = c.lora_target_parameters.len() > 1;
        self.refuse_if(
            by_names && c.lora_target_parameters.iter().any(|name| name == "all"),
            &["lora_target_parameters"],
            "`lora_target_parameters` has `all` beside other names",
            "write `all` alone, or only names",
        );
        for (is_set, key) in
            [(c.lora_dropout > 0.0, "lora_dropout"), (c.use_dora, "use_dora"), (c.pissa_init, "pissa_init")]
        {
            self.refuse_if(
                lora && experts && is_set,
                &["lora_target_parameters", key],
                &format!("`{key}` is for linear layers, and PEFT has none for `lora_target_parameters`"),
                &format!("leave `{key}` out, or `lora_target_parameters`"),
            );
        }
    }

    fn new_blocks(&mut self, c: &RunConfig) {
        self.refuse_if(
            !c.lora_target_parameters.is_empty() && c.use_llama_pro,
            &["lora_target_parameters", "use_llama_pro"],
            "`use_llama_pro` trains the new blocks, and `lora_target_parameters` are those of all blocks",
            "leave one of them out",
        );
        self.refuse_if(
            c.use_llama_pro && c.finetuning_type == FinetuningType::Full,
            &["use_llama_pro", "finetuning_type"],
            "`use_llama_pro` trains the new blocks of a model, and `finetuning_type: full` all of it",
            "use `finetuning_type: freeze` or `lora`",
        );
        self.refuse_if(
            c.use_llama_pro && c.freeze_trainable_layers < 1,
            &["use_llama_pro", "freeze_trainable_layers"],
            "`use_llama_pro` needs the number of new blocks in `freeze_trainable_layers`",
            "give the number that the model was expanded by",
        );
    }

    fn quantization(&mut self, c: &RunConfig) {
        let Some(bits) = c.quantization_bit else { return };
        self.refuse_if(
            !matches!(bits, 4 | 8),
            &["quantization_bit"],
            &format!("`quantization_bit: {bits}`: bitsandbytes has 4 and 8 bits"),
            "set `quantization_bit: 4`, or 8",
        );
        self.refuse_if(
            !c.finetuning_type.is_adapter(),
            &["quantization_bit", "finetuning_type"],
            &format!(
                "`quantization_bit` keeps weights frozen, and `finetuning_type: {}` trains them",
                c.finetuning_type
            ),
            "use `finetuning_type: lora` or `oft`, or leave `quantization_bit` out",
        );
        self.refuse_if(
            c.create_new_adapter || c.adapter_name_or_path.len() > 1,
            &["quantization_bit", "create_new_adapter", "adapter_name_or_path"],
            "adapters are not merged into a quantised model, and `create_new_adapter` and several adapters need that",
            "merge them with `sft export` without `quantization_bit` first, and begin with the merged model",
        );
    }

    /// As LLaMA-Factory, but for what it falls back to in silence.
    fn new_tokens(&mut self, c: &RunConfig) {
        self.refuse_if(
            c.init_special_tokens != InitSpecialTokens::Noise
                && c.new_special_tokens_config.tokens.is_empty(),
            &["init_special_tokens", "new_special_tokens_config"],
            &format!(
                "`init_special_tokens: {}` needs descriptions, and no file has any",
                c.init_special_tokens
            ),
            "name a YAML file of tokens and descriptions in `new_special_tokens_config`, or use `noise_init`",
        );
        let empty = |tokens: &[String]| tokens.iter().any(|token| token.trim().is_empty());
        self.refuse_if(
            empty(&c.add_tokens) || empty(&c.add_special_tokens),
            &["add_tokens", "add_special_tokens"],
            "a token of no letters cannot be added",
            "put one comma between two tokens",
        );
    }

    fn quantized_adapters(&mut self, c: &RunConfig) {
        self.refuse_if(
            c.quantization_bit.is_some() && c.pissa_init,
            &["quantization_bit", "pissa_init"],
            "`pissa_init` takes the start of the adapter out of each weight, and nothing is taken out of codes",
            "keep one of the two",
        );
    }

    /// LLaMA-Factory takes the first of several losses and leaves the others out in silence.
    fn loss(&mut self, c: &RunConfig) {
        let losses = [
            ("use_dft_loss", c.use_dft_loss),
            ("use_eaft_loss", c.use_eaft_loss),
            ("use_asft_loss", c.use_asft_loss),
            ("label_smoothing_factor", c.label_smoothing_factor > 0.0),
        ];
        let asked: Vec<&str> = losses.iter().filter(|(_, asked)| *asked).map(|(key, _)| *key).collect();
        let named: Vec<String> = asked.iter().map(|key| format!("`{key}`")).collect();
        self.refuse_if(
            asked.len() > 1,
            &asked,
            &format!("{} each replace the loss, and there is one", named.join(" and ")),
            "keep one of them",
        );
    }

    fn lengths(&mut self, c: &RunConfig) {
        self.refuse_if(
            c.stage == Stage::Pt && c.over_length != OverLength::Truncate,
            &["over_length", "stage"],
            "`over_length` is about conversations; texts of `stage: pt` are cut, or put into blocks with `packing`",
            "take `over_length` out",
        );
        let tokens = c.per_device_train_batch_size.saturating_mul(c.gradient_accumulation_steps);
        self.refuse_if(
            tokens > 1 << 31,
            &["per_device_train_batch_size", "gradient_accumulation_steps"],
            &format!("a step of {tokens} rows is more than any data has"),
            "choose a product of at most 2147483648",
        );
    }

    fn precision(&mut self, c: &RunConfig) {
        self.refuse_if(
            c.compute_dtype == ComputeDtype::Float32 && (c.bf16 || c.pure_bf16),
            &["compute_dtype", "bf16", "pure_bf16"],
            "`compute_dtype: float32` contradicts `bf16`",
            "keep one of the two",
        );
        self.refuse_if(
            c.use_cpu && c.device != Device::Cpu,
            &["device", "use_cpu"],
            &format!("`device: {}` contradicts `use_cpu`", c.device),
            "keep one of the two",
        );
    }

    fn schedule(&mut self, c: &RunConfig) {
        if let Err(reason) = schedule(c.lr_scheduler_type, &c.lr_scheduler_kwargs, c.learning_rate) {
            let help = "docs/config.md, `lr_scheduler_kwargs`, lists what each schedule takes";
            self.refuse_if(
                true,
                &["lr_scheduler_kwargs", "lr_scheduler_type", "learning_rate"],
                &format!("the schedule: {reason}"),
                help,
            );
        }
        let both = c.warmup_ratio.is_some_and(|ratio| ratio > 0.0)
            && self.given.contains_key("warmup_steps")
            && !c.warmup_steps.is_zero();
        self.refuse_if(
            both,
            &["warmup_ratio", "warmup_steps"],
            "`warmup_ratio` and `warmup_steps` both set the warm-up",
            "keep one of the two (`warmup_ratio=null` on the command line takes back what a file says); `warmup_steps` below 1 is a ratio",
        );
    }

    fn evaluation(&mut self, c: &RunConfig) {
        let no_data = c.eval_dataset.is_empty() && c.val_size.is_zero();
        let help = "name an `eval_dataset`, or hold rows out with `val_size: 0.1`";
        self.refuse_if(
            no_data && c.eval_strategy != IntervalStrategy::No,
            &["eval_strategy", "val_size", "eval_dataset"],
            "`eval_strategy` asks for evaluations, but there is no data for them",
            help,
        );
        self.refuse_if(
            no_data && c.do_eval && c.eval_strategy == IntervalStrategy::No,
            &["do_eval", "val_size", "eval_dataset"],
            "`do_eval` asks for an evaluation, but there is no data for it",
            help,
        );
        self.refuse_if(
            no_data && c.eval_on_start,
            &["eval_on_start", "val_size", "eval_dataset"],
            "`eval_on_start` asks for an evaluation, but there is no data for it",
            help,
        );
        self.refuse_if(
            no_data && c.do_predict,
            &["do_predict", "val_size", "eval_dataset"],
            "`do_predict` asks for answers, but there are no rows to answer",
            help,
        );
        self.refuse_if(
            (c.do_predict || c.predict_with_generate) && c.stage == Stage::Pt,
            &["do_predict", "predict_with_generate", "stage"],
            "rows of `stage: pt` are texts and no questions: there is nothing to answer",
            "leave `do_predict` and `predict_with_generate` out",
        );
        self.refuse_if(
            !c.do_train && !c.do_eval && !c.do_predict,
            &["do_train", "do_eval", "do_predict"],
            "`do_train`, `do_eval` and `do_predict` are all false: there is nothing to do",
            "set `do_train: true`",
        );
        self.refuse_if(
            !c.do_train && matches!(c.resume_from_checkpoint, Resume::Newest | Resume::From(_)),
            &["resume_from_checkpoint", "do_train"],
            "`resume_from_checkpoint` says where training goes on, and nothing is to be trained",
            "name what is to be evaluated: its folder as `adapter_name_or_path`, or as `model_name_or_path` where all weights were trained",
        );
    }

    fn best_model(&mut self, c: &RunConfig) {
        let metric = c.metric_for_best_model;
        self.refuse_if(
            c.load_best_model_at_end && metric.is_of_answers() && !c.predict_with_generate,
            &["metric_for_best_model", "predict_with_generate"],
            &format!(
                "`metric_for_best_model: {metric}` compares answers, and evaluations do not ask for any"
            ),
            "set `predict_with_generate: true`, or take `eval_loss`",
        );
        let stops_early = c.early_stopping_steps.is_some();
        if stops_early && c.eval_strategy == IntervalStrategy::No {
            return self.refuse_if(
                true,
                &["early_stopping_steps", "eval_strategy"],
                "`early_stopping_steps` counts evaluations, but `eval_strategy` is `no`",
                "set `eval_strategy: steps` and `eval_steps`",
            );
        }
        self.refuse_if(
            stops_early && !c.load_best_model_at_end,
            &["early_stopping_steps", "load_best_model_at_end"],
            "`early_stopping_steps` needs `load_best_model_at_end: true`: it stops after the best model has passed",
            "set `load_best_model_at_end: true`",
        );
        if !c.load_best_model_at_end {
            return;
        }
        self.refuse_if(
            c.save_strategy != c.eval_strategy || c.eval_strategy == IntervalStrategy::No,
            &["load_best_model_at_end", "save_strategy", "eval_strategy"],
            &format!(
                "`load_best_model_at_end` needs a checkpoint for each evaluation, but `save_strategy` is `{}` and `eval_strategy` is `{}`",
                c.save_strategy, c.eval_strategy
            ),
            "give both the same value, `steps` or `epoch`",
        );
        let steps = c.save_strategy == IntervalStrategy::Steps && c.eval_strategy == IntervalStrategy::Steps;
        self.refuse_if(
            steps && !is_multiple(c.save_steps, c.eval_steps),
            &["load_best_model_at_end", "save_steps", "eval_steps"],
            "`load_best_model_at_end` needs `save_steps` to be a multiple of `eval_steps`",
            "set `save_steps` and `eval_steps` to the same value",
        );
    }
}

/// As in transformers: counts and fractions do not mix, fractions are compared in millionths.
fn is_multiple(save: Amount, eval: Amount) -> bool {
    match (save, eval) {
        (Amount::Count(save), Amount::Count(eval)) => eval > 0 && save % eval == 0,
        (Amount::Fraction(save), Amount::Fraction(eval)) => {
            let (save, eval) = ((save * 1e6).round() as u64, (eval * 1e6).round() as u64);
            eval > 0 && save % eval == 0
        }
        _ => false,
    }
}

/// Keys that were given but that another key makes idle.
fn idle_keys(c: &RunConfig, given: &Given) -> Vec<NoEffect> {
    let mut idle = Vec::new();
    let mut list = |when: bool, keys: &[&str], reason: String| {
        for key in keys.iter().filter(|_| when) {
            if let Some((place, true)) = given.get(*key) {
                idle.push(NoEffect { key: key.to_string(), place: place.clone(), reason: reason.clone() });
            }
        }
    };
    let lora = ["lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_target_parameters"];
    let oft = ["oft_rank", "oft_block_size", "oft_target", "module_dropout"];
    for (kind, keys) in [(FinetuningType::Lora, &lora[..]), (FinetuningType::Oft, &oft)] {
        let reason = format!("read only with `finetuning_type: {kind}`, and it is `{}`", c.finetuning_type);
        list(c.finetuning_type != kind, keys, reason);
        let is_continued = !c.adapter_name_or_path.is_empty() && !c.create_new_adapter;
        let reason = "the adapter of `adapter_name_or_path` has its own".to_string();
        list(c.finetuning_type == kind && is_continued, keys, reason);
    }
    list(
        !c.finetuning_type.is_adapter(),
        &["additional_target"],
        format!("read only with `finetuning_type: lora` or `oft`, and it is `{}`", c.finetuning_type),
    );
    let layers = ["freeze_trainable_layers"];
    let freeze = ["freeze_trainable_modules", "freeze_extra_modules"];
    let not_freeze = c.finetuning_type != FinetuningType::Freeze;
    list(
        not_freeze,
        &freeze,
        format!("read only with `finetuning_type: freeze`, and it is `{}`", c.finetuning_type),
    );
    let four_bits = ["quantization_type", "double_quantization"];
    list(c.quantization_bit != Some(4), &four_bits, "read only with `quantization_bit: 4`".to_string());
    let reason = "read only with `quantization_bit`".to_string();
    list(c.quantization_bit.is_none(), &["quantization_method"], reason);
    list(
        !c.new_special_tokens_config.tokens.is_empty(),
        &["add_special_tokens"],
        "`new_special_tokens_config` names the tokens".to_string(),
    );
    let pissa = ["pissa_iter", "pissa_convert"];
    list(!c.pissa_init, &pissa, "read only with `pissa_init: true`".to_string());
    list(
        not_freeze && !c.use_llama_pro,
        &layers,
        format!(
            "read only with `finetuning_type: freeze` or `use_llama_pro`, and it is `{}`",
            c.finetuning_type
        ),
    );
    list(!c.use_eaft_loss, &["eaft_alpha"], "read only with `use_eaft_loss: true`".to_string());
    list(!c.use_asft_loss, &["asft_alpha"], "read only with `use_asft_loss: true`".to_string());
    list(!c.streaming, &["buffer_size"], "read only with `streaming: true`".to_string());
    list(c.streaming, &["overwrite_cache"], "rows of a stream are not kept".to_string());
    let no_eval_sets = c.eval_dataset.is_empty();
    list(no_eval_sets, &["eval_on_each_dataset"], "read only with `eval_dataset`".to_string());
    let not_eval = c.eval_strategy != IntervalStrategy::Steps;
    list(
        not_eval,
        &["eval_steps"],
        format!("read only with `eval_strategy: steps`, and it is `{}`", c.eval_strategy),
    );
    let not_save = c.save_strategy != IntervalStrategy::Steps;
    list(
        not_save,
        &["save_steps"],
        format!("read only with `save_strategy: steps`, and it is `{}`", c.save_strategy),
    );
    list(c.max_steps > 0, &["num_train_epochs"], format!("`max_steps: {}` decides", c.max_steps));
    for (when, keys, reason) in optimizer::idle(c) {
        list(when, keys, reason);
    }
    let constant = c.lr_scheduler_type == LrSchedulerType::Constant && c.optim != Optim::ScheduleFreeAdamw;
    let reason = "`lr_scheduler_type: constant` has no warm-up; `constant_with_warmup` has";
    list(constant, &["warmup_ratio", "warmup_steps"], reason.to_string());
    let keeps_best = c.load_best_model_at_end || c.early_stopping_steps.is_some();
    let reason = "read only with `load_best_model_at_end: true`";
    list(!keeps_best, &["metric_for_best_model", "greater_is_better"], reason.to_string());
    idle
}
