"""Writes what the GPU benchmarks need: folders with the published shapes (config.json and a tokenizer, no weights) and rows that
fill 2,048 tokens each (`rows`), short ones (`short`), and short ones below one system prompt of 1,000 tokens (`system`).

usage: make_job.py TOKENIZER_DIR OUT_DIR

TOKENIZER_DIR  a folder with Qwen's tokenizer.json and tokenizer_config.json
"""
import json
import os
import random
import shutil
import sys

QWEN3 = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=128, vocab_size=151936, attention_bias=False,
             max_position_embeddings=40960)
QWEN2 = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=152064, max_position_embeddings=32768)
COMMON = dict(hidden_act="silu", initializer_range=0.02, rms_norm_eps=1e-6, rope_theta=1000000.0, bos_token_id=151643,
              eos_token_id=151645, torch_dtype="bfloat16", attention_dropout=0.0, use_sliding_window=False)


def shape(family, hidden, intermediate, layers, heads, kv_heads, tied):
    return dict(COMMON, **family, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied)


SHAPES = {
    "qwen3-0.6b": shape(QWEN3, 1024, 3072, 28, 16, 8, True),
    "qwen3-1.7b": shape(QWEN3, 2048, 6144, 28, 16, 8, True),
    "qwen3-8b": shape(QWEN3, 4096, 12288, 36, 32, 8, False),
    "qwen3-30b-a3b": dict(shape(QWEN3, 2048, 8192, 48, 32, 4, False), architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe",
                          moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
                          decoder_sparse_step=1, mlp_only_layers=[], output_router_logits=False, router_aux_loss_coef=0.001),
    "qwen2.5-7b": shape(QWEN2, 3584, 18944, 28, 28, 4, False),
}
WORDS = ("the of and to a in that is was he for it with as his on be at by had not are but from or have an they which one you "
         "were all her she there would their we him been has when who will no more if out so up said what its about than into").split()


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    tokenizer, out = sys.argv[1:]
    for name, config in SHAPES.items():
        folder = os.path.join(out, name)
        os.makedirs(folder, exist_ok=True)
        json.dump(config, open(os.path.join(folder, "config.json"), "w"), indent=1)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            target = os.path.join(folder, file)
            if not os.path.exists(target):
                os.symlink(os.path.abspath(os.path.join(tokenizer, file)), target)
    draw = random.Random(1)
    rows = [dict(instruction="Go on.", input="", output=" ".join(draw.choices(WORDS, k=2300))) for _ in range(256)]
    short = [dict(instruction=" ".join(draw.choices(WORDS, k=30)), input="", output=" ".join(draw.choices(WORDS, k=draw.randint(40, 200))))
             for _ in range(512)]
    prompt = " ".join(draw.choices(WORDS, k=1000))
    sets = {"rows": rows, "short": short, "system": [dict(row, system=prompt) for row in short]}
    for name, rows in sets.items():
        json.dump(rows, open(os.path.join(out, f"{name}.json"), "w"))
    info = {name: dict(file_name=f"{name}.json") for name in sets}
    info["system"]["columns"] = dict(prompt="instruction", query="input", response="output", system="system")
    json.dump(info, open(os.path.join(out, "dataset_info.json"), "w"))


if __name__ == "__main__":
    main()
