//! Which optimizer a run has: how it is made, what it takes, where it runs.

use sft_model::ModelError;
use sft_model::parameter::{Outline, Parameter};

use super::elementwise::{self, Bits, Elementwise, Formula};
use super::state::Slot;
use super::{
    AdEMAMixOptions, Adafactor, AdamMini, AdamMiniOptions, AdamW, AdamWOptions, Apollo, ApolloOptions, BAdam,
    BAdamLayers, BAdamRatio, BAdamShares, GaLore, GaLoreOptions, Groups, LionOptions, Muon, MuonOptions,
    Optimizer, ScheduleFree, ScheduleFreeOptions, SgdOptions, adafactor, adamw, muon, parts, schedule_free,
    sgd,
};

/// An optimizer with its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Learning rates and weight decay of the weights, where the rule does not say it itself.
    pub groups: Groups,
    /// Which one.
    pub rule: Rule,
}

/// Which optimizer.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each is the optimizer of its name, with its settings")]
pub enum Rule {
    AdamW(AdamWOptions, Bits),
    Sgd(SgdOptions),
    Adafactor,
    Lion(LionOptions, Bits),
    AdEMAMix(AdEMAMixOptions, Bits),
    ScheduleFree(ScheduleFreeOptions),
    AdamMini(AdamMiniOptions),
    Muon(MuonOptions),
    GaLore(GaLoreOptions),
    Apollo(ApolloOptions),
    BAdamLayers(BAdamLayers),
    BAdamRatio(BAdamRatio),
}

impl Rule {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::AdamW(..) => "AdamW",
            Rule::Sgd(_) => "SGD",
            Rule::Adafactor => "Adafactor",
            Rule::Lion(..) => "Lion",
            Rule::AdEMAMix(..) => "AdEMAMix",
            Rule::ScheduleFree(_) => "schedule-free AdamW",
            Rule::AdamMini(_) => "Adam-mini",
            Rule::Muon(_) => "Muon",
            Rule::GaLore(_) => "GaLore",
            Rule::Apollo(_) => "APOLLO",
            Rule::BAdamLayers(_) | Rule::BAdamRatio(_) => "BAdam",
        }
    }
}

impl Recipe {
    /// The optimizer, made for these parameters.
    pub fn make(&self, parameters: &mut [&mut Parameter]) -> Box<dyn Optimizer> {
        let groups = self.groups;
        match &self.rule {
            Rule::AdamW(options, Bits::B32) => Box::new(AdamW::new(*options, groups, parameters)),
            Rule::AdamW(options, bits) => Box::new(Elementwise::new(*options, *bits, groups, parameters)),
            Rule::Sgd(options) if options.momentum == 0.0 => {
                Box::new(Elementwise::new(sgd::Plain, Bits::B32, groups, parameters))
            }
            Rule::Sgd(options) => {
                Box::new(Elementwise::new(sgd::Momentum(*options), Bits::B32, groups, parameters))
            }
            Rule::Adafactor => Box::new(Adafactor::new(groups, parameters)),
            Rule::Lion(options, bits) => Box::new(Elementwise::new(*options, *bits, groups, parameters)),
            Rule::AdEMAMix(options, bits) => Box::new(Elementwise::new(*options, *bits, groups, parameters)),
            Rule::ScheduleFree(options) => Box::new(ScheduleFree::new(*options, groups, parameters)),
            Rule::AdamMini(options) => Box::new(AdamMini::new(*options, parameters)),
            Rule::Muon(options) => Box::new(Muon::new(*options, parameters)),
            Rule::GaLore(options) => Box::new(GaLore::new(options.clone(), groups, parameters)),
            Rule::Apollo(options) => Box::new(Apollo::new(options.clone(), groups, parameters)),
            Rule::BAdamLayers(options) => Box::new(BAdam::new(*options, parameters)),
            Rule::BAdamRatio(options) => Box::new(BAdamShares::new(*options, parameters)),
        }
    }

