"""Writes losses.json: six AdamW steps on all weights of a parity case (see tools/make_parity_case.py) with each loss by
the function that it comes from. usage: make_losses.py CASE (needs torch, transformers, llamafactory 0.9.5)"""
import json, os, sys
import torch
from llamafactory.train.trainer_utils import asft_loss_func, dft_loss_func, eaft_loss_func
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import LabelSmoother

case = sys.argv[1]
batch = load_file(os.path.join(case, "case.safetensors"))
ids, labels = batch["input_ids"], batch["labels"]


def model():
    return AutoModelForCausalLM.from_pretrained(case, dtype=torch.float32, attn_implementation="eager").eval()


with torch.no_grad():
    reference = model()(input_ids=ids).logits
losses = {
    "smoothed 0.1": lambda z: LabelSmoother(0.1)({"logits": z}, labels, shift_labels=True),
    "dft": lambda z: dft_loss_func({"logits": z}, labels),
    "eaft 1.0": lambda z: eaft_loss_func({"logits": z}, labels, alpha=1.0),
    "asft 0.5": lambda z: asft_loss_func({"logits": z}, labels, reference, asft_alpha=0.5),
}
curves = {}
for name, loss_of in losses.items():
    trained, curve = model(), []
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for _ in range(6):
        loss = loss_of(trained(input_ids=ids, use_cache=False).logits)
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    curves[name] = curve
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "losses.json"), "w") as f:
    json.dump(curves, f, indent=1)
    f.write("\n")
