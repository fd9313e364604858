//! Stages 4 to 6 in one: a conversation → an [`Example`], for one tokenizer, template and policy.
//!
//! The same object renders the prompts of inference, so what is asked is what was trained.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde_json::Value;

use crate::conversation::{Conversation, Message};
use crate::error::DataError;
use crate::labels::{self, Example, LabelledToken, Policy, Reason};
use crate::rows::RowProblem;
use crate::template::{Part, Template, TemplateOptions};
use crate::tokenize::{self, Tokenizer};

/// A tokenizer, a template and a supervision policy that belong together.
#[derive(Debug, Clone)]
pub struct Pipeline {
    tokenizer: Tokenizer,
    template: Template,
    policy: Policy,
    stop_ids: Vec<u32>,
}

/// A row as the model sees it, token by token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedToken {
    /// Its id.
    pub id: u32,
    /// The text it stands for; bytes that are no character by themselves as U+FFFD.
    pub text: String,
    /// The id to learn here, or [`labels::IGNORE_INDEX`].
    pub label: i32,
    /// Why.
    pub reason: Reason,
}

/// What became of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodeReport {
    /// Rows given.
    pub rows: usize,
    /// Rows that became examples (of `stage: pt`: blocks).
    pub examples: usize,
    /// Tokens of the examples.
    pub tokens: usize,
    /// Tokens that count in the loss.
    pub supervised: usize,
    /// Rows that the template refused.
    pub refused: Vec<RowProblem>,
    /// Rows that were dropped because nothing of them is trained.
    pub untrained: Vec<RowProblem>,
    /// Rows that lost tokens to `cutoff_len`.
    pub cut_rows: usize,
    /// Tokens lost to `cutoff_len`, of the examples and of the dropped rows.
    pub cut_tokens: usize,
    /// Rows whose last answer lost its end: a model trained on many of them does not stop.
    pub cut_ends: usize,
    /// Rows in which an answer shares a token with what stands around it; that token is not trained.
    pub border_rows: usize,
    /// Rows in which the model's template shows an earlier answer otherwise than it was written
    /// (Qwen3 leaves out earlier thoughts): it is trained as shown.
    pub rewritten_rows: usize,
    /// Rows in which the model's template leaves out an answer (tool calls that it does not know):
    /// nothing of that answer is trained.
    pub hidden_rows: usize,
    /// Tokens of the longest example.
    pub longest: usize,
    /// Number of examples by length: those of `256 * k` tokens or more, below `256 * (k + 1)`.
    pub lengths: BTreeMap<usize, usize>,
}

/// Width of a step of [`EncodeReport::lengths`], in tokens.
pub const LENGTH_STEP: usize = 256;

/// A row, encoded.
struct Encoded {
    example: Option<Example>,
    cut_tokens: usize,
    cut_end: bool,
    border: bool,
    rewritten: bool,
    hidden: bool,
}

impl Pipeline {
    /// Loads the template for the tokenizer (`None` and `auto`: the model's own).
    ///
    /// # Errors
    /// As [`Template::load`]; `train_on_prompt` with a template whose turns share their end token; a
    /// `cutoff_len` of 0; `mask_history` with `train_on_prompt`.
    pub fn new(
        mut tokenizer: Tokenizer,
        template: Option<&str>,
        options: &TemplateOptions,
        policy: Policy,
    ) -> Result<Self, DataError> {
        let template = Template::load(template, &mut tokenizer, options)?;
        let refuse =
            |key, reason: String, help: &str| Err(DataError::Option { key, reason, help: help.into() });
        if policy.cutoff_len == 0 {
            return refuse("cutoff_len", "is 0, must be at least 1".into(), "2048 is the default");
        }
        if policy.train_on_prompt && policy.mask_history {
            return refuse(
                "train_on_prompt",
                "contradicts `mask_history`: one trains everything, the other the last turn only".into(),
                "set one of them to false",
            );
        }
        if policy.train_on_prompt && !template.can_train_prompts() {
            return refuse(
                "train_on_prompt",
                format!("template `{}` leaves out the end tokens of earlier turns", template.name()),
                "set it to false or choose another template",
            );
        }
        let mut stop_ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
        stop_ids.extend(template.stop_ids());
        stop_ids.extend(tokenizer.generation_stop_ids());
        stop_ids.sort_unstable();
        stop_ids.dedup();
        Ok(Self { tokenizer, template, policy, stop_ids })
    }

