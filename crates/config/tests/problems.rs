//! What is wrong with a configuration: each mistake is named with its line and a way out.

use std::fs;

use sft_config::{ConfigError, ConfigErrors, Purpose, load, load_text};

/// A recipe without a fault, to which a test adds one.
const GOOD: &str = "model_name_or_path: m\ndataset: d\noutput_dir: o\n";

fn errors(text: &str) -> ConfigErrors {
    match load_text(text, "c.yaml", &[], Purpose::Train) {
        Ok(_) => panic!("accepted: {text}"),
        Err(errors) => errors,
    }
}

/// The only problem of `GOOD` with `added` as its fourth line.
fn problem(added: &str) -> String {
    let errors = errors(&format!("{GOOD}{added}\n"));
    assert_eq!(errors.problems.len(), 1, "{errors}");
    errors.problems[0].to_string()
}

fn accepted(added: &str) {
    if let Err(errors) = load_text(&format!("{GOOD}{added}\n"), "c.yaml", &[], Purpose::Train) {
        panic!("{added}: {errors}");
    }
}

#[track_caller]
fn says(problem: &str, parts: &[&str]) {
    for part in parts {
        assert!(problem.contains(part), "`{part}` is not in: {problem}");
    }
}

#[test]
fn all_problems_are_reported_at_once_with_their_lines() {
    let errors = errors("lora_rnak: 8\nlora_dropout: 2\n\nbf16: maybe\nuse_kt: true\n");
    let shown = errors.to_string();
    let parts = [
        "7 problems",
        "c.yaml:1: unknown key `lora_rnak`",
        "c.yaml:2: `lora_dropout` is 2",
        "c.yaml:4: `bf16`",
        "c.yaml:5: `use_kt: true`",
        "c.yaml: `dataset` is missing",
        "`model_name_or_path` is missing",
        "`output_dir` is missing",
    ];
    says(&shown, &parts);
}

#[test]
fn an_unknown_key_has_a_suggestion() {
    says(&problem("lora_rnak: 8"), &["c.yaml:4", "unknown key `lora_rnak`", "did you mean `lora_rank`?"]);
    says(&problem("evaluation_strategy: no"), &["did you mean `eval_strategy`?"]);
    says(&problem("frobnicate: 1"), &["unknown key", "sft config"]);
}

#[test]
fn a_wrong_type_shows_the_value_and_what_is_expected() {
    says(&problem("lora_rank: eight"), &["c.yaml:4", "whole number", "`eight`", "Default: 8"]);
    says(&problem("lora_rank: 8.5"), &["whole number", "`8.5`"]);
    says(&problem("lora_rank: -8"), &["at least 0", "`-8`"]);
    says(&problem("bf16: maybe"), &["true or false", "`maybe`"]);
    says(&problem("learning_rate: fast"), &["a number", "`fast`"]);
    says(&problem("learning_rate: .nan"), &["a number"]);
    says(&problem("learning_rate: [1, 2]"), &["a number", "a list of 2"]);
    says(&problem("default_system: {a: b}"), &["a mapping of 1"]);
    says(&problem("learning_rate:"), &["has no value"]);
    says(&problem("run_name: None"), &["Python", "null"]);
}

#[test]
fn numbers_are_read_as_people_write_them() {
    for written in ["1e-4", "1.0e-4", "'1e-4'", "\"0.0001\"", "1E-4", ".0001"] {
        let text = format!("{GOOD}learning_rate: {written}\n");
        assert_eq!(load_text(&text, "c.yaml", &[], Purpose::Train).unwrap().learning_rate, 1e-4, "{written}");
    }
    for written in ["100000", "1e5", "100_000", "100000.0", "'100000'"] {
        let text = format!("{GOOD}max_samples: {written}\n");
        assert_eq!(
            load_text(&text, "c.yaml", &[], Purpose::Train).unwrap().max_samples,
            Some(100_000),
            "{written}"
        );
    }
}

#[test]
fn truth_is_read_as_yaml_1_1_and_1_2_write_it() {
    for written in ["true", "True", "TRUE", "yes", "on", "'true'"] {
        let text = format!("{GOOD}packing: {written}\n");
        assert!(load_text(&text, "c.yaml", &[], Purpose::Train).unwrap().packing, "{written}");
    }
}

