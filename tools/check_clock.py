"""Moves the system's clock under a run, and compares what it leaves with an undisturbed one.

usage: check_clock.py SFT [LIBFAKETIME]

LIBFAKETIME  libfaketimeMT.so.1 of Debian's package faketime, which gives a process another clock

While the quick start's model is trained for 60 steps, with an evaluation and a checkpoint after every ten, the clock jumps at
every fifth line of the log: ten years forward, to 1971, and back. Halfway the run is killed (SIGKILL), and started again in 1971.
Weights and log have to be those of a run with a steady clock, and no duration negative. Exit status 1 if they are not.
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLOCKS = ["+3650d", "@1971-01-01 00:00:00", "+0", "-3650d"]
sft = sys.argv[1]
library = sys.argv[2] if len(sys.argv) > 2 else "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
keys = [
    f"model_name_or_path={ROOT}/quickstart/base", f"dataset_dir={ROOT}/quickstart/data", "dataset=quickstart_train",
    "eval_dataset=quickstart_heldout", "eval_strategy=steps", "eval_steps=10", "save_steps=10", "max_steps=60",
    "logging_steps=1", "finetuning_type=lora", "learning_rate=1e-3", "save_total_limit=2",
]


def lines(folder):
    log = folder / "trainer_log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    timed = re.compile("elapsed|remaining|throughput|runtime|per_second")
    assert not any("-" in str(v) for r in records for k, v in r.items() if k in ("elapsed_time", "remaining_time")), "negative durations"
    return [{k: v for k, v in record.items() if not timed.search(k)} for record in records]


def run(folder, environment):
    command = [sft, "train", *keys, f"output_dir={folder}"]
    return subprocess.Popen(command, env={**os.environ, "SFT_LEDGER": str(folder) + ".sqlite", **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def digest(text):
    return re.search("digest of the trained weights: (.*)", text).group(1)


with tempfile.TemporaryDirectory() as place:
    place = Path(place)
    steady = run(place / "steady", {}).communicate()[0]
    clock, moved = place / "clock", place / "moved"
    faked = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    clock.write_text("+0\n")
    child, jumps = run(moved, faked), 0
    while child.poll() is None and len(lines(moved)) < 35:
        if len(lines(moved)) >= 5 * (jumps + 1):
            clock.write_text(CLOCKS[jumps % len(CLOCKS)] + "\n")
            jumps += 1
        time.sleep(0.002)
    killed = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.communicate()
    clock.write_text(CLOCKS[1] + "\n")
    again = run(moved, faked).communicate()[0]
    same = digest(steady) == digest(again) and lines(place / "steady") == lines(moved)
    print(f"{jumps} jumps, {'killed' if killed else 'not killed'}, started again in 1971: {'the same weights and log' if same else 'DIFFERENT'}")
    if not same:
        print(again)
    sys.exit(0 if same else 1)
