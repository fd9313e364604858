//! Stage 1 of the walk: a YAML (or JSON) file and `key=value` arguments → one [`RunConfig`].
//!
//! In: the path of a configuration with LLaMA-Factory's keys, and overrides. Out: every value
//! checked and every default worked out, or [`ConfigErrors`] with all that is wrong at once.
//! Paths are kept as written: they are relative to the working folder, as in LLaMA-Factory.
//!
//! The keys stand in `keys/`, one file a group; `docs/config.md` is printed from them.

mod check;
mod choices;
mod described_tokens;
mod device;
mod docs;
mod draft;
mod keys;
mod located;
mod nearest;
mod optim_args;
mod problem;
mod resolve;
mod resolved;
mod schedule;
mod source;
mod value;

pub use choices::{
    ApolloProj, ApolloProjType, ApolloScaleType, BadamMaskMode, BadamMode, BadamSwitchMode, BestMetric,
    ComputeDtype, ExportDevice, FinetuningType, GaloreProjType, InferDtype, InitSpecialTokens,
    IntervalStrategy, LrSchedulerType, MixStrategy, OnNonFinite, Optim, OverLength, QuantizationMethod,
    QuantizationType, RampShape, Reporter, RopeScaling, Stage,
};
pub use described_tokens::DescribedTokens;
pub use device::Device;
pub use docs::{Language, form, json_schema, reference};
pub use draft::{Draft, changed, with_value};
pub use keys::RunConfig;
pub use located::Located;
pub use optim_args::OptimArgs;
pub use problem::{ConfigError, ConfigErrors, NoEffect, Place, Problem};
pub use resolve::{Purpose, is_key, is_switch, load, load_text};
pub use schedule::{LrSchedule, SchedulerKwargs};
pub use value::{Amount, Probabilities, Resume, Secret, Targets};
