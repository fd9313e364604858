"""Writes six training steps of every optimizer as its original package takes them, for `cargo test -p sft-train --test optimizers`.

usage: make_optimizer_goldens.py [CASE [OUT]]
  CASE  a folder of make_parity_case.py          default crates/model/tests/parity/llama
  OUT   the file to write                        default crates/train/goldens/optimizers.json

An entry has the keys of the configuration that asks for the optimizer, the learning rate of each step, the loss at each
step before its update, and three elements of every trained weight after the last one. Learning rates differ from step
to step, as a schedule makes them.

needs: torch, transformers, peft, safetensors, bitsandbytes, llamafactory (for its Muon), galore-torch, apollo-torch,
badam, adam-mini, schedulefree
"""
import contextlib
import io
import json
import os
import re
import sys

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BETAS, EPS, DECAY = (0.9, 0.999), 1e-8, 0.1
SHAPE = (0.5, 1.0, 1.0, 0.75, 0.5, 0.25)
# The patterns of transformers' Trainer.get_decay_parameter_names.
NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def trained(model):
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def trainer_groups(model, decay=DECAY):
    """The parameter groups of transformers' Trainer."""
    names = trained(model)
    return [
        {"params": [p for name, p in names if not NO_DECAY.search(name)], "weight_decay": decay},
        {"params": [p for name, p in names if NO_DECAY.search(name)], "weight_decay": 0.0},
    ]


def linear_weights(model):
    modules = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name]
    return [m.weight for m in modules]


def projected_groups(model, **projection):
    """LLaMA-Factory's groups: without decay, with it (all but biases and LayerNorms), projected."""
    projected = linear_weights(model)
    ids = {id(p) for p in projected}
    rest = [p for name, p in trained(model) if id(p) not in ids]
    return [
        dict(params=[], weight_decay=0.0),
        dict(params=rest, weight_decay=DECAY),
        dict(params=projected, weight_decay=DECAY, **projection),
    ]


def sgd(model, lr):
    return torch.optim.SGD(trainer_groups(model), lr=lr)


def momentum(model, lr):
    return torch.optim.SGD(trainer_groups(model), lr=lr, momentum=0.9, nesterov=True)


def exact_codes():
    """bitsandbytes' C++ path for CPUs looks 8-bit codes up in a coarse table; of f64 it compares with every entry, as its
    kernels for GPUs do."""
    import bitsandbytes.backends.cpu.ops as ops

    def quantize(values, table, absmax_out, codes_out, block):
        codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(values.double(), table, block)
        codes_out.copy_(codes)
        absmax_out.copy_(absmax)

    ops._quant_blockwise_fp32_direct = quantize


def adamw(model, lr):
    return torch.optim.AdamW(trainer_groups(model), lr=lr, betas=BETAS, eps=EPS)


def adafactor(model, lr):
    return transformers.Adafactor(trainer_groups(model), lr=lr, scale_parameter=False, relative_step=False)


def bnb(name, bits=32, **options):
    def make(model, lr):
        import bitsandbytes.optim as bnb

        exact_codes()
        # Weights of the case are smaller than what is kept in 8 bits by default.
        extra = {"min_8bit_size": 1} if bits == 8 else {}
        return getattr(bnb, name)(trainer_groups(model), lr=lr, optim_bits=bits, **extra, **options)

    return make


def bnb_adamw8(model, lr):
    return bnb("AdamW", bits=8, betas=BETAS, eps=EPS)(model, lr)


def schedule_free(model, lr):
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(trainer_groups(model), lr=lr, betas=BETAS, eps=EPS, warmup_steps=2)
    optimizer.train()
    return optimizer


def adam_mini(model, lr):
    from adam_mini import Adam_mini

    config = model.config
    return Adam_mini(
        model.named_parameters(), lr=lr, betas=BETAS, eps=EPS, weight_decay=DECAY, dim=config.hidden_size,
        n_heads=config.num_attention_heads, n_kv_heads=config.num_key_value_heads, verbose=False,
    )  # fmt: skip


def muon(model, lr):
    from llamafactory.third_party.muon import Muon

    names = trained(model)
    is_muon = lambda name, p: p.ndim == 2 and "embed" not in name and "lm_head" not in name
    return Muon(
        lr=lr, wd=DECAY, muon_params=[p for n, p in names if is_muon(n, p)],
        adamw_params=[p for n, p in names if not is_muon(n, p)], adamw_betas=BETAS, adamw_eps=EPS,
    )  # fmt: skip


def lora_plus(model, lr):
    names = trained(model)
    return torch.optim.AdamW(
        [
            {"params": [p for n, p in names if "lora_B" not in n], "lr": lr, "weight_decay": DECAY},
            {"params": [p for n, p in names if "lora_B" in n], "lr": 16 * lr, "weight_decay": DECAY},
        ],
        betas=BETAS,
        eps=EPS,
    )


