//! Templates (stage 4 of the walk): messages → text with spans that say what each stretch is.
//!
//! In: the messages of a conversation and the tools it offers. Out: [`Rendered`], the text a model
//! reads, cut where tokens must not merge, each stretch marked with its turn and [`Part`].
//!
//! There are two kinds. [`auto`] renders the model's own chat template as `transformers` does: one
//! text, tokenised once. [`named`] templates are LLaMA-Factory's: data files of slots, each slot
//! tokenised by itself. Training, chat and every other use render through this one module.

pub mod auto;
pub mod clock;
mod guarded;
pub mod jinja;
pub mod named;
pub mod python;
pub mod saved;
pub mod tools;
mod typed;

use std::ops::Range;

use serde_json::Value;

use crate::conversation::Message;
use crate::error::DataError;
use crate::tokenize::Tokenizer;
use auto::AutoTemplate;
use clock::Clock;
use named::NamedTemplate;

/// What a stretch of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Given to the model: system, tools, questions, tool results and the marks around them.
    Prompt,
    /// Words of the assistant, its tool calls and its reasoning.
    Answer,
    /// What stops the model after its answer.
    End,
    /// A token that begins in one part and ends in another, of which one is not to be learned.
    Border,
}

/// Marks a range of a text, or a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Number of the turn, from 0. A turn is what the model is given and then what it answers.
    pub turn: u32,
    /// What it is.
    pub part: Part,
}

/// A stretch that is tokenised by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text; the ranges are in bytes, in order, and cover all of it.
    Text {
        /// The text.
        text: String,
        /// What its ranges are.
        spans: Vec<(Range<usize>, Mark)>,
        /// Bytes where the prompt of inference ends and an answer begins, in order: no token lies across.
        borders: Vec<usize>,
        /// Ranges that spell a special token and are none, because a message says so.
        typed: Vec<Range<usize>>,
    },
    /// A token that has no text of its own in the template.
    Token {
        /// Its id.
        id: u32,
        /// What it is.
        mark: Mark,
    },
}

/// What is known of a turn beyond its text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// Place of the answer among the messages given, if the turn has one.
    pub message: Option<usize>,
    /// The row's own weight of the answer's tokens: `Some(0.0)` is never trained.
    pub weight: Option<f32>,
    /// The template shows this answer otherwise than the model wrote it (earlier reasoning left out).
    pub rewritten: bool,
    /// The template leaves this answer out altogether (tool calls that it does not know): its end
    /// alone is nothing to learn.
    pub hidden: bool,
}

impl Turn {
    /// Whether the row says that this answer is trained, or that it is not; `None` where it says nothing.
    pub fn is_wanted(&self) -> Option<bool> {
        self.weight.map(|weight| weight > 0.0)
    }
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rendered {
    /// Text and tokens in order; the parts of a turn come in the order prompt, answer, end.
    pub segments: Vec<Segment>,
    /// The turns, by number.
    pub turns: Vec<Turn>,
    /// LLaMA-Factory's `efficient_eos`: this token ends every answer, but stands in the text only
    /// after the last; elsewhere it is the label of the next turn's first token.
    pub shared_end: Option<u32>,
}

/// What a template is asked for besides the messages.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateOptions {
    /// System message of conversations that have none (`default_system`).
    pub default_system: Option<String>,
    /// Reasoning templates: `Some(true)` trains an empty thought where an answer has none,
    /// `Some(false)` takes thoughts out, `None` gives an empty thought as part of the prompt. The
    /// model's own template sees it as the variable `enable_thinking` (undefined if `None`).
    pub enable_thinking: Option<bool>,
    /// Keeps the reasoning of earlier turns (`preserve_thinking`).
    pub preserve_thinking: bool,
    /// How tools are written, instead of the template's own way (`tool_format`).
    pub tool_format: Option<String>,
    /// What the time is, for templates that state the date.
    pub clock: Clock,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        Self {
            default_system: None,
            enable_thinking: Some(true),
            preserve_thinking: false,
            tool_format: None,
            clock: Clock::System,
        }
    }
}

/// A chat template, ready to render for one tokenizer.
#[derive(Debug, Clone)]
pub enum Template {
    /// The model's own.
    Auto(AutoTemplate),
    /// One of LLaMA-Factory's.
    Named(NamedTemplate),
}

