"""Checks what `sft` trains of rows with tool calls against the rows themselves, read by Python and decoded by transformers.

usage: check_tool_rows.py SFT DATASET_DIR DATASET TOKENIZER[:TEMPLATE]…

SFT        the program; `sft data show --json` gives ids and labels
DATASET    an entry of DATASET_DIR/dataset_info.json whose file has `conversations` (sharegpt) or `messages`
TOKENIZER  a folder with a tokenizer; TEMPLATE a name of LLaMA-Factory's, else the model's own template
stdout     one line for each of them: rows, answers, calls, and how many are not as they should be; the first of those in full

For every row: each run of trained tokens is one answer of the row, and each answer is one run. A run ends with a token that ends
turns (behind which a named template may have white space), and is, special tokens apart, the words of the answer: nothing of a question or of a tool's result is in it. Thoughts stand
before the words in <think>, where the template shows them. Of calls, every name and all arguments are in it as JSON, and nothing
else but the template's marks. Exit status 1 if something is not so.

needs: transformers
"""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer


def answers(row):
    """Of each answer: its words, its thought, its calls as (name, arguments)."""
    for turn in row.get("conversations") or row["messages"]:
        role, content = turn.get("from") or turn["role"], turn.get("value", turn.get("content"))
        if role in ("gpt", "function_call", "assistant"):
            if role == "function_call":
                content = [{"type": "tool_call", "value": content}]
            elif isinstance(content, str):
                content = [{"type": "text", "value": content}]
            of = lambda kind: [part["value"] for part in content if part["type"] == kind]
            calls = []
            for call in map(json.loads, of("tool_call")):
                calls += call if isinstance(call, list) else [call]
            text = lambda value: json.loads(value) if isinstance(value, str) else value
            yield "".join(of("text")), "".join(of("reasoning")), [(call["name"], text(call["arguments"])) for call in calls]


def values_in(text):
    """All JSON values that stand in a text, the outermost of each place."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while (at := min((p for p in (text.find(c, at) for c in "{[") if p >= 0), default=-1)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        except json.JSONDecodeError:
            at += 1
    return found


def is_answer(run, end, words, thought, calls):
    if not end:
        return "it does not end with a token that ends turns"
    # Words may spell `</think>` themselves: the thought ends at the one that leaves it whole.
    ends = [0, *(found.end() for found in re.finditer("</think>", run))]
    reasons = [is_so(run[:at].removesuffix("</think>"), run[at:], words, thought, calls) for at in ends]
    return None if None in reasons else reasons[-1]


def is_so(found_thought, rest, words, thought, calls):
    found_thought = found_thought.replace("<think>", "", 1).strip()
    if found_thought and found_thought != thought.strip():
        return "another thought"
    if not calls:
        return None if rest.strip() == words.strip() else "other words"
    objects = [value for found in values_in(rest) for value in (found if isinstance(found, list) else [found])]
    for name, arguments in calls:
        written = [v.get("arguments", v.get("parameters", v)) if isinstance(v, dict) else v for v in objects]
        if arguments not in written or name not in rest:
            return f"the call of {name} is not in it"
    if words.strip() and words.strip() not in rest:
        return "other words"
    # What is left without the calls and the words: marks of the template, which are short.
    marks = re.sub(r"[\[{].*[\]}]", "", rest.replace(words.strip(), "", 1) if words.strip() else rest, flags=re.S)
    for name, _ in calls:
        marks = marks.replace(name, "")
    return None if len(marks.strip()) <= 60 else f"more than calls: {marks!r}"


def check(sft, folder, dataset, tokenizer, template):
    entry = json.loads((folder / "dataset_info.json").read_text())[dataset]
    text = (folder / entry["file_name"]).read_text()
    rows = [json.loads(line) for line in text.splitlines()] if entry["file_name"].endswith("l") else json.loads(text)
    keys = [f"model_name_or_path={tokenizer}", f"dataset_dir={folder}", f"dataset={dataset}", "cutoff_len=1000000"]
    keys += [f"template={template}"] if template else []
    shown = subprocess.run([sft, "data", "show", "--json", *keys], capture_output=True, text=True)
    decoder = AutoTokenizer.from_pretrained(tokenizer)
    ends = set(decoder.all_special_ids) | {i for i, t in decoder.added_tokens_decoder.items() if t.special}
    runs = {}
    for line in map(json.loads, shown.stdout.splitlines()):
        ids, labels = line["input_ids"], line["labels"]
        run = []
        for token, label in zip([*ids, None], [*labels, -100]):
            if label >= 0:
                assert label == token, f"row {line['row']}: label {label} at token {token}"
                run.append(token)
            elif run:
                words = decoder.decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                # LLaMA-Factory's templates train the line's end behind the token that ends the turn.
                last = next((token for token in reversed(run) if decoder.decode([token]).strip()), None)
                runs.setdefault(line["row"], []).append((words, last in ends))
                run = []
    wrong, counts = [], [0, 0]
    for at, row in enumerate(rows):
        expected, found = list(answers(row)), runs.get(at, [])
        counts[0] += len(expected)
        counts[1] += sum(len(calls) for _, _, calls in expected)
        if len(found) != len(expected):
            wrong.append(f"row {at}: {len(found)} trained answers of {len(expected)}")
            continue
        # Answers that later turns show otherwise have examples of their own, after the row's.
        for want in expected:
            reasons = [is_answer(*run, *want) for run in found]
            if None in reasons:
                found.pop(reasons.index(None))
            else:
                wrong.append(f"row {at}: {want!r} is none of {found!r}: {reasons}")
    print(f"{Path(tokenizer).name} {template or 'own template'}: {len(rows)} rows, {counts[0]} answers, {counts[1]} calls, {len(wrong)} wrong")
    if wrong or shown.returncode:
        print("  " + "\n  ".join(wrong[:3]) + shown.stderr[-2000:])
    return not wrong and not shown.returncode


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sft")
    p.add_argument("dataset_dir", type=Path)
    p.add_argument("dataset")
    p.add_argument("tokenizers", nargs="+")
    args = p.parse_args()
    good = [check(args.sft, args.dataset_dir, args.dataset, *name.partition(":")[::2]) for name in args.tokenizers]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
