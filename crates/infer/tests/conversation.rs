//! Conversations and lists of questions: text in, text out.

mod tiny;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use sft_data::conversation::{Conversation, Message, Origin, Role, ToolCall};
use sft_infer::{
    Answered, ChatSession, GenerationOptions, Generator, InferError, Questions, StopReason, exact_match,
    similarity,
};
use sft_kernels::DType;
use sft_model::workspace::{Purpose, Workspace};

fn conversation(question: &str, answer: &str) -> Conversation {
    Conversation {
        messages: vec![Message::text(Role::User, question), Message::text(Role::Assistant, answer)],
        tools: None,
        origin: Origin {
            dataset: Arc::from("held_out"),
            file: Arc::new(PathBuf::from("held_out.json")),
            line: 3,
            row: 0,
        },
    }
}

#[test]
fn pieces_are_whole_characters_and_make_up_the_answer() {
    let (dev, pipeline) = (tiny::device(), tiny::pipeline());
    let decoder = tiny::speaker(&dev, "né🎉!");
    let options = GenerationOptions::greedy(50, pipeline.stop_ids());
    let mut session = ChatSession::new(Generator::new(&dev, &decoder), &pipeline, options, None);
    let mut pieces = Vec::new();
    let answer = session.ask("hm?", |piece| {
        pieces.extend((!piece.is_empty()).then(|| piece.to_owned()));
        ControlFlow::Continue(())
    });
    let answer = answer.unwrap();
    assert_eq!(pieces, ["n", "é", "🎉", "!"]);
    assert_eq!((answer.text.as_str(), answer.reason, answer.tokens), ("né🎉!", StopReason::Stop, 8));
}

