//! Renders chat templates and compares with a file of transformers' renderings, byte for byte.
//!
//! usage: check_jinja_goldens GOLDENS.jsonl
//!
//! A line has `file`, `case`, `template`, `messages`, `tools`, `gen` (`add_generation_prompt`), and
//! either `text` or `error`. Special tokens are `<s>`, `</s>`, `<unk>`, `<pad>`. Exit status 1 if
//! something differs.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};
use sft_data::template::clock::Clock;
use sft_data::template::jinja::{JinjaTemplate, value_of};

fn main() -> ExitCode {
    let Some(text) = std::env::args().nth(1).and_then(|path| std::fs::read_to_string(path).ok()) else {
        eprintln!("usage: check_jinja_goldens GOLDENS.jsonl");
        return ExitCode::from(2);
    };
    let mut files: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let (mut equal, mut all) = (0, 0);
    for golden in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let ours = render(&golden);
        let same = match (&ours, golden["text"].as_str()) {
            (Ok(ours), Some(theirs)) => ours == theirs,
            (Err(_), None) => true,
            _ => false,
        };
        let file = golden["file"].as_str().unwrap_or_default().to_owned();
        let count = files.entry(file.clone()).or_default();
        count.1 += 1;
        all += 1;
        if same {
            count.0 += 1;
            equal += 1;
        } else {
            let theirs = if golden["text"].is_null() { &golden["error"] } else { &golden["text"] };
            println!(
                "DIFF {file} {} {}\n  theirs {theirs}\n  ours   {ours:?}",
                golden["case"], golden["gen"]
            );
        }
    }
    let whole = files.values().filter(|(equal, all)| equal == all).count();
    println!("{whole} of {} templates, {equal} of {all} renderings equal", files.len());
    ExitCode::from(u8::from(equal != all))
}

fn render(golden: &Value) -> Result<String, String> {
    let template = JinjaTemplate::new(golden["template"].as_str().unwrap_or_default(), Clock::System)?;
    template.render(value_of(&json!({
        "messages": golden["messages"], "tools": golden["tools"], "documents": null,
        "add_generation_prompt": golden["gen"],
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
    })))
}
