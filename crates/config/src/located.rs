//! Where the models of a configuration lie on this machine, once hubs have given them.

use std::path::PathBuf;

use crate::keys::RunConfig;

/// Folders of what hubs have given; empty for what lies under its own name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Located {
    /// Of `model_name_or_path`.
    pub model: Option<PathBuf>,
    /// Of each of `adapter_name_or_path`, if any of them is from a hub.
    pub adapters: Vec<PathBuf>,
}

impl RunConfig {
    /// The folder of the model.
    pub fn model_folder(&self) -> PathBuf {
        self.located.model.clone().unwrap_or_else(|| PathBuf::from(&self.model_name_or_path))
    }

    /// The folders of the adapters.
    pub fn adapter_folders(&self) -> Vec<PathBuf> {
        let folders = match self.located.adapters.is_empty() {
            true => self.adapter_name_or_path.iter().map(PathBuf::from).collect(),
            false => self.located.adapters.clone(),
        };
        let inside = |folder: PathBuf| match &self.adapter_folder {
            Some(part) => folder.join(part),
            None => folder,
        };
        folders.into_iter().map(inside).collect()
    }
}
