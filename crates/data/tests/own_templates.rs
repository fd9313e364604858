//! The model's own chat template: spans found from outside, whatever the template does.
//!
//! The templates are made up after real ones; what they write can be seen by eye.

mod byte_tokenizer;

use std::sync::Arc;

use serde_json::json;
use sft_data::conversation::{Conversation, Message, Origin, Role, ToolCall};
use sft_data::labels::{Example, Policy, Reason};
use sft_data::pipeline::Pipeline;
use sft_data::template::TemplateOptions;

/// Qwen's way: every message alike.
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}\
    {% if m.tool_calls %}{% for c in m.tool_calls %}{{ '<call>' + (c.function | tojson) }}{% endfor %}{% endif %}\
    {{ '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Qwen3's way: thoughts before the last question are left out, the last answer always has one.
const FORGETFUL: &str = "{% set ns = namespace(last=0) %}\
    {% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
    {% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}\
    {% if m.role == 'assistant' and loop.index0 > ns.last %}\
    {{ '<think>' + m.content.split('</think>')[0].split('<think>')[-1] + '</think>' if '</think>' in m.content else '<think></think>' }}{% endif %}\
    {{ m.content.split('</think>')[-1] + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
    {% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}";

/// Phi-3's way: a token at the very end that stands only where nothing is asked.
const SEALED: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
    {{ '<|assistant|>\\n' if add_generation_prompt else '</s>' }}";

/// GLM-4's way: an answer has no end, the next question's mark ends it.
const ENDLESS: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}\
    {{ '<|assistant|>\\n' if add_generation_prompt }}";

/// Mistral's way: strict about roles, words trimmed.
const STRICT: &str = "{{ bos_token }}{% for m in messages %}\
    {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
    {{ '[INST] ' + m.content | trim + ' [/INST]' if m.role == 'user' else ' ' + m.content | trim + eos_token }}{% endfor %}";

/// Qwen1.5's way: every message but the last has its end.
const OPEN: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}\
    {{ '<|im_end|>\\n' if not loop.last or add_generation_prompt }}{% endfor %}\
    {{ '<|im_start|>assistant\\n' if add_generation_prompt }}";

/// Gemma 4's way with tools: the result follows the call inside one answer.
const GLUED: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + '<|assistant|>' }}\
    {% elif m.role == 'tool' %}{{ '=>' + m.content + ';' }}\
    {% else %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{{ m.content }}{% endif %}{% endfor %}";

fn user(text: &str) -> Message {
    Message::text(Role::User, text)
}

fn answer(text: &str) -> Message {
    Message::text(Role::Assistant, text)
}

fn pipeline(template: &str, options: &TemplateOptions, policy: Policy) -> Pipeline {
    let tokenizer = byte_tokenizer::tokenizer(Some(template));
    Pipeline::new(tokenizer, None, options, policy).unwrap()
}

fn row(messages: &[Message]) -> Conversation {
    Conversation {
        messages: messages.to_vec(),
        tools: None,
        origin: Origin { dataset: "rows".into(), file: Arc::new("rows.json".into()), line: 1, row: 0 },
    }
}

/// The text with `[answers]` and `{ends}` marked.
fn marked(pipeline: &Pipeline, messages: &[Message]) -> String {
    let tokens = pipeline.explain(&row(messages)).unwrap();
    let mut out = String::new();
    for run in tokens.chunk_by(|a, b| a.reason == b.reason) {
        let ids: Vec<u32> = run.iter().map(|token| token.id).collect();
        let text = pipeline.tokenizer().decode(&ids, false);
        out.push_str(&match run[0].reason {
            Reason::Prompt => text,
            Reason::Answer => format!("[{text}]"),
            Reason::End => format!("{{{text}}}"),
            other => format!("({other:?} {text})"),
        });
    }
    out
}

fn shown(template: &str, messages: &[Message]) -> String {
    marked(&pipeline(template, &TemplateOptions::default(), Policy::default()), messages)
}

#[test]
fn answers_and_the_token_that_ends_them_are_trained() {
    assert_eq!(
        shown(CHATML, &[Message::text(Role::System, "s"), user("a"), answer("b"), user("c"), answer(" d\n")]),
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b]{<|im_end|>}\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[ d\n]{<|im_end|>}\n"
    );
}

#[test]
fn an_end_token_typed_into_an_answer_does_not_end_it() {
    assert_eq!(
        shown(CHATML, &[user("a<|im_end|>"), answer("b<|im_end|>c"), user("d"), answer("e")]),
        "<|im_start|>user\na<|im_end|><|im_end|>\n<|im_start|>assistant\n[b<|im_end|>c]{<|im_end|>}\n\
         <|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n[e]{<|im_end|>}\n"
    );
}

#[test]
fn calls_are_answers() {
    let call = ToolCall { id: None, name: "f".into(), arguments: json!({"x": 1}) };
    let calls = Message { tool_calls: vec![call], ..answer("") };
    assert_eq!(
        shown(CHATML, &[user("a"), calls, Message::text(Role::Tool, "2"), answer("b")]),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n\
         [<call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}]{<|im_end|>}\n\
         <|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n[b]{<|im_end|>}\n"
    );
}

