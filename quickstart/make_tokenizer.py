"""Writes the quick start's base model without its weights: tokenizer, chat template and config.json into a folder.

usage: make_tokenizer.py CORPUS.txt OUT_DIR      needs: tokenizers 0.22 (the same bytes every time)

The tokenizer is a byte-level BPE that splits as GPT-2's does: every text can be written, and the words and numbers of the corpus are one
token each, so that finding one again in the text is one step. The corpus trains it.
"""
import json
import os
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 1536
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "model_type": "qwen3",
    "num_attention_heads": 6,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    corpus, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([corpus], trainer)
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    added = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokenizer_config = {
        "add_bos_token": False,
        "added_tokens_decoder": {str(i): {"content": token, **added} for i, token in enumerate(SPECIAL)},
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": CONFIG["max_position_embeddings"],
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation_config = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0}
    for name, content in (("config", CONFIG), ("tokenizer_config", tokenizer_config), ("generation_config", generation_config)):
        with open(os.path.join(out, f"{name}.json"), "w", encoding="utf-8", newline="\n") as f:
            json.dump(content, f, indent=2, ensure_ascii=False)
            f.write("\n")
    print(f"{out}: vocabulary {tokenizer.get_vocab_size()}")


if __name__ == "__main__":
    main()
