//! Named templates, token for token against LLaMA-Factory (`golden_rows.json` and `golden_templates.json`,
//! made by `make_golden_rows.py`).

mod byte_tokenizer;

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;
use sft_data::conversation::{Conversation, Message, Origin, Role, ToolCall};
use sft_data::labels::{IGNORE_INDEX, Policy, Reason};
use sft_data::pipeline::Pipeline;
use sft_data::proof::Rule;
use sft_data::template::TemplateOptions;
use sft_data::template::clock::Clock;
use sft_data::template::named;

fn golden_rows() -> Vec<Value> {
    serde_json::from_str(include_str!("golden_rows.json")).unwrap()
}

/// Every template over turns, tools and thoughts; those of `golden_rows.json` apart.
fn golden_templates() -> Vec<Value> {
    serde_json::from_str(include_str!("golden_templates.json")).unwrap()
}

fn pipeline(golden: &Value) -> Pipeline {
    let options = &golden["options"];
    let text = |key: &str| options[key].as_str().map(str::to_owned);
    let policy = Policy {
        cutoff_len: options["cutoff_len"].as_u64().unwrap_or(2048) as usize,
        train_on_prompt: options["train_on_prompt"] == true,
        mask_history: options["mask_history"] == true,
        ..Policy::default()
    };
    let template = TemplateOptions {
        default_system: text("default_system"),
        enable_thinking: Some(options["enable_thinking"] != false),
        preserve_thinking: options["preserve_thinking"] == true,
        tool_format: text("tool_format"),
        clock: Clock::Fixed(golden["clock"].as_i64().unwrap()),
    };
    let special: Vec<&str> =
        golden["special"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let tokenizer = byte_tokenizer::tokenizer_with(None, &special);
    Pipeline::new(tokenizer, golden["template"].as_str(), &template, policy).unwrap()
}

fn conversation(golden: &Value) -> Conversation {
    let message = |value: &Value| {
        let role = match value["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => panic!("role {other}"),
        };
        let calls = value["tool_calls"].as_array().into_iter().flatten();
        let tool_calls = calls.map(|call| ToolCall {
            id: None,
            name: call["name"].as_str().unwrap().to_owned(),
            arguments: call["arguments"].clone(),
        });
        Message {
            tool_calls: tool_calls.collect(),
            ..Message::text(role, value["content"].as_str().unwrap())
        }
    };
    Conversation {
        messages: golden["messages"].as_array().unwrap().iter().map(message).collect(),
        tools: Some(golden["tools"].clone()).filter(|tools| !tools.is_null()),
        origin: Origin { dataset: "rows".into(), file: Arc::new("rows.json".into()), line: 1, row: 0 },
    }
}

/// Runs of trained (`+`) and of ignored (`-`) tokens, each as text; `=` where another token is the label.
fn pieces(pipeline: &Pipeline, ids: &[u32], labels: &[i32]) -> Vec<(String, String)> {
    let mut runs: Vec<(String, Vec<u32>)> = Vec::new();
    for (&id, &label) in ids.iter().zip(labels) {
        let sign = match label {
            IGNORE_INDEX => "-",
            label if label == id as i32 => "+",
            _ => "=",
        };
        match runs.last_mut() {
            Some((last, run)) if last == sign => run.push(id),
            _ => runs.push((sign.to_owned(), vec![id])),
        }
    }
    let text = |run: &[u32]| pipeline.tokenizer().decode(run, false);
    runs.into_iter().map(|(sign, run)| (sign, text(&run))).collect()
}

#[test]
fn every_row_is_encoded_as_llama_factory_encodes_it() {
    for golden in golden_rows().into_iter().chain(golden_templates()) {
        let pipeline = pipeline(&golden);
        let example = pipeline.encode(&conversation(&golden)).unwrap();
        let expected: Vec<(String, String)> = serde_json::from_value(golden["pieces"].clone()).unwrap();
        let name = format!("{} {}", golden["template"], golden["options"]);
        assert_eq!(pieces(&pipeline, &example.input_ids, &example.labels), expected, "{name}");
    }
}

#[test]
fn every_template_has_a_golden_row() {
    let rows = golden_rows().into_iter().chain(golden_templates());
    let known: HashSet<String> =
        rows.filter_map(|golden| golden["template"].as_str().map(str::to_owned)).collect();
    let missing: Vec<&str> = named::names().filter(|name| !known.contains(*name)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn what_is_asked_is_what_was_trained() {
    for golden in golden_rows().into_iter().chain(golden_templates()) {
        let options = &golden["options"];
        // A cut row is another text than inference asks.
        if !options["cutoff_len"].is_null() {
            continue;
        }
        let (pipeline, row) = (pipeline(&golden), conversation(&golden));
        let (_, report) = pipeline.encode_all(std::slice::from_ref(&row));
        let name = format!("{} {options}", golden["template"]);
        // Their ends are tokens of their own models, and plain text to this tokenizer.
        match golden["template"].as_str() {
            Some("deepseekcoder" | "granite3") => {
                assert_eq!(report.proof.violations[0].rule, Rule::StopIsTrained, "{name}");
            }
            _ => assert!(report.proof.holds(), "{name}: {:?}", report.proof.violations),
        }
        let trained = pipeline.encode(&row).unwrap().input_ids;
        let answers = (0..row.messages.len()).filter(|&i| row.messages[i].role == Role::Assistant);
        let last_only = !options["mask_history"].is_null();
        for place in answers.filter(|place| !last_only || place + 1 == row.messages.len()) {
            let prompt = pipeline.prompt(&row.messages[..place], row.tools.as_ref()).unwrap();
            assert!(trained.starts_with(&prompt), "{name} message {place}");
        }
    }
}

#[test]
fn every_supervised_token_is_assistant_text_or_its_end() {
    for golden in golden_rows() {
        if golden["options"]["train_on_prompt"] == true {
            continue;
        }
        let (pipeline, row) = (pipeline(&golden), conversation(&golden));
        let tokens = pipeline.explain(&row).unwrap();
        let trained = |wanted: Reason| -> String {
            let ids = tokens.iter().filter(|token| token.reason == wanted).map(|token| token.id);
            pipeline.tokenizer().decode(&ids.collect::<Vec<_>>(), false)
        };
        for token in &tokens {
            assert_eq!(token.label != IGNORE_INDEX, token.reason.is_trained());
        }
        let ends = ["<|im_end|>", "<|eot_id|>", "<|end|>", "</s>", "\n"];
        let rest = ends.iter().fold(trained(Reason::End), |rest, end| rest.replace(end, ""));
        assert_eq!(rest, "", "{}", golden["template"]);
        let mut answer = trained(Reason::Answer);
        for message in row.messages.iter().filter(|message| message.role == Role::Assistant) {
            for call in &message.tool_calls {
                assert!(answer.contains(&call.name));
                for word in [call.name.as_str(), "a\": 1", "how\": \"up"] {
                    answer = answer.replacen(word, "", 1);
                }
            }
            if let Some(at) = answer.find(&message.content) {
                answer.replace_range(at..at + message.content.len(), "");
            }
        }
        // What is left is the template's own way of writing an answer.
        let marks = [
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "Action Input:",
            "Action:",
            "\"name\"",
            "\"arguments\"",
            "\"parameters\"",
            "hm",
            "b",
        ];
        let rest = marks.iter().fold(answer, |rest, mark| rest.replace(mark, ""));
        let rest = rest.replace(|c: char| " \n{}[]\",:".contains(c), "");
        assert!(
            rest.is_empty() || !golden["options"]["cutoff_len"].is_null(),
            "{} leaves {rest:?}",
            golden["template"]
        );
    }
}

#[test]
fn tokens_never_merge_across_a_slot() {
    // The slot ends with a line break, the answer begins with one: two tokens, as inference makes them.
    let options = TemplateOptions::default();
    let tokenizer = byte_tokenizer::merging_tokenizer(None);
    let pipeline = Pipeline::new(tokenizer, Some("alpaca"), &options, Policy::default()).unwrap();
    let golden = serde_json::json!({
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\nb"}],
    });
    let example = pipeline.encode(&conversation(&golden)).unwrap();
    let first = example.labels.iter().position(|&label| label != IGNORE_INDEX).unwrap();
    assert_eq!(example.input_ids[first - 1..], [10, 10, 98, 258, 256]);
}

#[test]
fn words_come_before_the_mark_of_calls() {
    let pipeline = |template: &str| {
        let tokenizer = byte_tokenizer::tokenizer(None);
        Pipeline::new(tokenizer, Some(template), &TemplateOptions::default(), Policy::default()).unwrap()
    };
    let golden = serde_json::json!({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "hm", "tool_calls": [{"name": "f", "arguments": {"b": 1}}]},
    ]});
    let trained = |template: &str| {
        let pipeline = pipeline(template);
        let example = pipeline.encode(&conversation(&golden)).unwrap();
        let first = example.labels.iter().position(|&label| label != IGNORE_INDEX).unwrap();
        pipeline.tokenizer().decode(&example.input_ids[first..], true)
    };
    assert_eq!(trained("mistral"), r#" hm[TOOL_CALLS] [{"name": "f", "arguments": {"b": 1}}]"#);
    assert_eq!(trained("ministral"), r#"hm[TOOL_CALLS][{"name": "f", "arguments": {"b": 1}}]"#);
}

#[test]
fn turns_that_do_not_alternate_are_refused() {
    let options = TemplateOptions::default();
    let tokenizer = byte_tokenizer::tokenizer(None);
    let pipeline = Pipeline::new(tokenizer, Some("qwen"), &options, Policy::default()).unwrap();
    let roles = |roles: &[&str]| {
        let messages = roles.iter().map(|role| serde_json::json!({"role": role, "content": "x"}));
        conversation(&serde_json::json!({"messages": messages.collect::<Vec<_>>()}))
    };
    for (wrong, reason) in [
        (["user", "user", "assistant"].as_slice(), "a user message is followed by a user message"),
        (&["assistant", "user"], "follows nothing to answer"),
        (&["user", "assistant", "user"], "the last message is a user message"),
        (&["user", "system", "assistant"], "a system message stands after the first"),
        (&["system"], "there is no answer"),
    ] {
        let problem = pipeline.encode(&roles(wrong)).unwrap_err();
        assert!(problem.reason.contains(reason), "{}", problem.reason);
    }
}

#[test]
fn a_wrong_name_is_answered_with_the_nearest() {
    let load = |name: &str| {
        let tokenizer = byte_tokenizer::tokenizer(None);
        Pipeline::new(tokenizer, Some(name), &TemplateOptions::default(), Policy::default())
            .unwrap_err()
            .to_string()
    };
    assert!(load("qwen3-nothink").contains("did you mean `qwen3_nothink`?"));
    assert!(load("auto").contains("has no chat template"));
}

#[test]
fn the_end_token_of_a_named_template_stops_generation() {
    let stops = |template: &str| {
        let tokenizer = byte_tokenizer::tokenizer(None);
        let options = TemplateOptions::default();
        let pipeline = Pipeline::new(tokenizer, Some(template), &options, Policy::default()).unwrap();
        pipeline.stop_ids().to_vec()
    };
    assert_eq!(stops("qwen"), [259]);
    assert_eq!(stops("llama3"), [260, 261]);
    assert_eq!(stops("default"), [257]);
}

/// The texts are those of LLaMA-Factory 0.9.5 for the same rows in ShareGPT's form, but for the last two, whose words it
/// leaves out (`formatting: openai`).
#[test]
fn words_and_thoughts_keep_their_distance_from_calls() {
    let call = serde_json::json!({"name": "sum", "arguments": {"a": 1}});
    for (template, content, gap, trained) in [
        // Before JSON alone; then before a `<tool_call>` block.
        ("qwen3", "<think>\nhm\n</think>", None, "<think>\nhm\n</think>\n\n<tool_call>\n"),
        ("default", "<think>\nhm\n</think>", None, "<think>\nhm\n</think>\n\nAction: sum\n"),
        ("mimo_v2", "<think>\nhm\n</think>", None, "<think>\nhm\n</think><tool_call>\n"),
        ("qwen3", "<think>\nhm\n</think>", Some(""), "<think>\nhm\n</think><tool_call>\n"),
        ("qwen", "words before", Some("\n"), "words before\n<tool_call>\n"),
        ("qwen", "\ntrailing words", Some(" "), "\ntrailing words <tool_call>\n"),
        ("qwen", "words", None, "words\n<tool_call>\n"),
        ("default", "words", None, "words\nAction: sum\n"),
    ] {
        let message = |role, content| serde_json::json!({"role": role, "content": content});
        let mut row = conversation(&serde_json::json!({"messages": [
            message("user", "q"),
            {"role": "assistant", "content": content, "tool_calls": [call]},
            message("tool", "1"),
            message("assistant", "ok"),
        ]}));
        row.messages[1].gap = gap.map(str::to_owned);
        let tokenizer = byte_tokenizer::tokenizer(None);
        let options = TemplateOptions::default();
        let pipeline = Pipeline::new(tokenizer, Some(template), &options, Policy::default()).unwrap();
        let example = pipeline.encode(&row).unwrap();
        let text: String = example
            .labels
            .iter()
            .filter(|label| **label != IGNORE_INDEX)
            .map(|label| pipeline.tokenizer().text_of(*label as u32))
            .collect();
        assert!(text.starts_with(trained), "{template} {content:?}: {text:?}");
    }
}