impl Template {
    /// The template `name`, or the model's own for `None` and `auto`. A named template may give the
    /// tokenizer another end-of-sequence token, as in LLaMA-Factory.
    ///
    /// # Errors
    /// An unknown name; no chat template in the model directory; a template that does not parse; an
    /// end token that the vocabulary lacks.
    pub fn load(
        name: Option<&str>,
        tokenizer: &mut Tokenizer,
        options: &TemplateOptions,
    ) -> Result<Self, DataError> {
        match name {
            None | Some("auto") => Ok(Self::Auto(AutoTemplate::load(tokenizer, options)?)),
            Some(name) => Ok(Self::Named(NamedTemplate::load(name, tokenizer, options)?)),
        }
    }

    /// `auto`, or the template's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Auto(_) => "auto",
            Self::Named(named) => named.name(),
        }
    }

    /// A conversation to train on. `last_turn_only`: only the last turn will be trained, so a
    /// reasoning template leaves out the thoughts of earlier ones. `stops`: what ends an answer, as text,
    /// and therefore never stands inside one. Unless `is_marked`, the text alone is wanted, which takes fewer renderings
    /// of the model's own template.
    ///
    /// # Errors
    /// What is wrong with the conversation for this template, in words.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        (messages, is_marked): (&[Message], bool),
        tools: Option<&Value>,
        last_turn_only: bool,
        stops: &[String],
    ) -> Result<Rendered, String> {
        typed::rendered(tokenizer.typed(), messages, tools, stops, |messages, tools| match self {
            Self::Auto(auto) => {
                let unmarked =
                    if is_marked { None } else { auto.render_unmarked(tokenizer, messages, tools) };
                unmarked.map_or_else(|| auto.render(tokenizer, messages, tools), Ok)
            }
            Self::Named(named) => named.render(tokenizer, messages, tools, last_turn_only),
        })
    }

    /// What the model reads before it answers the last message; the same options as for training. Unless `has_borders`,
    /// whoever asks knows where earlier prompts of the model's own template end.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_prompt(
        &self,
        tokenizer: &Tokenizer,
        (messages, has_borders): (&[Message], bool),
        tools: Option<&Value>,
        last_turn_only: bool,
        stops: &[String],
    ) -> Result<Rendered, String> {
        typed::rendered(tokenizer.typed(), messages, tools, stops, |messages, tools| match self {
            Self::Auto(auto) => auto.render_prompt((messages, has_borders), tools),
            Self::Named(named) => named.render_prompt(tokenizer, messages, tools, last_turn_only),
        })
    }

    /// A named template as Jinja, for the folder of a model that was trained with it; `None` for the model's own, which
    /// its folder has already. `last_turn_only` as in [`Template::render`].
    pub fn written(&self, last_turn_only: bool) -> Option<String> {
        match self {
            Self::Auto(_) => None,
            Self::Named(named) => Some(named.written(last_turn_only)),
        }
    }

    /// Tokens that end an answer, besides the tokenizer's own end-of-sequence token.
    pub fn stop_ids(&self) -> &[u32] {
        match self {
            Self::Auto(auto) => auto.stop_ids(),
            Self::Named(named) => named.stop_ids(),
        }
    }

    /// The token that ends every answer and stands in the text after the last one only.
    pub fn shared_end(&self) -> Option<u32> {
        match self {
            Self::Auto(_) => None,
            Self::Named(named) => named.shared_end(),
        }
    }

    /// Whether the whole row may be trained, prompts too (not where turns share their end token).
    pub fn can_train_prompts(&self) -> bool {
        match self {
            Self::Auto(_) => true,
            Self::Named(named) => named.shared_end().is_none(),
        }
    }
}

impl Rendered {
    /// All text in order, tokens as the vocabulary spells them.
    pub fn text(&self, tokenizer: &Tokenizer) -> String {
        let pieces = self.segments.iter().map(|segment| match segment {
            Segment::Text { text, .. } => text.clone(),
            Segment::Token { id, .. } => tokenizer.token_text(*id).unwrap_or_default(),
        });
        pieces.collect()
    }
}
