"""Writes linear_attention.json: transformers' chunked gated delta rule and Mamba-2's recurrence, of two rows one by one, with
autograd's gradients, in float64.

Needs torch and transformers 5.6. Run: python linear_attention.py
"""

import json
import pathlib

import torch
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

KEYS, HEADS, D, E, ROWS = 2, 4, 8, 4, ((0, 11), (11, 16))
# The function computes in float32, whatever it is given.
to = torch.Tensor.to
torch.Tensor.to = lambda self, *a, **k: self if a == (torch.float32,) else to(self, *a, **k)
torch.Tensor.float = lambda self: self
torch.set_default_dtype(torch.float64)


def random(*shape):
    return torch.randn(*shape).round(decimals=3)


def inputs():
    q, k, v = random(16, KEYS, D), random(16, KEYS, D), random(16, HEADS, E)
    step, decay, skip = torch.rand(16, HEADS), -torch.rand(16, HEADS), random(HEADS)
    return [x.requires_grad_() for x in (q, k, v, step, decay, skip)]


def by_group(x):
    return x.repeat_interleave(HEADS // KEYS, 1)


def gated_delta_rule(q, k, v, step, decay, skip):
    # Keys of length 1 by a scale: the model's norm is another op here.
    rows = [[by_group(q)[a:b], by_group(k / 3)[a:b], v[a:b], decay[a:b], step[a:b]] for a, b in ROWS]
    outs = [qwen3_next.torch_chunk_gated_delta_rule(*(x[None] for x in row), chunk_size=4)[0][0] for row in rows]
    return torch.cat(outs) + skip[:, None] * v


def state_space(q, k, v, step, decay, skip):
    outs = []
    for a, b in ROWS:
        state = torch.zeros(HEADS, E, D)
        for t in range(a, b):
            new = (step[t, :, None] * v[t])[:, :, None] * by_group(k)[t][:, None, :]
            state = state * decay[t].exp()[:, None, None] + new
            outs.append((state @ by_group(q)[t][:, :, None])[..., 0])
    return torch.stack(outs) + skip[:, None] * v


def case(seed, function, scales):
    torch.manual_seed(seed)
    x, dout = inputs(), random(16, HEADS, E)
    out = function(*x)
    out.backward(dout)
    names = ["q", "k", "v", "step", "decay", "skip"]
    values = dict(zip(names, x)) | {"d" + name: x.grad for name, x in zip(names, x)} | {"out": out, "dout": dout}
    listed = {name: [float(f"{v:.13g}") for v in t.flatten().tolist()] for name, t in values.items()}
    return listed | {"scales": scales}


cases = {
    "state_space": case(0, state_space, [1.0, 1.0]),
    "gated_delta_rule": case(1, gated_delta_rule, [D**-0.5, 1 / 3]),
}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(cases) + "\n")
