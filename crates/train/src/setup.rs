//! From the configuration to the stages: which options each of them gets. The one place that reads both.

mod answering;
mod decoder;
mod optimizer;
mod vocabulary;

use std::path::{Path, PathBuf};

use sft_config::{
    Amount, ComputeDtype, FinetuningType, InferDtype, QuantizationType, RopeScaling as RopeRule, RunConfig,
    Stage, Targets,
};
use sft_data::cache;
use sft_data::conversation::Conversation;
use sft_data::dataset::{DatasetOptions, Mix, MixStrategy, ProblemLimit, Stage as DataStage, ValSize};
use sft_data::encoder::Encoder;
use sft_data::error::DataError;
use sft_data::labels::{OverLength, Policy};
use sft_data::pipeline::Pipeline;
use sft_data::pretrain::Pretrain;
use sft_data::template::TemplateOptions;
use sft_data::template::saved::Told;
use sft_data::tokenize::NewTokens;
use sft_hub::{HubError, HubKeys, HubOptions, Model};
use sft_infer::{GenerationOptions, Questions};
use sft_kernels::attention::MOST_COLUMNS_ON_GPU;
use sft_kernels::objective::Loss;
use sft_kernels::quantized::{FourBit, Scheme};
use sft_kernels::{CpuOptions, DType, Device, DeviceError, Isa, cuda};
use sft_model::adapter::PeftAdapter;
use sft_model::method::{self, LoraInit, LoraOptions, Method, OftBlocks, OftOptions};
use sft_model::quantization::{Found, Quantization};
use sft_model::spec::{DecoderSpec, RopeScaling};
use sft_model::weights::WeightFiles;
use sft_model::{ModelError, families, quantization};
use sft_runs::folder;

use crate::TrainError;

pub use answering::AnsweringPlan;
pub use decoder::{check_tokenizer, decoder};
pub use optimizer::optimizer;
pub use vocabulary::tokenizer;
use vocabulary::tokenizer_folder;

/// The device of a run.
///
/// # Errors
/// More threads than cores; an instruction set that the CPU lacks; a GPU that is not there.
pub fn device(config: &RunConfig) -> Result<Device, DeviceError> {
    device_of(config.device, CpuOptions { threads: config.threads, isa: None })
}

