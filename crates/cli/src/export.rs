//! `sft export`: merges adapters into their model and writes a Hugging Face folder.

use std::process::ExitCode;

use sft_config::{ExportDevice, Purpose};
use sft_export::{SaveOptions, agree, merged};
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::Decoder;
use sft_model::adapter::{self, Last};
use sft_model::loading::{self, Source};
use sft_model::method::Method;
use sft_model::quantization::Precision;
use sft_model::weights::WeightFiles;
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
    let files = WeightFiles::open_model(base)?;
    let stored = setup::infer_dtype(&config, base)?;
    let folders = config.adapter_folders();
    let quantization = setup::quantization(&config)?;
    let read = |compute: DType, last: Last| -> anyhow::Result<Decoder> {
        let precision = Precision { compute, quantization };
        let source = Source::Files(&files);
        let mut decoder = loading::load(&dev, &spec, &source, &Method::Inference, precision, config.seed)?;
        adapter::apply(&dev, &mut decoder, &folders, last)?;
        Ok(decoder)
    };
    dev.install(|| {
        let decoder = read(stored, Last::Merged)?;
        files.note_of_unread(&spec).iter().for_each(|note| println!("{note}"));
        let shard_bytes = usize::try_from(config.export_size).unwrap_or(usize::MAX).saturating_mul(SaveOptions::GB);
        let num_expand = config.num_expand;
        let options = SaveOptions { dtype: Some(stored), shard_bytes, num_expand };
        let written = merged(&decoder, base, &config.export_dir, options, told.as_ref())?;
        println!("wrote {} files to {} in {}", written.files.len(), config.export_dir.display(), stored.name());
        if !folders.is_empty() {
            let attached = read(stored, Last::Attached)?;
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
