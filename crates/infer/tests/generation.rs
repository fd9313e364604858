//! The generator: what it says does not depend on how the prompt was read or on what the cache held before.

mod tiny;

use std::ops::ControlFlow;

use sft_infer::{GenerationOptions, Generator, InferError, Progress, SamplingOptions, StopReason};
use sft_kernels::{DType, Device};
use sft_model::cache::KvCache;
use sft_model::spec::RopeScaling;
use sft_model::workspace::{Purpose, Workspace};
use sft_model::{Batch, Decoder};

fn prompt(tokens: u32) -> Vec<u32> {
    (0..tokens).map(|i| (i * i * 7 + i * 31 + 11) % 256).collect()
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Logits of a row computed at once: [N][V].
fn whole_row(dev: &Device, decoder: &Decoder, ids: &[u32]) -> Vec<Vec<f32>> {
    let spec = &decoder.spec;
    let mut work = Workspace::new(dev, spec, decoder.adapters(), DType::F32, ids.len(), Purpose::Forward);
    let positions: Vec<u32> = (0..ids.len() as u32).collect();
    let row = [0, ids.len() as u32];
    let batch = Batch {
        input_ids: ids,
        position_ids: &positions,
        cu_seqlens: &row,
        shared: None,
        targets: &[],
        weights: &[],
    };
    let logits = decoder.logits(dev, batch, &mut work).unwrap().to_f32_vec();
    logits.chunks(spec.vocab_size).map(<[f32]>::to_vec).collect()
}

/// The most likely continuation, the whole row computed anew for each token.
fn continued_without_cache(dev: &Device, decoder: &Decoder, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let rows = whole_row(dev, decoder, &ids);
        let last = rows.last().unwrap();
        let largest = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        ids.push(last.iter().position(|z| *z == largest).unwrap() as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn extending_in_steps_gives_the_logits_of_the_whole_row() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let ids = prompt(90);
    let whole = whole_row(&dev, &decoder, &ids);
    let mut cache = [KvCache::new(&dev, &decoder.spec, DType::F32, ids.len())];
    let mut work = Workspace::new(&dev, &decoder.spec, decoder.adapters(), DType::F32, 64, Purpose::Forward);
    let mut end = 0;
    for step in [50, 1, 1, 7, 30, 1] {
        let logits = decoder.extend(&dev, &[&ids[end..end + step]], &mut cache, &mut work).unwrap();
        let logits = logits.to_f32_vec();
        end += step;
        let largest = whole[end - 1].iter().fold(0.0f32, |a, z| a.max(z.abs()));
        for (found, expected) in logits.iter().zip(&whole[end - 1]) {
            assert!(
                (found - expected).abs() <= 1e-5 * largest,
                "{found} and not {expected} after {end} tokens"
            );
        }
    }
}

#[test]
fn the_cache_changes_no_token() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let (ids, options) = (prompt(30), GenerationOptions::greedy(20, &[]));
    let cached = Generator::new(&dev, &decoder).generate(&ids, &options, go_on).unwrap();
    assert_eq!(cached.ids, continued_without_cache(&dev, &decoder, &ids, 20));
    assert_eq!(cached.reason, StopReason::Length);
}

#[test]
fn a_prompt_longer_than_a_piece_is_read_as_if_at_once() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(2000));
    let ids = prompt(1100);
    let (mut read, mut generator) = (Vec::new(), Generator::new(&dev, &decoder));
    let generation = generator.generate(&ids, &GenerationOptions::greedy(3, &[]), |progress| {
        if let Progress::Prompt { read: tokens, total: 1100 } = progress {
            read.push(tokens);
        }
        ControlFlow::Continue(())
    });
    assert_eq!(generation.unwrap().ids, continued_without_cache(&dev, &decoder, &ids, 3));
    assert_eq!(read, [512, 1024, 1100]);
}

