"""Shows that `sft` and the hubs' own libraries find what the other has fetched, against a server on this machine.

usage: check_hub.py FETCH MODEL

FETCH   `cargo build -p sft-hub --example fetch_model` makes it
MODEL   a folder with a small model (config.json, a tokenizer, model.safetensors)

A server gives MODEL as `own/model.x` by both hubs' protocols. For each hub: `sft` fetches it, and the library
finds every file offline; then, into another folder, the library fetches it, and `sft` finds every file offline. Ends with an
error where one of them fails.

needs: huggingface_hub, modelscope
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

NAME = "own/model.x"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIBRARY = {
    "huggingface": "from huggingface_hub import snapshot_download as d; print('AT', d('%s', local_files_only=%s))",
    "modelscope": "from modelscope import snapshot_download as d; print('AT', d('%s', revision='master', local_files_only=%s))",
}


def serve(files):
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
            if path.startswith(f"/api/models/{NAME}/revision/"):
                siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                info = {"_id": "1", "id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                self.answer(json.dumps(info).encode(), [("Content-Type", "application/json")])
            elif path.startswith(f"/api/models/{NAME}/tree/"):
                tree = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for name, data in files.items()]
                self.answer(json.dumps(tree).encode(), [("Content-Type", "application/json")])
            elif path.startswith(f"/{NAME}/resolve/"):
                data = files.get(path.removeprefix(f"/{NAME}/resolve/").split("/", 1)[1])
                if data is None:
                    return self.answer(b"", [("X-Error-Code", "EntryNotFound")], 404)
                etag = hashlib.sha256(data).hexdigest()
                self.answer(data, [("ETag", f'"{etag}"'), ("X-Repo-Commit", COMMIT), ("X-Linked-Size", str(len(data)))])
            elif path == f"/api/v1/models/{NAME}/repo/files":
                tree = [
                    {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "Revision": COMMIT}
                    for name, data in files.items()
                ]
                self.answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": tree}}).encode(), [("Content-Type", "application/json")])
            elif path == f"/api/v1/models/{NAME}/repo" and query.get("FilePath", [""])[0] in files:
                self.answer(files[query["FilePath"][0]], [("Content-Type", "application/octet-stream")])
            elif path == f"/api/v1/models/{NAME}/revisions":
                revisions = {"RevisionMap": {"Branches": [{"Revision": "master", "CreatedAt": 1}], "Tags": []}}
                self.answer(json.dumps({"Code": 200, "Success": True, "Data": revisions}).encode(), [("Content-Type", "application/json")])
            else:
                self.answer(b'{"Code": 404, "Success": false}', [("Content-Type", "application/json")], 404)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def run(command, environment):
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("fetch", type=Path)
    p.add_argument("model", type=Path)
    args = p.parse_args()
    files = {path.name: path.read_bytes() for path in args.model.iterdir() if path.is_file()}
    address = serve(files)
    for hub, library in LIBRARY.items():
        for first in ["sft", "library"]:
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                environment = {
                    "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1",
                    "MODELSCOPE_CACHE": str(folder / "ms"), "MODELSCOPE_DOMAIN": address, "NO_PROXY": "127.0.0.1",
                    "USE_MODELSCOPE_HUB": "1" if hub == "modelscope" else "", "HF_TOKEN": "", "MODELSCOPE_API_TOKEN": "",
                }
                offline = {**environment, "HF_HUB_OFFLINE": "1"}
                ask = lambda alone: [sys.executable, "-c", library % (NAME, alone)]
                steps = [
                    lambda: run([args.fetch, NAME], environment if first == "sft" else offline),
                    lambda: run(ask(first == "sft"), offline if first == "sft" else environment),
                ]
                for step in steps if first == "sft" else reversed(steps):
                    said = step()
                    if "AT " in said:
                        at = Path(said.split("AT ")[-1].strip())
                        for name in ["config.json", "model.safetensors"]:
                            assert (at / name).read_bytes() == files[name], f"{at}/{name}"
                print(f"{hub}: fetched by {'sft, found by the library' if first == 'sft' else 'the library, found by sft'}")


if __name__ == "__main__":
    main()