#[test]
fn a_number_out_of_range_shows_the_range() {
    says(&problem("lora_dropout: 1.0"), &["`lora_dropout` is 1", "at least 0 and below 1"]);
    says(&problem("lora_rank: 0"), &["at least 1"]);
    says(&problem("warmup_ratio: 1.5"), &["from 0 to 1"]);
    says(&problem("top_p: 0"), &["above 0 and at most 1"]);
    says(&problem("val_size: -0.1"), &["below 0"]);
    says(&problem("val_size: 10.5"), &["not whole"]);
    says(&problem("logging_steps: 0"), &["above 0"]);
}

#[test]
fn a_wrong_choice_lists_the_choices() {
    says(
        &problem("lr_scheduler_type: cosin"),
        &["`cosin` is none of linear, cosine", "did you mean `cosine`?"],
    );
    says(&problem("stage: rlhf"), &["none of pt, sft"]);
}

#[test]
fn what_is_not_built_is_refused_by_name_with_a_way_out() {
    let refused = [
        ("stage: dpo", "`stage: sft`"),
        ("optim: adagrad", "adamw_torch"),
        ("optim: galore_adamw", "use_galore: true"),
        ("quantization_method: hqq", "bnb"),
        ("use_swanlab: true", "tensorboard"),
        ("deepspeed: examples/ds_z3.json", "one process"),
        ("fsdp: full_shard", "one process"),
        ("fp16: true", "bf16: true"),
        ("compute_dtype: float16", "bfloat16"),
        ("report_to: wandb", "tensorboard"),
        ("report_to: [tensorboard, swanlab]", "tensorboard"),
        ("num_beams: 4", "do_sample"),
        ("split_special_tokens: true", "leave it out"),
        ("generation_num_beams: 4", "do_sample"),
        ("lr_scheduler_type: reduce_lr_on_plateau", "cosine"),
        ("save_strategy: best", "load_best_model_at_end"),
        ("export_legacy_format: true", "safetensors"),
        ("batch_size: 4", "per_device_train_batch_size"),
        ("dataset_dir: REMOTE:a/b", "folder"),
    ];
    for (line, way_out) in refused {
        says(&problem(line), &["c.yaml:4", "is not supported yet", "help:", way_out]);
    }
}

#[test]
fn a_key_that_is_not_built_means_nothing_at_its_default() {
    for line in [
        "shift_attn: false",
        "deepspeed: null",
        "quantization_bit:",
        "num_beams: 1",
        "fp16: no",
        "eval_delay: 0.0",
        "export_legacy_format: false",
        "fsdp: ''",
        "report_to: []",
    ] {
        accepted(line);
    }
}

#[test]
fn contradictions_of_adapters_losses_and_new_blocks_are_all_told() {
    let full = "finetuning_type: full\n";
    for (lines, told) in [
        ("use_dora: true", &["`use_dora` needs"][..]),
        ("pissa_init: true\nuse_dora: true", &["`pissa_init` needs", "`use_dora` needs"]),
        ("use_llama_pro: true", &["`use_llama_pro` trains the new blocks"]),
        ("use_dft_loss: true\nuse_eaft_loss: true", &["`use_dft_loss` and `use_eaft_loss` each replace"]),
        (
            "use_asft_loss: true\nlabel_smoothing_factor: 0.1",
            &["`use_asft_loss` and `label_smoothing_factor`"],
        ),
    ] {
        let text = format!("{GOOD}{full}{lines}\n");
        let error = load_text(&text, "c.yaml", &[], Purpose::Train).unwrap_err().to_string();
        says(&error, told);
    }
    let lora = "finetuning_type: lora\n";
    for (lines, told) in [
        ("use_llama_pro: true\nfreeze_trainable_layers: -2", "the number of new blocks"),
        ("pissa_init: true\nadapter_name_or_path: a", "set `create_new_adapter: true`"),
    ] {
        let text = format!("{GOOD}{lora}{lines}\n");
        says(&load_text(&text, "c.yaml", &[], Purpose::Train).unwrap_err().to_string(), &[told]);
    }
    says(&problem("label_smoothing_factor: 1"), &["at least 0 and below 1"]);
    says(&problem("pissa_iter: -2"), &["at least -1"]);
}

