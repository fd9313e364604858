"""Writes oft.json: rotations of inputs and their gradients by PEFT's own module.
usage: oft.py (needs torch, peft 0.18)"""
import json, os
import torch
from peft.tuners.oft.layer import OFTRotationModule

torch.manual_seed(7)


def entry(n, k, b):
    elements = b * (b - 1) // 2
    module = OFTRotationModule(k, elements, b, k * b).double()
    with torch.no_grad():
        module.weight.copy_((0.4 / b**0.5 * torch.randn(k, elements)).float())
    x, dy = [torch.randn(n, k * b).double().float().double() for _ in range(2)]
    x.requires_grad_()
    y = module(x)
    y.backward(dy)
    values = dict(q=module.weight, x=x, dy=dy, y=y, dx=x.grad, dq=module.weight.grad)
    return dict(sizes=[n, k, b], **{name: value.flatten().tolist() for name, value in values.items()})


values = [entry(3, 2, 4), entry(2, 1, 8), entry(1, 3, 3)]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "oft.json"), "w") as f:
    json.dump(values, f)
    f.write("\n")
