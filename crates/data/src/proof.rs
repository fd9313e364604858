//! The proof: before the first step, every row is checked against what inference will ask.
//!
//! In: a row and the [`Example`]s made of it. Out: a [`RowProof`], or the [`Violation`] that stops the run.
//! The check reads ids and labels as training will, and asks anew what inference renders; it shares
//! nothing with [`crate::labels`], so a fault there is found here. The rules are those of [`Rule`].
//!
//! Rows that `cutoff_len` shortens are counted, not proved: their prompts are no longer what is asked.
//! Nor is a row proved beyond its stop tokens under `train_on_prompt`, which trains all of it.

mod answer;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::conversation::{Conversation, Message, Origin, Role};
use crate::error::DataError;
use crate::labels::{Example, IGNORE_INDEX};
use crate::pipeline::{ExplainedToken, Pipeline, Prompts};
use crate::tokenize::Which;

/// How many violations are kept; all are counted.
const KEPT: usize = 10;

/// What holds for every row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The prompt that inference renders is a token prefix of what is trained.
    PromptIsPrefix,
    /// Every supervised token is assistant text or the token that ends it, and is its own label.
    SupervisedIsAnswer,
    /// Every answer that is to be trained is, whole, once.
    AnswerIsTrained,
    /// The token that ends an answer is trained.
    StopIsTrained,
    /// A beginning-of-sequence token stands where the template writes one, never twice.
    OneBos,
    /// Special tokens that a message spells are text.
    TypedIsText,
    /// Nothing is cut off (`over_length: refuse`).
    NothingIsCut,
}

/// What was found to hold for all rows; stored with the run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Proof {
    /// Rows checked.
    pub rows: usize,
    /// Examples checked; more than rows where answers are trained apart.
    pub examples: usize,
    /// Answers whose prompt is a token prefix and whose tokens were compared.
    pub answers: usize,
    /// Supervised tokens.
    pub supervised: usize,
    /// Rows that `cutoff_len` shortens: what is trained of them is not what is asked.
    pub cut_rows: usize,
    /// Answers without a token that stops them: the template writes none there.
    pub answers_without_stop: usize,
    /// Rows in which messages spell special tokens; they stay text.
    pub typed_rows: usize,
    /// Rows that break a rule.
    pub violated_rows: usize,
    /// The first of them.
    pub violations: Vec<Violation>,
}

/// What was found of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowProof {
    examples: usize,
    answers: usize,
    supervised: usize,
    is_cut: bool,
    answers_without_stop: usize,
    is_typed: bool,
}

/// A row that breaks a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// Data set, file and line of the row.
    pub row: String,
    /// What is wrong, in words.
    pub reason: String,
    /// The row as it would have been trained.
    #[serde(skip)]
    pub tokens: Vec<ExplainedToken>,
}

impl Rule {
    /// The rule in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::PromptIsPrefix => "the prompt of inference is not the beginning of what is trained",
            Self::SupervisedIsAnswer => "a token is trained that is not the assistant's",
            Self::AnswerIsTrained => "an answer is not trained whole",
            Self::StopIsTrained => "the token that ends an answer is not trained",
            Self::OneBos => "there is a beginning-of-sequence token too many",
            Self::TypedIsText => "a special token typed into a message became special",
            Self::NothingIsCut => "the row is longer than `cutoff_len`",
        }
    }

    /// What to do about it.
    pub fn help(self) -> &'static str {
        match self {
            Self::PromptIsPrefix => {
                "see `sft data show`; with thoughts in the answers set `enable_thinking: true`, or take another `template`"
            }
            Self::SupervisedIsAnswer | Self::AnswerIsTrained | Self::OneBos | Self::TypedIsText => {
                "see `sft data show`; take another `template`, or the model's own with `template: auto`"
            }
            Self::NothingIsCut => "raise `cutoff_len`, or set `over_length` to truncate, drop or split",
            Self::StopIsTrained => {
                "take a `template` that ends answers, or name the end-of-turn token in generation_config.json"
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.row, self.rule.describe(), self.reason)
    }
}

impl Proof {
    /// Whether every row that is not cut keeps every rule.
    pub fn holds(&self) -> bool {
        self.violated_rows == 0
    }

    /// Refuses data that breaks a rule.
    ///
    /// # Errors
    /// [`DataError::Unproved`].
    pub fn require(&self) -> Result<(), DataError> {
        match self.holds() {
            true => Ok(()),
            false => Err(DataError::Unproved { proof: Box::new(self.clone()) }),
        }
    }

    /// Adds what was found of further rows.
    pub fn merge(&mut self, other: Self) {
        self.rows += other.rows;
        self.examples += other.examples;
        self.answers += other.answers;
        self.supervised += other.supervised;
        self.cut_rows += other.cut_rows;
        self.answers_without_stop += other.answers_without_stop;
        self.typed_rows += other.typed_rows;
        self.violated_rows += other.violated_rows;
        let room = KEPT.saturating_sub(self.violations.len());
        self.violations.extend(other.violations.into_iter().take(room));
    }

