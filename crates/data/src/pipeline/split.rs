//! Parts a conversation that is longer than `cutoff_len` between its turns (`over_length: split`).
//!
//! A part begins with the system message and a question of the user, and ends with an answer; it has as
//! many turns as fit. Its later turns do not see the turns of the part before. Tool calls and their results
//! stay with the question that led to them.

use super::{Pipeline, Sequence};
use crate::conversation::{Conversation, Role};
use crate::rows::RowProblem;

/// A part of a row that fits, and what becomes of it.
pub(super) type Part = (Conversation, Vec<Sequence>);

/// The parts that fit, and the turns that are too long by themselves.
pub(super) fn parts(pipeline: &Pipeline, row: &Conversation) -> (Vec<Part>, Vec<RowProblem>) {
    let system = usize::from(row.messages.first().is_some_and(|first| first.role == Role::System));
    let mut starts: Vec<usize> =
        (system..row.messages.len()).filter(|&place| row.messages[place].role == Role::User).collect();
    if starts.first() != Some(&system) {
        starts.insert(0, system);
    }
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([row.messages.len()]).collect();
    let part = |from: usize, to: usize| Conversation {
        messages: [&row.messages[..system], &row.messages[starts[from]..ends[to]]].concat(),
        ..row.clone()
    };
    let fitting = |from: usize, to: usize| -> Result<Part, RowProblem> {
        let conversation = part(from, to);
        let sequences = pipeline.sequences(&conversation)?;
        match pipeline.is_over_length(&sequences) {
            None => Ok((conversation, sequences)),
            Some(tokens) => Err(pipeline.too_long(row, tokens, &format!("turn {} alone", from + 1))),
        }
    };
    let (mut parts, mut problems) = (Vec::new(), Vec::new());
    let mut from = 0;
    while from < starts.len() {
        let mut best = fitting(from, from);
        let mut to = from;
        while best.is_ok() && to + 1 < starts.len() {
            let Ok(longer) = fitting(from, to + 1) else { break };
            (best, to) = (Ok(longer), to + 1);
        }
        match best {
            Ok(part) => parts.push(part),
            Err(problem) => problems.push(problem),
        }
        from = to + 1;
    }
    (parts, problems)
}
