//! Fetches a model by its name on a hub, as `sft` does, and prints its folder; `tools/check_hub.py` runs it.
//!
//! usage: fetch_model NAME [REVISION]

use std::process::ExitCode;

use sft_hub::{Event, HubError, HubKeys, HubOptions, Model};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, revision) = match arguments.as_slice() {
        [name] => (name.as_str(), "main"),
        [name, revision] => (name.as_str(), revision.as_str()),
        _ => {
            eprintln!("usage: fetch_model NAME [REVISION]");
            return ExitCode::from(2);
        }
    };
    sft_hub::watch(|event| {
        if !matches!(event, Event::Fetching { .. }) {
            eprintln!("{event:?}");
        }
    });
    match fetch(name, revision) {
        Ok(model) => {
            println!("AT {}", model.folder().display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn fetch(name: &str, revision: &str) -> Result<Model, HubError> {
    let model = Model::find(&HubOptions::from_env(&HubKeys::default()), name, revision)?;
    model.fetch_weights()?;
    Ok(model)
}
