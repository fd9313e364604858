//! The next token from its logits: penalty, temperature, top-k, top-p, draw.
//!
//! In: logits of the whole vocabulary. Out: one token id. The rules and their order are those of transformers'
//! logits processors (`generation/logits_process.py`), so the same options leave the same tokens with the same
//! probabilities:
//!
//! > presence and frequency penalty a, b: of every id that was generated c times, z := z − a − b·c (OpenAI's API
//! > reference, `presence_penalty`; applied before all others)
//! > repetition penalty p: of every id that was there before, z := z·p if z < 0, else z/p
//! > temperature t: z := (z − max z)/t, which leaves the same probabilities as z/t and is never too large
//! > top-k: what is below the k-th largest z goes (ties with it stay)
//! > top-p: from the least likely on, everything goes as long as what went has at most probability 1 − top_p;
//! > the most likely one always stays
//!
//! Then one token is drawn, or without sampling the one with the largest z is taken, the first of equals.

use std::collections::{BTreeMap, BTreeSet};

use sft_kernels::random;

/// Beyond it, and below its inverse, a penalty changes no choice any more; logits stay finite and keep their order.
const MOST_PENALTY: f64 = 1e30;

/// How the next token is chosen; names and meanings are those of the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingOptions {
    /// Draw; otherwise the most likely token is taken.
    pub do_sample: bool,
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Draw from so many of the most likely tokens; 0 is all.
    pub top_k: usize,
    /// Draw from the most likely tokens that together have this probability.
    pub top_p: f64,
    /// Above 1, tokens that are already there become less likely.
    pub repetition_penalty: f64,
    /// Above 0, tokens of the answer so far become less likely; below, more.
    pub presence_penalty: f64,
    /// The same, as often as they were there.
    pub frequency_penalty: f64,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

impl SamplingOptions {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        do_sample: false,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
    };

    /// A temperature that is 0 as a float32, or nearly, leaves the most likely token alone.
    fn is_greedy(&self) -> bool {
        !self.do_sample || (self.temperature as f32) < f32::MIN_POSITIVE
    }

    fn counts(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its probability among the candidates.
    pub probability: f32,
}

/// Chooses the tokens of one answer.
#[derive(Debug)]
pub struct Sampler {
    options: SamplingOptions,
    /// Ids that were there before, for the penalty.
    seen: BTreeSet<u32>,
    /// How often ids were generated, for the penalties that count.
    generated: BTreeMap<u32, u32>,
    key: u64,
    drawn: u64,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Begins an answer to `prompt_ids`.
    pub fn new(options: SamplingOptions, prompt_ids: &[u32]) -> Self {
        let penalises = options.repetition_penalty != 1.0;
        Self {
            options,
            seen: if penalises { prompt_ids.iter().copied().collect() } else { BTreeSet::new() },
            generated: BTreeMap::new(),
            key: random::key(options.seed, &[random::name_part("sampler")]),
            drawn: 0,
            candidates: Vec::new(),
        }
    }

    /// The next token. The logits [V] are changed. Without any logit it is 0.
    pub fn next(&mut self, logits: &mut [f32]) -> u32 {
        let id = if self.options.is_greedy() {
            self.penalise(logits);
            largest(logits)
        } else {
            let draw = random::uniform(self.key, self.drawn);
            self.drawn += 1;
            draw_from(self.candidates(logits), draw)
        };
        if self.options.repetition_penalty != 1.0 {
            self.seen.insert(id);
        }
        if self.options.counts() {
            *self.generated.entry(id).or_default() += 1;
        }
        id
    }

    /// What may be drawn, by id. The logits [V] are changed.
    pub fn candidates(&mut self, logits: &mut [f32]) -> &[Candidate] {
        self.penalise(logits);
        let temperature = self.options.temperature as f32;
        if temperature != 1.0 {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            logits.iter_mut().for_each(|z| *z = (*z - largest) / temperature);
        }
        let least = kth_largest(logits, self.options.top_k);
        self.candidates.clear();
        let kept = (0..).zip(logits.iter()).filter(|(_, z)| **z >= least);
        // The probability holds the logit until `softmax`.
        self.candidates.extend(kept.map(|(id, z)| Candidate { id, probability: *z }));
        if self.options.top_p < 1.0 {
            keep_top_p(&mut self.candidates, self.options.top_p);
        }
        softmax(&mut self.candidates);
        &self.candidates
    }

    fn penalise(&self, logits: &mut [f32]) {
        for (id, count) in &self.generated {
            if let Some(z) = logits.get_mut(*id as usize) {
                let penalty =
                    self.options.presence_penalty + self.options.frequency_penalty * f64::from(*count);
                *z -= penalty as f32;
            }
        }
        let penalty = self.options.repetition_penalty.clamp(1.0 / MOST_PENALTY, MOST_PENALTY) as f32;
        for id in &self.seen {
            if let Some(z) = logits.get_mut(*id as usize) {
                *z = if *z < 0.0 { *z * penalty } else { *z / penalty };
            }
        }
    }
}

/// The id of the largest logit, the first of equals.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, z) in logits.iter().enumerate() {
        if *z > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The k-th largest logit; −∞ for k = 0 and where there are not so many.
fn kth_largest(logits: &[f32], k: usize) -> f32 {
    if k == 0 || k >= logits.len() {
        return f32::NEG_INFINITY;
    }
    let mut sorted = logits.to_vec();
    *sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Takes the least likely candidates away; probabilities hold logits, before and after.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    candidates.sort_by(|a, b| a.probability.total_cmp(&b.probability).then(a.id.cmp(&b.id)));
    let largest = candidates.last().map_or(0.0, |last| last.probability);
    let weights = || candidates.iter().map(|c| f64::from((c.probability - largest).exp()));
    let total: f64 = weights().sum();
    let mut before = 0.0;
    let removed = weights().take_while(|weight| {
        before += weight / total;
        before as f32 <= (1.0 - top_p) as f32
    });
    let removed = removed.count().min(candidates.len().saturating_sub(1));
    candidates.drain(..removed);
    candidates.sort_by_key(|candidate| candidate.id);
}

