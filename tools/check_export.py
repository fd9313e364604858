"""Loads what `sft` exported (a merged model, or a base model and a PEFT adapter) in transformers and PEFT, and answers greedily.

usage: check_export.py FOLDER PROMPTS.json [--adapter ADAPTER] [--max-new-tokens N]

PROMPTS.json  a JSON list of token-id lists, or of {"prompt_ids": [...]}
stdout        one line a prompt: {"prompt": i, "answer_ids": [...], "text": "..."}; compute is float32, one prompt at a time,
              generation ends at the model's own end token(s)

needs: torch, transformers, peft
"""
import argparse
import json

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("prompts")
    p.add_argument("--adapter", help="a PEFT adapter to put on the model in FOLDER")
    p.add_argument("--max-new-tokens", type=int, default=64)
    args = p.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    if args.adapter:
        model = PeftModel.from_pretrained(model, args.adapter)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(args.adapter or args.folder)
    for i, prompt in enumerate(json.load(open(args.prompts, encoding="utf-8"))):
        ids = torch.tensor([prompt["prompt_ids"] if isinstance(prompt, dict) else prompt])
        # the tokenizer's end token counts as well: an adapter's template may end a turn with another one than the base model's
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=args.max_new_tokens,
                eos_token_id=sorted(e for e in ends if e is not None), repetition_penalty=1.0,
            )  # fmt: skip
        answer = out[0, ids.shape[1] :].tolist()
        text = tokenizer.decode(answer, skip_special_tokens=True)
        print(json.dumps({"prompt": i, "answer_ids": answer, "text": text}, ensure_ascii=False))


if __name__ == "__main__":
    main()
