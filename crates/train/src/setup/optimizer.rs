//! Which optimizer the configuration asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use sft_config::{
    ApolloProj, ApolloProjType, ApolloScaleType, BadamMaskMode, BadamMode, BadamSwitchMode, GaloreProjType,
    Optim, RunConfig, Targets,
};
use sft_model::ModelError;
use sft_model::method::linear_paths;
use sft_model::spec::DecoderSpec;

use crate::optim::{
    AdEMAMixOptions, AdamMiniOptions, AdamWOptions, ApolloOptions, BAdamLayers, BAdamRatio, Bits, BlockOrder,
    Decays, GaLoreOptions, Groups, Heads, Inner, LionOptions, LoraPlus, MaskMode, MuonOptions, Outline,
    Projection, ProjectionType, Recipe, Rule, ScaleOf, ScheduleFreeOptions, SgdOptions, Subspace,
};

/// The optimizer of a run of `total_steps` that trains `weights`.
///
/// # Errors
/// Targets that fit no linear layer.
pub fn optimizer(
    config: &RunConfig,
    spec: &DecoderSpec,
    weights: &[Outline],
    total_steps: u64,
) -> Result<Recipe, ModelError> {
    let c = config;
    let adam = AdamWOptions { beta1: c.adam_beta1, beta2: c.adam_beta2, eps: c.adam_epsilon };
    let groups = groups(c);
    let rule = if !c.do_train {
        // An evaluation alone updates nothing.
        Rule::AdamW(adam, Bits::B32)
    } else if c.use_galore {
        Rule::GaLore(GaLoreOptions {
            projection: Projection {
                rank: c.galore_rank as usize,
                update_interval: c.galore_update_interval,
                scale: c.galore_scale,
                kind: match c.galore_proj_type {
                    GaloreProjType::Std => ProjectionType::Std,
                    GaloreProjType::ReverseStd => ProjectionType::ReverseStd,
                    GaloreProjType::Right => ProjectionType::Right,
                    GaloreProjType::Left => ProjectionType::Left,
                    GaloreProjType::Full => ProjectionType::Full,
                },
                subspace: Subspace::Svd,
            },
            inner: if c.optim == Optim::Adafactor { Inner::Adafactor } else { Inner::AdamW(adam) },
            projected: projected("galore_target", &c.galore_target, spec, weights)?,
            by_parts: c.galore_layerwise,
        })
    } else if c.use_apollo {
        Rule::Apollo(apollo(c, adam, projected("apollo_target", &c.apollo_target, spec, weights)?))
    } else if c.use_badam {
        badam(c, adam, groups)
    } else if c.use_adam_mini {
        let attention = spec.layers.iter().find_map(|layer| layer.attends());
        let heads = attention.map_or(1, |attention| attention.heads);
        let heads = Heads { hidden_size: spec.hidden_size, heads };
        Rule::AdamMini(AdamMiniOptions { adam, weight_decay: c.weight_decay, heads })
    } else if c.use_muon {
        Rule::Muon(MuonOptions { adam, weight_decay: c.weight_decay })
    } else {
        of_optim(c, adam, total_steps)
    };
    Ok(Recipe { groups, rule })
}

/// Hugging Face's groups, or LLaMA-Factory's where it makes them itself.
fn groups(c: &RunConfig) -> Groups {
    let lora_plus = c.loraplus_lr_ratio.map(|ratio| LoraPlus { ratio });
    let own = c.use_galore || c.use_apollo || c.use_badam || lora_plus.is_some();
    let decays = if own { Decays::AllButBiases } else { Decays::Matrices };
    Groups { weight_decay: c.weight_decay, decays, lora_plus }
}