/// Threads of the CPU that a run will have: as many as asked for, or one a core.
pub fn threads(config: &RunConfig) -> usize {
    config.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// The instruction set that a CPU will compute with. A name in `SFT_CPU` that is none is an error of the device.
pub fn isa() -> Isa {
    Isa::chosen().unwrap_or_else(|_| Isa::best())
}

/// The device that is asked for; what is left for the CPU runs with `options`.
///
/// # Errors
/// As [`device`].
pub fn device_of(device: sft_config::Device, options: CpuOptions) -> Result<Device, DeviceError> {
    match device {
        sft_config::Device::Auto => Device::best(options),
        sft_config::Device::Cpu => Device::cpu(options),
        sft_config::Device::Cuda(card) => Device::gpu(card, options),
    }
}

/// The GPU that a run will have.
pub fn card(config: &RunConfig) -> Option<usize> {
    match config.device {
        sft_config::Device::Auto => cuda::best_card().ok(),
        sft_config::Device::Cpu => None,
        sft_config::Device::Cuda(card) => Some(card),
    }
}

/// Refuses what runs on a CPU alone.
///
/// # Errors
/// Heads that are too wide for a GPU.
pub fn check_on_card(spec: &DecoderSpec) -> Result<(), ModelError> {
    let widths = spec.layers.iter().filter_map(|layer| Some(layer.attends()?.head_dim));
    match widths.max().filter(|width| *width > MOST_COLUMNS_ON_GPU) {
        Some(width) => Err(ModelError::Method {
            key: "device",
            reason: format!(
                "heads of this model have {width} columns, and a GPU takes {MOST_COLUMNS_ON_GPU}"
            ),
            help: "use `device: cpu`".into(),
        }),
        None => Ok(()),
    }
}

/// Opens the weights, whose headers tell of damaged files, before rows are read. That there are none is told when they
/// are asked for: a hub's come later, and timing a model takes none.
///
/// # Errors
/// Files that are cut off or malformed.
pub fn check_weights(config: &RunConfig) -> Result<(), ModelError> {
    if config.train_from_scratch || !Path::new(&config.model_name_or_path).is_dir() {
        return Ok(());
    }
    match WeightFiles::open_model(&config.model_folder()) {
        Err(error) if !matches!(error, ModelError::Missing { .. }) => Err(error),
        _ => Ok(()),
    }
}

/// The compute dtype of training.
pub fn compute_dtype(config: &RunConfig) -> DType {
    match config.compute_dtype {
        ComputeDtype::Float32 => DType::F32,
        ComputeDtype::Bfloat16 => DType::BF16,
    }
}

/// How the frozen linear layers are quantised: as the configuration says, or as those of a checkpoint are already.
///
/// # Errors
/// Both, and not the same.
pub fn quantization(config: &RunConfig) -> Result<Option<Quantization>, ModelError> {
    let kind = match config.quantization_type {
        QuantizationType::Nf4 => FourBit::Nf4,
        QuantizationType::Fp4 => FourBit::Fp4,
    };
    let asked = config.quantization_bit.map(|bits| match bits {
        8 => Scheme::Int8,
        _ => Scheme::FourBit { kind, double: config.double_quantization },
    });
    let folder = config.model_folder();
    // What is read of it is refused by `read_spec` otherwise.
    let found = quantization::of_checkpoint(&families::text_config(&folder)?).ok().flatten();
    match (asked, found) {
        (Some(asked), Some(found)) if found != Found::BitsAndBytes(asked) => Err(ModelError::Method {
            key: "quantization_bit",
            reason: format!(
                "the weights in {} are in {} already, and {asked} is asked for",
                folder.display(),
                Quantization::Found(found)
            ),
            help: "leave the quantization keys out".into(),
        }),
        (asked, found) => Ok(found.map(Quantization::Found).or(asked.map(Quantization::Made))),
    }
}

/// Where hubs are, and where what they give lies.
fn hub_options(config: &RunConfig) -> HubOptions {
    HubOptions::from_env(&HubKeys {
        hf_hub_token: config.hf_hub_token.reveal().map(str::to_owned),
        ms_hub_token: config.ms_hub_token.reveal().map(str::to_owned),
        cache_dir: config.cache_dir.clone(),
    })
}

/// Finds model and adapters of a configuration: folders of this machine, or hubs', of which what describes the model and all
/// of the adapters is fetched. The weights come when they are asked for ([`Model::fetch_weights`]).
///
/// # Errors
/// A name that is neither; whatever fetching meets.
pub fn locate(config: &mut RunConfig) -> Result<Model, HubError> {
    let options = hub_options(config);
    let model = Model::find(&options, &config.model_name_or_path, &config.model_revision)?;
    let adapters = config
        .adapter_name_or_path
        .iter()
        .map(|name| Ok(Model::find_adapter(&options, name)?.folder().to_owned()));
    config.located.adapters = adapters.collect::<Result<_, HubError>>()?;
    config.located.model = Some(model.folder().to_owned());
    Ok(model)
}

/// Which rows are read.
pub fn dataset_options(config: &RunConfig) -> DatasetOptions {
    DatasetOptions {
        // Where nothing is trained they are read to hold some out alone.
        dataset: match config.do_train || !config.val_size.is_zero() {
            true => config.dataset.clone(),
            false => Vec::new(),
        },
        eval_dataset: config.eval_dataset.clone(),
        dataset_dir: config.dataset_dir.clone(),
        hub: hub_options(config),
        stage: match config.stage {
            Stage::Pt => DataStage::Pt,
            Stage::Sft => DataStage::Sft,
        },
        max_samples: config.max_samples.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        val_size: match config.val_size {
            Amount::Count(0) => None,
            Amount::Count(rows) => Some(ValSize::Rows(usize::try_from(rows).unwrap_or(usize::MAX))),
            Amount::Fraction(share) => Some(ValSize::Fraction(share)),
        },
        mix: Mix {
            strategy: match config.mix_strategy {
                sft_config::MixStrategy::Concat => MixStrategy::Concat,
                sft_config::MixStrategy::InterleaveUnder => MixStrategy::InterleaveUnder,
                sft_config::MixStrategy::InterleaveOver => MixStrategy::InterleaveOver,
                sft_config::MixStrategy::InterleaveOnce => MixStrategy::InterleaveOnce,
            },
            probabilities: config.interleave_probs.0.clone(),
        },
        eval_on_each_dataset: config.eval_on_each_dataset,
        streaming: config.streaming.then_some(config.buffer_size),
        seed: config.seed,
        problem_limit: match config.max_malformed {
            Amount::Count(rows) => ProblemLimit::Rows(rows),
            Amount::Fraction(share) => ProblemLimit::Fraction(share),
        },
    }
}

/// Tokenizer, template and label policy: the same for training and for chat.
///
/// # Errors
/// No tokenizer or no template; contradictions between them and the policy.
pub fn pipeline(config: &RunConfig) -> Result<Pipeline, DataError> {
    Pipeline::new(tokenizer(config)?, Some(&config.template), &template_options(config), policy(config))
}

/// The questions of the rows to evaluate on, if the model is to answer them.
///
/// # Errors
/// As [`pipeline`]; none that can be asked.
pub fn questions(
    config: &RunConfig,
    spec: &DecoderSpec,
    rows: &[Conversation],
) -> Result<Option<Questions>, TrainError> {
    if rows.is_empty() || !(config.do_predict || config.predict_with_generate) {
        return Ok(None);
    }
    let pipeline = pipeline(config)?;
    let options = GenerationOptions::from_config(config, pipeline.stop_ids());
    let questions = Questions::new(pipeline, options, rows)?;
    questions.require_one(spec)?;
    Ok(Some(questions))
}

/// What makes examples of rows.
///
/// # Errors
/// As [`pipeline`].
pub fn encoder(config: &RunConfig) -> Result<Encoder, DataError> {
    Ok(match config.stage {
        Stage::Sft => Encoder::Conversations(Box::new(pipeline(config)?)),
        Stage::Pt => {
            let tokenizer = tokenizer(config)?;
            let (template, cutoff_len) = (Some(config.template.as_str()), config.cutoff_len);
            Encoder::Text(Box::new(Pretrain::new(tokenizer, template, cutoff_len, config.packing)?))
        }
    })
}

/// What decides the ids and labels of a run.
///
/// # Errors
/// A data set or a file that cannot be found or read.
pub fn cache_key(config: &RunConfig) -> Result<cache::Key, DataError> {
    cache::Key::new(&cache::KeyInputs {
        dataset: &dataset_options(config),
        model: &tokenizer_folder(config)?,
        new_tokens: &vocabulary::new_tokens(config),
        template: &config.template,
        template_options: &template_options(config),
        policy: &policy(config),
        packing: config.packing && config.stage == Stage::Pt,
    })
}

fn template_options(config: &RunConfig) -> TemplateOptions {
    TemplateOptions {
        default_system: config.default_system.clone(),
        enable_thinking: config.enable_thinking,
        preserve_thinking: config.preserve_thinking,
        tool_format: config.tool_format.clone(),
        ..TemplateOptions::default()
    }
}

fn policy(config: &RunConfig) -> Policy {
    Policy {
        cutoff_len: config.cutoff_len,
        train_on_prompt: config.train_on_prompt,
        mask_history: config.mask_history,
        over_length: match config.over_length {
            sft_config::OverLength::Truncate => OverLength::Truncate,
            sft_config::OverLength::Drop => OverLength::Drop,
            sft_config::OverLength::Split => OverLength::Split,
            sft_config::OverLength::Refuse => OverLength::Refuse,
        },
    }
}

/// What the folder of a trained model has to be told of what makes ids of rows: of a named template, or of tokens
/// that the model's files do not have, be they new or an adapter's.
///
/// # Errors
/// As [`encoder`].
pub fn told(config: &RunConfig) -> Result<Option<Told>, DataError> {
    match is_told(config)? {
        true => encoder(config).map(|encoder| Some(Told::of(&encoder))),
        false => Ok(None),
    }
}

/// The same by an encoder that is there.
///
/// # Errors
/// As above.
pub fn told_by(config: &RunConfig, encoder: &Encoder) -> Result<Option<Told>, DataError> {
    Ok(is_told(config)?.then(|| Told::of(encoder)))
}

fn is_told(config: &RunConfig) -> Result<bool, DataError> {
    let is_named = config.stage == Stage::Sft && config.template != "auto";
    let is_elsewhere = tokenizer_folder(config)? != config.model_folder();
    Ok(is_named || is_elsewhere || vocabulary::new_tokens(config) != NewTokens::default())
}

/// The decoder that the model folder describes, with rows for new tokens, `rope_scaling` for rows longer than it was
/// made for, and `moe_aux_loss_coef`.
///
/// # Errors
/// As [`families::read_spec`]; new tokens that cannot be added; a coefficient for a model without experts.
pub fn spec(config: &RunConfig) -> Result<DecoderSpec, TrainError> {
    let mut spec = families::read_spec(&config.model_folder())?;
    vocabulary::resize(config, &mut spec)?;
    let rule: Option<fn(f64, usize) -> RopeScaling> = config.rope_scaling.map(|rule| match rule {
        RopeRule::Linear => (|factor, _| RopeScaling::Linear { factor }) as fn(f64, usize) -> RopeScaling,
        RopeRule::Dynamic => {
            |factor, max_position_embeddings| RopeScaling::Dynamic { factor, max_position_embeddings }
        }
        RopeRule::Yarn => |factor, original_max_position_embeddings| RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 0.1 * factor.ln() + 1.0,
            truncate: true,
        },
        RopeRule::Llama3 => |factor, original_max_position_embeddings| RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings,
        },
    });
    if let Some(rule) = rule {
        spec.enlarge(config.cutoff_len, rule);
    }
    if let Some(coefficient) = config.moe_aux_loss_coef {
        if !spec.has_experts() {
            return Err(TrainError::Model(ModelError::Method {
                key: "moe_aux_loss_coef",
                reason: format!("a {} model has no experts to balance", spec.model_type),
                help: "leave it out".into(),
            }));
        }
        spec.moe_aux_loss_coef = coefficient as f32;
    }
    Ok(spec)
}

