//! Stages 4 to 6 in one: a conversation → an [`Example`], for one tokenizer, template and policy.
//!
//! The same object renders the prompts of inference, so what is asked is what was trained.

mod split;

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::conversation::{Conversation, Message, Origin, Role};
use crate::error::DataError;
use crate::labels::{self, Example, LabelledToken, OverLength, Policy, Reason};
use crate::proof::{self, Proof, Rule};
use crate::rows::RowProblem;
use crate::template::{Part, Rendered, Segment, Template, TemplateOptions};
use crate::tokenize::{self, Tokenizer};

/// A tokenizer, a template and a supervision policy that belong together.
#[derive(Debug, Clone)]
pub struct Pipeline {
    tokenizer: Tokenizer,
    template: Template,
    policy: Policy,
    stop_ids: Vec<u32>,
    stops: Vec<String>,
}

/// A row as the model sees it, token by token.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainedToken {
    /// Its id.
    pub id: u32,
    /// The text it stands for; bytes that are no character by themselves as U+FFFD.
    pub text: String,
    /// The id to learn here, or [`labels::IGNORE_INDEX`].
    pub label: i32,
    /// How much it counts in the loss, if it is trained.
    pub weight: f32,
    /// Why.
    pub reason: Reason,
}

/// What became of the rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
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
    /// Rows, or parts of them, that were left out because they are longer than `cutoff_len`.
    pub too_long: Vec<RowProblem>,
    /// Rows that were parted between turns to fit `cutoff_len`.
    pub split_rows: usize,
    /// Rows that lost tokens to `cutoff_len`, each with how many.
    pub cut: Vec<CutRow>,
    /// Rows that lost tokens to `cutoff_len`.
    pub cut_rows: usize,
    /// Tokens lost to `cutoff_len`, of the examples and of the dropped rows.
    pub cut_tokens: usize,
    /// Rows whose last answer lost its end: a model trained on many of them does not stop.
    pub cut_ends: usize,
    /// Rows in which an answer shares a token with what follows it; that token is not trained.
    pub border_rows: usize,
    /// Rows whose text, tokenised as a whole, has a token across the border between prompt and answer:
    /// they are tokenised on both sides of it, as inference is.
    pub parted_rows: usize,
    /// Which rows these are.
    pub parted: Vec<Origin>,
    /// Rows in which the model's template shows an earlier answer otherwise than it was written
    /// (Qwen3 leaves out earlier thoughts): such an answer is trained in an example of its own.
    pub rewritten_rows: usize,
    /// Rows in which the model's template leaves out an answer (tool calls that it does not know):
    /// nothing of that answer is trained.
    pub hidden_rows: usize,
    /// Tokens of the shortest first prompt, before any cut; `None` where rows have no prompts.
    pub shortest_prompt: Option<usize>,
    /// What was found to hold for every row.
    pub proof: Proof,
    /// Tokens of the longest example.
    pub longest: usize,
    /// Number of examples by length: those of `256 * k` tokens or more, below `256 * (k + 1)`.
    pub lengths: BTreeMap<usize, usize>,
}

/// A row that `cutoff_len` shortened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutRow {
    /// The row.
    pub origin: Origin,
    /// Tokens lost.
    pub lost: usize,
    /// Tokens it had.
    pub of: usize,
    /// Its last answer lost its end.
    pub lost_end: bool,
}

/// Width of a step of [`EncodeReport::lengths`], in tokens.
pub const LENGTH_STEP: usize = 256;

/// A row, encoded.
struct Encoded {
    examples: Vec<Example>,
    prompt_tokens: usize,
    all_tokens: usize,
    cut_tokens: usize,
    cut_end: bool,
    border: bool,
    parted: bool,
    rewritten: bool,
    hidden: bool,
    proved: Result<proof::RowProof, proof::Violation>,
}

/// What became of a row: its parts, and what of it is too long.
struct Outcome {
    encoded: Vec<Encoded>,
    too_long: Vec<RowProblem>,
}

/// What becomes one example: a row, or a row up to an answer that is shown otherwise later.
struct Sequence {
    tokens: Vec<LabelledToken>,
    /// Borders that were cut.
    parted: bool,
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
        let stops = stop_ids.iter().filter_map(|&id| tokenizer.token_text(id)).collect();
        Ok(Self { tokenizer, template, policy, stop_ids, stops })
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

    /// The same as texts.
    pub(crate) fn stop_texts(&self) -> &[String] {
        &self.stops
    }