    /// Bytes of what it keeps for these weights.
    pub fn state_bytes(&self, weights: &[Outline]) -> usize {
        let all = |layout: &dyn Fn(&Outline) -> Vec<Slot>| -> usize {
            weights.iter().flat_map(layout).map(|slot| slot.bytes()).sum()
        };
        match &self.rule {
            Rule::AdamW(_, bits) => all(&|weight| adamw::slots(*bits, weight)),
            Rule::Sgd(options) if options.momentum == 0.0 => 0,
            Rule::Sgd(_) => all(&|weight| elementwise::layout(&sgd::Momentum::KINDS, Bits::B32, weight)),
            Rule::Adafactor => all(&|weight| adafactor::layout(&weight.shape)),
            Rule::Lion(_, bits) => all(&|weight| elementwise::layout(&LionOptions::KINDS, *bits, weight)),
            Rule::AdEMAMix(_, bits) => {
                all(&|weight| elementwise::layout(&AdEMAMixOptions::KINDS, *bits, weight))
            }
            Rule::ScheduleFree(_) => all(&schedule_free::layout),
            Rule::AdamMini(options) => all(&|weight| options.layout(weight)),
            Rule::Muon(_) => all(&muon::layout),
            Rule::GaLore(options) => all(&|weight| options.layout(weight)),
            Rule::Apollo(options) => all(&|weight| options.layout(weight)),
            Rule::BAdamLayers(_) => BAdamLayers::state_bytes(weights),
            Rule::BAdamRatio(options) => all(&|weight| options.layout(weight)),
        }
    }

    /// Bytes of the gradients that there are at a time, f32; `is_tied` if the embedding is the head too.
    pub fn gradient_bytes(&self, weights: &[Outline], is_tied: bool) -> usize {
        match &self.rule {
            Rule::BAdamLayers(_) => BAdamLayers::gradient_bytes(weights),
            Rule::GaLore(GaLoreOptions { by_parts: true, .. })
            | Rule::Apollo(ApolloOptions { by_parts: true, .. }) => parts::gradient_bytes(weights, is_tied),
            _ => weights.iter().map(Outline::elements).sum::<usize>() * size_of::<f32>(),
        }
    }

    /// Bytes of what it works in besides.
    pub fn workspace_bytes(&self, weights: &[Outline]) -> usize {
        match &self.rule {
            Rule::Muon(_) => muon::workspace_bytes(weights),
            Rule::GaLore(options) => options.workspace_bytes(weights),
            Rule::Apollo(options) => options.workspace_bytes(weights),
            Rule::BAdamRatio(options) => options.workspace_bytes(weights),
            _ => 0,
        }
    }

    /// Bytes that a checkpoint has besides the weights: the state, and the weights that training goes on from where these
    /// are others.
    pub fn checkpoint_bytes(&self, weights: &[Outline]) -> usize {
        let again = matches!(self.rule, Rule::ScheduleFree(_));
        let weights_again = weights.iter().map(Outline::elements).sum::<usize>() * size_of::<f32>();
        self.state_bytes(weights) + if again { weights_again } else { 0 }
    }

    /// What is wrong with it for these weights.
    ///
    /// # Errors
    /// The key, why, and what to do.
    pub fn check(&self, weights: &[Outline], on_card: bool) -> Result<(), ModelError> {
        let refuse =
            |key, reason: String, help: &str| Err(ModelError::Method { key, reason, help: help.into() });
        if on_card && let Some((key, name)) = self.of_the_cpu() {
            let reason = format!("{name} looks at whole matrices, and has no kernels for GPUs yet");
            return refuse(
                key,
                reason,
                "use `optim: adamw_8bit`, `adamw_torch`, `lion_32bit` or `sgd`, or set `device: cpu`",
            );
        }
        match &self.rule {
            Rule::AdamMini(options) => match weights.iter().find_map(|weight| options.block(weight).err()) {
                Some(reason) => refuse("use_adam_mini", reason, "use `use_muon`, or `optim: adafactor`"),
                None => Ok(()),
            },
            Rule::BAdamLayers(options) => {
                let blocks = BAdamLayers::blocks(weights);
                if blocks == 0 {
                    let reason = "no trained weight is in one of the model's blocks".into();
                    return refuse("use_badam", reason, "train layers, or set `badam_mode: ratio`");
                }
                match options.start {
                    Some(start) if start >= blocks => {
                        let reason =
                            format!("{start}, and there are {blocks} blocks of trained weights, from 0");
                        refuse("badam_start_block", reason, "choose one of them")
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The key that asks for an optimizer that has no kernels for GPUs, and its name.
    fn of_the_cpu(&self) -> Option<(&'static str, &'static str)> {
        match &self.rule {
            Rule::Adafactor => Some(("optim", "Adafactor")),
            Rule::AdamMini(_) => Some(("use_adam_mini", "Adam-mini")),
            Rule::Muon(_) => Some(("use_muon", "Muon")),
            Rule::GaLore(_) => Some(("use_galore", "GaLore")),
            Rule::Apollo(_) => Some(("use_apollo", "APOLLO")),
            Rule::BAdamLayers(_) | Rule::BAdamRatio(_) => Some(("use_badam", "BAdam")),
            Rule::AdamW(..) | Rule::Sgd(_) | Rule::Lion(..) | Rule::AdEMAMix(..) | Rule::ScheduleFree(_) => {
                None
            }
        }
    }
}