    /// The tokenizer; a named template may have given it another end-of-sequence token.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The template.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Tokens that end an answer, sorted: the tokenizer's end token, the template's, and those of
    /// `generation_config.json`.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// What inference feeds before the model answers the last message.
    ///
    /// # Errors
    /// The template refuses the messages.
    pub fn prompt(&self, messages: &[Message], tools: Option<&Value>) -> Result<Vec<u32>, DataError> {
        let refused = |reason| DataError::Template {
            name: self.template.name().to_owned(),
            reason,
            help: "see which order of roles the template takes; `template` chooses another".into(),
        };
        let rendered = self.template.render_prompt(&self.tokenizer, messages, tools).map_err(refused)?;
        let tokens = tokenize::tokens(&self.tokenizer, &rendered)?;
        Ok(tokens.into_iter().map(|token| token.id).collect())
    }

    /// The example of a conversation.
    ///
    /// # Errors
    /// The template refuses the conversation, or nothing of it is trained.
    pub fn encode(&self, conversation: &Conversation) -> Result<Example, RowProblem> {
        let encoded = self.encode_row(conversation)?;
        encoded.example.ok_or_else(|| self.untrained(conversation))
    }

    /// The examples of all conversations, in order, made on all cores.
    ///
    /// Rows that are refused or have nothing to train are left out and listed in the report.
    pub fn encode_all(&self, conversations: &[Conversation]) -> (Vec<Example>, EncodeReport) {
        let encoded: Vec<_> = conversations.par_iter().map(|row| self.encode_row(row)).collect();
        let mut report = EncodeReport { rows: conversations.len(), ..EncodeReport::default() };
        let mut examples = Vec::with_capacity(encoded.len());
        for (row, encoded) in conversations.iter().zip(encoded) {
            match encoded {
                Err(problem) => report.refused.push(problem),
                Ok(encoded) => {
                    report.cut_tokens += encoded.cut_tokens;
                    report.cut_rows += usize::from(encoded.cut_tokens > 0);
                    report.cut_ends += usize::from(encoded.cut_end);
                    report.border_rows += usize::from(encoded.border);
                    report.rewritten_rows += usize::from(encoded.rewritten);
                    report.hidden_rows += usize::from(encoded.hidden);
                    match encoded.example {
                        None => report.untrained.push(self.untrained(row)),
                        Some(example) => {
                            report.count(&example);
                            examples.push(example);
                        }
                    }
                }
            }
        }
        (examples, report)
    }

    /// Every token of a conversation with its label and the reason, cut ones included.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub fn explain(&self, conversation: &Conversation) -> Result<Vec<ExplainedToken>, RowProblem> {
        let (tokens, _) = self.labelled(conversation)?;
        let explained = tokens.into_iter().map(|token| ExplainedToken {
            id: token.id,
            text: self.tokenizer.text_of(token.id),
            label: token.label,
            reason: token.reason,
        });
        Ok(explained.collect())
    }

    fn labelled(&self, row: &Conversation) -> Result<(Vec<LabelledToken>, bool), RowProblem> {
        let problem = |reason: String| RowProblem { origin: row.origin.clone(), reason };
        let last_turn_only = self.policy.mask_history;
        let rendered = self
            .template
            .render(&self.tokenizer, &row.messages, row.tools.as_ref(), last_turn_only)
            .map_err(problem)?;
        let tokens =
            tokenize::tokens(&self.tokenizer, &rendered).map_err(|error| problem(error.to_string()))?;
        let rewritten = rendered.turns.iter().any(|turn| turn.rewritten);
        Ok((labels::label(&tokens, &rendered, &self.policy), rewritten))
    }

    fn encode_row(&self, row: &Conversation) -> Result<Encoded, RowProblem> {
        let (tokens, rewritten) = self.labelled(row)?;
        let is_cut = |token: &LabelledToken| token.reason == Reason::Cut;
        let cut_tokens = tokens.iter().filter(|token| is_cut(token)).count();
        let mut answered = tokens.iter().filter(|token| matches!(token.mark.part, Part::Answer | Part::End));
        Ok(Encoded {
            example: labels::example(&tokens, &row.origin),
            cut_tokens,
            cut_end: answered.next_back().is_some_and(is_cut),
            border: tokens.iter().any(|token| token.reason == Reason::Border),
            rewritten,
            hidden: tokens.iter().any(|token| token.reason == Reason::NotShown),
        })
    }

    fn untrained(&self, row: &Conversation) -> RowProblem {
        let reason = format!(
            "no token of it is trained with `cutoff_len: {}`: its answers are empty, switched off, or cut off",
            self.policy.cutoff_len
        );
        RowProblem { origin: row.origin.clone(), reason }
    }
}

impl EncodeReport {
    pub(crate) fn count(&mut self, example: &Example) {
        self.examples += 1;
        self.tokens += example.len();
        self.supervised += example.supervised();
        self.longest = self.longest.max(example.len());
        *self.lengths.entry(example.len() / LENGTH_STEP * LENGTH_STEP).or_default() += 1;
    }

    /// Rows that did not become examples.
    pub fn dropped(&self) -> usize {
        self.refused.len() + self.untrained.len()
    }
}