def with_fixed_signs(projector):
    """Singular vectors have no sign of their own: the largest element of each is made positive."""
    original = projector.get_orthogonal_matrix

    def fixed(vectors, dim):
        largest = vectors.gather(dim, vectors.abs().argmax(dim, keepdim=True))
        return vectors * largest.sign()

    def get_orthogonal_matrix(self, weights, rank, type):
        found = original(self, weights, rank, type)
        if type == "full":
            left, right = found
            return [fixed(left, 0), fixed(right, 1)]
        return fixed(found, 1 if type == "right" else 0)

    projector.get_orthogonal_matrix = get_orthogonal_matrix


class Layerwise:
    """An optimizer for each weight, which takes its step when the weight's gradient is there: as LLaMA-Factory's layerwise keys."""

    def __init__(self, groups, make):
        self.param_groups = []
        for group in groups:
            for p in group["params"]:
                one = make([{**group, "params": [p]}])
                self.param_groups += one.param_groups
                p.register_post_accumulate_grad_hook(lambda _, one=one: one.step())

    def step(self):
        pass


def galore(kind="AdamW", proj_type="std", eps=EPS, layerwise=False):
    def make(model, lr):
        import galore_torch
        from galore_torch.galore_projector import GaLoreProjector

        if not getattr(GaLoreProjector, "has_fixed_signs", False):
            with_fixed_signs(GaLoreProjector)
            GaLoreProjector.has_fixed_signs = True
        groups = projected_groups(model, rank=4, update_proj_gap=3, scale=2.0, proj_type=proj_type)
        if kind == "AdamW":
            one = lambda groups: galore_torch.GaLoreAdamW(groups, lr=lr, betas=BETAS, eps=eps)  # noqa: E731
            return Layerwise(groups, one) if layerwise else one(groups)
        return galore_torch.GaLoreAdafactor(groups, lr=lr, scale_parameter=False, relative_step=False)

    return make


def apollo(proj="random", scale_type="channel", scale_front=False, proj_type="std", layerwise=False):
    def make(model, lr):
        from apollo_torch import APOLLOAdamW
        from apollo_torch.svd_projector import GaLoreProjector

        if not getattr(GaLoreProjector, "has_fixed_signs", False):
            with_fixed_signs(GaLoreProjector)
            GaLoreProjector.has_fixed_signs = True
        groups = projected_groups(
            model, rank=4, proj=proj, proj_type=proj_type, update_proj_gap=3, scale=2.0, scale_type=scale_type
        )
        one = lambda groups: APOLLOAdamW(groups, lr=lr, betas=BETAS, eps=EPS, scale_front=scale_front)  # noqa: E731
        return Layerwise(groups, one) if layerwise else one(groups)

    return make


def badam_layer(mode):
    def make(model, lr):
        from badam import BlockOptimizer

        # The package decays every weight by the default of the optimizer that it wraps.
        base = torch.optim.AdamW(model.parameters(), lr=lr, betas=BETAS, eps=EPS, weight_decay=DECAY)
        return BlockOptimizer(
            base, list(model.named_parameters()), switch_block_every=2, switch_mode=mode, verbose=0, start_block=None
        )

    return make


def badam_ratio(model, lr):
    from badam import BlockOptimizerRatio

    groups = [{"params": [p for _, p in trained(model)], "weight_decay": DECAY}]
    return BlockOptimizerRatio(
        groups, list(model.named_parameters()), update_ratio=0.25, mask_mode="adjacent", verbose=0, lr=lr, betas=BETAS, eps=EPS
    )


