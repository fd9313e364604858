//! Measures how fast rows are encoded, how fast they are read again where they are kept, and how full packed bins are.
//!
//! usage: measure_encoding MODEL_DIR TEMPLATE DATASET_DIR DATASET [REPEAT]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use sft_data::cache::{Found, Key, KeyInputs, Place, Tokenised};
use sft_data::dataset::{self, DatasetOptions, Mix, ProblemLimit, Stage};
use sft_data::labels::{Example, Policy};
use sft_data::loader::{Loader, LoaderOptions};
use sft_data::pipeline::Pipeline;
use sft_data::template::TemplateOptions;
use sft_data::template::clock::Clock;
use sft_data::tokenize::{NewTokens, Tokenizer};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, template, data, dataset, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: measure_encoding MODEL_DIR TEMPLATE DATASET_DIR DATASET [REPEAT]");
        return ExitCode::from(2);
    };
    let repeat = rest.first().and_then(|repeat| repeat.parse().ok()).unwrap_or(1);
    match measure(model, template, data, dataset, repeat) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(
    model: &str,
    template: &str,
    data: &str,
    dataset: &str,
    repeat: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let begun = Instant::now();
    let dataset_options = DatasetOptions {
        dataset: vec![dataset.to_owned()],
        eval_dataset: Vec::new(),
        dataset_dir: PathBuf::from(data),
        hub: sft_data::hub::HubOptions::default(),
        stage: Stage::Sft,
        max_samples: None,
        val_size: None,
        seed: 42,
        mix: Mix::default(),
        eval_on_each_dataset: false,
        streaming: None,
        problem_limit: ProblemLimit::Fraction(1.0),
    };
    let rows = dataset::load(&dataset_options)?.train;
    let rows: Vec<_> = std::iter::repeat_n(rows, repeat).flatten().collect();
    println!("{} rows read in {:.2} s", rows.len(), begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let policy = Policy::default();
    let pipeline =
        Pipeline::new(Tokenizer::load(model)?, Some(template), &TemplateOptions::default(), policy)?;
    println!("tokenizer and template loaded in {:.2} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let (examples, report) = pipeline.encode_all(&rows);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} examples, {} tokens ({} supervised, longest {}, {} dropped, {} cut, {} rewritten, {} border) in {seconds:.2} s: {:.0} rows/s, {:.2} M tokens/s",
        report.examples,
        report.tokens,
        report.supervised,
        report.longest,
        report.dropped(),
        report.cut_rows,
        report.rewritten_rows,
        report.border_rows,
        rows.len() as f64 / seconds,
        report.tokens as f64 / seconds / 1e6
    );
    let examples = kept(&dataset_options, model, template, &policy, examples)?;
    let begun = Instant::now();
    let options = LoaderOptions {
        batch_size: 1,
        accumulation: 1,
        pack_to: Some(policy.cutoff_len),
        in_order: false,
        seed: 42,
    };
    let loader = Loader::new(examples, options)?;
    println!(
        "packed into {} bins of {} tokens, {:.2} % full, in {:.3} s",
        loader.steps_per_epoch(),
        policy.cutoff_len,
        loader.fill().unwrap_or_default() * 100.0,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Keeps examples as a run does, and times a second start: the key of all inputs, the file, its check sum.
fn kept(
    dataset: &DatasetOptions,
    model: &str,
    template: &str,
    policy: &Policy,
    train: Vec<Example>,
) -> Result<Vec<Example>, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let place = Place::Named(folder.path().to_owned());
    let (template_options, model, packing) = (&TemplateOptions::default(), Path::new(model), false);
    let new_tokens = &NewTokens::default();
    let inputs = KeyInputs { dataset, model, new_tokens, template, template_options, policy, packing };
    let key = Key::new(&inputs)?;
    let begun = Instant::now();
    place.keep(&key, &Tokenised { train, ..Tokenised::default() }, &Clock::today())?;
    println!(
        "kept in {:.3} s: {} MiB",
        begun.elapsed().as_secs_f64(),
        place.file(&key).metadata()?.len() >> 20
    );
    let begun = Instant::now();
    let key = Key::new(&inputs)?;
    let keyed = begun.elapsed();
    match place.find(&key)? {
        Found::Rows(rows) => {
            let (all, keyed) = (begun.elapsed().as_secs_f64(), keyed.as_secs_f64());
            println!(
                "{} examples of a second start in {all:.3} s ({keyed:.3} s of it for the key)",
                rows.train.len()
            );
            Ok(rows.train)
        }
        other => Err(format!("not found again: {other:?}").into()),
    }
}
