//! `[CONFIG] [key=value …]`: how every command takes its configuration (stage 0 of the walk).

use std::path::PathBuf;

use sft_config::{Purpose, RunConfig};

/// A configuration file and what the command line says instead of it.
#[derive(Debug, clap::Args)]
pub struct Recipe {
    /// YAML or JSON file with LLaMA-Factory's keys; `sft config` lists them
    #[arg(value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// `key=value`, wins over what the file says
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

impl Recipe {
    /// The resolved configuration. A first word with `=` in it is an override, unless there is such a file.
    ///
    /// # Errors
    /// All problems of the configuration at once.
    pub fn read(self, purpose: Purpose) -> anyhow::Result<RunConfig> {
        let (path, overrides) = match self.config {
            Some(word) if word.to_string_lossy().contains('=') && !word.exists() => {
                let first = word.to_string_lossy().into_owned();
                (None, [vec![first], self.overrides].concat())
            }
            path => (path, self.overrides),
        };
        Ok(sft_config::load(path.as_deref(), &overrides, purpose)?)
    }
}
