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
        /// LoRA: weights besides linear layers that get matrices, one pair for each expert: `all` is those of all experts
        /// (PEFT's `target_parameters`; docs/experts.md).
        lora_target_parameters: Vec<String> { read_by: "model::experts" }
        /// LoRA and OFT: modules trained whole and saved with the adapter (PEFT's `modules_to_save`).
        additional_target: Vec<String> { read_by: "model::adapter" }
        /// LoRA: scale by lora_alpha / √lora_rank.
        use_rslora: bool { read_by: "model::linear" }
        /// LoRA+: learning rate of the matrices B over that of A; null for one rate.
        loraplus_lr_ratio: Option<f64> { range: Range::above(0.0), read_by: "train::optim" }
        /// LoRA: magnitudes of their own for the rows of adapted weights (DoRA).
        use_dora: bool { read_by: "model::dora" }
        /// LoRA: begin with the largest singular values of each weight, taken out of it (PiSSA).
        pissa_init: bool { read_by: "model::adapter" }
        /// PiSSA: iterations of the fast decomposition; −1 for as many as a full one's result takes.
        pissa_iter: i64 { default: 16, range: Range::at_least(-1.0), read_by: "model::svd" }
        /// PiSSA: write the adapter as one of the model's own weights too, of twice the rank, into `pissa_converted`.
        pissa_convert: bool { read_by: "model::adapter" }
        /// OFT: into how many blocks an input is cut; 0 for blocks of `oft_block_size`.
        oft_rank: u32 { default: 0, read_by: "model::oft" }
        /// OFT: width of a block; 0 where `oft_rank` says how many there are. An input that it does not divide takes the
        /// nearest width that does.
        oft_block_size: u32 { default: 32, read_by: "model::oft" }
        /// OFT: the linear layers whose inputs are rotated. `all` is every one but the head.
        oft_target: Targets { default: Targets::All, read_by: "model::oft" }
        /// OFT: share of the blocks that are not rotated in a training pass.
        module_dropout: f64 { range: Range::until(0.0, 1.0), read_by: "model::oft" }
        /// LoRA and OFT: merge the adapters of `adapter_name_or_path` and train a new one.
        create_new_adapter: bool { read_by: "model::adapter" }
        /// Freeze: how many layers are trained, the last ones; negative numbers are the first ones.
        freeze_trainable_layers: i64 { default: 2, read_by: "model::method" }
        /// Freeze, LoRA and OFT: train the blocks that LLaMA-Pro's expansion has put in (`num_expand` of `sft export`):
        /// `freeze_trainable_layers` says how many there are.
        use_llama_pro: bool { read_by: "model::method" }
        /// Freeze: the modules trained in these layers.
        freeze_trainable_modules: Targets { default: Targets::All, read_by: "model::method" }
        /// Freeze: modules outside of the layers that are trained too, such as `embed_tokens`, `norm`, `lm_head`.
        freeze_extra_modules: Vec<String> { read_by: "model::method" }
        /// GaLore: moments of gradients in few dimensions (docs/optimizers.md).
        use_galore: bool { read_by: "train::optim" }
        /// GaLore: the linear layers whose gradients are projected: those whose names have one of these in them.
        galore_target: Targets { default: Targets::All, read_by: "train::optim" }
        /// GaLore: dimensions of a projected gradient.
        galore_rank: u32 { default: 16, range: Range::at_least(1.0), read_by: "train::optim" }
        /// GaLore: steps after which projections are made anew.
        galore_update_interval: u64 { default: 200, range: Range::at_least(1.0), read_by: "train::optim" }
        /// GaLore: strength of projected updates.
        galore_scale: f64 { default: 2.0, range: Range::above(0.0), read_by: "train::optim" }
        /// GaLore: which side of a gradient is projected.
        galore_proj_type: GaloreProjType { read_by: "train::optim" }
        /// GaLore: update each layer as soon as its gradients are there, and keep those of one layer at a time.
        galore_layerwise: bool { read_by: "train::optim" }
        /// APOLLO: gradients scaled by what moments in few dimensions say (docs/optimizers.md).
        use_apollo: bool { read_by: "train::optim" }
        /// APOLLO: the linear layers whose gradients are projected: those whose names have one of these in them.
        apollo_target: Targets { default: Targets::All, read_by: "train::optim" }
        /// APOLLO: dimensions of a projected gradient.
        apollo_rank: u32 { default: 16, range: Range::at_least(1.0), read_by: "train::optim" }
        /// APOLLO: steps after which projections are made anew.
        apollo_update_interval: u64 { default: 200, range: Range::at_least(1.0), read_by: "train::optim" }
        /// APOLLO: strength of scaled updates; its root counts.
        apollo_scale: f64 { default: 32.0, range: Range::above(0.0), read_by: "train::optim" }
        /// APOLLO: where projections come from.
        apollo_proj: ApolloProj { read_by: "train::optim" }
        /// APOLLO: which side of a gradient is projected.
        apollo_proj_type: ApolloProjType { read_by: "train::optim" }
        /// APOLLO: what has a factor of its own.
        apollo_scale_type: ApolloScaleType { read_by: "train::optim" }
        /// APOLLO: limit the growth of updates after their strength is applied, not before.
        apollo_scale_front: bool { read_by: "train::optim" }
        /// APOLLO: update each layer as soon as its gradients are there, and keep those of one layer at a time.
        apollo_layerwise: bool { read_by: "train::optim" }
        /// BAdam: update one part of the model after the other (docs/optimizers.md).
        use_badam: bool { read_by: "train::optim" }
        /// BAdam: a block at a time, or a share of each matrix.
        badam_mode: BadamMode { read_by: "train::optim" }
        /// BAdam: the first block, from 0; null takes the one that the order begins with.
        badam_start_block: Option<u64> { read_by: "train::optim" }
        /// BAdam: the order of the blocks.
        badam_switch_mode: BadamSwitchMode { read_by: "train::optim" }
        /// BAdam: steps of a block; -1 stays with the first.
        badam_switch_interval: i64 { default: 50, range: Range::at_least(-1.0), read_by: "train::optim" }
        /// BAdam: share of each matrix that is updated (`badam_mode: ratio`).
        badam_update_ratio: f64 { default: 0.05, range: Range::between(0.0, 1.0), read_by: "train::optim" }
        /// BAdam: which elements are updated (`badam_mode: ratio`).
        badam_mask_mode: BadamMaskMode { read_by: "train::optim" }
        /// Adam-mini in the place of `optim`: one second moment for a head or a row.
        use_adam_mini: bool { read_by: "train::optim" }
        /// Muon in the place of `optim` for matrices, and AdamW for the rest.
        use_muon: bool { read_by: "train::optim" }
        /// Weigh each token's loss by its probability (DFT), instead of plain cross-entropy.
        use_dft_loss: bool { read_by: "kernels::objective" }
        /// Weigh each token's loss by how undecided the model is about it (EAFT).
        use_eaft_loss: bool { read_by: "kernels::objective" }
        /// EAFT: power of that weight; 0 is plain cross-entropy.
        eaft_alpha: f64 { default: 1.0, range: Range::at_least(0.0), read_by: "kernels::objective" }
        /// DFT's loss, with a divergence that holds the model near the one that training began with (ASFT). That model
        /// is kept beside the trained one, and computes forward in each step.
        use_asft_loss: bool { read_by: "kernels::objective" }
        /// ASFT: weight of the divergence.
        asft_alpha: f64 { default: 0.1, range: Range::at_least(0.0), read_by: "kernels::objective" }
        /// Keep the rows in the order of the data.
        disable_shuffling: bool { read_by: "data::loader" }
        /// Stop after so many evaluations without a better one; null never stops early.
        early_stopping_steps: Option<u64> { range: Range::at_least(1.0), read_by: "train::run" }
        /// Draw the loss into `training_loss.png` and `.svg`.
        plot_loss: bool { read_by: "runs::plots" }
    } } };
}

pub(super) const NO_EFFECT: &[super::NoEffectKeys] = &[
    (&["compute_accuracy"], "the accuracy of an evaluation is always counted"),
    (
        &["include_effective_tokens_per_second"],
        "tokens per second, in total and supervised, are always reported",
    ),
    (&["freeze_vision_tower", "freeze_multi_modal_projector"], "only text is trained on"),
    (&["loraplus_lr_embedding"], "adapters are put on linear layers, and none on embeddings"),
    (&["badam_verbose"], "it says what the package badam prints"),
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
    ("use_mca", "false", "leave it out"),
    ("use_hyper_parallel", "false", "leave it out"),
    ("use_swanlab", "false", "use `report_to: tensorboard`; trainer_log.jsonl is always written"),
    ("freeze_language_model", "false", "leave it out: there would be nothing to train"),
];
