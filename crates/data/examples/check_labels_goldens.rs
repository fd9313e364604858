//! Compares this crate's ids and labels with files of LLaMA-Factory's, row for row.
//!
//! usage: check_labels_goldens GOLDENS_DIR TOKENIZERS_DIR DATASET_DIR [PART_OF_A_FILE_NAME]
//!
//! A file is called `TOKENIZER__TEMPLATE__DATASET[__OPTION…].jsonl`; its lines have `row`,
//! `cutoff_len`, `options`, `input_ids` and `labels`. `SFT_TODAY` (seconds since 1970) sets the date of
//! templates that state one. Exit status 1 if a row differs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;
use sft_data::conversation::Conversation;
use sft_data::dataset::{self, DatasetOptions, Mix, ProblemLimit, Stage};
use sft_data::labels::Policy;
use sft_data::pipeline::Pipeline;
use sft_data::template::TemplateOptions;
use sft_data::template::clock::Clock;
use sft_data::tokenize::Tokenizer;

type Problem = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [goldens, tokenizers, data, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: check_labels_goldens GOLDENS_DIR TOKENIZERS_DIR DATASET_DIR [PART_OF_A_FILE_NAME]");
        return ExitCode::from(2);
    };
    let wanted = rest.first().map_or("", String::as_str);
    let mut files: Vec<PathBuf> = match std::fs::read_dir(goldens) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) => {
            eprintln!("{goldens}: {error}");
            return ExitCode::from(2);
        }
    };
    files.retain(|file| file.to_string_lossy().contains(wanted));
    files.sort();
    let (mut equal_files, mut rows, mut equal_rows) = (0, 0, 0);
    for file in &files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        match check(file, Path::new(tokenizers), Path::new(data)) {
            Ok((equal, all)) => {
                println!("{} {equal:>3}/{all} {name}", if equal == all { "ok  " } else { "DIFF" });
                equal_files += usize::from(equal == all);
                equal_rows += equal;
                rows += all;
            }
            Err(error) => println!("FAIL {name}: {error}"),
        }
    }
    println!("{equal_files} of {} files, {equal_rows} of {rows} rows equal", files.len());
    ExitCode::from(u8::from(equal_files != files.len()))
}

/// How many rows are equal, of how many.
fn check(file: &Path, tokenizers: &Path, data: &Path) -> Result<(usize, usize), Problem> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let parts: Vec<&str> = stem.split("__").collect();
    let [tokenizer, template, dataset, ..] = parts.as_slice() else {
        return Err("the name has no tokenizer, template and data set".into());
    };
    let text = std::fs::read_to_string(file)?;
    let goldens: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    let goldens = goldens?;
    let rows = load(dataset, data, goldens.len())?;
    let mut pipeline: Option<Pipeline> = None;
    let mut equal = 0;
    for golden in &goldens {
        let options = &golden["options"];
        let policy = Policy {
            cutoff_len: golden["cutoff_len"].as_u64().ok_or("no cutoff_len")? as usize,
            train_on_prompt: options["train_on_prompt"] == true,
            mask_history: options["mask_history"] == true,
            ..Policy::default()
        };
        if pipeline.as_ref().is_none_or(|pipeline| *pipeline.policy() != policy) {
            let tokenizer = Tokenizer::load(tokenizers.join(tokenizer))?;
            pipeline = Some(Pipeline::new(tokenizer, Some(template), &template_options(), policy)?);
        }
        let pipeline = pipeline.as_ref().ok_or("no pipeline")?;
        let row = &rows[golden["row"].as_u64().ok_or("no row")? as usize];
        let example = pipeline.encode(row).map_err(|problem| problem.to_string())?;
        let ids = Value::from(example.input_ids.clone());
        let labels = Value::from(example.labels.clone());
        match ids == golden["input_ids"] && labels == golden["labels"] {
            true => equal += 1,
            false if equal_so_far(golden, goldens.len()) => {
                let column = if ids == golden["input_ids"] { ("labels", labels) } else { ("input_ids", ids) };
                show(pipeline, golden, column.0, &column.1);
            }
            false => {}
        }
    }
    Ok((equal, goldens.len()))
}

/// Only a file's first rows are shown in full.
fn equal_so_far(golden: &Value, _rows: usize) -> bool {
    golden["row"].as_u64().is_some_and(|row| row < 3)
}

fn template_options() -> TemplateOptions {
    let today = std::env::var("SFT_TODAY").ok().and_then(|seconds| seconds.parse().ok());
    TemplateOptions { clock: today.map_or(Clock::System, Clock::Fixed), ..TemplateOptions::default() }
}

fn load(dataset: &str, data: &Path, rows: usize) -> Result<Vec<Conversation>, Problem> {
    let loaded = dataset::load(&DatasetOptions {
        dataset: vec![dataset.to_owned()],
        eval_dataset: Vec::new(),
        dataset_dir: data.to_owned(),
        hub: sft_data::hub::HubOptions::default(),
        stage: Stage::Sft,
        max_samples: Some(rows),
        val_size: None,
        seed: 42,
        mix: Mix::default(),
        eval_on_each_dataset: false,
        streaming: None,
        problem_limit: ProblemLimit::Rows(0),
    })?;
    let mut rows = loaded.train;
    // LLaMA-Factory takes the text `[]` in the column of tools for an offer and writes an empty system
    // message; here no tools are no offer. Its way is tried where a row differs for that reason alone.
    let raw: Value = serde_json::from_str(&std::fs::read_to_string(data.join(format!("{dataset}.json")))?)?;
    for row in &mut rows {
        if raw[row.origin.row as usize]["tools"] == "[]" {
            row.tools = Some(Value::Array(Vec::new()));
        }
    }
    Ok(rows)
}

/// Shows where a row begins to differ.
fn show(pipeline: &Pipeline, golden: &Value, column: &str, ours: &Value) {
    let list = |value: &Value| -> Vec<i64> {
        value.as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
    };
    let (theirs, ours) = (list(&golden[column]), list(ours));
    let at = theirs.iter().zip(&ours).take_while(|(a, b)| a == b).count();
    let text = |ids: &[i64]| {
        let ids = ids.iter().skip(at.saturating_sub(3)).take(10);
        let tokens = ids.map(|&id| match u32::try_from(id) {
            Ok(id) => format!("{id}:{:?}", pipeline.tokenizer().token_text(id).unwrap_or_default()),
            Err(_) => id.to_string(),
        });
        tokens.collect::<Vec<_>>().join(" ")
    };
    println!(
        "  row {} {column} differ from token {at} of {} (ours {})",
        golden["row"],
        theirs.len(),
        ours.len()
    );
    println!("    theirs {}\n    ours   {}", text(&theirs), text(&ours));
}
