//! Keys that cannot hold together, and schedules that cannot be built.

use sft_config::{LrSchedule, Purpose, RampShape, load_text};

const GOOD: &str = "model_name_or_path: m\ndataset: d\noutput_dir: o\n";

fn outcome(lines: &str) -> Result<sft_config::RunConfig, String> {
    let text = format!("{GOOD}{}\n", lines.replace("; ", "\n"));
    load_text(&text, "c.yaml", &[], Purpose::Train).map_err(|errors| errors.to_string())
}

#[track_caller]
fn refused(lines: &str, part: &str) {
    match outcome(lines) {
        Ok(_) => panic!("accepted: {lines}"),
        Err(errors) => {
            assert!(errors.contains(part), "`{part}` is not in: {errors}");
            assert!(errors.contains("1 problem"), "{errors}");
            assert!(errors.contains("help:"), "{errors}");
        }
    }
}

#[track_caller]
fn accepted(lines: &str) -> sft_config::RunConfig {
    outcome(lines).unwrap_or_else(|errors| panic!("{lines}: {errors}"))
}

#[test]
fn evaluation_data_comes_from_one_place() {
    refused("val_size: 0.1; eval_dataset: e", "c.yaml:4: `val_size` holds rows out");
    accepted("val_size: 0.0; eval_dataset: e");
}

#[test]
fn evaluation_needs_data() {
    refused("eval_strategy: steps", "no data");
    refused("do_eval: true; do_train: true", "no data");
    refused("eval_on_start: true", "no data");
    accepted("eval_strategy: epoch; val_size: 100");
}

#[test]
fn probabilities_are_for_interleaved_mixes_and_one_for_each_data_set() {
    refused("interleave_probs: [1.0]", "needs an interleaving `mix_strategy`");
    refused(
        "mix_strategy: interleave_over; interleave_probs: 0.5,0.5",
        "has 2 numbers, and `dataset` names 1",
    );
    refused("mix_strategy: interleave_over; interleave_probs: 0.5", "sum to 0.5, not to 1");
    refused(
        "mix_strategy: interleave_over; interleave_probs: 1.5,-0.5; eval_dataset: a,b",
        "outside of 0 to 1",
    );
    let two = "mix_strategy: interleave_under; interleave_probs: 0.7,0.3; eval_dataset: a,b";
    let text = format!("{GOOD}{}\n", two.replace("; ", "\n"));
    let c = load_text(&text, "c.yaml", &["dataset=a,b".to_owned()], Purpose::Train).unwrap();
    assert_eq!(c.interleave_probs.0, [0.7, 0.3]);
}

#[test]
fn a_stream_ends_by_steps_and_counts_no_rows() {
    refused("streaming: true", "needs `max_steps`");
    refused("streaming: true; max_steps: 5; val_size: 0.1", "c.yaml:6: `val_size` is a fraction");
    refused("streaming: true; max_steps: 5; max_samples: 9", "cannot be set together with `streaming`");
    refused("streaming: true; max_steps: 5; tokenized_path: t", "never has");
    assert_eq!(accepted("streaming: true; max_steps: 5; val_size: 100").buffer_size, 16384);
}

#[test]
fn mask_history_excludes_train_on_prompt() {
    refused("mask_history: true; train_on_prompt: true", "last answer only");
}

#[test]
fn plain_text_has_no_prompt_to_mask() {
    refused("stage: pt; train_on_prompt: true", "knows no prompts");
}

#[test]
fn float32_excludes_bf16() {
    refused("bf16: true; compute_dtype: float32", "(and c.yaml:4)");
    accepted("compute_dtype: bfloat16; bf16: false");
    refused("use_cpu: true; device: cuda", "(and c.yaml:4)");
    accepted("use_cpu: true; device: cpu");
}

#[test]
fn an_adapter_is_for_lora() {
    refused("adapter_name_or_path: a; finetuning_type: full", "needs `finetuning_type: lora` or `oft`");
    refused("adapter_name_or_path: a; finetuning_type: freeze", "needs `finetuning_type: lora` or `oft`");
    refused("create_new_adapter: true", "needs `adapter_name_or_path`");
    accepted("adapter_name_or_path: a,b; create_new_adapter: true");
}

