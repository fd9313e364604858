#!/usr/bin/env bash
# Preprocessing of the same rows by LLaMA-Factory and by sft, in turns on one machine; the second start; a stream of a large file.
#
# usage: compare.sh MODEL ALPACA LLAMAFACTORY WORK [STREAM_GB]
#
# MODEL         a folder with config.json and a Qwen2.5 tokenizer (both programs read no weights here)
# ALPACA        a file of alpaca rows, a JSON array; it is repeated to 20 and to 50 times its rows
# LLAMAFACTORY  its llamafactory-cli
# WORK          a folder for the rows, LLaMA-Factory's output and the log
# STREAM_GB     size of the file that is streamed, 10 unless given; 0 for none
#
# Needs: cargo, python3, GNU time as /usr/bin/time. Nothing else should run meanwhile.
set -euo pipefail
[[ $# -ge 4 ]] || { sed -n '2,/^# Needs/s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
model=$(realpath "$1") alpaca=$(realpath "$2") llamafactory=$3 work=$(realpath -m "$4") stream_gb=${5:-10}
mkdir -p "$work"

python3 - "$alpaca" "$work" "$stream_gb" <<'PYTHON'
import json, pathlib, sys
rows, work = json.load(open(sys.argv[1], encoding="utf-8")), pathlib.Path(sys.argv[2])
info = {"times20": {"file_name": "times20.json"}, "times50": {"file_name": "times50.json"}, "big": {"file_name": "big.jsonl"}}
(work / "dataset_info.json").write_text(json.dumps(info))
for times in (20, 50):
    (work / f"times{times}.json").write_text(json.dumps(rows * times, ensure_ascii=False), encoding="utf-8")
size = float(sys.argv[3]) * 2**30
if size and not (work / "big.jsonl").exists():
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with open(work / "big.jsonl", "wb") as file:
        for _ in range(int(size // len(lines)) + 1):
            file.write(lines)
PYTHON

cat >"$work/llamafactory.yaml" <<YAML
model_name_or_path: $model
stage: sft
do_train: true
finetuning_type: lora
dataset: times20
dataset_dir: $work
template: qwen
cutoff_len: 2048
preprocessing_num_workers: $(nproc)
overwrite_cache: true
tokenized_path: $work/tokenized
output_dir: $work/output
YAML

(cd "$root" && cargo build --release -p sft-data --example measure_encoding --example measure_stream)
examples=${CARGO_TARGET_DIR:-$root/target}/release/examples

for turn in 1 2 3; do
    echo "turn $turn"
    rm -rf "$work/tokenized" "$work/datasets"
    # Ends by itself when the rows are saved.
    /usr/bin/time -f "  whole process %e s, %M KiB" env DISABLE_VERSION_CHECK=1 HF_DATASETS_CACHE="$work/datasets" HF_HUB_OFFLINE=1 \
        CUDA_VISIBLE_DEVICES= "$llamafactory" train "$work/llamafactory.yaml" >"$work/llamafactory.log" 2>&1 || true
    echo " LLaMA-Factory"
    tr '\r' '\n' <"$work/llamafactory.log" | grep -o 'Running tokenizer.*examples/s\]' | tail -1 | sed 's/^/  /'
    grep 'whole process' "$work/llamafactory.log" || { tail -20 "$work/llamafactory.log" >&2; exit 1; }
    echo " sft"
    /usr/bin/time -f "  whole process %e s, %M KiB" "$examples/measure_encoding" "$model" qwen "$work" times20 2>&1 | sed 's/^ */  /'
done
for turn in 1 2 3; do
    "$examples/measure_encoding" "$model" qwen "$work" times50
done
if [[ $stream_gb != 0 ]]; then
    steps=$(($(wc -l <"$work/big.jsonl") / 1024))
    "$examples/measure_stream" "$model" qwen "$work" big 16384 "$steps"
fi
