"""Writes a randomly initialised bf16 model in Hugging Face layout with a byte-level BPE tokenizer, to time trainers on.

usage: make_bench_model.py SIZE DATA_DIR OUT_DIR

SIZE      135m | 0.5b | 1.5b: the shapes of SmolLM2-135M, Qwen2.5-0.5B and Qwen2.5-1.5B, as a Qwen2 model with tied embeddings
DATA_DIR  a folder with alpaca_en_demo.json, alpaca_zh_demo.json and identity.json; the tokenizer is trained on them

needs: torch, transformers, tokenizers
"""
import json
import os
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SHAPES = {
    "135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152),
    "0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151936),
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936),
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>'+m['role']+'\n'+m['content']+'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)


def texts(folder):
    for name in ("alpaca_en_demo", "alpaca_zh_demo", "identity"):
        for row in json.load(open(os.path.join(folder, f"{name}.json"), encoding="utf-8")):
            yield row["instruction"] + "\n" + row["input"] + "\n" + row["output"]


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    size, data, out = sys.argv[1:]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(texts(data), trainers.BpeTrainer(vocab_size=16000, special_tokens=special, initial_alphabet=alphabet))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(out)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = Qwen2Config(**SHAPES[size], tie_word_embeddings=True, bos_token_id=0, eos_token_id=2, max_position_embeddings=32768)
    Qwen2ForCausalLM(config).save_pretrained(out)


if __name__ == "__main__":
    main()
