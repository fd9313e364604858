//! Lint: what is odd about the rows of a run, counted, with examples and their file and line.
//!
//! In: the rows as they were read and what became of them. Out: a [`Lint`] of [`Finding`]s, one for each
//! [`Kind`] that was found. Nothing is changed or dropped here; a limit on a kind makes it an error.

mod mojibake;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use rayon::prelude::*;
use serde::Serialize;

use crate::conversation::{Conversation, Message, Role};
use crate::dataset::LoadedData;
use crate::pipeline::EncodeReport;
use crate::rows::RowProblem;
use crate::tokenize::{Tokenizer, Which};

pub use mojibake::mojibake;

/// Examples kept of a finding.
const EXAMPLES: usize = 5;
/// Characters of a text that an example shows.
const SHOWN: usize = 60;

/// What can be odd about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It does not fit its format: a column is missing or of another type, roles are out of order.
    Malformed,
    /// The template refuses it.
    Refused,
    /// It would be trained otherwise than it is asked for.
    Unproved,
    /// Nothing of it is trained.
    Untrained,
    /// `cutoff_len` takes tokens away from it.
    Cut,
    /// `cutoff_len` takes the end of an answer away: the model learns not to stop.
    CutEnd,
    /// `cutoff_len` and `over_length` keep it out.
    TooLong,
    /// An answer says nothing and calls nothing.
    EmptyAnswer,
    /// A question says nothing.
    EmptyQuestion,
    /// The same messages stand in an earlier row.
    Duplicate,
    /// An earlier row asks the same and answers otherwise.
    OtherAnswer,
    /// The same messages are evaluated on.
    InEvaluation,
    /// The same question is evaluated on, with another answer.
    QuestionInEvaluation,
    /// Its text was decoded with the wrong character set.
    Mojibake,
    /// A message spells a special token; it stays text.
    SpecialToken,
    /// An answer spells what ends a turn; it is trained as text, before the end itself.
    EndInAnswer,
    /// As one text it has a token across the end of a prompt; it is tokenised on both sides of it.
    Parted,
    /// A column that the format does not read (counted: columns).
    UnreadColumn,
}

/// One kind of oddity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Rows it was found in.
    pub rows: usize,
    /// The rows that were looked at.
    pub of: usize,
    /// The first of them.
    pub examples: Vec<Place>,
}

/// A row with an oddity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// File and line, or a data set.
    pub at: String,
    /// What is odd there.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Lint {
    /// Rows to train on and to evaluate on.
    pub rows: (usize, usize),
    /// The oddities, the gravest kind first.
    pub findings: Vec<Finding>,
    /// Tokens lost to `cutoff_len`, and all tokens before.
    pub cut_tokens: (usize, usize),
    /// Malformed rows by what is wrong with them, the most frequent first.
    pub malformed: Vec<(String, usize)>,
}

/// How many rows of a kind are an error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// More than so many rows.
    Rows(usize),
    /// More than this part of the rows, 0 to 1.
    Fraction(f64),
}

impl Kind {
    /// Every kind, the gravest first.
    pub const ALL: [Self; 18] = [
        Self::Malformed,
        Self::Refused,
        Self::Unproved,
        Self::Untrained,
        Self::CutEnd,
        Self::Cut,
        Self::TooLong,
        Self::EmptyAnswer,
        Self::EmptyQuestion,
        Self::InEvaluation,
        Self::QuestionInEvaluation,
        Self::Duplicate,
        Self::OtherAnswer,
        Self::Mojibake,
        Self::EndInAnswer,
        Self::SpecialToken,
        Self::Parted,
        Self::UnreadColumn,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Refused => "refused",
            Self::Unproved => "unproved",
            Self::Untrained => "untrained",
            Self::Cut => "cut",
            Self::CutEnd => "cut-end",
            Self::TooLong => "too-long",
            Self::EmptyAnswer => "empty-answer",
            Self::EmptyQuestion => "empty-question",
            Self::Duplicate => "duplicate",
            Self::OtherAnswer => "other-answer",
            Self::InEvaluation => "in-evaluation",
            Self::QuestionInEvaluation => "question-in-evaluation",
            Self::Mojibake => "mojibake",
            Self::SpecialToken => "special-token",
            Self::EndInAnswer => "end-in-answer",
            Self::Parted => "parted",
            Self::UnreadColumn => "unread-column",
        }
    }

    /// The kind of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Malformed => "rows do not fit their format and are dropped",
            Self::Refused => "rows are refused by the template",
            Self::Unproved => "rows would be trained otherwise than they are asked for",
            Self::Untrained => "rows have no token to train",
            Self::Cut => "rows lose tokens to cutoff_len",
            Self::CutEnd => "rows lose the end of an answer to cutoff_len: the model learns not to stop",
            Self::TooLong => "rows are kept out: longer than cutoff_len",
            Self::EmptyAnswer => "rows have an empty answer",
            Self::EmptyQuestion => "rows have an empty question",
            Self::Duplicate => "rows repeat an earlier one",
            Self::OtherAnswer => "rows ask what an earlier one asks and answer otherwise",
            Self::InEvaluation => "training rows are evaluated on",
            Self::QuestionInEvaluation => "training rows ask what is evaluated on",
            Self::Mojibake => "rows hold text of the wrong character set",
            Self::SpecialToken => "rows spell a special token; it stays text",
            Self::EndInAnswer => {
                "rows spell the end of a turn in an answer: the model learns to write it as text"
            }
            Self::Parted => {
                "rows are tokenised on both sides of a prompt's end, where one token would lie across"
            }
            Self::UnreadColumn => "columns are not read",
        }
    }
}