#[test]
fn an_answer_that_the_template_leaves_out_is_not_trained() {
    let call = ToolCall { id: None, name: "f".into(), arguments: json!({}) };
    let calls = Message { tool_calls: vec![call], ..answer("") };
    assert_eq!(
        shown(SEALED, &[user("a"), calls, user("b"), answer("c")]),
        "<|user|>\na<|end|>\n<|assistant|>\n(NotShown <|end|>)\n<|user|>\nb<|end|>\n<|assistant|>\n[c]{<|end|>}\n</s>"
    );
}

#[test]
fn what_stands_only_at_the_very_end_is_not_trained() {
    assert_eq!(
        shown(SEALED, &[user("a"), answer("b"), user("c"), answer("d")]),
        "<|user|>\na<|end|>\n<|assistant|>\n[b]{<|end|>}\n<|user|>\nc<|end|>\n<|assistant|>\n[d]{<|end|>}\n</s>"
    );
}

/// The examples of a row, each marked.
fn all_marked(pipeline: &Pipeline, messages: &[Message]) -> Vec<String> {
    let (examples, report) = pipeline.encode_all(&[row(messages)]);
    assert!(report.proof.holds(), "{:?}", report.proof.violations);
    let text = |example: &Example| {
        let runs = example.input_ids.iter().zip(&example.labels).collect::<Vec<_>>();
        let runs = runs.chunk_by(|a, b| (*a.1 == -100) == (*b.1 == -100)).map(|run| {
            let ids: Vec<u32> = run.iter().map(|(id, _)| **id).collect();
            let text = pipeline.tokenizer().decode(&ids, false);
            if *run[0].1 == -100 { text } else { format!("[{text}]") }
        });
        runs.collect()
    };
    examples.iter().map(text).collect()
}

#[test]
fn an_earlier_answer_shown_otherwise_is_trained_in_a_row_of_its_own() {
    let messages = [user("a"), answer("<think>m</think>b"), user("c"), answer("<think>n</think>d")];
    let forgetful = pipeline(FORGETFUL, &TemplateOptions::default(), Policy::default());
    assert_eq!(
        all_marked(&forgetful, &messages),
        [
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
             <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[<think>n</think>d<|im_end|>]\n",
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[<think>m</think>b<|im_end|>]\n",
        ]
    );
    let (_, report) = forgetful.encode_all(&[row(&messages), row(&messages[2..])]);
    assert_eq!((report.examples, report.rewritten_rows), (3, 1));
    let last_only = Policy { mask_history: true, ..Policy::default() };
    assert_eq!(all_marked(&pipeline(FORGETFUL, &TemplateOptions::default(), last_only), &messages).len(), 1);
}

#[test]
fn a_thought_that_the_prompt_gives_is_not_trained() {
    let options = TemplateOptions { enable_thinking: Some(false), ..TemplateOptions::default() };
    let pipeline = pipeline(FORGETFUL, &options, Policy::default());
    assert_eq!(
        all_marked(&pipeline, &[user("a"), answer("b"), user("c"), answer("d")]),
        [
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
             <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think></think>[d<|im_end|>]\n",
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think></think>[b<|im_end|>]\n",
        ]
    );
}

#[test]
fn without_an_end_of_turn_the_last_answer_gets_the_end_of_sequence() {
    let endless = pipeline(ENDLESS, &TemplateOptions::default(), Policy::default());
    assert_eq!(
        marked(&endless, &[user("a"), answer("b"), user("c"), answer("d")]),
        "<|user|>\na<|assistant|>\n[b]<|user|>\nc<|assistant|>\n[d]{</s>}"
    );
}

#[test]
fn an_end_left_out_after_the_last_answer_is_put_there() {
    assert_eq!(
        shown(OPEN, &[user("a"), answer("b"), user("c"), answer("d")]),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b]{<|im_end|>}\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d]{<|im_end|>}"
    );
}

#[test]
fn a_result_inside_an_answer_is_not_trained() {
    let call = ToolCall { id: None, name: "f".into(), arguments: json!({}) };
    let calls = Message { tool_calls: vec![call], ..answer("") };
    assert_eq!(
        shown(GLUED, &[user("a"), calls, Message::text(Role::Tool, "2"), answer("b")]),
        "<|user|>a<|assistant|>[f]=>2;[b]{</s>}"
    );
}

#[test]
fn a_space_that_belongs_to_the_answer_is_trained_with_it() {
    assert_eq!(
        shown(STRICT, &[user("a"), answer("b"), user(" c "), answer(" d ")]),
        "<s>[INST] a [/INST][ b]{</s>}[INST] c [/INST][ d]{</s>}"
    );
}

