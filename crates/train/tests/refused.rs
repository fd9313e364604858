//! Runs that are refused before the first step: what is said, and that nothing is written.

use std::fs;
use std::path::Path;

use sft_config::{Purpose, load_text};
use sft_train::events::Silent;
use sft_train::fit::Fit;
use sft_train::run::run;
use sft_train::{Job, TrainError};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

/// A job of the quick start's model on `rows`, a JSON-lines file of messages, written into `folder`.
fn prepare(folder: &Path, rows: &str, keys: &[&str]) -> Result<Job, TrainError> {
    let data = folder.join("rows.jsonl");
    fs::write(&data, rows).unwrap();
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\ndataset: {}\noutput_dir: {}\nfinetuning_type: full\n",
        data.display(),
        folder.join("out").display()
    );
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    Job::prepare(load_text(&text, "test.yaml", &keys, Purpose::Train).unwrap())
}

fn refusal(rows: &str, keys: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), rows, keys).expect_err("must be refused").to_string()
}

/// A row `{messages: …}` of (role, content) pairs.
fn row(messages: &[(&str, &str)]) -> String {
    let messages: Vec<_> = messages
        .iter()
        .map(|(role, content)| serde_json::json!({"role": role, "content": content}))
        .collect();
    format!("{}\n", serde_json::json!({ "messages": messages }))
}

#[test]
fn a_cutoff_that_leaves_no_prompt_whole_is_refused_with_the_shortest_prompt() {
    let rows = row(&[("user", "the capital of Peru"), ("assistant", "Lima")]);
    let text = refusal(&rows, &["cutoff_len=6"]);
    assert!(text.starts_with("cutoff_len: 6 leaves no prompt whole: the shortest has "), "{text}");
    assert!(text.contains("help: raise cutoff_len above "), "{text}");
}

#[test]
fn rows_without_a_supervised_token_leave_nothing_to_train_on() {
    let off = r#"{"messages": [{"role": "user", "content": "hat"}, {"role": "assistant", "content": "cap", "weight": 0}]}"#;
    let text = refusal(&format!("{off}\n"), &[]);
    assert!(text.starts_with("none of 1 training rows is left: 0 were refused"), "{text}");
    assert!(text.contains("rows.jsonl:1: "), "{text}");
}

#[test]
fn evaluation_rows_that_are_all_dropped_are_refused_and_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let off = r#"{"messages": [{"role": "user", "content": "hat"}, {"role": "assistant", "content": "cap", "weight": 0}]}"#;
    let eval = folder.path().join("eval.jsonl");
    fs::write(&eval, off).unwrap();
    let key = format!("eval_dataset={}", eval.display());
    let text = refusal(&row(&[("user", "hat"), ("assistant", "cap")]), &[&key]);
    assert!(text.starts_with("none of 1 evaluation rows is left"), "{text}");
}

