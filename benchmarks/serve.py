"""Asks a server with OpenAI's chat interface several questions at once: tokens a second, and how long an answer took.

usage: serve.py URL [--requests 16] [--at-once 8] [--tokens 64]

URL  http://127.0.0.1:8000/v1; the most likely token each time, at most `tokens` of them

Both programs on the same model, one after the other:
  sft serve model_name_or_path=models/0.5b template=default infer_dtype=bfloat16
  API_PORT=8001 llamafactory-cli api model.yaml     (the same keys in a file; `use_cpu: true`)
Questions differ from their first word on, so that nothing of a prompt is kept. Python standard library only.
"""
import argparse
import concurrent.futures
import json
import statistics
import time
import urllib.request


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("url")
    p.add_argument("--requests", type=int, default=16)
    p.add_argument("--at-once", type=int, default=8)
    p.add_argument("--tokens", type=int, default=64)
    return p.parse_args()


def ask(args, number):
    """Seconds, and tokens of the answer."""
    question = f"{number}: tell me what you know of the number {number}, of {number + 1}, and of those between them."
    body = {"model": "any", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": args.tokens}
    request = urllib.request.Request(args.url + "/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        tokens = json.load(answer)["usage"]["completion_tokens"]
    return time.perf_counter() - began, tokens


def main():
    args = parse_arguments()
    ask(args, 0)  # what a program does once
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        answers = list(pool.map(lambda number: ask(args, number), range(1, args.requests + 1)))
    took, tokens = time.perf_counter() - began, sum(tokens for _, tokens in answers)
    print(json.dumps({
        "requests": args.requests, "at_once": args.at_once, "tokens": tokens, "took_s": round(took, 2),
        "tokens_per_s": round(tokens / took, 1), "answer_s": round(statistics.median(seconds for seconds, _ in answers), 2),
    }))


if __name__ == "__main__":
    main()