impl Finding {
    /// Whether there are more than the limit allows.
    pub fn is_over(&self, limit: Limit) -> bool {
        match limit {
            Limit::Rows(rows) => self.rows > rows,
            Limit::Fraction(part) => self.rows as f64 > part * self.of as f64,
        }
    }
}

/// Looks at the rows of a run; `stops` are the ids of what ends an answer.
pub fn lint(
    data: &LoadedData,
    train: &EncodeReport,
    eval: Option<&EncodeReport>,
    tokenizer: &Tokenizer,
    stops: &[u32],
) -> Lint {
    let mut found = Found::default();
    found.problems(Kind::Malformed, &data.problems);
    for report in [Some(train), eval].into_iter().flatten() {
        found.encoded(report);
    }
    for set in &data.reports {
        for column in &set.unread_columns {
            found.add(Kind::UnreadColumn, format!("data set {}", set.name), column.clone());
        }
    }
    let all: Vec<&Conversation> = data.train.iter().chain(&data.eval).collect();
    let stops: Vec<String> = stops.iter().filter_map(|id| tokenizer.token_text(*id)).collect();
    let odd: Vec<Vec<(Kind, String)>> = all.par_iter().map(|row| in_row(row, tokenizer, &stops)).collect();
    for (row, odd) in all.iter().zip(odd) {
        odd.into_iter().for_each(|(kind, what)| found.add(kind, row.origin.to_string(), what));
    }
    found.repeated(&data.train, &data.eval);
    let read = data.reports.iter().map(|report| report.rows_read as usize).sum();
    let cut_tokens = train.cut_tokens + eval.map_or(0, |report| report.cut_tokens);
    let kept_tokens = train.tokens + eval.map_or(0, |report| report.tokens);
    Lint {
        rows: (data.train.len(), data.eval.len()),
        findings: found.findings(data.train.len(), all.len(), read),
        cut_tokens: (cut_tokens, cut_tokens + kept_tokens),
        malformed: by_reason(&data.problems),
    }
}

/// Oddities that a row shows by itself.
fn in_row(row: &Conversation, tokenizer: &Tokenizer, stops: &[String]) -> Vec<(Kind, String)> {
    let mut odd = Vec::new();
    let mut once = |kind: Kind, what: String| {
        if odd.iter().all(|(known, _)| *known != kind) {
            odd.push((kind, what));
        }
    };
    for (place, message) in (1..).zip(&row.messages) {
        let is_empty = message.content.trim().is_empty() && message.tool_calls.is_empty();
        match message.role {
            Role::Assistant if is_empty && message.reasoning.is_none() => {
                once(Kind::EmptyAnswer, format!("message {place}"));
            }
            Role::User if is_empty => once(Kind::EmptyQuestion, format!("message {place}")),
            _ => {}
        }
        if let Some(sample) = mojibake(&message.content) {
            once(Kind::Mojibake, format!("message {place}: {sample}"));
        }
        let (kind, which) = match message.role {
            Role::Assistant => (Kind::EndInAnswer, Which::These(stops)),
            Role::System | Role::User | Role::Tool => (Kind::SpecialToken, Which::All),
        };
        if tokenizer.typed().is_in(&message.content, which) {
            once(kind, format!("message {place}: {}", shortened(&message.content)));
        }
    }
    odd
}

