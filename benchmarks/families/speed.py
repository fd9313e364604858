"""Speed per FLOP of every family beside Llama, at equal shapes, weights drawn at random.

    python3 benchmarks/families/speed.py --sft target/release/sft [--method lora] [--turns 3] [--only mixtral,lfm2] [--csv out.csv]

Each family has the same hidden size, number of blocks and heads, feed-forward width, vocabulary and tokens a step; mixtures of
experts have 8 experts of half the width, of which a token goes to two. `sft bench` counts the multiplications and additions of what
a family computes and times whole steps. Family and Llama run in turns, one right after the other, so that what else the machine does
falls on both: a turn's figure is family / Llama, and the table has the median of the turns. The list of families is `sft models`.
"""

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HIDDEN, LAYERS, HEADS, KV_HEADS, WIDTH, VOCABULARY = 512, 4, 8, 4, 1536, 8192
HEAD = HIDDEN // HEADS
EXPERTS, CHOSEN, EXPERT_WIDTH = 8, 2, WIDTH // 2

# Every family finds the size under one of its names; what a family does not read it does not need.
COMMON = {
    "vocab_size": VOCABULARY, "tie_word_embeddings": False,
    "hidden_size": HIDDEN, "n_embd": HIDDEN, "d_model": HIDDEN,
    "intermediate_size": WIDTH, "n_inner": WIDTH, "ffn_dim": WIDTH, "ffn_hidden_size": WIDTH,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS,
    "num_attention_heads": HEADS, "n_head": HEADS, "n_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 4096, "n_positions": 4096, "sliding_window": 512,
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "moe_num_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN, "moe_topk": CHOSEN, "moe_k": CHOSEN, "moe_intermediate_size": EXPERT_WIDTH,
    "shared_expert_intermediate_size": EXPERT_WIDTH, "n_shared_experts": 1, "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": HIDDEN // 2, "kv_lora_rank": HIDDEN // 4,
    "qk_nope_head_dim": HEAD, "qk_rope_head_dim": HEAD // 2, "v_head_dim": HEAD,
}  # fmt: skip
ONE_WIDTH = {"intermediate_size": EXPERT_WIDTH}
MIXED = ["linear_attention"] * (LAYERS - 1) + ["full_attention"]
DELTA = {
    "layer_types": MIXED, "head_dim": HEAD, "linear_num_key_heads": HEADS // 2, "linear_num_value_heads": HEADS,
    "linear_key_head_dim": HEAD, "linear_value_head_dim": HEAD,
}  # fmt: skip
OWN = {
    "apertus": {"hidden_act": "xielu"},
    "arcee": {"hidden_act": "relu2"},
    "baichuan": {"architectures": ["BaiChuanForCausalLM"]},
    "chatglm": {"padded_vocab_size": VOCABULARY, "num_layers": LAYERS, "multi_query_attention": True,
                "multi_query_group_num": KV_HEADS, "add_qkv_bias": True, "kv_channels": HEAD},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": KV_HEADS},
    "falcon_h1": {"mamba_n_heads": HEADS, "mamba_d_ssm": HIDDEN, "mamba_d_head": HEAD, "mamba_n_groups": 1, "mamba_d_state": HEAD},
    "gemma4_text": {"head_dim": HEAD, "global_head_dim": HEAD, "hidden_size_per_layer_input": HEAD, "vocab_size_per_layer_input": VOCABULARY},
    "granitemoe": ONE_WIDTH,
    "gpt_oss": ONE_WIDTH,
    "gptj": {"rotary_dim": HEAD // 2},
    "hunyuan_v1_moe": {"intermediate_size": EXPERT_WIDTH},
    "lfm2": {"layer_types": ["conv"] * (LAYERS - 1) + ["full_attention"], "block_auto_adjust_ff_dim": False},
    "llama4_text": {"num_experts_per_tok": 1, "intermediate_size_mlp": WIDTH, "interleave_moe_layer_step": 1},
    "mamba2": {"num_heads": 2 * HEADS, "head_dim": HEAD, "state_size": HEAD, "n_groups": 1},
    "minicpm": {"num_experts": 0, "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4},
    "minicpm3": {"num_experts": 0, "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4},
    "minimax_m2": ONE_WIDTH,
    "mixtral": ONE_WIDTH,
    "olmoe": ONE_WIDTH,
    "phimoe": ONE_WIDTH,
    "qwen3_5_text": DELTA,
    "qwen3_next": DELTA,
}
HEAD_DIM = {"gemma", "gemma2", "gemma3_text", "vaultgemma", "glm", "glm4", "glm4_moe", "ernie4_5", "ministral", "ministral3", "cwm",
            "seed_oss", "hunyuan_v1_dense", "hunyuan_v1_moe", "gpt_oss", "minimax_m2", "llama4_text", "qwen3", "qwen3_moe", "helium",
            "ernie4_5_moe"}  # fmt: skip


def families(program):
    page = subprocess.run([program, "models"], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^\| `(\w+)` \|", page.split("\n## ")[0], re.MULTILINE)
    return [name for name in rows if name != "model_type"]


def make_model(place, family):
    folder = place / family
    folder.mkdir()
    config = {**COMMON, "model_type": family, **({"head_dim": HEAD} if family in HEAD_DIM else {}), **OWN.get(family, {})}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "quickstart/base" / name, folder)
    return folder


def make_rows(path, tokens):
    words = "the cat sat on the mat and looked at the moon over the quiet sea while a boat went by".split()
    text = " ".join(words[(i * i) % len(words)] for i in range(2 * tokens))
    path.write_text(json.dumps([{"instruction": "Go on.", "output": text}] * 8))


def bench(args, place, model):
    keys = {
        "model_name_or_path": model, "dataset": place / "rows.json", "finetuning_type": args.method, "template": "empty",
        "lora_target": "all", "lora_rank": 8, "cutoff_len": args.tokens, "bf16": "true", "per_device_train_batch_size": args.rows,
        "device": "cpu", "output_dir": place / "out",
    }  # fmt: skip
    if args.method != "lora":
        keys = {key: value for key, value in keys.items() if not key.startswith("lora")}
    if args.threads:
        keys["threads"] = args.threads
    command = [args.sft, "bench", "--json", "--random-weights", "--steps", str(args.steps)]
    env = dict(os.environ, SFT_LEDGER="off", XDG_CACHE_HOME=str(place / "cache"))
    done = subprocess.run([*command, *[f"{k}={v}" for k, v in keys.items()]], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        sys.exit(f"{model.name}: {done.stderr or done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sft", required=True)
    p.add_argument("--method", default="lora", choices=("lora", "full"))
    p.add_argument("--turns", type=int, default=3)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--rows", type=int, default=2)
    p.add_argument("--tokens", type=int, default=1024, help="of a row")
    p.add_argument("--threads", type=int)
    p.add_argument("--only", help="families, separated by commas")
    p.add_argument("--csv", help="the table, to this file")
    args = p.parse_args()
    args.sft = str(Path(args.sft).resolve())
    lines = []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        make_rows(place / "rows.json", args.tokens)
        llama = make_model(place, "llama")
        for family in args.only.split(",") if args.only else families(args.sft):
            model = llama if family == "llama" else make_model(place, family)
            pairs = []
            for turn in range(args.turns):
                # Which of the two comes first changes from turn to turn.
                order = (llama, model) if turn % 2 == 0 else (model, llama)
                runs = [bench(args, place, folder) for folder in order]
                pairs.append(runs if turn % 2 == 0 else runs[::-1])
            own = [run for _, run in pairs]
            rate = statistics.median(run["flops_per_s"] for run in own)
            per_token = own[0]["flops_per_step"] / (args.rows * args.tokens)
            ratios = [run["flops_per_s"] / beside["flops_per_s"] for beside, run in pairs]
            slowest = sorted(own[0]["ops_ms"].items(), key=lambda item: -item[1])[:3]
            line = {
                "family": family, "mflop_per_token": round(per_token / 1e6, 1), "tokens_per_s": round(rate / per_token),
                "gflop_per_s": round(rate / 1e9, 1), "to_llama": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3), "most": round(max(ratios), 3),
                "longest_ops": "; ".join(f"{name} {100 * ms / 1e3 / own[0]['step_s']:.0f} %" for name, ms in slowest),
            }  # fmt: skip
            print(*line.values(), sep="  ", file=sys.stderr, flush=True)
            lines.append(line)
    lines.sort(key=lambda line: line["to_llama"])
    out = open(args.csv, "w", newline="") if args.csv else sys.stdout
    writer = csv.DictWriter(out, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


if __name__ == "__main__":
    main()
