//! The table of keys, from which everything else about configuration is made.
//!
//! Each key stands once, in the file of its group: name, type, default, range, documentation, and
//! the room that reads it. [`define_keys`] turns the rows into [`RunConfig`], its parser, its
//! defaults and [`KEYS`], the description that `docs/config.md` and the JSON schema are printed
//! from. Keys of LLaMA-Factory that change nothing here, and those that are not built yet, stand
//! below the rows of their group.

use std::path::PathBuf;

use serde_json::Value as Json;

use crate::Purpose;
use crate::choices::*;
use crate::described_tokens::DescribedTokens;
use crate::device::Device;
use crate::located::Located;
use crate::optim_args::OptimArgs;
use crate::problem::NoEffect;
use crate::schedule::SchedulerKwargs;
use crate::source::Node;
use crate::value::{Amount, KeyType, Probabilities, Range, Reject, Resume, Secret, Targets};

#[macro_use]
mod data;
#[macro_use]
mod model;
#[macro_use]
mod method;
#[macro_use]
mod training;
#[macro_use]
mod generation;
#[macro_use]
mod export;
#[macro_use]
mod own;

/// What the documentation says of a key.
pub(crate) struct Key {
    pub name: &'static str,
    pub group: &'static str,
    pub doc: &'static [&'static str],
    /// How the default follows from other keys, where it does.
    pub auto: Option<&'static str>,
    pub range: Range,
    pub read_by: &'static str,
    pub required: &'static [Purpose],
    pub takes: fn() -> String,
    pub schema: fn() -> Json,
}

