"""Times training steps of a transformers + PEFT loop on random tokens (no data pipeline): tokens/s by the median step, peak RSS.

usage: time_peft.py MODEL [--mode lora|full] [--dtype bf16|float32] [--rows 1] [--tokens 1024] [--steps 4] [--checkpointing] [--compile]

The first step is left out of the median (it allocates; with --compile it compiles). Prints one JSON line.

needs: torch, transformers, peft
"""
import argparse
import json
import resource
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="folder, e.g. made by tools/make_bench_model.py")
    p.add_argument("--mode", choices=["lora", "full"], default="lora")
    p.add_argument("--dtype", choices=["bf16", "float32"], default="bf16")
    p.add_argument("--rows", type=int, default=1)
    p.add_argument("--tokens", type=int, default=1024)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--compile", action="store_true")
    args = p.parse_args()
    if args.steps < 2:
        p.error("--steps has to be 2 or more: the first step is not counted")

    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    if args.mode == "lora":
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    if args.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    vocabulary = model.config.vocab_size
    if args.compile:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW([q for q in model.parameters() if q.requires_grad], lr=1e-4)
    times = []
    for _ in range(args.steps):
        ids = torch.randint(0, vocabulary, (args.rows, args.tokens))
        marks = [time.perf_counter()]
        loss = model(input_ids=ids, labels=ids).loss
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        times.append((marks[-1] - marks[0], *(b - a for a, b in zip(marks, marks[1:]))))
    median = sorted(times[1:])[(len(times) - 1) // 2]
    names = ("step_s", "forward_s", "backward_s", "update_s")
    print(json.dumps({
        **vars(args), "tokens_per_s": round(args.rows * args.tokens / median[0], 1),
        **{name: round(value, 3) for name, value in zip(names, median)},
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2), "threads": torch.get_num_threads(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
