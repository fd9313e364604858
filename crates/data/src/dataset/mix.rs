//! How several data sets become one (`mix_strategy`, `interleave_probs`).
//!
//! In: their lengths, or ends as they are met. Out: which data set gives the next row. The orders are those of
//! Hugging Face's `interleave_datasets`, which LLaMA-Factory calls: by turns, or drawn from NumPy's generator.

use crate::error::DataError;
use crate::shuffle::Pcg64;

/// Rows of a mix at most: beyond it is a slip of the pen that memory would not hold.
const MOST_ROWS: usize = if cfg!(test) { 1_000 } else { 100_000_000 };

/// The rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MixStrategy {
    /// One after the other.
    #[default]
    Concat,
    /// By turns until one has ended (`first_exhausted`).
    InterleaveUnder,
    /// By turns until all have ended; shorter ones begin anew (`all_exhausted`).
    InterleaveOver,
    /// By turns until all have ended, each row once (`all_exhausted_without_replacement`).
    InterleaveOnce,
}

/// The rule, and how likely each data set is to give the next row; none: in turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mix {
    /// The rule.
    pub strategy: MixStrategy,
    /// A probability for each data set, 1 in all; empty takes them in turn.
    pub probabilities: Vec<f64>,
}

impl Mix {
    /// Refuses probabilities that do not fit `sets` data sets, or with which the mix would not end.
    ///
    /// # Errors
    /// [`DataError::Option`].
    pub fn check(&self, sets: usize) -> Result<(), DataError> {
        let refuse = |reason: String, help: &str| {
            Err(DataError::Option { key: "interleave_probs", reason, help: help.to_owned() })
        };
        if self.strategy == MixStrategy::Concat || self.probabilities.is_empty() || sets < 2 {
            return Ok(());
        }
        if self.probabilities.len() != sets {
            let shares = self.probabilities.len();
            return refuse(
                format!("{shares} numbers for {sets} data sets"),
                "give one number for each data set",
            );
        }
        let never = self.probabilities.iter().position(|share| *share <= 0.0);
        match never.filter(|_| self.strategy != MixStrategy::InterleaveUnder) {
            Some(set) => refuse(
                format!("data set {} has probability 0, so it would never end", set + 1),
                "leave the data set out, or use `mix_strategy: interleave_under`",
            ),
            None => Ok(()),
        }
    }
}

/// Which data set gives the next row.
#[derive(Debug, Clone)]
pub(super) struct Mixer {
    strategy: MixStrategy,
    turns: Turns,
    ended: Vec<bool>,
    /// Whether a round of turns is always completed: so in memory, not in streams, as in Hugging Face's two ways.
    whole_rounds: bool,
}

#[derive(Debug, Clone)]
enum Turns {
    InTurn { next: usize },
    Drawn { rng: Pcg64, bounds: Vec<f64> },
}

impl Mixer {
    pub(super) fn new(mix: &Mix, sets: usize, rng: Pcg64, whole_rounds: bool) -> Self {
        let turns = match mix.probabilities.as_slice() {
            [] => Turns::InTurn { next: 0 },
            shares => Turns::Drawn { rng, bounds: bounds(shares) },
        };
        Self { strategy: mix.strategy, turns, ended: vec![false; sets], whole_rounds }
    }

    /// The data set that gives the next row; `None` at the end of the mix.
    pub(super) fn next(&mut self) -> Option<usize> {
        loop {
            if self.is_over() {
                return None;
            }
            let set = match &mut self.turns {
                Turns::InTurn { next } => std::mem::replace(next, (*next + 1) % self.ended.len()),
                Turns::Drawn { rng, bounds } => {
                    let drawn = rng.random();
                    bounds.partition_point(|bound| *bound <= drawn).min(self.ended.len() - 1)
                }
            };
            let is_spent =
                self.ended[set] && matches!(self.strategy, MixStrategy::InterleaveOnce | MixStrategy::Concat);
            if !is_spent {
                return Some(set);
            }
        }
    }

    /// Says that the row just taken was the last of its data set; whether that begins anew.
    pub(super) fn ended(&mut self, set: usize) -> bool {
        self.ended[set] = true;
        matches!(self.strategy, MixStrategy::InterleaveUnder | MixStrategy::InterleaveOver)
    }

    fn is_over(&self) -> bool {
        let in_round = self.whole_rounds && matches!(self.turns, Turns::InTurn { next } if next > 0);
        match self.strategy {
            MixStrategy::InterleaveUnder => self.ended.contains(&true) && !in_round,
            MixStrategy::InterleaveOver => self.ended.iter().all(|ended| *ended) && !in_round,
            MixStrategy::InterleaveOnce | MixStrategy::Concat => self.ended.iter().all(|ended| *ended),
        }
    }
}

