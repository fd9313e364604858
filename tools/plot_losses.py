"""Several loss curves in one picture: sft's run folders and torch_sft.py's, told apart by what they hold.

usage: plot_losses.py OUT.png LABEL=FOLDER [LABEL=FOLDER ...] [--window 20]

FOLDER holds trainer_log.jsonl (sft, LLaMA-Factory) or losses.jsonl (torch_sft.py). The lines are means over --window steps; the lower
panel shows every curve's difference from the first one's, relative, step by step and not smoothed. Of these differences mean, median
and largest (with its step) are printed.

needs: matplotlib
"""
import argparse
import json
import os
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLES = ["-", "--", ":", "-."]


def read_losses(folder):
    """-> {step: loss}"""
    for name, step in (("losses.jsonl", "step"), ("trainer_log.jsonl", "current_steps")):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            lines = [json.loads(line) for line in open(path, encoding="utf-8")]
            return {line[step]: line["loss"] for line in lines if "loss" in line}
    raise SystemExit(f"{folder} holds neither losses.jsonl nor trainer_log.jsonl")


def smoothed(losses, window):
    steps, values = list(losses), list(losses.values())
    return steps, [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("runs", nargs="+", metavar="LABEL=FOLDER")
    p.add_argument("--window", type=int, default=20)
    args = p.parse_args()
    runs = [(label, read_losses(folder)) for label, folder in (run.split("=", 1) for run in args.runs)]
    figure, (curves, differences) = plt.subplots(2, 1, figsize=(8, 6.5), sharex=True, height_ratios=[2, 1], layout="constrained")
    first_label, first = runs[0]
    for i, (label, losses) in enumerate(runs):
        curves.plot(*smoothed(losses, args.window), STYLES[i % len(STYLES)], color=f"C{i}", linewidth=2.2 - 0.3 * i, label=label)
        shared = [step for step in losses if step in first]
        if i:
            relative = [abs(losses[step] - first[step]) / abs(first[step]) for step in shared]
            largest = max(range(len(shared)), key=relative.__getitem__)
            print(
                f"{label}: {len(shared)} steps, mean {statistics.mean(relative):.2g}, median {statistics.median(relative):.2g}, "
                f"largest {relative[largest]:.2g} at step {shared[largest]}"
            )
            relative = [max(difference, 1e-9) for difference in relative]
            differences.semilogy(shared, relative, ".", markersize=2.5, color=f"C{i}", label=label)
    curves.set(ylabel=f"loss, mean of {args.window} steps")
    curves.legend()
    differences.set(xlabel="step", ylabel=f"|difference from {first_label}|,\nrelative, each step")
    differences.legend()
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