#[test]
fn what_belongs_to_a_loss_or_a_start_that_is_not_asked_for_is_listed_as_idle() {
    let text = format!("{GOOD}eaft_alpha: 2\nasft_alpha: 1\npissa_iter: 4\n");
    let c = load_text(&text, "c.yaml", &[], Purpose::Train).unwrap();
    let idle: Vec<&str> = c.no_effect.iter().map(|idle| idle.key.as_str()).collect();
    assert_eq!(idle, ["pissa_iter", "eaft_alpha", "asft_alpha"]);
}

#[test]
fn a_key_without_effect_is_listed_with_its_place_and_reason() {
    let text = format!("{GOOD}ddp_timeout: 180000000\n");
    let c = load_text(&text, "c.yaml", &[], Purpose::Train).unwrap();
    assert_eq!(c.no_effect.len(), 1);
    says(&c.no_effect[0].to_string(), &["ddp_timeout", "c.yaml:4", "one process"]);
}

#[test]
fn a_key_that_another_key_makes_idle_is_listed() {
    let text = format!("{GOOD}finetuning_type: full\nlora_rank: 8\nsave_strategy: epoch\nsave_steps: 10\n");
    let c = load_text(&text, "c.yaml", &[], Purpose::Train).unwrap();
    let idle: Vec<_> = c.no_effect.iter().map(|n| n.key.as_str()).collect();
    assert_eq!(idle, ["lora_rank", "save_steps"]);
}

#[test]
fn what_an_adapter_that_is_trained_further_has_itself_is_listed_as_idle() {
    let lora =
        "finetuning_type: lora\nadapter_name_or_path: adapter\nlora_rank: 4\nlora_target_parameters: all\n";
    let idle = |more: &str| -> Vec<String> {
        let c = load_text(&format!("{GOOD}{lora}{more}"), "c.yaml", &[], Purpose::Train).unwrap();
        c.no_effect.iter().map(|idle| idle.key.clone()).collect()
    };
    assert_eq!(idle(""), ["lora_rank", "lora_target_parameters"]);
    assert!(idle("create_new_adapter: true\n").is_empty());
}

#[test]
fn a_duplicate_key_names_both_lines() {
    says(&problem("dataset: other"), &["c.yaml:4", "`dataset` was already given in line 2"]);
}

#[test]
fn text_that_is_not_yaml_is_refused_with_its_line() {
    says(&errors("model_name_or_path: m\ndataset: [a, b\noutput_dir: o\n").to_string(), &["not valid YAML"]);
    says(
        &errors("model_name_or_path: m\nlr_scheduler_kwargs:\n\tmin_lr: 1e-6\n").to_string(),
        &["c.yaml:3", "tabs"],
    );
    says(&errors("model_name_or_path: a: b\n").to_string(), &["c.yaml:1", "quotes"]);
    says(&errors("a: 1\n---\nb: 2\n").to_string(), &["c.yaml:2", "second document"]);
    says(&errors("a: *nobody\n").to_string(), &["c.yaml:1", "not valid YAML"]);
    says(&errors("? [a]\n: 1\n").to_string(), &["a key must be a word"]);
}

#[test]
fn a_file_that_is_no_mapping_is_refused() {
    says(&errors("- a\n- b\n").to_string(), &["c.yaml:1", "a list"]);
    says(&errors("lora_rank=8\n").to_string(), &["a single value"]);
    for empty in ["", "\n\n", "# only a comment\n", "---\n", "null\n"] {
        says(&errors(empty).to_string(), &["the file holds no key"]);
    }
}

