"""Writes conv1d.json: torch's depthwise convolution of two rows, one by one, with SiLU, and autograd's gradients, in float64.

Needs torch. Run: python conv1d.py
"""

import json
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(0)
random = lambda *shape: torch.randn(*shape, dtype=torch.float64).round(decimals=3)
x, w, b = (random(*shape).requires_grad_() for shape in [(7, 3), (3, 1, 4), (3,)])
dy = random(7, 3)
rows = [F.conv1d(F.pad(row.T[None], (3, 0)), w, b, groups=3)[0].T for row in (x[:5], x[5:])]
y = F.silu(torch.cat(rows))
y.backward(dy)
values = {"x": x, "w": w, "b": b, "y": y, "dy": dy, "dx": x.grad, "dw": w.grad, "db": b.grad}
listed = {name: [float(f"{v:.13g}") for v in t.flatten().tolist()] for name, t in values.items()}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(listed) + "\n")
