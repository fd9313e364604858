//! `sft chat` in a pipe: a line of output for each question, whatever the question is.

use std::io::Write;
use std::process::Stdio;

use crate::place::{Place, QUICKSTART, text};

#[test]
fn a_question_that_is_refused_costs_its_own_answer_alone() {
    let place = Place::new("");
    let model = format!("model_name_or_path={QUICKSTART}/base");
    let mut chat = place.sft(&["chat", &model, "device=cpu", "max_new_tokens=3", "do_sample=false"]);
    let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let questions =
        ["hat", &"hat ".repeat(600), "\u{fffd}", "clear", "hat"].join("\n").replace('\u{fffd}', "\0");
    let bytes: Vec<u8> = questions.bytes().map(|byte| if byte == 0 { 0xff } else { byte }).collect();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (answers, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let answers: Vec<&str> = answers.lines().collect();
    let [first, "", "", last] = answers[..] else { panic!("{}", text(&output)) };
    // After `clear` the same question has the same answer.
    assert!(!first.is_empty() && first == last, "{answers:?}");
    assert!(
        said.contains("line 2: error: the prompt has ") && said.contains("line 3: error: it is not UTF-8")
    );
}
