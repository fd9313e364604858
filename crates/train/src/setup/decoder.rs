//! The model that chat and export run: the weights of a folder, with adapters.

use std::path::Path;

use sft_config::RunConfig;
use sft_data::tokenize::Tokenizer;
use sft_kernels::Device;
use sft_model::Decoder;
use sft_model::adapter::{self, AdapterConfig, Last};
use sft_model::loading::{self, Source};
use sft_model::method::Method;
use sft_model::quantization::Precision;
use sft_model::spec::DecoderSpec;
use sft_model::weights::WeightFiles;

use super::{check_on_card, infer_dtype, quantization};
use crate::TrainError;

/// The model that a configuration names, its adapters merged but for the last one, which becomes what `last` says; and
/// what to say of its files.
///
/// # Errors
/// Weights or adapters that are missing or do not fit; a model that the device does not take.
pub fn decoder(
    config: &RunConfig,
    dev: &Device,
    spec: &DecoderSpec,
    last: Last,
) -> Result<(Decoder, Vec<String>), TrainError> {
    if dev.cuda().is_some() {
        check_on_card(spec)?;
    }
    let (folder, adapters) = (config.model_folder(), config.adapter_folders());
    let precision = Precision { compute: infer_dtype(config, &folder)?, quantization: quantization(config)? };
    let files = WeightFiles::open_model(&folder)?;
    let decoder = dev.install(|| {
        let source = Source::Files(&files);
        let mut decoder = loading::load(dev, spec, &source, &Method::Inference, precision, config.seed)?;
        adapter::apply(dev, &mut decoder, &adapters, last)?;
        Ok::<_, TrainError>(decoder)
    })?;
    let mut notes: Vec<String> = files.note_of_unread(spec).into_iter().collect();
    notes.extend(adapters.iter().filter_map(|adapter| note_of_base(adapter, &folder)));
    Ok((decoder, notes))
}

/// Refuses the tokenizer of an adapter's folder if it gives ids that the model has no row for.
///
/// # Errors
/// [`TrainError::Vocabulary`].
pub fn check_tokenizer(
    config: &RunConfig,
    tokenizer: &Tokenizer,
    decoder: &Decoder,
) -> Result<(), TrainError> {
    let (tokens, vocab_size) = (tokenizer.vocab_size(), decoder.spec.vocab_size);
    if tokenizer.dir() == config.model_folder() || tokens <= vocab_size {
        return Ok(());
    }
    let folder = tokenizer.dir().to_owned();
    Err(TrainError::Vocabulary { folder, largest: tokens as u32 - 1, vocab_size })
}

/// What to say of an adapter that names another model than the one in `folder` as its base. A model may have moved, so
/// that the last part of the name alone counts.
fn note_of_base(adapter: &Path, folder: &Path) -> Option<String> {
    let base = AdapterConfig::read(adapter).ok()?.base_model.filter(|base| !base.is_empty())?;
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().to_lowercase());
    let is_snapshot =
        |path: &Path| path.ancestors().nth(1).is_some_and(|parent| parent.ends_with("snapshots"));
    let other =
        last(Path::new(&base)) != last(folder) && !is_snapshot(folder) && !is_snapshot(Path::new(&base));
    other.then(|| format!("{}: trained on `{base}`, and put on {} now", adapter.display(), folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_of_another_model_is_told_by_the_last_part_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "Qwen/Small"}"#;
        std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        let note = |folder: &str| note_of_base(dir.path(), Path::new(folder));
        assert_eq!(note("/data/small"), None);
        assert_eq!(note("/hub/models--Qwen--Small/snapshots/0123"), None);
        assert!(
            note("/data/other").unwrap().contains("trained on `Qwen/Small`"),
            "{:?}",
            note("/data/other")
        );
    }
}
