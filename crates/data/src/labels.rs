//! Labels (stage 6 of the walk): tokens with spans + supervision policy → [`Example`].
//!
//! This file alone decides which tokens are trained, what is cut off, and why. The rules are
//! LLaMA-Factory's: an answer and its end token are trained, everything else is ignored;
//! `train_on_prompt` trains all, `mask_history` the last turn only; `cutoff_len` is shared out turn by
//! turn (see [`shares`]). A row can switch a message off by itself, or say how much its tokens count.

use crate::conversation::Origin;
use crate::template::{Mark, Part, Rendered, Turn};
use crate::tokenize::MarkedToken;

/// The label of a token that is not trained: torch's and Hugging Face's `ignore_index`.
pub const IGNORE_INDEX: i32 = -100;

/// A row ready for training, in Hugging Face's alignment: `labels[t]` belongs to `input_ids[t]`.
/// The shift by one token is made in [`crate::pack`] and nowhere else.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids, `[N]`.
    pub input_ids: Vec<u32>,
    /// The id where the token is trained, else [`IGNORE_INDEX`], `[N]`.
    pub labels: Vec<i32>,
    /// How much each trained token counts in the loss, 1 at the others, `[N]`; empty where all count the same, 1.
    pub weights: Vec<f32>,
    /// The row it was made of (the first, where several were joined).
    pub origin: Origin,
}

impl Example {
    /// Number of tokens, N.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Tokens that count in the loss: labels that are not ignored, the first token apart, which no
    /// token predicts.
    pub fn supervised(&self) -> usize {
        let predicted = self.labels.iter().skip(1);
        predicted.filter(|&&label| label != IGNORE_INDEX).count()
    }
}

/// What becomes of a row longer than `cutoff_len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OverLength {
    /// It is cut by LLaMA-Factory's rule (see [`shares`]).
    #[default]
    Truncate,
    /// It is left out, and counted.
    Drop,
    /// A conversation is parted between turns; what is still too long is left out, and counted.
    Split,
    /// It stops the run.
    Refuse,
}

/// Which tokens are trained, and how long a row may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Longest row in tokens (`cutoff_len`).
    pub cutoff_len: usize,
    /// Trains every token (`train_on_prompt`).
    pub train_on_prompt: bool,
    /// Trains the last turn only, and cuts earlier turns first (`mask_history`).
    pub mask_history: bool,
    /// What becomes of longer rows (`over_length`).
    pub over_length: OverLength,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            cutoff_len: 2048,
            train_on_prompt: false,
            mask_history: false,
            over_length: OverLength::Truncate,
        }
    }
}

/// Why a token has its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Trained: words of an answer.
    Answer,
    /// Trained: what ends an answer.
    End,
    /// Trained: `train_on_prompt`.
    PromptTrained,
    /// Trained to be the end token of the answer before it, which does not stand in the text
    /// (`efficient_eos`).
    EndOfLastAnswer,
    /// Ignored: given to the model.
    Prompt,
    /// Ignored: the answer of an earlier turn (`mask_history`).
    History,
    /// Ignored: the template shows this earlier answer otherwise than it is asked for, so it is trained in
    /// a row of its own.
    Apart,
    /// Ignored: the row says that this message is not trained.
    SwitchedOff,
    /// Ignored: the template leaves out the answer that this ends.
    NotShown,
    /// Ignored: the token joins characters of an answer with others, so inference never makes it.
    Border,
    /// Not in the row: over `cutoff_len`.
    Cut,
}

impl Reason {
    /// Whether the token is trained.
    pub fn is_trained(self) -> bool {
        matches!(self, Self::Answer | Self::End | Self::PromptTrained | Self::EndOfLastAnswer)
    }
}

/// A token with its label and the reason for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelledToken {
    /// Its id.
    pub id: u32,
    /// The id to learn here, or [`IGNORE_INDEX`].
    pub label: i32,
    /// How much it counts in the loss, if it is trained; else 1.
    pub weight: f32,
    /// Why.
    pub reason: Reason,
    /// Its turn, and what it is.
    pub mark: Mark,
}