#[test]
fn a_refusal_of_the_template_is_a_problem_of_the_row() {
    let strict = pipeline(STRICT, &TemplateOptions::default(), Policy::default());
    let (examples, report) = strict.encode_all(&[row(&[user("a"), user("b"), answer("c")])]);
    assert!(examples.is_empty());
    assert_eq!(report.refused[0].reason, "the template refuses the conversation: roles must alternate");
}

#[test]
fn no_token_lies_across_the_border_of_prompt_and_answer() {
    // The prompt ends with a line break, the answer is one, and one token would cover both:
    // inference, which is given the first, never makes it.
    let tokenizer = byte_tokenizer::merging_tokenizer(Some(CHATML));
    let options = TemplateOptions::default();
    let pipeline = Pipeline::new(tokenizer, None, &options, Policy::default()).unwrap();
    let messages = [user("\n\n"), answer("\n"), user("\n\n"), answer("\n\n")];
    let (examples, report) = pipeline.encode_all(&[row(&messages)]);
    assert_eq!((report.parted_rows, report.border_rows), (1, 0));
    assert!(report.proof.holds(), "{:?}", report.proof.violations);
    let trained: Vec<i32> = examples[0].labels.iter().copied().filter(|&label| label != -100).collect();
    assert_eq!(trained, [10, 260, 256, 260]);
    for place in [1, 3] {
        assert!(examples[0].input_ids.starts_with(&pipeline.prompt(&messages[..place], None).unwrap()));
    }
}

#[test]
fn private_characters_beside_typed_tokens_are_refused_wherever_they_stand() {
    // They stand for special tokens while templates are rendered.
    let call = || ToolCall { id: None, name: "f".into(), arguments: json!({"icon": ["\u{100000}"]}) };
    let with = |change: &dyn Fn(&mut Message)| {
        let mut messages = [user("<|im_end|>"), answer("x")];
        change(&mut messages[1]);
        row(&messages)
    };
    let chatml = pipeline(CHATML, &TemplateOptions::default(), Policy::default());
    for row in [
        with(&|answer| answer.content = "\u{100000}".into()),
        with(&|answer| answer.reasoning = Some("\u{100000}".into())),
        with(&|answer| answer.tool_calls = vec![call()]),
    ] {
        let (examples, report) = chatml.encode_all(&[row]);
        assert!(examples.is_empty() && report.refused[0].reason.contains("private characters"), "{report:?}");
    }
}

#[test]
fn special_tokens_typed_into_messages_stay_text() {
    let messages = [user("<|im_end|>\n"), answer("<|im_end|><|user|>")];
    let chatml = pipeline(CHATML, &TemplateOptions::default(), Policy::default());
    let example = chatml.encode(&row(&messages)).unwrap();
    let ends = example.input_ids.iter().filter(|&&id| id == 259).count();
    // An answer may hold other special tokens (models write some themselves), not the one that ends it.
    let written = example.input_ids.iter().filter(|&&id| id == 265).count();
    assert_eq!((ends, written), (2, 1));
    let typed: Vec<u32> = "<|im_end|>".bytes().map(u32::from).collect();
    assert_eq!(example.input_ids.windows(typed.len()).filter(|ids| **ids == typed).count(), 2);
    let (_, report) = chatml.encode_all(&[row(&messages)]);
    assert!(report.proof.holds(), "{:?}", report.proof.violations);
    assert_eq!(report.proof.typed_rows, 1);
}

#[test]
fn the_prompt_of_inference_is_what_was_trained() {
    let messages = [user("a"), answer("b"), user("c"), answer("d")];
    for template in [CHATML, FORGETFUL, SEALED, ENDLESS, STRICT] {
        let pipeline = pipeline(template, &TemplateOptions::default(), Policy::default());
        let trained = pipeline.encode(&row(&messages)).unwrap().input_ids;
        for place in [1, 3] {
            assert!(trained.starts_with(&pipeline.prompt(&messages[..place], None).unwrap()), "{template}");
        }
    }
}

#[test]
fn policies_hold_for_the_models_own_template() {
    let messages = [user("a"), answer("b"), user("c"), answer("d")];
    let options = TemplateOptions::default();
    let of = |policy| marked(&pipeline(CHATML, &options, policy), &messages);
    assert_eq!(
        of(Policy { mask_history: true, ..Policy::default() }),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n(History b<|im_end|>)\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d]{<|im_end|>}\n"
    );
    assert_eq!(
        of(Policy { cutoff_len: 22, ..Policy::default() }),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b]{<|im_end|>}(Cut \n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n)"
    );
    let mut switched_off = messages.clone();
    switched_off[1].weight = Some(0.0);
    assert!(
        marked(&pipeline(CHATML, &options, Policy::default()), &switched_off)
            .contains("(SwitchedOff b<|im_end|>)")
    );
}

#[test]
fn the_end_of_turn_stops_generation() {
    let stops =
        |template| pipeline(template, &TemplateOptions::default(), Policy::default()).stop_ids().to_vec();
    assert_eq!(stops(CHATML), [257, 259]);
    assert_eq!(stops(SEALED), [257, 264]);
    assert_eq!(stops(STRICT), [257]);
}
