//! A conversation: what was said so far, the next question in, the answer out as it comes.
//!
//! In: lines of a person. Out: pieces of text, each valid UTF-8, that together are the answer. Every question is
//! rendered with all earlier turns by the template that training used; the cache holds what did not change.

use std::ops::ControlFlow;

use sft_data::conversation::{Message, Role};
use sft_data::pipeline::Pipeline;
use sft_kernels::random;

use crate::InferError;
use crate::generate::{GenerationOptions, Generator, Progress, StopReason};

/// An answer in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its text, all pieces together.
    pub text: String,
    /// Why it ended.
    pub reason: StopReason,
    /// Tokens of the prompt, earlier turns included.
    pub prompt_tokens: usize,
    /// How many of them the cache held already.
    pub reused: usize,
    /// Tokens of the answer.
    pub tokens: usize,
}

/// A conversation with a model.
#[derive(Debug)]
pub struct ChatSession<'a> {
    generator: Generator<'a>,
    pipeline: &'a Pipeline,
    options: GenerationOptions,
    system: Option<String>,
    messages: Vec<Message>,
    /// Answers given, forgotten ones included: each draws with a seed of its own.
    answers: u64,
}

impl<'a> ChatSession<'a> {
    /// Begins a conversation. `system` is its system prompt; without one the template's own is used.
    pub fn new(
        generator: Generator<'a>,
        pipeline: &'a Pipeline,
        options: GenerationOptions,
        system: Option<String>,
    ) -> Self {
        let mut session = Self { generator, pipeline, options, system, messages: Vec::new(), answers: 0 };
        session.clear();
        session
    }

    /// Forgets everything said; the system prompt stays.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.messages.extend(self.system.iter().map(|text| Message::text(Role::System, text)));
        self.generator.clear();
    }

    /// Asks the model. `on_text` gets each piece of the answer, and an empty one after each piece of a long prompt;
    /// it may break off: what was said until then stays in the conversation.
    ///
    /// # Errors
    /// The template refuses the messages; everything that [`Generator::generate`] finds. The question is then taken
    /// back.
    pub fn ask(
        &mut self,
        question: &str,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, InferError> {
        self.messages.push(Message::text(Role::User, question));
        let answer = self.answer(on_text);
        match &answer {
            Ok(answer) if !(answer.text.is_empty() && answer.reason == StopReason::Cancelled) => {
                self.messages.push(Message::text(Role::Assistant, &answer.text));
            }
            _ => {
                self.messages.pop();
            }
        }
        answer
    }

    fn answer(&mut self, mut on_text: impl FnMut(&str) -> ControlFlow<()>) -> Result<Answer, InferError> {
        let prompt = self.pipeline.prompt(&self.messages, None)?;
        let mut options = self.options.clone();
        options.sampling.seed = random::key(options.sampling.seed, &[self.answers]);
        self.answers += 1;
        let mut stream = self.pipeline.tokenizer().stream(options.skip_special_tokens);
        let mut text = String::new();
        let generation = self.generator.generate(&prompt, &options, |progress| {
            let piece = match progress {
                Progress::Prompt { .. } => String::new(),
                Progress::Token(id) => stream.push(id).unwrap_or_default(),
            };
            text.push_str(&piece);
            on_text(&piece)
        })?;
        let rest = stream.finish();
        if !rest.is_empty() && generation.reason != StopReason::Cancelled {
            text.push_str(&rest);
            // The answer has ended: there is nothing left to break off.
            let _ = on_text(&rest);
        }
        Ok(Answer {
            text,
            reason: generation.reason,
            prompt_tokens: prompt.len(),
            reused: generation.reused,
            tokens: generation.ids.len(),
        })
    }
}
