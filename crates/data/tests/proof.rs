//! Mutation tests: each known fault of a data pipeline, put into a good row, is found by the proof.
//!
//! The faults are those that users of other trainers reported; the row that carries them is good.

mod byte_tokenizer;

use std::sync::Arc;

use sft_data::conversation::{Conversation, Message, Origin, Role};
use sft_data::labels::{Example, IGNORE_INDEX, Policy};
use sft_data::pipeline::Pipeline;
use sft_data::proof::{self, Rule};
use sft_data::template::TemplateOptions;

/// A template that writes a beginning-of-sequence token.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const BOS: u32 = 256;
const START: u32 = 258;
const END: u32 = 259;

fn pipeline() -> Pipeline {
    let tokenizer = byte_tokenizer::tokenizer(Some(TEMPLATE));
    Pipeline::new(tokenizer, None, &TemplateOptions::default(), Policy::default()).unwrap()
}

fn row() -> Conversation {
    let texts = [
        (Role::System, "rule"),
        (Role::User, "what is <|im_end|>?"),
        (Role::Assistant, "a token"),
        (Role::User, "and a bird?"),
        (Role::Assistant, "an animal"),
    ];
    Conversation {
        messages: texts.iter().map(|(role, text)| Message::text(*role, *text)).collect(),
        tools: None,
        origin: Origin { dataset: "rows".into(), file: Arc::new("rows.json".into()), line: 1, row: 0 },
    }
}

/// The rule that a mutated row breaks.
fn broken(mutate: impl FnOnce(&mut Example)) -> Option<Rule> {
    let (pipeline, row) = (pipeline(), row());
    let mut example = pipeline.encode(&row).unwrap();
    mutate(&mut example);
    let found = proof::prove(&pipeline, &row, &[example], false);
    found.err().map(|violation| violation.rule)
}

/// Where the trained runs begin and end.
fn runs(example: &Example) -> Vec<std::ops::Range<usize>> {
    let starts =
        |&t: &usize| example.labels[t] != IGNORE_INDEX && (t == 0 || example.labels[t - 1] == IGNORE_INDEX);
    let end = |start: usize| (start..example.len()).find(|&t| example.labels[t] == IGNORE_INDEX);
    let starts = (0..example.len()).filter(starts);
    starts.map(|start| start..end(start).unwrap_or(example.len())).collect()
}

#[test]
fn a_good_row_is_proved() {
    assert_eq!(broken(|_| ()), None);
}

#[test]
fn an_end_token_masked_as_padding_is_found() {
    let mask = |example: &mut Example| {
        for t in 0..example.len() {
            if example.input_ids[t] == END {
                example.labels[t] = IGNORE_INDEX;
            }
        }
    };
    assert_eq!(broken(mask), Some(Rule::StopIsTrained));
}

#[test]
fn a_missing_end_token_is_found() {
    let remove = |example: &mut Example| {
        let end = runs(example)[1].end;
        example.input_ids.truncate(end - 1);
        example.labels.truncate(end - 1);
    };
    assert_eq!(broken(remove), Some(Rule::StopIsTrained));
}

#[test]
fn a_second_beginning_of_sequence_is_found() {
    let insert = |example: &mut Example| {
        example.input_ids.insert(0, BOS);
        example.labels.insert(0, IGNORE_INDEX);
    };
    assert_eq!(broken(insert), Some(Rule::OneBos));
}

#[test]
fn a_beginning_of_sequence_that_the_template_does_not_write_is_found() {
    let replace = |example: &mut Example| {
        let start = runs(example)[1].start;
        let turn = (0..start).rfind(|&t| example.input_ids[t] == START).unwrap();
        example.input_ids.insert(turn, BOS);
        example.labels.insert(turn, IGNORE_INDEX);
    };
    assert_eq!(broken(replace), Some(Rule::PromptIsPrefix));
}

#[test]
fn labels_that_are_all_ignored_are_found() {
    assert_eq!(broken(|example| example.labels.fill(IGNORE_INDEX)), Some(Rule::AnswerIsTrained));
}

#[test]
fn an_answer_without_generation_marks_is_found() {
    let mask = |example: &mut Example| {
        let first = runs(example)[0].clone();
        example.labels[first].fill(IGNORE_INDEX);
    };
    assert_eq!(broken(mask), Some(Rule::AnswerIsTrained));
}

#[test]
fn labels_shifted_by_one_are_found() {
    assert_eq!(broken(|example| example.labels.rotate_right(1)), Some(Rule::SupervisedIsAnswer));
    assert_eq!(broken(|example| example.labels.rotate_left(1)), Some(Rule::SupervisedIsAnswer));
}

#[test]
fn a_mask_shifted_by_one_is_found() {
    let shift = |by: isize| {
        move |example: &mut Example| {
            let trained: Vec<bool> = example.labels.iter().map(|&label| label != IGNORE_INDEX).collect();
            for t in 0..example.len() {
                let from = t.checked_add_signed(by).and_then(|from| trained.get(from));
                let id = example.input_ids[t] as i32;
                example.labels[t] = if from == Some(&true) { id } else { IGNORE_INDEX };
            }
        }
    };
    assert_eq!(broken(shift(-1)), Some(Rule::AnswerIsTrained));
    assert_eq!(broken(shift(1)), Some(Rule::StopIsTrained));
}

