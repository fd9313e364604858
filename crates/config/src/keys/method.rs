//! Keys about the method: what is trained, and how training is steered.

macro_rules! method_keys {
    ($next:ident $($rest:ident)* ; $($rows:tt)*) => { $next! { $($rest)* ; $($rows)* group "Method" {
        /// What is learnt from: `sft` conversations, `pt` plain text.
        stage: Stage { read_by: "data::labels" }
        /// Which weights are trained.
        finetuning_type: FinetuningType { read_by: "model::method" }
        /// LoRA: rank of the two matrices.
        lora_rank: u32 { default: 8, range: Range::at_least(1.0), read_by: "model::linear" }
        /// LoRA: strength; the product of the matrices is scaled by lora_alpha / lora_rank.
        lora_alpha: f64 {
            auto: "2 × `lora_rank`" = |c| 2.0 * f64::from(c.lora_rank),
            range: Range::above(0.0),
            read_by: "model::linear",
        }
        /// LoRA: share of the inputs of the matrices set to 0 while training.
        lora_dropout: f64 { range: Range::until(0.0, 1.0), read_by: "model::linear" }
        /// LoRA: the linear layers that get matrices. `all` is every one but the head.
        lora_target: Targets { default: Targets::All, read_by: "model::linear" }
        /// LoRA: modules trained whole and saved with the adapter (PEFT's `modules_to_save`).
        additional_target: Vec<String> { read_by: "model::adapter" }
        /// LoRA: scale by lora_alpha / √lora_rank.
        use_rslora: bool { read_by: "model::linear" }
        /// LoRA: merge the adapters of `adapter_name_or_path` and train a new one.
        create_new_adapter: bool { read_by: "model::adapter" }
        /// Freeze: how many layers are trained, the last ones; negative numbers are the first ones.
        freeze_trainable_layers: i64 { default: 2, read_by: "model::method" }
        /// Freeze: the modules trained in these layers.
        freeze_trainable_modules: Targets { default: Targets::All, read_by: "model::method" }
        /// Freeze: modules outside of the layers that are trained too, such as `embed_tokens`, `norm`, `lm_head`.
        freeze_extra_modules: Vec<String> { read_by: "model::method" }
        /// Count how often the most likely token is the right one during evaluation.
        compute_accuracy: bool { read_by: "train::eval" }
        /// Keep the rows in the order of the data.
        disable_shuffling: bool { read_by: "data::loader" }
        /// Stop after so many evaluations without a better one; null never stops early.
        early_stopping_steps: Option<u64> { range: Range::at_least(1.0), read_by: "train::run" }
        /// Draw the loss into `training_loss.png` and `.svg`.
        plot_loss: bool { read_by: "runs::plots" }
    } } };
}

pub(super) const NO_EFFECT: &[super::NoEffectKeys] = &[
    (
        &["include_effective_tokens_per_second"],
        "tokens per second, in total and supervised, are always reported",
    ),
    (&["freeze_vision_tower", "freeze_multi_modal_projector"], "only text is trained on"),
    (&["loraplus_lr_embedding"], "read only with `loraplus_lr_ratio`, which is not built yet"),
    (&["pissa_iter", "pissa_convert"], "read only with `pissa_init`, which is not built yet"),
    (
        &["oft_rank", "oft_block_size", "oft_target", "module_dropout"],
        "read only with `finetuning_type: oft`, which is not built yet",
    ),
    (
        &[
            "galore_target",
            "galore_rank",
            "galore_update_interval",
            "galore_scale",
            "galore_proj_type",
            "galore_layerwise",
        ],
        "read only with `use_galore`, which is not built yet",
    ),
    (
        &[
            "apollo_target",
            "apollo_rank",
            "apollo_update_interval",
            "apollo_scale",
            "apollo_proj",
            "apollo_proj_type",
            "apollo_scale_type",
            "apollo_layerwise",
            "apollo_scale_front",
        ],
        "read only with `use_apollo`, which is not built yet",
    ),
    (
        &[
            "badam_mode",
            "badam_start_block",
            "badam_switch_mode",
            "badam_switch_interval",
            "badam_update_ratio",
            "badam_mask_mode",
            "badam_verbose",
        ],
        "read only with `use_badam`, which is not built yet",
    ),
    (&["asft_alpha", "eaft_alpha"], "read only with a loss that is not built yet"),
    (&["hyper_parallel_args"], "read only with `use_hyper_parallel`, which is not built"),
    (
        &[
            "swanlab_project",
            "swanlab_workspace",
            "swanlab_run_name",
            "swanlab_mode",
            "swanlab_api_key",
            "swanlab_logdir",
            "swanlab_lark_webhook_url",
            "swanlab_lark_secret",
        ],
        "read only with `use_swanlab`, which is not built",
    ),
    (
        &[
            "pref_beta",
            "pref_ftx",
            "pref_bco_weight",
            "pref_loss",
            "dpo_label_smoothing",
            "kto_chosen_weight",
            "kto_rejected_weight",
            "simpo_gamma",
            "ld_alpha",
            "ppo_buffer_size",
            "ppo_epochs",
            "ppo_score_norm",
            "ppo_target",
            "ppo_whiten_rewards",
            "ref_model",
            "ref_model_adapters",
            "ref_model_quantization_bit",
            "reward_model",
            "reward_model_adapters",
            "reward_model_quantization_bit",
            "reward_model_type",
        ],
        "read only in the stages rm, ppo, dpo and kto, which are not built",
    ),
];

pub(super) const NOT_YET: &[super::NotYetKey] = &[
    (
        "pure_bf16",
        "false",
        "use `bf16: true`: trained weights stay in float32, so that small updates are not lost",
    ),
    ("use_dora", "false", "leave it out: plain LoRA"),
    ("pissa_init", "false", "leave it out: LoRA begins with B = 0"),
    ("loraplus_lr_ratio", "null", "leave it out: both matrices share `learning_rate`"),
    ("use_galore", "false", "use `finetuning_type: lora`, which saves more memory"),
    ("use_apollo", "false", "use `finetuning_type: lora`, which saves more memory"),
    ("use_badam", "false", "use `finetuning_type: freeze` or `lora`"),
    ("use_llama_pro", "false", "use `finetuning_type: freeze`"),
    ("use_adam_mini", "false", "leave it out: AdamW"),
    ("use_muon", "false", "leave it out: AdamW"),
    ("use_mca", "false", "leave it out"),
    ("use_hyper_parallel", "false", "leave it out"),
    ("use_dft_loss", "false", "leave it out: cross-entropy"),
    ("use_asft_loss", "false", "leave it out: cross-entropy"),
    ("use_eaft_loss", "false", "leave it out: cross-entropy"),
    ("use_swanlab", "false", "use `report_to: tensorboard`; trainer_log.jsonl is always written"),
    ("freeze_language_model", "false", "leave it out: there would be nothing to train"),
];