#[test]
fn a_missing_file_is_named_with_its_neighbour() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("quickstart.yaml"), GOOD).unwrap();
    let error = load(Some(&folder.path().join("quikstart.yaml")), &[], Purpose::Train).unwrap_err();
    assert_eq!(*error.problems[0].error, ConfigError::FileMissing);
    says(&error.to_string(), &["quikstart.yaml: no such file", "did you mean", "quickstart.yaml"]);
    assert!(load(Some(&folder.path().join("quickstart.yaml")), &[], Purpose::Train).is_ok());
    says(&load(Some(folder.path()), &[], Purpose::Train).unwrap_err().to_string(), &["cannot read the file"]);
}

#[test]
fn a_line_that_is_not_utf8_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latin1.yaml");
    fs::write(&path, b"model_name_or_path: m\ndefault_system: gr\xfc\xdfe\n").unwrap();
    says(&load(Some(&path), &[], Purpose::Train).unwrap_err().to_string(), &["latin1.yaml:2", "UTF-8"]);
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_read() {
    let text = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
    assert_eq!(load_text(&text, "c.yaml", &[], Purpose::Train).unwrap().output_dir.to_str(), Some("o"));
}

#[test]
fn hostile_text_is_refused_in_bounded_work() {
    let deep_flow = format!("a: {}", "[".repeat(100_000));
    let deep_block: String = (0..2000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    let mut bomb = String::from("l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let refs = vec![format!("*l{}", i - 1); 10].join(",");
        bomb.push_str(&format!("l{i}: &l{i} [{refs}]\n"));
    }
    let long = format!("dataset: {}\n", "x".repeat(2 << 20));
    let many: String = (0..60_000).map(|i| format!("k{i}: 1\n")).collect();
    for text in [deep_flow, deep_block, bomb, long, many] {
        assert!(errors(&text).problems.len() < 100_000);
    }
}

#[test]
fn each_purpose_needs_its_own_keys() {
    let missing = |text: &str, purpose| load_text(text, "c.yaml", &[], purpose).unwrap_err().to_string();
    says(&missing("seed: 1", Purpose::Chat), &["1 problem", "`model_name_or_path` is missing: chat"]);
    says(
        &missing("model_name_or_path: m", Purpose::Export),
        &["1 problem", "`export_dir` is missing: export"],
    );
    says(&missing("model_name_or_path: m", Purpose::Data), &["1 problem", "`dataset` is missing"]);
    says(
        &missing("model_name_or_path: m\ndataset: d\noutput_dir: null", Purpose::Train),
        &["1 problem", "`output_dir`"],
    );
}

/// Deterministic noise: xorshift64.
struct Noise(u64);

impl Noise {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// More inputs by hand: `FUZZ_INPUTS=1000000`.
#[test]
fn no_mutation_of_a_recipe_panics() {
    let inputs = std::env::var("FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(4000);
    let seed = "model_name_or_path: m # c\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6}\n\
                lora_target: [q_proj, 'v_proj']\ndefault_system: |\n  a: b\n  c\nx: &a [1, *a]\nval_size: 0.1\n";
    let bits = [
        "\t",
        "\n",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "|",
        ">",
        "'",
        "\"",
        "\\u",
        "~",
        "!!str ",
        "? ",
        "---\n",
        "%YAML 1.2\n",
        "1e999",
        "-",
        "_",
        ",",
        "#",
        "\u{feff}",
        "\0",
        "é",
        "<<: *a\n",
        ".nan",
        "=",
        "9223372036854775808",
    ];
    let purposes = [Purpose::Train, Purpose::Chat, Purpose::Export, Purpose::Data];
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for i in 0..inputs {
        let mut text: Vec<char> = seed.chars().collect();
        for _ in 0..=noise.below(6) {
            let at = noise.below(text.len());
            match noise.below(3) {
                0 => drop(text.drain(at..(at + 1 + noise.below(12)).min(text.len()))),
                1 => drop(text.splice(at..at, bits[noise.below(bits.len())].chars())),
                _ => text[at] = char::from(noise.below(128) as u8),
            }
            if text.is_empty() {
                text.push('a');
            }
        }
        let text: String = text.into_iter().collect();
        let from = noise.below(text.len());
        let argument: String = text.bytes().skip(from).take(20).map(char::from).collect();
        match load_text(&text, "c.yaml", &[argument], purposes[i % 4]) {
            Ok(config) => assert!(!config.resolved_yaml().is_empty()),
            Err(errors) => assert!(!errors.problems.is_empty() && !errors.to_string().is_empty()),
        }
    }
}

#[test]
fn files_of_described_tokens_that_hold_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, config) = (folder.path().join("tokens.yaml"), folder.path().join("c.yaml"));
    let load_with = |tokens: Option<&str>, line: &str| {
        if let Some(tokens) = tokens {
            fs::write(&file, tokens).unwrap();
        }
        fs::write(&config, format!("{GOOD}\nnew_special_tokens_config: {}\n{line}", file.display())).unwrap();
        load(Some(&config), &[], Purpose::Train)
    };
    let refused = |tokens: Option<&str>, words: &[&str]| {
        says(&load_with(tokens, "").unwrap_err().to_string(), words);
    };
    refused(None, &["tokens.yaml"]);
    refused(Some(""), &["the file holds no key", "each line of it is a token"]);
    refused(Some("- <a>\n"), &["tokens.yaml", "help:"]);
    refused(Some("\"<a>\": [1]\n"), &["`<a>` has no description"]);
    let taken =
        load_with(Some("\"<a>\": one\n\"<b>\": two words\n"), "init_special_tokens: desc_init").unwrap();
    let pair = |token: &str, description: &str| (token.to_owned(), description.to_owned());
    assert_eq!(taken.new_special_tokens_config.tokens, [pair("<a>", "one"), pair("<b>", "two words")]);
    let text = problem("init_special_tokens: desc_init");
    says(&text, &["needs descriptions", "new_special_tokens_config"]);
}

#[test]
fn what_a_file_that_is_not_yaml_holds_is_not_said_to_be_missing() {
    let errors = errors(&format!("{GOOD}\tlora_rank: 8\n"));
    assert_eq!(errors.problems.len(), 1, "{errors}");
    says(&errors.to_string(), &["not valid YAML", "help: YAML is indented with spaces"]);
}

#[test]
fn an_evaluation_alone_needs_no_rows_to_train_on() {
    let evaluates = "model_name_or_path: m\noutput_dir: o\ndo_train: false\ndo_eval: true\neval_dataset: e\n";
    load_text(evaluates, "c.yaml", &[], Purpose::Train).unwrap();
    let errors = errors("model_name_or_path: m\noutput_dir: o\neval_dataset: e\n");
    says(&errors.to_string(), &["1 problem", "`dataset` is missing: training needs it"]);
}

#[test]
fn the_help_for_a_missing_key_is_all_of_what_is_written_on_it() {
    let errors = errors("dataset: d\noutput_dir: o\n").to_string();
    says(&errors, &["as in `Qwen/Qwen2.5-0.5B-Instruct`, which is fetched once"]);
}

#[test]
fn answers_alone_need_nothing_to_train_on_and_rows_to_answer() {
    let text = "model_name_or_path: m\noutput_dir: o\ndo_predict: true\n";
    let config = load_text(&format!("{text}eval_dataset: d\n"), "c.yaml", &[], Purpose::Train).unwrap();
    assert!(!config.do_train && !config.do_eval && config.do_predict);
    let told = errors(text).to_string();
    says(
        &told,
        &["1 problem", "`do_predict` asks for answers, but there are no rows", "name an `eval_dataset`"],
    );
    let told = errors(&format!("{text}dataset: d\neval_dataset: d\nstage: pt\n")).to_string();
    says(&told, &["there is nothing to answer"]);
}

#[test]
fn the_best_answers_are_compared_only_where_evaluations_ask_for_some() {
    let text = "model_name_or_path: m\noutput_dir: o\ndataset: d\nval_size: 2\neval_strategy: steps\n\
        load_best_model_at_end: true\nmetric_for_best_model: rouge-l\n";
    says(&errors(text).to_string(), &["evaluations do not ask for any", "set `predict_with_generate: true`"]);
    let text = format!("{text}predict_with_generate: true\n");
    let config = load_text(&text, "c.yaml", &[], Purpose::Train).unwrap();
    assert_eq!(config.metric_for_best_model.to_string(), "eval_rouge-l");
    assert!(config.greater_is_better);
}