    /// Whether the template ends a last answer with something to learn.
    pub(crate) fn ends_answers(&self) -> bool {
        let messages = [Message::text(Role::User, "question"), Message::text(Role::Assistant, "answer")];
        let Ok(rendered) = self.render(&messages, None) else { return true };
        let Ok(tokens) = tokenize::tokens(&self.tokenizer, &rendered) else { return true };
        rendered.shared_end.is_some() || tokens.tokens.iter().any(|token| token.mark.part == Part::End)
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
        let rendered = self.render_prompt(messages, tools).map_err(refused)?;
        let tokens = tokenize::tokens(&self.tokenizer, &rendered)?.tokens;
        Ok(tokens.into_iter().map(|token| token.id).collect())
    }

    /// The text that inference feeds before the model answers the last message.
    pub(crate) fn render_prompt(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
    ) -> Result<Rendered, String> {
        let last_turn_only = self.policy.mask_history;
        self.template.render_prompt(&self.tokenizer, (messages, true), tools, last_turn_only, &self.stops)
    }

    /// The text of a conversation that an answer ends, as it is trained on.
    ///
    /// # Errors
    /// What the template refuses.
    pub(crate) fn text(&self, messages: &[Message], tools: Option<&Value>) -> Result<String, String> {
        let last_turn_only = self.policy.mask_history;
        let template = &self.template;
        let rendered =
            template.render(&self.tokenizer, (messages, false), tools, last_turn_only, &self.stops)?;
        Ok(rendered.text(&self.tokenizer))
    }

    /// The text of a conversation that is trained on.
    pub(crate) fn render(&self, messages: &[Message], tools: Option<&Value>) -> Result<Rendered, String> {
        let last_turn_only = self.policy.mask_history;
        self.template.render(&self.tokenizer, (messages, true), tools, last_turn_only, &self.stops)
    }

    /// The example of a conversation; where the template shows earlier answers otherwise than they are
    /// asked for, the one that trains the last answer.
    ///
    /// # Errors
    /// The template refuses the conversation, or nothing of it is trained.
    pub fn encode(&self, conversation: &Conversation) -> Result<Example, RowProblem> {
        let sequences = self.sequences(conversation)?;
        let example =
            sequences.first().and_then(|first| labels::example(&first.tokens, &conversation.origin));
        example.ok_or_else(|| self.untrained(conversation))
    }

    /// The examples of all conversations, in order, made on all cores.
    ///
    /// Rows that are refused or have nothing to train are left out and listed in the report.
    pub fn encode_all(&self, conversations: &[Conversation]) -> (Vec<Example>, EncodeReport) {
        let encoded: Vec<_> = conversations.par_iter().map(|row| self.encode_row(row)).collect();
        let mut report = EncodeReport { rows: conversations.len(), ..EncodeReport::default() };
        let mut examples = Vec::with_capacity(encoded.len());
        for (row, outcome) in conversations.iter().zip(encoded) {
            let Outcome { encoded, too_long } = match outcome {
                Ok(outcome) => outcome,
                Err(problem) => {
                    report.refused.push(problem);
                    continue;
                }
            };
            report.split_rows += usize::from(encoded.len() + too_long.len() > 1);
            report.too_long.extend(too_long);
            for part in encoded {
                if part.examples.is_empty() && part.proved.is_ok() {
                    report.untrained.push(self.untrained(row));
                }
                examples.extend(report.add(row, part));
            }
        }
        (examples, report)
    }