#[test]
fn rotations_have_one_size_and_may_stand_beside_codes() {
    let oft = "finetuning_type: oft";
    accepted(oft);
    accepted(&format!("{oft}; quantization_bit: 4; adapter_name_or_path: a"));
    accepted(&format!("{oft}; oft_rank: 8; oft_block_size: 0; module_dropout: 0.1"));
    refused(&format!("{oft}; oft_rank: 8"), "both say how inputs are cut");
    refused(&format!("{oft}; oft_block_size: 0"), "are both 0");
    refused(&format!("{oft}; oft_block_size: 1"), "leaves nothing to rotate");
    refused(&format!("{oft}; module_dropout: 1"), "module_dropout");
    refused(&format!("{oft}; use_galore: true"), "`finetuning_type` is `oft`");
    refused(&format!("{oft}; use_dora: true"), "`use_dora` needs `finetuning_type: lora`");
}

#[test]
fn random_weights_are_trained_whole() {
    refused("train_from_scratch: true", "finetuning_type: full");
    accepted("train_from_scratch: true; finetuning_type: full; stage: pt");
}

#[test]
fn freezing_everything_is_refused() {
    refused("finetuning_type: freeze; freeze_trainable_layers: 0", "nothing to train");
    accepted("finetuning_type: freeze; freeze_trainable_layers: -2");
}

#[test]
fn the_best_model_needs_a_checkpoint_for_each_evaluation() {
    refused(
        "load_best_model_at_end: true; val_size: 0.1",
        "`save_strategy` is `steps` and `eval_strategy` is `no`",
    );
    refused(
        "load_best_model_at_end: true; val_size: 0.1; eval_strategy: epoch",
        "needs a checkpoint for each evaluation",
    );
    refused(
        "load_best_model_at_end: true; val_size: 0.1; eval_strategy: steps; eval_steps: 300; save_steps: 500",
        "multiple",
    );
    refused(
        "load_best_model_at_end: true; val_size: 0.1; eval_strategy: steps; eval_steps: 0.1; save_steps: 500",
        "multiple",
    );
    accepted(
        "load_best_model_at_end: true; val_size: 0.1; eval_strategy: steps; eval_steps: 0.1; save_steps: 0.3",
    );
    accepted("load_best_model_at_end: true; val_size: 0.1; eval_strategy: epoch; save_strategy: epoch");
}

#[test]
fn early_stopping_needs_evaluations_and_the_best_model() {
    refused(
        "early_stopping_steps: 2; load_best_model_at_end: false; val_size: 9; eval_strategy: epoch",
        "load_best_model_at_end: true",
    );
    refused(
        "early_stopping_steps: 2; load_best_model_at_end: true; save_strategy: no",
        "counts evaluations, but",
    );
}

#[test]
fn the_warm_up_is_set_once() {
    refused("warmup_ratio: 0.1; warmup_steps: 100", "both set the warm-up");
    accepted("warmup_ratio: 0.1; warmup_steps: 0");
}

#[test]
fn there_must_be_something_to_do() {
    refused("do_train: false", "nothing to do");
}

#[test]
fn a_refused_value_makes_no_second_problem() {
    refused("val_size: often; eval_strategy: steps", "`val_size` takes");
}

#[test]
fn steps_and_epochs_may_both_be_given() {
    let c = accepted("max_steps: 10; num_train_epochs: 3");
    assert_eq!(c.no_effect[0].key, "num_train_epochs");
}

#[test]
fn a_temperature_of_zero_is_greedy() {
    assert!(!accepted("temperature: 0").do_sample);
}

#[test]
fn each_schedule_has_the_defaults_of_transformers() {
    let of = |lines: &str| accepted(lines).lr_schedule();
    assert_eq!(of("lr_scheduler_type: linear"), LrSchedule::Linear);
    assert_eq!(of("lr_scheduler_type: cosine"), LrSchedule::Cosine { num_cycles: 0.5 });
    assert_eq!(
        of("lr_scheduler_type: cosine_with_restarts"),
        LrSchedule::CosineWithRestarts { num_cycles: 1.0 }
    );
    assert_eq!(of("lr_scheduler_type: polynomial"), LrSchedule::Polynomial { lr_end: 1e-7, power: 1.0 });
    assert_eq!(of("lr_scheduler_type: constant"), LrSchedule::Constant);
    assert_eq!(of("lr_scheduler_type: constant_with_warmup"), LrSchedule::ConstantWithWarmup);
    assert_eq!(of("lr_scheduler_type: inverse_sqrt"), LrSchedule::InverseSqrt { timescale: None });
    let floor =
        "lr_scheduler_type: cosine_with_min_lr; learning_rate: 1e-4; lr_scheduler_kwargs: {min_lr: 1e-5}";
    assert_eq!(of(floor), LrSchedule::CosineWithMinLr { num_cycles: 0.5, min_lr_rate: 1e-5 / 1e-4 });
    let plateau = "lr_scheduler_type: warmup_stable_decay; lr_scheduler_kwargs: {num_decay_steps: 50}";
    let expected = LrSchedule::WarmupStableDecay {
        num_stable_steps: None,
        num_decay_steps: Some(50),
        warmup_type: RampShape::Linear,
        decay_type: RampShape::Cosine,
        min_lr_ratio: 0.0,
        num_cycles: 0.5,
    };
    assert_eq!(of(plateau), expected);
}

