//! What the keys of optimizers say together.

use super::Checks;
use crate::choices::{
    ApolloProjType, ApolloScaleType, BadamMode, BadamSwitchMode, FinetuningType, OnNonFinite, Optim,
};
use crate::device::Device;
use crate::keys::RunConfig;
use crate::optim_args;

/// Keys that each ask for an optimizer of their own.
fn asking(c: &RunConfig) -> Vec<&'static str> {
    let all = [
        ("use_galore", c.use_galore),
        ("use_apollo", c.use_apollo),
        ("use_badam", c.use_badam),
        ("loraplus_lr_ratio", c.loraplus_lr_ratio.is_some()),
        ("use_adam_mini", c.use_adam_mini),
        ("use_muon", c.use_muon),
    ];
    all.into_iter().filter(|(_, asked)| *asked).map(|(key, _)| key).collect()
}

impl Checks<'_> {
    pub(super) fn optimizer(&mut self, c: &RunConfig) {
        let lora = c.finetuning_type == FinetuningType::Lora;
        for (key, asked, name) in [
            ("use_galore", c.use_galore, "GaLore"),
            ("use_apollo", c.use_apollo, "APOLLO"),
            ("use_badam", c.use_badam, "BAdam"),
            // Our own rule: the package's blocks are heads and rows of whole matrices.
            ("use_adam_mini", c.use_adam_mini, "Adam-mini"),
        ] {
            self.refuse_if(
                asked && c.finetuning_type.is_adapter(),
                &[key, "finetuning_type"],
                &format!("{name} trains whole matrices, and `finetuning_type` is `{}`", c.finetuning_type),
                "use `finetuning_type: full` or `freeze`, or remove it",
            );
        }
        self.refuse_if(
            c.loraplus_lr_ratio.is_some() && !lora,
            &["loraplus_lr_ratio", "finetuning_type"],
            "`loraplus_lr_ratio` needs `finetuning_type: lora`",
            "remove it, or use `finetuning_type: lora`",
        );
        // LLaMA-Factory refuses GaLore, APOLLO and BAdam together, and takes the first of the others.
        let asking = asking(c);
        self.refuse_if(
            asking.len() > 1,
            &asking,
            &format!("`{}` each ask for an optimizer of their own", asking.join("`, `")),
            "keep one of them",
        );
        self.inner(c);
        self.apollo_and_badam(c);
        self.layerwise(c);
        self.settings(c);
        self.device_of_optimizer(c);
    }

    /// Which `optim` goes with the keys that ask for an optimizer.
    fn inner(&mut self, c: &RunConfig) {
        let adamw = c.optim == Optim::AdamwTorch;
        self.refuse_if(
            c.use_galore && !adamw && c.optim != Optim::Adafactor,
            &["optim", "use_galore"],
            &format!(
                "GaLore keeps the moments of `adamw_torch` or `adafactor`, and `optim` is `{}`",
                c.optim
            ),
            "use one of the two",
        );
        for (key, asked, name) in [
            ("use_apollo", c.use_apollo, "APOLLO"),
            ("use_badam", c.use_badam, "BAdam"),
            ("use_adam_mini", c.use_adam_mini, "Adam-mini"),
            ("use_muon", c.use_muon, "Muon"),
        ] {
            self.refuse_if(
                asked && !adamw,
                &["optim", key],
                &format!("{name} keeps moments of its own, and `optim` is `{}`", c.optim),
                "leave `optim` out",
            );
        }
    }

    fn apollo_and_badam(&mut self, c: &RunConfig) {
        self.refuse_if(
            c.use_apollo
                && c.apollo_scale_type == ApolloScaleType::Channel
                && c.apollo_proj_type != ApolloProjType::Std,
            &["apollo_proj_type", "apollo_scale_type", "use_apollo"],
            "`apollo_scale_type: channel` needs `apollo_proj_type: std`: only that leaves the channels as they are",
            "leave `apollo_proj_type` out, or set `apollo_scale_type: tensor`",
        );
        let layers = c.use_badam && c.badam_mode == BadamMode::Layer;
        let ratio = c.use_badam && c.badam_mode == BadamMode::Ratio;
        self.refuse_if(
            layers && c.badam_switch_mode == BadamSwitchMode::Fixed && c.badam_start_block.is_none(),
            &["badam_switch_mode", "use_badam"],
            "`badam_switch_mode: fixed` needs `badam_start_block`",
            "name the block, from 0",
        );
        self.refuse_if(
            layers && c.badam_switch_interval == 0,
            &["badam_switch_interval"],
            "`badam_switch_interval: 0` is no number of steps",
            "give one of at least 1, or -1 to stay with the first block",
        );
        self.refuse_if(
            ratio && c.badam_update_ratio == 0.0,
            &["badam_update_ratio"],
            "`badam_update_ratio: 0` leaves nothing to train",
            "give a share above 0",
        );
        self.refuse_if(
            ratio && c.weight_decay > 0.0,
            &["weight_decay", "badam_mode"],
            "`badam_mode: ratio` knows no weight decay",
            "leave `weight_decay` out",
        );
    }

    /// What cannot be where a layer is updated before the gradients of the others are there.
    fn layerwise(&mut self, c: &RunConfig) {
        for (key, asked) in [
            ("galore_layerwise", c.use_galore && c.galore_layerwise),
            ("apollo_layerwise", c.use_apollo && c.apollo_layerwise),
        ] {
            self.refuse_if(
                asked && c.gradient_accumulation_steps > 1,
                &["gradient_accumulation_steps", key],
                &format!(
                    "`{key}` updates after each micro-batch, and gradients are to be summed over several"
                ),
                "set `gradient_accumulation_steps: 1` and a larger `per_device_train_batch_size`",
            );
            self.refuse_if(
                asked && c.on_non_finite == OnNonFinite::SkipStep,
                &["on_non_finite", key],
                &format!("`{key}` has updated some layers before it meets a gradient that is not finite: such a step cannot be left out"),
                "leave `on_non_finite` out",
            );
        }
    }

    fn settings(&mut self, c: &RunConfig) {
        let taken = optim_args::takes(c.optim);
        let given = c.optim_args.given();
        if let Some((name, _)) = given.iter().find(|(name, _)| !taken.contains(name)) {
            let takes = match taken {
                [] => "nothing".to_string(),
                names => names.join(", "),
            };
            self.refuse_if(
                true,
                &["optim_args", "optim"],
                &format!("`optim_args` has `{name}`, and `{}` takes {takes}", c.optim),
                "remove it, or choose the optimizer that it is for",
            );
        }
        let args = c.optim_args;
        self.refuse_if(
            args.nesterov == Some(true)
                && (args.momentum.unwrap_or(0.0) == 0.0 || args.dampening.unwrap_or(0.0) > 0.0),
            &["optim_args"],
            "`nesterov=true` needs a momentum above 0 and no dampening",
            "set `momentum=0.9` and remove `dampening`",
        );
        self.refuse_if(
            args.t_beta3.is_some() && (c.adam_beta1 == 0.0 || args.beta3 == Some(0.0)),
            &["optim_args", "adam_beta1"],
            "`t_beta3` climbs from `adam_beta1` to `beta3`, and one of them is 0",
            "give both a value above 0",
        );
        self.refuse_if(
            c.optim == Optim::ScheduleFreeAdamw && c.adam_beta1 == 0.0,
            &["adam_beta1", "optim"],
            "`schedule_free_adamw` with `adam_beta1: 0` has no average to go back to",
            "give `adam_beta1` a value above 0",
        );
    }

    fn device_of_optimizer(&mut self, c: &RunConfig) {
        if !matches!(c.device, Device::Cuda(_)) {
            return;
        }
        let mut keys: Vec<&str> = asking(c).into_iter().filter(|key| *key != "loraplus_lr_ratio").collect();
        if c.optim == Optim::Adafactor && !c.use_galore {
            keys.push("optim");
        }
        for key in keys {
            self.refuse_if(
                true,
                &[key, "device"],
                "this optimizer looks at whole matrices, and has no kernels for GPUs yet",
                "use `optim: adamw_8bit`, `adamw_torch`, `lion_32bit` or `sgd`, or set `device: cpu`",
            );
        }
    }
}

