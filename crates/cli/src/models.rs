//! `sft models`: the families that are supported, or what a model's folder is to this program.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sft_model::ModelError;
use sft_model::families;
use sft_model::spec::{DecoderSpec, MixerSpec};
use sft_model::weights::WeightFiles;

/// Prints the table of families; with folders, what is made of their `config.json`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders with a config.json
    folders: Vec<PathBuf>,
}

/// Runs the command. Fails if one of the folders is refused.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.folders.is_empty() {
        print!("{}", families::page());
        return Ok(ExitCode::SUCCESS);
    }
    let mut refused = 0;
    for folder in &args.folders {
        let said = families::read_spec(folder).map(|spec| summary(&spec) + &left_aside(folder, &spec));
        let said = said.map_err(|error| one_line(&error));
        refused += usize::from(said.is_err());
        let said = said.unwrap_or_else(|reason| format!("refused: {reason}"));
        println!("{}: {said}", folder.display());
    }
    println!("{} of {} resolve", args.folders.len() - refused, args.folders.len());
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The sizes that tell models of a family apart.
fn summary(spec: &DecoderSpec) -> String {
    let mut text = format!(
        "{}, {} layers of {}, vocabulary {}",
        spec.model_type,
        spec.layers.len(),
        spec.hidden_size,
        spec.vocab_size
    );
    if let Some(attention) = spec.layers.iter().find_map(|layer| layer.attends()) {
        text += &format!(
            ", {} heads of {} with {} of keys and values",
            attention.heads, attention.head_dim, attention.kv_heads
        );
    }
    if let Some(moe) = spec.layers.iter().find_map(|layer| layer.moe.as_ref()) {
        text += &format!(", {} experts of which {} are used", moe.experts, moe.top_k());
    }
    let others = spec.layers.iter().filter(|layer| !matches!(layer.mixer, MixerSpec::Attention)).count();
    if others > 0 {
        text += &format!(", {others} layers with another mixer than attention");
    }
    if let Some(moved) = spec.moved.first() {
        text += &format!(", text part of a larger model ({}…)", moved.files);
    }
    text
}

/// How many weights of other parts lie in the folder, where weights are there.
fn left_aside(folder: &Path, spec: &DecoderSpec) -> String {
    match WeightFiles::open_model(folder).map_or(0, |files| files.of_other_parts(spec)) {
        0 => String::new(),
        count => format!(", {count} tensors of other parts left aside"),
    }
}

/// An error without its path, which stands before it, and without its help.
fn one_line(error: &ModelError) -> String {
    let text = error.to_string();
    let reason = text.split_once("config.json: ").map_or(text.as_str(), |(_, reason)| reason);
    reason.split("\nhelp:").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use sft_data::template::named;
    use sft_model::families;

    #[test]
    fn templates_of_families_are_there() {
        for family in families::all() {
            for template in family.templates {
                assert!(named::names().any(|name| name == *template), "{}: {template}", family.model_type);
            }
        }
    }
}
