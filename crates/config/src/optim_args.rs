//! `optim_args`: what an optimizer can be told besides the keys of its own.
//!
//! In: `name=value` pairs with commas, as transformers takes them. Out: the values, each absent unless given; which of them
//! an optimizer takes is checked against `optim`.

use serde_json::{Value as Json, json};

use crate::choices::Optim;
use crate::nearest::nearest;
use crate::source::{Content, Node};
use crate::value::{KeyType, Reject, number};

/// Settings of an optimizer; names as in transformers (`trainer_optimizer.py`, 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OptimArgs {
    /// SGD: memory of the gradients.
    pub momentum: Option<f64>,
    /// SGD: share of a new gradient that the momentum leaves out.
    pub dampening: Option<f64>,
    /// SGD: Nesterov's step.
    pub nesterov: Option<bool>,
    /// AdEMAMix: memory of the slow mean.
    pub beta3: Option<f64>,
    /// AdEMAMix: weight of the slow mean.
    pub alpha: Option<f64>,
    /// AdEMAMix: steps during which alpha climbs.
    pub t_alpha: Option<u64>,
    /// AdEMAMix: steps during which beta3 climbs.
    pub t_beta3: Option<u64>,
    /// Schedule-free: power of a step's number in the average.
    pub r: Option<f64>,
    /// Schedule-free: power of the largest learning rate in the average.
    pub weight_lr_power: Option<f64>,
}

const NAMES: [&str; 9] =
    ["momentum", "dampening", "nesterov", "beta3", "alpha", "t_alpha", "t_beta3", "r", "weight_lr_power"];

/// The settings that an optimizer takes.
pub(crate) fn takes(optim: Optim) -> &'static [&'static str] {
    match optim {
        Optim::Sgd => &["momentum", "dampening", "nesterov"],
        Optim::Ademamix | Optim::Ademamix8bit => &["beta3", "alpha", "t_alpha", "t_beta3"],
        Optim::ScheduleFreeAdamw => &["r", "weight_lr_power"],
        Optim::AdamwTorch | Optim::Adamw8bit | Optim::Adafactor | Optim::Lion | Optim::Lion8bit => &[],
    }
}

impl OptimArgs {
    /// What was given, in the order of the names.
    pub(crate) fn given(&self) -> Vec<(&'static str, String)> {
        let number = |x: Option<f64>| x.map(|x| x.to_string());
        let count = |x: Option<u64>| x.map(|x| x.to_string());
        let values = [
            number(self.momentum),
            number(self.dampening),
            self.nesterov.map(|x| x.to_string()),
            number(self.beta3),
            number(self.alpha),
            count(self.t_alpha),
            count(self.t_beta3),
            number(self.r),
            number(self.weight_lr_power),
        ];
        NAMES.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Stores one setting; what it must be, if it is not.
    fn set(&mut self, name: &str, text: &str) -> Result<(), &'static str> {
        let share = number(text).filter(|x| (0.0..1.0).contains(x)).ok_or("a number from 0 to below 1");
        let positive = number(text).filter(|x| *x >= 0.0).ok_or("a number of at least 0");
        let steps = number(text).filter(|x| *x >= 1.0 && x.fract() == 0.0 && *x < 1e15);
        let steps = steps.map(|x| x as u64).ok_or("a whole number of at least 1");
        match name {
            "momentum" => self.momentum = Some(share?),
            "dampening" => self.dampening = Some(share?),
            "nesterov" => {
                self.nesterov = Some(match text.to_ascii_lowercase().as_str() {
                    "true" | "1" | "yes" => true,
                    "false" | "0" | "no" => false,
                    _ => return Err("true or false"),
                });
            }
            "beta3" => self.beta3 = Some(share?),
            "alpha" => self.alpha = Some(positive?),
            "t_alpha" => self.t_alpha = Some(steps?),
            "t_beta3" => self.t_beta3 = Some(steps?),
            "r" => self.r = Some(positive?),
            _ => self.weight_lr_power = Some(positive?),
        }
        Ok(())
    }
}

impl KeyType for OptimArgs {
    fn parse(node: &Node) -> Result<Self, Reject> {
        let text = match &node.content {
            _ if node.is_null() => return Ok(Self::default()),
            Content::Scalar { text, .. } => text,
            _ => return Err(Reject::Type),
        };
        let mut args = Self::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=').map(|(name, value)| (name.trim(), value.trim()))
            else {
                return Err(Reject::Because { reason: format!("`{pair}` is no name=value"), help: None });
            };
            if !NAMES.contains(&name) {
                let near = nearest(name, NAMES);
                let help = near.map_or_else(
                    || {
                        "`adam_beta1`, `adam_beta2`, `adam_epsilon` and `weight_decay` are keys of their own"
                            .into()
                    },
                    |near| format!("did you mean `{near}`?"),
                );
                return Err(Reject::Because {
                    reason: format!("no optimizer takes `{name}`"),
                    help: Some(help),
                });
            }
            if let Err(must) = args.set(name, value) {
                let reason = format!("`{name}` is {value} and must be {must}");
                return Err(Reject::Because { reason, help: None });
            }
        }
        Ok(args)
    }
    fn to_json(&self) -> Json {
        let pairs: Vec<String> =
            self.given().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        if pairs.is_empty() { Json::Null } else { json!(pairs.join(",")) }
    }
    fn takes() -> String {
        "`name=value` pairs with commas, or null".into()
    }
    fn schema() -> Json {
        json!({"type": ["string", "null"]})
    }
}
