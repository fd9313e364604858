//! Named templates written as Jinja render what LLaMA-Factory renders (`golden_rows.json`, made by
//! `make_golden_rows.py`), and ask what the named template asks.

mod byte_tokenizer;

use serde_json::{Value, json};
use sft_data::conversation::{Message, Role, ToolCall};
use sft_data::encoder::Encoder;
use sft_data::labels::Policy;
use sft_data::pipeline::Pipeline;
use sft_data::template::TemplateOptions;
use sft_data::template::clock::Clock;
use sft_data::template::jinja::{JinjaTemplate, value_of};
use sft_data::template::saved::Told;

fn golden_rows() -> Vec<Value> {
    serde_json::from_str(include_str!("golden_rows.json")).unwrap()
}

fn pipeline(golden: &Value) -> Pipeline {
    let options = &golden["options"];
    let text = |key: &str| options[key].as_str().map(str::to_owned);
    let policy = Policy { mask_history: options["mask_history"] == true, ..Policy::default() };
    let template = TemplateOptions {
        default_system: text("default_system"),
        enable_thinking: Some(options["enable_thinking"] != false),
        preserve_thinking: options["preserve_thinking"] == true,
        tool_format: text("tool_format"),
        clock: Clock::Fixed(golden["clock"].as_i64().unwrap()),
    };
    Pipeline::new(byte_tokenizer::tokenizer(None), golden["template"].as_str(), &template, policy).unwrap()
}

/// Messages as transformers takes them.
fn messages(golden: &Value) -> Value {
    let message = |message: &Value| {
        let mut message = message.clone();
        if let Some(calls) = message["tool_calls"].as_array() {
            let wrapped: Value =
                calls.iter().map(|call| json!({"type": "function", "function": call})).collect();
            message["tool_calls"] = wrapped;
        }
        message
    };
    golden["messages"].as_array().unwrap().iter().map(message).collect()
}

fn text(pipeline: &Pipeline, golden: &Value, messages: &Value, ask: bool) -> String {
    let written = pipeline.template().written(pipeline.policy().mask_history).unwrap();
    let jinja = JinjaTemplate::new(&written, Clock::Fixed(golden["clock"].as_i64().unwrap())).unwrap();
    let special = |id: Option<u32>| id.and_then(|id| pipeline.tokenizer().token_text(id));
    let variables = json!({
        "messages": messages, "tools": golden["tools"], "add_generation_prompt": ask,
        "bos_token": special(pipeline.tokenizer().bos_id()),
        "eos_token": special(pipeline.tokenizer().eos_id()),
    });
    jinja.render(value_of(&variables)).unwrap()
}

#[test]
fn a_written_template_renders_what_llama_factory_trains() {
    let mut seen = std::collections::BTreeSet::new();
    for golden in golden_rows() {
        if golden["options"]["cutoff_len"].is_u64() {
            continue; // A text has no cut.
        }
        let pipeline = pipeline(&golden);
        let text = text(&pipeline, &golden, &messages(&golden), false);
        let pieces = golden["pieces"].as_array().unwrap().iter();
        let trained: String = pieces.map(|piece| piece[1].as_str().unwrap()).collect();
        assert_eq!(text, trained, "{}", golden["template"]);
        seen.insert(golden["template"].as_str().unwrap().to_owned());
    }
    assert!(seen.len() >= 11, "{seen:?}");
}

#[test]
fn a_written_template_asks_what_the_named_one_asks() {
    for golden in golden_rows() {
        let pipeline = pipeline(&golden);
        let messages = messages(&golden);
        let asked = &messages.as_array().unwrap()[..messages.as_array().unwrap().len() - 1];
        let text = text(&pipeline, &golden, &json!(asked), true);
        let own: Vec<Message> = asked.iter().map(message).collect();
        let tools = Some(&golden["tools"]).filter(|tools| !tools.is_null());
        assert_eq!(
            pipeline.tokenizer().encode(&text).unwrap(),
            pipeline.prompt(&own, tools).unwrap(),
            "{}: {text}",
            golden["template"]
        );
    }
}

fn message(value: &Value) -> Message {
    let role = match value["role"].as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => Role::Tool,
    };
    let calls = value["tool_calls"].as_array().into_iter().flatten();
    let call = |call: &Value| ToolCall {
        id: None,
        name: call["function"]["name"].as_str().unwrap().to_owned(),
        arguments: call["function"]["arguments"].clone(),
    };
    Message {
        tool_calls: calls.map(call).collect(),
        ..Message::text(role, value["content"].as_str().unwrap())
    }
}

#[test]
fn the_folder_of_a_trained_model_says_template_and_end_of_answers() {
    let golden = golden_rows().into_iter().find(|golden| golden["template"] == "chatml").unwrap();
    let encoder = Encoder::Conversations(Box::new(pipeline(&golden)));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "</s>"}, "kept": 1, "chat_template": "old"}"#,
    );
    write("generation_config.json", r#"{"eos_token_id": 257, "top_p": 0.5}"#);
    write("chat_template.jinja", "old");
    let files: std::collections::BTreeMap<_, _> =
        Told::of(&encoder).files(folder.path()).unwrap().into_iter().collect();
    let json = |name: &str| serde_json::from_str::<Value>(&files[name]).unwrap();
    let written = encoder.pipeline().unwrap().template().written(false).unwrap();
    assert_eq!(files["chat_template.jinja"], written);
    let config = json("tokenizer_config.json");
    assert_eq!(config, json!({"eos_token": "<|im_end|>", "kept": 1, "chat_template": written}));
    // `</s>` of the tokenizer file is id 257, `<|im_end|>` 259, `<|im_start|>` 258.
    assert_eq!(json("generation_config.json"), json!({"eos_token_id": [258, 259], "top_p": 0.5}));
    assert_eq!(files.len(), 3, "{files:?}");
}

#[test]
fn the_models_own_template_changes_no_file() {
    let tokenizer =
        byte_tokenizer::tokenizer(Some("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"));
    let pipeline = Pipeline::new(tokenizer, None, &TemplateOptions::default(), Policy::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let encoder = Encoder::Conversations(Box::new(pipeline));
    assert_eq!(Told::of(&encoder).files(folder.path()).unwrap(), []);
}
