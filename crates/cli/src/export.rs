//! `sft export`: merges adapters into their model and writes a Hugging Face folder.

use std::process::ExitCode;

use sft_config::{ExportDevice, Purpose};
use sft_export::{SaveOptions, agree, merged};
use sft_kernels::{CpuOptions, Device};
use sft_model::adapter::Last;
use sft_train::setup;

use crate::recipe::Recipe;

/// Merges the adapters of `adapter_name_or_path` into the model and writes `export_dir`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: Recipe,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (config, model) = args.recipe.read(Purpose::Export)?;
    crate::summary::no_effect(&config);
    let dev = match config.export_device {
        ExportDevice::Cpu => Device::cpu(CpuOptions { threads: config.threads, isa: None })?,
        ExportDevice::Auto => setup::device(&config)?,
    };
    model.fetch_weights()?;
    let base = model.folder();
    let (spec, told) = (setup::spec(&config)?, setup::told(&config)?);
    setup::idle_rope_scaling(&config).iter().for_each(|note| println!("{note}"));
    let stored = setup::infer_dtype(&config, base)?;
    let read = |last| setup::decoder(&config, &dev, &spec, last);
    dev.install(|| {
        let (decoder, notes) = read(Last::Merged)?;
        notes.iter().for_each(|note| println!("{note}"));
        if !config.adapter_name_or_path.is_empty() {
            setup::check_tokenizer(&config, &setup::tokenizer(&config)?, &decoder)?;
        }
        let shard_bytes = usize::try_from(config.export_size).unwrap_or(usize::MAX).saturating_mul(SaveOptions::GB);
        let num_expand = config.num_expand;
        let options = SaveOptions { dtype: Some(stored), shard_bytes, num_expand };
        let written = merged(&decoder, base, &config.export_dir, options, told.as_ref())?;
        let quantization = config.quantization_bit.and(setup::quantization(&config)?);
        let linears = quantization.map_or(String::new(), |way| format!(", linear layers in {way}"));
        let (files, folder) = (written.files.len(), config.export_dir.display());
        println!("wrote {files} files to {folder} in {}{linears}", stored.name());
        if !config.adapter_name_or_path.is_empty() {
            let (attached, _) = read(Last::Attached)?;
            let ids: Vec<u32> = (0..64).map(|i| i * 7919 % decoder.spec.vocab_size as u32).collect();
            let found = agree(&dev, &decoder, &attached, &ids)?;
            println!(
                "merged model against model with adapter, in {}: max |Δlogit| = {:.2e} (largest logit {:.2e}), \
                 the same token first at {} of {} positions",
                stored.name(),
                found.max_difference,
                found.largest_logit,
                found.same_choice,
                found.positions
            );
        }
        Ok(ExitCode::SUCCESS)
    })
}
