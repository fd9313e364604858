"""Writes tables, codes and scales of bitsandbytes' 8-bit states. usage: blocks.py (needs torch, bitsandbytes)"""
import json, os
import torch
import bitsandbytes.functional as F

torch.manual_seed(0)


def bits(x):
    return x.view(torch.int32).to(torch.int64).bitwise_and(0xFFFFFFFF).tolist()


out = {}
for name, signed in (("signed", True), ("unsigned", False)):
    table = F.create_dynamic_map(signed=signed)
    values = torch.randn(600) * torch.exp(4 * torch.randn(600))
    values[300:310] = 0.0
    values = values if signed else values.abs()
    # In f64 it takes bitsandbytes' plain path, which compares with every entry of the table.
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(values.double(), table, 256)
    out[name] = dict(table=bits(table), values=bits(values), codes=codes.tolist(), absmax=bits(absmax))
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks.json"), "w") as f:
    json.dump(out, f)
    f.write("\n")
