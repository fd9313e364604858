//! `sft train config.yaml [key=value …]`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sft_config::{Purpose, RunConfig};
use sft_train::run::{self, Outcome};
use sft_train::{Job, setup};

use crate::answers::Comparison;
use crate::kept::Kept;
use crate::progress::Screen;
use crate::recipe::Recipe;
use crate::{signals, summary};

/// Trains by a configuration with LLaMA-Factory's keys; `sft config` lists them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
    /// Show the resolved configuration, the data, the steps and the memory plan; train nothing
    #[arg(long)]
    dry_run: bool,
    /// Show the largest micro-batch and the longest rows that fit into the free memory, as keys, or of answers alone how many at a
    /// time; train nothing
    #[arg(long)]
    fit: bool,
}

impl Args {
    /// The same with `key=value` between the file and the command line.
    pub fn by_default(self, keys: &[&str]) -> Self {
        Self { recipe: self.recipe.by_default(keys), ..self }
    }
}

/// The exit status of a run that Ctrl-C ended, as shells have it: `sft train … && sft export …` stops there.
const INTERRUPTED: u8 = 130;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    run_if(args, |_| Ok(()))
}

/// The same for configurations that `check` lets pass.
pub fn run_if(args: Args, check: fn(&RunConfig) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    let (config, model) = args.recipe.read(Purpose::Train)?;
    check(&config)?;
    summary::no_effect(&config);
    if args.dry_run {
        println!("{}", config.resolved_yaml());
    }
    let dev = setup::device(&config)?;
    summary::device(&dev);
    let job = dev.install(|| Job::prepare(config)).inspect_err(crate::data::show_violation)?;
    summary::job(&job);
    if args.fit {
        summary::fit(&job)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        if let Err(error) = job.check_memory() {
            println!("\n{error}");
            return Ok(ExitCode::FAILURE);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !job.config.train_from_scratch {
        // What does not fit into memory need not be fetched.
        job.check_memory()?;
        model.fetch_weights()?;
    }
    // What is in the way there is told before questions are answered for minutes.
    let folder = run::open_folder(&job)?;
    let comparison = Comparison::begin(&job)?;
    let interrupts = count_interrupts()?;
    let screen = Screen::new(job.total_steps, interrupts);
    let mut kept = Kept::new(screen, &job, &dev, folder.goes_on());
    drop(dev);
    let output = job.config.output_dir.clone();
    let go_on = match (job.config.do_train, job.config.overwrite_output_dir) {
        (false, _) => None,
        (true, false) => {
            Some("run the same command again to go on from there (resume_from_checkpoint is found by itself)")
        }
        (true, true) => Some(
            "to go on from there, run the same command with resume_from_checkpoint=true: as it is, \
             `overwrite_output_dir: true` begins anew",
        ),
    };
    let outcome = run::run_in(&folder, job, &mut kept);
    kept.end(&outcome);
    kept.screen.close();
    let outcome = outcome?;
    report(&outcome, &output, go_on);
    if outcome.interrupted_at.is_some() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if let Some(comparison) = comparison {
        comparison.finish(&outcome.decoder)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts Ctrl-C and SIGTERM; the third ends the program at once.
fn count_interrupts() -> anyhow::Result<Arc<AtomicUsize>> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    signals::on_end(move || {
        if counted.fetch_add(1, Ordering::Relaxed) >= 2 {
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(count)
}

/// `go_on`: how a run that was interrupted goes on; an evaluation alone does not.
fn report(outcome: &Outcome, output: &std::path::Path, go_on: Option<&str>) {
    match (&outcome.interrupted_at, go_on) {
        (Some(checkpoint), Some(go_on)) => {
            println!("interrupted after step {}; checkpoint: {}", outcome.steps, checkpoint.display());
            println!("{go_on}");
        }
        (Some(_), None) => println!("interrupted: the same command does it again, from the beginning"),
        (None, Some(_)) if outcome.steps == outcome.resumed_at => {
            let step = outcome.steps;
            println!("done: nothing was left to train after step {step}, results in {}", output.display());
        }
        (None, Some(_)) => println!("done: {} steps, results in {}", outcome.steps, output.display()),
        (None, None) => println!("done: results in {}", output.display()),
    }
    if outcome.interrupted_at.is_none() {
        for (key, value) in &outcome.results {
            println!("  {key:<32} {value}");
        }
    }
    // Of an evaluation alone there are none.
    if go_on.is_some() {
        println!("digest of the trained weights: {}", outcome.digest);
    }
}
