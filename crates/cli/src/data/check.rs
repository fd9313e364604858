//! `sft data check`: what is odd about the rows of a configuration, before anything is trained.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use sft_config::Purpose;
use sft_data::dataset::{self, LoadedData, ProblemLimit};
use sft_data::lint::{self, Finding, Kind, Limit, Lint};
use sft_data::pipeline::{EncodeReport, LENGTH_STEP};
use sft_runs::{Curves, Series};
use sft_train::setup;

use crate::recipe::Recipe;

/// Counts and shows what is odd about the rows: malformed and empty ones, duplicates, rows that are also evaluated
/// on, cut and unprovable ones, wrong character sets.
#[derive(Debug, clap::Args)]
pub struct Check {
    #[command(flatten)]
    recipe: Recipe,
    /// More rows of a kind than this are an error: `duplicate=0`, `cut=0.01` (a fraction has a point)
    #[arg(long = "max", value_name = "KIND=LIMIT")]
    limits: Vec<String>,
    /// Any finding is an error
    #[arg(long)]
    strict: bool,
    /// Draw the lengths of the examples as NAME.png and NAME.svg
    #[arg(long, value_name = "NAME")]
    picture: Option<PathBuf>,
    /// Everything as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command: exit status 1 if a finding is over its limit.
pub fn run(args: Check) -> anyhow::Result<ExitCode> {
    let (config, _) = args.recipe.read(Purpose::Data)?;
    let mut limits = vec![(Kind::Unproved, Limit::Rows(0))];
    let options = setup::dataset_options(&config);
    let of_run = match options.problem_limit {
        ProblemLimit::Rows(rows) => Limit::Rows(usize::try_from(rows).unwrap_or(usize::MAX)),
        ProblemLimit::Fraction(part) => Limit::Fraction(part),
    };
    limits.extend([Kind::Malformed, Kind::Refused].map(|kind| (kind, of_run)));
    if args.strict {
        limits = Kind::ALL.map(|kind| (kind, Limit::Rows(0))).to_vec();
    }
    for text in &args.limits {
        let (kind, limit) = parse_limit(text)?;
        limits.retain(|(known, _)| *known != kind);
        limits.push((kind, limit));
    }
    // Rows that are not taken are findings here, whatever the run's limit.
    let data = dataset::load(&dataset::DatasetOptions {
        problem_limit: ProblemLimit::Fraction(1.0),
        streaming: None,
        ..options
    })?;
    let encoder = setup::encoder(&config)?;
    let train = encoder.encode(&data.train).1;
    let eval = (!data.eval.is_empty()).then(|| encoder.encode(&data.eval).1);
    let stops = encoder.pipeline().map_or(&[][..], |pipeline| pipeline.stop_ids());
    if let Some(name) = &args.picture {
        picture(&train, eval.as_ref()).save(name)?;
    }
    let lint = lint::lint(&data, &train, eval.as_ref(), encoder.tokenizer(), stops);
    let over: Vec<&Finding> = lint
        .findings
        .iter()
        .filter(|finding| limits.iter().any(|(kind, limit)| *kind == finding.kind && finding.is_over(*limit)))
        .collect();
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&lint)?)?,
        false => print(&mut out, &data, &lint, &train, &over)?,
    }
    Ok(if over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse_limit(text: &str) -> anyhow::Result<(Kind, Limit)> {
    let known = || Kind::ALL.map(Kind::name).join(", ");
    let Some((name, limit)) = text.split_once('=') else {
        bail!("--max {text}: a kind and a limit are needed\nhelp: --max duplicate=0; kinds are {}", known());
    };
    let Some(kind) = Kind::by_name(name) else {
        bail!("--max {text}: there is no kind `{name}`\nhelp: kinds are {}", known());
    };
    let wrong = || {
        anyhow!(
            "--max {text}: `{limit}` is no limit\nhelp: a number of rows (`5`) or a part of them (`0.01`)"
        )
    };
    let limit = match limit.contains('.') {
        true => {
            let part: f64 = limit.parse().map_err(|_| wrong())?;
            if !(0.0..=1.0).contains(&part) {
                return Err(wrong());
            }
            Limit::Fraction(part)
        }
        false => Limit::Rows(limit.parse().map_err(|_| wrong())?),
    };
    Ok((kind, limit))
}

fn print(
    out: &mut impl Write,
    data: &LoadedData,
    lint: &Lint,
    train: &EncodeReport,
    over: &[&Finding],
) -> anyhow::Result<()> {
    for set in &data.reports {
        let detected = if set.detected { ", told from its columns" } else { "" };
        writeln!(out, "{}: {} rows ({}{detected})", set.name, set.rows_read, set.format.name())?;
        for note in &set.notes {
            writeln!(out, "  {note}")?;
        }
    }
    let proof = &train.proof;
    writeln!(
        out,
        "training: {} rows, {} examples, {} tokens, {} supervised; {} answers proved",
        lint.rows.0, train.examples, train.tokens, train.supervised, proof.answers
    )?;
    for (rows, what) in [
        (
            train.rewritten_rows,
            "rows in which the template rewrites an earlier answer: it is trained in an example of its own",
        ),
        (train.border_rows, "rows in which an answer shares a token with what follows it"),
        (train.hidden_rows, "rows in which the template leaves out an answer"),
        (train.split_rows, "rows parted between turns"),
        (proof.answers_without_stop, "answers without a token that stops them"),
    ] {
        if rows > 0 {
            writeln!(out, "  {rows} {what}")?;
        }
    }
    if lint.cut_tokens.0 > 0 {
        let (lost, of) = lint.cut_tokens;
        let part = 100.0 * lost as f64 / of.max(1) as f64;
        writeln!(out, "  {lost} of {of} tokens lost to cutoff_len ({part:.2} %)")?;
    }
    histogram(out, train)?;
    for finding in &lint.findings {
        let is_over = over.iter().any(|over| over.kind == finding.kind);
        writeln!(
            out,
            "{} {}: {}{} {}",
            if is_over { "error  " } else { "warning" },
            finding.kind.name(),
            finding.rows,
            if finding.kind == Kind::UnreadColumn { String::new() } else { format!(" of {}", finding.of) },
            finding.kind.describe()
        )?;
        if finding.kind == Kind::Malformed {
            for (reason, rows) in &lint.malformed {
                writeln!(out, "    {rows:>6} × {reason}")?;
            }
        }
        for place in &finding.examples {
            writeln!(out, "    {}: {}", place.at, place.what)?;
        }
        if finding.rows > finding.examples.len() {
            writeln!(out, "    … and {} more", finding.rows - finding.examples.len())?;
        }
    }
    match (lint.findings.is_empty(), over.is_empty()) {
        (true, _) => writeln!(out, "nothing found")?,
        (_, true) => writeln!(out, "no finding is over its limit")?,
        _ => writeln!(out, "{} kinds of findings are over their limits", over.len())?,
    }
    Ok(())
}

/// Lengths of the examples as bars.
fn histogram(out: &mut impl Write, report: &EncodeReport) -> anyhow::Result<()> {
    let most = report.lengths.values().max().copied().unwrap_or(1).max(1);
    writeln!(out, "length in tokens (longest {}):", report.longest)?;
    for (from, count) in &report.lengths {
        let bar = "█".repeat((count * 40).div_ceil(most));
        writeln!(out, "  {from:>6}–{:<6} {count:>7} {bar}", from + LENGTH_STEP - 1)?;
    }
    Ok(())
}

/// The same as outlines of bars, of training and evaluation rows.
fn picture(train: &EncodeReport, eval: Option<&EncodeReport>) -> Curves {
    let outline = |report: &EncodeReport| {
        let bar = |(from, count): (&usize, &usize)| {
            let (from, to, count) = (*from as f64, (from + LENGTH_STEP) as f64, *count as f64);
            [(from, 0.0), (from, count), (to, count), (to, 0.0)]
        };
        report.lengths.iter().flat_map(bar).collect::<Vec<_>>()
    };
    let reports = [("training", Some(train)), ("evaluation", eval)].into_iter().enumerate();
    let series = reports.filter_map(|(colour, (name, report))| {
        Some(Series { name: name.to_owned(), points: outline(report?), colour, is_faint: false })
    });
    Curves {
        title: "lengths of the examples".to_owned(),
        x_label: "tokens".to_owned(),
        y_label: format!("examples in each {LENGTH_STEP} tokens"),
        series: series.collect(),
    }
}
