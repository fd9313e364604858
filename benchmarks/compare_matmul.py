"""Times the products of training in sft and in PyTorch, in turns, at the same shapes; prints both and the geometric mean of the ratios.

usage: compare_matmul.py --bench BINARY [--isa avx512bf16] [--dtype bfloat16|float32] [--turns 3] [--out results.json] [WORD]

BINARY  the kernels' benchmark: cargo bench --no-run -p sft-kernels --bench matmul  prints where it is
WORD    only shapes whose name contains it
For float32 with AVX2 alone set ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 and --isa avx2.

Every product is written into a tensor that exists already. Shapes whose smallest dimension is under 64 (LoRA's thin products, decoding)
are listed, and left out of the mean, as are those of full tuning, whose float32 weights PyTorch would round before.

needs: torch
"""
import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time

import torch

LINE = re.compile(r"^(.{22})\s*(\d+)×(\d+)×(\d+)\s+(bfloat16|float32)\s+([\d.]+)\s+([\d.]+)")


def sft_seconds(args):
    """{(name, m, n, k): median seconds}"""
    command = [args.bench, args.isa, args.dtype] + ([args.word] if args.word else [])
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match and match[5] == args.dtype:
            found[match[1].strip(), int(match[2]), int(match[3]), int(match[4])] = float(match[7]) / 1e3
    return found


def torch_seconds(name, m, n, k, dtype):
    """The product as a linear layer's autograd would run it; median seconds."""
    weight_gradient = name.endswith(" dw") or name.startswith(("lora dA", "lora dB"))
    input_gradient = name.endswith(" dx") or name.startswith(("lora dxa", "lora dx"))
    a = torch.randn((k, m) if weight_gradient else (m, k)).to(dtype)
    b = torch.randn((k, n) if weight_gradient or input_gradient else (n, k)).to(dtype)
    c = torch.empty(m, n, dtype=dtype)
    left, right = (a.t() if weight_gradient else a), (b if weight_gradient or input_gradient else b.t())
    seconds, begin = [], time.perf_counter()
    while len(seconds) < 5 or (time.perf_counter() - begin < 0.7 and len(seconds) < 200):
        start = time.perf_counter()
        torch.mm(left, right, out=c)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bench", required=True)
    p.add_argument("--isa", default="avx512bf16")
    p.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--out")
    p.add_argument("word", nargs="?", default="")
    args = p.parse_args()
    dtype = getattr(torch, args.dtype)
    ours, theirs = {}, {}
    for _ in range(args.turns):
        for shape, seconds in sft_seconds(args).items():
            ours.setdefault(shape, []).append(seconds)
        for shape in ours:
            theirs.setdefault(shape, []).append(torch_seconds(*shape, dtype))
    rows, ratios = [], []
    print(f"{args.isa}, {args.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, medians of {args.turns} turns")
    print(f"{'product':<24}{'M×N×K':>20}{'sft':>9}{'torch':>9}  GFLOP/s {'ratio':>7}")
    for (name, m, n, k), seconds in ours.items():
        mine, other = statistics.median(seconds), statistics.median(theirs[name, m, n, k])
        rate = lambda s: 2 * m * n * k / s / 1e9
        rows.append({"name": name, "m": m, "n": n, "k": k, "sft_gflops": rate(mine), "torch_gflops": rate(other), "ratio": other / mine})
        print(f"{name:<24}{f'{m}×{n}×{k}':>20}{rate(mine):>9.0f}{rate(other):>9.0f}{other / mine:>16.2f}")
        if min(m, n, k) >= 64 and "full" not in name:
            ratios.append(other / mine)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else float("nan")
    print(f"geometric mean of {len(ratios)} shapes: {mean:.2f}")
    if args.out:
        json.dump({"isa": args.isa, "dtype": args.dtype, "torch": torch.__version__, "mean_ratio": mean, "shapes": rows}, open(args.out, "w"), indent=1)


if __name__ == "__main__":
    sys.exit(main())
