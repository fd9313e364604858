//! `sft parity CASE…`: one line a case, exit status 1 if any difference is over its limit.

use std::path::PathBuf;
use std::process::ExitCode;

use sft_kernels::CpuOptions;
use sft_train::parity::{self, Limits};
use sft_train::setup;

/// Compares logits, loss, every gradient, and six steps of training (all weights, LoRA) with those in the case's
/// folder, in float32, rows packed and alone.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Case folders (`tools/make_parity_case.py` makes one of any model)
    #[arg(required = true)]
    cases: Vec<PathBuf>,
    /// Threads; all cores if left out
    #[arg(long)]
    threads: Option<usize>,
    /// `cpu`, `cuda`, `cuda:N`, or `auto`
    #[arg(long, default_value = "cpu")]
    device: sft_config::Device,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dev = setup::device_of(args.device, CpuOptions { threads: args.threads, isa: None })?;
    let limits = Limits::FLOAT32;
    println!(
        "largest differences in float32 on {}; limits: logits {:.0e}, loss {:.0e}, gradients {:.0e}, training {:.0e}",
        dev.name(),
        limits.logits,
        limits.loss,
        limits.gradient,
        limits.training
    );
    println!("{:<24} {:>9} {:>9} {:>9} {:>9} {:>9}", "case", "logits", "loss", "gradient", "full", "lora");
    let mut failed = 0;
    for case in &args.cases {
        let name =
            case.file_name().map_or_else(|| case.display().to_string(), |n| n.to_string_lossy().into_owned());
        match parity::compare(&dev, case) {
            Ok(found) => {
                let or_none = |x: Option<f64>| x.map_or("–".to_owned(), |x| format!("{x:.1e}"));
                let (gradient, worst) = found.gradient.clone().unzip();
                let (gradient, full, lora) = (or_none(gradient), or_none(found.full), or_none(found.lora));
                let others: String =
                    found.others.iter().map(|(kind, worst)| format!("  {kind} {worst:.1e}")).collect();
                let holds = found.holds(&limits);
                let verdict = match holds {
                    true => String::new(),
                    false => format!("  OVER ({})", worst.as_deref().unwrap_or("quantised")),
                };
                println!(
                    "{name:<24} {:>9.1e} {:>9.1e} {gradient:>9} {full:>9} {lora:>9}{others}{verdict}",
                    found.logits, found.loss
                );
                failed += usize::from(!holds);
            }
            Err(error) => {
                println!("{name:<24} {error}");
                failed += 1;
            }
        }
    }
    println!("{} of {} cases hold", args.cases.len() - failed, args.cases.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
