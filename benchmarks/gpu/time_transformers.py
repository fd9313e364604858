"""Times transformers + PEFT on the job of lora.yaml: random weights of a config.json, random tokens, rows of 2,048 in 2 × 4.

usage: time_transformers.py MODEL_DIR [--liger] [--checkpointing] [--steps 4]; prints one line of JSON
"""
import argparse
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--liger", action="store_true")
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--warm-up", type=int, default=2)
    a = p.parse_args()
    if a.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2, apply_liger_kernel_to_qwen3
        apply_liger_kernel_to_qwen3()
        apply_liger_kernel_to_qwen2()
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(a.model)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.config.use_cache = False
    lora = LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM",
                      target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    model = get_peft_model(model, lora)
    if a.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    trained = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    batches = [torch.randint(0, config.vocab_size, (2, 2048), device="cuda") for _ in range(8)]
    seconds = []
    for step in range(a.warm_up + a.steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for i in range(4):
            ids = batches[(step * 4 + i) % len(batches)]
            loss = model(input_ids=ids, labels=ids).loss / 4
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= a.warm_up:
            seconds.append(time.perf_counter() - started)
    median = sorted(seconds)[len(seconds) // 2]
    print(json.dumps(dict(program="transformers + PEFT" + (" + Liger" if a.liger else ""), model=a.model.rstrip("/").split("/")[-1],
                          checkpointing=a.checkpointing, torch=torch.__version__, loss=round(float(loss) * 4, 3),
                          tokens_per_s=round(8 * 2048 / median), step_s=round(median, 4),
                          peak_bytes=torch.cuda.max_memory_allocated(), reserved_bytes=torch.cuda.max_memory_reserved())), flush=True)


if __name__ == "__main__":
    main()
