"""Writes objective.json: losses and their gradients by the functions that they come from.
usage: objective.py (needs torch, transformers, llamafactory 0.9.5)"""
import json, os
import torch
from llamafactory.train.trainer_utils import asft_loss_func, dft_loss_func, eaft_loss_func
from transformers.trainer_pt_utils import LabelSmoother

torch.manual_seed(3)
# A row of four positions, of which the first three predict a token; 30 logits, more than EAFT looks at.
V = 30
logits, reference = torch.randn(1, 4, V) * 2, torch.randn(1, 4, V)
labels = torch.tensor([[-100, 7, 0, 29]])


def entry(name, strength, loss):
    z = logits.clone().requires_grad_()
    value = loss(z)
    value.backward()
    return dict(name=name, strength=strength, loss=value.item(), gradient=z.grad[0, :3].flatten().tolist())


losses = [entry("smoothed", e, lambda z, e=e: LabelSmoother(e)({"logits": z}, labels, shift_labels=True)) for e in (0.1, 0.4)]
losses.append(entry("dft", 0.0, lambda z: dft_loss_func({"logits": z}, labels)))
losses += [entry("eaft", a, lambda z, a=a: eaft_loss_func({"logits": z}, labels, alpha=a)) for a in (1.0, 0.5)]
losses += [entry("asft", a, lambda z, a=a: asft_loss_func({"logits": z}, labels, reference, asft_alpha=a)) for a in (0.1, 1.0)]
values = dict(logits=logits[0, :3].flatten().tolist(), reference=reference[0, :3].flatten().tolist(),
              targets=labels[0, 1:].tolist(), losses=losses)
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "objective.json"), "w") as f:
    json.dump(values, f)
    f.write("\n")
