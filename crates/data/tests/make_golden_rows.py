"""Writes golden_rows.json and golden_templates.json: what LLaMA-Factory 0.9.5 itself trains for made-up conversations,
the first with many options, the second for every other template.

usage: python make_golden_rows.py [FOLDER]    (needs `pip install llamafactory==0.9.5`)

The tokenizer has one token a byte (its id is the byte) and a few special ones, the same that
byte_tokenizer/mod.rs makes, so a row is readable: its text in pieces, "+" trained and "-" ignored. What a
template needs beyond them stands in the row as "special".
"""
import copy, json, os, sys, tempfile, time

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>",
           "<|end_header_id|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_characters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def write_tokenizer(folder, extra):
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {c: b for b, c in byte_characters().items()}
    added = [{"id": 256 + i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, t in enumerate(SPECIAL + extra)]
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                 "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    json.dump(tokenizer, open(f"{folder}/tokenizer.json", "w"))
    json.dump(config, open(f"{folder}/tokenizer_config.json", "w"))
    json.dump({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, open(f"{folder}/config.json", "w"))


user = lambda text: {"role": "user", "content": text}
answer = lambda text: {"role": "assistant", "content": text}
call = lambda name, arguments: {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]}
TOOLS = [{"name": "sum", "description": "Adds", "parameters": {"type": "object", "properties": {
    "a": {"type": "integer", "description": "First"}, "how": {"type": "string", "enum": ["up", "down"]}}, "required": ["a"]}}]
ROWS = {
    "single": ([user("Hi?"), answer("Yes.")], None),
    "system_and_turns": ([{"role": "system", "content": "Be terse."}, user("One\nline"), answer("  two\n"), user("ü?"), answer("Ü!")], None),
    "tool": ([user("1+1?"), call("sum", {"a": 1, "how": "up"}), {"role": "tool", "content": "{\"sum\": 2}"}, answer("2")], TOOLS),
    "thought": ([user("a"), answer("<think>\nhm\n</think>\n\nb"), user("c"), answer("d")], None),
}
CALLS = [{"name": "sum", "arguments": {"b": [1, {"z": None, "a": "ü"}], "a": "x y", "c": 1.0}}, {"name": "now", "arguments": {"utc": True}}]
ROWS["two_calls"] = ([user("?"), {"role": "assistant", "content": "", "tool_calls": CALLS}, {"role": "tool", "content": "1"}, answer("3")],
                     [{"type": "function", "function": t} for t in TOOLS] + [{"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}])
OLD = ["alpaca", "chatml", "default", "llama2", "llama3", "mistral", "phi", "qwen", "qwen3", "qwen3_nothink", "vicuna"]
CASES = [(t, r, {}) for t in OLD for r in ("single", "system_and_turns", "tool")]
CASES += [("qwen3", "thought", o) for o in ({}, {"enable_thinking": False}, {"mask_history": True},
                                             {"mask_history": True, "preserve_thinking": True})]
CASES += [(t, "system_and_turns", o) for t in ("qwen", "llama2") for o in
          ({"mask_history": True}, {"train_on_prompt": True}, {"cutoff_len": 40}, {"cutoff_len": 40, "mask_history": True})]
CASES += [("qwen", "single", {"default_system": "Be kind."}), ("chatml", "tool", {"tool_format": "mistral"})]


def needs(template):
    """Tokens that the template takes for granted."""
    slots = [s for f in ("user", "assistant", "system", "function", "observation", "prefix") for s in getattr(template, "format_" + f).slots]
    words = template.stop_words + [s["token"] for s in slots if isinstance(s, dict)]
    return [w for w in dict.fromkeys(words) if w not in SPECIAL]


def all_templates(templates):
    """Every template over turns and tools, reasoning ones over thoughts too, every tool format over two calls."""
    formats = set()
    for name, template in sorted(templates.items()):
        if name in OLD:
            continue
        yield from ((name, row, {}) for row in ("system_and_turns", "tool"))
        if "Reasoning" in type(template).__name__:
            yield from ((name, "thought", o) for o in ({}, {"enable_thinking": False}))
            # With efficient_eos it trains the ends of masked answers; we do not.
            yield from () if template.efficient_eos else [(name, "thought", {"mask_history": True})]
        tools = template.format_tools.tool_format
        if tools not in formats and tools != "glm4":
            formats.add(tools)
            yield (name, "two_calls", {})


def sharegpt(messages, tools):
    tags = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
    turns = [{"from": "function_call", "value": json.dumps(m["tool_calls"])} if "tool_calls" in m else
             {"from": tags[m["role"]], "value": m["content"]} for m in messages]
    return {"conversations": turns, "tools": json.dumps(tools) if tools else ""}


def pieces(ids, labels, extra):
    """Runs of trained and of ignored tokens, each as text; "=" runs have the label of another token."""
    runs = []
    for token, label in zip(ids, labels):
        sign = "-" if label == -100 else "+" if label == token else "="
        if not runs or runs[-1][0] != sign:
            runs.append([sign, b""])
        runs[-1][1] += bytes([token]) if token < 256 else (SPECIAL + extra)[token - 256].encode()
    # A cut may fall inside a character.
    return [[sign, text.decode("utf-8", "replace")] for sign, text in runs]


def main(out):
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.data.template import TEMPLATES
    from llamafactory.model import load_tokenizer
    for template in TEMPLATES.values():  # text alone needs no processor of images
        template.mm_plugin = get_mm_plugin("base")
    pristine = copy.deepcopy(TEMPLATES)
    rows = []
    for template, name, options in CASES + list(all_templates(pristine)):
        extra = needs(pristine[template])
        messages, tools = ROWS[name]
        TEMPLATES.update(copy.deepcopy(pristine))  # options change them
        with tempfile.TemporaryDirectory() as tmp:
            write_tokenizer(tmp, extra)
            json.dump([sharegpt(messages, tools)], open(tmp + "/rows.json", "w"))
            tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
                    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
            info = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}, "tags": tags}
            json.dump({"rows": info}, open(tmp + "/dataset_info.json", "w"))
            arguments = dict(model_name_or_path=tmp, stage="sft", do_train=True, finetuning_type="lora", dataset_dir=tmp,
                             dataset="rows", template=template, output_dir=tmp + "/out", use_cpu=True, overwrite_cache=True)
            model, data, training, _, _ = get_train_args({**arguments, **options})
            tokenizer = load_tokenizer(model)
            ready = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data)
            ready_rows = get_dataset(ready, model, data, training, stage="sft", **tokenizer)["train_dataset"]
            row = ready_rows[0]
        rows.append({"template": template, "options": options, "messages": messages, "tools": tools, "clock": int(time.time()),
                     "special": extra, "pieces": pieces(row["input_ids"], row["labels"], extra)})
        print(template, name, options, flush=True)
    for name, part in (("golden_rows.json", rows[:len(CASES)]), ("golden_templates.json", rows[len(CASES):])):
        with open(os.path.join(out, name), "w") as file:
            file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in part) + "\n]\n")


main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(__file__) or ".")
