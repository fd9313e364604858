//! `sft runs`: the ledger of runs, how two of them differ, and several in one picture and one table.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use sft_runs::ledger::comparison::{self, aligned};
use sft_runs::ledger::diff::RunDiff;
use sft_runs::ledger::{KeptRun, Ledger};
use sft_runs::timing;

use crate::kept;

/// Lists the runs of this user, or says how they differ. A run is named by its number, or by its folder.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many runs are listed, the last ones
    #[arg(long, default_value_t = 20)]
    most: usize,
    /// The ledger; else SFT_LEDGER, or the user's own
    #[arg(long, global = true)]
    ledger: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Which keys, data, model files, program and machine of two runs differ, and how their curves do
    Diff {
        /// Number or folder
        a: String,
        /// Number or folder
        b: String,
    },
    /// The curves of several runs in one picture for each, and their figures in one table
    Compare {
        /// Numbers or folders
        #[arg(required = true, num_args = 1..)]
        runs: Vec<String>,
        /// Beginning of the pictures' names: NAME_loss.png, NAME_loss.svg, …
        #[arg(long, default_value = "compare")]
        output: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let place = kept::place(args.ledger.as_deref());
    let find = |name: &String| KeptRun::find(name, place.as_deref());
    match args.command {
        None => list(place, args.ledger.as_deref(), args.most)?,
        Some(Command::Diff { a, b }) => print!("{}", RunDiff::of(&find(&a)?, &find(&b)?)),
        Some(Command::Compare { runs, output }) => {
            let runs = runs.iter().map(find).collect::<Result<Vec<_>, _>>()?;
            print!("{}", comparison::table(&runs));
            for stem in comparison::draw(&runs, &output)? {
                println!("{0}.png, {0}.svg", stem.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(place: Option<PathBuf>, asked: Option<&Path>, most: usize) -> anyhow::Result<()> {
    let Some(place) = place.filter(|place| place.is_file()) else {
        if let Some(asked) = asked {
            bail!(
                "{}: no such file\nhelp: `--ledger` names the ledger of runs that were trained with `ledger: FILE`",
                asked.display()
            );
        }
        println!("no run is kept yet");
        return Ok(());
    };
    let runs = Ledger::read(&place)?.last(most)?;
    let mut rows = vec![
        ["run", "began (UTC)", "status", "steps", "loss", "eval loss", "model", "folder"]
            .map(String::from)
            .to_vec(),
    ];
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    rows.extend(runs.iter().map(|run| {
        let record = &run.record;
        let steps = record.end.as_ref().map(|end| end.steps);
        let seen = run.curves.get("loss").and_then(|points| points.last()).map(|point| point.0);
        let model = record.config.get("model_name_or_path").and_then(|value| value.as_str()).unwrap_or("-");
        vec![
            run.number.map_or("-".to_owned(), |number| number.to_string()),
            timing::format_utc(record.started_at),
            run.status().to_owned(),
            format!("{}/{}", steps.or(seen).unwrap_or(0), record.total_steps),
            number(run.last("loss")),
            number(run.last("eval_loss")),
            model.to_owned(),
            record.output_dir.display().to_string(),
        ]
    }));
    print!("{}", aligned(&rows));
    Ok(())
}
