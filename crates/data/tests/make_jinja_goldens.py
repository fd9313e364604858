"""Renders chat templates as transformers does, for crates/data/examples/check_jinja_goldens.rs.

usage: make_jinja_goldens.py FOLDER… > goldens.jsonl

FOLDER  searched for *.jinja, and for *.json with a `chat_template` (a text, or a list of named ones)
stdout  one line for each template, conversation and `add_generation_prompt`: file, case, template, messages, tools, gen, and
        text, or error where the template refuses the conversation

The conversations: one question; with a system message; several turns, with blank lines and marks around words; tools with a
call, its result and an answer, arguments as an object and as text; thoughts (`reasoning_content`); parts of content; an answer
of nothing; roles that do not take turns. Special tokens are <s>, </s>, <unk>, <pad>. Needs transformers.
"""
import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a city, \"now\" <b>& later</b>",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "A city: é, 北京"}, "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "default": 1}, "exact": {"type": "boolean"}}, "required": ["city"]}}}]


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(arguments):
    return {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def used(arguments):
    return [
        message("user", "How is it in Paris?"), message("assistant", "", tool_calls=[call(arguments)]),
        message("tool", '{"temp": 21.5, "sky": null}', name="get_weather", tool_call_id="abcdefghi"),
        message("assistant", "21.5 degrees."), message("user", "Thanks"), message("assistant", "Welcome."),
    ]


CASES = {
    "single": ([message("user", "What is 2+2?"), message("assistant", "4")], None),
    "system": ([message("system", "Be terse."), message("user", "Name a prime."), message("assistant", "7")], None),
    "turns": ([message("user", "  a\n\nb <|x|> "), message("assistant", "\nc \"d\" 你好\n"), message("user", "e"), message("assistant", "f")], None),
    "question": ([message("user", "a"), message("assistant", "b"), message("user", "c")], None),
    "tools offered": ([message("user", "a"), message("assistant", "b")], TOOLS),
    "tools used": (used({"city": "Paris", "days": 2, "exact": True, "unit": None}), TOOLS),
    "tools used, arguments in text": (used('{"city": "Paris"}'), TOOLS),
    "thought": ([message("user", "a"), message("assistant", "b", reasoning_content="hm"), message("user", "c"), message("assistant", "d", reasoning_content="so")], None),
    "thought in text": ([message("user", "a"), message("assistant", "<think>\nhm\n</think>\n\nb"), message("user", "c"), message("assistant", "<think>\nso\n</think>\n\nd")], None),
    "parts": ([message("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), message("assistant", [{"type": "text", "text": "c"}])], None),
    "empty": ([message("user", ""), message("assistant", "")], None),
    "two questions": ([message("user", "a"), message("user", "b"), message("assistant", "c")], None),
    "system twice": ([message("system", "a"), message("user", "b"), message("assistant", "c"), message("system", "d"), message("user", "e"), message("assistant", "f")], None),
}


def templates(folder):
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix == ".jinja":
            yield str(path), path.read_text(encoding="utf-8")
        elif path.suffix == ".json" and path.stat().st_size < 16 << 20:
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError):
                continue
            found = values.get("chat_template") if isinstance(values, dict) else None
            if isinstance(found, str):
                yield str(path), found
            elif isinstance(found, list):
                for named in found:
                    yield f"{path}#{named['name']}", named["template"]


def main():
    seen = set()
    for folder in sys.argv[1:] or sys.exit(__doc__):
        for file, template in templates(folder):
            if template in seen:
                continue
            seen.add(template)
            for case, (messages, tools) in CASES.items():
                for gen in (False, True):
                    line = {"file": file, "case": case, "template": template, "messages": messages, "tools": tools, "gen": gen}
                    try:
                        [line["text"]], _ = render_jinja_template(
                            conversations=[messages], tools=tools, documents=None, chat_template=template, add_generation_prompt=gen,
                            bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
                    except Exception as error:
                        line["error"] = f"{type(error).__name__}: {error}"
                    print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
