//! Rows with expected answers → what a model answers instead: what it knows before and after training.
//!
//! In: conversations that end with the expected answer, or with a question. Out: question, expected answer and the model's,
//! side by side.

use sft_data::conversation::{Conversation, Message, Role};
use sft_data::pipeline::Pipeline;
use sft_kernels::{DType, Device};
use sft_model::Decoder;
use sft_model::spec::DecoderSpec;
use sft_model::workspace::Workspace;

use crate::InferError;
use crate::generate::{Context, Continuation, Generation, GenerationOptions, PROMPT_PIECE};
use crate::similarity::Similarity;
use crate::slots::Slots;
use crate::together::{Prompt, Together};

/// A question with two answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// What the person asked last, or a tool answered.
    pub asked: String,
    /// All that the model read, special tokens included.
    pub prompt: String,
    /// The answer in the data, as the template renders it and training teaches it; empty where there is none.
    pub expected: String,
    /// The model's, or in a line why there is none: of a row that training drops or cuts, too.
    pub answer: Result<String, String>,
    /// How like the expected one it is, where both are there.
    pub similarity: Option<Similarity>,
}

impl Answered {
    /// Whether there is an expected answer, and the model's is the same, white space around them apart.
    pub fn is_exact(&self) -> bool {
        let same = |answer: &String| self.expected.trim() == answer.trim();
        self.similarity.is_some() && self.answer.as_ref().is_ok_and(same)
    }
}

/// Share of the answers with an expected one that are exactly as expected, in 0 to 1; 0 of none.
pub fn exact_match(answered: &[Answered]) -> f64 {
    let compared = answered.iter().filter(|row| row.similarity.is_some()).count();
    let exact = answered.iter().filter(|row| row.is_exact()).count();
    exact as f64 / compared.max(1) as f64
}

/// The mean over all answers with an expected one; `None` of none.
pub fn similarity(answered: &[Answered]) -> Option<Similarity> {
    let each: Vec<Similarity> = answered.iter().filter_map(|row| row.similarity).collect();
    (!each.is_empty()).then(|| Similarity::mean(&each))
}

/// The last question of each row. One that cannot be asked (the template refuses it) is told in its place.
#[derive(Debug)]
pub struct Questions {
    pipeline: Pipeline,
    options: GenerationOptions,
    all: Vec<Question>,
}

#[derive(Debug)]
struct Question {
    /// Where it was read.
    origin: String,
    /// What was asked.
    asked: String,
    /// Why it cannot be asked.
    refused: Option<String>,
    /// All that the model reads.
    prompt: Vec<u32>,
    /// Without the token that ends it.
    expected: Vec<u32>,
}