#[test]
fn a_character_cut_by_the_limit_is_shown_as_one_replacement() {
    let (dev, pipeline) = (tiny::device(), tiny::pipeline());
    let decoder = tiny::speaker(&dev, "né🎉!");
    let options = GenerationOptions::greedy(5, pipeline.stop_ids());
    let mut session = ChatSession::new(Generator::new(&dev, &decoder), &pipeline, options, None);
    let mut text = String::new();
    let answer = session.ask("hm?", |piece| {
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    assert_eq!(answer.unwrap().text, text);
    assert!(text.starts_with("né\u{fffd}"), "{text}");
}

#[test]
fn every_turn_sees_the_earlier_ones_and_computes_only_what_is_new() {
    let (dev, pipeline) = (tiny::device(), tiny::pipeline());
    let decoder = tiny::speaker(&dev, "yes");
    let options = GenerationOptions::greedy(50, pipeline.stop_ids());
    let system = Some("Be brief.".to_owned());
    let mut session = ChatSession::new(Generator::new(&dev, &decoder), &pipeline, options, system);
    let go_on = |_: &str| ControlFlow::Continue(());
    let first = session.ask("Really?", go_on).unwrap();
    let second = session.ask("Sure?", go_on).unwrap();
    let beginning = "<s>S:Be brief.\nU:Really?\nA:";
    let first_tokens = beginning.len() - "<s>".len() + 1;
    assert_eq!((first.prompt_tokens, first.reused), (first_tokens, 0));
    // All of `yes` was fed to find its end: only the end token and what follows are new.
    let second_tokens = first_tokens + "yes".len() + 1 + "U:Sure?\nA:".len();
    assert_eq!((second.prompt_tokens, second.reused), (second_tokens, first_tokens + 3));
}

#[test]
fn clear_forgets_all_but_the_system_prompt() {
    let (dev, pipeline) = (tiny::device(), tiny::pipeline());
    let decoder = tiny::speaker(&dev, "yes");
    let options = GenerationOptions::greedy(50, pipeline.stop_ids());
    let system = Some("Be brief.".to_owned());
    let mut session = ChatSession::new(Generator::new(&dev, &decoder), &pipeline, options, system);
    let go_on = |_: &str| ControlFlow::Continue(());
    let before = session.ask("Really?", go_on).unwrap();
    session.clear();
    let after = session.ask("Really?", go_on).unwrap();
    assert_eq!(before, after);
}

#[test]
fn a_question_that_fails_is_taken_back_and_a_broken_off_answer_stays() {
    let (dev, pipeline) = (tiny::device(), tiny::pipeline());
    let decoder = tiny::speaker(&dev, "yes");
    let options = GenerationOptions::greedy(50, pipeline.stop_ids());
    let mut session = ChatSession::new(Generator::new(&dev, &decoder), &pipeline, options, None);
    let long = "x".repeat(600);
    let error = session.ask(&long, |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, InferError::PromptTooLong { value: 512, .. }), "{error}");
    let stop_after_e =
        |piece: &str| if piece == "e" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let answer = session.ask("Really?", stop_after_e).unwrap();
    assert_eq!((answer.text.as_str(), answer.reason), ("ye", StopReason::Cancelled));
    let tokens = |text: &str| text.len() - "<s>".len() + 1;
    assert_eq!(answer.prompt_tokens, tokens("<s>U:Really?\nA:"), "nothing of the question that failed");
    let next = session.ask("Sure?", |_| ControlFlow::Continue(())).unwrap();
    // The end of the answer is a token.
    assert_eq!(next.prompt_tokens, tokens("<s>U:Really?\nA:ye_U:Sure?\nA:"));
}

#[test]
fn exact_match_is_the_share_of_answers_that_are_the_same_but_for_white_space_around() {
    let rows = [("A?", "yes"), ("B?", " yes\n"), ("C?", "Yes"), ("D?", "no")];
    let rows = rows.map(|(question, answer)| conversation(question, answer));
    let answered = answers(&rows);
    assert_eq!(exact_match(&answered), 0.5);
    let last = &answered[3];
    assert_eq!((last.asked.as_str(), last.answer.as_deref()), ("D?", Ok("yes")));
    assert_eq!(last.prompt, "<s>U:D?\nA:");
    assert_eq!(exact_match(&[]), 0.0);
}

/// What a model says that answers `yes` to everything.
fn answers(rows: &[Conversation]) -> Vec<Answered> {
    let (dev, pipeline) = (tiny::device(), tiny::pipeline());
    let decoder = tiny::speaker(&dev, "yes");
    let options = GenerationOptions::greedy(50, pipeline.stop_ids());
    let mut work = Workspace::new(&dev, &decoder.spec, decoder.adapters(), DType::F32, 64, Purpose::Forward);
    let questions = Questions::new(pipeline, options, rows).unwrap();
    let mut heard = 0;
    let answered = questions.answer(&dev, &decoder, (&mut work, 2), || false, |_| heard += 1);
    assert_eq!(heard, rows.len());
    answered.unwrap().unwrap()
}

#[test]
fn a_row_without_an_expected_answer_is_answered_and_not_compared() {
    let mut row = conversation("A?", "yes");
    row.messages.pop();
    // The template renders nothing of the second one.
    let answered = answers(&[row, conversation("B?", ""), conversation("C?", "yes")]);
    for row in &answered[..2] {
        assert_eq!((row.expected.as_str(), row.answer.as_deref()), ("", Ok("yes")));
        assert!(row.similarity.is_none() && !row.is_exact());
    }
    assert_eq!(exact_match(&answered), 1.0);
    assert_eq!(similarity(&answered[..2]), None);
    assert_eq!(similarity(&answered).unwrap().rouge_1, 100.0);
}

#[test]
fn answers_that_are_stopped_are_none() {
    let (dev, pipeline) = (tiny::device(), tiny::pipeline());
    let decoder = tiny::speaker(&dev, "yes");
    let options = GenerationOptions::greedy(50, pipeline.stop_ids());
    let mut work = Workspace::new(&dev, &decoder.spec, decoder.adapters(), DType::F32, 64, Purpose::Forward);
    let questions = Questions::new(pipeline, options, &[conversation("A?", "yes")]).unwrap();
    let mut asked = 0;
    let stop = || {
        asked += 1;
        asked > 3
    };
    assert_eq!(questions.answer(&dev, &decoder, (&mut work, 1), stop, |_| ()).unwrap(), None);
}

#[test]
fn a_question_too_long_for_the_model_is_told_in_its_place_and_the_others_are_answered() {
    let long = "x".repeat(600);
    let answered = answers(&[conversation(&long, "yes"), conversation("B?", "yes")]);
    let problem = answered[0].answer.as_ref().unwrap_err();
    assert!(problem.starts_with("held_out.json:3: the prompt has "), "{problem}");
    assert!(problem.ends_with("is 512: there is no room for an answer"), "no help of a chat: {problem}");
    assert_eq!(answered[0].asked, long);
    assert!(!answered[0].is_exact() && answered[1].is_exact());
    assert_eq!(exact_match(&answered), 1.0, "of the questions that were asked");
}

#[test]
fn a_call_is_expected_as_the_template_renders_it() {
    let mut row = conversation("A?", "");
    let call = ToolCall { id: None, name: "look".into(), arguments: serde_json::json!({}) };
    row.messages[1].tool_calls.push(call);
    let answered = answers(&[row]);
    assert_eq!(answered[0].expected, "[look]");
}

#[test]
fn rows_of_which_none_can_be_asked_are_refused() {
    let spec = tiny::spec(32);
    let questions = |rows: &[Conversation]| {
        let pipeline = tiny::pipeline();
        let options = GenerationOptions::greedy(4, pipeline.stop_ids());
        Questions::new(pipeline, options, rows).unwrap()
    };
    let long = conversation(&"x".repeat(40), "yes");
    let error = questions(std::slice::from_ref(&long)).require_one(&spec).unwrap_err().to_string();
    assert!(error.contains("none of 1 rows can be asked") && error.contains("held_out.json:3"), "{error}");
    questions(&[long, conversation("y", "yes")]).require_one(&spec).unwrap();
}
