"""Times `sft train` and LLaMA-Factory on the same job, in turns, and writes the medians as JSON.

usage: compare.py --sft SFT --llamafactory LLAMAFACTORY_CLI --model FOLDER --data FOLDER [--turns 3] [--out results.json] [key=value ...]

SFT, LLAMAFACTORY_CLI  the two programs; either may be left out to time the other alone (the environment variables SFT and
                       LLAMAFACTORY_CLI serve as well)
FOLDER of --data       holds LLaMA-Factory's dataset_info.json, identity.json and alpaca_en_demo.json
key=value              goes to both programs after lora_sft.yaml, e.g. per_device_train_batch_size=2 max_steps=8

One turn runs each program once, one after the other, and swaps who goes first in the next turn; nothing else should run on the
machine. A program's figures are its own all_results.json: num_input_tokens_seen / train_runtime (which leaves out start-up and
loading), train_loss; and from the operating system: wall time and peak resident memory of the process and its children.

Python standard library only.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sft", default=os.environ.get("SFT"))
    p.add_argument("--llamafactory", default=os.environ.get("LLAMAFACTORY_CLI"))
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--config", default=os.path.join(HERE, "lora_sft.yaml"))
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--out", help="also write the JSON here")
    p.add_argument("overrides", nargs="*", metavar="key=value")
    args = p.parse_args()
    if not args.sft and not args.llamafactory:
        p.error("give --sft, --llamafactory or both")
    return args


def run_once(name, command, folder):
    """One run -> its figures; the program's output goes to a log beside its output folder."""
    log_path = os.path.join(folder, f"{name}.log")
    output_dir = os.path.join(folder, name)
    with open(log_path, "wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen([*command, f"output_dir={output_dir}"], stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        # wait4 gives the peak of the process and of the children it waited for, as /usr/bin/time does
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        tail = open(log_path, errors="replace").read()[-3000:]
        sys.exit(f"{tail}\n{name} ended with status {code}: {' '.join(command)}")
    results = json.load(open(os.path.join(output_dir, "all_results.json")))
    tokens, runtime_s = results["num_input_tokens_seen"], results["train_runtime"]
    return {
        "tokens": tokens,
        "train_runtime_s": runtime_s,
        "tokens_per_s": tokens / runtime_s,
        "train_loss": results["train_loss"],
        "wall_s": wall_s,
        "peak_rss_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def processor():
    for line in open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    args = parse_arguments()
    where = [f"model_name_or_path={os.path.abspath(args.model)}", f"dataset_dir={os.path.abspath(args.data)}"]
    job = ["train", os.path.abspath(args.config), *where, *args.overrides]
    programs = [(n, p) for n, p in (("sft", args.sft), ("llamafactory", args.llamafactory)) if p]
    runs = {name: [] for name, _ in programs}
    for turn in range(args.turns):
        for name, program in programs if turn % 2 == 0 else programs[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                figures = run_once(name, [os.path.abspath(program), *job], folder)
            runs[name].append(figures)
            print(f"turn {turn + 1} {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()), file=sys.stderr, flush=True)
    medians = {n: {k: statistics.median(f[k] for f in figures) for k in figures[0]} for n, figures in runs.items()}
    report = {"overrides": args.overrides, "cpu": processor(), "threads": os.cpu_count(), "turns": args.turns, "median": medians, "runs": runs}
    if len(medians) == 2:
        report["speed_ratio"] = medians["sft"]["tokens_per_s"] / medians["llamafactory"]["tokens_per_s"]
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        with open(args.out, "w") as out:
            out.write(text + "\n")


if __name__ == "__main__":
    main()