/// Labels every token; those over `cutoff_len` are [`Reason::Cut`] and not part of the row.
pub fn label(tokens: &[MarkedToken], rendered: &Rendered, policy: &Policy) -> Vec<LabelledToken> {
    let lengths = turn_lengths(tokens, rendered.turns.len());
    let reserved = usize::from(rendered.shared_end.is_some());
    let kept = shares(&lengths, policy, reserved);
    let last_answered = tokens.iter().rev().find(|token| token.is_target);
    let last_turn = last_answered.map_or(0, |token| token.mark.turn);
    let mut out: Vec<LabelledToken> = Vec::with_capacity(tokens.len() + reserved);
    let mut seen = vec![(0, 0); lengths.len()];
    for token in tokens {
        let turn = token.mark.turn as usize;
        let (seen, kept) = (&mut seen[turn], kept[turn]);
        let is_kept = match token.is_target {
            true => seen.1 < kept.1,
            false => seen.0 < kept.0,
        };
        let begins_turn = *seen == (0, 0);
        match token.is_target {
            true => seen.1 += 1,
            false => seen.0 += 1,
        }
        let reason = match is_kept {
            true => reason(token, &rendered.turns[turn], last_turn, policy),
            false => Reason::Cut,
        };
        let is_answer = matches!(token.mark.part, Part::Answer | Part::End) && reason.is_trained();
        let mut labelled = LabelledToken {
            id: token.id,
            label: if reason.is_trained() { token.id as i32 } else { IGNORE_INDEX },
            weight: rendered.turns[turn].weight.filter(|_| is_answer).unwrap_or(1.0),
            reason,
            mark: token.mark,
        };
        if let Some(end) = rendered.shared_end
            && begins_turn
            && is_kept
            && turn > 0
            && !policy.mask_history
            && rendered.turns[turn - 1].is_wanted() != Some(false)
        {
            (labelled.label, labelled.reason) = (end as i32, Reason::EndOfLastAnswer);
            labelled.weight = rendered.turns[turn - 1].weight.unwrap_or(1.0);
        }
        out.push(labelled);
    }
    out.extend(rendered.shared_end.map(|end| {
        let weight = rendered.turns.get(last_turn as usize).and_then(|turn| turn.weight).unwrap_or(1.0);
        let (label, weight, reason) = match weight > 0.0 {
            true => (end as i32, weight, Reason::End),
            false => (IGNORE_INDEX, 1.0, Reason::SwitchedOff),
        };
        LabelledToken { id: end, label, weight, reason, mark: Mark { turn: last_turn, part: Part::End } }
    }));
    out
}

/// The one decision: is this token trained?
fn reason(token: &MarkedToken, turn: &Turn, last_turn: u32, policy: &Policy) -> Reason {
    let is_earlier = token.mark.turn != last_turn;
    let is_history = policy.mask_history && is_earlier;
    match token.mark.part {
        Part::Answer | Part::End if turn.is_wanted() == Some(false) => Reason::SwitchedOff,
        Part::Prompt | Part::Border if policy.train_on_prompt => Reason::PromptTrained,
        Part::Prompt => Reason::Prompt,
        Part::Border => Reason::Border,
        Part::Answer | Part::End if turn.hidden => Reason::NotShown,
        Part::Answer | Part::End if is_history && turn.is_wanted() != Some(true) => Reason::History,
        Part::Answer | Part::End if turn.rewritten && is_earlier && !policy.train_on_prompt => Reason::Apart,
        Part::Answer => Reason::Answer,
        Part::End => Reason::End,
    }
}

/// The messages, by place, whose answers the row shows otherwise than they are asked for, and that are to
/// be trained: each gets a row that ends with it.
pub fn apart(tokens: &[MarkedToken], rendered: &Rendered, policy: &Policy) -> Vec<usize> {
    let last_answered = tokens.iter().rev().find(|token| token.is_target);
    let last_turn = last_answered.map_or(0, |token| token.mark.turn as usize);
    let earlier = rendered.turns.iter().take(last_turn);
    let is_trained = |turn: &&Turn| match turn.is_wanted() {
        Some(wanted) => wanted,
        None => !policy.mask_history,
    };
    let apart = earlier.filter(|turn| turn.rewritten && !turn.hidden && !policy.train_on_prompt);
    apart.filter(is_trained).filter_map(|turn| turn.message).collect()
}

/// Tokens given and answered, a turn.
fn turn_lengths(tokens: &[MarkedToken], turns: usize) -> Vec<(usize, usize)> {
    let mut lengths = vec![(0, 0); turns];
    for token in tokens {
        let (given, answered) = &mut lengths[token.mark.turn as usize];
        match token.is_target {
            true => *answered += 1,
            false => *given += 1,
        }
    }
    lengths
}

/// How many tokens of each turn's (given, answered) are kept: the heads of both.
///
/// LLaMA-Factory's rule: turn by turn (the last first with `mask_history`), what is left of
/// `cutoff_len` is shared by [`share`]; turns after it is used up are dropped.
fn shares(lengths: &[(usize, usize)], policy: &Policy, reserved: usize) -> Vec<(usize, usize)> {
    let mut kept = vec![(0, 0); lengths.len()];
    let mut used = reserved;
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    if policy.mask_history {
        order.reverse();
    }
    for turn in order {
        if used >= policy.cutoff_len {
            break;
        }
        kept[turn] = share(lengths[turn], policy.cutoff_len - used);
        used += kept[turn].0 + kept[turn].1;
    }
    kept
}

