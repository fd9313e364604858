"""Compares sft's adapters and exported models with PEFT's and transformers', in float32.

    python check_with_peft.py BINARY WORK_FOLDER MODEL [ADAPTER]

BINARY is the built example `check_with_peft`. Of MODEL (a Hugging Face folder) it prints one line a comparison:
the largest difference of logits and the largest logit.
  attach, merge   ADAPTER (PEFT's), computed by sft and by PEFT
  read ...        adapters made by PEFT with other settings
  written ...     adapters written by sft, computed by sft and by PEFT
  exported ...    the merged model written by sft: logits in transformers, and greedy tokens against PEFT's
"""

import json
import pathlib
import shutil
import subprocess
import sys
import warnings

import numpy as np
import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

warnings.filterwarnings("ignore")
binary, work, model = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
given = sys.argv[4] if len(sys.argv) > 4 else None
shutil.rmtree(work, ignore_errors=True)
work.mkdir(parents=True)
torch.manual_seed(0)


def load(folder=model, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def sft(*arguments):
    return subprocess.run([binary, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


vocab = load().config.vocab_size
ids = torch.randint(3, vocab, (1, 24))


def logits_of(network):
    with torch.no_grad():
        return network(input_ids=ids).logits[0].float().numpy()


def sft_logits(folder, *how):
    out = work / "logits"
    sft("logits", folder, ",".join(map(str, ids[0].tolist())), out, *how)
    return np.fromfile(out, dtype="<f4").reshape(ids.shape[1], -1)


def report(name, ours, theirs, extra=""):
    print(f"{pathlib.Path(model).name} {name}: max |Δlogit| {np.abs(ours - theirs).max():.2e} of {np.abs(theirs).max():.2f}{extra}")


report("base", sft_logits(model), logits_of(load()))
if given:
    theirs = logits_of(PeftModel.from_pretrained(load(), given))
    report("attach", sft_logits(model, "attach", given), theirs)
    report("merge", sft_logits(model, "merge", given), theirs)

# Weights with a matrix for each expert; PEFT has had adapters of them in the form that sft writes since 0.19.
of_experts = [name.split(".") for name, w in load().named_parameters() if w.dim() == 3 and w.shape[1] > 1]
experts = {".".join(parts[-2:]) for parts in of_experts}
layers = sorted({parts[3] for parts in of_experts})  # model.layers.0.mlp.experts...
MADE = {
    "patterns": dict(
        target_modules="all-linear",
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.(up|down)_proj": 7},
        alpha_pattern={r"layers\.0\.self_attn\.[kv]_proj": 3, "o_proj": 0.7},
    ),
    "regex": dict(target_modules=r".*\.layers\.\d+\.(mlp|self_attn)\.(up|q)_proj", use_rslora=True),
    "one layer, without q": dict(
        target_modules=["q_proj", "k_proj", "gate_proj"], layers_to_transform=[1], exclude_modules=["q_proj"]
    ),
    "mlp whole": dict(target_modules="all-linear", modules_to_save=["mlp", "norm"]),
    "embedding whole": dict(target_modules="all-linear", modules_to_save=["embed_tokens"]),
}
if experts:
    MADE = {"experts": dict(target_modules=["q_proj"], target_parameters=sorted(experts)),
            "feed-forward layer whole": dict(target_modules=["q_proj"], modules_to_save=layers)}
for name, settings in MADE.items():
    network = get_peft_model(load(), LoraConfig(r=4, lora_alpha=9, task_type="CAUSAL_LM", init_lora_weights=False, **settings))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    folder = work / f"peft_{name.replace(' ', '_')}"
    network.eval().save_pretrained(folder)
    theirs = logits_of(network)
    report(f"read, {name}, attached", sft_logits(model, "attach", folder), theirs)
    report(f"read, {name}, merged", sft_logits(model, "merge", folder), theirs)

CASES = {
    "all": {},
    "rslora on q and down": {"use_rslora": True, "targets": ["q_proj", "down_proj"]},
    "one layer by its full name": {"targets": ["model.layers.1.mlp.up_proj"]},
    "norm whole": {"modules_to_save": ["norm"]},
    "embedding whole": {"modules_to_save": ["embed_tokens"]},
    "head whole": {"modules_to_save": ["lm_head"]},
    "embedding and head whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
}
if experts and peft.__version__ >= "0.19":
    targets = {"targets": ["q_proj", "o_proj"], "target_parameters": sorted(experts)}
    CASES = {"all": targets, "one of the weights": {**targets, "target_parameters": sorted(experts)[:1]},
             "feed-forward layer whole": {"targets": ["q_proj"], "modules_to_save": layers}}
for name, options in CASES.items():
    folder = work / name.replace(" ", "_")
    sft("adapter", model, folder, json.dumps(options))
    network = PeftModel.from_pretrained(load(), folder)
    theirs = logits_of(network)
    report(f"written, {name}", sft_logits(model, "attach", folder), theirs)

    out = work / (folder.name + "_merged")
    size = 300_000 if name == "all" else 5_000_000_000
    told = sft("export", model, out, "float32", size, folder)
    merged = load(out)
    settings = dict(max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=None)
    prompt = ids[:, :6]
    tokens = lambda network: network.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0].tolist()
    same = tokens(merged) == tokens(network)
    files = len(list(out.glob("*.safetensors")))
    report(f"exported, {name}", logits_of(merged), theirs, f", greedy tokens {'the same' if same else 'DIFFER'}, {files} file(s)")
    print("   sft:", told.strip().splitlines()[-1])

out = work / "bfloat16"
sft("export", model, out, "bfloat16", 5_000_000_000, work / "all")
network = load(out, "auto")
assert network.dtype == torch.bfloat16, network.dtype
print(f"{pathlib.Path(model).name} bfloat16 export loads as {network.dtype}")
if (pathlib.Path(model) / "tokenizer.json").exists():
    text = "Once upon a time there was a little girl named Lily."
    a, b = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(out)
    assert a(text).input_ids == b(text).input_ids
    assert a.chat_template == b.chat_template
    print("tokenizer of the export: the same ids, the same chat template")
