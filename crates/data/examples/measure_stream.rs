//! Reads a stream as training does and prints rows a second and the memory of the process, which must not grow.
//!
//! usage: measure_stream MODEL_DIR TEMPLATE DATASET_DIR DATASET BUFFER_SIZE [STEPS]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use sft_data::batches::{Batches, StreamLoader};
use sft_data::dataset::stream::Stream;
use sft_data::dataset::{DatasetOptions, Mix, ProblemLimit, Stage};
use sft_data::encoder::Encoder;
use sft_data::hub::HubOptions;
use sft_data::labels::Policy;
use sft_data::loader::LoaderOptions;
use sft_data::pipeline::Pipeline;
use sft_data::template::TemplateOptions;
use sft_data::tokenize::Tokenizer;

/// Steps between two lines.
const EVERY: u64 = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, template, folder, dataset, buffer, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: measure_stream MODEL_DIR TEMPLATE DATASET_DIR DATASET BUFFER_SIZE [STEPS]");
        return ExitCode::from(2);
    };
    let steps = rest.first().and_then(|steps| steps.parse().ok()).unwrap_or(200);
    let buffer = buffer.parse().unwrap_or(16384);
    match measure([model, template, folder, dataset], buffer, steps) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(
    [model, template, folder, dataset]: [&str; 4],
    buffer: usize,
    steps: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let options = DatasetOptions {
        dataset: vec![dataset.to_owned()],
        eval_dataset: Vec::new(),
        dataset_dir: PathBuf::from(folder),
        hub: HubOptions::from_env(&sft_data::hub::HubKeys::default()),
        stage: Stage::Sft,
        max_samples: None,
        val_size: None,
        mix: Mix::default(),
        eval_on_each_dataset: false,
        streaming: Some(buffer),
        seed: 42,
        problem_limit: ProblemLimit::Fraction(0.01),
    };
    let policy = Policy::default();
    let pipeline =
        Pipeline::new(Tokenizer::load(model)?, Some(template), &TemplateOptions::default(), policy)?;
    let loading =
        LoaderOptions { batch_size: 64, accumulation: 16, pack_to: None, in_order: false, seed: 42 };
    let begun = Instant::now();
    let stream = Stream::open(&options, true)?;
    let encoder = Encoder::Conversations(Box::new(pipeline));
    let mut batches =
        Batches::Streamed(Box::new(StreamLoader::new(stream, encoder, loading, options.problem_limit)?));
    let mut rows = 0;
    for step in 1..=steps {
        let batch = batches.next_step()?;
        rows += batch.micro_batches.iter().map(|batch| batch.rows.len()).sum::<usize>();
        if step % EVERY == 0 || step == steps {
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "epoch {} step {step}: {rows} rows, {:.0} rows/s, {} MiB now",
                batch.at.epoch,
                rows as f64 / seconds,
                resident_bytes() >> 20
            );
        }
    }
    Ok(())
}

/// Memory of the process; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) << 10
}
