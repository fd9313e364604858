//! `lr_scheduler_kwargs`: what each learning-rate schedule can be told, and what it then is.
//!
//! In: the mapping of the configuration and `lr_scheduler_type`. Out: [`LrSchedule`], every
//! parameter set. Names and defaults are those of `transformers/optimization.py` (5.6).

use serde_json::{Map, Value as Json, json};

use crate::choices::{LrSchedulerType, RampShape};
use crate::nearest::nearest;
use crate::source::{Content, Node, read_flow};
use crate::value::{KeyType, Reject};

/// The parameters as given; which of them a schedule takes is checked against its type.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SchedulerKwargs {
    /// Waves of the cosine (restarts for `cosine_with_restarts`).
    pub num_cycles: Option<f64>,
    /// Final rate of `polynomial`.
    pub lr_end: Option<f64>,
    /// Exponent of `polynomial`.
    pub power: Option<f64>,
    /// Floor of the cosines with one, as a rate.
    pub min_lr: Option<f64>,
    /// Floor of the cosines with one, as a share of `learning_rate`.
    pub min_lr_rate: Option<f64>,
    /// Where the warm-up of `cosine_warmup_with_min_lr` begins, as a share of `learning_rate`.
    pub warmup_lr_rate: Option<f64>,
    /// Floor of `warmup_stable_decay`, as a share of `learning_rate`.
    pub min_lr_ratio: Option<f64>,
    /// Steps after which `inverse_sqrt` has fallen by the root of two.
    pub timescale: Option<u64>,
    /// Plateau of `warmup_stable_decay`.
    pub num_stable_steps: Option<u64>,
    /// Decay of `warmup_stable_decay`.
    pub num_decay_steps: Option<u64>,
    /// Shape of the warm-up of `warmup_stable_decay`.
    pub warmup_type: Option<RampShape>,
    /// Shape of the decay of `warmup_stable_decay`.
    pub decay_type: Option<RampShape>,
}

/// A schedule with every parameter set. `s` = share of the steps after the warm-up that are done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LrSchedule {
    /// 1 − s.
    Linear,
    /// ½(1 + cos(2π·num_cycles·s)).
    Cosine {
        /// 0.5 falls once to 0.
        num_cycles: f64,
    },
    /// ½(1 + cos(π·(num_cycles·s mod 1))).
    CosineWithRestarts {
        /// How many times it falls.
        num_cycles: f64,
    },
    /// (lr − lr_end)(1 − s)^power + lr_end.
    Polynomial {
        /// Final rate.
        lr_end: f64,
        /// Exponent.
        power: f64,
    },
    /// 1, without warm-up.
    Constant,
    /// 1 after the warm-up.
    ConstantWithWarmup,
    /// 1/√((step + shift)/timescale).
    InverseSqrt {
        /// `None`: the warm-up steps, or 10 000 without a warm-up.
        timescale: Option<u64>,
    },
    /// The cosine, mapped from \[0, 1\] onto \[min_lr_rate, 1\].
    CosineWithMinLr {
        /// 0.5 falls once to the floor.
        num_cycles: f64,
        /// Floor as a share of `learning_rate`.
        min_lr_rate: f64,
    },
    /// The same, s counted from 1, after a warm-up from `warmup_lr_rate` to 1.
    CosineWarmupWithMinLr {
        /// 0.5 falls once to the floor.
        num_cycles: f64,
        /// Floor as a share of `learning_rate`.
        min_lr_rate: f64,
        /// `None`: the first step of the warm-up counts as done.
        warmup_lr_rate: Option<f64>,
    },
    /// Warm-up, plateau, decay.
    WarmupStableDecay {
        /// `None`: what the warm-up and the decay leave.
        num_stable_steps: Option<u64>,
        /// Length of the decay; `None`: what the others leave, and where neither is given two thirds of what the warm-up
        /// leaves.
        num_decay_steps: Option<u64>,
        /// Shape of the warm-up.
        warmup_type: RampShape,
        /// Shape of the decay.
        decay_type: RampShape,
        /// Floor as a share of `learning_rate`.
        min_lr_ratio: f64,
        /// 0.5 falls once.
        num_cycles: f64,
    },
}

