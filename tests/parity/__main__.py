"""`make parity`: the same questions to this project and to libraries that share no code with it; one table.

    python -m tests.parity --judges .venv-parity/bin/python

What is compared: logits and greedy text of SmolLM2-135M-Instruct (fetched on first use) with transformers, the numbers
of its packed file with gguf, token ids with tokenizers; and that folders and adapters saved here open in transformers
and peft with equal logits.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llama.checkpoint import get_model, load_model, save_model
from llama.config import RopeScaling, preset
from llama.lora import LoRAConfig, add_lora, save_adapter
from llama.model import Llama
from tests.parity import texts
from tokenizer import bpe, load_tokenizer
from weights import gguf
from weights.fetch import CATALOGUE, fetch
from weights.paths import home

MODEL = "smollm2-135m-instruct"


@dataclass
class Check:
    """A row of the table."""

    what: str
    against: str
    cases: str
    worst: str
    passed: bool


class Judges:
    """Another interpreter that answers questions put as JSON; see judge.py."""

    def __init__(self, python: str, folder: Path):
        self.python, self.folder, self.count = python, folder, 0

    def ask(self, **request: Any) -> Any:
        self.count += 1
        question = self.folder / f"{self.count}.json"
        answer = self.folder / f"{self.count}.{'safetensors' if request['what'] == 'logits' else 'answer.json'}"
        question.write_text(json.dumps(request), encoding="utf-8")
        judge = Path(__file__).with_name("judge.py")
        subprocess.run([self.python, judge, question, answer], check=True, stderr=subprocess.PIPE, text=True)
        return load_file(answer) if request["what"] == "logits" else json.loads(answer.read_text(encoding="utf-8"))


@torch.inference_mode()
def compare_logits(judges: Judges, what: str, model: Llama, folder: Path, ids: dict[str, list[int]], *,
                   adapter: Path | None = None, limit: float = 1e-3) -> Check:
    """Largest difference over all positions of all texts, in float32."""
    theirs = judges.ask(what="logits", folder=str(folder), adapter=str(adapter or ""), ids=ids)
    worst = max((model(torch.tensor([row]))[0] - theirs[name]).abs().max().item() for name, row in ids.items())
    positions = sum(map(len, ids.values()))
    against = "peft" if adapter else "transformers"
    return Check(what, against, f"{positions} positions", f"Δ {worst:.1e}", worst < limit)


def smollm2(judges: Judges) -> Iterator[Check]:
    model = get_model(MODEL)
    tokenizer = model.tokenizer
    ids = {name: tokenizer.encode(text) for name, text in texts.LOGITS.items()}
    yield compare_logits(judges, "SmolLM2-135M, logits", model, model.source, ids)

    prompts = [tokenizer.encode(prompt) for prompt in texts.PROMPTS]
    theirs = judges.ask(what="greedy", folder=str(model.source), ids=prompts, new=64, eos=list(tokenizer.eos_ids))
    same = 0
    for prompt, their_ids in zip(texts.PROMPTS, theirs, strict=True):
        their_text = tokenizer.decode([i for i in their_ids if i not in tokenizer.eos_ids])
        same += model.generate(prompt, max_new_tokens=64, temperature=0.0) == their_text
    yield Check("SmolLM2-135M, greedy text of 64 tokens", "transformers", f"{len(prompts)} prompts",
                f"{len(prompts) - same} differ", same == len(prompts))

    add_lora(model, LoRAConfig(rank=4))
    stir(model)
    adapter = judges.folder / "smollm2-adapter"
    save_adapter(model, adapter)
    yield compare_logits(judges, "SmolLM2-135M with our adapter, logits", model, model.source,
                         {"Chinese": ids["Chinese"]}, adapter=adapter)


def unpacking(judges: Judges) -> Iterator[Check]:
    """The tensors of the fetched GGUF file, packed in Q4_1 and Q8_0, as read here and by the reader of its makers."""
    packed = home() / CATALOGUE[MODEL].members[0].path
    file = gguf.open_gguf(packed)
    config = gguf.config(file)
    theirs = judges.ask(what="gguf", file=str(packed), layers=config["num_hidden_layers"],
                        heads={"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]},
                        names=[name for name, _, _ in gguf.tensor_ledger(file)])
    ours = {name: hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest()
            for name, tensor in gguf.read_tensors(file)}
    differ = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    yield Check("GGUF file, numbers unpacked", "gguf", f"{len(theirs)} tensors", f"{differ} differ", differ == 0)


def tokenizers(judges: Judges) -> Iterator[Check]:
    trained = judges.folder / "trained"
    bpe.train([texts.NEUTRAL, texts.CHINESE, texts.CODE], 1000, special=("<|endoftext|>",)).save(trained)
    for name, folder in {"SmolLM2's": get_model(MODEL).source, "one trained here": trained}.items():
        tokenizer = load_tokenizer(folder)
        theirs = judges.ask(what="tokens", file=str(folder / "tokenizer.json"), texts=texts.TOKENIZER)
        ours = [tokenizer.encode(text) for text in texts.TOKENIZER]
        differ = sum(a != b for a, b in zip(ours, theirs["ids"], strict=True))
        differ += sum(tokenizer.decode(a) != b for a, b in zip(ours, theirs["texts"], strict=True))
        yield Check(f"tokenizer, {name}: ids and text", "tokenizers", f"{len(texts.TOKENIZER)} texts",
                    f"{differ} differ", differ == 0)


def saved_folders(judges: Judges) -> Iterator[Check]:
    """Small random models of several shapes: our folder, and our adapter on it, opened elsewhere."""
    shapes = {
        "grouped queries, tied": preset("test"),
        "untied, multi-head": preset("test", tie_word_embeddings=False, num_key_value_heads=4),
        "rotary scaling linear": preset("test", rope_scaling=RopeScaling("linear", 4.0)),
        "rotary scaling llama3": preset("test", rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64), rope_theta=5e5),
    }
    tokenizer = bpe.train([texts.NEUTRAL], 512)
    ids = {"text": tokenizer.encode(texts.NEUTRAL)[:200]}
    for name, config in shapes.items():
        torch.manual_seed(0)
        folder = judges.folder / name.replace(" ", "-")
        built = Llama(config)
        stir(built, 0.2)
        built.tokenizer = tokenizer
        save_model(built, folder)
        model = load_model(folder)
        yield compare_logits(judges, f"saved folder, {name}", model, folder, ids)
        add_lora(model, LoRAConfig(rank=2, modules_to_save=("embed_tokens", "lm_head")))
        stir(model)
        save_adapter(model, folder / "adapter")
        yield compare_logits(judges, f"saved adapter, {name}", model, folder, ids, adapter=folder / "adapter")


@torch.no_grad()
def stir(model: torch.nn.Module, std: float = 0.05) -> None:
    """Move everything that learns by random amounts, so that an adapter is more than zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += torch.randn(parameter.shape, generator=generator) * std


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--judges", required=True, metavar="PYTHON", help="one that has requirements-parity.txt")
    arguments = parser.parse_args()
    started, checks = time.monotonic(), []
    fetch(MODEL)
    with tempfile.TemporaryDirectory() as temporary:
        judges = Judges(arguments.judges, Path(temporary))
        print(_row("what", "against", "cases", "worst", "verdict") + "\n" + _row(*["---"] * 5))
        for group in (saved_folders, unpacking, tokenizers, smollm2):
            for check in group(judges):
                checks.append(check)
                verdict = "equal" if check.passed else "DIFFERS"
                print(_row(check.what, check.against, check.cases, check.worst, verdict), flush=True)
    failed = sum(not check.passed for check in checks)
    print(f"\nparity: {len(checks) - failed} passed, {failed} failed, in {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


def _row(what: str, against: str, cases: str, worst: str, verdict: str) -> str:
    return f"| {what:<44} | {against:<12} | {cases:<14} | {worst:<12} | {verdict:<7} |"


if __name__ == "__main__":
    sys.exit(main())