impl Key {
    /// Its documentation in one line.
    pub fn text(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// Keys that are accepted and change nothing, with the one reason they share.
pub(crate) type NoEffectKeys = (&'static [&'static str], &'static str);

/// A key that is refused unless it has its own default: name, that default, what to do instead.
pub(crate) type NotYetKey = (&'static str, &'static str, &'static str);

/// Why a value was not stored.
pub(crate) enum Refusal {
    Unknown,
    Value { takes: String, reject: Reject },
    Range { value: f64, range: Range },
}

fn worked_out<T>(config: &RunConfig, rule: fn(&RunConfig) -> T) -> T {
    rule(config)
}

macro_rules! row_default {
    () => {
        Default::default()
    };
    ($default:expr) => {
        $default
    };
}

macro_rules! row_option {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

macro_rules! row_range {
    () => {
        Range::ANY
    };
    ($range:expr) => {
        $range
    };
}

macro_rules! define_keys {
    (; $( group $group:literal { $(
        $(#[doc = $doc:literal])+
        $name:ident : $type:ty {
            $(default: $default:expr,)?
            $(auto: $auto_text:literal = $auto:expr,)?
            $(range: $range:expr,)?
            $(required: [$($purpose:ident),+],)?
            read_by: $read_by:literal $(,)?
        }
    )* } )*) => {
        /// The resolved configuration: one public field per supported key, no "maybe" left in it.
        ///
        /// Field names are the keys of the configuration file. `Default` gives the documented
        /// defaults, with those that follow from other keys worked out.
        #[derive(Debug, Clone, PartialEq)]
        pub struct RunConfig {
            $( $( $(#[doc = $doc])+ pub $name: $type, )* )*
            /// Keys that were accepted and change nothing, for the program to list once.
            pub no_effect: Vec<NoEffect>,
            /// Where models of hubs lie on this machine: not of the configuration, but of whoever has fetched them.
            pub located: Located,
        }

        impl Default for RunConfig {
            fn default() -> Self {
                let mut config = RunConfig {
                    $( $( $name: row_default!($($default)?), )* )*
                    no_effect: Vec::new(),
                    located: Located::default(),
                };
                config.derive(&|_| false);
                config
            }
        }

        impl RunConfig {
            /// Stores the value of one key.
            pub(crate) fn set(&mut self, key: &str, node: &Node) -> Result<(), Refusal> {
                match key {
                    $( $( stringify!($name) => {
                        let value = <$type as KeyType>::parse(node)
                            .map_err(|reject| Refusal::Value { takes: <$type as KeyType>::takes(), reject })?;
                        let range: Range = row_range!($($range)?);
                        if let Some(n) = value.number().filter(|n| !range.contains(*n)) {
                            return Err(Refusal::Range { value: n, range });
                        }
                        self.$name = value;
                    } )* )*
                    _ => return Err(Refusal::Unknown),
                }
                Ok(())
            }

            /// Works out the defaults that follow from other keys, in the order of the table.
            pub(crate) fn derive(&mut self, given: &dyn Fn(&str) -> bool) {
                $( $( $(
                    if !given(stringify!($name)) {
                        self.$name = worked_out(self, $auto);
                    }
                )? )* )*
            }

            /// The value of a key as it is written to a file.
            pub(crate) fn get(&self, key: &str) -> Option<Json> {
                match key {
                    $( $( stringify!($name) => Some(KeyType::to_json(&self.$name)), )* )*
                    _ => None,
                }
            }
        }

        /// Every supported key, in the order of the documentation.
        pub(crate) const KEYS: &[Key] = &[ $( $( Key {
            name: stringify!($name),
            group: $group,
            doc: &[$($doc),+],
            auto: row_option!($($auto_text)?),
            range: row_range!($($range)?),
            read_by: $read_by,
            required: &[$($(Purpose::$purpose),+)?],
            takes: <$type as KeyType>::takes,
            schema: <$type as KeyType>::schema,
        }, )* )* ];
    };
}

data_keys! { model_keys method_keys training_keys generation_keys export_keys own_keys define_keys ; }

/// Keys that change nothing, by group.
pub(crate) const NO_EFFECT: &[(&str, &[NoEffectKeys])] = &[
    ("Data", data::NO_EFFECT),
    ("Model", model::NO_EFFECT),
    ("Method", method::NO_EFFECT),
    ("Training", training::NO_EFFECT),
    ("Generation", generation::NO_EFFECT),
    ("Export", export::NO_EFFECT),
];

/// Keys that are refused unless they have their own default, by group.
pub(crate) const NOT_YET: &[(&str, &[NotYetKey])] = &[
    ("Data", data::NOT_YET),
    ("Model", model::NOT_YET),
    ("Method", method::NOT_YET),
    ("Training", training::NOT_YET),
    ("Generation", generation::NOT_YET),
    ("Export", export::NOT_YET),
];

/// Names that LLaMA-Factory or transformers once had, and what they are called now.
pub(crate) const RENAMED: &[(&str, &str)] = &[
    ("evaluation_strategy", "eval_strategy"),
    ("per_gpu_train_batch_size", "per_device_train_batch_size"),
    ("per_gpu_eval_batch_size", "per_device_eval_batch_size"),
    ("no_cuda", "use_cpu"),
    ("checkpoint_dir", "adapter_name_or_path"),
    ("quantization", "quantization_bit"),
    ("dev_ratio", "val_size"),
    ("max_length_train", "cutoff_len"),
    ("max_seq_length", "cutoff_len"),
    ("epochs", "num_train_epochs"),
    ("lr", "learning_rate"),
];

/// Why a key changes nothing, if it is one of those.
pub(crate) fn no_effect_reason(key: &str) -> Option<&'static str> {
    let rows = NO_EFFECT.iter().flat_map(|(_, rows)| rows.iter());
    rows.into_iter().find(|(names, _)| names.contains(&key)).map(|(_, reason)| *reason)
}

/// The row of a key that is not built yet.
pub(crate) fn not_yet(key: &str) -> Option<&'static NotYetKey> {
    NOT_YET.iter().flat_map(|(_, rows)| rows.iter()).find(|row| row.0 == key)
}

/// Every name that may stand in a configuration.
pub(crate) fn all_names() -> impl Iterator<Item = &'static str> {
    let supported = KEYS.iter().map(|key| key.name);
    let silent =
        NO_EFFECT.iter().flat_map(|(_, rows)| rows.iter()).flat_map(|(names, _)| names.iter().copied());
    let refused = NOT_YET.iter().flat_map(|(_, rows)| rows.iter()).map(|row| row.0);
    supported.chain(silent).chain(refused)
}