#[test]
fn a_parameter_that_the_schedule_does_not_take_is_refused() {
    refused("lr_scheduler_type: linear; lr_scheduler_kwargs: {power: 2}", "`linear` takes no parameter");
    refused(
        "lr_scheduler_type: polynomial; lr_scheduler_kwargs: {num_cycles: 2}",
        "`polynomial` takes lr_end, power",
    );
    refused("lr_scheduler_type: cosine; lr_scheduler_kwargs: {num_cycels: 2}", "did you mean `num_cycles`?");
    refused(
        "lr_scheduler_type: cosine; lr_scheduler_kwargs: {num_cycles: two}",
        "`num_cycles` cannot be `two`",
    );
    refused("lr_scheduler_type: cosine; lr_scheduler_kwargs: {num_cycles: -1}", "below 0");
    refused("lr_scheduler_type: cosine; lr_scheduler_kwargs: 3", "a mapping");
}

#[test]
fn a_schedule_that_lacks_a_parameter_is_refused() {
    refused("lr_scheduler_type: cosine_with_min_lr", "needs min_lr or min_lr_rate");
    accepted("lr_scheduler_type: warmup_stable_decay");
    let floored = "lr_scheduler_type: cosine_warmup_with_min_lr";
    refused(floored, "needs min_lr or min_lr_rate");
    accepted(&format!("{floored}; lr_scheduler_kwargs: {{min_lr_rate: 0.1, warmup_lr_rate: 0.2}}"));
    refused(
        &format!("{floored}; lr_scheduler_kwargs: {{min_lr_rate: 0.1, warmup_lr_rate: 2}}"),
        "warmup_lr_rate (2) must not be above 1",
    );
    refused(
        "lr_scheduler_type: cosine_with_min_lr; lr_scheduler_kwargs: {min_lr: 1e-5, min_lr_rate: 0.1}",
        "give one",
    );
    refused(
        "lr_scheduler_type: cosine_with_min_lr; lr_scheduler_kwargs: {min_lr: 1}",
        "must not be above learning_rate",
    );
    refused("lr_scheduler_type: polynomial; learning_rate: 1e-8", "must be below learning_rate");
}

#[test]
fn an_optimizer_of_whole_matrices_and_adapters_do_not_mix() {
    for key in ["use_galore", "use_apollo", "use_badam", "use_adam_mini"] {
        refused(&format!("{key}: true"), "`finetuning_type` is `lora`");
        accepted(&format!("{key}: true; finetuning_type: full"));
        accepted(&format!("{key}: true; finetuning_type: freeze"));
    }
    refused("loraplus_lr_ratio: 16; finetuning_type: full", "needs `finetuning_type: lora`");
    accepted("loraplus_lr_ratio: 16");
    accepted("use_muon: true");
}

#[test]
fn a_run_has_one_optimizer() {
    let full = "finetuning_type: full";
    refused(&format!("use_galore: true; use_apollo: true; {full}"), "each ask for an optimizer of their own");
    refused(&format!("use_badam: true; use_muon: true; {full}"), "`use_badam`, `use_muon` each ask");
    refused("loraplus_lr_ratio: 4; use_muon: true", "each ask for an optimizer of their own");
    refused(&format!("use_galore: true; optim: lion_32bit; {full}"), "`optim` is `lion_32bit`");
    accepted(&format!("use_galore: true; optim: adafactor; {full}"));
    refused(&format!("use_apollo: true; optim: adafactor; {full}"), "leave `optim` out");
    refused("use_muon: true; optim: adamw_8bit", "leave `optim` out");
}