    /// Every token of a conversation with its label and the reason, cut ones included.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub fn explain(&self, conversation: &Conversation) -> Result<Vec<ExplainedToken>, RowProblem> {
        Ok(self.explain_all(conversation)?.swap_remove(0))
    }

    /// As [`Pipeline::explain`], and after it the further examples, each of which trains an earlier answer
    /// that the template shows otherwise later on.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub fn explain_all(&self, conversation: &Conversation) -> Result<Vec<Vec<ExplainedToken>>, RowProblem> {
        let explained = |(token, text): (LabelledToken, String)| ExplainedToken {
            id: token.id,
            text,
            label: token.label,
            weight: token.weight,
            reason: token.reason,
        };
        let all = |sequence: Sequence| {
            let ids: Vec<u32> = sequence.tokens.iter().map(|token| token.id).collect();
            sequence.tokens.into_iter().zip(self.tokenizer.texts_of(&ids)).map(explained).collect()
        };
        Ok(self.sequences(conversation)?.into_iter().map(all).collect())
    }

    /// The row, and after it one sequence for each answer that it cannot train; never empty.
    fn sequences(&self, row: &Conversation) -> Result<Vec<Sequence>, RowProblem> {
        let (rendered, tokens) = self.tokens(row, &row.messages)?;
        let first = Sequence {
            tokens: labels::label(&tokens.tokens, &rendered, &self.policy),
            parted: tokens.cuts > 0,
        };
        let mut sequences = vec![first];
        let last_only = Policy { mask_history: true, ..self.policy };
        for place in labels::apart(&tokens.tokens, &rendered, &self.policy) {
            let (mut rendered, tokens) = self.tokens(row, &row.messages[..=place])?;
            let others = rendered.turns.iter_mut().filter(|turn| turn.message != Some(place));
            others.for_each(|turn| turn.weight = Some(0.0));
            sequences.push(Sequence {
                tokens: labels::label(&tokens.tokens, &rendered, &last_only),
                parted: tokens.cuts > 0,
            });
        }
        Ok(sequences)
    }

    fn tokens(
        &self,
        row: &Conversation,
        messages: &[Message],
    ) -> Result<(Rendered, tokenize::Tokens), RowProblem> {
        let problem = |reason: String| RowProblem { origin: row.origin.clone(), reason };
        let rendered = self.render(messages, row.tools.as_ref()).map_err(problem)?;
        let tokens =
            tokenize::tokens(&self.tokenizer, &rendered).map_err(|error| problem(error.to_string()))?;
        Ok((rendered, tokens))
    }

    fn encode_row(&self, row: &Conversation) -> Result<Outcome, RowProblem> {
        let sequences = self.sequences(row)?;
        let kept = |encoded| Outcome { encoded, too_long: Vec::new() };
        let Some(tokens) = self.is_over_length(&sequences) else {
            return Ok(kept(vec![self.encoded(row, &sequences)]));
        };
        Ok(match self.policy.over_length {
            OverLength::Truncate => kept(vec![self.encoded(row, &sequences)]),
            OverLength::Drop => {
                Outcome { encoded: Vec::new(), too_long: vec![self.too_long(row, tokens, "it")] }
            }
            OverLength::Split => {
                let (parts, too_long) = split::parts(self, row);
                let encoded = parts.iter().map(|(part, sequences)| self.encoded(part, sequences));
                Outcome { encoded: encoded.collect(), too_long }
            }
            OverLength::Refuse => {
                let reason = format!("{tokens} tokens, and `cutoff_len` is {}", self.policy.cutoff_len);
                let violation = proof::violation(self, row, (Rule::NothingIsCut, reason));
                let encoded = self.encoded(row, &sequences);
                kept(vec![Encoded {
                    examples: Vec::new(),
                    cut_tokens: 0,
                    cut_end: false,
                    proved: Err(violation),
                    ..encoded
                }])
            }
        })
    }

    /// Tokens of the longest sequence that `cutoff_len` would shorten, if there is one.
    fn is_over_length(&self, sequences: &[Sequence]) -> Option<usize> {
        let longest = sequences.iter().map(|sequence| sequence.tokens.len()).max();
        longest.filter(|&tokens| tokens > self.policy.cutoff_len)
    }

    fn too_long(&self, row: &Conversation, tokens: usize, what: &str) -> RowProblem {
        let reason = format!("{what} has {tokens} tokens, and `cutoff_len` is {}", self.policy.cutoff_len);
        RowProblem { origin: row.origin.clone(), reason }
    }

    fn encoded(&self, row: &Conversation, sequences: &[Sequence]) -> Encoded {
        let is_cut = |token: &LabelledToken| token.reason == Reason::Cut;
        let tokens = || sequences.iter().flat_map(|sequence| &sequence.tokens);
        let cut_tokens = tokens().filter(|token| is_cut(token)).count();
        let lost_its_end = |sequence: &Sequence| {
            let mut tokens = sequence.tokens.iter();
            let last = tokens.rfind(|token| matches!(token.mark.part, Part::Answer | Part::End));
            last.is_some_and(is_cut)
        };
        let first_prompt = |sequence: &Sequence| {
            let is_prompt = |token: &&LabelledToken| !matches!(token.mark.part, Part::Answer | Part::End);
            sequence.tokens.iter().take_while(is_prompt).count()
        };
        let examples = sequences.iter().filter_map(|sequence| labels::example(&sequence.tokens, &row.origin));
        let examples: Vec<Example> = examples.collect();
        Encoded {
            proved: proof::prove(self, row, &examples, cut_tokens > 0),
            examples,
            all_tokens: tokens().count(),
            cut_tokens,
            prompt_tokens: sequences.first().map_or(0, first_prompt),
            cut_end: sequences.iter().any(lost_its_end),
            border: tokens().any(|token| token.reason == Reason::Border),
            parted: sequences.iter().any(|sequence| sequence.parted),
            rewritten: sequences.len() > 1,
            hidden: tokens().any(|token| token.reason == Reason::NotShown),
        }
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
    /// Counts what became of a row, or of a part of it; returns its examples.
    fn add(&mut self, row: &Conversation, encoded: Encoded) -> Vec<Example> {
        let shortest = self.shortest_prompt.unwrap_or(usize::MAX);
        self.shortest_prompt = Some(shortest.min(encoded.prompt_tokens));
        if encoded.cut_tokens > 0 {
            self.cut.push(CutRow {
                origin: row.origin.clone(),
                lost: encoded.cut_tokens,
                of: encoded.all_tokens,
                lost_end: encoded.cut_end,
            });
        }
        self.cut_tokens += encoded.cut_tokens;
        self.cut_rows += usize::from(encoded.cut_tokens > 0);
        self.cut_ends += usize::from(encoded.cut_end);
        self.border_rows += usize::from(encoded.border);
        self.parted_rows += usize::from(encoded.parted);
        self.parted.extend(encoded.parted.then(|| row.origin.clone()));
        self.rewritten_rows += usize::from(encoded.rewritten);
        self.hidden_rows += usize::from(encoded.hidden);
        self.proof.add(encoded.proved);
        encoded.examples.iter().for_each(|example| self.count(example));
        encoded.examples
    }

    /// Adds what became of further rows.
    pub fn merge(&mut self, other: Self) {
        self.rows += other.rows;
        self.examples += other.examples;
        self.tokens += other.tokens;
        self.supervised += other.supervised;
        self.refused.extend(other.refused);
        self.untrained.extend(other.untrained);
        self.too_long.extend(other.too_long);
        self.split_rows += other.split_rows;
        self.cut.extend(other.cut);
        self.cut_rows += other.cut_rows;
        self.cut_tokens += other.cut_tokens;
        self.cut_ends += other.cut_ends;
        self.border_rows += other.border_rows;
        self.parted_rows += other.parted_rows;
        self.parted.extend(other.parted);
        self.rewritten_rows += other.rewritten_rows;
        self.hidden_rows += other.hidden_rows;
        self.shortest_prompt = self.shortest_prompt.into_iter().chain(other.shortest_prompt).min();
        self.proof.merge(other.proof);
        self.longest = self.longest.max(other.longest);
        for (length, count) in other.lengths {
            *self.lengths.entry(length).or_default() += count;
        }
    }

    pub(crate) fn count(&mut self, example: &Example) {
        self.examples += 1;
        self.tokens += example.len();
        self.supervised += example.supervised();
        self.longest = self.longest.max(example.len());
        *self.lengths.entry(example.len() / LENGTH_STEP * LENGTH_STEP).or_default() += 1;
    }

    /// Rows that did not become examples, and parts of rows that did not.
    pub fn dropped(&self) -> usize {
        self.refused.len() + self.untrained.len() + self.too_long.len()
    }
}
/// The prompts of a row's answers, each rendered once: where earlier ones end, later ones have a border.
pub(crate) struct Prompts<'a> {
    pipeline: &'a Pipeline,
    row: &'a Conversation,
    /// By the place of the answer; inside, `None` where the template refuses to ask.
    texts: Vec<Option<Option<String>>>,
}

