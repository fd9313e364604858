//! Rows that come and go: what a slot keeps, who takes turns, and that nobody's words depend on the others.

mod tiny;

use std::collections::BTreeMap;

use sft_infer::slots::{Slots, Told};
use sft_infer::{Context, Continuation, Generation, GenerationOptions, Generator};
use sft_kernels::{DType, Device};
use sft_model::Decoder;
use sft_model::workspace::{Purpose, Workspace};

const TOKENS: usize = 8;

fn prompt(row: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * i * 7 + i * 31 + 11 * row) % 256).collect()
}

fn continuation(decoder: &Decoder, prompt: &[u32], tokens: usize) -> Continuation {
    Continuation::new(Context::of(&decoder.spec), prompt, &GenerationOptions::greedy(tokens, &[])).unwrap()
}

fn alone(dev: &Device, decoder: &Decoder, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let options = GenerationOptions::greedy(tokens, &[]);
    let on_progress = |_| std::ops::ControlFlow::Continue(());
    Generator::new(dev, decoder).generate(prompt, &options, on_progress).unwrap().ids
}

fn work(dev: &Device, decoder: &Decoder) -> Workspace {
    Workspace::new(dev, &decoder.spec, decoder.adapters(), DType::F32, 16, Purpose::Forward)
}

/// Steps until all rows have ended: their answers by key.
fn finish(slots: &mut Slots<'_>) -> BTreeMap<u64, Generation> {
    let mut ended = BTreeMap::new();
    while !slots.is_empty() {
        let told = |key, told| {
            if let Told::Ended(generation) = told {
                ended.insert(key, generation.unwrap());
            }
        };
        slots.step(1, || true, told).unwrap().unwrap();
    }
    ended
}

/// Tokens of a prompt that were not read for its row.
fn reused(slots: &mut Slots<'_>, decoder: &Decoder, key: u64, prompt: &[u32]) -> usize {
    slots.begin(key, prompt, continuation(decoder, prompt, 2));
    finish(slots)[&key].reused
}

#[test]
fn what_a_slot_holds_of_a_conversation_is_not_read_again() {
    let dev = tiny::device();
    for (spec, kept) in [(tiny::spec(512), 37), (tiny::hybrid_spec(512), 37)] {
        let decoder = tiny::random_decoder(&dev, &spec);
        let mut work = work(&dev, &decoder);
        let mut slots = Slots::new(&dev, &decoder, &mut work, (2, 100)).keeping_conversations();
        let first = prompt(1, 30);
        slots.begin(1, &first, continuation(&decoder, &first, TOKENS));
        let said = finish(&mut slots)[&1].ids.clone();
        // Of the answer the last token is not in the cache.
        let second = [&first[..], &said, &prompt(2, 9)].concat();
        slots.begin(2, &second, continuation(&decoder, &second, TOKENS));
        let answer = &finish(&mut slots)[&2];
        assert_eq!(answer.reused, kept);
        assert_eq!(answer.ids, alone(&dev, &decoder, &second, TOKENS));
    }
}

#[test]
fn what_another_row_in_work_has_read_of_a_prompt_is_copied() {
    let dev = tiny::device();
    for (spec, copied) in [(tiny::spec(512), 40), (tiny::hybrid_spec(512), 0)] {
        let decoder = tiny::random_decoder(&dev, &spec);
        let mut work = work(&dev, &decoder);
        let mut slots = Slots::new(&dev, &decoder, &mut work, (3, 100)).keeping_conversations();
        let prompts = [1, 2, 3].map(|row| [&prompt(1, 40)[..], &prompt(row, 5)].concat());
        for (key, prompt) in (0..).zip(&prompts) {
            slots.begin(key, prompt, continuation(&decoder, prompt, TOKENS));
        }
        let ended = finish(&mut slots);
        for (answer, prompt) in ended.values().zip(&prompts) {
            assert_eq!(answer.ids, alone(&dev, &decoder, prompt, TOKENS));
        }
        assert_eq!(ended.values().map(|answer| answer.reused).collect::<Vec<_>>(), [0, copied, copied]);
    }
}

#[test]
fn a_recurrence_that_cannot_go_back_is_read_anew() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::hybrid_spec(512));
    let mut work = work(&dev, &decoder);
    let mut slots = Slots::new(&dev, &decoder, &mut work, (1, 100)).keeping_conversations();
    for key in 0..2 {
        let prompt = prompt(1, 30);
        slots.begin(key, &prompt, continuation(&decoder, &prompt, TOKENS));
        let answer = &finish(&mut slots)[&key];
        assert_eq!((answer.reused, &answer.ids), (0, &alone(&dev, &decoder, &prompt, TOKENS)));
    }
}