/// What is wrong, without the parts in which rows differ, and how often.
fn by_reason(problems: &[RowProblem]) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for problem in problems {
        let mut general = String::new();
        for c in problem.reason.chars() {
            match c {
                '0'..='9' if general.ends_with('#') => {}
                '0'..='9' => general.push('#'),
                c => general.push(c),
            }
        }
        *counts.entry(general).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// Findings while they are gathered.
#[derive(Default)]
struct Found {
    kinds: BTreeMap<Kind, (usize, Vec<Place>)>,
}

impl Found {
    fn add(&mut self, kind: Kind, at: String, what: String) {
        let (rows, examples) = self.kinds.entry(kind).or_default();
        *rows += 1;
        if examples.len() < EXAMPLES {
            examples.push(Place { at, what });
        }
    }

    fn problems(&mut self, kind: Kind, problems: &[RowProblem]) {
        for problem in problems {
            self.add(kind, problem.origin.to_string(), problem.reason.clone());
        }
    }

    fn encoded(&mut self, report: &EncodeReport) {
        self.problems(Kind::Refused, &report.refused);
        self.problems(Kind::Untrained, &report.untrained);
        self.problems(Kind::TooLong, &report.too_long);
        for row in &report.cut {
            let kind = if row.lost_end { Kind::CutEnd } else { Kind::Cut };
            self.add(kind, row.origin.to_string(), format!("{} of {} tokens", row.lost, row.of));
        }
        for origin in &report.parted {
            self.add(Kind::Parted, origin.to_string(), "see `sft data show`".into());
        }
        let listed = report.proof.violations.len();
        for violation in &report.proof.violations {
            let what = format!("{}: {}", violation.rule.describe(), violation.reason);
            self.add(Kind::Unproved, violation.row.clone(), what);
        }
        if report.proof.violated_rows > listed {
            self.kinds.entry(Kind::Unproved).or_default().0 += report.proof.violated_rows - listed;
        }
    }

    /// Rows that repeat others.
    fn repeated(&mut self, train: &[Conversation], eval: &[Conversation]) {
        let keys = |rows: &[Conversation]| -> Vec<(u64, Option<u64>)> { rows.par_iter().map(keys).collect() };
        let evaluated = keys(eval);
        let wholes: HashMap<u64, usize> = evaluated.iter().enumerate().map(|(i, key)| (key.0, i)).collect();
        let asked: HashMap<u64, usize> =
            evaluated.iter().enumerate().filter_map(|(i, key)| Some((key.1?, i))).collect();
        let mut seen: HashMap<u64, usize> = HashMap::new();
        let mut questions: HashMap<u64, usize> = HashMap::new();
        for (i, (whole, question)) in keys(train).into_iter().enumerate() {
            let at = || train[i].origin.to_string();
            if let Some(&other) = wholes.get(&whole) {
                self.add(Kind::InEvaluation, at(), format!("as {}", eval[other].origin));
            } else if let Some(&other) = question.and_then(|question| asked.get(&question)) {
                self.add(Kind::QuestionInEvaluation, at(), format!("as {}", eval[other].origin));
            }
            if let Some(&earlier) = seen.get(&whole) {
                self.add(Kind::Duplicate, at(), format!("as {}", train[earlier].origin));
            } else if let Some(&earlier) = question.and_then(|question| questions.get(&question)) {
                self.add(Kind::OtherAnswer, at(), format!("as {}", train[earlier].origin));
            }
            seen.entry(whole).or_insert(i);
            if let Some(question) = question {
                questions.entry(question).or_insert(i);
            }
        }
    }

    fn findings(mut self, train: usize, all: usize, read: usize) -> Vec<Finding> {
        let finding = |kind: Kind| {
            let (rows, examples) = self.kinds.remove(&kind)?;
            let of = match kind {
                Kind::Malformed => read,
                Kind::Duplicate | Kind::OtherAnswer | Kind::InEvaluation | Kind::QuestionInEvaluation => {
                    train
                }
                _ => all,
            };
            Some(Finding { kind, rows, of, examples })
        };
        Kind::ALL.into_iter().filter_map(finding).collect()
    }
}

/// Hashes of a row: all messages and tools; and of these all but the last answer, if there is something before it (a text
/// of `stage: pt` asks nothing). White space at the ends of messages does not count.
fn keys(row: &Conversation) -> (u64, Option<u64>) {
    let digest = |messages: &[Message]| {
        let mut hasher = DefaultHasher::new();
        for message in messages {
            (message.role, message.content.trim()).hash(&mut hasher);
            message.reasoning.hash(&mut hasher);
            for call in &message.tool_calls {
                (&call.name, call.arguments.to_string()).hash(&mut hasher);
            }
        }
        row.tools.as_ref().map(ToString::to_string).hash(&mut hasher);
        hasher.finish()
    };
    let asked = row.messages.split_last().map(|(_, before)| before).filter(|before| !before.is_empty());
    (digest(&row.messages), asked.map(digest))
}

fn shortened(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{}{more}", short.escape_debug())
}