/// Why `rope_scaling` changes nothing, where it is asked for and does not.
pub fn idle_rope_scaling(config: &RunConfig) -> Option<String> {
    config.rope_scaling?;
    let spec = families::read_spec(&config.model_folder()).ok()?;
    let (made_for, length) = (spec.max_position_embeddings, config.cutoff_len);
    let reason = match spec.rope {
        None => "the model has no rotary positions".to_owned(),
        Some(_) if length <= made_for => {
            format!("the model was made for {made_for} positions, and `cutoff_len` is {length}")
        }
        Some(_) => return None,
    };
    Some(format!("rope_scaling without effect: {reason}"))
}

/// What is trained. An adapter that is continued brings its own rank, alpha and targets. Where tokens are added, and
/// nothing else is named, embedding and head are trained whole.
///
/// # Errors
/// Names that fit nothing; an adapter that cannot be read.
pub fn method(config: &RunConfig, spec: &DecoderSpec) -> Result<Method, ModelError> {
    let whole = |named: &[String]| match (named, &spec.new_rows) {
        ([], Some(_)) => method::ends_of_vocabulary(spec),
        (named, _) => named.to_vec(),
    };
    let expanded = || method::expanded_blocks(spec, config.freeze_trainable_layers);
    // An evaluation alone computes with the model as it is; an adapter stays beside it, as in training.
    if !config.do_train && continued_adapter(config).is_none() {
        return Ok(Method::Inference);
    }
    match config.finetuning_type {
        FinetuningType::Full => Ok(Method::Full),
        FinetuningType::Freeze if config.use_llama_pro => Method::freeze_all_but(
            spec,
            expanded()?,
            &names(&config.freeze_trainable_modules),
            &whole(&config.freeze_extra_modules),
        ),
        FinetuningType::Freeze => Method::freeze(
            spec,
            config.freeze_trainable_layers,
            &names(&config.freeze_trainable_modules),
            &whole(&config.freeze_extra_modules),
        ),
        FinetuningType::Lora | FinetuningType::Oft if continued_adapter(config).is_some() => {
            // The adapter says itself of which kind it is.
            let folder = continued_adapter(config).unwrap_or_default();
            Ok(PeftAdapter::read(&folder)?.options_for(spec).into())
        }
        FinetuningType::Lora => Ok(Method::Lora(LoraOptions {
            rank: config.lora_rank as usize,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout as f32,
            targets: adapter_targets(config, spec, &config.lora_target)?,
            target_parameters: match config.lora_target_parameters.as_slice() {
                [all] if all == "all" => method::expert_targets(spec)?,
                names => names.to_vec(),
            },
            use_rslora: config.use_rslora,
            use_dora: config.use_dora,
            init: lora_init(config),
            modules_to_save: whole(&config.additional_target),
        })),
        FinetuningType::Oft => Ok(Method::Oft(OftOptions {
            blocks: match config.oft_rank {
                0 => OftBlocks::Size(config.oft_block_size as usize),
                count => OftBlocks::Count(count as usize),
            },
            dropout: config.module_dropout as f32,
            targets: adapter_targets(config, spec, &config.oft_target)?,
            modules_to_save: whole(&config.additional_target),
        })),
    }
}