#[test]
fn another_conversation_takes_the_slot_that_was_taken_longest_ago() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let mut work = work(&dev, &decoder);
    let mut slots = Slots::new(&dev, &decoder, &mut work, (2, 100)).keeping_conversations();
    let mut reused = |key, prompt: &[u32]| reused(&mut slots, &decoder, key, prompt);
    // The second begins as the first does: that is copied, and the first keeps its place.
    let (first, second) = (prompt(1, 30), [&prompt(1, 10)[..], &prompt(3, 20)].concat());
    assert_eq!(reused(1, &first), 0);
    assert_eq!(reused(2, &second), 10);
    assert_eq!(reused(3, &first), 29);
    assert_eq!(reused(4, &prompt(5, 30)), 0);
    assert_eq!(reused(5, &first), 29, "the second has gone");
    assert_eq!(reused(6, &second), 10);
}

/// As templates do that show an answer otherwise than they open it.
#[test]
fn a_conversation_goes_on_in_its_slot_though_the_end_of_its_prompt_is_not_there_any_more() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let mut work = work(&dev, &decoder);
    let mut slots = Slots::new(&dev, &decoder, &mut work, (2, 100)).keeping_conversations();
    let mut reused = |key, prompt: &[u32]| reused(&mut slots, &decoder, key, prompt);
    let (other, first) = (prompt(7, 30), prompt(1, 30));
    let second = [&first[..26], &prompt(2, 10)].concat();
    let third = [&second[..32], &prompt(3, 10)].concat();
    assert_eq!([reused(1, &other), reused(2, &first), reused(3, &second), reused(4, &third)], [0, 0, 26, 32]);
    assert_eq!(reused(5, &other), 29, "the other conversation kept its place");
}

#[test]
fn a_long_prompt_takes_turns_with_the_answers_of_others() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let mut work = work(&dev, &decoder);
    let mut slots = Slots::new(&dev, &decoder, &mut work, (2, 200));
    let (short, long) = (prompt(1, 5), prompt(2, 80));
    slots.begin(1, &short, continuation(&decoder, &short, TOKENS));
    slots.begin(2, &long, continuation(&decoder, &long, TOKENS));
    let mut told = Vec::new();
    while !slots.is_empty() {
        let on = |key, what| {
            if let Told::Token(_) = what {
                told.push(key);
            }
        };
        slots.step(1, || true, on).unwrap().unwrap();
    }
    // The short one is read in the first step and gives two tokens, then one behind each of four pieces of 16; the fifth is
    // the last.
    assert_eq!(told[..7], [1, 1, 1, 1, 1, 1, 2], "{told:?}");
    assert_eq!(told.iter().filter(|key| **key == 2).count(), TOKENS);
}

#[test]
fn rows_that_leave_change_nothing_for_those_that_stay() {
    let dev = tiny::device();
    let decoder = tiny::random_decoder(&dev, &tiny::spec(512));
    let mut work = work(&dev, &decoder);
    let mut slots = Slots::new(&dev, &decoder, &mut work, (4, 200));
    let prompts: Vec<Vec<u32>> = (0..6).map(|row| prompt(row, 10 + 13 * row)).collect();
    for (key, prompt) in (0..4).zip(&prompts) {
        slots.begin(key, prompt, continuation(&decoder, prompt, 12));
    }
    assert!(!slots.has_room());
    let step = |slots: &mut Slots<'_>| slots.step(1, || true, |_, _| ()).unwrap().unwrap();
    // One that answers, one whose prompt is being read, one that waits, and one that is not there.
    (0..4).for_each(|_| step(&mut slots));
    [0, 2, 3, 9].into_iter().for_each(|key| slots.leave(key));
    for key in [4, 5] {
        let prompt = &prompts[key as usize];
        slots.begin(key, prompt, continuation(&decoder, prompt, 12));
    }
    let ended = finish(&mut slots);
    assert_eq!(ended.keys().copied().collect::<Vec<_>>(), [1, 4, 5]);
    for (key, answer) in ended {
        assert_eq!(answer.ids, alone(&dev, &decoder, &prompts[key as usize], 12), "row {key}");
    }
}