macro_rules! fields {
    ($($name:ident),*) => {
        impl SchedulerKwargs {
            const NAMES: &[&str] = &[$(stringify!($name)),*];

            fn set(&mut self, key: &str, node: &Node) -> Result<bool, Reject> {
                match key {
                    $( stringify!($name) => self.$name = KeyType::parse(node)?, )*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            /// The names that were given, each with its value.
            fn given(&self) -> Vec<(&'static str, Json)> {
                let mut given = Vec::new();
                $( if let Some(value) = &self.$name { given.push((stringify!($name), value.to_json())); } )*
                given
            }
        }
    };
}
fields!(
    num_cycles,
    lr_end,
    power,
    min_lr,
    min_lr_rate,
    warmup_lr_rate,
    min_lr_ratio,
    timescale,
    num_stable_steps,
    num_decay_steps,
    warmup_type,
    decay_type
);

impl KeyType for SchedulerKwargs {
    fn parse(node: &Node) -> Result<Self, Reject> {
        let entries = match &node.content {
            _ if node.is_null() => return Ok(Self::default()),
            Content::Map(entries) => entries,
            // transformers also takes the mapping as a JSON text.
            Content::Scalar { text, .. } if text.starts_with('{') => {
                return Self::parse(&read_flow(text, &node.place).map_err(|_| Reject::Type)?);
            }
            _ => return Err(Reject::Type),
        };
        let mut kwargs = Self::default();
        for entry in entries {
            match kwargs.set(&entry.key, &entry.node) {
                Ok(true) => {}
                Ok(false) => {
                    let help = nearest(&entry.key, Self::NAMES.iter().copied());
                    return Err(Reject::Because {
                        reason: format!("no schedule takes `{}`", entry.key),
                        help: help.map(|name| format!("did you mean `{name}`?")),
                    });
                }
                Err(Reject::Type | Reject::NoValue) => {
                    return Err(Reject::Because {
                        reason: format!("`{}` cannot be {}", entry.key, entry.node.shown()),
                        help: None,
                    });
                }
                Err(other) => return Err(other),
            }
        }
        let negative = kwargs.given().into_iter().find(|(_, v)| v.as_f64().is_some_and(|n| n < 0.0));
        match negative {
            Some((name, value)) => {
                Err(Reject::Because { reason: format!("`{name}` is {value}, below 0"), help: None })
            }
            None => Ok(kwargs),
        }
    }
    fn to_json(&self) -> Json {
        match self.given() {
            given if given.is_empty() => Json::Null,
            given => Json::Object(given.into_iter().map(|(k, v)| (k.to_string(), v)).collect()),
        }
    }
    fn takes() -> String {
        "a mapping of the schedule's parameters, or null".into()
    }
    fn schema() -> Json {
        let shape = json!({"enum": ["linear", "cosine", "1-sqrt"]});
        let property = |name: &&str| {
            let schema =
                if name.ends_with("_type") { shape.clone() } else { json!({"type": "number", "minimum": 0}) };
            (name.to_string(), schema)
        };
        let properties: Map<String, Json> = Self::NAMES.iter().map(property).collect();
        json!({"type": ["object", "null"], "properties": properties, "additionalProperties": false})
    }
}

/// The parameters that a schedule takes.
fn takes(kind: LrSchedulerType) -> &'static [&'static str] {
    match kind {
        LrSchedulerType::Linear | LrSchedulerType::Constant | LrSchedulerType::ConstantWithWarmup => &[],
        LrSchedulerType::Cosine | LrSchedulerType::CosineWithRestarts => &["num_cycles"],
        LrSchedulerType::Polynomial => &["lr_end", "power"],
        LrSchedulerType::InverseSqrt => &["timescale"],
        LrSchedulerType::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
        LrSchedulerType::CosineWarmupWithMinLr => &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"],
        LrSchedulerType::WarmupStableDecay => &[
            "num_decay_steps",
            "num_stable_steps",
            "warmup_type",
            "decay_type",
            "min_lr_ratio",
            "num_cycles",
        ],
    }
}

/// The schedule that `kind` and `kwargs` describe, or why they describe none.
pub(crate) fn schedule(
    kind: LrSchedulerType,
    kwargs: &SchedulerKwargs,
    learning_rate: f64,
) -> Result<LrSchedule, String> {
    let taken = takes(kind);
    if let Some((name, _)) = kwargs.given().into_iter().find(|(name, _)| !taken.contains(name)) {
        return Err(match taken {
            [] => format!("`{kind}` takes no parameter, but `{name}` was given"),
            _ => format!("`{kind}` takes {}, not `{name}`", taken.join(", ")),
        });
    }
    let num_cycles = kwargs.num_cycles.unwrap_or(0.5);
    Ok(match kind {
        LrSchedulerType::Linear => LrSchedule::Linear,
        LrSchedulerType::Constant => LrSchedule::Constant,
        LrSchedulerType::ConstantWithWarmup => LrSchedule::ConstantWithWarmup,
        LrSchedulerType::Cosine => LrSchedule::Cosine { num_cycles },
        LrSchedulerType::CosineWithRestarts => {
            LrSchedule::CosineWithRestarts { num_cycles: kwargs.num_cycles.unwrap_or(1.0) }
        }
        LrSchedulerType::Polynomial => {
            let lr_end = kwargs.lr_end.unwrap_or(1e-7);
            if lr_end >= learning_rate {
                return Err(format!("lr_end ({lr_end}) must be below learning_rate ({learning_rate})"));
            }
            LrSchedule::Polynomial { lr_end, power: kwargs.power.unwrap_or(1.0) }
        }
        LrSchedulerType::InverseSqrt => {
            if kwargs.timescale == Some(0) {
                return Err("timescale must be at least 1".to_string());
            }
            LrSchedule::InverseSqrt { timescale: kwargs.timescale }
        }
        LrSchedulerType::CosineWithMinLr => {
            LrSchedule::CosineWithMinLr { num_cycles, min_lr_rate: floor(kind, kwargs, learning_rate)? }
        }
        LrSchedulerType::CosineWarmupWithMinLr => {
            let (min_lr_rate, warmup_lr_rate) = (floor(kind, kwargs, learning_rate)?, kwargs.warmup_lr_rate);
            if let Some(rate) = warmup_lr_rate.filter(|rate| *rate > 1.0) {
                return Err(format!("warmup_lr_rate ({rate}) must not be above 1"));
            }
            LrSchedule::CosineWarmupWithMinLr { num_cycles, min_lr_rate, warmup_lr_rate }
        }
        LrSchedulerType::WarmupStableDecay => LrSchedule::WarmupStableDecay {
            num_stable_steps: kwargs.num_stable_steps,
            num_decay_steps: kwargs.num_decay_steps,
            warmup_type: kwargs.warmup_type.unwrap_or(RampShape::Linear),
            decay_type: kwargs.decay_type.unwrap_or(RampShape::Cosine),
            min_lr_ratio: kwargs.min_lr_ratio.unwrap_or(0.0),
            num_cycles,
        },
    })
}

/// The floor of a cosine, as a share of `learning_rate`.
fn floor(kind: LrSchedulerType, kwargs: &SchedulerKwargs, learning_rate: f64) -> Result<f64, String> {
    match (kwargs.min_lr, kwargs.min_lr_rate) {
        (Some(0.0), None) => Ok(0.0),
        (Some(min_lr), None) if min_lr <= learning_rate => Ok(min_lr / learning_rate),
        (Some(min_lr), None) => {
            Err(format!("min_lr ({min_lr}) must not be above learning_rate ({learning_rate})"))
        }
        (None, Some(rate)) if rate <= 1.0 => Ok(rate),
        (None, Some(rate)) => Err(format!("min_lr_rate ({rate}) must not be above 1")),
        (Some(_), Some(_)) => Err("min_lr and min_lr_rate say the same thing: give one".to_string()),
        (None, None) => Err(format!("`{kind}` needs min_lr or min_lr_rate")),
    }
}
