"""A large model with random weights, trained with LoRA in bfloat16: the plan of memory beside what the system counts.

    python3 benchmarks/large/lora.py --sft target/release/sft --place DIR [--shape 7b] [--steps 3] [--tokens 512] [--keep]

Writes DIR/model (shards of at most 2 GB, bfloat16, as models are published; the shape of Qwen2.5-7B takes 15.2 GB of disk) unless it is
there, asks `sft train --dry-run` for the plan, trains, and looks at the process ten times a second: pages of files (weights that are
mapped, which the system can drop and read again) apart from pages of its own. Weights that were read into memory a second time
would be pages of its own. DIR/model is removed at the end, but with --keep.

needs: Python, numpy
"""

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
SHAPES = {
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064),
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936),
    "0.2b": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4, vocab_size=49152),
}  # fmt: skip
SHARD = 2 << 30
MIB = 1 << 20


def tensors(shape):
    """Names and shapes, in the order of the layers."""
    c, f, v = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    kv = c // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (v, c)
    for i in range(shape["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, rows in (("q_proj", c), ("k_proj", kv), ("v_proj", kv)):
            yield f"{at}self_attn.{name}.weight", (rows, c)
            yield f"{at}self_attn.{name}.bias", (rows,)
        yield f"{at}self_attn.o_proj.weight", (c, c)
        yield f"{at}mlp.gate_proj.weight", (f, c)
        yield f"{at}mlp.up_proj.weight", (f, c)
        yield f"{at}mlp.down_proj.weight", (c, f)
        yield f"{at}input_layernorm.weight", (c,)
        yield f"{at}post_attention_layernorm.weight", (c,)
    yield "model.norm.weight", (c,)
    yield "lm_head.weight", (v, c)


class Noise:
    """Normal numbers in bfloat16: pieces of one block, each from another place in it."""

    def __init__(self):
        values = (0.02 * np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32)).view(np.uint32)
        self.block = (values >> 16).astype(np.uint16)
        self.at = 0

    def write(self, out, count):
        while count:
            self.at = (self.at + 7_654_321) % (len(self.block) - 1)
            piece = self.block[self.at : self.at + count]
            out.write(piece.data)
            count -= len(piece)


def write_model(folder, shape):
    folder.mkdir(parents=True)
    config = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], torch_dtype="bfloat16", tie_word_embeddings=False, rms_norm_eps=1e-6,
                  max_position_embeddings=32768, rope_theta=1e6, hidden_act="silu", bos_token_id=0, eos_token_id=2, **shape)  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "quickstart/base" / name, folder)
    shards, size = [[]], 0
    for name, dims in tensors(shape):
        length = 2 * int(np.prod(dims))
        if size + length > SHARD and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, dims, length))
        size += length
    noise, places, total = Noise(), {}, 0
    for number, shard in enumerate(shards, 1):
        file, header, at = f"model-{number:05}-of-{len(shards):05}.safetensors", {"__metadata__": {"format": "pt"}}, 0
        for name, dims, length in shard:
            header[name] = dict(dtype="BF16", shape=dims, data_offsets=[at, at + length])
            places[name] = file
            at += length
        total += at
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name, dims, length in shard:
                if "norm" in name:
                    out.write(np.full(length // 2, 0x3F80, np.uint16).data)  # 1.0
                else:
                    noise.write(out, length // 2)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def memory_of(pid):
    """Pages of its own, of files, and both, in bytes."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [re.search(rf"{key}:\s+(\d+) kB", text) for key in ("RssAnon", "RssFile", "VmRSS")]
    return [int(match[1]) * 1024 for match in found] if all(found) else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sft", required=True)
    p.add_argument("--place", required=True, help="a folder on a file system with room for the model")
    p.add_argument("--shape", default="7b", choices=SHAPES)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("--keep", action="store_true", help="leave the model there")
    p.add_argument("keys", nargs="*", help="more keys of the configuration, as key=value")
    args = p.parse_args()
    place = Path(args.place).resolve()
    model = place / "model"
    if not model.exists():
        write_model(model, SHAPES[args.shape])
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    words = "the cat sat on the mat and looked at the moon over the quiet sea ".split()
    row = {"instruction": "Go on.", "output": " ".join(words[i * i % len(words)] for i in range(args.tokens))}
    (place / "rows.json").write_text(json.dumps([row] * 8))
    keys = {
        "model_name_or_path": model, "dataset": place / "rows.json", "template": "empty", "finetuning_type": "lora", "lora_target": "all",
        "lora_rank": 8, "bf16": "true", "per_device_train_batch_size": 1, "cutoff_len": args.tokens, "max_steps": args.steps,
        "logging_steps": 1, "save_strategy": "no", "plot_loss": "false", "device": "cpu", "output_dir": place / "out", "overwrite_output_dir": "true",
    }  # fmt: skip
    command = [args.sft, "train", *[f"{key}={value}" for key, value in keys.items()], *args.keys]
    env = dict(os.environ, SFT_LEDGER="off", XDG_CACHE_HOME=str(place / "cache"))
    plan = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env=env)
    planned = re.search(r"in all +([\d.]+) MiB", plan.stdout + plan.stderr)
    if not planned:
        sys.exit(plan.stdout + plan.stderr)
    print(plan.stdout)
    most = [0, 0, 0]
    started = time.monotonic()
    with open(place / "train.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        while process.poll() is None:
            now = memory_of(process.pid)
            most = [max(pair) for pair in zip(most, now or most)]
            time.sleep(0.1)
    print((place / "train.log").read_text()[-4000:])
    if process.returncode != 0:
        sys.exit(f"{args.sft} train: exit status {process.returncode}")
    results = json.loads((place / "out/train_results.json").read_text())
    own, files, all_ = (part / MIB for part in most)
    print(f"weights in files {weights / MIB:.0f} MiB; planned {float(planned[1]):.0f} MiB")
    print(f"largest resident set {results['peak_bytes'] / MIB:.0f} MiB; seen: own pages {own:.0f}, pages of files {files:.0f}, both {all_:.0f} MiB")
    print(f"{results['tokens_per_s']:.1f} tokens/s, {time.monotonic() - started:.0f} s in all")
    if not args.keep:
        shutil.rmtree(model)


if __name__ == "__main__":
    main()
