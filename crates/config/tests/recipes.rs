//! Whole recipes as people have them: LLaMA-Factory's own, unchanged.

use sft_config::{
    Amount, ComputeDtype, Device, FinetuningType, IntervalStrategy, LrSchedulerType, Purpose, Reporter,
    Resume, RunConfig, Stage, Targets, json_schema, load_text,
};

/// The shape of LLaMA-Factory's `examples/train_lora/qwen3_lora_sft.yaml`.
const QWEN3_LORA_SFT: &str = "\
### model
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,alpaca_en_demo
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/qwen3-4b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
# eval_dataset: alpaca_en_demo
# val_size: 0.1
# per_device_eval_batch_size: 1
# eval_strategy: steps
# eval_steps: 500
";

fn train(text: &str) -> RunConfig {
    load_text(text, "recipe.yaml", &[], Purpose::Train).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn a_tilde_is_the_home_folder() {
    let Some(home) = std::env::home_dir() else { return };
    let output = |path: &str| {
        train(&format!("{QWEN3_LORA_SFT}\n").replace("output_dir: saves/", &format!("output_dir: {path}")))
            .output_dir
    };
    assert!(output("~/saves/").starts_with(home.join("saves")), "{:?}", output("~/saves/"));
    assert!(output("~saves/").starts_with("~saves"), "of somebody else, or a name");
    let names = "model_name_or_path: ~/m\ndataset: a,~/d.json\nadapter_name_or_path: ~/l\noutput_dir: o\nledger: ~/r.sqlite";
    let c = load_text(names, "c.yaml", &[], Purpose::Train).unwrap();
    let in_home = |name: &str| home.join(name).to_str().unwrap().to_owned();
    assert_eq!(c.model_name_or_path, in_home("m"));
    assert_eq!(c.dataset, ["a".to_owned(), in_home("d.json")]);
    assert_eq!((c.adapter_name_or_path, c.ledger), (vec![in_home("l")], Some(in_home("r.sqlite"))));
}

#[test]
fn use_cpu_is_the_cpu() {
    assert_eq!(train(&format!("{QWEN3_LORA_SFT}\nuse_cpu: true\n")).device, Device::Cpu);
    assert_eq!(train(&format!("{QWEN3_LORA_SFT}\nuse_cpu: false\n")).device, Device::Auto);
}

#[test]
fn the_canonical_recipe_of_llama_factory_is_accepted_unchanged() {
    let c = train(QWEN3_LORA_SFT);
    assert_eq!(c.model_name_or_path, "Qwen/Qwen3-4B-Instruct-2507");
    assert_eq!((c.stage, c.finetuning_type), (Stage::Sft, FinetuningType::Lora));
    assert_eq!((c.lora_rank, c.lora_alpha, c.lora_target), (8, 16.0, Targets::All));
    assert_eq!(c.dataset, ["identity", "alpaca_en_demo"]);
    assert_eq!(c.max_samples, Some(1000));
    assert_eq!(c.learning_rate, 1e-4);
    assert_eq!(c.lr_scheduler_type, LrSchedulerType::Cosine);
    assert_eq!(c.warmup_steps, Amount::Fraction(0.1));
    assert_eq!(c.compute_dtype, ComputeDtype::Bfloat16);
    assert_eq!(c.save_steps, Amount::Count(500));
    assert_eq!(c.report_to, []);
    assert_eq!(c.resume_from_checkpoint, Resume::No, "overwrite_output_dir begins anew");
    let silent: Vec<_> = c.no_effect.iter().map(|n| n.key.as_str()).collect();
    assert_eq!(
        silent,
        ["trust_remote_code", "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout"]
    );
}

#[test]
fn the_benchmark_recipe_is_accepted_unchanged() {
    let c = train(
        "model_name_or_path: models/0.5b        # a random model\n\
         stage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\n\
         dataset_dir: llama_factory\ndataset: identity,alpaca_en_demo\ntemplate: qwen\ncutoff_len: 1024\n\
         max_samples: 200\noverwrite_cache: true\noutput_dir: saves/bench\nlogging_steps: 1\nsave_steps: 500\n\
         overwrite_output_dir: true\nreport_to: none\nper_device_train_batch_size: 1\n\
         gradient_accumulation_steps: 1\nlearning_rate: 1.0e-4\nlr_scheduler_type: cosine\nwarmup_ratio: 0.1\n\
         bf16: true\nuse_cpu: true\nmax_steps: 8\ninclude_num_input_tokens_seen: true\nneat_packing: true\n\
         flash_attn: sdpa\ndisable_gradient_checkpointing: true\n",
    );
    assert!(c.packing && c.neat_packing);
    assert_eq!(c.max_steps, 8);
    assert_eq!(c.disable_gradient_checkpointing, Some(true));
}

#[test]
fn a_recipe_with_evaluation_is_accepted() {
    let c = train(
        "model_name_or_path: m\ndataset: d\noutput_dir: o\nval_size: 0.1\neval_strategy: steps\neval_steps: 50\n\
         save_steps: 100\nper_device_eval_batch_size: 1\nload_best_model_at_end: true\nearly_stopping_steps: 3\n\
         report_to: [tensorboard]\n",
    );
    assert!(c.do_train && c.do_eval && !c.greater_is_better);
    assert_eq!(c.val_size, Amount::Fraction(0.1));
    assert_eq!(c.report_to, [Reporter::Tensorboard]);
    let c = train("model_name_or_path: m\ndataset: d\noutput_dir: o\nreport_to: all\n");
    assert_eq!(c.report_to, [Reporter::Tensorboard]);
}

#[test]
fn the_inference_and_merge_recipes_of_llama_factory_are_accepted() {
    let infer = "model_name_or_path: m\nadapter_name_or_path: saves/lora/sft\ntemplate: qwen3_nothink\n\
                 infer_backend: huggingface\ntrust_remote_code: true\n";
    let c = load_text(infer, "infer.yaml", &[], Purpose::Chat).unwrap();
    assert_eq!(c.adapter_name_or_path, ["saves/lora/sft"]);
    let merge = "model_name_or_path: m\nadapter_name_or_path: saves/lora/sft\ntemplate: qwen3_nothink\n\
                 trust_remote_code: true\nexport_dir: output/merged\nexport_size: 5\nexport_device: cpu\n\
                 export_legacy_format: false\n";
    let c = load_text(merge, "merge.yaml", &[], Purpose::Export).unwrap();
    assert_eq!((c.export_dir.to_str(), c.export_size), (Some("output/merged"), 5));
}

#[test]
fn a_training_recipe_serves_chat_too() {
    let overrides = ["adapter_name_or_path=saves/qwen3-4b/lora/sft".to_string()];
    assert!(load_text(QWEN3_LORA_SFT, "recipe.yaml", &overrides, Purpose::Chat).is_ok());
}

#[test]
fn json_is_read_as_well_as_yaml() {
    let json = "{\n\t\"model_name_or_path\": \"m\",\n\t\"dataset\": [\"a\", \"b\"],\n\t\"output_dir\": \"o\\/p\",\n\
                \t\"learning_rate\": 1e-4,\n\t\"bf16\": true,\n\t\"lr_scheduler_kwargs\": null\n}\n";
    let c = load_text(json, "recipe.json", &[], Purpose::Train).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(c.dataset, ["a", "b"]);
    assert_eq!(c.output_dir.to_str(), Some("o/p"));
    assert_eq!((c.learning_rate, c.bf16), (1e-4, true));
}

#[test]
fn a_resolved_configuration_reads_back_to_itself() {
    let richer = format!(
        "{QWEN3_LORA_SFT}default_system: \"Say: \\\"no\\\" # not\\n\\tyes\"\nrun_name: '0123'\nthreads: 2\n\
         lora_target: [q_proj, v_proj]\n"
    )
    .replace("lora_target: all\n", "")
    .replace(
        "lr_scheduler_type: cosine",
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6}",
    );
    assert!(train(&richer).resolved_yaml().contains("adam_epsilon: 1.0e-8\n"), "as YAML 1.1 reads numbers");
    for text in [QWEN3_LORA_SFT, &richer] {
        let mut first = train(text);
        let mut again = train(&first.resolved_yaml());
        first.no_effect.clear();
        again.no_effect.clear();
        first.warmup_ratio = None;
        assert_eq!(first, again, "{}", first.resolved_yaml());
    }
}

