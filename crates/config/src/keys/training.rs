//! Keys about the run: steps, the update, evaluation, checkpoints, what is written.
//! Names and defaults are those of transformers' `TrainingArguments` (5.6).

macro_rules! training_keys {
    ($next:ident $($rest:ident)* ; $($rows:tt)*) => { $next! { $($rest)* ; $($rows)* group "Training" {
        /// Folder of the run: logs, checkpoints, the trained weights.
        output_dir: PathBuf { required: [Train], read_by: "runs::folder" }
        /// Use an `output_dir` that already holds a run, from the start.
        overwrite_output_dir: bool { read_by: "runs::folder" }
        /// Train.
        do_train: bool {
            auto: "true, unless `do_eval: true` or `do_predict: true` alone is asked for" = |c| !c.do_eval && !c.do_predict,
            read_by: "train::run",
        }
        /// Evaluate at the end.
        do_eval: bool {
            auto: "true when `eval_strategy` is not `no`" = |c| c.eval_strategy != IntervalStrategy::No,
            read_by: "train::eval",
        }
        /// Answer every row to evaluate on at the end: `generated_predictions.jsonl` and `predict_results.json` with BLEU-4 and
        /// ROUGE. `do_sample`, `max_new_tokens` and the like say how.
        do_predict: bool { read_by: "train::answers" }
        /// Evaluations answer their rows too, as `do_predict` does, and report `eval_bleu-4`, `eval_rouge-l` and so on, of
        /// all rows, beside the loss.
        predict_with_generate: bool { read_by: "train::answers" }
        /// Rows in a micro-batch. With `packing`, packs of up to `cutoff_len` tokens.
        per_device_train_batch_size: usize { default: 8, range: Range::at_least(1.0), read_by: "data::loader" }
        /// Rows in a micro-batch of an evaluation, and rows that are answered at a time.
        per_device_eval_batch_size: usize { default: 8, range: Range::at_least(1.0), read_by: "train::eval" }
        /// Micro-batches in a step. The loss is normalised over all supervised tokens of the step, so short ones are computed
        /// together: up to the tokens of a micro-batch of rows of `cutoff_len`, and to 4096.
        gradient_accumulation_steps: usize { default: 1, range: Range::at_least(1.0), read_by: "train::step" }
        /// Passes over the data; may be a fraction.
        num_train_epochs: f64 { default: 3.0, range: Range::above_to(0.0, 1e6), read_by: "train::run" }
        /// Steps to train; above 0 it decides instead of `num_train_epochs`.
        max_steps: i64 { default: -1, range: Range::at_least(-1.0), read_by: "train::run" }
        /// Highest learning rate.
        learning_rate: f64 { default: 5e-5, range: Range::at_least(0.0), read_by: "train::schedule" }
        /// Shape of the learning rate after the warm-up.
        lr_scheduler_type: LrSchedulerType { read_by: "train::schedule" }
        /// Parameters of the schedule: `num_cycles` (cosines, warmup_stable_decay), `lr_end` and `power`
        /// (polynomial), `timescale` (inverse_sqrt), `min_lr` or `min_lr_rate` (cosine_with_min_lr,
        /// cosine_warmup_with_min_lr), `warmup_lr_rate` (cosine_warmup_with_min_lr), `num_decay_steps`,
        /// `num_stable_steps`, `warmup_type`, `decay_type`, `min_lr_ratio` (warmup_stable_decay: without
        /// the two numbers a third of the steps after the warm-up is the plateau, and the rest the decay).
        lr_scheduler_kwargs: SchedulerKwargs { read_by: "train::schedule" }
        /// Share of the steps during which the rate climbs from 0; the older name of a fractional
        /// `warmup_steps`, which it sets.
        warmup_ratio: Option<f64> { range: Range::between(0.0, 1.0), read_by: "train::schedule, as warmup_steps" }
        /// Steps during which the rate climbs from 0: a count, or a fraction of all steps.
        warmup_steps: Amount {
            auto: "`warmup_ratio`, or 0" = |c| c.warmup_amount(),
            read_by: "train::schedule",
        }
        /// The optimizer; docs/optimizers.md says what each costs.
        optim: Optim { read_by: "train::optim" }
        /// Settings of the optimizer as `name=value,…`: `momentum`, `dampening`, `nesterov` (sgd), `beta3`, `alpha`,
        /// `t_alpha`, `t_beta3` (ademamix), `r`, `weight_lr_power` (schedule_free_adamw).
        optim_args: OptimArgs { read_by: "train::optim" }
        /// Pull of the weights towards 0; biases and norms are exempt.
        weight_decay: f64 { range: Range::at_least(0.0), read_by: "train::optim" }
        /// AdamW: memory of the gradient's mean.
        adam_beta1: f64 { default: 0.9, range: Range::until(0.0, 1.0), read_by: "train::optim" }
        /// AdamW: memory of the gradient's square.
        adam_beta2: f64 { default: 0.999, range: Range::until(0.0, 1.0), read_by: "train::optim" }
        /// AdamW: added to the divisor.
        adam_epsilon: f64 { default: 1e-8, range: Range::above(0.0), read_by: "train::optim" }
        /// Gradients whose norm is larger are scaled down to it; 0 leaves them as they are.
        max_grad_norm: f64 { default: 1.0, range: Range::at_least(0.0), read_by: "train::step" }
        /// Spread this part of each target's probability over all tokens; 0 is plain cross-entropy. Training only:
        /// evaluations report plain cross-entropy.
        label_smoothing_factor: f64 { range: Range::until(0.0, 1.0), read_by: "kernels::objective" }
        /// NEFTune: uniform noise of ± this / √(tokens of the row × width) on the embeddings while training; null for none.
        neftune_noise_alpha: Option<f64> { range: Range::at_least(0.0), read_by: "model::entry" }
        /// Compute in bfloat16 with float32 accumulation.
        bf16: bool { read_by: "train::run, as compute_dtype" }
        /// The same: trained weights and moments stay in float32 here, so that small updates are not lost.
        pure_bf16: bool { read_by: "train::run, as compute_dtype" }
        /// Compute on the processor, also where a GPU is.
        use_cpu: bool { read_by: "kernels, as device" }
        /// Log every so many steps: a count, or a fraction of all steps.
        logging_steps: Amount { default: Amount::Count(500), range: Range::above(0.0), read_by: "runs::trainer_log" }
        /// Log the first step too.
        logging_first_step: bool { read_by: "runs::trainer_log" }
        /// Where figures go besides the run's own files.
        report_to: Vec<Reporter> { read_by: "runs::tensorboard" }
        /// Name of the run; null is `output_dir`.
        run_name: Option<String> { read_by: "runs::recorder" }
        /// When to evaluate during training.
        eval_strategy: IntervalStrategy { read_by: "train::run" }
        /// Evaluate every so many steps, and after the last one (with `eval_strategy: steps`): a count, or a fraction of all steps.
        eval_steps: Amount {
            auto: "`logging_steps`" = |c| c.logging_steps,
            range: Range::above(0.0),
            read_by: "train::run",
        }
        /// Evaluate once before the first step.
        eval_on_start: bool { read_by: "train::run" }
        /// When to write a checkpoint.
        save_strategy: IntervalStrategy { default: IntervalStrategy::Steps, read_by: "train::run" }
        /// Write a checkpoint every so many steps, and after the last one (with `save_strategy: steps`): a count, or a fraction of all steps.
        save_steps: Amount { default: Amount::Count(500), range: Range::above(0.0), read_by: "train::run" }
        /// Keep at most so many checkpoints, the newest ones and the best one; null or 0 keeps all.
        save_total_limit: Option<u64> { read_by: "runs::checkpoint" }
        /// Leave optimizer, schedule and random state out of checkpoints. Such a run cannot be resumed.
        save_only_model: bool { read_by: "runs::checkpoint" }
        /// Go back to the best checkpoint when training ends.
        load_best_model_at_end: bool { read_by: "train::run" }
        /// The figure that says which checkpoint is best.
        metric_for_best_model: BestMetric {
            auto: "`eval_loss`" = |_| BestMetric::EvalLoss,
            read_by: "train::run",
        }
        /// Whether a larger figure is better.
        greater_is_better: bool {
            auto: "false for `eval_loss` and `eval_perplexity`, else true" = |c| !c.metric_for_best_model.is_loss(),
            read_by: "train::run",
        }
        /// Where training begins: at a checkpoint (path), at the newest one of `output_dir` (true), at the
        /// start (false). null takes the newest one if there is any and `overwrite_output_dir` is false.
        resume_from_checkpoint: Resume { default: Resume::Automatic, read_by: "train::run" }
        /// Seed of new weights, dropout and the rows held out, and of the order of the rows unless
        /// `data_seed` is given.
        seed: u64 { default: 42, read_by: "train::run" }
        /// Seed of the order of the rows.
        data_seed: u64 { auto: "`seed`" = |c| c.seed, read_by: "data::loader" }
    } } };
}