fn of_optim(c: &RunConfig, adam: AdamWOptions, total_steps: u64) -> Rule {
    let args = c.optim_args;
    let lion = LionOptions { beta1: c.adam_beta1, beta2: c.adam_beta2 };
    let ademamix = AdEMAMixOptions {
        betas: [c.adam_beta1, c.adam_beta2, args.beta3.unwrap_or(0.9999)],
        alpha: args.alpha.unwrap_or(5.0),
        eps: c.adam_epsilon,
        t_alpha: args.t_alpha,
        t_beta3: args.t_beta3,
    };
    match c.optim {
        Optim::AdamwTorch => Rule::AdamW(adam, Bits::B32),
        Optim::Adamw8bit => Rule::AdamW(adam, Bits::B8),
        Optim::Sgd => Rule::Sgd(SgdOptions {
            momentum: args.momentum.unwrap_or(0.0),
            dampening: args.dampening.unwrap_or(0.0),
            nesterov: args.nesterov.unwrap_or(false),
        }),
        Optim::Adafactor => Rule::Adafactor,
        Optim::Lion => Rule::Lion(lion, Bits::B32),
        Optim::Lion8bit => Rule::Lion(lion, Bits::B8),
        Optim::Ademamix => Rule::AdEMAMix(ademamix, Bits::B32),
        Optim::Ademamix8bit => Rule::AdEMAMix(ademamix, Bits::B8),
        Optim::ScheduleFreeAdamw => Rule::ScheduleFree(ScheduleFreeOptions {
            beta1: c.adam_beta1,
            beta2: c.adam_beta2,
            eps: c.adam_epsilon,
            warmup_steps: c.warmup_steps.of(total_steps),
            r: args.r.unwrap_or(0.0),
            weight_lr_power: args.weight_lr_power.unwrap_or(2.0),
        }),
    }
}

fn apollo(c: &RunConfig, adam: AdamWOptions, projected: Arc<BTreeSet<String>>) -> ApolloOptions {
    ApolloOptions {
        projection: Projection {
            rank: c.apollo_rank as usize,
            update_interval: c.apollo_update_interval,
            scale: c.apollo_scale,
            kind: match c.apollo_proj_type {
                ApolloProjType::Std => ProjectionType::Std,
                ApolloProjType::Right => ProjectionType::Right,
                ApolloProjType::Left => ProjectionType::Left,
            },
            subspace: match c.apollo_proj {
                ApolloProj::Random => Subspace::Random,
                ApolloProj::Svd => Subspace::Svd,
            },
        },
        scale_of: match c.apollo_scale_type {
            ApolloScaleType::Channel => ScaleOf::Channel,
            ApolloScaleType::Tensor => ScaleOf::Tensor,
        },
        scale_front: c.apollo_scale_front,
        adam,
        projected,
        by_parts: c.apollo_layerwise,
    }
}

fn badam(c: &RunConfig, adam: AdamWOptions, groups: Groups) -> Rule {
    match c.badam_mode {
        BadamMode::Layer => Rule::BAdamLayers(BAdamLayers {
            adam,
            groups,
            order: match c.badam_switch_mode {
                BadamSwitchMode::Ascending => BlockOrder::Ascending,
                BadamSwitchMode::Descending => BlockOrder::Descending,
                BadamSwitchMode::Random => BlockOrder::Random,
                BadamSwitchMode::Fixed => BlockOrder::Fixed,
            },
            start: c.badam_start_block.map(|block| usize::try_from(block).unwrap_or(usize::MAX)),
            switch_interval: u64::try_from(c.badam_switch_interval).ok(),
            seed: c.seed,
        }),
        BadamMode::Ratio => Rule::BAdamRatio(BAdamRatio {
            adam,
            ratio: c.badam_update_ratio,
            mask: match c.badam_mask_mode {
                BadamMaskMode::Adjacent => MaskMode::Adjacent,
                BadamMaskMode::Scatter => MaskMode::Scatter,
            },
            seed: c.seed,
        }),
    }
}

/// The trained weights of linear layers whose names have a target in them: LLaMA-Factory's rule. `all` is every one but
/// the head.
fn projected(
    key: &'static str,
    targets: &Targets,
    spec: &DecoderSpec,
    weights: &[Outline],
) -> Result<Arc<BTreeSet<String>>, ModelError> {
    let mut linear: BTreeSet<String> = linear_paths(spec).map(|path| format!("{path}.weight")).collect();
    if let Targets::Names(_) = targets {
        linear.insert(spec.names.head());
    }
    let fits = |name: &str| match targets {
        Targets::All => true,
        Targets::Names(names) => names.iter().any(|target| name.contains(target.as_str())),
    };
    let matrices = weights.iter().filter(|weight| weight.is_matrix() && linear.contains(&weight.name));
    let found: BTreeSet<String> =
        matrices.map(|weight| weight.name.clone()).filter(|name| fits(name)).collect();
    if found.is_empty() {
        let modules: BTreeSet<&str> =
            linear.iter().filter_map(|name| name.strip_suffix(".weight")?.rsplit('.').next()).collect();
        return Err(ModelError::Method {
            key,
            reason: "no trained linear layer has such a name".into(),
            help: format!("choose `all`, or among {}", modules.into_iter().collect::<Vec<_>>().join(", ")),
        });
    }
    Ok(Arc::new(found))
}
