//! Many questions, each answered by itself: what a model knows before and after training.
//!
//! In: conversations that end with the expected answer. Out: question, expected answer and the model's, side by side.

use std::ops::ControlFlow;

use sft_data::conversation::{Conversation, Message, Role};
use sft_data::pipeline::Pipeline;
use sft_kernels::random;

use crate::InferError;
use crate::generate::{GenerationOptions, Generator, StopReason};

/// A question with two answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// What the person asked last.
    pub prompt_text: String,
    /// The answer in the data.
    pub expected: String,
    /// The model's.
    pub answer: String,
    /// Why the model's answer ended.
    pub reason: StopReason,
}

impl Answered {
    /// Whether both answers are the same, white space around them apart.
    pub fn is_exact(&self) -> bool {
        self.expected.trim() == self.answer.trim()
    }
}

/// Answers the last question of every conversation; `on_answer` sees each as it comes and may break off.
///
/// Row i draws with a seed of its own, so its answer does not depend on the other rows.
///
/// # Errors
/// A conversation that does not end with an answer, or that the template refuses; everything that
/// [`Generator::generate`] finds.
pub fn answer_all(
    generator: &mut Generator<'_>,
    pipeline: &Pipeline,
    conversations: &[Conversation],
    options: &GenerationOptions,
    mut on_answer: impl FnMut(&Answered) -> ControlFlow<()>,
) -> Result<Vec<Answered>, InferError> {
    let mut all = Vec::with_capacity(conversations.len());
    for (row, conversation) in (0..).zip(conversations) {
        let (expected, asked) = expected_answer(conversation)?;
        let prompt = pipeline.prompt(asked, conversation.tools.as_ref())?;
        let mut options = options.clone();
        options.sampling.seed = random::key(options.sampling.seed, &[row]);
        let generation = generator.generate(&prompt, &options, |_| ControlFlow::Continue(()))?;
        let answered = Answered {
            prompt_text: asked.last().map_or_else(String::new, |message| message.content.clone()),
            expected: expected.to_owned(),
            answer: pipeline.tokenizer().decode(&generation.ids, options.skip_special_tokens),
            reason: generation.reason,
        };
        let flow = on_answer(&answered);
        all.push(answered);
        if flow.is_break() {
            break;
        }
    }
    Ok(all)
}

/// Share of the answers that are exactly as expected, in 0 to 1; 0 of none.
pub fn exact_match(answered: &[Answered]) -> f64 {
    let exact = answered.iter().filter(|row| row.is_exact()).count();
    exact as f64 / answered.len().max(1) as f64
}

/// The last answer of a conversation, and the messages before it.
fn expected_answer(conversation: &Conversation) -> Result<(&str, &[Message]), InferError> {
    match conversation.messages.split_last() {
        Some((last, asked)) if last.role == Role::Assistant => Ok((&last.content, asked)),
        _ => Err(InferError::NoExpectedAnswer { origin: conversation.origin.clone() }),
    }
}
