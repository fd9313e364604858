//! `sft doctor`: what this machine has for training, and what is missing for a GPU.

use std::process::ExitCode;
use std::time::Instant;

use sft_kernels::cuda::{self, ARCHITECTURES, Cuda, CudaError, Found, Library, Properties, Source};
use sft_kernels::{CpuOptions, Device, Isa};
use sft_runs::memory::available_bytes;

/// Columns that a line has at most, paths apart.
const WIDTH: usize = 100;
/// Columns before the text of an entry.
const INDENT: usize = 12;

/// Shows the processor, GPUs, CUDA's libraries, and which device a run takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compile every kernel for every architecture, which needs CUDA's compiler and no GPU
    #[arg(long)]
    kernels: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let libraries = cuda::look_for_libraries();
    if args.kernels {
        return Ok(kernels(&libraries));
    }
    processor();
    show_libraries(&libraries);
    let cards = show_cards();
    Ok(choice(&cards))
}

fn processor() {
    println!("processor");
    match Device::cpu(CpuOptions::default()) {
        Ok(dev) => {
            let all: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name).collect();
            entry("threads", &dev.threads().to_string());
            entry("isa", &format!("{}; SFT_CPU chooses among {}", dev.isa(), all.join(", ")));
        }
        Err(error) => entry("fails", &error.to_string()),
    }
    let free = available_bytes().map_or("unknown".into(), |bytes| format!("{} free", gib(bytes as usize)));
    entry("memory", &free);
}

fn show_libraries(libraries: &[Found]) {
    println!("CUDA libraries");
    libraries.iter().for_each(show_library);
    let major = |library| libraries.iter().find(|found| found.library == library)?.version;
    if let (Some(driver), Some(compiler)) = (major(Library::Driver), major(Library::Nvrtc))
        && compiler.0 > driver.0
    {
        entry(
            "mismatch",
            &format!(
                "the driver runs CUDA up to {}.{}, and what a compiler of {} makes needs a newer one: update the driver, or `pip install nvidia-cuda-nvrtc-cu{1} nvidia-cublas-cu{1}` alone",
                driver.0, driver.1, compiler.0
            ),
        );
    }
}

fn show_library(found: &Found) {
    let name = match found.library {
        Library::Driver => "driver",
        Library::Nvrtc => "compiler",
        Library::CublasLt => "cuBLASLt",
    };
    let version = found.version.map_or(String::new(), |(major, minor)| format!("{major}.{minor}, "));
    let place = match &found.at {
        Some(at) if at.is_absolute() => at.display().to_string(),
        Some(name) => format!("{}, where the system looks", name.display()),
        None => format!("missing: {}", found.library.help()),
    };
    entry(name, &[version, place].concat());
}

/// A card, and why it cannot be used.
struct Card {
    properties: Properties,
    error: Option<CudaError>,
}

/// Shows every card; opens the first one of each compute capability, for which kernels are compiled.
fn show_cards() -> Vec<Card> {
    println!("GPUs");
    let found = match cuda::cards() {
        Ok(found) => found,
        Err(error) => {
            entry("none", &error.to_string());
            return Vec::new();
        }
    };
    if found.is_empty() {
        entry("none", "the driver names no card");
    }
    let mut cards: Vec<Card> = Vec::new();
    for (ordinal, properties) in found.into_iter().enumerate() {
        let (major, minor) = properties.capability;
        entry(
            &format!("cuda:{ordinal}"),
            &format!(
                "{}, compute capability {major}.{minor}, {} multiprocessors",
                properties.name, properties.multiprocessors
            ),
        );
        let free = cuda::free_bytes(ordinal).map_or_else(|error| error.to_string(), gib);
        entry("", &format!("{} of memory, {free} free", gib(properties.memory_bytes)));
        let same = cards.iter().position(|card| card.properties.capability == properties.capability);
        let error = match same {
            Some(same) => {
                entry("", &format!("kernels as for cuda:{same}"));
                None
            }
            None => open(ordinal, properties.capability),
        };
        cards.push(Card { properties, error });
    }
    cards
}

