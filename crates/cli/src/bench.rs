//! `sft bench CONFIG`: how fast a job trains here, op by op, beside the limits of the machine.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use sft_config::{Purpose, RunConfig};
use sft_infer::{GenerationOptions, Generator, Progress};
use sft_kernels::limits::Limits;
use sft_kernels::profile::{Cost, Op};
use sft_model::adapter::Last;
use sft_train::bench::{Report, bench};
use sft_train::{Job, setup};

use crate::recipe::Recipe;

/// Takes some steps of a job, writes nothing, and prints tokens a second and the time of every op.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
    /// Steps that are timed
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Steps before them
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Weights drawn at random: the model's folder needs a config.json and a tokenizer alone
    #[arg(long)]
    random_weights: bool,
    /// Products apart by the shape of their weight
    #[arg(long)]
    profile: bool,
    /// Time this many tokens of an answer instead of training
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["steps", "warm_up", "random_weights", "profile"])]
    decode: Option<NonZeroUsize>,
    /// Only the line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(tokens) = args.decode {
        let (config, model) = args.recipe.read(Purpose::Chat)?;
        model.fetch_weights()?;
        println!("{}", decode(&config, tokens.get(), args.json)?);
        return Ok(ExitCode::SUCCESS);
    }
    // Steps are timed, also of a recipe that evaluates alone: one that names no rows to train on is told so.
    let (config, model) = args.recipe.with("do_train=true").read(Purpose::Train)?;
    let mut job = setup::device(&config)?.install(|| Job::prepare(config))?;
    if !args.random_weights && !job.config.train_from_scratch {
        model.fetch_weights()?;
    }
    job.random_weights = args.random_weights;
    let report = bench(job, args.warm_up, args.steps)?;
    if !args.json {
        head(&report);
        table(&report, args.profile);
    }
    println!("{}", as_json(&report));
    Ok(ExitCode::SUCCESS)
}

/// Answers of one token after the other: every weight is read once a token, so the limit is memory.
fn decode(config: &RunConfig, tokens: usize, quiet: bool) -> anyhow::Result<serde_json::Value> {
    const PROMPT: [u32; 16] = [1; 16];
    let dev = setup::device(config)?;
    let spec = setup::spec(config)?;
    let started = Instant::now();
    let (decoder, _) = setup::decoder(config, &dev, &spec, Last::Attached)?;
    let load_s = started.elapsed().as_secs_f64();
    let limits = Limits::measure(&dev);
    let mut generator = Generator::new(&dev, &decoder);
    let mut times = Vec::with_capacity(tokens + 1);
    dev.install(|| {
        generator.generate(&PROMPT, &GenerationOptions::greedy(tokens + 1, &[]), |progress| {
            if matches!(progress, Progress::Token(_)) {
                times.push(Instant::now());
            }
            ControlFlow::Continue(())
        })
    })?;
    let mut seconds: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    // Of an embedding that is not the head too, a token reads a single row.
    let embedding = if spec.tie_word_embeddings { 0 } else { spec.vocab_size * spec.hidden_size };
    let bytes = (decoder.parameters() - embedding) * decoder.compute.bytes();
    let rate = bytes as f64 / median;
    if !quiet {
        println!(
            "{}, {}: {:.1} tokens/s (median of {}), {:.2} GB of weights a token = {:.1} GB/s; a copy moves {:.1} GB/s",
            dev.name(),
            decoder.compute.name(),
            1.0 / median,
            seconds.len(),
            bytes as f64 / 1e9,
            rate / 1e9,
            limits.copy_bytes / 1e9
        );
    }
    Ok(json!({
        "isa": dev.isa().name(),
        "threads": dev.threads(),
        "compute_dtype": decoder.compute.name(),
        "load_s": load_s,
        "tokens_per_s": 1.0 / median,
        "bytes_per_s": rate,
        "copy_bytes_per_s": limits.copy_bytes,
    }))
}

