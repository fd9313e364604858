"""Shows that `sft` and the hubs' own libraries find what the other has fetched, against a server on this machine.

usage: check_hub.py FETCH MODEL [SFT]

FETCH   `cargo build -p sft-hub --example fetch_model` makes it
MODEL   a folder with a small model (config.json, a tokenizer, model.safetensors)
SFT     the program

A server gives MODEL as `own/model.x` by both hubs' protocols. For each hub: `sft` fetches it, and the library
finds every file offline; then, into another folder, the library fetches it, and `sft` finds every file offline. With SFT,
for each hub and with names alone: an adapter with two new tokens is trained on the model, the server gives it as
`own/adapter`, the program talks with both and merges them, the second time offline, and transformers loads what it wrote.
Ends with an error where one of them fails.

needs: huggingface_hub, modelscope; transformers with SFT
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

NAME, ADAPTER = "own/model.x", "own/adapter"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIBRARY = {
    "huggingface": "from huggingface_hub import snapshot_download as d; print('AT', d('%s', local_files_only=%s))",
    "modelscope": "from modelscope import snapshot_download as d; print('AT', d('%s', revision='master', local_files_only=%s))",
}


def serve(repositories):
    """Gives {name: {file: bytes}}, also what is added to it later."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body, headers=(), status=200):
            start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
            first, last = int(start[0]), int(start[1]) if start[1] else len(body) - 1
            if "Range" in self.headers and status == 200:
                status, body = 206, body[first : last + 1]
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            url = urlsplit(self.path)
            path, query = unquote(url.path), parse_qs(url.query)
            name = next((name for name in repositories if f"/{name}/" in path), "")
            files = repositories.get(name, {})
            if path.startswith(f"/api/models/{name}/revision/"):
                siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
                info = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                self.answer(json.dumps(info).encode(), [("Content-Type", "application/json")])
            elif path.startswith(f"/api/models/{name}/tree/"):
                tree = [{"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for file, data in files.items()]
                self.answer(json.dumps(tree).encode(), [("Content-Type", "application/json")])
            elif path.startswith(f"/{name}/resolve/"):
                data = files.get(path.removeprefix(f"/{name}/resolve/").split("/", 1)[1])
                if data is None:
                    return self.answer(b"", [("X-Error-Code", "EntryNotFound")], 404)
                etag = hashlib.sha256(data).hexdigest()
                self.answer(data, [("ETag", f'"{etag}"'), ("X-Repo-Commit", COMMIT), ("X-Linked-Size", str(len(data)))])
            elif path == f"/api/v1/models/{name}/repo/files":
                tree = [
                    {"Path": file, "Name": file, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "Revision": COMMIT}
                    for file, data in files.items()
                ]
                self.answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": tree}}).encode(), [("Content-Type", "application/json")])
            elif path == f"/api/v1/models/{name}/repo" and query.get("FilePath", [""])[0] in files:
                self.answer(files[query["FilePath"][0]], [("Content-Type", "application/octet-stream")])
            elif path == f"/api/v1/models/{name}/revisions":
                revisions = {"RevisionMap": {"Branches": [{"Revision": "master", "CreatedAt": 1}], "Tags": []}}
                self.answer(json.dumps({"Code": 200, "Success": True, "Data": revisions}).encode(), [("Content-Type", "application/json")])
            else:
                self.answer(b'{"Code": 404, "Success": false}', [("Content-Type", "application/json")], 404)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def run(command, environment, asked=None):
    done = subprocess.run(command, env={**os.environ, **environment}, input=asked, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def environment(hub, address, folder):
    return {
        "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1",
        "MODELSCOPE_CACHE": str(folder / "ms"), "MODELSCOPE_DOMAIN": address, "NO_PROXY": "127.0.0.1",
        "USE_MODELSCOPE_HUB": "1" if hub == "modelscope" else "", "HF_TOKEN": "", "MODELSCOPE_API_TOKEN": "",
    }


def both_ways(hub, library, fetch, address, files):
    for first in ["sft", "library"]:
        with tempfile.TemporaryDirectory() as folder:
            online = environment(hub, address, Path(folder))
            offline = {**online, "HF_HUB_OFFLINE": "1"}
            ask = lambda alone: [sys.executable, "-c", library % (NAME, alone)]
            steps = [
                lambda: run([fetch, NAME], online if first == "sft" else offline),
                lambda: run(ask(first == "sft"), offline if first == "sft" else online),
            ]
            for step in steps if first == "sft" else reversed(steps):
                said = step()
                if "AT " in said:
                    at = Path(said.split("AT ")[-1].strip())
                    for name in ["config.json", "model.safetensors"]:
                        assert (at / name).read_bytes() == files[name], f"{at}/{name}"
            print(f"{hub}: fetched by {'sft, found by the library' if first == 'sft' else 'the library, found by sft'}")


def by_names(hub, sft, address, repositories):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        online = environment(hub, address, folder)
        offline = {**online, "HF_HUB_OFFLINE": "1"}
        rows = [{"instruction": f"Say {i}.", "output": f"<|said|> {i} <|done|>"} for i in range(8)]
        (folder / "rows.json").write_text(json.dumps(rows))
        (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
        trained, merged = folder / "trained", folder / "merged"
        keys = [f"model_name_or_path={NAME}", "template=default"]
        tokens = "add_special_tokens=<|said|>,<|done|>"
        run([sft, "train", *keys, tokens, f"dataset_dir={folder}", "dataset=rows", "finetuning_type=lora", "max_steps=3", f"output_dir={trained}"], online)
        repositories[ADAPTER] = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
        keys.append(f"adapter_name_or_path={ADAPTER}")
        answers = [run([sft, "chat", *keys, "do_sample=false", "max_new_tokens=8"], by, "Say 3.\n") for by in (online, offline)]
        assert answers[0] == answers[1], answers
        run([sft, "export", *keys, f"export_dir={merged}"], offline)
        loads = "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; m, t = (x.from_pretrained(sys.argv[1]) for x in (M, T)); assert m.get_input_embeddings().weight.shape[0] >= len(t) and t.convert_tokens_to_ids('<|done|>') == len(t) - 1"
        run([sys.executable, "-c", loads, merged], offline)
        print(f"{hub}: trained, talked with and merged by names alone; transformers loads the merged model")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("fetch", type=Path)
    p.add_argument("model", type=Path)
    p.add_argument("sft", type=Path, nargs="?")
    args = p.parse_args()
    files = {path.name: path.read_bytes() for path in args.model.iterdir() if path.is_file()}
    repositories = {NAME: files}
    address = serve(repositories)
    for hub, library in LIBRARY.items():
        both_ways(hub, library, args.fetch, address, files)
        if args.sft:
            by_names(hub, args.sft, address, repositories)


if __name__ == "__main__":
    main()
