"""Writes rows for check_named_rows: what LLaMA-Factory 0.9.5 trains with a real tokenizer, for every named template.

usage: python make_named_rows.py TOKENIZER_DIR FOLDER    (needs `pip install llamafactory==0.9.5`)

FOLDER gets rows.jsonl and `tokenizer`, which is TOKENIZER_DIR with every token added that a template takes for
granted: no model has the tokens of all of them. Text alone is trained, of multimodal templates too.
"""
import copy, json, os, sys

from llamafactory.data.mm_plugin import get_mm_plugin
from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AddedToken, AutoTokenizer

user = lambda text: {"role": "user", "content": text}
answer = lambda text: {"role": "assistant", "content": text}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "sum", "arguments": {"a": 1, "how": "up"}}]}
TOOLS = [{"name": "sum", "description": "Adds", "parameters": {"type": "object", "properties": {
    "a": {"type": "integer", "description": "First"}, "how": {"type": "string", "enum": ["up", "down"]}}, "required": ["a"]}}]
ROWS = {
    "single": ([user("Hi?"), answer("Yes.")], None),
    "turns": ([{"role": "system", "content": "Be terse."}, user("One\nline"), answer("  two\n"), user("ü?"), answer("Ü!")], None),
    "tool": ([user("1+1?"), CALL, {"role": "tool", "content": "{\"sum\": 2}"}, answer("2")], TOOLS),
    "chinese": ([user("你好，介绍一下你自己。\n\n"), answer("我是一个助手。\n\n很高兴见到你！"), user("1+1=?"), answer("\n2")], None),
    "code": ([user("def f(x):\n    return x"), answer("```python\nprint(1)\n```\n")], None),
    "thought": ([user("a"), answer("<think>\nhm\n</think>\n\nb"), user("c"), answer("d")], None),
}


def needs(template):
    """Tokens that the template takes for granted."""
    slots = [s for f in ("user", "assistant", "system", "function", "observation", "prefix") for s in getattr(template, "format_" + f).slots]
    return template.stop_words + [s["token"] for s in slots if isinstance(s, dict)]


def main(source, out):
    for template in TEMPLATES.values():
        template.mm_plugin = get_mm_plugin("base")
    pristine = copy.deepcopy(TEMPLATES)
    tokenizer = AutoTokenizer.from_pretrained(source)
    wanted = dict.fromkeys(word for template in pristine.values() for word in needs(template))
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in wanted])
    folder = os.path.join(out, "tokenizer")
    tokenizer.save_pretrained(folder)
    with open(os.path.join(out, "rows.jsonl"), "w") as file:
        for name in sorted(pristine):
            TEMPLATES.update(copy.deepcopy(pristine))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            arguments = DataArguments(template=name)
            template = get_template_and_fix_tokenizer(tokenizer, arguments)
            encoder = SupervisedDatasetProcessor(template, tokenizer, None, arguments)
            for case, (messages, tools) in ROWS.items():
                if case == "thought" and "Reasoning" not in type(template).__name__:
                    continue
                system = "".join(m["content"] for m in messages if m["role"] == "system")
                roles = {"user": "user", "assistant": "assistant", "tool": "observation"}
                turns = [{"role": "function", "content": json.dumps(m["tool_calls"])} if "tool_calls" in m else
                         {"role": roles[m["role"]], "content": m["content"]} for m in messages if m["role"] != "system"]
                ids, labels = encoder._encode_data_example(turns[:-1], turns[-1:], system, json.dumps(tools) if tools else "", [], [], [])
                row = {"tokenizer": folder, "template": name, "case": case, "messages": messages, "tools": tools,
                       "input_ids": ids, "labels": labels}
                file.write(json.dumps(row) + "\n")


main(*sys.argv[1:])
