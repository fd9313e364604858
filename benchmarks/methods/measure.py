"""Method × peak memory × tokens a second × held-out loss, after the same rows in the same order, beside LLaMA-Factory's.

    python3 benchmarks/methods/measure.py --sft target/release/sft --model MODEL_DIR --data DATASET_DIR --dataset NAME \
        [--llamafactory llamafactory-cli] [--steps 60] [--cutoff 1024] [--held-out 64] [--turns 1] [--only lora,dora] \
        [--json out.json] [key=value ...]

Each method is a run in a process of its own, one after the other; both programs get the same keys, LLaMA-Factory also those of its
best settings on a CPU, and what it refuses or has no package for is said. The table has the medians. Memory is the largest resident
set that the system counted for the process and its children; tokens a second are those of all steps, start and
evaluation apart (`num_input_tokens_seen / train_runtime` of each program's results). Held-out rows are evaluated by `sft`, what
LLaMA-Factory has written too: its own figure is a mean of batches. The learning rate of each method is the one that its recipes name; losses with other rates are not shown.
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
    "eval_strategy": "no", "do_train": "true", "do_eval": "true", "seed": 42, "plot_loss": "false", "optim": "adamw_torch",
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


RIVAL = {
    "stage": "sft", "use_cpu": "true", "neat_packing": "true", "flash_attn": "sdpa", "disable_gradient_checkpointing": "true",
    "report_to": "none", "overwrite_cache": "true", "include_num_input_tokens_seen": "true", "do_eval": "false", "val_size": 0,
}


def start(program, given, place):
    """Runs a program with these keys; its peak memory, or why it ended."""
    # Quoted, since `no` is false in YAML.
    quoted = {key: '"no"' if value == "no" else value for key, value in given.items()}
    recipe, log = place / "run.yaml", place / "log"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in quoted.items()))
    env = dict(
        os.environ, SFT_LEDGER="off", XDG_CACHE_HOME=str(place / "cache"), HF_HUB_OFFLINE="1", DISABLE_VERSION_CHECK="1",
        CUDA_VISIBLE_DEVICES="",
    )
    with open(log, "w") as said:
        process = subprocess.Popen([program, "train", str(recipe)], stdout=said, stderr=subprocess.STDOUT, env=env, cwd=place)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        return usage.ru_maxrss * 1024, None
    lines = [line for line in log.read_text(errors="replace").splitlines() if "rror" in line]
    return 0, lines[-1][-200:] if lines else f"status {status}"


def run(args, program, keys):
    """Figures of one run, or why there are none."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        out, base = place / "out", str(Path(args.model).resolve())
        given = {
            "model_name_or_path": base, "dataset_dir": str(Path(args.data).resolve()), "dataset": args.dataset,
            "output_dir": str(out), "max_steps": args.steps, "cutoff_len": args.cutoff, **COMMON, "val_size": args.held_out,
            **keys, **dict(pair.split("=", 1) for pair in args.overrides),
        }
        is_rival = program == args.llamafactory
        peak, failed = start(program, {**given, **(RIVAL if is_rival else {}), "val_size": args.held_out}, place)
        if failed:
            return {"failed": failed}
        results = json.loads((out / ("train_results.json" if is_rival else "all_results.json")).read_text())
        figures = {
            "peak_bytes": peak,
            "tokens_per_s": results["num_input_tokens_seen"] / results["train_runtime"],
            "train_loss": results["train_loss"],
        }
        if is_rival:
            # Its own mean is one of batches: what it has written is evaluated as the other's.
            is_adapter = (out / "adapter_config.json").exists()
            where = {"adapter_name_or_path": str(out)} if is_adapter else {"model_name_or_path": str(out)}
            quantized = {key: value for key, value in keys.items() if key == "quantization_bit"}
            kept = {key: value for key, value in given.items() if key not in keys}
            kind = {"finetuning_type": "lora" if is_adapter else "full"}
            judged = {**kept, **where, **quantized, **kind, "do_train": "false", "output_dir": str(place / "judged")}
            _, failed = start(args.sft, judged, place)
            results = {"eval_loss": float("nan")} if failed else json.loads((place / "judged/eval_results.json").read_text())
        return {**figures, "eval_loss": results["eval_loss"]}


def cell(runs):
    """Memory, speed and loss of several runs, or why there are none."""
    good = [run for run in runs if "failed" not in run]
    if not good:
        return [runs[0]["failed"] if runs else "", "", ""]
    middle = {key: statistics.median(run[key] for run in good) for key in good[0]}
    return [f"{middle['peak_bytes'] / 1e9:.3g} GB", f"{middle['tokens_per_s']:.0f}", f"{middle['eval_loss']:.4f}"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sft", "model", "data", "dataset"):
        p.add_argument(f"--{name}", required=True)
    p.add_argument("--llamafactory")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--cutoff", type=int, default=1024)
    p.add_argument("--held-out", type=int, default=64, help="rows")
    p.add_argument("--turns", type=int, default=1)
    p.add_argument("--only", help="methods, separated by commas")
    p.add_argument("--json", help="every run, to this file")
    p.add_argument("overrides", nargs="*", metavar="key=value")
    args = p.parse_args()
    names = args.only.split(",") if args.only else list(METHODS)
    programs = [program for program in (args.sft, args.llamafactory) if program]
    runs = {name: {program: [] for program in programs} for name in names}
    for turn in range(args.turns):
        for name in names:
            for program in programs if turn % 2 == 0 else reversed(programs):
                found = run(args, program, METHODS[name])
                runs[name][program].append(found)
                print(name, Path(program).name, found, file=sys.stderr, flush=True)
                if args.json:
                    told = {name: {Path(program).name: of for program, of in both.items()} for name, both in runs.items()}
                    Path(args.json).write_text(json.dumps({"steps": args.steps, "cutoff": args.cutoff, "runs": told}, indent=1) + "\n")
    titles = ["peak memory", "tokens/s", f"held-out loss after {args.steps} steps"]
    rival = [f"LLaMA-Factory: {title}" for title in titles] if args.llamafactory else []
    print("| " + " | ".join(["method", *titles, *rival]) + " |\n|---" + "|--:" * (3 + len(rival)) + "|")
    for name in names:
        print("| " + " | ".join([name, *(part for program in programs for part in cell(runs[name][program]))]) + " |")


if __name__ == "__main__":
    main()
