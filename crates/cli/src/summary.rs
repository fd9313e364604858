//! What is printed before the first step: data, labels, steps, memory.

use sft_config::RunConfig;
use sft_data::pipeline::{EncodeReport, LENGTH_STEP};
use sft_kernels::Device;
use sft_model::weights::WeightFiles;
use sft_train::fit::Fit;
use sft_train::{Job, TrainError, setup};

/// Keys that were accepted and change nothing.
pub fn no_effect(config: &RunConfig) {
    if config.no_effect.is_empty() {
        return;
    }
    println!("keys without effect:");
    config.no_effect.iter().for_each(|key| println!("  {key}"));
}

/// What computes.
pub fn device(dev: &Device) {
    println!("device: {}", dev.name());
    if let Some(reason) = dev.no_gpu() {
        println!("no GPU: {}", reason.lines().next().unwrap_or_default());
    }
}

/// Everything known of a job.
pub fn job(job: &Job) {
    setup::idle_rope_scaling(&job.config).iter().for_each(|note| println!("{note}"));
    data(job);
    if job.config.do_train {
        encoded(if job.config.streaming { "training rows so far" } else { "training rows" }, &job.encoded);
    }
    if let Some(report) = &job.eval_encoded {
        encoded("evaluation rows", report);
    }
    steps(job);
    memory(job);
}

fn data(job: &Job) {
    println!("data:");
    let streamed = if job.config.streaming { job.config.dataset.len() } else { 0 };
    for (at, set) in job.datasets.iter().enumerate() {
        let detected = if set.detected { ", told from its columns" } else { "" };
        let format = set.format.name();
        if at < streamed {
            println!("  {}: a stream ({format}{detected})", set.name);
        } else {
            let (used, read, dropped) = (set.rows_used, set.rows_read, set.rows_dropped);
            println!("  {}: {used} rows of {read} ({format}{detected}), {dropped} malformed", set.name);
        }
        if !set.unread_columns.is_empty() {
            println!("    columns that are not read: {}", set.unread_columns.join(", "));
        }
        set.notes.iter().for_each(|note| println!("    {note}"));
    }
    job.rows_note.iter().for_each(|note| println!("  {note}"));
    const SHOWN: usize = 5;
    job.problems.iter().take(SHOWN).for_each(|problem| println!("  dropped {problem}"));
    if job.problems.len() > SHOWN {
        println!("  … and {} more", job.problems.len() - SHOWN);
    }
}

fn encoded(what: &str, report: &EncodeReport) {
    let share = 100.0 * report.supervised as f64 / report.tokens.max(1) as f64;
    println!(
        "{what}: {} examples, {} tokens, {} supervised ({share:.1} %), longest {}",
        report.examples, report.tokens, report.supervised, report.longest
    );
    let notes = [
        (report.refused.len(), "rows refused by the template"),
        (report.untrained.len(), "rows dropped: no supervised token"),
        (report.too_long.len(), "rows or turns left out: longer than cutoff_len"),
        (report.split_rows, "rows parted between turns to fit cutoff_len"),
        (report.cut_rows, "rows cut at cutoff_len"),
        (report.cut_ends, "rows whose last answer lost its end: the model learns not to stop there"),
        (
            report.parted_rows,
            "rows tokenised on both sides of a prompt's end, where one token would lie across",
        ),
        (report.border_rows, "rows in which an answer shares a token with its surroundings"),
        (
            report.rewritten_rows,
            "rows in which the template rewrites an earlier answer: it is trained in an example of its own",
        ),
        (report.hidden_rows, "rows in which the template leaves out an answer"),
    ];
    notes.iter().filter(|(n, _)| *n > 0).for_each(|(n, what)| println!("  {n} {what}"));
    let proof = &report.proof;
    if proof.answers > 0 {
        println!(
            "  proved: {} answers of {} rows are asked as they are trained",
            proof.answers,
            proof.rows - proof.cut_rows
        );
    }
    for problem in report.refused.iter().chain(&report.untrained).take(3) {
        println!("    {problem}");
    }
    if report.lengths.len() > 1 {
        let most = report.lengths.values().max().copied().unwrap_or(1).max(1);
        for (from, count) in &report.lengths {
            let bar = "█".repeat((count * 40).div_ceil(most));
            println!("  {from:>6}–{:<6} {count:>7} {bar}", from + LENGTH_STEP - 1);
        }
    }
}

