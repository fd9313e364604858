"""The outside answer for a training run: the same rows in the same order through PyTorch, transformers and PEFT.

usage: torch_sft.py --model FOLDER --data ROWS.jsonl --order ORDER.jsonl --out FOLDER [--method full|lora] [...]

ROWS.jsonl    one line a row, as `sft data show --json` writes it: {"dataset", "row", "input_ids", "labels"}; labels are in
              Hugging Face alignment (not shifted), -100 is ignored
ORDER.jsonl   one line an optimizer step: a list of micro-batches, each a list of line numbers (from 0) of ROWS.jsonl
--eval        held-out rows in the same form: the response loss before and after, sum of nll / supervised tokens
--prompts     a JSON list of {"prompt_ids": [...], "expect": "..."}: greedy answers and the rate that contains (or, with
              --match exact, equals) the expected string, before and after

Writes into --out: losses.jsonl (one line a step), results.json, answers_before.json and answers_after.json, and the model or
adapter as transformers or PEFT saves it.

The loss of a step is normalised once: the sum of the nll over all its micro-batches / the number of its supervised tokens.
Weight decay leaves biases and norms out, as transformers' Trainer does. `bf16` is what the Trainer does with `bf16: true`: float32
trainable weights under autocast (the frozen weights of a LoRA run are bf16).

needs: torch, transformers, peft
"""
import argparse
import json
import math
import os
import time

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORE_INDEX = -100


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--order", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--eval")
    p.add_argument("--prompts")
    p.add_argument("--match", choices=["contains", "exact"], default="contains")
    p.add_argument("--max-new-tokens", type=int, default=200)
    p.add_argument("--method", choices=["full", "lora"], default="full")
    p.add_argument("--lora-rank", type=int, default=8)
    p.add_argument("--lora-alpha", type=float, help="default: twice the rank")
    p.add_argument("--lora-target", default="all-linear", help="all-linear or a comma list of module names")
    p.add_argument("--adapter", help="start from this PEFT adapter, so that two programs begin with the same numbers")
    p.add_argument("--dtype", choices=["float32", "bf16"], default="float32")
    p.add_argument("--learning-rate", type=float, default=5e-5)
    p.add_argument("--scheduler", choices=["linear", "cosine", "constant"], default="linear")
    p.add_argument("--warmup-steps", type=int, default=0)
    p.add_argument("--warmup-ratio", type=float, default=0.0, help="used when --warmup-steps is 0")
    p.add_argument("--adam-beta1", type=float, default=0.9)
    p.add_argument("--adam-beta2", type=float, default=0.999)
    p.add_argument("--adam-epsilon", type=float, default=1e-8)
    p.add_argument("--weight-decay", type=float, default=0.0)
    p.add_argument("--max-grad-norm", type=float, default=1.0, help="0: no clipping")
    p.add_argument("--threads", type=int, default=0, help="0: as many as PyTorch likes")
    p.add_argument("--seed", type=int, default=42)
    return p.parse_args()