/// The layers that carry adapters.
fn adapter_targets(
    config: &RunConfig,
    spec: &DecoderSpec,
    targets: &Targets,
) -> Result<method::Targets, ModelError> {
    let names = names(targets);
    if config.use_llama_pro {
        let blocks = method::expanded_blocks(spec, config.freeze_trainable_layers)?;
        return Ok(method::Targets::Named(method::linears_of_blocks(spec, &blocks, &names)?));
    }
    Ok(match targets {
        Targets::All => method::Targets::All,
        Targets::Names(_) => method::Targets::Named(names),
    })
}

/// Names of modules; none where all are meant.
fn names(targets: &Targets) -> Vec<String> {
    match targets {
        Targets::All => Vec::new(),
        Targets::Names(names) => names.clone(),
    }
}

fn lora_init(config: &RunConfig) -> LoraInit {
    match config.pissa_init {
        false => LoraInit::Random,
        true => LoraInit::Pissa { iterations: usize::try_from(config.pissa_iter).ok() },
    }
}

/// What is minimised.
pub fn loss(config: &RunConfig) -> Loss {
    if config.use_dft_loss {
        Loss::Dft
    } else if config.use_eaft_loss {
        Loss::Eaft { alpha: config.eaft_alpha as f32 }
    } else if config.use_asft_loss {
        Loss::Asft { alpha: config.asft_alpha as f32 }
    } else if config.label_smoothing_factor > 0.0 {
        Loss::Smoothed { factor: config.label_smoothing_factor as f32 }
    } else {
        Loss::CrossEntropy
    }
}