#[test]
fn a_prompt_that_begins_like_the_last_row_is_not_read_again_and_gives_the_same_answer() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let options = GenerationOptions::greedy(10, &[]);
    let mut generator = Generator::new(&dev, &decoder);
    let mut ids = prompt(40);
    let first = generator.generate(&ids, &options, go_on).unwrap();
    ids.extend(&first.ids);
    ids.extend([65, 66, 67]);
    let second = generator.generate(&ids, &options, go_on).unwrap();
    // All but the last token of the answer had been fed.
    assert_eq!((first.reused, second.reused), (0, 49));
    let fresh = Generator::new(&dev, &decoder).generate(&ids, &options, go_on).unwrap();
    assert_eq!(second.ids, fresh.ids);
    // A shorter row, and the same one again: the last token's logits are always computed.
    let again = generator.generate(&ids[..20], &options, go_on).unwrap();
    assert_eq!(again.reused, 19);
    assert_eq!(again.ids, continued_without_cache(&dev, &decoder, &ids[..20], 10));
}

#[test]
fn states_that_cannot_go_back_are_read_again_and_go_on_where_they_were_left() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::hybrid_spec(512));
    let options = GenerationOptions::greedy(10, &[]);
    let mut generator = Generator::new(&dev, &decoder);
    let mut ids = prompt(40);
    let first = generator.generate(&ids, &options, go_on).unwrap();
    assert_eq!(first.ids, continued_without_cache(&dev, &decoder, &ids, 10));
    // A prompt that goes on behind all that was read keeps it.
    ids.extend(&first.ids);
    ids.extend([65, 66, 67]);
    let second = generator.generate(&ids, &options, go_on).unwrap();
    assert_eq!(second.reused, 49);
    assert_eq!(second.ids, continued_without_cache(&dev, &decoder, &ids, 10));
    // One that turns off before begins anew.
    let third = generator.generate(&ids[..20], &options, go_on).unwrap();
    assert_eq!(third.reused, 0);
    assert_eq!(third.ids, continued_without_cache(&dev, &decoder, &ids[..20], 10));
}

#[test]
fn the_cache_grows_with_the_conversation() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(8000));
    let ids = prompt(2100);
    let mut generator = Generator::new(&dev, &decoder);
    generator.generate(&ids[..100], &GenerationOptions::greedy(1, &[]), go_on).unwrap();
    let generation = generator.generate(&ids, &GenerationOptions::greedy(4, &[]), go_on).unwrap();
    assert_eq!(generation.ids, continued_without_cache(&dev, &decoder, &ids, 4));
}

#[test]
fn dynamic_positions_keep_nothing_beyond_the_trained_length() {
    let dev = tiny::device();
    let mut spec = tiny::spec(16);
    spec.rope.as_mut().unwrap().scaling = RopeScaling::Dynamic { factor: 8.0, max_position_embeddings: 16 };
    let decoder = tiny::random_decoder(&dev, &spec);
    let (ids, options) = (prompt(60), GenerationOptions::greedy(1, &[]));
    let mut generator = Generator::new(&dev, &decoder);
    generator.generate(&ids[..20], &options, go_on).unwrap();
    let generation = generator.generate(&ids, &options, go_on).unwrap();
    assert_eq!(generation.reused, 0);
    assert_eq!(generation.ids, continued_without_cache(&dev, &decoder, &ids, 1));
}

#[test]
fn a_stop_token_ends_the_answer_and_is_no_part_of_it() {
    let dev = tiny::device();
    let decoder = tiny::speaker(&dev, "yes");
    let mut said = Vec::new();
    let options = GenerationOptions::greedy(100, &[tiny::EOS]);
    let generation = Generator::new(&dev, &decoder).generate(&[63], &options, |progress| {
        if let Progress::Token(id) = progress {
            said.push(id);
        }
        ControlFlow::Continue(())
    });
    let generation = generation.unwrap();
    assert_eq!((generation.ids.as_slice(), generation.reason), (&[121, 101, 115][..], StopReason::Stop));
    assert_eq!(said, generation.ids);
}