#[test]
fn a_resolved_configuration_holds_no_token() {
    let c = train("model_name_or_path: m\ndataset: d\noutput_dir: o\nhf_hub_token: hf_abc\n");
    assert!(!c.resolved_yaml().contains("hf_abc"));
}

/// Rows of the dump of LLaMA-Factory's dataclasses: name, dataclass, default.
fn llama_factory_keys() -> Vec<(&'static str, &'static str, serde_json::Value)> {
    let rows = include_str!("llama_factory_keys.tsv").lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| {
        let mut parts = row.split('\t');
        let mut next = || parts.next().expect("three columns");
        (next(), next(), serde_json::from_str(next()).expect("JSON"))
    })
    .collect()
}

#[test]
fn every_key_of_llama_factory_is_known() {
    let schema = json_schema();
    let missing: Vec<_> = llama_factory_keys()
        .into_iter()
        .map(|(name, ..)| name)
        .filter(|n| schema["properties"].get(n).is_none())
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn every_key_of_llama_factory_is_accepted_with_its_own_default() {
    for (name, dataclass, default) in llama_factory_keys() {
        if dataclass == "EvaluationArguments" && name == "batch_size" {
            continue; // Refused always: people mean per_device_train_batch_size by it.
        }
        let config = serde_json::json!({ name: default });
        if let Err(errors) = load_text(&config.to_string(), "default.json", &[], Purpose::Chat) {
            let about_it: Vec<_> =
                errors.problems.iter().filter(|p| !p.to_string().contains("is missing")).collect();
            assert!(about_it.is_empty(), "{name}: {errors}");
        }
    }
}

#[test]
fn the_defaults_are_llama_factorys_but_for_those_listed() {
    // Same meaning, other words; or a deliberate difference that the documentation explains.
    let differ = [
        "dataset",
        "eval_dataset",
        "adapter_name_or_path",
        "freeze_extra_modules",
        "additional_target",
        "add_tokens",
        "add_special_tokens", // no names
        "model_name_or_path",
        "output_dir",
        "export_dir",                     // none
        "val_size",                       // 0 and 0.0
        "optim",                          // adamw_torch and adamw_torch_fused mean the same
        "disable_gradient_checkpointing", // automatic
    ];
    let schema = json_schema();
    for (name, _, default) in llama_factory_keys() {
        let Some(ours) = schema["properties"][name].get("default") else { continue };
        if !differ.contains(&name) {
            let same = *ours == default || (ours.as_f64().is_some() && ours.as_f64() == default.as_f64());
            assert!(same, "{name}: {ours}, LLaMA-Factory has {default}");
        }
    }
}

#[test]
fn the_default_configuration_has_its_automatic_values_worked_out() {
    let c = RunConfig::default();
    assert_eq!((c.lora_alpha, c.data_seed, c.template.as_str()), (16.0, 42, "auto"));
    assert_eq!((c.eval_steps, c.compute_dtype), (Amount::Count(500), ComputeDtype::Float32));
    assert_eq!((c.eval_strategy, c.save_strategy), (IntervalStrategy::No, IntervalStrategy::Steps));
    assert_eq!((c.do_train, c.do_eval, c.device), (true, false, Device::Auto));
}
