"""Writes vocabulary/losses.json: LLaMA-Factory trains the quick start's model whole on vocabulary/rows.json, with two new
tokens whose rows begin as the mean of their descriptions. usage: make_vocabulary.py (needs torch, llamafactory 0.9.5)"""
import json, os, subprocess, tempfile
import yaml

here = os.path.dirname(os.path.abspath(__file__))
folder = os.path.join(here, "vocabulary")
keys = {
    "model_name_or_path": os.path.join(here, "../../../quickstart/base"),
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",
    "template": "default",
    "dataset": "rows",
    "dataset_dir": folder,
    "cutoff_len": 128,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "max_steps": 6,
    "logging_steps": 1,
    "report_to": "none",
    "new_special_tokens_config": os.path.join(folder, "tokens.yaml"),
    "init_special_tokens": "desc_init",
}
with tempfile.TemporaryDirectory() as out:
    with open(os.path.join(out, "run.yaml"), "w") as f:
        yaml.safe_dump({**keys, "output_dir": os.path.join(out, "run")}, f)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    subprocess.run(["llamafactory-cli", "train", os.path.join(out, "run.yaml")], check=True, env=environment)
    with open(os.path.join(out, "run/trainer_log.jsonl")) as log:
        losses = [record["loss"] for record in map(json.loads, log) if "loss" in record]
with open(os.path.join(folder, "losses.json"), "w") as f:
    json.dump(losses, f, indent=1)
    f.write("\n")