/// Shares `room` tokens between what is given and what is answered (LLaMA-Factory's `infer_seqlen`):
/// a short answer is kept whole, else a short prompt, else both are cut in proportion.
fn share((given, answered): (usize, usize), room: usize) -> (usize, usize) {
    let most = if answered * 2 < room {
        room
    } else if given * 2 < room {
        room - given
    } else {
        // As Python computes it: a division of floats, then the product, cut to an integer.
        (room as f64 * (answered as f64 / (given + answered) as f64)) as usize
    };
    let answered = answered.min(most);
    (given.min(room - answered.min(room)), answered)
}

/// The row's example; `None` if nothing of it is trained. `cut` tokens are left out.
pub fn example(tokens: &[LabelledToken], origin: &Origin) -> Option<Example> {
    let kept = || tokens.iter().filter(|token| token.reason != Reason::Cut);
    let (input_ids, labels) = kept().map(|token| (token.id, token.label)).unzip();
    let weights = match kept().any(|token| token.weight != 1.0) {
        true => kept().map(|token| token.weight).collect(),
        false => Vec::new(),
    };
    let example = Example { input_ids, labels, weights, origin: origin.clone() };
    (example.supervised() > 0).then_some(example)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn origin() -> Origin {
        Origin {
            dataset: "made_up".into(),
            file: std::sync::Arc::new("made_up.json".into()),
            line: 1,
            row: 0,
        }
    }

    pub(crate) fn example(input_ids: &[u32], labels: &[i32]) -> Example {
        Example {
            input_ids: input_ids.to_vec(),
            labels: labels.to_vec(),
            weights: Vec::new(),
            origin: origin(),
        }
    }

    /// Turns of prompts and answers of the given lengths, ids counted from 0; each answer's last
    /// token is its end.
    fn turns(lengths: &[(usize, usize)]) -> (Vec<MarkedToken>, Rendered) {
        let mut tokens = Vec::new();
        for (turn, &(given, answered)) in lengths.iter().enumerate() {
            for i in 0..given + answered {
                let part = match i {
                    i if i < given => Part::Prompt,
                    i if i + 1 < given + answered => Part::Answer,
                    _ => Part::End,
                };
                let mark = Mark { turn: turn as u32, part };
                tokens.push(MarkedToken { id: tokens.len() as u32, mark, is_target: i >= given });
            }
        }
        let turn = Turn { message: None, weight: None, rewritten: false, hidden: false };
        let turns = vec![turn; lengths.len()];
        (tokens, Rendered { turns, ..Rendered::default() })
    }

    fn labels(lengths: &[(usize, usize)], policy: Policy) -> Vec<i32> {
        let (tokens, rendered) = turns(lengths);
        let labelled = label(&tokens, &rendered, &policy);
        super::example(&labelled, &origin()).unwrap().labels
    }

    // Values printed by LLaMA-Factory 0.9.5's `infer_seqlen`.
    #[test]
    fn room_is_shared_as_llama_factory_shares_it() {
        for (given, answered, room, expected) in [
            (3000, 100, 2048, (1948, 100)),
            (3000, 1500, 2048, (1366, 682)),
            (100, 3000, 2048, (100, 1948)),
            (1000, 1100, 2048, (1000, 1048)),
            (1500, 900, 2048, (1148, 900)),
            (10, 0, 4, (4, 0)),
            (0, 10, 4, (0, 4)),
            (1, 1, 1, (1, 0)),
        ] {
            assert_eq!(share((given, answered), room), expected, "{given} {answered} {room}");
        }
    }

    #[test]
    fn prompts_are_ignored_and_answers_with_their_end_are_trained() {
        let labels = labels(&[(2, 2), (1, 2)], Policy::default());
        assert_eq!(labels, [-100, -100, 2, 3, -100, 5, 6]);
    }

    #[test]
    fn train_on_prompt_trains_everything() {
        let policy = Policy { train_on_prompt: true, ..Policy::default() };
        assert_eq!(labels(&[(2, 1), (1, 1)], policy), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn mask_history_trains_the_last_turn_and_keeps_it_longest() {
        let policy = Policy { mask_history: true, ..Policy::default() };
        assert_eq!(labels(&[(1, 2), (1, 2)], policy), [-100, -100, -100, -100, 4, 5]);
        let short = Policy { cutoff_len: 4, ..policy };
        let (tokens, rendered) = turns(&[(2, 2), (1, 2)]);
        let kept: Vec<u32> = label(&tokens, &rendered, &short)
            .iter()
            .filter(|token| token.reason != Reason::Cut)
            .map(|token| token.id)
            .collect();
        assert_eq!(kept, [0, 4, 5, 6]);
    }

    #[test]
    fn turns_over_the_cutoff_are_dropped() {
        let policy = Policy { cutoff_len: 5, ..Policy::default() };
        assert_eq!(labels(&[(2, 2), (3, 3)], policy), [-100, -100, 2, 3, -100]);
    }

    #[test]
    fn a_message_switched_off_is_not_trained() {
        let (tokens, mut rendered) = turns(&[(1, 2), (1, 2)]);
        rendered.turns[0].weight = Some(0.0);
        let labelled = label(&tokens, &rendered, &Policy::default());
        assert_eq!(labelled[1].reason, Reason::SwitchedOff);
        assert_eq!(labelled[4].reason, Reason::Answer);
        let all = Policy { train_on_prompt: true, ..Policy::default() };
        let reasons: Vec<Reason> = label(&tokens, &rendered, &all).iter().map(|token| token.reason).collect();
        assert_eq!(reasons[..3], [Reason::PromptTrained, Reason::SwitchedOff, Reason::SwitchedOff]);
    }

    #[test]
    fn a_message_switched_on_is_trained_though_history_is_masked() {
        let (tokens, mut rendered) = turns(&[(1, 2), (1, 2), (1, 2)]);
        rendered.turns[1].weight = Some(1.0);
        let policy = Policy { mask_history: true, ..Policy::default() };
        let labelled = label(&tokens, &rendered, &policy);
        assert_eq!([1, 4, 7].map(|i| labelled[i].reason), [Reason::History, Reason::Answer, Reason::Answer]);
    }

    #[test]
    fn a_shared_end_is_the_label_of_the_next_turn_and_stands_last() {
        let (tokens, mut rendered) = turns(&[(1, 1), (1, 1)]);
        rendered.shared_end = Some(9);
        let labelled = label(&tokens, &rendered, &Policy::default());
        let row = super::example(&labelled, &origin()).unwrap();
        assert_eq!(row.input_ids, [0, 1, 2, 3, 9]);
        assert_eq!(row.labels, [-100, 1, 9, 3, 9]);
    }

    #[test]
    fn an_answer_counts_as_much_as_its_message_says() {
        let (tokens, mut rendered) = turns(&[(1, 2), (1, 2), (1, 2)]);
        (rendered.turns[0].weight, rendered.turns[1].weight) = (Some(0.25), Some(0.0));
        let of = |policy| super::example(&label(&tokens, &rendered, &policy), &origin()).unwrap();
        let row = of(Policy::default());
        assert_eq!(row.labels, [-100, 1, 2, -100, -100, -100, -100, 7, 8]);
        assert_eq!(row.weights, [1.0, 0.25, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        // The weight is the answer's: a prompt that is trained counts 1.
        let all = of(Policy { train_on_prompt: true, ..Policy::default() });
        assert_eq!((all.labels[0], all.weights[0], all.weights[1]), (0, 1.0, 0.25));
        // Where nothing is said otherwise there are no weights at all.
        rendered.turns.iter_mut().for_each(|turn| turn.weight = None);
        assert!(
            super::example(&label(&tokens, &rendered, &Policy::default()), &origin())
                .unwrap()
                .weights
                .is_empty()
        );
    }

    #[test]
    fn a_shared_end_counts_as_much_as_the_answer_that_it_ends() {
        let (tokens, mut rendered) = turns(&[(1, 1), (1, 1), (1, 1)]);
        rendered.shared_end = Some(9);
        let weights = [Some(0.0), Some(0.5), Some(2.0)];
        rendered.turns.iter_mut().zip(weights).for_each(|(turn, weight)| turn.weight = weight);
        let row = super::example(&label(&tokens, &rendered, &Policy::default()), &origin()).unwrap();
        assert_eq!(row.labels, [-100, -100, -100, 3, 9, 5, 9]);
        assert_eq!(row.weights, [1.0, 1.0, 1.0, 0.5, 0.5, 2.0, 2.0]);
    }

    #[test]
    fn a_row_with_nothing_to_train_is_no_example() {
        let (tokens, rendered) = turns(&[(50, 1)]);
        let labelled = label(&tokens, &rendered, &Policy { cutoff_len: 1, ..Policy::default() });
        assert_eq!(super::example(&labelled, &origin()), None);
    }
}
