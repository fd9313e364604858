//! `stage: pt`. Expected ids printed by LLaMA-Factory 0.9.5 (`PretrainDatasetProcessor`).

mod byte_tokenizer;

use std::sync::Arc;

use sft_data::conversation::{Conversation, Message, Origin, Role};
use sft_data::pretrain::Pretrain;

fn rows() -> Vec<Conversation> {
    let row = |(at, text): (usize, &&str)| Conversation {
        messages: vec![Message::text(Role::Assistant, *text)],
        tools: None,
        origin: Origin { dataset: "t".into(), file: Arc::new("t.txt".into()), line: 1, row: at as u64 },
    };
    ["abcd", "ef", "ghijklmno"].iter().enumerate().map(row).collect()
}

fn stage(packing: bool) -> Pretrain {
    Pretrain::new(byte_tokenizer::tokenizer(None), None, 5, packing).unwrap()
}

#[test]
fn packed_texts_are_one_stream_cut_into_blocks() {
    let (examples, report) = stage(true).encode_all(&rows());
    let ids: Vec<_> = examples.iter().map(|example| example.input_ids.clone()).collect();
    let blocks = [vec![97, 98, 99, 100, 257], vec![101, 102, 257, 103, 104], vec![105, 106, 107, 108, 109]];
    assert_eq!(ids[..3], blocks);
    // What is left at the end is kept.
    assert_eq!(ids[3], [110, 111, 257]);
    assert_eq!(examples[2].origin.row, 2);
    assert_eq!((report.rows, report.examples, report.tokens, report.cut_tokens), (3, 4, 18, 0));
}

#[test]
fn unpacked_texts_are_cut_at_the_cutoff() {
    let (examples, report) = stage(false).encode_all(&rows());
    let ids: Vec<_> = examples.iter().map(|example| example.input_ids.clone()).collect();
    assert_eq!(ids, [vec![97, 98, 99, 100, 257], vec![101, 102, 257], vec![103, 104, 105, 106, 107]]);
    assert_eq!((report.cut_rows, report.cut_tokens, report.cut_ends), (1, 5, 1));
}

#[test]
fn everything_is_trained() {
    for packing in [true, false] {
        for example in stage(packing).encode_all(&rows()).0 {
            assert!(example.input_ids.iter().zip(&example.labels).all(|(&id, &label)| label == id as i32));
        }
    }
}
