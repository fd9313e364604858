//! One answer of a row: its prompt, its words, its end.

use super::{Fault, Rule};
use crate::conversation::{Conversation, Message, Role};
use crate::labels::{Example, IGNORE_INDEX};
use crate::pipeline::{Pipeline, Prompts};
use crate::template::Rendered;
use crate::tokenize::{self, Which};

/// What was found of an answer.
pub(super) struct Found {
    /// It is there and trained; not where the template leaves it out.
    pub is_trained: bool,
    /// A stop token is trained with it.
    pub is_stopped: bool,
}

/// A prompt of inference, and what the answer has to be after it.
struct Asked {
    ids: Vec<u32>,
    answer: String,
}

/// Checks the answer at `place`; what is trained of it is marked in `explained`.
pub(super) fn check(
    pipeline: &Pipeline,
    (row, prompts): (&Conversation, &mut Prompts<'_>),
    place: usize,
    examples: &[Example],
    explained: &mut [Vec<bool>],
) -> Result<Found, Fault> {
    let name = || format!("message {}", place + 1);
    let asked = asked(pipeline, (row, prompts), place)?;
    let is_trained_after = |asked: &Asked, example: &Example| {
        example.input_ids.starts_with(&asked.ids)
            && example.labels.get(asked.ids.len()).is_some_and(|&label| label != IGNORE_INDEX)
    };
    let hits: Vec<(usize, &Asked)> = (0..examples.len())
        .filter_map(|i| Some((i, asked.iter().find(|asked| is_trained_after(asked, &examples[i]))?)))
        .collect();
    if asked.iter().all(|asked| is_left_out(pipeline, &row.messages[place], &asked.answer)) && hits.is_empty()
    {
        return Ok(Found { is_trained: false, is_stopped: false });
    }
    let (i, asked) = match hits.as_slice() {
        [one] => *one,
        [] if examples.iter().any(|example| asked.iter().any(|a| example.input_ids.starts_with(&a.ids))) => {
            return Err((
                Rule::AnswerIsTrained,
                format!("{} is not trained from its first token on", name()),
            ));
        }
        [] => return Err((Rule::PromptIsPrefix, format!("{} is asked for with another prompt", name()))),
        _ => return Err((Rule::AnswerIsTrained, format!("{} is trained twice", name()))),
    };
    let example = &examples[i];
    let start = asked.ids.len();
    let is_own = |t: &usize| example.labels[*t] == example.input_ids[*t] as i32;
    let end = (start..example.len()).find(|t| !is_own(t)).unwrap_or(example.len());
    explained[i][start..end].fill(true);
    check_words(pipeline, &example.input_ids[start..end], &asked.answer)
        .map_err(|(rule, reason)| (rule, format!("{}: {reason}", name())))?;
    let shared_end = pipeline.template().shared_end().map(|id| id as i32);
    let ends_later = example.labels.get(end).is_some_and(|&label| Some(label) == shared_end);
    if ends_later {
        explained[i][end] = true;
    }
    let is_stop = |id: &u32| pipeline.stop_ids().contains(id);
    let is_stopped = ends_later || example.input_ids[start..end].iter().any(is_stop);
    if !is_stopped && example.input_ids.get(end).is_some_and(is_stop) {
        return Err((Rule::StopIsTrained, format!("{} ends with a stop token that is ignored", name())));
    }
    let is_last = place + 1 == row.messages.len();
    if !is_stopped && is_last && pipeline.ends_answers() {
        return Err((Rule::StopIsTrained, format!("{} has none", name())));
    }
    if super::spells_special_tokens(pipeline, &row.messages[..place]) {
        check_typed(pipeline, row, place, &asked.ids)?;
    }
    Ok(Found { is_trained: true, is_stopped })
}

/// What inference asks at this place, with what was answered; two prompts where thinking is left open.
fn asked(
    pipeline: &Pipeline,
    (row, prompts): (&Conversation, &mut Prompts<'_>),
    place: usize,
) -> Result<Vec<Asked>, Fault> {
    let refused = |reason: String| {
        (Rule::PromptIsPrefix, format!("inference cannot ask for message {}: {reason}", place + 1))
    };
    let tools = row.tools.as_ref();
    let tokenizer = pipeline.tokenizer();
    let whole = pipeline.text(&row.messages[..=place], tools).map_err(refused)?;
    let prompts = prompts.of(place).map_err(refused)?;
    let ids = |prompt: &Rendered| -> Result<Vec<u32>, Fault> {
        let tokens = tokenize::tokens(tokenizer, prompt).map_err(|error| refused(error.to_string()))?;
        Ok(tokens.tokens.into_iter().map(|token| token.id).collect())
    };
    let mut asked = Vec::new();
    for prompt in &prompts {
        if let Some(answer) = whole.strip_prefix(&prompt.text(tokenizer)) {
            asked.push(Asked { ids: ids(prompt)?, answer: answer.to_owned() });
        }
    }
    match asked.is_empty() {
        true => Err((
            Rule::PromptIsPrefix,
            format!("the text that asks for message {} is not the beginning of the text with it", place + 1),
        )),
        false => Ok(asked),
    }
}

/// Whether the template shows nothing of an answer that has something to say.
fn is_left_out(pipeline: &Pipeline, message: &Message, shown: &str) -> bool {
    let stops = pipeline.stop_texts();
    let words =
        stops.iter().filter_map(|stop| shown.find(stop.as_str())).min().map_or(shown, |end| &shown[..end]);
    words.trim().is_empty() && !(message.content.is_empty() && message.tool_calls.is_empty())
}

/// The trained tokens are the answer: from its beginning, at least up to what stops it.
fn check_words(pipeline: &Pipeline, trained: &[u32], answer: &str) -> Result<(), Fault> {
    let tokenizer = pipeline.tokenizer();
    let is_stopped = trained.iter().any(|id| pipeline.stop_ids().contains(id));
    if is_stopped && tokenizer.bytes_of(trained).is_some_and(|bytes| answer.as_bytes().starts_with(&bytes)) {
        return Ok(());
    }
    let decoded = tokenizer.decode(trained, false);
    let expected = squashed(answer);
    let mut words = squashed(&decoded);
    let mut whole = expected.clone();
    if !expected.starts_with(&words) {
        // Some vocabularies do not spell every character: compare what they make of both.
        let again = tokenizer.encode(answer).unwrap_or_default();
        whole = squashed(&tokenizer.decode(&again, false));
        if !whole.starts_with(&words) {
            // A token put where the template writes none ends the answer.
            let without_end = pipeline.stop_texts().iter().find_map(|stop| words.strip_suffix(stop.as_str()));
            match without_end {
                Some(shorter) if whole.starts_with(shorter) => words = shorter.to_owned(),
                _ => {
                    return Err((
                        Rule::SupervisedIsAnswer,
                        "other words are trained than the answer's".into(),
                    ));
                }
            }
        }
    }
    let left = &whole[words.len()..];
    let begins_with_stop = pipeline.stop_texts().iter().any(|stop| left.starts_with(stop.as_str()));
    match left.is_empty() || is_stopped || begins_with_stop {
        true => Ok(()),
        false => Err((Rule::AnswerIsTrained, "its last words are not trained".into())),
    }
}

/// Text without white space, which tokenizers write in several ways.
fn squashed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && *c != '▁').collect()
}

/// The prompt has the special tokens that it would have without the typed ones.
fn check_typed(pipeline: &Pipeline, row: &Conversation, place: usize, prompt: &[u32]) -> Result<(), Fault> {
    let tokenizer = pipeline.tokenizer();
    let mut plain = row.messages[..place].to_vec();
    for message in plain.iter_mut().filter(|message| message.role != Role::Assistant) {
        let hidden = tokenizer.typed().hidden(&message.content, Which::All);
        message.content =
            hidden.chars().map(|c| if tokenizer.typed().shown(c).is_some() { 'x' } else { c }).collect();
    }
    let plain = pipeline.prompt(&plain, row.tools.as_ref());
    let plain = plain.map_err(|error| (Rule::TypedIsText, error.to_string()))?;
    let special = |ids: &[u32]| ids.iter().filter(|&&id| tokenizer.is_special(id)).count();
    match special(prompt) == special(&plain) {
        true => Ok(()),
        false => Err((Rule::TypedIsText, format!("before message {}", place + 1))),
    }
}
