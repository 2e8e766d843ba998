"""Nothing is fetched but by name, by weights/fetch.py and weights/hub.py: held by reading the program, and by watching
it work."""

import ast
import json
import os
import subprocess
import sys

import pytest
from test_ladder import FILES, HOME, IMPORTS

from llama.checkpoint import save_model

NETWORK = {"aiohttp", "asyncio", "ftplib", "http", "httpx", "huggingface_hub", "imaplib", "nntplib", "poplib",
           "requests", "smtplib", "socket", "socketserver", "ssl", "telnetlib", "urllib", "urllib3", "webbrowser",
           "xmlrpc"}
# Who starts other programs, and why.
STARTS = {
    "llama.runtime.worker": "what is measured, in processes of their own",
    "llama.benchmark.modes": "the same",
    "llama.cost": "the same",
    "llama.fast.compiled_step": "the C++ compiler",
    "llama.serve.runs": "finetune.py, where the page asks for a run",
    "llama.frontier.runs": "train.py, finetune.py and evaluate, as anybody would",
    "llama.lora.targets": "a search that may have no end",
    "weights.fetch": "pip and npm",
}
# Who opens connections: to a hub that somebody has named, hf:ORG/NAME.
CONNECTS = {"weights.hub": {"http.client", "urllib.error", "urllib.parse", "urllib.request"},
            "weights.download": {"http.client"}}                    # the names of its errors
# Who waits for connections: the server's paths, in an event loop.
LISTENS = {"llama.serve.api": {"asyncio"}}
# Who may have something fetched, each by a name in the catalogue or an address that its user has given.
FETCHES = {
    "llama.pretrained": "a model that is named so, and is no folder or file",
    "llama.commands.flags": "an adapter with an address", "weights.convert": "a model with an address",
    "weights.fetch": "a model or an adapter with an address",
    "train": "the corpus that is learned without --data",
    "llama.benchmark.__main__": "what is measured", "llama.benchmark.machine": "the same",
    "llama.benchmark.peers": "of what a fetched model was made",
    "llama.frontier.grid": "corpora that are compared", "llama.methods.reptile": "poems",
    "llama.relatives.ablation": "news",
}
FETCHERS = {"pip", "npm", "curl", "wget", "git"}


def findings(name, tree):
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [node.module] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            allowed = module in CONNECTS.get(name, LISTENS.get(name, ())) or \
                (name, module) == ("llama.runtime.run_lock", "socket")
            if module.split(".")[0] in NETWORK and not allowed:
                yield f"import {module}"
            if module.split(".")[0] in ("subprocess", "multiprocessing", "pty") and name not in STARTS:
                yield f"import {module}"
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            if whole.startswith(("torch.hub", "os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn")) or \
                    whole.startswith("socket.") and whole != "socket.gethostname":
                yield whole
        if isinstance(node, ast.Constant) and node.value in FETCHERS and name != "weights.fetch":
            yield node.value


@pytest.mark.parametrize("name", FILES)
def test_property_no_other_file_can_fetch(name):
    assert not list(findings(name, ast.parse(FILES[name].read_text(encoding="utf-8"))))
    assert not {"weights.fetch", "weights.download"} & IMPORTS[name] or name in FETCHES


@pytest.mark.parametrize("line", ["import socket", "from urllib.request import urlopen", "import subprocess",
                                  "torch.hub.load(x)", "os.system(x)", "x = ['pip', 'install']"])
def test_property_the_reading_finds_what_would_fetch(line):
    assert list(findings("x", ast.parse(line)))


WATCHED = """
import json, sys
seen = []

def watch(event, arguments):
    if event.split(".")[0] in ("socket", "urllib", "ftplib", "http", "webbrowser") or event in (
            "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        if event != "socket.gethostname":                           # the lock of a run is signed so
            seen.append(f"{event} {arguments}")

sys.addaudithook(watch)
home, model, doors = sys.argv[1:]
sys.path.insert(0, home)
import llama
import finetune, generate, train
from weights import convert

for door, arguments in json.loads(doors):
    sys.argv = ["door", *arguments]
    {"finetune": finetune, "generate": generate, "train": train, "convert": convert}[door].main()
assert llama.get_model(model).generate("a", max_new_tokens=2) is not None
print("\\n".join(seen), file=sys.stderr)
found = len(seen)
import socket
socket.getaddrinfo("127.0.0.1", 80)                                 # what is watched for would be seen
sys.exit(bool(found) or len(seen) == found)
"""


def test_property_nothing_is_fetched_and_nothing_started_by_working_with_what_is_here(tiny_model, tmp_path):
    model, tuned = str(tmp_path / "model"), str(tmp_path / "tuned")
    save_model(tiny_model, model)
    data, text = tmp_path / "data.jsonl", tmp_path / "text.txt"
    data.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n", encoding="utf-8")
    text.write_text("the lazy dog\n\n" * 20, encoding="utf-8")
    here, once = ["--model", model, "--device", "cpu"], ["--max-steps", "1", "--batch-size", "1"]
    doors = [
        ("finetune", [*here, *once, "--lora", "--data", str(data), "--output", tuned, "--chat-format", "chatml",
                      "--max-length", "64"]),
        ("train", ["--data", str(text), "--preset", "test", "--vocab-size", "300", *once, "--output",
                   str(tmp_path / "new"), "--device", "cpu", "--block-size", "32"]),
        ("generate", [*here, "--adapter", tuned, "--prompt", "a", "--max-new-tokens", "2"]),
        ("convert", [model, str(tmp_path / "x.gguf")]),
    ]
    done = subprocess.run([sys.executable, "-c", WATCHED, str(HOME), model, json.dumps(doors)], capture_output=True,
                          encoding="utf-8", cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
