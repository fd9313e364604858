"""Writes attention.json: attention as transformers computes it eagerly, forward and backward, in float64.

Needs torch and transformers 5.6. Rows are computed one by one; the file holds them concatenated.
Run: python attention.py
"""

import json
import pathlib
import types

import torch
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

CASES = [
    {"name": "plain", "window": None, "softcap": None, "q_len": [3, 5], "k_len": [3, 5]},
    {"name": "window", "window": 3, "softcap": None, "q_len": [6], "k_len": [6]},
    {"name": "softcap", "window": None, "softcap": 1.5, "q_len": [1, 4], "k_len": [1, 4]},
    {"name": "cache", "window": 4, "softcap": None, "q_len": [2, 1], "k_len": [6, 3]},
    {"name": "slopes", "window": None, "softcap": None, "q_len": [4, 2], "k_len": [4, 5], "slopes": [0.5, 0.25, 0.125, 0.0625]},
]
HEADS, KEY_HEADS, WIDTH, SCALE = 4, 2, 3, 0.5


def row(case, q, k, v, dout):
    """One row: [tokens, heads, width] -> out, lse, dq, dk, dv."""
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    seen = causal_mask_function if case["window"] is None else sliding_window_causal_mask_function(case["window"])
    first = k.shape[0] - q.shape[0]
    positions, keys = (torch.arange(first, k.shape[0])[:, None], torch.arange(k.shape[0])[None])
    mask = seen(0, 0, positions, keys).expand(q.shape[0], k.shape[0])
    bias = torch.where(mask, 0.0, float("-inf")).double()[None, None]
    if "slopes" in case:
        bias = bias + torch.tensor(case["slopes"], dtype=torch.float64)[:, None, None] * (keys - positions)
    module = types.SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, training=False, head_dim=WIDTH)
    batch = [x.transpose(0, 1)[None] for x in (q, k, v)]
    out, _ = eager_attention_forward(module, *batch, bias, scaling=SCALE, softcap=case["softcap"])
    out = out[0]
    out.backward(dout)
    scores = torch.einsum("ihd,jhd->ihj", q, k.repeat_interleave(HEADS // KEY_HEADS, 1)) * SCALE
    if case["softcap"] is not None:
        scores = torch.tanh(scores / case["softcap"]) * case["softcap"]
    lse = torch.logsumexp(scores + bias[0].transpose(0, 1), -1)
    return out, lse, q.grad, k.grad, v.grad


def main():
    # The softmax of the eager path is asked for in float32; here everything is float64.
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim, dtype=None: softmax(x, dim=dim)
    torch.manual_seed(0)
    cases = []
    for case in CASES:
        tokens_q, tokens_k = sum(case["q_len"]), sum(case["k_len"])
        random = lambda *shape: torch.randn(*shape, dtype=torch.float64).round(decimals=3)
        q, dout = (random(tokens_q, HEADS, WIDTH) for _ in range(2))
        k, v = (random(tokens_k, KEY_HEADS, WIDTH) for _ in range(2))
        split_q, split_k = (lambda x: x.split(case["q_len"])), (lambda x: x.split(case["k_len"]))
        rows = [row(case, *x) for x in zip(split_q(q), split_k(k), split_k(v), split_q(dout))]
        found = [torch.cat(x) for x in zip(*rows)]
        names = ["q", "k", "v", "dout", "out", "lse", "dq", "dk", "dv"]
        values = {name: [float(f"{x:.13g}") for x in t.flatten().tolist()] for name, t in zip(names, [q, k, v, dout, *found])}
        cases.append({**case, "heads": HEADS, "key_heads": KEY_HEADS, "width": WIDTH, "scale": SCALE, **values})
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
