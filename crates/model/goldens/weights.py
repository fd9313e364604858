"""Writes weights.json: loss and gradients of a weighted mean of tokens, Σ w·nll / Σ w, of tests/parity/llama in transformers, float64.

Of each gradient its length and its product with cos(1), cos(2), …; two rows, one by one. Needs torch and transformers 5.6.
Run: python weights.py
"""

import json
import pathlib

import torch
from transformers import AutoModelForCausalLM

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
TARGETS = [1, -100, 1, 5, 9, 2, -100, 5]
WEIGHTS = [0.25, 7.0, 1.0, 2.0, 0.5, 1e-3, 1.0, 3.0]
ROWS = [(0, 5), (5, 8)]

here = pathlib.Path(__file__).parent
model = AutoModelForCausalLM.from_pretrained(here.parent / "tests/parity/llama", attn_implementation="eager").double()
total = 0.0
for first, last in ROWS:
    logits = model(input_ids=torch.tensor([IDS[first:last]])).logits[0]
    targets = torch.tensor(TARGETS[first:last])
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    total = total + (nll * torch.tensor(WEIGHTS[first:last], dtype=torch.float64)).sum()
weight = sum(w for w, target in zip(WEIGHTS, TARGETS) if target >= 0)
loss = total / weight
loss.backward()
gradients = {}
for name, parameter in model.named_parameters():
    g = parameter.grad.flatten()
    probe = torch.cos(torch.arange(1, len(g) + 1, dtype=torch.float64))
    gradients[name] = [float(f"{v:.10g}") for v in (g.norm().item(), (g @ probe).item())]
values = {"ids": IDS, "targets": TARGETS, "weights": WEIGHTS, "weight": weight, "loss": loss.item(), "gradients": gradients}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")
