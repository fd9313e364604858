"""Adds training curves of PEFT's other adapters to a parity case (see make_parity_case.py), for `sft parity CASE`.

usage: make_adapter_curves.py CASE KIND...     KIND: dora, pissa, pissa_niter_16, oft, experts

CASE/KIND holds what PEFT saves of the adapter before the first step (`adapter_config.json`, `adapter_model.safetensors`;
B and magnitudes are random so that all weights have gradients; PiSSA's are those that it begins with) and
`lora_losses.json`: the loss at each of six AdamW steps, as make_parity_case.py trains. Of `oft` also the adapter's weights
after them (`trained.safetensors`) and, of a model that is not quantised, the linear layers that it was merged into before
the first (`merged.safetensors`). `experts` is LoRA on all linear layers and on the tensors of all experts
(`target_parameters`), with all of that too, merged those of the first layer; what PEFT stores of these changed in 0.19.

needs: torch, transformers, peft, safetensors
"""
import json
import os
import shutil
import sys

import torch
import transformers
from make_parity_case import keep_only, train
from peft import LoraConfig, OFTConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

RANK = 2


def weights_of_experts(model):
    """Ends of the names of tensors with a matrix for each expert (convolutions have one input a channel)."""
    names = [name for name, weight in model.named_parameters() if weight.dim() == 3 and weight.shape[1] > 1]
    return sorted({".".join(name.split(".")[-2:]) for name in names})


def config_of(kind, model):
    common = dict(target_modules="all-linear", task_type="CAUSAL_LM")
    lora = dict(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, **common)
    if kind == "oft":
        # As LLaMA-Factory asks for it, in smaller blocks. They divide no input of 20: PEFT takes blocks of 10 there.
        return OFTConfig(r=0, oft_block_size=8, module_dropout=0.0, **common)
    if kind == "dora":
        return LoraConfig(use_dora=True, **lora)
    if kind == "experts":
        # Some routers are linear layers of more than one result, which PEFT wraps and cannot run.
        return LoraConfig(target_parameters=weights_of_experts(model), exclude_modules=r".*\.router", **lora)
    return LoraConfig(init_lora_weights=kind, **lora)


def randomize(model, kind, generator):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and kind in ("dora", "experts"):
                parameter.normal_(0, 0.05, generator=generator)
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
            if "oft_R" in name:
                parameter.normal_(0, 0.1, generator=generator)


def write_curve(case, kind):
    torch.manual_seed(1234)
    generator = torch.Generator().manual_seed(4321)
    model = AutoModelForCausalLM.from_pretrained(case, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(model, config_of(kind, model)).eval()
    randomize(model, kind, generator)
    folder = os.path.join(case, kind)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    keep_only(folder, ("adapter_config.json", "adapter_model.safetensors"))
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    config["base_model_name_or_path"] = None  # a folder of the machine it was made on
    for key in ("target_modules", "target_parameters"):
        if config.get(key):
            config[key].sort()  # a set in PEFT: without this the file differs from run to run
    json.dump(config, open(path, "w"), indent=2)
    batch = load_file(os.path.join(case, "case.safetensors"))
    if kind in ("oft", "experts") and not getattr(model, "quantization_method", None):
        base = AutoModelForCausalLM.from_pretrained(case, dtype=torch.float32)
        merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
        if kind == "oft":
            named = {k: v for k, v in merged.state_dict().items() if k.endswith("_proj.weight")}
        else:
            ends = tuple(weights_of_experts(merged))
            named = dict([(k, v) for k, v in merged.state_dict().items() if k.endswith(ends)][: len(ends)])
        save_file({k: v.contiguous() for k, v in named.items()}, os.path.join(folder, "merged.safetensors"))
    losses = train(model, batch["input_ids"], batch["labels"], 6)
    # Before 0.19 these were in other forms than `sft` writes.
    if kind == "oft" or kind == "experts" and config["peft_version"] >= "0.19":
        trained = {k: v.contiguous() for k, v in get_peft_model_state_dict(model).items()}
        save_file(trained, os.path.join(folder, "trained.safetensors"))
    json.dump(losses, open(os.path.join(folder, "lora_losses.json"), "w"))
    print(f"{folder}: {losses[0]:.5f} to {losses[-1]:.5f}")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for kind in sys.argv[2:]:
        write_curve(sys.argv[1], kind)


if __name__ == "__main__":
    main()