    /// Counts a row.
    pub fn add(&mut self, row: Result<RowProof, Violation>) {
        self.rows += 1;
        match row {
            Ok(row) => {
                self.examples += row.examples;
                self.answers += row.answers;
                self.supervised += row.supervised;
                self.cut_rows += usize::from(row.is_cut);
                self.answers_without_stop += row.answers_without_stop;
                self.typed_rows += usize::from(row.is_typed);
            }
            Err(violation) => {
                self.violated_rows += 1;
                if self.violations.len() < KEPT {
                    self.violations.push(violation);
                }
            }
        }
    }
}

/// Checks the examples of a row. `is_cut`: `cutoff_len` shortened it.
///
/// # Errors
/// The first rule that it breaks.
pub fn prove(
    pipeline: &Pipeline,
    row: &Conversation,
    examples: &[Example],
    is_cut: bool,
) -> Result<RowProof, Violation> {
    check(pipeline, row, examples, is_cut).map_err(|fault| violation(pipeline, row, fault))
}

/// A broken rule, and how.
type Fault = (Rule, String);

pub(crate) fn violation(pipeline: &Pipeline, row: &Conversation, (rule, reason): Fault) -> Violation {
    let Origin { dataset, row: number, .. } = &row.origin;
    Violation {
        rule,
        row: format!("{dataset} row {number} ({})", row.origin),
        reason,
        tokens: pipeline.explain(row).unwrap_or_default(),
    }
}

fn check(
    pipeline: &Pipeline,
    row: &Conversation,
    examples: &[Example],
    is_cut: bool,
) -> Result<RowProof, Fault> {
    let mut proof = RowProof { examples: examples.len(), is_cut, ..RowProof::default() };
    proof.is_typed = spells_special_tokens(pipeline, &row.messages);
    for example in examples {
        proof.supervised += example.supervised();
        check_bos(pipeline, example)?;
        check_labels(pipeline, example)?;
    }
    if is_cut || pipeline.policy().train_on_prompt {
        return Ok(proof);
    }
    let mut explained: Vec<Vec<bool>> =
        examples.iter().map(|example| vec![false; example.input_ids.len()]).collect();
    let mut prompts = Prompts::new(pipeline, row);
    for place in trained_answers(pipeline, &row.messages) {
        let found = answer::check(pipeline, (row, &mut prompts), place, examples, &mut explained)?;
        proof.answers += usize::from(found.is_trained);
        proof.answers_without_stop += usize::from(found.is_trained && !found.is_stopped);
    }
    for (example, explained) in examples.iter().zip(explained) {
        let is_trained = |t: &usize| example.labels[*t] != IGNORE_INDEX;
        if let Some(t) = (1..example.len()).filter(is_trained).find(|&t| !explained[t]) {
            let token = pipeline.tokenizer().text_of(example.input_ids[t]);
            return Err((
                Rule::SupervisedIsAnswer,
                format!("token {t} `{}` is trained", token.escape_debug()),
            ));
        }
    }
    Ok(proof)
}

/// Places of the messages that are to be trained.
fn trained_answers(pipeline: &Pipeline, messages: &[Message]) -> Vec<usize> {
    let answers = || (0..messages.len()).filter(|&place| messages[place].role == Role::Assistant);
    let last = answers().next_back();
    let is_trained = |place: &usize| match messages[*place].weight {
        Some(weight) => weight > 0.0,
        None => !pipeline.policy().mask_history || Some(*place) == last,
    };
    answers().filter(is_trained).collect()
}

fn spells_special_tokens(pipeline: &Pipeline, messages: &[Message]) -> bool {
    let typed = pipeline.tokenizer().typed();
    let given = messages.iter().filter(|message| message.role != Role::Assistant);
    given.into_iter().any(|message| typed.is_in(&message.content, Which::All))
}

/// Two beginning-of-sequence tokens never follow each other; one elsewhere is found by the other rules.
fn check_bos(pipeline: &Pipeline, example: &Example) -> Result<(), Fault> {
    let bos = pipeline.tokenizer().bos_id().filter(|bos| !pipeline.stop_ids().contains(bos));
    let pairs = || example.input_ids.windows(2);
    match bos.and_then(|bos| pairs().position(|pair| pair == [bos, bos])) {
        Some(t) => Err((Rule::OneBos, format!("tokens {t} and {} are both one", t + 1))),
        None => Ok(()),
    }
}

/// A label is the token itself, or the end of the answer before (`efficient_eos`).
fn check_labels(pipeline: &Pipeline, example: &Example) -> Result<(), Fault> {
    let labels = &example.labels;
    let is_foreign = |&t: &usize| {
        let label = labels[t];
        let is_end = || {
            let follows = t > 0 && labels[t - 1] != IGNORE_INDEX;
            follows && pipeline.template().shared_end().is_some_and(|end| end as i32 == label)
        };
        label != IGNORE_INDEX && label != example.input_ids[t] as i32 && !is_end()
    };
    match (0..labels.len()).find(is_foreign) {
        Some(t) => {
            Err((Rule::SupervisedIsAnswer, format!("the label of token {t} is {}, not the token", labels[t])))
        }
        None => Ok(()),
    }
}
