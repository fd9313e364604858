"""Predicted against measured memory over a grid of models, methods, types and lengths.

Each job is planned and run for three steps by `sft train` in a process of its own; measured is the largest resident set
that the system counted for that process (`peak_bytes` of train_results.json).

    python3 tools/measure_memory.py --sft target/release/sft [--quick] [--only 33M] > table.md
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "quickstart"

# (hidden, layers, feed-forward, heads, key/value heads, vocabulary)
MODELS = {
    "33M": (384, 12, 1536, 6, 2, 1536),
    "110M": (768, 12, 3072, 12, 4, 1536),
    "190M, large vocabulary": (768, 8, 2048, 12, 4, 100_000),
}


# Longest row, and whether micro-batches are filled up.
LENGTHS = [(512, "true"), (128, "false"), (512, "false"), (2048, "true"), (2048, "false")]


def make_config(folder, shape):
    hidden, layers, feed_forward, heads, kv_heads, vocab = shape
    config = json.loads((QUICKSTART / "base/config.json").read_text())
    config.update(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=feed_forward, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=hidden // heads, vocab_size=vocab, max_position_embeddings=8192,
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((QUICKSTART / "base" / name).read_bytes())


def make_rows(path):
    """Rows of every length from a few tokens to far beyond every cutoff."""
    words = "the cat sat on the mat and looked at the moon over the quiet sea while a boat went by ".split()
    rows = []
    for number in range(24):
        text = " ".join(itertools.islice(itertools.cycle(words), 6 + 90 * number))
        rows.append({"instruction": "Go on.", "output": text})
    path.write_text(json.dumps(rows))


def sft(program, place, keys, *words):
    command = [program, "train", *words, *[f"{key}={value}" for key, value in keys.items()]]
    env = dict(os.environ, SFT_LEDGER="off", XDG_CACHE_HOME=str(place / "cache"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=env)
    return done.returncode, done.stdout + done.stderr


def measure(program, place, keys):
    code, said = sft(program, place, keys, "--dry-run")
    found = re.search(r"in all +([\d.]+) MiB", said)
    if code != 0 or not found:
        sys.exit(said)
    code, said = sft(program, place, keys)
    if code != 0:
        sys.exit(said)
    results = json.loads((place / keys["output_dir"] / "train_results.json").read_text())
    return float(found[1]), results["peak_bytes"] / (1 << 20)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", required=True, help="the program")
    parser.add_argument("--quick", action="store_true", help="the smallest model alone")
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--threads", default="2")
    args = parser.parse_args()
    program = str(Path(args.sft).resolve())
    print("| model | method | type | length | packed | predicted MiB | measured MiB | off by |")
    print("|---|---|---|--:|---|--:|--:|--:|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        make_rows(place / "rows.json")
        models = dict(itertools.islice(MODELS.items(), 1 if args.quick else None))
        models = {name: shape for name, shape in models.items() if args.only in name}
        number = 0
        for name, shape in models.items():
            config = place / f"config-{number}"
            make_config(config, shape)
            common = {
                "dataset": place / "rows.json", "per_device_train_batch_size": 2, "max_steps": 3, "threads": args.threads,
                "device": "cpu", "save_strategy": "no", "overwrite_output_dir": "true",
            }
            base = place / f"base-{number}"
            # A folder with weights in bfloat16, as models are published.
            start = {"model_name_or_path": config, "train_from_scratch": "true", "finetuning_type": "full", "max_steps": 1,
                     "cutoff_len": 32, "bf16": "true", "output_dir": base}
            code, said = sft(program, place, common | start)
            if code != 0:
                sys.exit(said)
            for (length, packed), method, bf16 in itertools.product(
                LENGTHS[: 2 if args.quick else None], ("full", "freeze", "lora"), ("false", "true")
            ):
                number += 1
                keys = common | {
                    "model_name_or_path": base, "finetuning_type": method, "bf16": bf16, "cutoff_len": length,
                    "packing": packed, "output_dir": place / f"out-{number}",
                }
                predicted, measured = measure(program, place, keys)
                off = 100 * (predicted - measured) / measured
                worst = max(worst, abs(off))
                kind = "bf16" if bf16 == "true" else "f32"
                yes = "yes" if packed == "true" else "no"
                print(f"| {name} | {method} | {kind} | {length} | {yes} | {predicted:.0f} | {measured:.0f} | {off:+.1f} % |",
                      flush=True)
                subprocess.run(["rm", "-r", str(place / f"out-{number}")], check=True)
            number += 1
    print(f"\nworst: {worst:.1f} %")


if __name__ == "__main__":
    main()