/// Running sums of the probabilities, the last of them 1: NumPy's `Generator.choice`.
fn bounds(shares: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let sums: Vec<f64> = shares
        .iter()
        .map(|share| {
            sum += share;
            sum
        })
        .collect();
    sums.into_iter().map(|bound| bound / sum).collect()
}

/// The rows of all data sets, as (data set, row), in the order of the mix.
///
/// # Errors
/// [`DataError::Option`] where probabilities make the mix longer than [`MOST_ROWS`].
pub(super) fn order(lengths: &[usize], mix: &Mix, seed: u64) -> Result<Vec<(usize, usize)>, DataError> {
    if mix.strategy == MixStrategy::Concat || lengths.len() < 2 {
        let rows = lengths.iter().enumerate();
        return Ok(rows.flat_map(|(set, length)| (0..*length).map(move |row| (set, row))).collect());
    }
    let mut mixer = Mixer::new(mix, lengths.len(), Pcg64::new(seed), true);
    let mut at = vec![0; lengths.len()];
    let mut order = Vec::new();
    while let Some(set) = mixer.next() {
        if order.len() == MOST_ROWS {
            return Err(DataError::Option {
                key: "interleave_probs",
                reason: format!("the mix has more than {MOST_ROWS} rows before all data sets have ended"),
                help: "give rare data sets a larger number, or use `mix_strategy: interleave_under`"
                    .to_owned(),
            });
        }
        order.push((set, at[set]));
        at[set] += 1;
        if at[set] == lengths[set] {
            mixer.ended(set);
            at[set] = 0;
        }
    }
    Ok(order)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    /// Printed by `datasets` 5.2; `tests/make_mix_orders.py` makes it.
    pub(crate) const GOLDENS: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mix_orders.json"));

    pub(crate) fn mix_of(case: &Value) -> Mix {
        let strategy = match case["mix_strategy"].as_str() {
            Some("interleave_under") => MixStrategy::InterleaveUnder,
            Some("interleave_over") => MixStrategy::InterleaveOver,
            _ => MixStrategy::InterleaveOnce,
        };
        let shares = case["interleave_probs"].as_array().cloned().unwrap_or_default();
        Mix { strategy, probabilities: shares.iter().filter_map(Value::as_f64).collect() }
    }

    pub(crate) fn pairs(order: &Value) -> Vec<(usize, usize)> {
        serde_json::from_value(order.clone()).expect("an array of pairs")
    }

    #[test]
    fn data_sets_mix_as_those_of_hugging_face() {
        let goldens: Value = serde_json::from_str(GOLDENS).expect("the file of the test");
        let mut cases = 0;
        for case in goldens["mixes"].as_array().expect("cases").iter().filter(|c| c["streaming"] == false) {
            let seed = case["seed"].as_u64().expect("a seed");
            assert_eq!(order(&[3, 4, 7], &mix_of(case), seed).unwrap(), pairs(&case["order"]), "{case}");
            cases += 1;
        }
        assert_eq!(cases, 18);
    }

    #[test]
    fn one_after_the_other_is_the_default() {
        let in_order = [(0, 0), (0, 1), (1, 0)];
        assert_eq!(order(&[2, 1], &Mix::default(), 1).unwrap(), in_order);
        let alone = Mix { strategy: MixStrategy::InterleaveOver, probabilities: vec![1.0] };
        assert_eq!(order(&[2], &alone, 1).unwrap(), [(0, 0), (0, 1)], "a single data set is itself");
    }

    #[test]
    fn a_mix_that_would_not_end_is_refused() {
        let mix = |strategy, shares: &[f64]| Mix { strategy, probabilities: shares.to_vec() };
        assert!(mix(MixStrategy::InterleaveUnder, &[0.0, 1.0]).check(2).is_ok());
        for strategy in [MixStrategy::InterleaveOver, MixStrategy::InterleaveOnce] {
            let error = mix(strategy, &[0.0, 1.0]).check(2).expect_err("never ends").to_string();
            assert!(error.contains("`interleave_probs`: data set 1 has probability 0"), "{error}");
        }
        let error = mix(MixStrategy::InterleaveUnder, &[1.0]).check(3).expect_err("too few").to_string();
        assert!(error.contains("1 numbers for 3 data sets"), "{error}");
    }

    #[test]
    fn a_mix_that_would_fill_the_memory_is_refused() {
        let mix = Mix { strategy: MixStrategy::InterleaveOver, probabilities: vec![1.0 - 1e-12, 1e-12] };
        let error = order(&[1, 1], &mix, 1).unwrap_err().to_string();
        assert!(error.contains("`interleave_probs`: the mix has more than"), "{error}");
    }
}
