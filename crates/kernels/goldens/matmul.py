"""Writes matmul.json: a linear layer of torch, forward and backward, in float32 and in bfloat16.

Inputs are multiples of 1/64 below 1 that follow a formula, so they need no storing, are exact in bfloat16, and
sums of their products are exact in float32: every result is determined to the last bit, and is an integer when
multiplied by 4096, which is what the file holds.
Needs torch. Run: python matmul.py
"""

import json
import pathlib

import torch


def grid(rows, cols, factor):
    """Element i of the flattened matrix is ((i·factor + 11) mod 101 − 50) / 64."""
    values = (torch.arange(rows * cols) * factor + 11) % 101 - 50
    return (values / 64).reshape(rows, cols)


def layer(tokens, inner, outer, dtype):
    x = grid(tokens, inner, 37).to(dtype).requires_grad_()
    w = grid(outer, inner, 53).to(dtype).requires_grad_()
    bias = grid(1, outer, 29)[0].to(dtype)
    y = torch.nn.functional.linear(x, w, bias)
    y.backward(grid(tokens, outer, 71).to(dtype))
    results = {"y": y, "dx": x.grad, "dw": w.grad}
    return {name: (value.detach().double() * 4096).long().flatten().tolist() for name, value in results.items()}


cases = []
for tokens, inner, outer in [(17, 18, 19), (3, 70, 5)]:
    case = {"tokens": tokens, "inner": inner, "outer": outer}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        case[name] = layer(tokens, inner, outer, dtype)
    cases.append(case)
text = json.dumps(cases, separators=(",", ":"))
(pathlib.Path(__file__).parent / "matmul.json").write_text(text + "\n")