#[test]
fn evaluation_rows_that_the_template_refuses_count_against_max_malformed() {
    let folder = tempfile::tempdir().unwrap();
    let good = row(&[("user", "hat"), ("assistant", "cap")]);
    let bad = good.replacen('{', r#"{"tools": [{"description": "a tool without a name"}], "#, 1);
    let eval = folder.path().join("eval.jsonl");
    fs::write(&eval, [good.clone(), bad].concat()).unwrap();
    let key = format!("eval_dataset={}", eval.display());
    let text = refusal(&good, &["template=default", &key]);
    let said = "1 of 2 rows are refused by the template (rows to evaluate on), more than the limit of 1 %";
    assert!(text.starts_with(said), "{text}");
}

#[test]
fn rows_that_the_template_refuses_count_against_max_malformed() {
    let good = row(&[("user", "hat"), ("assistant", "cap")]);
    let bad = good.replacen('{', r#"{"tools": [{"description": "a tool without a name"}], "#, 1);
    let rows = [good.repeat(3), bad].concat();
    let keys = ["template=default"];
    let text = refusal(&rows, &keys);
    assert!(
        text.starts_with("1 of 4 rows are refused by the template, more than the limit of 1 %"),
        "{text}"
    );
    assert!(text.contains("rows.jsonl:4: "), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let job = prepare(folder.path(), &rows, &[keys[0], "max_malformed=0.25"]).unwrap();
    assert_eq!((job.encoded.examples, job.encoded.refused.len()), (3, 1));
}

#[test]
fn the_room_that_is_asked_for_is_what_the_files_take() {
    for (method, every) in [
        ("full", "save_steps=2"),
        ("full", "save_strategy=no"),
        ("lora", "save_steps=2"),
        ("lora", "save_steps=9"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let rows = row(&[("user", "hat"), ("assistant", "cap")]);
        let method = format!("finetuning_type={method}");
        let job = prepare(folder.path(), &rows, &[&method, every, "max_steps=2", "bf16=true"]).unwrap();
        let asked = job.written_bytes();
        run(job, &mut Silent).unwrap();
        let written = bytes_of_weights(&folder.path().join("out"));
        // Headers apart, which grow with the number of tensors alone.
        assert!(asked <= written && written < asked + (64 << 10), "{method} {every}: {asked}, {written}");
    }
}

/// Bytes of all safetensors files in a folder and below it.
fn bytes_of_weights(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let bytes = |path: std::path::PathBuf| match path.is_dir() {
        true => bytes_of_weights(&path),
        false if path.extension().is_some_and(|e| e == "safetensors") => fs::metadata(&path).unwrap().len(),
        false => 0,
    };
    entries.map(bytes).sum()
}

#[test]
fn a_balance_of_experts_is_refused_where_there_are_none() {
    let text = refusal(&row(&[("user", "hat"), ("assistant", "cap")]), &["moe_aux_loss_coef=0.01"]);
    assert!(text.contains("moe_aux_loss_coef") && text.contains("no experts"), "{text}");
}

#[test]
fn a_job_that_does_not_fit_is_refused_before_its_folder_is_made_and_says_what_would() {
    let folder = tempfile::tempdir().unwrap();
    let rows = row(&[("user", "hat"), ("assistant", "cap")]);
    let mut job = prepare(folder.path(), &rows, &[]).unwrap();
    job.available = Some(1 << 20);
    let error = run(job, &mut Silent).expect_err("must be refused");
    assert!(matches!(error, TrainError::Memory { available: 1_048_576, .. }), "{error}");
    assert!(error.to_string().contains("finetuning_type: lora"), "{error}");
    assert!(!folder.path().join("out").exists());
}

#[test]
fn weights_that_are_cut_off_are_refused_before_rows_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(&Path::new(QUICKSTART).join("base"), &model);
    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 8]).unwrap();
    let key = format!("model_name_or_path={}", model.display());
    let error = prepare(folder.path(), "not a row", &[&key]).expect_err("must be refused").to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn what_fits_is_the_largest_micro_batch_that_the_plan_does_not_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let rows = row(&[("user", "the capital of Peru"), ("assistant", "Lima")]).repeat(120);
    let keys = [
        "packing=true",
        "cutoff_len=64",
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=6",
        "disable_gradient_checkpointing=true",
    ];
    let mut job = prepare(folder.path(), &rows, &keys).unwrap();
    let needs = |job: &Job, tokens: usize| job.plan_of(tokens).unwrap().total() as u64;
    // Room for four bins of the twelve of a step, and a bit.
    job.available = Some(needs(&job, 4 * 64 + 10));
    let fit = Fit::of(&job).unwrap().unwrap();
    assert!(needs(&job, fit.max_tokens) <= job.available.unwrap());
    assert!(needs(&job, fit.max_tokens + 1) > job.available.unwrap());
    let batch = fit.batch.unwrap();
    assert_eq!((batch.rows, batch.accumulation, batch.tokens), (4, 3, 256), "{fit:?}");
    assert_eq!(fit.cutoff_len, Some(fit.max_tokens));
    job.available = Some(1 << 20);
    let none = Fit::of(&job).unwrap().unwrap();
    assert_eq!((none.max_tokens, none.batch, none.cutoff_len), (0, None, None));
}

/// Copies the files of a folder.
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_run_that_would_write_over_its_own_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let rows = row(&[("user", "hat"), ("assistant", "cap")]);
    let out = folder.path().join("out");
    for inside in ["", "checkpoint-9"] {
        let model = out.join(inside);
        copy_folder(&Path::new(QUICKSTART).join("base"), &model);
        let key = format!("model_name_or_path={}", model.display());
        let error =
            prepare(folder.path(), &rows, &[&key, "overwrite_output_dir=true"]).unwrap_err().to_string();
        assert!(error.contains("holds what `model_name_or_path` names"), "{error}");
        // Nothing is written by an evaluation.
        let eval = format!("eval_dataset={}", folder.path().join("rows.jsonl").display());
        prepare(folder.path(), &rows, &[&key, "do_train=false", "do_eval=true", &eval]).unwrap();
    }
    // Another folder in the same place.
    let beside = out.join("base");
    copy_folder(&Path::new(QUICKSTART).join("base"), &beside);
    prepare(folder.path(), &rows, &[&format!("model_name_or_path={}", beside.display())]).unwrap();
}

#[test]
fn a_run_that_would_remove_the_converted_adapter_that_it_begins_with_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let converted = folder.path().join("out/pissa_converted");
    copy_folder(&Path::new(QUICKSTART).join("base"), &converted);
    let key = format!("model_name_or_path={}", converted.display());
    let rows = row(&[("user", "hat"), ("assistant", "cap")]);
    let error = prepare(folder.path(), &rows, &[&key, "overwrite_output_dir=true"]).unwrap_err().to_string();
    assert!(error.contains("holds what `model_name_or_path` names"), "{error}");
}