FULL = ["finetuning_type=full"]
GALORE = ["use_galore=true", "galore_rank=4", "galore_update_interval=3", "galore_scale=2.0"]
APOLLO = ["use_apollo=true", "apollo_rank=4", "apollo_update_interval=3", "apollo_scale=2.0"]
BADAM = ["use_badam=true", "badam_switch_interval=2"]
# name, keys, learning rate, package
CASES = [
    ("adamw_torch", ["optim=adamw_torch"], 1e-2, adamw),
    ("sgd", ["optim=sgd"], 0.5, sgd),
    ("sgd_momentum", ["optim=sgd", "optim_args=momentum=0.9,nesterov=true"], 0.2, momentum),
    ("adafactor", ["optim=adafactor"], 1e-2, adafactor),
    ("lion_32bit", ["optim=lion_32bit"], 3e-3, bnb("Lion", betas=BETAS)),
    ("lion_8bit", ["optim=lion_8bit"], 3e-3, bnb("Lion", bits=8, betas=BETAS)),
    ("paged_adamw_32bit", ["optim=paged_adamw_32bit"], 1e-2, bnb("AdamW", betas=BETAS, eps=EPS)),
    ("adamw_8bit", ["optim=adamw_8bit"], 1e-2, bnb_adamw8),
    ("ademamix", ["optim=ademamix"], 5e-3, bnb("AdEMAMix", betas=(*BETAS, 0.9999), alpha=5.0, eps=EPS)),
    (
        "ademamix_scheduled",
        ["optim=ademamix", "optim_args=beta3=0.99,alpha=8,t_alpha=5,t_beta3=4"],
        5e-3,
        bnb("AdEMAMix", betas=(*BETAS, 0.99), alpha=8.0, eps=EPS, t_alpha=5, t_beta3=4),
    ),
    ("ademamix_8bit", ["optim=ademamix_8bit"], 5e-3, bnb("AdEMAMix", bits=8, betas=(*BETAS, 0.9999), alpha=5.0, eps=EPS)),
    ("schedule_free_adamw", ["optim=schedule_free_adamw", "warmup_steps=2"], 1e-2, schedule_free),
    ("adam_mini", ["use_adam_mini=true"], 1e-2, adam_mini),
    ("muon", ["use_muon=true"], 1e-2, muon),
    ("galore", GALORE, 1e-2, galore()),
    ("galore_reverse", GALORE + ["galore_proj_type=reverse_std"], 1e-2, galore(proj_type="reverse_std")),
    # Between its own singular vectors a gradient is diagonal, and what AdamW divides beside the diagonal is rounding.
    (
        "galore_full",
        GALORE + ["galore_proj_type=full", "adam_epsilon=1e-4"],
        1e-2,
        galore(proj_type="full", eps=1e-4),
    ),
    ("galore_adafactor", GALORE + ["optim=adafactor"], 1e-2, galore("Adafactor")),
    ("galore_layerwise", GALORE + ["galore_layerwise=true"], 1e-2, galore(layerwise=True)),
    ("apollo", APOLLO, 1e-2, apollo()),
    ("apollo_layerwise", APOLLO + ["apollo_layerwise=true"], 1e-2, apollo(layerwise=True)),
    ("apollo_svd", APOLLO + ["apollo_proj=svd"], 1e-2, apollo("svd")),
    (
        "apollo_tensor_front",
        APOLLO + ["apollo_scale_type=tensor", "apollo_scale_front=true", "apollo_proj_type=left"],
        1e-2,
        apollo(scale_type="tensor", scale_front=True, proj_type="left"),
    ),
    ("badam_layer", BADAM, 1e-2, badam_layer("ascending")),
    ("badam_layer_descending", BADAM + ["badam_switch_mode=descending"], 1e-2, badam_layer("descending")),
    ("badam_ratio", ["use_badam=true", "badam_mode=ratio", "badam_update_ratio=0.25", "weight_decay=0"], 1e-2, badam_ratio),
]
ADAPTER_CASES = [("lora_plus", ["finetuning_type=lora", "loraplus_lr_ratio=16"], 1e-3, lora_plus)]


def load_model(case, adapter):
    model = AutoModelForCausalLM.from_pretrained(case, dtype=torch.float32, attn_implementation="eager").eval()
    if adapter:
        model = PeftModel.from_pretrained(model, os.path.join(case, "adapter"), is_trainable=True).eval()
    return model


def cross_entropy(logits, labels):
    shifted = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(shifted, labels[:, 1:].reshape(-1), ignore_index=-100)


def own_name(name):
    return name.removeprefix("base_model.model.").replace(".default", "")


def train(case, keys, lr, make, adapter):
    batch = load_file(os.path.join(case, "case.safetensors"))
    model = load_model(case, adapter)
    names = [name for name, _ in trained(model)]
    optimizer = make(model, lr)
    start_rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for share in SHAPE:
        for group, rate in zip(optimizer.param_groups, start_rates):
            group["lr"] = rate * share
        loss = cross_entropy(model(input_ids=batch["input_ids"], use_cache=False).logits, batch["labels"])
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        optimizer.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    weights = {}
    for name, p in model.named_parameters():
        if name in names:
            flat = p.detach().flatten()
            weights[own_name(name)] = [flat[i].item() for i in (0, len(flat) // 2, len(flat) - 1)]
    return {"keys": ["weight_decay=0.1", *keys], "learning_rates": [lr * s for s in SHAPE], "losses": losses, "weights": weights}


def main():
    case = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "crates/model/tests/parity/llama")
    out = sys.argv[2] if len(sys.argv) > 2 else os.path.join(ROOT, "crates/train/goldens/optimizers.json")
    transformers.utils.logging.disable_progress_bar()
    cases = [(n, FULL + k, lr, m, False) for n, k, lr, m in CASES] + [(n, k, lr, m, True) for n, k, lr, m in ADAPTER_CASES]
    entries = {}
    for name, keys, lr, make, adapter in cases:
        with contextlib.redirect_stdout(io.StringIO()):
            entries[name] = train(case, keys, lr, make, adapter)
        print(f"{name:24} {' '.join(f'{loss:.5f}' for loss in entries[name]['losses'])}")
    with open(out, "w") as f:
        f.write("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "\n}\n")


if __name__ == "__main__":
    main()
