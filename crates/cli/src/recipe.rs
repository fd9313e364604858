//! `[CONFIG] [key=value …]`: how every command takes its configuration (stage 0 of the walk).

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
}

impl Recipe {
    /// The same with `key=value` after all others.
    pub fn with(mut self, key: &str) -> Self {
        self.overrides.push(key.to_owned());
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
        let mut config = sft_config::load(path.as_deref(), &overrides, purpose)?;
        fetching::show();
        let model = setup::locate(&mut config)?;
        Ok((config, model))
    }
}