/// Opens a card and with it every kernel; says how that went.
fn open(ordinal: usize, capability: (u32, u32)) -> Option<CudaError> {
    let mut sources = cuda::sources();
    sources.retain(|source| source.is_for(capability));
    let kept = || sources.iter().filter(|source| source.is_cached(capability)).count();
    let (before, started) = (kept(), Instant::now());
    match Cuda::open(ordinal) {
        Ok(_) => {
            let (all, made) = (sources.len(), sources.len() - before);
            let seconds = started.elapsed().as_secs_f64();
            let how =
                format!("{all} files of kernels ready in {seconds:.1} s, {made} of them compiled just now");
            let place =
                cuda::cache_folder().map_or("no folder".into(), |folder| folder.display().to_string());
            let verb = if kept() == all { "kept" } else { "cannot be kept" };
            entry("", &format!("{how}; {verb} in {place}"));
            None
        }
        Err(error) => {
            entry("", &format!("cannot be used: {error}"));
            Some(error)
        }
    }
}

/// Shows what `device: auto` means here.
fn choice(cards: &[Card]) -> ExitCode {
    println!("device: auto");
    match (cuda::best_card(), cards) {
        (Ok(_), [Card { properties, error: None }, ..]) => {
            entry("cuda:0", &format!("{}, the first card; all that it needs is there", properties.name));
        }
        (Ok(_), _) => {
            entry("cuda:0", "and fails, as above: `device: cpu` avoids it");
            return ExitCode::FAILURE;
        }
        (Err(error), _) => {
            let reason = error.to_string();
            entry("cpu", &format!("since {}", reason.lines().next().unwrap_or_default()));
        }
    }
    ExitCode::SUCCESS
}

/// Compiles all kernels; a table of files by architectures.
fn kernels(libraries: &[Found]) -> ExitCode {
    println!("CUDA libraries");
    let compiler = libraries.iter().find(|found| found.library == Library::Nvrtc);
    compiler.into_iter().for_each(show_library);
    if compiler.is_none_or(|found| found.at.is_none()) {
        return ExitCode::FAILURE;
    }
    let names = ARCHITECTURES.map(|(major, minor)| format!("sm_{major}{minor}"));
    let heads: String = names.iter().map(|name| format!("{name:>9}")).collect();
    println!("{:<24}{heads}{:>9}", "KiB of machine code", "seconds");
    let started = Instant::now();
    let sources = cuda::sources();
    let (mut compiled, mut refused) = (0, 0);
    for source in &sources {
        let started = Instant::now();
        let results = for_every_architecture(source);
        let sizes: String = results
            .iter()
            .map(|result| match result {
                None => format!("{:>9}", ""),
                Some(Ok(machine_code)) => format!("{:>9}", machine_code.len().div_ceil(1024)),
                Some(Err(_)) => format!("{:>9}", "refused"),
            })
            .collect();
        println!("{:<24}{sizes}{:>9.1}", source.name(), started.elapsed().as_secs_f64());
        for result in results.iter().flatten() {
            match result {
                Ok(_) => compiled += 1,
                Err(error) => {
                    println!("{error}");
                    refused += 1;
                }
            }
        }
    }
    println!(
        "{compiled} of {} compile ({} files), in {:.1} s. Compiled only: none of them ran.",
        compiled + refused,
        sources.len(),
        started.elapsed().as_secs_f64()
    );
    if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Machine code by architecture; `None` for one that the file is not for.
fn for_every_architecture(source: &'static Source) -> Vec<Option<Result<Vec<u8>, CudaError>>> {
    std::thread::scope(|scope| {
        let running = ARCHITECTURES.map(|capability| {
            source.is_for(capability).then(|| scope.spawn(move || source.compile(capability)))
        });
        let joined = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().expect("compiling returns its errors")
        };
        running.into_iter().map(|thread| thread.map(joined)).collect()
    })
}

/// Prints a label and lines beside it.
fn entry(label: &str, text: &str) {
    let mut label = label;
    for line in text.lines().flat_map(wrapped) {
        println!("  {label:<width$}{line}", width = INDENT - 2);
        label = "";
    }
}

/// A line, broken between words where it would be too long.
fn wrapped(line: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let last = lines.last().map_or(0, |last| last.chars().count());
        if last > 0 && INDENT + last + 1 + word.chars().count() > WIDTH {
            lines.push(String::new());
        }
        if let Some(last) = lines.last_mut() {
            let space = if last.is_empty() { "" } else { " " };
            last.extend([space, word]);
        }
    }
    lines
}

fn gib(bytes: usize) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        let lines = wrapped(&"word ".repeat(40));
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| INDENT + line.len() <= WIDTH), "{lines:?}");
        assert_eq!(wrapped(&"x".repeat(200)).len(), 1);
    }
}
