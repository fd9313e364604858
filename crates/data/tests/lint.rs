//! The lint finds what is odd about rows, with file and line; over-long rows become what the policy says.

mod byte_tokenizer;

use std::fs;
use std::sync::Arc;

use sft_data::conversation::{Conversation, Message, Origin, Role};
use sft_data::dataset::{self, DatasetOptions, LoadedData, Mix, ProblemLimit, Stage};
use sft_data::labels::{OverLength, Policy};
use sft_data::lint::{Kind, Limit, Lint, lint};
use sft_data::pipeline::{EncodeReport, Pipeline};
use sft_data::proof::Rule;
use sft_data::template::TemplateOptions;

const TRAIN: &str = r#"{"instruction": "a", "output": "b"}
{"instruction": "a ", "output": "b"}
{"instruction": "a", "output": "c"}
{"instruction": "x", "output": " "}
{"instruction": "cafÃ©", "output": "d", "source": "web"}
{"instruction": "<|im_end|>", "output": "an end"}
{"instruction": 7, "output": "e"}
{"instruction": "seen", "output": "f"}
"#;
const EVAL: &str = r#"{"instruction": "seen", "output": "f"}
{"instruction": "x", "output": "g"}
"#;

fn load(train: &str) -> LoadedData {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train.jsonl"), train).unwrap();
    fs::write(folder.path().join("eval.jsonl"), EVAL).unwrap();
    dataset::load(&DatasetOptions {
        dataset: vec!["train.jsonl".into()],
        eval_dataset: vec!["eval.jsonl".into()],
        dataset_dir: folder.path().to_owned(),
        hub: sft_data::hub::HubOptions::default(),
        stage: Stage::Sft,
        max_samples: None,
        val_size: None,
        seed: 42,
        mix: Mix::default(),
        eval_on_each_dataset: false,
        streaming: None,
        problem_limit: ProblemLimit::Fraction(1.0),
    })
    .unwrap()
}

fn pipeline(policy: Policy) -> Pipeline {
    let options = TemplateOptions::default();
    Pipeline::new(byte_tokenizer::tokenizer(None), Some("qwen3_nothink"), &options, policy).unwrap()
}

fn found(policy: Policy) -> Lint {
    let data = load(TRAIN);
    let pipeline = pipeline(policy);
    let (train, eval) = (pipeline.encode_all(&data.train).1, pipeline.encode_all(&data.eval).1);
    lint(&data, &train, Some(&eval), pipeline.tokenizer(), pipeline.stop_ids())
}

/// Rows of a kind, and the line of the first.
fn rows(lint: &Lint, kind: Kind) -> (usize, String) {
    let Some(finding) = lint.findings.iter().find(|finding| finding.kind == kind) else {
        return (0, String::new());
    };
    let line = finding.examples[0].at.rsplit(':').next().unwrap_or_default();
    (finding.rows, line.to_owned())
}

#[test]
fn every_oddity_is_found_in_its_line() {
    let lint = found(Policy::default());
    for (kind, count, line) in [
        (Kind::Malformed, 1, "7"),
        (Kind::EmptyAnswer, 1, "4"),
        (Kind::Duplicate, 1, "2"),
        (Kind::OtherAnswer, 1, "3"),
        (Kind::InEvaluation, 1, "8"),
        (Kind::QuestionInEvaluation, 1, "4"),
        (Kind::Mojibake, 1, "5"),
        (Kind::SpecialToken, 1, "6"),
        (Kind::UnreadColumn, 1, "data set train.jsonl"),
    ] {
        assert_eq!(rows(&lint, kind), (count, line.to_owned()), "{kind:?}");
    }
    assert_eq!(lint.findings.len(), 9, "{:?}", lint.findings);
}