/// Refuses a run that would write over the model or an adapter that it begins with, or remove it with what an earlier run
/// has left: its checkpoints, its converted adapter.
///
/// # Errors
/// [`TrainError::OverBase`].
pub fn check_output(config: &RunConfig) -> Result<(), TrainError> {
    let output_dir = &config.output_dir;
    // A folder that is not there yet holds nothing.
    let Ok(output) = output_dir.canonicalize() else { return Ok(()) };
    let adapters = config.adapter_folders().into_iter().map(|adapter| ("adapter_name_or_path", adapter));
    // Other folders inside of it are nothing that a run touches.
    let is_written = |read: &Path| match read.strip_prefix(&output).map(|below| below.components().next()) {
        Ok(None) => true,
        Ok(Some(first)) => {
            let first = first.as_os_str();
            first == folder::CONVERTED || first.to_string_lossy().starts_with("checkpoint-")
        }
        Err(_) => false,
    };
    for (key, read) in std::iter::once(("model_name_or_path", config.model_folder())).chain(adapters) {
        if config.do_train && read.canonicalize().is_ok_and(|read| is_written(&read)) {
            return Err(TrainError::OverBase { folder: output_dir.clone(), key });
        }
    }
    Ok(())
}

/// The adapter that training continues, if there is one.
pub fn continued_adapter(config: &RunConfig) -> Option<PathBuf> {
    config.adapter_folders().pop().filter(|_| !config.create_new_adapter)
}

/// The compute dtype of chat and export: `infer_dtype`, or with `auto` that of the model's files (float32 for
/// float16, which nothing here computes with).
///
/// # Errors
/// As [`families::text_config`].
pub fn infer_dtype(config: &RunConfig, folder: &Path) -> Result<DType, ModelError> {
    Ok(match config.infer_dtype {
        InferDtype::Float32 => DType::F32,
        InferDtype::Bfloat16 => DType::BF16,
        InferDtype::Auto => {
            let config = families::text_config(folder)?;
            let stored = ["dtype", "torch_dtype"].iter().find_map(|key| config.get(*key)?.as_str());
            if stored == Some("bfloat16") { DType::BF16 } else { DType::F32 }
        }
    })
}
