//! The vocabulary of a run: its tokenizer with the tokens that are added, and rows of embedding and head for them.

use std::fs;
use std::path::{Path, PathBuf};

use sft_config::{InitSpecialTokens, RunConfig};
use sft_data::error::DataError;
use sft_data::tokenize::{NewTokens, Tokenizer};
use sft_model::adapter::PeftAdapter;
use sft_model::new_rows::{self, NewRows};
use sft_model::spec::DecoderSpec;

use super::encoder;
use crate::TrainError;

/// The tokenizer of a run, with the tokens that its configuration adds.
///
/// # Errors
/// No tokenizer, or one that cannot be read.
pub fn tokenizer(config: &RunConfig) -> Result<Tokenizer, DataError> {
    let mut tokenizer = Tokenizer::load(tokenizer_folder(config)?)?;
    tokenizer.add(&new_tokens(config))?;
    Ok(tokenizer)
}

/// The folder whose tokenizer is used: an adapter's, if the model has fewer tokens than were trained, else the model's.
///
/// # Errors
/// A tokenizer that cannot be read.
pub(super) fn tokenizer_folder(config: &RunConfig) -> Result<PathBuf, DataError> {
    let model = config.model_folder();
    for adapter in config.adapter_folders().into_iter().rev() {
        if has_other_tokens(&adapter, &model)
            && Tokenizer::load(&adapter)?.vocab_size() > Tokenizer::load(&model)?.vocab_size()
        {
            return Ok(adapter);
        }
    }
    Ok(model)
}

/// Whether an adapter's folder has a tokenizer whose tokens are not those of the model's.
fn has_other_tokens(adapter: &Path, model: &Path) -> bool {
    let differs = |name: &&str| {
        let file = adapter.join(name);
        file.is_file() && fs::read(file).ok() != fs::read(model.join(name)).ok()
    };
    // Where there is a tokenizer.json, it alone says which tokens there are.
    match adapter.join("tokenizer.json").is_file() {
        true => differs(&"tokenizer.json"),
        false => {
            adapter.join("tokenizer.model").is_file()
                && ["tokenizer.model", "tokenizer_config.json", "added_tokens.json"].iter().any(differs)
        }
    }
}

/// The tokens that a configuration adds.
pub(super) fn new_tokens(config: &RunConfig) -> NewTokens {
    let trimmed = |tokens: &[String]| tokens.iter().map(|token| token.trim().to_owned()).collect();
    let described = &config.new_special_tokens_config.tokens;
    NewTokens {
        plain: trimmed(&config.add_tokens),
        special: match described.is_empty() {
            true => trimmed(&config.add_special_tokens),
            false => described.iter().map(|(token, _)| token.clone()).collect(),
        },
        may_grow: config.resize_vocab,
    }
}

/// Gives a decoder rows for the tokens that a configuration adds, and for those of the adapters that it loads.
///
/// # Errors
/// A tokenizer or an adapter that cannot be read; a model that cannot have more rows.
pub(super) fn resize(config: &RunConfig, spec: &mut DecoderSpec) -> Result<(), TrainError> {
    let stored = spec.vocab_size;
    let mut rows = stored;
    for folder in config.adapter_folders() {
        rows = rows.max(PeftAdapter::read(&folder)?.rows_of_vocabulary(spec).unwrap_or(0));
    }
    let (mut adds, mut tokens) = (rows > stored, rows);
    let mut described = Vec::new();
    if new_tokens(config) != NewTokens::default() {
        let encoder = encoder(config)?;
        let tokenizer = encoder.tokenizer();
        let id_of = |token: &str| {
            tokenizer.new_tokens().iter().find(|new| new.content == token && !new.had_row).map(|new| new.id)
        };
        if config.init_special_tokens != InitSpecialTokens::Noise {
            for (token, description) in &config.new_special_tokens_config.tokens {
                if let Some(id) = id_of(token) {
                    described.push((id, tokenizer.encode(description)?));
                }
            }
        }
        if config.resize_vocab || !tokenizer.new_tokens().is_empty() {
            (adds, tokens) = (true, tokenizer.vocab_size());
        }
    }
    if tokens > rows {
        rows = tokens.next_multiple_of(new_rows::MULTIPLE);
    }
    if adds {
        let noise = config.init_special_tokens == InitSpecialTokens::DescribedWithNoise;
        spec.resize_vocab(rows, NewRows { stored, tokens, seed: config.seed, noise, described })?;
    }
    Ok(())
}
