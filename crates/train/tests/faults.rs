//! Every change that a run makes to its files fails once, in every way that there is: the run says so, what it had is
//! still there, and started again it ends with the same bits, the same log and the same results.
//!
//! A few dozen faults are made by `cargo test`; every change in every way by
//! `SFT_FAULTS=all cargo test --release -p sft-train --test faults -- --nocapture` (`SFT_FAULTS=200..300`: those changes
//! alone). Kills of the process are in the tests
//! of `sft-cli`. One program with one test: faults are the whole process's.

use std::fs;
use std::path::Path;

use sft_config::{Purpose, load_text};
use sft_runs::checkpoint;
use sft_runs::disk::faults::{self, Fault};
use sft_runs::trainer_log;
use sft_train::events::Silent;
use sft_train::run::{Outcome, run};
use sft_train::{Job, TrainError};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

/// Faults of a plain `cargo test`.
const FEW: usize = 24;

fn train(base: &Path, output: &Path) -> Result<Outcome, TrainError> {
    let text = format!(
        "model_name_or_path: {}\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\nmax_samples: 12\n\
         cutoff_len: 32\noutput_dir: {}\nper_device_train_batch_size: 2\nmax_steps: 5\nlearning_rate: 1e-3\n\
         logging_steps: 1\nsave_steps: 1\nsave_total_limit: 2\nval_size: 2\neval_strategy: steps\neval_steps: 1\n\
         load_best_model_at_end: true\nfinetuning_type: lora\nlora_dropout: 0.1\nreport_to: tensorboard\n\
         threads: 1\ndevice: cpu\n",
        base.display(),
        output.display()
    );
    run(Job::prepare(load_text(&text, "test.yaml", &[], Purpose::Train).unwrap()).unwrap(), &mut Silent)
}

/// What a run leaves that must not depend on what happened to it: the log without its times, and the results.
fn left(output: &Path, outcome: &Outcome) -> (String, Vec<String>, Vec<(String, String)>) {
    let lines = trainer_log::read(&output.join("trainer_log.jsonl")).expect("whole lines");
    let lines = lines.iter().map(|line| {
        let (loss, eval, rate) = (line.loss, line.eval_loss, line.lr);
        format!("{} {loss:?} {eval:?} {rate:?} {:?} {:?}", line.current_steps, line.grad_norm, line.warning)
    });
    let results = outcome.results.iter().filter(|(key, _)| {
        !["runtime", "per_s", "per_second", "peak_bytes"].iter().any(|end| key.ends_with(end))
    });
    let results = results.map(|(key, value)| (key.clone(), value.to_string())).collect();
    (outcome.digest.clone(), lines.collect(), results)
}

/// Half-finished files that nobody will look at again.
fn leftovers(output: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(output).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| name.starts_with("checkpoint") && name.contains('.')).collect()
}

/// The faults that are made: all of them, or some spread over all changes and ways.
fn chosen(changes: u64) -> Vec<(Fault, u64)> {
    let asked = std::env::var("SFT_FAULTS").ok();
    let every_way = |at| Fault::ALL.into_iter().map(move |fault| (fault, at));
    let range = asked.as_ref().and_then(|text| text.split_once(".."));
    if let Some((Ok(first), Ok(end))) = range.map(|(first, end)| (first.parse::<u64>(), end.parse::<u64>())) {
        return (first.max(1)..end.min(changes + 1)).flat_map(every_way).collect();
    }
    let all: Vec<(Fault, u64)> = (1..=changes).flat_map(every_way).collect();
    let most = match asked {
        None => FEW,
        Some(text) => text.parse().unwrap_or(all.len()),
    };
    // A stride that has no divisor in common with the number of ways takes all of them in turn.
    let stride = (all.len() / most.max(1)).max(1);
    let stride = if stride.is_multiple_of(Fault::ALL.len()) { stride + 1 } else { stride };
    all.into_iter().step_by(stride).collect()
}

#[test]
fn whatever_write_fails_the_run_says_so_and_ends_with_the_same_bits_when_started_again() {
    let folder = folder();
    let base = folder.path().join("base");
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\n\
         max_samples: 4\noutput_dir: {}\nfinetuning_type: full\ntrain_from_scratch: true\nmax_steps: 1\ncutoff_len: 32\n",
        base.display()
    );
    run(Job::prepare(load_text(&text, "test.yaml", &[], Purpose::Train).unwrap()).unwrap(), &mut Silent)
        .unwrap();
    let whole = folder.path().join("whole");
    faults::plan(None);
    let outcome = train(&base, &whole).unwrap();
    let (changes, _) = faults::end();
    let expected = left(&whole, &outcome);

    let chosen = chosen(changes);
    let (mut failed, mut unharmed) = (0, 0);
    for (fault, at) in &chosen {
        let output = folder.path().join(format!("{fault:?}-{at}"));
        faults::plan(Some((*fault, *at)));
        let first = train(&base, &output);
        let (_, struck) = faults::end();
        let case =
            format!("{fault:?} at change {at} of {changes} ({})", struck.as_deref().unwrap_or("nothing"));
        let before =
            checkpoint::last_good(&output).map(|(good, _)| good.map(|good| good.step)).unwrap_or(None);
        let outcome = match first {
            Ok(outcome) => {
                unharmed += 1;
                outcome
            }
            Err(error) => {
                failed += 1;
                let text = error.to_string();
                assert!(text.contains("help:") || text.contains("fault made by a test"), "{case}: {text}");
                if let Some(step) = before {
                    assert!(output.join(format!("checkpoint-{step}")).is_dir(), "{case}");
                }
                again(&base, &output, &case)
            }
        };
        assert_eq!(left(&output, &outcome), expected, "{case}");
        assert_eq!(leftovers(&output), Vec::<String>::new(), "{case}");
        fs::remove_dir_all(&output).unwrap();
    }
    println!(
        "{} faults at {changes} changes: {failed} ended the run, {unharmed} did it no harm",
        chosen.len()
    );
    assert!(failed > 0 && failed + unharmed == chosen.len());
}

/// A folder in memory where there is one: every write is synced, which takes disks long.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// The run started again.
fn again(base: &Path, output: &Path, case: &str) -> Outcome {
    train(base, output).unwrap_or_else(|error| panic!("{case}: does not go on: {error}"))
}
