//! Compares chat templates rendered by this crate with a file of transformers' renderings.
//!
//! usage: check_template_goldens GOLDENS.jsonl TOKENIZERS_DIR
//!
//! A line has `tokenizer`, `case`, `messages`, `tools`, and either `text`, `ids` and `prompts` (each
//! with `turn`, `text`, `ids`) or `error`. `SFT_TODAY` (seconds since 1970) sets the date of templates
//! that state one. Also checked: every prompt is what training shows before the answer, and every
//! supervised token is assistant text or its end. Exit status 1 if something differs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::Value;
use sft_data::conversation::{Conversation, Message, Origin, Role, ToolCall};
use sft_data::labels::{Policy, Reason};
use sft_data::pipeline::Pipeline;
use sft_data::template::clock::Clock;
use sft_data::template::{Template, TemplateOptions};
use sft_data::tokenize::Tokenizer;

type Problem = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [goldens, tokenizers] = arguments.as_slice() else {
        eprintln!("usage: check_template_goldens GOLDENS.jsonl TOKENIZERS_DIR");
        return ExitCode::from(2);
    };
    match check_all(Path::new(goldens), Path::new(tokenizers)) {
        Ok((equal, all)) => {
            println!("{equal} of {all} cases equal");
            ExitCode::from(u8::from(equal != all))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn check_all(goldens: &Path, tokenizers: &Path) -> Result<(usize, usize), Problem> {
    let today = std::env::var("SFT_TODAY").ok().and_then(|seconds| seconds.parse().ok());
    let options = TemplateOptions {
        enable_thinking: None,
        clock: today.map_or(Clock::System, Clock::Fixed),
        ..TemplateOptions::default()
    };
    let mut pipelines: BTreeMap<String, Pipeline> = BTreeMap::new();
    let (mut equal, mut all) = (0, 0);
    for line in std::fs::read_to_string(goldens)?.lines() {
        let golden: Value = serde_json::from_str(line)?;
        let name = golden["tokenizer"].as_str().ok_or("no tokenizer")?;
        if !pipelines.contains_key(name) {
            let tokenizer = Tokenizer::load(tokenizers.join(name))?;
            let pipeline = Pipeline::new(tokenizer, None, &options, Policy::default())?;
            pipelines.insert(name.to_owned(), pipeline);
        }
        let problems = check(&pipelines[name], &golden).unwrap_or_else(|error| vec![error.to_string()]);
        all += 1;
        equal += usize::from(problems.is_empty());
        let verdict = if problems.is_empty() { "ok  " } else { "DIFF" };
        println!("{verdict} {name} {}", golden["case"].as_str().unwrap_or_default());
        for problem in problems {
            println!("     {problem}");
        }
    }
    Ok((equal, all))
}

fn check(pipeline: &Pipeline, golden: &Value) -> Result<Vec<String>, Problem> {
    let messages = messages(&golden["messages"])?;
    let tools = Some(&golden["tools"]).filter(|tools| !tools.is_null());
    let mut problems = Vec::new();
    let Template::Auto(template) = pipeline.template() else {
        return Err("not the model's own template".into());
    };
    let text = template.text(&messages, tools);
    if let Some(error) = golden["error"].as_str() {
        return Ok(match text {
            Err(reason) if reason.contains(error) => problems,
            other => vec![format!("theirs refuses: {error}; ours: {other:?}")],
        });
    }
    match text {
        Ok(text) if text == golden["text"] => {}
        other => problems.push(format!("text: theirs {} ours {other:?}", golden["text"])),
    }
    let conversation = Conversation { messages: messages.clone(), tools: tools.cloned(), origin: origin() };
    let tokens = pipeline.explain(&conversation).map_err(|problem| problem.to_string())?;
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    if Value::from(ids.clone()) != golden["ids"] {
        problems.push(format!("ids: theirs {} ours {ids:?}", golden["ids"]));
    }
    for prompt in golden["prompts"].as_array().into_iter().flatten() {
        let turn = prompt["turn"].as_u64().ok_or("no turn")? as usize;
        let ours = pipeline.prompt(&messages[..turn], tools)?;
        if Value::from(ours.clone()) != prompt["ids"] {
            problems.push(format!("prompt of turn {turn}: theirs {} ours {ours:?}", prompt["ids"]));
        }
        if !ids.starts_with(&ours) {
            println!("     note: the prompt of turn {turn} is no token prefix of the whole");
        }
    }
    let shown =
        tokens.iter().filter(|token| token.reason != Reason::Prompt).map(|token| match token.reason {
            Reason::Answer => format!("{}", token.text.escape_debug()),
            Reason::End => format!("[{}]", token.text.escape_debug()),
            Reason::Border => format!("?{}?", token.text.escape_debug()),
            other => format!("{other:?}{}", token.text.escape_debug()),
        });
    println!("     trained: {}", shown.collect::<Vec<_>>().join("|"));
    Ok(problems)
}

fn messages(list: &Value) -> Result<Vec<Message>, Problem> {
    let message = |value: &Value| -> Result<Message, Problem> {
        let role = match value["role"].as_str() {
            Some("system") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            other => return Err(format!("role {other:?}").into()),
        };
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let calls = value["tool_calls"].as_array().into_iter().flatten().map(|call| ToolCall {
            id: call["id"].as_str().map(str::to_owned),
            name: call["function"]["name"].as_str().unwrap_or_default().to_owned(),
            arguments: call["function"]["arguments"].clone(),
        });
        Ok(Message {
            tool_calls: calls.collect(),
            name: text("name"),
            tool_call_id: text("tool_call_id"),
            ..Message::text(role, text("content").unwrap_or_default())
        })
    };
    list.as_array().into_iter().flatten().map(message).collect()
}

fn origin() -> Origin {
    Origin { dataset: "goldens".into(), file: Arc::new("goldens".into()), line: 1, row: 0 }
}
