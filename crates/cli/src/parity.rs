//! `sft parity CASE…`: one line a case, exit status 1 if any difference is over its limit.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use sft_kernels::{CpuOptions, DType};
use sft_train::parity::{self, Limits, OF_ITS_OWN, OTHER_ADAPTERS, Parity};
use sft_train::setup;

/// Compares logits, loss, every gradient, and six steps of training (all weights, LoRA) with those in the case's
/// folder, which are of float32, rows packed and alone.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Case folders (`tools/make_parity_case.py` makes one of any model)
    #[arg(required = true)]
    cases: Vec<PathBuf>,
    /// Type of activations and frozen weights, each with limits of its own; several with commas between
    #[arg(long, value_delimiter = ',', default_value = "float32")]
    dtype: Vec<Compute>,
    /// Threads; all cores if left out
    #[arg(long)]
    threads: Option<usize>,
    /// `cpu`, `cuda`, `cuda:N`, or `auto`
    #[arg(long, default_value = "cpu")]
    device: sft_config::Device,
    /// Comma-separated values instead of a table
    #[arg(long)]
    csv: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compute {
    Float32,
    Bfloat16,
}

impl Compute {
    fn dtype(self) -> DType {
        match self {
            Compute::Float32 => DType::F32,
            Compute::Bfloat16 => DType::BF16,
        }
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dev = setup::device_of(args.device, CpuOptions { threads: args.threads, isa: None })?;
    let mut failed = 0;
    if args.csv {
        println!("case,dtype,logits,loss,gradient,full,lora,{}", OTHER_ADAPTERS.join(","));
    }
    for dtype in args.dtype.iter().map(|compute| compute.dtype()) {
        if !args.csv {
            head(&dev.name(), dtype);
        }
        for case in &args.cases {
            let name = name_of(case);
            let found = Limits::of(case, dtype).and_then(|l| Ok((parity::compare(&dev, case, dtype)?, l)));
            failed += usize::from(!found.as_ref().is_ok_and(|(found, limits)| found.holds(limits)));
            match found {
                Ok((found, limits)) if args.csv => print_values(&name, dtype, &found, &limits),
                Ok((found, limits)) => println!("{}", line(&name, &found, &limits)),
                Err(error) if args.csv => eprintln!("{name}: {error}"),
                Err(error) => println!("{name:<24} {error}"),
            }
        }
    }
    if !args.csv {
        let all = args.cases.len() * args.dtype.len();
        println!("{} of {all} cases hold", all - failed);
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The name of a case's folder.
fn name_of(case: &Path) -> String {
    case.file_name().map_or_else(|| case.display().to_string(), |n| n.to_string_lossy().into_owned())
}

fn head(device: &str, dtype: DType) {
    let limits = if dtype == DType::F32 {
        let Limits { logits, loss, gradient, full, lora: _ } = Limits::FLOAT32;
        format!("logits {logits:.0e}, loss {loss:.0e}, gradients {gradient:.0e}, training {full:.0e}")
    } else {
        format!("{OF_ITS_OWN} times what transformers' own is off by, in each case (bfloat16.json)")
    };
    println!("largest differences in {} on {device}; limits: {limits}", dtype.name());
    println!(
        "{:<24} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "case", "logits", "loss", "gradient", "full", "lora", "of limit"
    );
}

fn line(name: &str, found: &Parity, limits: &Limits) -> String {
    let or_none = |x: Option<f64>| x.map_or("–".to_owned(), |x| format!("{x:.1e}"));
    let (gradient, worst) = found.gradient.clone().unzip();
    let (gradient, full, lora) = (or_none(gradient), or_none(found.full), or_none(found.lora));
    let others: String = found.others.iter().map(|(kind, worst)| format!("  {kind} {worst:.1e}")).collect();
    let (share, of) = found.share(limits);
    let verdict = match (found.holds(limits), of) {
        (true, _) => String::new(),
        (false, "gradient") => format!("  OVER (gradient of {})", worst.unwrap_or_default()),
        (false, of) => format!("  OVER ({of})"),
    };
    format!(
        "{name:<24} {:>9.1e} {:>9.1e} {gradient:>9} {full:>9} {lora:>9} {share:>9.3}{others}{verdict}",
        found.logits, found.loss
    )
}

/// Two digits of each difference, nothing where there is none; of bfloat16 also what transformers' own is off by.
fn print_values(name: &str, dtype: DType, found: &Parity, limits: &Limits) {
    let gradient = found.gradient.as_ref().map(|(gradient, _)| *gradient);
    let others = OTHER_ADAPTERS.map(|kind| found.others.get(kind).copied());
    let line = |what: &str, five: [Option<f64>; 5], others: [Option<f64>; OTHER_ADAPTERS.len()]| {
        let digits = |x: Option<f64>| x.map_or_else(String::new, |x| format!("{x:.1e}"));
        let cells: Vec<String> = five.into_iter().chain(others).map(digits).collect();
        println!("{name},{what},{}", cells.join(","));
    };
    line(dtype.name(), [Some(found.logits), Some(found.loss), gradient, found.full, found.lora], others);
    if dtype == DType::BF16 {
        let Limits { logits, loss, gradient, full, lora } = limits;
        let own = [logits, loss, gradient, full, lora].map(|limit| Some(limit / OF_ITS_OWN));
        let own = if found.lora.is_none() { [own[0], own[1], own[2], own[3], None] } else { own };
        line("bfloat16 of transformers", own, [None; OTHER_ADAPTERS.len()]);
    }
}
