"""Method × peak memory × tokens a second × held-out loss, after the same rows in the same order.

    python3 benchmarks/methods/measure.py --sft target/release/sft --model MODEL_DIR --data DATASET_DIR --dataset NAME \
        [--steps 60] [--cutoff 1024] [--turns 1] [--only lora,dora] [--json out.json]

Each method is a run of `sft train` in a process of its own, one after the other, in the same order every turn; the table has the
medians. Memory is the largest resident set that the system counted for the process; tokens a second are those of all steps, start and
evaluation apart. The learning rate of each method is the one that its recipes name; losses with other rates are not shown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = {
    "template": "empty", "packing": "true", "bf16": "true", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "logging_steps": 1, "save_strategy": "no", "val_size": 64,
    "eval_strategy": "no", "do_train": "true", "do_eval": "true", "seed": 42, "plot_loss": "false",
}
LORA = {"finetuning_type": "lora", "lora_target": "all", "lora_rank": 8, "learning_rate": 2e-4}
FULL = {"finetuning_type": "full", "learning_rate": 2e-5}
METHODS = {
    "full": FULL,
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 2, "learning_rate": 1e-4},
    "lora": LORA,
    "qlora nf4": {**LORA, "quantization_bit": 4},
    "qlora int8": {**LORA, "quantization_bit": 8},
    "dora": {**LORA, "use_dora": "true"},
    "galore": {**FULL, "use_galore": "true", "galore_target": "all", "galore_rank": 128, "galore_scale": 2.0},
    "apollo": {**FULL, "use_apollo": "true", "apollo_target": "all", "apollo_rank": 128, "apollo_scale": 32.0},
    "badam": {**FULL, "use_badam": "true", "badam_switch_interval": 20, "learning_rate": 5e-5},
}


def run(args, name, keys):
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        given = {
            "model_name_or_path": args.model, "dataset_dir": args.data, "dataset": args.dataset, "output_dir": str(out),
            "max_steps": args.steps, "cutoff_len": args.cutoff, **COMMON, **keys,
        }
        command = [args.sft, "train", *[f"{key}={value}" for key, value in given.items()]]
        env = dict(os.environ, SFT_LEDGER="off", XDG_CACHE_HOME=str(Path(place) / "cache"))
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode != 0:
            sys.exit(f"{name}: {done.stderr or done.stdout}")
        results = {}
        for part in ("train", "eval"):
            results.update(json.loads((out / f"{part}_results.json").read_text()))
        return {
            "peak_bytes": results["peak_bytes"],
            "tokens_per_s": results["tokens_per_s"],
            "eval_loss": results["eval_loss"],
            "train_loss": results["train_loss"],
        }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sft", "model", "data", "dataset"):
        p.add_argument(f"--{name}", required=True)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--cutoff", type=int, default=1024)
    p.add_argument("--turns", type=int, default=1)
    p.add_argument("--only", help="methods, separated by commas")
    p.add_argument("--json", help="every run, to this file")
    args = p.parse_args()
    names = args.only.split(",") if args.only else list(METHODS)
    runs = {name: [] for name in names}
    for _ in range(args.turns):
        for name in names:
            runs[name].append(run(args, name, METHODS[name]))
            print(name, runs[name][-1], file=sys.stderr)
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "runs": runs}, indent=1) + "\n")
    print(f"| method | peak memory | tokens/s | held-out loss after {args.steps} steps |\n|---|--:|--:|--:|")
    for name in names:
        middle = {key: statistics.median(run[key] for run in runs[name]) for key in runs[name][0]}
        print(f"| {name} | {middle['peak_bytes'] / 1e9:.3g} GB | {middle['tokens_per_s']:.0f} | {middle['eval_loss']:.4f} |")


if __name__ == "__main__":
    main()