impl<'a> Prompts<'a> {
    pub fn new(pipeline: &'a Pipeline, row: &'a Conversation) -> Self {
        Self { pipeline, row, texts: vec![None; row.messages.len()] }
    }

    /// Every text that may ask for the answer at `place`: with `enable_thinking: null` a reasoning template asks with an
    /// empty thought or without one.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn of(&mut self, place: usize) -> Result<Vec<Rendered>, String> {
        let mut prompt = self.alone(place)?;
        if let Template::Named(named) = &self.pipeline.template {
            let without = named.without_given_thought(&prompt);
            return Ok(std::iter::once(prompt).chain(without).collect());
        }
        if let [Segment::Text { text, borders, .. }] = &mut prompt.segments[..] {
            let answers = (0..place).filter(|place| self.row.messages[*place].role == Role::Assistant);
            let earlier: Vec<usize> = answers.collect();
            for place in earlier {
                let known = self.text(place);
                borders.extend(known.filter(|known| text.starts_with(*known)).map(str::len));
            }
            self.texts[place] = Some(Some(text.clone()));
        }
        Ok(vec![prompt])
    }

    fn text(&mut self, place: usize) -> Option<&str> {
        if self.texts[place].is_none() {
            let prompt = self.alone(place).ok();
            self.texts[place] = Some(prompt.map(|prompt| prompt.text(&self.pipeline.tokenizer)));
        }
        self.texts[place].as_ref()?.as_deref()
    }

    fn alone(&self, place: usize) -> Result<Rendered, String> {
        let Pipeline { template, tokenizer, policy, stops, .. } = self.pipeline;
        let (messages, tools) = (&self.row.messages[..place], self.row.tools.as_ref());
        template.render_prompt(tokenizer, (messages, false), tools, policy.mask_history, stops)
    }
}
