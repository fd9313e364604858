//! `[CONFIG] [key=value …]`: how every command takes its configuration (stage 0 of the walk).

use std::ffi::OsString;
use std::path::PathBuf;

use sft_config::{Purpose, RunConfig};
use sft_hub::Model;
use sft_train::setup;

use crate::fetching;

/// A configuration file and what the command line says instead of it.
#[derive(Debug, clap::Args)]
pub struct Recipe {
    /// YAML or JSON file with LLaMA-Factory's keys; `sft config` lists them
    #[arg(value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// `key=value`, wins over what the file says
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// What a command says instead of the file; the command line wins over it.
    #[arg(skip)]
    of_command: Vec<String>,
}

impl Recipe {
    /// The same with `key=value` after all others.
    pub fn with(mut self, key: &str) -> Self {
        self.overrides.push(key.to_owned());
        self
    }

    /// The same with `key=value` between the file and the command line.
    pub fn by_default(mut self, keys: &[&str]) -> Self {
        self.of_command.extend(keys.iter().map(|key| (*key).to_owned()));
        self
    }

    /// The resolved configuration, and its model: of one from a hub, what describes it is here, and the weights can be
    /// fetched. A first word with `=` in it is an override, unless there is such a file.
    ///
    /// # Errors
    /// All problems of the configuration at once; a model or adapter that cannot be had.
    pub fn read(self, purpose: Purpose) -> anyhow::Result<(RunConfig, Model)> {
        let (path, overrides) = match self.config {
            Some(word) if word.to_string_lossy().contains('=') && !word.exists() => {
                let first = word.to_string_lossy().into_owned();
                (None, [vec![first], self.overrides].concat())
            }
            path => (path, self.overrides),
        };
        let overrides = [self.of_command, overrides].concat();
        let mut config = sft_config::load(path.as_deref(), &overrides, purpose)?;
        fetching::show();
        let model = setup::locate(&mut config)?;
        Ok((config, model))
    }
}

/// LLaMA-Factory's other spellings of a key, `--key value`, `--key=value` and `--key` alone for true, as `key=value`; what
/// is an option of the command stays.
pub fn spelled(words: impl IntoIterator<Item = OsString>, program: &clap::Command) -> Vec<OsString> {
    let (mut command, mut spelled) = (program, Vec::new());
    let mut words = words.into_iter().peekable();
    spelled.extend(words.next());
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if let Some(named) = command.find_subcommand(&*text) {
            command = named;
        }
        let (name, value) = match text.strip_prefix("--").map(|key| key.split_once('=')) {
            Some(Some((name, value))) => (name, Some(value.to_owned())),
            _ => (text.strip_prefix("--").unwrap_or_default(), None),
        };
        let is_option = command.get_arguments().any(|option| option.get_long() == Some(name));
        if is_option || !sft_config::is_key(name) {
            spelled.push(word);
            continue;
        }
        let is_value = |next: &OsString| !next.to_string_lossy().starts_with("--");
        let value = value.or_else(|| words.next_if(is_value).map(|next| next.to_string_lossy().into_owned()));
        // Without a value any other key is told so.
        let alone = if sft_config::is_switch(name) { "true" } else { "" };
        spelled.push(format!("{name}={}", value.as_deref().unwrap_or(alone)).into());
    }
    spelled
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn keys_are_taken_in_the_spelling_of_llama_factorys_command_line() {
        let of = |line: &str| {
            let words = spelled(line.split(' ').map(OsString::from), &crate::Cli::command());
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            of("sft train --stage sft --do_train --learning_rate 1e-4 --lora_target=all --dry-run"),
            "sft train stage=sft do_train=true learning_rate=1e-4 lora_target=all --dry-run"
        );
        assert_eq!(of("sft train a.yaml --max_steps -1 --bf16"), "sft train a.yaml max_steps=-1 bf16=true");
        assert_eq!(of("sft train --output_dir"), "sft train output_dir=", "no folder called `true`");
        for as_it_is in
            ["sft train --no_key 1", "sft bench --steps 3", "sft data check --max cut=1", "sft --help"]
        {
            assert_eq!(of(as_it_is), as_it_is);
        }
    }
}
