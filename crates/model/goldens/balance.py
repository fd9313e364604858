"""Writes balance.json: the gradient of transformers' load_balancing_loss_func by the logits of two layers, in float64.

Needs torch and transformers 5.6. Run: python balance.py
"""

import json
import pathlib

import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

LAYERS, TOKENS, EXPERTS, TOP_K, COEFFICIENT = 2, 5, 6, 2, 0.25


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    torch.Tensor.float = lambda x: x.double()
    logits = torch.randn(LAYERS, TOKENS, EXPERTS).round(decimals=3).requires_grad_()
    loss = COEFFICIENT * load_balancing_loss_func(tuple(logits), EXPERTS, TOP_K)
    loss.backward()
    numbers = lambda tensor: [float(f"{x:.15g}") for x in tensor.flatten().tolist()]
    values = dict(coefficient=COEFFICIENT, loss=loss.item(), logits=numbers(logits), dlogits=numbers(logits.grad))
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(values, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
