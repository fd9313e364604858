//! Many questions, each answered by itself: what a model knows before and after training.
//!
//! In: conversations that end with the expected answer. Out: question, expected answer and the model's, side by side.

use std::ops::ControlFlow;

use sft_data::conversation::{Conversation, Message, Role};
use sft_data::pipeline::Pipeline;
use sft_kernels::random;

use crate::InferError;
use crate::generate::{GenerationOptions, Generator};

/// A question with two answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// What the person asked last.
    pub prompt_text: String,
    /// The answer in the data, as the template renders it and training teaches it; empty where the question could not be
    /// asked.
    pub expected: String,
    /// The model's, or in a line why there is none: of a row that training drops or cuts, too.
    pub answer: Result<String, String>,
}

impl Answered {
    /// Whether both answers are the same, white space around them apart.
    pub fn is_exact(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| self.expected.trim() == answer.trim())
    }
}

/// Answers the last question of every conversation; `on_answer` sees each as it comes and may break off.
///
/// Row i draws with a seed of its own, so its answer does not depend on the other rows. A row without a question that can
/// be asked (the template refuses it, it leaves no room for an answer) is told in its place, and the others go on.
///
/// # Errors
/// What is wrong with the model, whatever the row.
pub fn answer_all(
    generator: &mut Generator<'_>,
    pipeline: &Pipeline,
    conversations: &[Conversation],
    options: &GenerationOptions,
    mut on_answer: impl FnMut(&Answered) -> ControlFlow<()>,
) -> Result<Vec<Answered>, InferError> {
    let mut all = Vec::with_capacity(conversations.len());
    for (row, conversation) in (0..).zip(conversations) {
        let mut options = options.clone();
        options.sampling.seed = random::key(options.sampling.seed, &[row]);
        let answered = match answer(generator, pipeline, conversation, &options) {
            Ok(answered) => answered,
            Err(error) if error.is_of_the_row() => Answered {
                prompt_text: question(&conversation.messages),
                expected: String::new(),
                answer: Err(problem(conversation, &error)),
            },
            Err(error) => return Err(error),
        };
        let flow = on_answer(&answered);
        all.push(answered);
        if flow.is_break() {
            break;
        }
    }
    Ok(all)
}

fn answer(
    generator: &mut Generator<'_>,
    pipeline: &Pipeline,
    conversation: &Conversation,
    options: &GenerationOptions,
) -> Result<Answered, InferError> {
    let asked = match conversation.messages.split_last() {
        Some((last, asked)) if last.role == Role::Assistant => asked,
        _ => return Err(InferError::NoExpectedAnswer { origin: conversation.origin.clone() }),
    };
    let prompt = pipeline.prompt(asked, conversation.tools.as_ref())?;
    let text = |ids: &[u32]| pipeline.tokenizer().decode(ids, options.skip_special_tokens);
    let expected = text(&expected_ids(pipeline, conversation, &prompt, &options.stop_ids)?);
    if expected.trim().is_empty() {
        return Err(InferError::NothingExpected { origin: conversation.origin.clone() });
    }
    let generation = generator.generate(&prompt, options, |_| ControlFlow::Continue(()))?;
    Ok(Answered { prompt_text: question(asked), expected, answer: Ok(text(&generation.ids)) })
}

/// What training teaches after `prompt`, up to the token that ends the answer: words, thoughts and calls as the template
/// renders them, also where `cutoff_len` cuts them. Where the template asks otherwise than it trains, the words alone.
fn expected_ids(
    pipeline: &Pipeline,
    row: &Conversation,
    prompt: &[u32],
    stop_ids: &[u32],
) -> Result<Vec<u32>, InferError> {
    let explained = pipeline.explain(row).map_err(|problem| InferError::Row { problem })?;
    let ids: Vec<u32> = explained.iter().map(|token| token.id).collect();
    match ids.strip_prefix(prompt) {
        Some(answer) => Ok(answer.iter().copied().take_while(|id| !stop_ids.contains(id)).collect()),
        None => {
            let words = row.messages.last().map_or("", |last| &last.content);
            Ok(pipeline.tokenizer().encode(words)?)
        }
    }
}

/// Why a row has no answer, with its place; what to do about it is for a conversation that goes on.
fn problem(row: &Conversation, error: &InferError) -> String {
    let (origin, error) = (row.origin.to_string(), error.to_string());
    let reason = error.lines().next().unwrap_or_default();
    if reason.starts_with(&origin) { reason.to_owned() } else { format!("{origin}: {reason}") }
}

/// Share of the questions that were asked whose answers are exactly as expected, in 0 to 1; 0 of none.
pub fn exact_match(answered: &[Answered]) -> f64 {
    let asked = answered.iter().filter(|row| row.answer.is_ok()).count();
    let exact = answered.iter().filter(|row| row.is_exact()).count();
    exact as f64 / asked.max(1) as f64
}

/// The last thing that a person asked, or a tool answered.
fn question(messages: &[Message]) -> String {
    let asked = messages.iter().rfind(|message| message.role != Role::Assistant);
    asked.map_or_else(String::new, |message| message.content.clone())
}
