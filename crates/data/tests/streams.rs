//! Rows that are read as they are trained: every one once an epoch, from any place, within the limits.

mod byte_tokenizer;

use std::fs;
use std::path::Path;

use sft_data::batches::{Batches, StreamLoader};
use sft_data::dataset::stream::Stream;
use sft_data::dataset::{DatasetOptions, Mix, ProblemLimit, Stage};
use sft_data::encoder::Encoder;
use sft_data::error::DataError;
use sft_data::loader::{LoaderOptions, StepBatch};
use sft_data::pack::Joining;
use sft_data::pretrain::Pretrain;

/// A file of `rows` texts, the first of them malformed.
fn write(folder: &Path, rows: usize, malformed: usize) {
    let row = |row| match row < malformed {
        true => "{\"other\": 1}\n".to_owned(),
        false => format!("{{\"text\": \"text {row}\"}}\n"),
    };
    fs::write(folder.join("d.jsonl"), (0..rows).map(row).collect::<String>()).unwrap();
}

fn batches(folder: &Path, pack_to: Option<usize>, limit: ProblemLimit) -> Result<StreamLoader, DataError> {
    let options = DatasetOptions {
        dataset: vec!["d.jsonl".to_owned()],
        eval_dataset: Vec::new(),
        dataset_dir: folder.to_owned(),
        hub: sft_data::hub::HubOptions::default(),
        stage: Stage::Pt,
        max_samples: None,
        val_size: None,
        mix: Mix::default(),
        eval_on_each_dataset: false,
        streaming: Some(8),
        seed: 42,
        problem_limit: limit,
    };
    let stage = Pretrain::new(byte_tokenizer::tokenizer(None), None, 64, false)?;
    let stream = Stream::open(&options, true)?;
    let options = LoaderOptions { batch_size: 2, accumulation: 2, pack_to, in_order: false, seed: 42 };
    StreamLoader::new(stream, Encoder::Text(Box::new(stage)), options, limit)
}

fn texts(step: &StepBatch) -> Vec<Vec<u32>> {
    let rows = |w: &[u32]| w[0] as usize..w[1] as usize;
    let batches = step.micro_batches.iter();
    batches.flat_map(|b| b.cu_seqlens.windows(2).map(|w| b.input_ids[rows(w)].to_vec())).collect()
}

#[test]
fn an_epoch_shows_every_row_once_and_the_next_in_another_order() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 10, 0);
    let mut batches =
        Batches::Streamed(Box::new(batches(folder.path(), None, ProblemLimit::Rows(0)).unwrap()));
    let mut epochs = Vec::new();
    for epoch in 0..2 {
        let steps: Vec<StepBatch> = (0..3).map(|_| batches.next_step().unwrap()).collect();
        assert!(steps.iter().all(|step| step.at.epoch == epoch));
        let rows: Vec<usize> = steps.iter().map(|step| texts(step).len()).collect();
        assert_eq!(rows, [4, 4, 2]);
        epochs.push(steps.iter().flat_map(texts).collect::<Vec<_>>());
    }
    assert_ne!(epochs[0], epochs[1]);
    epochs.iter_mut().for_each(|epoch| epoch.sort_unstable());
    assert_eq!(epochs[0], epochs[1]);
}

#[test]
fn a_saved_cursor_continues_a_stream_exactly() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 11, 0);
    for pack_to in [None, Some(24)] {
        let fresh =
            || Batches::Streamed(Box::new(batches(folder.path(), pack_to, ProblemLimit::Rows(0)).unwrap()));
        let mut whole = fresh();
        for _ in 0..7 {
            let cursor = whole.cursor();
            let mut resumed = fresh();
            resumed.seek(cursor).unwrap();
            let expected = whole.next_step().unwrap();
            assert_eq!(resumed.next_step().unwrap(), expected, "{cursor:?}");
            assert_eq!(resumed.origins(&expected), whole.origins(&expected));
            assert_eq!(whole.origins(&expected).len(), texts(&expected).len());
        }
    }
}

#[test]
fn joined_micro_batches_of_a_stream_hold_the_same_rows_and_know_where_they_are_from() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 11, 0);
    let fresh = || Batches::Streamed(Box::new(batches(folder.path(), None, ProblemLimit::Rows(0)).unwrap()));
    let (mut apart, mut joined) = (fresh(), fresh());
    joined.set_joining(Joining { room: 1 << 20, ..Joining::default() });
    for _ in 0..6 {
        let (two, one) = (apart.next_step().unwrap(), joined.next_step().unwrap());
        assert_eq!((one.micro_batches.len(), one.at), (1, two.at));
        assert_eq!(texts(&one), texts(&two));
        assert_eq!(joined.origins(&one), apart.origins(&two));
    }
}

#[test]
fn malformed_rows_of_a_stream_stop_the_run_above_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 10, 2);
    let batches = |limit| batches(folder.path(), None, limit);
    for limit in [ProblemLimit::Rows(1), ProblemLimit::Fraction(0.1)] {
        let message = batches(limit).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("2 of 10 rows are malformed"), "{message}");
    }
    let loader = batches(ProblemLimit::Fraction(0.2)).unwrap();
    assert_eq!((loader.problems().len(), loader.report().rows), (2, 8));
}