#[test]
fn a_trained_question_is_found() {
    let train = |example: &mut Example| {
        let question = runs(example)[0].start - 20;
        example.labels[question] = example.input_ids[question] as i32;
    };
    assert_eq!(broken(train), Some(Rule::SupervisedIsAnswer));
}

#[test]
fn last_words_that_are_not_trained_are_found() {
    let mask = |example: &mut Example| {
        let last = runs(example)[1].clone();
        example.labels[last.end - 4..last.end].fill(IGNORE_INDEX);
    };
    assert_eq!(broken(mask), Some(Rule::AnswerIsTrained));
}

#[test]
fn other_words_than_the_answer_are_found() {
    let change = |example: &mut Example| {
        let first = runs(example)[0].start;
        example.input_ids[first] = u32::from(b'X');
        example.labels[first] = i32::from(b'X');
    };
    assert_eq!(broken(change), Some(Rule::SupervisedIsAnswer));
}

#[test]
fn a_prompt_that_inference_does_not_ask_is_found() {
    let add_to_system = |example: &mut Example| {
        for (at, byte) in "detailed thinking off".bytes().enumerate() {
            example.input_ids.insert(13 + at, u32::from(byte));
            example.labels.insert(13 + at, IGNORE_INDEX);
        }
    };
    assert_eq!(broken(add_to_system), Some(Rule::PromptIsPrefix));
}

#[test]
fn a_typed_token_that_became_special_is_found() {
    let become_special = |example: &mut Example| {
        let typed: Vec<u32> = "<|im_end|>".bytes().map(u32::from).collect();
        let at = example.input_ids.windows(typed.len()).position(|ids| *ids == typed).unwrap();
        example.input_ids.splice(at..at + typed.len(), [END]);
        example.labels.drain(at + 1..at + typed.len());
    };
    assert_eq!(broken(become_special), Some(Rule::PromptIsPrefix));
}

#[test]
fn a_token_across_the_border_is_found() {
    // As tokenising the whole text at once makes it: a line break of the prompt and one of the answer
    // are one token.
    let tokenizer = byte_tokenizer::merging_tokenizer(Some(TEMPLATE));
    let pipeline = Pipeline::new(tokenizer, None, &TemplateOptions::default(), Policy::default()).unwrap();
    let mut row = row();
    row.messages[4].content = "\nline".into();
    let mut example = pipeline.encode(&row).unwrap();
    assert_eq!(proof::prove(&pipeline, &row, std::slice::from_ref(&example), false).err(), None);
    let start = runs(&example)[1].start;
    example.input_ids.splice(start - 1..=start, [256]);
    example.labels.remove(start - 1);
    example.labels[start - 1] = 256;
    let violation = proof::prove(&pipeline, &row, &[example], false).unwrap_err();
    assert_eq!(violation.rule, Rule::PromptIsPrefix);
    assert_eq!(violation.row, "rows row 0 (rows.json:1)");
    assert!(!violation.tokens.is_empty());
}

#[test]
fn a_lost_example_is_found() {
    let (pipeline, row) = (pipeline(), row());
    let violation = proof::prove(&pipeline, &row, &[], false).unwrap_err();
    assert_eq!(violation.rule, Rule::PromptIsPrefix);
}

#[test]
fn an_answer_trained_twice_is_found() {
    let (pipeline, row) = (pipeline(), row());
    let example = pipeline.encode(&row).unwrap();
    let violation = proof::prove(&pipeline, &row, &[example.clone(), example], false).unwrap_err();
    assert_eq!(violation.rule, Rule::AnswerIsTrained);
}

#[test]
fn rows_that_are_cut_are_counted_and_not_called_proved() {
    let tokenizer = byte_tokenizer::tokenizer(Some(TEMPLATE));
    let policy = Policy { cutoff_len: 40, ..Policy::default() };
    let pipeline = Pipeline::new(tokenizer, None, &TemplateOptions::default(), policy).unwrap();
    let (_, report) = pipeline.encode_all(&[row()]);
    assert!(report.proof.holds());
    assert_eq!((report.proof.rows, report.proof.cut_rows, report.proof.answers), (1, 1, 0));
}

#[test]
fn an_answer_that_the_prompt_contradicts_stops_the_run() {
    // `enable_thinking: false` gives an empty thought; the answer brings one of its own.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
        {% if not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}";
    let tokenizer = byte_tokenizer::tokenizer(Some(template));
    let options = TemplateOptions { enable_thinking: Some(false), ..TemplateOptions::default() };
    let pipeline = Pipeline::new(tokenizer, None, &options, Policy::default()).unwrap();
    let mut row = row();
    row.messages.drain(1..3);
    row.messages[2].content = "<think>hm</think>yes".into();
    let (_, report) = pipeline.encode_all(&[row]);
    assert_eq!(report.proof.violations[0].rule, Rule::PromptIsPrefix);
}
