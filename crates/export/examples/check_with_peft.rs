//! One side of `check_with_peft.py`, which compares adapters and exported models with PEFT and transformers.
//!
//! ```text
//! check_with_peft logits  MODEL IDS OUT [attach|merge ADAPTER]   logits f32 of the ids, as raw bytes
//! check_with_peft adapter MODEL OUT OPTIONS                      an adapter with random A and B
//! check_with_peft export  MODEL OUT float32|bfloat16 SHARD_BYTES [ADAPTER]
//! ```
//!
//! IDS is `3,1,4`; OPTIONS is JSON: `{"rank": 4, "alpha": 8, "targets": [], "target_parameters": [], "use_rslora": false,
//! "modules_to_save": []}`; no target is all linear layers.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use serde_json::Value;
use sft_export::{SaveOptions, agree, merged};
use sft_kernels::{CpuOptions, DType, Device, random};
use sft_model::adapter::{self, Last, PeftAdapter};
use sft_model::method::{LoraInit, LoraOptions, Method, Targets};
use sft_model::workspace::{Purpose, Workspace};
use sft_model::{Batch, Decoder};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let dev = Device::cpu(CpuOptions::default())?;
    match arguments.as_slice() {
        ["logits", model, ids, out, rest @ ..] => logits(&dev, model.as_ref(), ids, out.as_ref(), rest),
        ["adapter", model, out, options] => random_adapter(&dev, model.as_ref(), out.as_ref(), options),
        ["export", model, out, dtype, shard_bytes, rest @ ..] => {
            let dtype = if *dtype == "bfloat16" { DType::BF16 } else { DType::F32 };
            let options =
                SaveOptions { dtype: Some(dtype), shard_bytes: shard_bytes.parse()?, num_expand: 0 };
            export(&dev, model.as_ref(), out.as_ref(), options, rest)
        }
        _ => Err("see the head of this file".into()),
    }
}

fn read(dev: &Device, model: &Path) -> Result<Decoder, Box<dyn Error>> {
    Ok(Decoder::read(dev, model, &Method::Inference, DType::F32, 0)?)
}

fn logits(dev: &Device, model: &Path, ids: &str, out: &Path, rest: &[&str]) -> Outcome {
    let mut decoder = read(dev, model)?;
    match rest {
        ["attach", adapter] => {
            PeftAdapter::read(adapter.as_ref())?.attach(dev, &mut decoder, false)?;
        }
        ["merge", adapter] => PeftAdapter::read(adapter.as_ref())?.merge(dev, &mut decoder)?,
        _ => {}
    }
    let ids: Vec<u32> = ids.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let n = ids.len() as u32;
    let position_ids: Vec<u32> = (0..n).collect();
    let batch = Batch {
        input_ids: &ids,
        position_ids: &position_ids,
        cu_seqlens: &[0, n],
        shared: None,
        targets: &[],
        weights: &[],
    };
    let adapters = decoder.adapters();
    let mut work = Workspace::new(dev, &decoder.spec, adapters, decoder.compute, ids.len(), Purpose::Forward);
    fs::write(out, decoder.logits(dev, batch, &mut work)?.view().bytes())?;
    Ok(())
}

fn random_adapter(dev: &Device, model: &Path, out: &Path, options: &str) -> Outcome {
    let values: Value = serde_json::from_str(options)?;
    let names = |key: &str| -> Vec<String> {
        let list = values[key].as_array().into_iter().flatten();
        list.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let options = LoraOptions {
        rank: values["rank"].as_u64().unwrap_or(4) as usize,
        alpha: values["alpha"].as_f64().unwrap_or(8.0),
        dropout: 0.0,
        targets: match names("targets") {
            names if names.is_empty() => Targets::All,
            names => Targets::Named(names),
        },
        target_parameters: names("target_parameters"),
        use_rslora: values["use_rslora"] == true,
        use_dora: false,
        init: LoraInit::Random,
        modules_to_save: names("modules_to_save"),
    };
    let method = Method::Lora(options.clone());
    let mut decoder = Decoder::read(dev, model, &method, DType::F32, 11)?;
    for (p, parameter) in decoder.trained_mut().into_iter().enumerate() {
        let mut values = parameter.value().to_f32_vec();
        for (i, x) in values.iter_mut().enumerate() {
            *x += 0.05 * random::normal(p as u64, i as u64) as f32;
        }
        let shape = parameter.value().shape().to_vec();
        parameter.set(sft_kernels::View::of(&values, &shape));
    }
    fs::create_dir_all(out)?;
    adapter::write(&decoder, &options.clone().into(), &model.to_string_lossy(), out)?;
    Ok(())
}

fn export(dev: &Device, model: &Path, out: &Path, options: SaveOptions, adapters: &[&str]) -> Outcome {
    let mut decoder = read(dev, model)?;
    let folders: Vec<_> = adapters.iter().map(|folder| folder.into()).collect();
    adapter::apply(dev, &mut decoder, &folders, Last::Merged)?;
    let exported = merged(&decoder, model, out, options, None)?;
    let mut beside = read(dev, model)?;
    adapter::apply(dev, &mut beside, &folders, Last::Attached)?;
    let ids: Vec<u32> = (0..32).map(|i| (i * 7 + 1) % decoder.spec.vocab_size as u32).collect();
    println!("{exported:?}\n{:?}", agree(dev, &beside, &read(dev, out)?, &ids)?);
    Ok(())
}
