"""Writes decay.json: steps and decays as transformers' Qwen3-Next and Mamba-2 compute them, in float64.

Needs torch. Run: python decay.py
"""

import json
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(0)
random = lambda *shape: torch.randn(*shape, dtype=torch.float64).round(decimals=3)
a, b, a_log, dt_bias = random(3, 2) * 4, random(3, 2), random(2), random(2)
delta = F.softplus(a + dt_bias, threshold=1e9)
values = {"a": a, "b": b, "a_log": a_log, "dt_bias": dt_bias, "delta": delta, "step": b.sigmoid()}
values["decay"] = -a_log.exp() * delta
listed = {name: [float(f"{v:.13g}") for v in t.flatten().tolist()] for name, t in values.items()}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(listed) + "\n")