fn head(report: &Report) {
    let limits = report.limits;
    println!(
        "{}: at most {:.0} GFLOP/s in float32, {:.0} in bfloat16; copies {:.1} GB/s",
        report.device,
        limits.f32_flops / 1e9,
        limits.bf16_flops / 1e9,
        limits.copy_bytes / 1e9
    );
    println!(
        "loading {:.2} s, first step {:.2} s, then {} steps of {:.3} s (median)",
        report.load_s,
        report.first_step_s,
        report.steps.len(),
        report.step_s()
    );
    println!(
        "{:.0} tokens/s, {:.0} supervised tokens/s, {:.0} GFLOP/s = {:.1} % of the limit, peak memory {}",
        report.tokens_per_s(),
        report.supervised_per_s(),
        report.flops_per_s() / 1e9,
        100.0 * report.flops_per_s() / report.flops_limit(),
        report.peak_bytes.map_or("unknown".into(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9))
    );
}

/// Ops by the time they take; products apart by their weight if `weights`.
fn table(report: &Report, weights: bool) {
    let mut ops: BTreeMap<Op, Cost> = BTreeMap::new();
    for (op, cost) in &report.ops {
        let key = if weights { *op } else { Op { weight: [0; 2], ..*op } };
        *ops.entry(key).or_default() += *cost;
    }
    let mut ops: Vec<_> = ops.into_iter().collect();
    ops.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.time));
    let (steps, total) = (report.profiled.len() as f64, report.profiled_s());
    println!(
        "\n{:<40} {:>8} {:>9} {:>7} {:>9} {:>7} {:>7}",
        "op", "calls", "ms", "%", "GFLOP/s", "% limit", "GB/s"
    );
    let mut inside = 0.0;
    for (op, cost) in ops {
        let seconds = cost.time.as_secs_f64();
        inside += seconds;
        let name = match op.weight {
            [0, 0] => op.name.to_owned(),
            [out, input] => format!("{} [{out}, {input}]", op.name),
        };
        let (rate, share) = if cost.flops > 0.0 {
            let rate = cost.flops / seconds;
            (format!("{:.0}", rate / 1e9), format!("{:.0}", 100.0 * rate / report.flops_limit()))
        } else {
            (String::new(), String::new())
        };
        println!(
            "{name:<40} {:>8.0} {:>9.2} {:>7.1} {rate:>9} {share:>7} {:>7.1}",
            cost.calls as f64 / steps,
            1e3 * seconds / steps,
            100.0 * seconds / total,
            cost.bytes / seconds / 1e9
        );
    }
    let rest = total - inside;
    println!(
        "{:<40} {:>8} {:>9.2} {:>7.1}\n",
        "outside of ops",
        "",
        1e3 * rest / steps,
        100.0 * rest / total
    );
}

fn as_json(report: &Report) -> serde_json::Value {
    let mut ops = BTreeMap::<&str, f64>::new();
    for (op, cost) in &report.ops {
        *ops.entry(op.name).or_default() += 1e3 * cost.time.as_secs_f64() / report.profiled.len() as f64;
    }
    json!({
        "device": report.device,
        "isa": report.isa.name(),
        "threads": report.threads,
        "compute_dtype": report.compute.name(),
        "f32_flops_limit": report.limits.f32_flops,
        "bf16_flops_limit": report.limits.bf16_flops,
        "copy_bytes_per_s": report.limits.copy_bytes,
        "load_s": report.load_s,
        "first_step_s": report.first_step_s,
        "step_s": report.step_s(),
        "tokens_per_s": report.tokens_per_s(),
        "supervised_tokens_per_s": report.supervised_per_s(),
        "flops_per_s": report.flops_per_s(),
        "flops_per_step": report.flops_per_step(),
        "loss": report.loss,
        "peak_bytes": report.peak_bytes,
        "ops_ms": ops,
    })
}