#[test]
fn settings_of_an_optimizer_fit_it_and_each_other() {
    let full = "finetuning_type: full";
    refused("optim: sgd; optim_args: alpha=5", "`sgd` takes momentum, dampening, nesterov");
    refused("optim_args: momentum=0.9", "`adamw_torch` takes nothing");
    refused("optim: sgd; optim_args: nesterov=true", "needs a momentum above 0");
    accepted("optim: sgd; optim_args: momentum=0.9,nesterov=true");
    refused("optim: ademamix; adam_beta1: 0; optim_args: t_beta3=5", "one of them is 0");
    refused("optim: schedule_free_adamw; adam_beta1: 0", "no average to go back to");
    refused(
        &format!("use_apollo: true; apollo_proj_type: left; {full}"),
        "`apollo_scale_type: channel` needs `apollo_proj_type: std`",
    );
    accepted(&format!("use_apollo: true; apollo_proj_type: left; apollo_scale_type: tensor; {full}"));
    refused(&format!("use_badam: true; badam_switch_mode: fixed; {full}"), "needs `badam_start_block`");
    refused(&format!("use_badam: true; badam_switch_interval: 0; {full}"), "no number of steps");
    refused(
        &format!("use_badam: true; badam_mode: ratio; weight_decay: 0.1; {full}"),
        "knows no weight decay",
    );
    refused(
        &format!("use_badam: true; badam_mode: ratio; badam_update_ratio: 0; {full}"),
        "nothing to train",
    );
    for by_layer in ["use_galore: true; galore_layerwise: true", "use_apollo: true; apollo_layerwise: true"] {
        accepted(&format!("{by_layer}; {full}"));
        refused(
            &format!("{by_layer}; gradient_accumulation_steps: 2; {full}"),
            "updates after each micro-batch",
        );
        refused(&format!("{by_layer}; on_non_finite: skip_step; {full}"), "cannot be left out");
    }
}

#[test]
fn an_optimizer_without_kernels_for_gpus_is_refused_there() {
    refused("optim: adafactor; device: cuda", "no kernels for GPUs yet");
    refused("use_muon: true; device: cuda", "no kernels for GPUs yet");
    accepted("optim: adamw_8bit; device: cuda");
    accepted("optim: schedule_free_adamw; device: cuda");
    accepted("loraplus_lr_ratio: 16; device: cuda");
}

#[test]
fn a_checkpoint_to_resume_is_nothing_to_evaluate() {
    refused(
        "do_train: false; do_eval: true; eval_dataset: e; resume_from_checkpoint: true",
        "nothing is to be trained",
    );
    accepted("do_train: false; do_eval: true; eval_dataset: e; resume_from_checkpoint: null");
}

#[test]
fn positions_are_scaled_in_a_chat_only_as_they_were_in_training() {
    for purpose in [Purpose::Chat, Purpose::Export] {
        let text = "model_name_or_path: m\nexport_dir: e\nrope_scaling: yarn\n";
        let error = load_text(text, "c.yaml", &[], purpose).unwrap_err().to_string();
        assert!(error.contains("help: add the `cutoff_len` of training"), "{error}");
        load_text(&format!("{text}cutoff_len: 4096\n"), "c.yaml", &[], purpose).unwrap();
    }
}

#[test]
fn what_cannot_change_at_a_resume_is_named_for_fresh_adapters_and_for_streams() {
    let decides = |lines: &str, key: &str| accepted(lines).decided().contains_key(key);
    let continued = "finetuning_type: lora; adapter_name_or_path: a";
    assert!(decides("finetuning_type: lora", "lora_alpha"));
    assert!(!decides(continued, "lora_alpha"), "the adapter's own is read");
    assert!(decides(&format!("{continued}; create_new_adapter: true"), "lora_alpha"));
    assert!(!decides("finetuning_type: lora", "dataset"), "its rows are compared");
    for key in ["dataset", "buffer_size", "template", "cutoff_len"] {
        assert!(decides("streaming: true; max_steps: 5", key), "{key}");
    }
}

#[test]
fn words_of_other_trainers_mean_what_they_mean_there() {
    assert_eq!(accepted("pure_bf16: true").compute_dtype, accepted("bf16: true").compute_dtype);
    refused("pure_bf16: true; compute_dtype: float32", "contradicts `bf16`");
    assert_eq!(accepted("save_total_limit: 0").save_total_limit, None);
    assert!(accepted("bf16: 1").bf16 && !accepted("packing: 0").packing);
    refused("val_size: 1e30", "is larger than any count");
    refused("num_train_epochs: 1e30", "at most 1000000");
}