def read_jsonl(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def load_model(args):
    lora = args.method == "lora"
    dtype = torch.bfloat16 if lora and args.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    if not lora:
        return model
    if args.adapter:
        return PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    targets = args.lora_target if args.lora_target == "all-linear" else args.lora_target.split(",")
    alpha = args.lora_alpha or 2 * args.lora_rank
    return get_peft_model(model, LoraConfig(r=args.lora_rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM"))


def make_optimizer(model, args):
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = lambda name: not ("norm" in name.lower() or name.endswith("bias"))
    groups = [
        {"params": [p for n, p in trainable if decayed(n)], "weight_decay": args.weight_decay},
        {"params": [p for n, p in trainable if not decayed(n)], "weight_decay": 0.0},
    ]
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=args.learning_rate, betas=betas, eps=args.adam_epsilon)


def learning_rate_factor(step, steps, args):
    """transformers' schedules; `step` counts from 0."""
    warmup = args.warmup_steps or math.ceil(args.warmup_ratio * steps)
    if step < warmup:
        return step / max(1, warmup)
    if args.scheduler == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 1.0 - progress) if args.scheduler == "linear" else max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def supervised_tokens(rows):
    return sum(label != IGNORE_INDEX for row in rows for label in row["labels"][1:])


def sum_nll(model, rows, dtype):
    """Rows padded on the right -> the sum of -log P over their supervised tokens."""
    longest = max(len(row["input_ids"]) for row in rows)
    pad = lambda values, filler: values + [filler] * (longest - len(values))
    input_ids = torch.tensor([pad(row["input_ids"], 0) for row in rows])
    labels = torch.tensor([pad(row["labels"], IGNORE_INDEX) for row in rows])
    mask = torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    logits = logits[:, :-1].float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


@torch.no_grad()
def evaluate(model, tokenizer, held_out, prompts, args):
    model.eval()
    result, answers = {}, []
    if held_out:
        nll = sum(sum_nll(model, held_out[i : i + 8], args.dtype).item() for i in range(0, len(held_out), 8))
        result["response_loss"] = nll / supervised_tokens(held_out)
    for prompt in prompts:
        ids = torch.tensor([prompt["prompt_ids"]])
        with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=args.max_new_tokens)
        answer_ids = out[0, ids.shape[1] :].tolist()
        answer = tokenizer.decode(answer_ids, skip_special_tokens=True)
        hit = prompt["expect"] == answer.strip() if args.match == "exact" else prompt["expect"] in answer
        answers.append({"expect": prompt["expect"], "hit": hit, "answer": answer, "answer_ids": answer_ids})
    if prompts:
        result[args.match + "_rate"] = sum(a["hit"] for a in answers) / len(answers)
    model.train()
    return result, answers


def train(model, rows, order, args):
    optimizer = make_optimizer(model, args)
    trainable = [p for p in model.parameters() if p.requires_grad]
    model.train()
    started = time.perf_counter()
    tokens = 0
    with open(os.path.join(args.out, "losses.jsonl"), "w") as log:
        for step, micro_batches in enumerate(order):
            lr = args.learning_rate * learning_rate_factor(step, len(order), args)
            for group in optimizer.param_groups:
                group["lr"] = lr
            supervised = supervised_tokens(rows[i] for micro in micro_batches for i in micro)
            loss = 0.0
            for micro in micro_batches:
                part = sum_nll(model, [rows[i] for i in micro], args.dtype) / supervised
                part.backward()
                loss += part.item()
            grad_norm = torch.nn.utils.clip_grad_norm_(trainable, args.max_grad_norm or math.inf).item()
            optimizer.step()
            optimizer.zero_grad()
            tokens += sum(len(rows[i]["input_ids"]) for micro in micro_batches for i in micro)
            line = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": grad_norm, "supervised_tokens": supervised}
            log.write(json.dumps(line) + "\n")
            if (step + 1) % 20 == 0:
                print(f"step {step + 1}/{len(order)} loss {loss:.4f} {time.perf_counter() - started:.1f} s", flush=True)
    train_s = time.perf_counter() - started
    return {"train_s": train_s, "tokens": tokens, "tokens_per_s": tokens / train_s, "steps": len(order)}


def main():
    args = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    os.makedirs(args.out, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows, order = read_jsonl(args.data), read_jsonl(args.order)
    held_out = read_jsonl(args.eval) if args.eval else []
    prompts = json.load(open(args.prompts, encoding="utf-8")) if args.prompts else []
    model = load_model(args)

    before, answers = evaluate(model, tokenizer, held_out, prompts, args)
    json.dump(answers, open(os.path.join(args.out, "answers_before.json"), "w"), indent=1, ensure_ascii=False)
    print("before", before, flush=True)
    results = train(model, rows, order, args)
    model.save_pretrained(args.out)
    after, answers = evaluate(model, tokenizer, held_out, prompts, args)
    json.dump(answers, open(os.path.join(args.out, "answers_after.json"), "w"), indent=1, ensure_ascii=False)
    results |= {"before": before, "after": after, "torch_threads": torch.get_num_threads(), "arguments": vars(args)}
    json.dump(results, open(os.path.join(args.out, "results.json"), "w"), indent=1)
    print("after", after, f"{results['train_s']:.1f} s, {results['tokens_per_s']:.0f} tokens/s")


if __name__ == "__main__":
    main()