/// Lists, as (whether they are idle, keys, why), the keys of optimizers that the run does not have.
pub(super) fn idle(c: &RunConfig) -> Vec<(bool, &'static [&'static str], String)> {
    const GALORE: &[&str] = &[
        "galore_target",
        "galore_rank",
        "galore_update_interval",
        "galore_scale",
        "galore_proj_type",
        "galore_layerwise",
    ];
    const APOLLO: &[&str] = &[
        "apollo_target",
        "apollo_rank",
        "apollo_update_interval",
        "apollo_scale",
        "apollo_proj",
        "apollo_proj_type",
        "apollo_scale_type",
        "apollo_scale_front",
        "apollo_layerwise",
    ];
    const LAYERS: &[&str] = &["badam_start_block", "badam_switch_mode", "badam_switch_interval"];
    const RATIO: &[&str] = &["badam_update_ratio", "badam_mask_mode"];
    let only = |key: &str| format!("read only with `{key}`");
    let ratio = c.badam_mode == BadamMode::Ratio;
    let replaced = c.use_galore || c.use_apollo || c.use_badam || c.use_adam_mini || c.use_muon;
    let no_betas = !replaced && matches!(c.optim, Optim::Sgd | Optim::Adafactor)
        || c.use_galore && c.optim == Optim::Adafactor;
    let by_layer = c.use_galore && c.galore_layerwise || c.use_apollo && c.apollo_layerwise;
    let no_norm = "a layer is updated before the norm of all gradients is known: nothing is clipped";
    let no_eps = no_betas || !replaced && matches!(c.optim, Optim::Lion | Optim::Lion8bit);
    vec![
        (!c.use_galore, GALORE, only("use_galore: true")),
        (!c.use_apollo, APOLLO, only("use_apollo: true")),
        (by_layer, &["max_grad_norm"], no_norm.into()),
        (!c.use_badam, &["badam_mode"], only("use_badam: true")),
        (!c.use_badam || ratio, LAYERS, only("use_badam: true` and `badam_mode: layer")),
        (!c.use_badam || !ratio, RATIO, only("use_badam: true` and `badam_mode: ratio")),
        (no_betas, &["adam_beta1", "adam_beta2"], format!("`optim: {}` has no such moments", c.optim)),
        (no_eps, &["adam_epsilon"], format!("`optim: {}` divides by no root", c.optim)),
    ]
}