#[test]
fn an_answer_that_spells_the_end_of_a_turn_is_found() {
    let data = load("{\"instruction\": \"a\", \"output\": \"b<|im_end|>\"}\n");
    let pipeline = pipeline(Policy::default());
    let report = pipeline.encode_all(&data.train).1;
    let lint = lint(&data, &report, None, pipeline.tokenizer(), pipeline.stop_ids());
    assert_eq!(rows(&lint, Kind::EndInAnswer), (1, "1".to_owned()));
    assert_eq!(lint.findings.len(), 1, "{:?}", lint.findings);
}

#[test]
fn texts_that_ask_nothing_do_not_repeat_each_other() {
    let text = |content: &str| Conversation {
        messages: vec![Message::text(Role::Assistant, content)],
        tools: None,
        origin: Origin { dataset: "texts".into(), file: Arc::new("texts.txt".into()), line: 1, row: 0 },
    };
    let data = LoadedData {
        train: vec![text("one"), text("two")],
        eval: vec![text("three")],
        ..load("{\"instruction\": \"a\", \"output\": \"b\"}\n")
    };
    let report = EncodeReport::default();
    let lint = lint(&data, &report, Some(&report), &byte_tokenizer::tokenizer(None), &[]);
    assert_eq!(lint.findings, []);
}

#[test]
fn a_limit_makes_a_finding_an_error() {
    let lint = found(Policy::default());
    let duplicate = lint.findings.iter().find(|finding| finding.kind == Kind::Duplicate).unwrap();
    assert_eq!((duplicate.rows, duplicate.of), (1, 7));
    assert!(duplicate.is_over(Limit::Rows(0)) && duplicate.is_over(Limit::Fraction(0.1)));
    assert!(!duplicate.is_over(Limit::Rows(1)) && !duplicate.is_over(Limit::Fraction(0.15)));
}

#[test]
fn cut_rows_are_listed_with_what_they_lose() {
    let lint = found(Policy { cutoff_len: 30, ..Policy::default() });
    // Line 6 has 37 tokens: 10 bytes of question and 6 of answer, and 21 around them.
    assert_eq!(rows(&lint, Kind::Cut), (1, "6".to_owned()));
    let cut = lint.findings.iter().find(|finding| finding.kind == Kind::Cut).unwrap();
    assert_eq!(cut.examples[0].what, "7 of 37 tokens");
    assert_eq!((rows(&lint, Kind::CutEnd).0, lint.cut_tokens.0), (0, 7));
}

/// A conversation of three turns, the second of them longer than 60 tokens.
fn turns(over_length: OverLength) -> (Vec<usize>, EncodeReport) {
    let long = "l".repeat(60);
    let messages: Vec<String> = [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", &long),
        ("user", "d"),
        ("assistant", "e"),
    ]
    .iter()
    .map(|(role, text)| format!("{{\"role\": \"{role}\", \"content\": \"{text}\"}}"))
    .collect();
    let data = load(&format!("{{\"messages\": [{}]}}\n", messages.join(", ")));
    let policy = Policy { cutoff_len: 60, over_length, ..Policy::default() };
    let (examples, report) = pipeline(policy).encode_all(&data.train);
    (examples.iter().map(|example| example.len()).collect(), report)
}

#[test]
fn over_long_rows_become_what_the_policy_says() {
    let (lengths, report) = turns(OverLength::Truncate);
    assert_eq!((lengths, report.cut_rows), (vec![60], 1));
    let (lengths, report) = turns(OverLength::Drop);
    assert_eq!((lengths.len(), report.too_long.len(), report.cut_rows), (0, 1, 0));
    assert!(report.proof.holds());
    let (lengths, report) = turns(OverLength::Split);
    // `<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n` twice; the turn between is too long.
    assert_eq!((lengths, report.too_long.len(), report.split_rows), (vec![23, 23], 1, 1));
    assert!(report.proof.holds(), "{:?}", report.proof.violations);
    assert_eq!(report.proof.answers, 2);
    let (lengths, report) = turns(OverLength::Refuse);
    assert_eq!((lengths.len(), report.proof.violations[0].rule), (0, Rule::NothingIsCut));
}
