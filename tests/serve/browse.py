"""`make browser`: the page in a real browser, on a tiny model that was made a moment ago; nothing is downloaded.

    python -m tests.serve.browse --browser .venv-serve/bin/python [--screenshots FOLDER]

Served are a model, an adapter that writes, one adapter of each task, and a run that goes on while one looks. Questions
that hold «slowly» are answered slowly, and those that hold «markup» by what would be markup, were it not text.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import uvicorn

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.commands.flags import ModelFlags
from llama.config import preset
from llama.heads import HeadConfig, add_head
from llama.lora import LoRAConfig, add_lora
from llama.lora.files import save_adapter
from llama.serve import runs
from llama.serve.api import Server, build_app
from llama.serve.batch import RequestRow
from llama.serve.models import Models
from llama.serve.openai_form import Wish
from llama.serve.scheduler import Scheduler
from tests.serve.started import HOME
from tokenizer import bpe
from tokenizer.chat import FORMATS

TEXT = ["The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox goes home.",
        "你好，世界！小驼在这里。"]
MARKUP = "<img src=x onerror=\"document.title='hit'\"> & <script>document.title='hit'</script>"
HEADS = {"reviews": HeadConfig(("good", "bad"), "sequence"), "names": HeadConfig(("O", "B-PER", "I-PER"), "tokens"),
         "answers": HeadConfig(("start", "end"), "spans")}


def make(folder: Path) -> None:
    """weights and adapters, random, but loud enough that each prompt gets another text."""
    tokenizer = bpe.train(TEXT * 4, 400, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = FORMATS["chatml"].template
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size), tokenizer)
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    save_model(model, folder / "tiny")
    for name in ("loud", *HEADS):
        tuned = load_model(folder / "tiny")
        if name in HEADS:
            add_head(tuned, HEADS[name])
        add_lora(tuned, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for parameter_name, parameter in tuned.named_parameters():
                if "lora_B" in parameter_name or "score" in parameter_name or "qa_outputs" in parameter_name:
                    parameter.normal_(0.0, 1.0)
        save_adapter(tuned, folder / "adapters" / name)
    samples = [{"instruction": "Who are you?", "output": "The quick brown fox."},
               {"instruction": "你好", "output": "世界！"}]
    (folder / "mine.jsonl").write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples * 4),
                                       encoding="utf-8")


def go_on(metrics: Path, end: threading.Event) -> None:
    """A run that learns something every moment."""
    metrics.parent.mkdir(parents=True)
    step = 0
    while not end.wait(0.3):
        step += 1
        line = {"step": step, "loss": 1 + 2 / step, "lr": 1e-4, "gradient_norm": 1.0, "tokens": 512 * step,
                "seconds": 0.3 * step, "done": min(step / 1000, 1)}
        with metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            if step % 5 == 0:
                file.write(json.dumps({"step": step, "eval": {"loss": 1.2 + 2 / step}}) + "\n")
                written = [{"prompt": "Who are you?\n", "text": f"{MARKUP} {step}", "gold": "The quick brown fox."}]
                file.write(json.dumps({"step": step, "samples": written}) + "\n")


def act(draw=RequestRow.draw):
    """RequestRow.draw for questions that are slow, or that bring markup."""
    def played(row, logits):
        tokenizer = row.request.model.tokenizer
        asked = tokenizer.decode(row.prompt).rpartition("user")[2]
        script = MARKUP if "markup" in asked else TEXT[0] if "slowly" in asked else ""
        if not script:
            draw(row, logits)
            return
        time.sleep(1.0 if script == TEXT[0] else 0)
        row.push([*tokenizer.encode(script), tokenizer.eos_ids[0]][len(row.token_ids)])
    return played


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve.browse", description=__doc__.splitlines()[0])
    parser.add_argument("--browser", required=True, metavar="PYTHON", type=Path, help="one that has playwright")
    parser.add_argument("--screenshots", metavar="FOLDER", type=Path)
    arguments = parser.parse_args()
    screenshots = [str(arguments.screenshots.absolute())] if arguments.screenshots else []
    browser = str(arguments.browser.absolute())                     # the server's folder becomes another
    RequestRow.draw = act()
    with tempfile.TemporaryDirectory() as temporary:
        folder, end = Path(temporary), threading.Event()
        make(folder)
        os.chdir(folder)
        runs.home = lambda: folder
        threading.Thread(target=go_on, args=(folder / "adapters/live.training/metrics.jsonl", end)).start()
        model_flags = ModelFlags(model=str(folder / "tiny"), dtype="float32", device="cpu", readable=True)
        app = build_app(Server(Models(model_flags, keep=3), Scheduler(), Wish(max_new_tokens=100)))
        config = uvicorn.Config(app, port=0, log_level="error")
        listening, front = config.bind_socket(), uvicorn.Server(config)
        thread = threading.Thread(target=front.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not front.started:
                time.sleep(0.01)
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            return subprocess.run([browser, "-I", str(HOME / "tests/serve/browser.py"), address,
                                   *screenshots]).returncode
        finally:
            end.set()
            front.should_exit = True
            thread.join()
            listening.close()
            os.chdir(HOME)


if __name__ == "__main__":
    sys.exit(main())
