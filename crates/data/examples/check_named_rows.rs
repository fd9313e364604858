//! Compares named templates with rows that LLaMA-Factory encoded with real tokenizers.
//!
//! usage: check_named_rows ROWS.jsonl TOKENIZERS_DIR    (the rows are made by make_named_rows.py)
//!
//! A line has `tokenizer` (a folder, or a name in TOKENIZERS_DIR), `template`, `case`, `messages`, `tools`,
//! `input_ids` and `labels`. Rows that the proof refuses are counted apart. Exit status 1 if a row differs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::Value;
use sft_data::conversation::{Conversation, Message, Origin, Role, ToolCall};
use sft_data::labels::Policy;
use sft_data::pipeline::Pipeline;
use sft_data::template::TemplateOptions;
use sft_data::tokenize::Tokenizer;

type Problem = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rows, tokenizers] = arguments.as_slice() else {
        eprintln!("usage: check_named_rows ROWS.jsonl TOKENIZERS_DIR");
        return ExitCode::from(2);
    };
    match check(Path::new(rows), Path::new(tokenizers)) {
        Ok(differing) => ExitCode::from(u8::from(differing > 0)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn check(rows: &Path, tokenizers: &Path) -> Result<usize, Problem> {
    let mut loaded: BTreeMap<String, Tokenizer> = BTreeMap::new();
    let (mut equal, mut all, mut unproved) = (0, 0, BTreeMap::<String, usize>::new());
    let mut templates = BTreeSet::new();
    for line in std::fs::read_to_string(rows)?.lines() {
        let row: Value = serde_json::from_str(line)?;
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let (folder, template) = (text("tokenizer"), text("template"));
        if !loaded.contains_key(&folder) {
            loaded.insert(folder.clone(), Tokenizer::load(tokenizers.join(&folder))?);
        }
        let pipeline = Pipeline::new(
            loaded[&folder].clone(),
            Some(&template),
            &TemplateOptions::default(),
            Policy::default(),
        )?;
        let (examples, report) = pipeline.encode_all(&[conversation(&row)?]);
        all += 1;
        let same = examples.first().is_some_and(|example| {
            Value::from(example.input_ids.clone()) == row["input_ids"]
                && Value::from(example.labels.clone()) == row["labels"]
        });
        equal += usize::from(same);
        if !same {
            println!("DIFF {folder} {template} {}", row["case"]);
        }
        if let Some(violation) = report.proof.violations.first() {
            let what = format!("{template}: {}: {}", violation.rule.describe(), violation.reason);
            *unproved.entry(what).or_default() += 1;
        }
        templates.insert(template);
    }
    for (what, rows) in &unproved {
        println!("not proved, {rows} rows: {what}");
    }
    println!("{} templates, {equal} of {all} rows equal", templates.len());
    Ok(all - equal)
}

fn conversation(row: &Value) -> Result<Conversation, Problem> {
    let message = |value: &Value| -> Result<Message, Problem> {
        let role = match value["role"].as_str() {
            Some("system") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            other => return Err(format!("role {other:?}").into()),
        };
        let calls = value["tool_calls"].as_array().into_iter().flatten().map(|call| ToolCall {
            id: None,
            name: call["name"].as_str().unwrap_or_default().to_owned(),
            arguments: call["arguments"].clone(),
        });
        let text = value["content"].as_str().unwrap_or_default();
        Ok(Message { tool_calls: calls.collect(), ..Message::text(role, text) })
    };
    let messages: Result<Vec<Message>, Problem> =
        row["messages"].as_array().into_iter().flatten().map(message).collect();
    Ok(Conversation {
        messages: messages?,
        tools: Some(&row["tools"]).filter(|tools| !tools.is_null()).cloned(),
        origin: Origin { dataset: "rows".into(), file: Arc::new("rows.jsonl".into()), line: 1, row: 0 },
    })
}