impl Questions {
    /// Renders the questions.
    ///
    /// # Errors
    /// What is wrong whatever the row.
    pub fn new(
        pipeline: Pipeline,
        options: GenerationOptions,
        rows: &[Conversation],
    ) -> Result<Self, InferError> {
        let all = rows.iter().map(|row| Question::of(row, &pipeline, &options.stop_ids));
        let all = all.collect::<Result<_, _>>()?;
        Ok(Self { pipeline, options, all })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Refuses questions of which none can be asked.
    ///
    /// # Errors
    /// Why the first one cannot.
    pub fn require_one(&self, spec: &DecoderSpec) -> Result<(), InferError> {
        let reason = |question: &Question| match &question.refused {
            Some(reason) => Some(reason.clone()),
            None => Continuation::new(Context::of(spec), &question.prompt, &self.options)
                .err()
                .map(|error| in_a_line(&question.origin, &error)),
        };
        let mut reasons = Vec::new();
        for question in &self.all {
            let Some(reason) = reason(question) else { return Ok(()) };
            reasons.push(reason);
        }
        match reasons.into_iter().next() {
            Some(first) => Err(InferError::NothingToAsk { rows: self.len(), first }),
            None => Ok(()),
        }
    }

    /// Bytes that answering `rows` of them at a time takes beside weights and a workspace.
    pub fn bytes(&self, spec: &DecoderSpec, compute: DType, rows: usize, on_card: bool) -> usize {
        let longest = self.options.longest(spec, self.longest_prompt());
        Slots::bytes(spec, compute, (rows.min(self.len()), on_card), longest)
    }

    /// Tokens of the pieces in which the longest prompt is read at best.
    pub fn piece(&self) -> usize {
        self.longest_prompt().min(PROMPT_PIECE)
    }

    fn longest_prompt(&self) -> usize {
        self.all.iter().map(|question| question.prompt.len()).max().unwrap_or(0)
    }

    /// Asks the model all of them, up to `rows` at a time; `work` has room for a token of each. Row i draws with a seed of its
    /// own, whatever rows are beside it. `stop` is asked before every token, `on_answer` hears of each
    /// answer as it comes. `None` if it was stopped.
    ///
    /// # Errors
    /// What is wrong with the model, whatever the row.
    pub fn answer(
        &self,
        dev: &Device,
        decoder: &Decoder,
        (work, rows): (&mut Workspace, usize),
        stop: impl FnMut() -> bool,
        mut on_answer: impl FnMut(&Answered),
    ) -> Result<Option<Vec<Answered>>, InferError> {
        let (mut answers, mut prompts) = (Vec::with_capacity(self.len()), Vec::new());
        for (row, question) in self.all.iter().enumerate() {
            let answered = question.refused.clone().map(|reason| self.answered(question, Err(reason)));
            if let Some(answered) = &answered {
                on_answer(answered);
            } else {
                prompts.push(Prompt { row, ids: &question.prompt });
            }
            answers.push(answered);
        }
        let mut together = Together::new(dev, decoder, work, rows);
        let all = together.generate(&prompts, &self.options, stop, |row, generation| {
            let question = &self.all[row];
            let generation = generation.map_err(|error| in_a_line(&question.origin, &error));
            let answered = self.answered(question, generation);
            on_answer(&answered);
            answers[row] = Some(answered);
        })?;
        Ok(all.then(|| answers.into_iter().flatten().collect()))
    }

    fn answered(&self, question: &Question, generation: Result<Generation, String>) -> Answered {
        let tokenizer = self.pipeline.tokenizer();
        let text = |ids: &[u32]| tokenizer.decode(ids, self.options.skip_special_tokens);
        let plain = |ids: &[u32]| tokenizer.decode(ids, true);
        let expected = plain(&question.expected);
        let compared = generation.as_ref().ok().filter(|_| !expected.trim().is_empty());
        Answered {
            asked: question.asked.clone(),
            prompt: tokenizer.decode(&question.prompt, false),
            expected: text(&question.expected),
            similarity: compared.map(|generation| Similarity::of(&plain(&generation.ids), &expected)),
            answer: generation.map(|generation| text(&generation.ids)),
        }
    }
}

impl Question {
    /// The last question of a row; one that cannot be asked is refused.
    fn of(row: &Conversation, pipeline: &Pipeline, stop_ids: &[u32]) -> Result<Self, InferError> {
        let asked = match row.messages.split_last() {
            Some((last, asked)) if last.role == Role::Assistant => asked,
            _ => &row.messages[..],
        };
        let (mut question, origin) = (Self::unasked(row, asked), row.origin.to_string());
        match render(row, asked, pipeline, stop_ids) {
            Ok((prompt, expected)) => (question.prompt, question.expected) = (prompt, expected),
            Err(error) if error.is_of_the_row() => question.refused = Some(in_a_line(&origin, &error)),
            Err(error) => return Err(error),
        }
        Ok(question)
    }

    fn unasked(row: &Conversation, asked: &[Message]) -> Self {
        let last = asked.iter().rfind(|message| message.role != Role::Assistant);
        Self {
            origin: row.origin.to_string(),
            asked: last.map_or_else(String::new, |message| message.content.clone()),
            refused: None,
            prompt: Vec::new(),
            expected: Vec::new(),
        }
    }
}

/// Prompt and expected answer of a row.
fn render(
    row: &Conversation,
    asked: &[Message],
    pipeline: &Pipeline,
    stop_ids: &[u32],
) -> Result<(Vec<u32>, Vec<u32>), InferError> {
    let prompt = pipeline.prompt(asked, row.tools.as_ref())?;
    let expected = match asked.len() < row.messages.len() {
        true => expected_ids(pipeline, row, &prompt, stop_ids)?,
        false => Vec::new(),
    };
    Ok((prompt, expected))
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
fn in_a_line(origin: &str, error: &InferError) -> String {
    let error = error.to_string();
    let reason = error.lines().next().unwrap_or_default();
    if reason.starts_with(origin) { reason.to_owned() } else { format!("{origin}: {reason}") }
}