pub(super) const NO_EFFECT: &[super::NoEffectKeys] = &[
    (
        &[
            "ddp_timeout",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "ddp_backend",
            "local_rank",
            "master_addr",
            "master_port",
            "ray_num_workers",
            "ray_init_kwargs",
            "ray_run_name",
            "ray_storage_path",
            "use_ray",
            "placement_strategy",
            "resources_per_worker",
            "log_on_each_node",
            "save_on_each_node",
            "log_level_replica",
        ],
        "training runs in one process",
    ),
    (
        &[
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "remove_unused_columns",
            "label_names",
            "length_column_name",
            "sortish_sampler",
        ],
        "batches are prepared inside the process",
    ),
    (&["group_by_length"], "batches hold no padding, so rows of equal length gain nothing"),
    (&["tf32"], "products are in float32 or bfloat16, as `compute_dtype` says"),
    (
        &["average_tokens_across_devices"],
        "the loss is always normalised over all supervised tokens of a step",
    ),
    (
        &["include_num_input_tokens_seen", "skip_memory_metrics"],
        "tokens seen and peak memory are always reported",
    ),
    (&["full_determinism"], "the same configuration, data and program always give the same bits"),
    (
        &["gradient_checkpointing", "gradient_checkpointing_kwargs"],
        "`disable_gradient_checkpointing` decides",
    ),
    (
        &[
            "use_liger_kernel",
            "liger_kernel_config",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "torch_empty_cache_steps",
            "use_cache",
        ],
        "sft's own kernels are always used",
    ),
    (
        &[
            "enable_torch_profiler",
            "profiler_output_dir",
            "profiler_wait_steps",
            "profiler_warmup_steps",
            "profiler_active_steps",
            "profiler_repeat",
            "profiler_record_shapes",
            "profiler_profile_memory",
            "profiler_with_stack",
            "profile_modules",
        ],
        "PyTorch's profiler has nothing to profile here",
    ),
    (
        &[
            "eval_accumulation_steps",
            "batch_eval_metrics",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "prediction_loss_only",
            "include_for_metrics",
        ],
        "evaluation keeps sums, never logits",
    ),
    (&["enable_jit_checkpoint"], "an interrupted run always writes a checkpoint"),
    (&["save_safetensors"], "weights are always written as safetensors"),
    (&["restore_callback_states_from_checkpoint"], "a resumed run always continues its early-stopping state"),
    (&["logging_dir"], "event files are written into `output_dir`"),
    (&["logging_nan_inf_filter"], "a non-finite loss is shown as it is"),
    (&["log_level", "disable_tqdm"], "progress is a bar on a terminal and plain lines elsewhere"),
    (
        &["project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"],
        "read only by trackio, which is not built",
    ),
    (
        &["hub_model_id", "hub_token", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision"],
        "read only with `push_to_hub`, which is not built yet",
    ),
    (&["fsdp_config"], "read only with `fsdp`, which is not built"),
    (&["fp8_backend", "fp8_enable_fsdp_float8_all_gather"], "read only with `fp8`, which is not built"),
    (&["generation_max_length"], "`max_new_tokens`, or `max_length`, limits answers"),
];

pub(super) const NOT_YET: &[super::NotYetKey] = &[
    ("generation_num_beams", "1", "leave it out: answers are drawn token by token (`do_sample`)"),
    ("generation_config", "null", "use `do_sample`, `temperature`, `top_p`, `max_new_tokens` and the like"),
    ("fp16", "false", "use `bf16: true`, which has the range of float32 and needs no loss scaling"),
    ("fp16_full_eval", "false", "leave it out: evaluation computes as training does"),
    ("bf16_full_eval", "false", "leave it out: evaluation computes as training does (`bf16`)"),
    ("fp8", "false", "use `bf16: true`"),
    ("deepspeed", "null", "leave it out: training runs in one process, which plans its memory itself"),
    ("fsdp", "null", "leave it out: training runs in one process, which plans its memory itself"),
    ("accelerator_config", "null", "leave it out"),
    ("parallelism_config", "null", "leave it out"),
    ("optim_target_modules", "null", "use `galore_target` or `apollo_target`"),
    (
        "auto_find_batch_size",
        "false",
        "set `per_device_train_batch_size`; `sft train --dry-run` shows what fits",
    ),
    ("logging_strategy", "steps", "use `logging_steps`"),
    ("eval_delay", "0", "leave it out"),
    ("ignore_data_skip", "false", "leave it out: a resumed run goes on at the row where it stopped"),
    ("dataloader_drop_last", "false", "leave it out: the last rows are trained on too, rightly weighted"),
    ("train_sampling_strategy", "random", "use `disable_shuffling: true` for the order of the data"),
    ("push_to_hub", "false", "leave it out and upload `output_dir` afterwards"),
    ("debug", "", "leave it out"),
];
