"""The order in which sft takes the rows of a run without packing, for torch_sft.py: one line an optimizer step.

usage: make_torch_order.py ROWS.jsonl [--batch 8] [--accumulation 1] [--epochs 4] [--seed 42] > ORDER.jsonl

ROWS.jsonl is what `sft data show CONFIG --json` writes. An epoch's order is torch.randperm with the seed plus the epoch.

needs: torch
"""
import argparse
import json

import torch


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rows")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--accumulation", type=int, default=1)
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--seed", type=int, default=42)
    args = p.parse_args()
    with open(args.rows, encoding="utf-8") as f:
        count = sum(1 for line in f if line.strip())
    for epoch in range(args.epochs):
        generator = torch.Generator()
        generator.manual_seed(args.seed + epoch)
        order = torch.randperm(count, generator=generator).tolist()
        micro_batches = [order[i : i + args.batch] for i in range(0, count, args.batch)]
        for i in range(0, len(micro_batches), args.accumulation):
            print(json.dumps(micro_batches[i : i + args.accumulation]))


if __name__ == "__main__":
    main()