/// Logits to probabilities.
fn softmax(candidates: &mut [Candidate]) {
    let largest = candidates.iter().map(|c| c.probability).fold(f32::NEG_INFINITY, f32::max);
    candidates.iter_mut().for_each(|c| c.probability = (c.probability - largest).exp());
    let total: f64 = candidates.iter().map(|c| f64::from(c.probability)).sum();
    candidates.iter_mut().for_each(|c| c.probability = (f64::from(c.probability) / total) as f32);
}

/// The candidate at which the sum of probabilities passes `draw`, which is in [0, 1).
fn draw_from(candidates: &[Candidate], draw: f64) -> u32 {
    let total: f64 = candidates.iter().map(|c| f64::from(c.probability)).sum();
    let mut sum = 0.0;
    let passed = candidates.iter().find(|candidate| {
        sum += f64::from(candidate.probability);
        sum > draw * total
    });
    passed.or(candidates.last()).map_or(0, |candidate| candidate.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const DRAWN: SamplingOptions = SamplingOptions { do_sample: true, ..SamplingOptions::GREEDY };

    fn numbers(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect()
    }

    // Expected values: tests/golden/sampler.py, transformers 5.6.
    #[test]
    fn probabilities_are_those_of_transformers() {
        let cases: Value = serde_json::from_str(include_str!("../tests/golden/sampler.json")).unwrap();
        for case in cases.as_array().unwrap() {
            let options = SamplingOptions {
                do_sample: true,
                temperature: case["temperature"].as_f64().unwrap(),
                top_k: case["top_k"].as_u64().unwrap() as usize,
                top_p: case["top_p"].as_f64().unwrap(),
                repetition_penalty: case["repetition_penalty"].as_f64().unwrap(),
                ..SamplingOptions::GREEDY
            };
            let seen: Vec<u32> = numbers(&case["seen"]).into_iter().map(|id| id as u32).collect();
            let (mut logits, expected) = (numbers(&case["logits"]), numbers(&case["probabilities"]));
            let mut sampler = Sampler::new(options, &seen);
            let mut found = vec![0.0; expected.len()];
            for candidate in sampler.candidates(&mut logits) {
                found[candidate.id as usize] = candidate.probability;
            }
            for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let same = (found == expected) || (found / expected - 1.0).abs() < 3e-6;
                assert!(same, "{options:?}: token {id} has {found:e} and not {expected:e}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equal_logits() {
        let mut sampler = Sampler::new(SamplingOptions::GREEDY, &[]);
        assert_eq!(sampler.next(&mut [0.0, 3.0, -1.0, 3.0]), 1);
    }

    #[test]
    fn temperature_zero_is_greedy() {
        let mut sampler = Sampler::new(SamplingOptions { temperature: 0.0, ..DRAWN }, &[]);
        assert!((0..50).all(|_| sampler.next(&mut [0.0, 1.0, 1.1, 1.0]) == 2));
    }

    #[test]
    fn the_smallest_temperature_and_penalty_leave_the_most_likely_token() {
        for options in [
            SamplingOptions { temperature: 1e-50, ..DRAWN },
            SamplingOptions { temperature: 1e-37, ..DRAWN },
            SamplingOptions { repetition_penalty: 1e-45, ..DRAWN },
            SamplingOptions { repetition_penalty: 1e-45, ..SamplingOptions::GREEDY },
        ] {
            let mut sampler = Sampler::new(options, &[0, 2, 3]);
            let chosen: Vec<u32> = (0..5).map(|_| sampler.next(&mut [20.0, 1.0, 30.0, 25.0])).collect();
            assert_eq!(chosen, [2; 5], "{options:?}");
        }
    }

    #[test]
    fn the_penalty_counts_what_was_generated_too() {
        let options = SamplingOptions { repetition_penalty: 2.0, ..SamplingOptions::GREEDY };
        let mut sampler = Sampler::new(options, &[3]);
        let logits = [1.5, 2.0, 1.9, 3.0];
        let chosen: Vec<u32> = (0..3).map(|_| sampler.next(&mut logits.clone())).collect();
        assert_eq!(chosen, [1, 2, 0]);
    }

    // z − presence − frequency · count: of the third token 1.9, then 1.9 − 0.75 = 1.15, then 1.9 − 1 = 0.9.
    #[test]
    fn presence_and_frequency_count_what_was_generated_alone() {
        let penalties =
            SamplingOptions { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingOptions::GREEDY };
        let mut sampler = Sampler::new(penalties, &[0, 0, 0]);
        let chosen: Vec<u32> = (0..5).map(|_| sampler.next(&mut [1.0, 1.1, 1.9, 0.2])).collect();
        assert_eq!(chosen, [2, 2, 1, 0, 2]);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens_and_another_seed_others() {
        let draw = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(SamplingOptions { seed, ..DRAWN }, &[]);
            (0..40).map(|_| sampler.next(&mut [0.0; 16])).collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let mut sampler = Sampler::new(DRAWN, &[]);
        let (probabilities, draws) = ([0.1f32, 0.6, 0.3], 30_000);
        let mut counts = [0u32; 3];
        for _ in 0..draws {
            counts[sampler.next(&mut probabilities.map(f32::ln)) as usize] += 1;
        }
        for (count, probability) in counts.iter().zip(probabilities) {
            let share = *count as f32 / draws as f32;
            assert!((share - probability).abs() < 0.01, "{share} instead of {probability}");
        }
    }
}
