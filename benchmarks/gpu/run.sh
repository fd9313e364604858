#!/bin/bash
# The benches and the parity of README.md in one go, on a machine with a GPU: run.sh SFT TOKENIZER_DIR OUT_DIR [PARITY_CASE …]
#
# SFT            the program
# TOKENIZER_DIR  a folder with Qwen's tokenizer.json and tokenizer_config.json
# OUT_DIR        gets a file for each command; what they say in short is printed
set -u
[ $# -ge 3 ] || { sed -n '2,6s/^# *//p' "$0" >&2; exit 2; }
[ -x "$1" ] || { echo "$1 is no program" >&2; exit 2; }
[ -f "$2/tokenizer.json" ] || { echo "$2 has no tokenizer.json" >&2; exit 2; }
sft=$(realpath "$1") tokenizer=$2 here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$3" && cd "$3" && pwd)
shift 3
job=$(mktemp -d)
trap 'rm -rf "$job"' EXIT
python3 "$here/make_job.py" "$tokenizer" "$job"

# note NAME COMMAND…: its output is in NAME.txt, and in short on the screen.
note() {
    local name=$1 started=$SECONDS
    shift
    "$@" > "$out/$name.txt" 2>&1 || echo "$name failed:"
    echo "$name ($((SECONDS - started)) s): $(grep -E 'tokens/s|cases hold|kernels ready|^error' "$out/$name.txt" | head -3)"
}
bench() {
    local name=$1 recipe=$2 shape=$3
    shift 3
    note "$name" "$sft" bench "$here/$recipe.yaml" dataset_dir="$job" model_name_or_path="$job/$shape" output_dir="$job/out" \
        --random-weights --profile "$@"
}

note doctor "$sft" doctor
bench lora-qwen3-0.6b lora qwen3-0.6b --steps 6
bench lora-qwen3-1.7b lora qwen3-1.7b --steps 6
bench lora-qwen3-8b lora qwen3-8b --steps 6
bench qlora-qwen3-8b lora qwen3-8b quantization_bit=4 --steps 3
bench full-qwen2.5-7b full qwen2.5-7b --steps 4
bench lora-qwen3-30b-a3b lora qwen3-30b-a3b --steps 2
# Short rows, and rows that begin alike, with and without what that spares.
bench short-qwen3-0.6b lora qwen3-0.6b dataset=short per_device_train_batch_size=1 gradient_accumulation_steps=32 --steps 6
for share in true false; do
    bench "system-qwen3-8b-$share" lora qwen3-8b dataset=system share_prefixes=$share gradient_accumulation_steps=8 --steps 3
done
[ $# = 0 ] || note parity "$sft" parity --device cuda "$@"
