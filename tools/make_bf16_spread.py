"""Adds to parity cases (see make_parity_case.py) how far transformers' own bfloat16 is off its float32: the limits of
`sft parity --dtype bfloat16 CASE`.

usage: make_bf16_spread.py CASE... [--draws 16] [--attention eager]

The model is run in bfloat16 with weights rounded to nearest, and then with weights that are rounded up or down by chance
(a random part of half a unit is added first): rounding that happens to cancel, or a token that happens to stay with its
expert, says nothing. What is trained has float32 masters that are rounded before each step, and PEFT's adapters are float32,
as in mixed precision everywhere. CASE/bfloat16.json holds the largest difference of all runs, each as `sft parity` takes it:
  logits    relative to the largest logit
  loss      relative
  gradient  of one parameter, in the L2 norm, relative to its norm or to a hundredth of the norm of all, if that is larger
  full      of the losses of six AdamW steps on all weights, relative
  lora      the same on the adapter, if the case has one

needs: torch, transformers, peft, safetensors
"""
import argparse
import json
import os
import sys

import torch
import transformers
from make_parity_case import cross_entropy
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

LEAST_GRADIENT = 1e-2
HALF_A_UNIT = 2.0**-9
STEPS = 6


class Run:
    """What one dtype makes of a case."""

    def __init__(self, case, batch, weights, dtype, attention):
        self.case, self.batch, self.masters, self.dtype, self.attention = case, batch, weights, dtype, attention
        model = self.model()
        self.logits, self.loss = self.backward(model)
        self.gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
        self.full = self.train(model)
        self.lora = None
        if os.path.exists(os.path.join(case, "adapter", "lora_losses.json")):
            wrapped = PeftModel.from_pretrained(self.model(), os.path.join(case, "adapter"), is_trainable=True)
            self.lora = self.train(wrapped.eval())

    def model(self):
        model = AutoModelForCausalLM.from_pretrained(self.case, dtype=self.dtype, attn_implementation=self.attention)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.masters[name])
        # The fused products of experts want rows of whole 16 bytes, which small models have not.
        model.set_experts_implementation("eager")
        return model.eval()

    def backward(self, model):
        ids, labels = self.batch["input_ids"], self.batch["labels"]
        logits = model(input_ids=ids, use_cache=False).logits.float()
        loss = cross_entropy(logits, labels)
        loss.backward()
        return logits.detach(), loss.item()

    def train(self, model):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        masters = [self.masters.get(name, p).detach().float().clone().requires_grad_() for name, p in trained]
        optimizer = torch.optim.AdamW(masters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        losses = []
        for _ in range(STEPS):
            model.zero_grad()
            with torch.no_grad():
                for (_, parameter), master in zip(trained, masters):
                    parameter.copy_(master)
            losses.append(self.backward(model)[1])
            for (_, parameter), master in zip(trained, masters):
                master.grad = None if parameter.grad is None else parameter.grad.float()
            optimizer.step()
        return losses


def of_curves(found, expected):
    return max(abs(a / b - 1) for a, b in zip(found, expected))


def differences(found, expected):
    norm = sum(g.square().sum() for g in expected.gradients.values()).sqrt().item()

    def of_gradient(name, gradient):
        difference = (found.gradients.get(name, 0.0) - gradient).norm().item()
        return difference / max(gradient.norm().item(), LEAST_GRADIENT * norm)

    return dict(
        logits=((found.logits - expected.logits).abs().max() / expected.logits.abs().max()).item(),
        loss=abs(found.loss / expected.loss - 1),
        gradient=max(of_gradient(*item) for item in expected.gradients.items()),
        full=of_curves(found.full, expected.full),
        **(dict(lora=of_curves(found.lora, expected.lora)) if expected.lora else {}),
    )


def measure(case, draws, attention):
    batch = load_file(os.path.join(case, "case.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(case, dtype=torch.float32, attn_implementation=attention)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = Run(case, batch, weights, torch.float32, attention)
    off = abs(expected.loss / batch["loss"].item() - 1)
    if off > 1e-5:
        sys.exit(f"{case}: its loss is {off:.1e} off transformers' float32 (--attention, or another version, may be why)")
    largest = {}
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)

        def rounded(weight):
            return weight * (1 + (2 * torch.rand(weight.shape, generator=generator) - 1) * HALF_A_UNIT) if draw else weight

        found = Run(case, batch, {name: rounded(w) for name, w in weights.items()}, torch.bfloat16, attention)
        for name, value in differences(found, expected).items():
            largest[name] = max(largest.get(name, 0.0), value)
    return largest


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cases", nargs="+")
    p.add_argument("--draws", type=int, default=16)
    p.add_argument("--attention", default="eager", help="as the case was made with")
    args = p.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for case in args.cases:
        torch.manual_seed(0)
        largest = {name: float(f"{value:.2e}") for name, value in measure(case, args.draws, args.attention).items()}
        with open(os.path.join(case, "bfloat16.json"), "w") as out:
            json.dump(largest, out)
            out.write("\n")
        print(os.path.basename(case.rstrip("/")), largest, flush=True)


if __name__ == "__main__":
    main()
