"""`make serve-check`: the server under OpenAI's own client, and under curl, on real models.

    python -m tests.serve --client .venv-serve/bin/python [--model NAME …]

The texts must be those of generate.py, in float32: what comes of sharing a batch is rounding alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.serve.started import HOME, started

PROMPT, QUESTION, TOKENS = "The capital of France is", "What is the capital of France?", 24
MODELS = {"smollm2-135m-instruct": False, "qwen2.5-coder-0.5b-instruct": True}          # whether it can call tools
FLAGS = ("--dtype", "float32")


def generated(model: str, *flags: str) -> list[str]:
    done = subprocess.run([sys.executable, "generate.py", "--model", model, *FLAGS, "--max-new-tokens", str(TOKENS),
                           "--json", *flags], cwd=HOME, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return [json.loads(line)["text"] for line in done.stdout.splitlines()]


def curl(url: str, path: str, body: dict | None = None, *options: str) -> str:
    given = [] if body is None else ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    done = subprocess.run(["curl", "-sS", "-N", *options, *given, f"{url}{path}"], stdout=subprocess.PIPE,
                          encoding="utf-8", check=True)
    return done.stdout


def by_curl(url: str, text: str):
    """(what, whether it holds) for what one types."""
    yield "curl /health", json.loads(curl(url, "/health"))["status"] == "ok"
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": TOKENS}
    yield "curl /v1/completions", json.loads(curl(url, "/v1/completions", body))["choices"][0]["text"] == text
    *events, last = curl(url, "/v1/completions", body | {"stream": True}).removesuffix("\n\n").split("\n\n")
    yield "curl -N, streamed", last == "data: [DONE]" and text == "".join(
        json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events)
    head = curl(url, "/v1/completions", {"prompt": ""}, "-i")
    yield "curl -i, an error", head.startswith("HTTP/1.1 400") and '"invalid_request_error"' in head
    yield "curl /metrics", "llama_generated_tokens_total" in curl(url, "/metrics")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--client", required=True, metavar="PYTHON", help="one that has openai")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    failed = 0
    for model in arguments.model:
        chat = ("--chat", "--prompt", QUESTION)
        expected = {"prompt": PROMPT, "question": QUESTION, "tokens": TOKENS, "calls": MODELS[model]}
        (expected["text"],) = generated(model, "--prompt", PROMPT, "--temperature", "0")
        (expected["chat"],) = generated(model, *chat, "--temperature", "0")
        expected["seeded"] = generated(model, *chat, "--temperature", "1", "--num-samples", "3", "--seed", "7")
        print(f"\n{model}: {expected['chat']!r}", flush=True)
        with tempfile.TemporaryDirectory() as temporary, started("--model", model, *FLAGS) as server:
            file = Path(temporary) / "expected.json"
            file.write_text(json.dumps(expected), encoding="utf-8")
            failed += subprocess.run([arguments.client, "-I", str(HOME / "tests/serve/client.py"), server.url,
                                      str(file)]).returncode
            for what, passed in by_curl(server.url, expected["text"]) if shutil.which("curl") else ():
                print(f"{'ok' if passed else 'FAILED':6} {what}", flush=True)
                failed += not passed
    print("\nserve-check: " + (f"{failed} failed" if failed else "all passed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