fn steps(job: &Job) {
    let c = &job.config;
    if !c.do_train {
        let what = if c.do_eval { "an evaluation" } else { "answers" };
        return println!("steps: none, {what} alone");
    }
    let fill = job.train.fill().map_or(String::new(), |fill| format!(", packed {:.1} % full", fill * 100.0));
    let epochs = match job.train.steps_per_epoch() {
        Some(steps) => format!("{steps} an epoch, {} epochs", (job.epochs * 100.0).round() / 100.0),
        None => format!("of a stream, mixed by a buffer of {} rows", c.buffer_size),
    };
    let joined = match job.joining.room {
        room if room > 0 && c.gradient_accumulation_steps > 1 => format!(", up to {room} tokens at a time"),
        _ => String::new(),
    };
    println!(
        "steps: {} ({epochs}), {} × {} rows{fill}{joined}",
        job.total_steps, c.gradient_accumulation_steps, c.per_device_train_batch_size
    );
    if job.joining.shares_prefixes {
        let first = job.train.peek().map(|step| (step.computed_tokens(), step.tokens()));
        let first =
            first.map(|(computed, all)| format!(": the first step computes {computed} for its {all} tokens"));
        println!("  rows that begin alike share their beginning{}", first.unwrap_or_default());
    }
}

fn memory(job: &Job) {
    let plan = &job.plan;
    let counts = plan.counts;
    let total = counts.frozen + counts.trained;
    let trained = match plan.trains {
        true => {
            let share = 100.0 * counts.trained as f64 / total.max(1) as f64;
            format!("{} trained ({share:.3} %), {}", counts.trained, job.method.name())
        }
        false => "none trained,".to_owned(),
    };
    println!(
        "model: {total} parameters, {trained} {}{}",
        job.precision.compute.name(),
        job.precision
            .quantization
            .map_or(String::new(), |scheme| format!(", frozen linear layers in {scheme}"))
    );
    // No weights are there where they are drawn.
    let aside = WeightFiles::open_model(&job.base).map_or(0, |files| files.of_other_parts(&job.spec));
    if aside > 0 {
        println!("left aside: {aside} tensors of other parts of the model than its text part");
    }
    let blocks = job.spec.layers.len();
    let recompute = match plan.recomputed.blocks() {
        _ if !plan.trains => "forward alone".to_owned(),
        0 => "all activations kept".to_owned(),
        some if some < blocks => format!("{some} of {blocks} blocks are computed again in backward"),
        _ => "blocks are computed again in backward".to_owned(),
    };
    let packed = if plan.pack { ", frozen weights packed once" } else { "" };
    println!("memory for {} tokens at a time ({recompute}{packed}):", plan.max_tokens);
    for (what, bytes) in plan.components().into_iter().filter(|(_, bytes)| *bytes > 0) {
        println!("  {what:<28} {:>10}", mib(bytes));
    }
    let free = job.available.map_or(String::new(), |bytes| format!(", {} free", mib(bytes as usize)));
    println!("  {:<28} {:>10}{free}", "in all", mib(plan.total()));
}

/// What fits into the memory that is free, as keys.
///
/// # Errors
/// As [`Fit::of`].
pub fn fit(job: &Job) -> Result<(), TrainError> {
    let Some(fit) = Fit::of(job)? else {
        println!("\nthe system does not say how much memory is free");
        return Ok(());
    };
    let answers = job.plan.answers;
    if let Some(available) = job.available.filter(|_| !job.config.do_train && answers > 0) {
        let rest = available.saturating_sub((job.plan.total() - answers) as u64);
        let at_a_time = job.config.per_device_eval_batch_size.min(job.eval_rows.len());
        println!("\nfits: {} answers at a time", rest / (answers / at_a_time.max(1)).max(1) as u64);
        return Ok(());
    }
    println!("\nfits: micro-batches of up to {} tokens", fit.max_tokens);
    if !job.config.do_train {
        // An evaluation alone takes rows as they are.
        return Ok(());
    }
    match fit.batch {
        Some(batch) => {
            println!(
                "the largest micro-batch ({} tokens at most), with as many rows a step as now:",
                batch.tokens
            );
            println!("  per_device_train_batch_size: {}", batch.rows);
            println!("  gradient_accumulation_steps: {}", batch.accumulation);
        }
        None => println!("no row of up to cutoff_len {} tokens fits", job.config.cutoff_len),
    }
    if let Some(cutoff_len) = fit.cutoff_len {
        println!("the longest rows, one at a time, with as many rows a step as now:");
        println!("  cutoff_len: {cutoff_len}");
        println!("  per_device_train_batch_size: 1");
        let rows = job.config.per_device_train_batch_size * job.config.gradient_accumulation_steps;
        println!("  gradient_accumulation_steps: {rows}");
    }
    Ok(())
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