#[test]
fn max_new_tokens_counts_the_answer_and_max_length_prompt_and_answer() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let mut generator = Generator::new(&dev, &decoder);
    let mut tokens = |max_new_tokens, max_length| {
        let options = GenerationOptions { max_length, ..GenerationOptions::greedy(max_new_tokens, &[]) };
        generator.generate(&prompt(10), &options, go_on).map(|generation| generation.ids.len())
    };
    assert_eq!(tokens(1, 3).unwrap(), 1);
    assert_eq!(tokens(25, 3).unwrap(), 25);
    assert_eq!(tokens(0, 16).unwrap(), 6);
    let error = tokens(0, 10).unwrap_err().to_string();
    assert!(error.contains("10 tokens") && error.contains("`max_length` is 10"), "{error}");
}

#[test]
fn the_longest_row_of_the_model_ends_an_answer_and_refuses_a_prompt_by_message() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(64));
    let mut generator = Generator::new(&dev, &decoder);
    let options = GenerationOptions::greedy(1000, &[]);
    let generation = generator.generate(&prompt(60), &options, go_on).unwrap();
    assert_eq!((generation.ids.len(), generation.reason), (4, StopReason::Context));
    let error = generator.generate(&prompt(64), &options, go_on).unwrap_err();
    assert!(matches!(error, InferError::PromptTooLong { tokens: 64, value: 64, .. }), "{error}");
    assert!(matches!(generator.generate(&[], &options, go_on), Err(InferError::EmptyPrompt)));
}

#[test]
fn the_caller_may_break_off_in_the_prompt_and_in_the_answer() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(2000));
    let options = GenerationOptions::greedy(10, &[]);
    let mut generator = Generator::new(&dev, &decoder);
    let ids = prompt(600);
    let early = generator.generate(&ids, &options, |_| ControlFlow::Break(())).unwrap();
    assert_eq!((early.ids.len(), early.reason), (0, StopReason::Cancelled));
    let late = generator.generate(&ids, &options, |progress| match progress {
        Progress::Token(_) => ControlFlow::Break(()),
        Progress::Prompt { .. } => ControlFlow::Continue(()),
    });
    let late = late.unwrap();
    assert_eq!((late.ids.len(), late.reason, late.reused), (1, StopReason::Cancelled, 512));
}

#[test]
fn an_id_outside_of_the_vocabulary_is_refused_and_does_no_harm() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let mut generator = Generator::new(&dev, &decoder);
    let options = GenerationOptions::greedy(5, &[]);
    let error = generator.generate(&[1, 2, 5000], &options, go_on).unwrap_err();
    assert!(error.to_string().contains("5000"), "{error}");
    let after = generator.generate(&prompt(9), &options, go_on).unwrap();
    assert_eq!(after.ids, continued_without_cache(&dev, &decoder, &prompt(9), 5));
}

#[test]
fn scores_that_are_nan_are_an_error() {
    let dev = tiny::device();
    let mut decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let weight = decoder.norm.as_mut().unwrap().weight.as_mut().unwrap();
    let mut values = weight.value().to_f32_vec();
    values[3] = f32::NAN;
    let shape = [values.len()];
    weight.set(sft_kernels::View::of(&values, &shape));
    let error =
        Generator::new(&dev, &decoder).generate(&prompt(4), &GenerationOptions::greedy(5, &[]), go_on);
    assert!(matches!(error, Err(InferError::NotANumber { position: 4 })));
}

#[test]
fn the_same_seed_draws_the_same_answer() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let mut generator = Generator::new(&dev, &decoder);
    let mut answer = |seed| {
        let sampling = SamplingOptions { do_sample: true, seed, ..SamplingOptions::GREEDY };
        let options = GenerationOptions { sampling, ..GenerationOptions::greedy(20, &[]) };
        generator.generate(&prompt(12), &options, go_on).unwrap().ids
    };
    let first = answer(1);
    assert_ne!(first, answer(2));
    assert_eq!(first, answer(1));
}
