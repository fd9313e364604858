"""Writes rope.json: rotary embedding as transformers applies it, forward and backward, in float64.

Pairs (i, i + half) as in Llama with GPT-NeoX's partial rotation; pairs (2i, 2i + 1) as in GLM.
Needs torch and transformers 5.6. Run: python rope.py
"""

import json
import pathlib

import torch
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as interleaved
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as half

TOKENS, HEADS = 3, 2


def case(name, apply, width, rotary):
    random = lambda *shape: torch.randn(*shape, dtype=torch.float64).round(decimals=3)
    x, dy = random(TOKENS, HEADS, width).requires_grad_(), random(TOKENS, HEADS, width)
    angles = random(TOKENS, rotary // 2) * 3
    # Both functions take each angle twice, [1, tokens, rotary], and x as [1, heads, tokens, width].
    cos, sin = (torch.cat([f(angles)] * 2, -1)[None] for f in (torch.cos, torch.sin))
    rotated, rest = x[..., :rotary].transpose(0, 1)[None], x[..., rotary:]
    y = torch.cat([apply(rotated, rotated, cos, sin)[0][0].transpose(0, 1), rest], -1)
    y.backward(dy)
    listed = lambda t: [float(f"{v:.13g}") for v in t.flatten().tolist()]
    return {
        "style": name, "tokens": TOKENS, "heads": HEADS, "width": width, "rotary": rotary,
        "x": listed(x), "cos": listed(torch.cos(angles)), "sin": listed(torch.sin(angles)),
        "y": listed(y), "dy": listed(dy), "dx": listed(x.grad),
    }


def main():
    torch.manual_seed(0)
    cases = [case("half", half, 6, 6), case("half", half, 7, 4)]
    cases += [case("interleaved", interleaved, 6, 6), case("interleaved", interleaved, 7, 4)]
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
