"""Rows with one long system prompt, as a shop's or a company's assistant has them: 200 of alpaca_en_demo, each below the same
900 tokens of rules. Attention of a trainer that knows no better reads the rules anew in every row.

usage: long_system.py DATA OUT     DATA holds alpaca_en_demo.json; OUT receives shop.json and dataset_info.json

  sft bench benchmarks/lora_sft.yaml dataset_dir=OUT dataset=shop packing=false neat_packing=false cutoff_len=2048 \\
      per_device_train_batch_size=2 gradient_accumulation_steps=8 [share_prefixes=false]
"""
import json
import pathlib
import sys

RULES = 24


def rule(i):
    return (
        f"Rule {i + 1}: when a customer asks about topic {i + 1}, answer in at most {i % 5 + 2} sentences, name the product by "
        "its full name, and never promise a date of delivery. "
    )


def main(data, out):
    rows = json.loads((pathlib.Path(data) / "alpaca_en_demo.json").read_text(encoding="utf-8"))[:200]
    system = "You are the assistant of a shop that sells garden tools, seeds and books about plants. "
    system += "".join(map(rule, range(RULES)))
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "shop.json").write_text(json.dumps([dict(row, system=system) for row in rows]), encoding="utf-8")
    columns = dict(prompt="instruction", query="input", response="output", system="system")
    (out / "dataset_info.json").write_text(json.dumps({"shop": dict(file_name="shop.json", columns=columns)}))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
