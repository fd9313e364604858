//! Rows that go on together: what each says is what it says alone.

mod tiny;

use std::ops::ControlFlow;

use sft_infer::together::{Prompt, Together};
use sft_infer::{Generation, GenerationOptions, Generator, InferError, SamplingOptions, StopReason};
use sft_kernels::{DType, Device, random};
use sft_model::Decoder;
use sft_model::spec::RopeScaling;
use sft_model::workspace::{Purpose, Workspace};

fn prompts(lengths: &[u32]) -> Vec<Vec<u32>> {
    let ids =
        |(row, length): (u32, &u32)| (0..*length).map(|i| (i * i * 7 + i * 31 + 11 * row) % 256).collect();
    (0..).zip(lengths).map(ids).collect()
}

fn together(
    dev: &Device,
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    rows: usize,
    options: &GenerationOptions,
) -> Vec<Result<Generation, InferError>> {
    let mut work = Workspace::new(dev, &decoder.spec, decoder.adapters(), DType::F32, 16, Purpose::Forward);
    let asked: Vec<Prompt<'_>> = prompts.iter().enumerate().map(|(row, ids)| Prompt { row, ids }).collect();
    let mut ended: Vec<_> = prompts.iter().map(|_| None).collect();
    let on_end =
        |row: usize, generation| assert!(ended[row].replace(generation).is_none(), "row {row} twice");
    let all = Together::new(dev, decoder, &mut work, rows).generate(&asked, options, || false, on_end);
    assert!(all.unwrap());
    ended.into_iter().map(Option::unwrap).collect()
}

fn alone(
    dev: &Device,
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
) -> Vec<Generation> {
    let one = |(row, ids): (u64, &Vec<u32>)| {
        let mut options = options.clone();
        options.sampling.seed = random::key(options.sampling.seed, &[row]);
        Generator::new(dev, decoder).generate(ids, &options, |_| ControlFlow::Continue(())).unwrap()
    };
    (0..).zip(prompts).map(one).collect()
}

/// Rows of several lengths, that end at their limit or at a token that was said somewhere.
fn compare(decoder: &Decoder, dev: &Device, sampling: SamplingOptions) {
    let prompts = prompts(&[9, 30, 1, 17, 5, 22, 3]);
    let options = GenerationOptions { sampling, ..GenerationOptions::greedy(12, &[]) };
    let free = alone(dev, decoder, &prompts, &options);
    let options = GenerationOptions { stop_ids: vec![free[1].ids[4], free[4].ids[7]], ..options };
    let expected = alone(dev, decoder, &prompts, &options);
    assert!(expected.iter().any(|row| row.reason == StopReason::Stop), "{expected:?}");
    for rows in [1, 3, 7, 20] {
        let found = together(dev, decoder, &prompts, rows, &options);
        for (row, (found, expected)) in found.into_iter().zip(&expected).enumerate() {
            assert_eq!(found.unwrap(), *expected, "row {row} of {rows} at a time");
        }
    }
}

#[test]
fn rows_together_say_what_each_says_alone() {
    let dev = tiny::device();
    for spec in [tiny::spec(512), tiny::hybrid_spec(512)] {
        compare(&tiny::random_decoder(&dev, &spec), &dev, SamplingOptions::GREEDY);
    }
}

/// Whole pieces, of 16 tokens here, that were read of one prompt are not read of the next that begins alike.
#[test]
fn rows_that_begin_alike_say_what_each_says_alone() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let begin_alike = |own: &[Vec<u32>]| -> Vec<Vec<u32>> {
        own.iter().map(|own| [&prompts(&[50])[0][..], own].concat()).collect()
    };
    let all = begin_alike(&prompts(&[9, 30, 1, 17, 5]));
    let sampling = SamplingOptions { do_sample: true, seed: 5, ..SamplingOptions::GREEDY };
    let options = GenerationOptions { sampling, ..GenerationOptions::greedy(12, &[]) };
    let expected = alone(&dev, &decoder, &all, &options);
    for rows in [1, 2, 5] {
        let found = together(&dev, &decoder, &all, rows, &options);
        let found: Vec<Generation> = found.into_iter().map(Result::unwrap).collect();
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.ids, found.reason), (&expected.ids, expected.reason), "{rows} at a time");
        }
        assert_eq!(
            found.iter().map(|row| row.reused).collect::<Vec<_>>(),
            [0, 48, 48, 48, 48],
            "{rows} at a time"
        );
    }
}

#[test]
fn rows_draw_with_seeds_of_their_own() {
    let dev = tiny::device();
    let sampling = SamplingOptions { do_sample: true, seed: 5, ..SamplingOptions::GREEDY };
    compare(&tiny::random_decoder(&dev, &tiny::spec(512)), &dev, sampling);
}

#[test]
fn rows_whose_positions_depend_on_their_length_are_answered_too() {
    let dev = tiny::device();
    let mut spec = tiny::spec(16);
    spec.rope.as_mut().unwrap().scaling = RopeScaling::Dynamic { factor: 8.0, max_position_embeddings: 16 };
    let decoder = tiny::random_decoder(&dev, &spec);
    let (prompts, options) = (prompts(&[4, 40, 3]), GenerationOptions::greedy(5, &[]));
    let found = together(&dev, &decoder, &prompts, 2, &options);
    let found: Vec<Generation> = found.into_iter().map(Result::unwrap).collect();
    assert_eq!(found, alone(&dev, &decoder, &prompts, &options));
}

#[test]
fn a_prompt_without_room_is_told_and_the_others_go_on() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(32));
    let found = together(&dev, &decoder, &prompts(&[40, 5, 0]), 2, &GenerationOptions::greedy(2, &[]));
    assert!(matches!(found[0], Err(InferError::PromptTooLong { tokens: 40, .. })));
    assert_eq!(found[1].as_ref().unwrap().ids.len(), 2);
    assert!(matches!(found[2], Err(InferError::EmptyPrompt)));
}
