"""Writes routing.json and experts.json: routers and experts of transformers, forward and backward, in float64.

Needs torch and transformers 5.6. Routers get the logits as they are: their weight is the unit matrix.
Run: python experts.py
"""

import json
import pathlib
import types

import torch
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralTopKRouter
from transformers.models.phimoe.modeling_phimoe import sparsemixer
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

EXPERTS, TOKENS = 8, 5


def unit(router):
    router.weight.data = torch.eye(EXPERTS)
    return router


def config(**keys):
    return types.SimpleNamespace(hidden_size=EXPERTS, num_experts_per_tok=keys.get("top_k", 2), **keys)


def mixtral(z, _):
    _, weights, index = unit(MixtralTopKRouter(config(num_local_experts=EXPERTS)))(z)
    return weights, index


def qwen2_moe(z, _):
    _, weights, index = unit(Qwen2MoeTopKRouter(config(num_experts=EXPERTS, norm_topk_prob=False)))(z)
    return weights, index


def deepseek_v2(z, _):
    self = types.SimpleNamespace(
        topk_method="group_limited_greedy", num_group=4, topk_group=2, top_k=3, num_experts=EXPERTS, routed_scaling_factor=16.0
    )
    index, weights = DeepseekV2Moe.route_tokens_to_experts(self, z[None])
    return weights, index


def deepseek_v3(z, correction):
    self = types.SimpleNamespace(
        gate=types.SimpleNamespace(e_score_correction_bias=correction),
        n_group=4, topk_group=2, n_routed_experts=EXPERTS, top_k=3, norm_topk_prob=True, routed_scaling_factor=2.5,
    )  # fmt: skip
    index, weights = DeepseekV3MoE.route_tokens_to_experts(self, z)
    return weights, index


def phimoe(z, _):
    return sparsemixer(z, jitter_eps=0.1, training=False)


def llama4(z, _):
    scores, _ = unit(Llama4Router(config(num_local_experts=EXPERTS, top_k=1)))(z)
    index = scores.argmax(-1, keepdim=True)
    return scores.gather(-1, index), index


RULES = [
    (mixtral, dict(scoring="softmax", top_k=2, normalised=True, scale=1.0)),
    (qwen2_moe, dict(scoring="softmax", top_k=2, normalised=False, scale=1.0)),
    (deepseek_v2, dict(scoring="softmax", top_k=3, normalised=False, scale=16.0, groups=4, groups_chosen=2, group_best=1)),
    (deepseek_v3, dict(scoring="sigmoid", top_k=3, normalised=True, scale=2.5, groups=4, groups_chosen=2, group_best=2)),
    (phimoe, dict(scoring="sparsemixer", tolerance=0.2, top_k=2, normalised=False, scale=1.0)),
    (llama4, dict(scoring="sigmoid", top_k=1, normalised=False, scale=1.0)),
]


def random(*shape):
    return torch.randn(*shape).round(decimals=3)


def numbers(tensor):
    return [float(f"{x:.15g}") for x in tensor.flatten().tolist()]


def routing():
    cases = []
    for rule, keys in RULES:
        z, correction = random(TOKENS, EXPERTS).requires_grad_(), random(EXPERTS) * 0.3
        if keys["scoring"] != "sigmoid" or "groups" not in keys:
            correction = torch.zeros(EXPERTS)
        weights, index = rule(z, correction)
        dweights = random(*weights.shape)
        weights.backward(dweights)
        values = dict(logits=z, correction=correction, dweights=dweights, index=index, weights=weights, dlogits=z.grad)
        cases.append({"name": rule.__name__, **keys, **{name: numbers(value) for name, value in values.items()}})
    return cases


def experts():
    """The second product of transformers' experts: the first is the unit matrix twice, and the activation is 1."""
    count, out, inputs, k = 5, 4, 3, 2
    self = types.SimpleNamespace(num_experts=count, act_fn=torch.ones_like)
    gate_up = torch.cat([torch.eye(inputs)] * 2).expand(count, -1, -1)
    weight = random(count, out, inputs).requires_grad_()
    self.gate_up_proj, self.down_proj = gate_up, weight
    x, w = random(TOKENS, inputs).requires_grad_(), random(TOKENS, k).requires_grad_()
    index = torch.stack([torch.randperm(count)[:k] for _ in range(TOKENS)])
    # Its result has the shape of its input, so the sum over a token's choices is taken here.
    zeros_like = torch.zeros_like
    torch.zeros_like = lambda *_, **keys: torch.zeros(TOKENS, out)
    y = MixtralExperts.forward.__wrapped__(self, x, index, w)  # without the choice among implementations
    torch.zeros_like = zeros_like
    dy = random(TOKENS, out)
    y.backward(dy)
    values = dict(x=x, weight=weight, w=w, dy=dy, y=y, dx=x.grad, dweight=weight.grad, dw=w.grad)
    return {"index": index.flatten().tolist(), **{name: numbers(value) for name, value in values.items()}}


def main():
    torch.set_default_dtype(torch.float64)
    # Parts of the routers ask for float32; here everything is float64.
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim, dtype=None: softmax(x, dim=dim)
    tensor_softmax = torch.Tensor.softmax
    torch.Tensor.softmax = lambda x, dim, dtype=None: tensor_softmax(x, dim=dim)
    torch.Tensor.float = lambda x: x
    torch.manual_seed(0)
    here = pathlib.Path(__file__).parent
    for name, values in [("routing", routing()), ("experts", experts())]:
        (here / f"{name}.json").write_text(json.dumps(values, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
