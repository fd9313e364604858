"""Compares the ids of `sft` with tiktoken's, of a model whose tokenizer is one of tiktoken's files alone.

usage: check_tiktoken.py SFT MODEL PATTERN TEXT

MODEL    a folder with tokenizer.model (or the file's own name) and tokenizer_config.json
PATTERN  `three` for words with digits in threes (Llama 3, GLM-4), `single` for digits one by one (Qwen)
TEXT     each of its lines is encoded by both
stdout   lines that are equal, lines, tokens; exit status 1 if they are not all equal

needs: tiktoken
"""
import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tiktoken

sft, model, pattern, text = sys.argv[1:]
words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
file = next(path for name in ["tokenizer.model", "tiktoken.model", "*.tiktoken"] for path in Path(model).glob(name))
pairs = (line.split() for line in file.read_text().splitlines() if line.strip())
ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
theirs = tiktoken.Encoding("model", pat_str=words % {"three": "{1,3}", "single": ""}[pattern], mergeable_ranks=ranks, special_tokens={})
lines = [line for line in Path(text).read_text().splitlines() if line.strip()]
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "rows.json").write_text(json.dumps([{"text": line} for line in lines]))
    (Path(folder) / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json", "columns": {"prompt": "text"}}}))
    keys = ["stage=pt", f"model_name_or_path={model}", f"dataset_dir={folder}", "dataset=rows", "cutoff_len=1000000"]
    shown = subprocess.run([sft, "data", "show", "--json", *keys], check=True, capture_output=True, text=True).stdout
ours = [json.loads(line)["input_ids"] for line in shown.splitlines()]
wanted = [theirs.encode(line, disallowed_special=()) for line in lines]
# Behind the text stands the token that ends it.
equal = [our[:-1] == want for our, want in zip(ours, wanted, strict=True)]
for line in [line for line, is_equal in zip(lines, equal) if not is_equal][:3]:
    print(f"  {line!r}")
print(f"{sum(equal)} of {len(lines)} lines equal ({sum(map(len, wanted))} tokens): {model}")
sys.exit(0 if all(equal) else 1)
