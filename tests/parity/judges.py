"""What an area of `make parity` is written against: `Check`, a row of the table, and `Judges`, who answer questions.

An area is a module beside this one with `checks(judges) -> Iterator[Check]`. It asks

    judges.ask("judge_models.py", what="logits", folder=str(folder), ids={"text": [1, 2, 3]})

and gets what the function `logits` of tests/parity/judge_models.py returns for the request {"folder": …, "ids": …}, in
the judges' interpreter: a dict of tensors, or anything that JSON holds. Tensors of the question go as
`tensors={name: tensor}` and are in the request under that key. One interpreter (judge.py) serves all questions, since
importing transformers anew takes longer than most answers. A question with `keep="area/name"` and its answer are what
`--write-fixtures` writes to tests/fixtures, for `make test` to repeat without the judges.
"""

import hashlib
import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).parent


@dataclass
class Check:
    """A row of the table. `what` begins with its subject: rows of one area stand together."""

    what: str
    against: str                                                    # which library
    cases: str                                                      # how many, of what: "1,024 positions"
    worst: str                                                      # "Δ 3.1e-06" or "0 differ"
    passed: bool


class Judges:
    """The other interpreter; a context manager. Raises RuntimeError with its traceback if a question fails there.

    folder    for questions and answers, and for whatever an area wants to put before the judges
    vllm      the interpreter that has vLLM, beside which the others' libraries cannot be; "" for none
    """

    def __init__(self, python: str, folder: Path, *, vllm: str = ""):
        self.folder, self.count, self.vllm = folder, 0, vllm
        self.kept: dict[str, dict[str, Any]] = {}                   # "area/name": function, request, answer
        self.log = open(folder / "judge.log", "w+", encoding="utf-8")
        # -I: the folder of judge.py stays off its path, or our tokenizers.py would be found for the library.
        self.process = subprocess.Popen([python, "-I", HERE / "judge.py"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log, text=True, encoding="utf-8")

    def __enter__(self) -> "Judges":
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.log.close()

    def ask(self, script: str, *, what: str, tensors: Mapping[str, Tensor] | None = None, keep: str = "",
            **request: Any) -> Any:
        """What the function `what` of tests/parity/`script` answers: a dict of tensors, or plain JSON."""
        self.count += 1
        question, answer = self.folder / f"{self.count}.question", self.folder / f"{self.count}.answer"
        question.write_text(json.dumps(request), encoding="utf-8")
        if tensors:
            save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()},
                      f"{question}.safetensors")
        self.process.stdin.write(json.dumps([str(HERE / script), what, str(question), str(answer)]) + "\n")
        self.process.stdin.flush()
        outcome = self.process.stdout.readline().strip()
        if outcome == "tensors":
            found = load_file(f"{answer}.safetensors")
            if keep:
                self.kept[keep] = {"what": what, "request": request, "tensors": dict(tensors or {}), "answer": found}
            return found
        if outcome == "json":
            return json.loads(answer.read_text(encoding="utf-8"))
        self.log.seek(0)
        said = answer.read_text(encoding="utf-8") if answer.exists() else self.log.read()[-2000:]
        raise RuntimeError(f"{script}, {what}: {said}")


def write_kept(kept: Mapping[str, dict[str, Any]], folder: Path) -> None:
    """Write what `Judges.kept` holds, a file an area: every tensor once, by its hash, and in the header who it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for area in sorted({name.partition("/")[0] for name in kept}):
        stored, cases = {}, {}
        for name, case in kept.items():
            if name.startswith(f"{area}/"):
                cases[name.partition("/")[2]] = {"what": case["what"], "request": case["request"]} | {
                    part: {key: _store(tensor, stored) for key, tensor in case[part].items()}
                    for part in ("tensors", "answer")}
        save_file(stored, folder / f"{area}.safetensors", metadata={"cases": json.dumps(cases)})


def read_kept(path: Path) -> dict[str, dict[str, Any]]:
    """The inverse for one area: name of the case -> {"what", "request", "tensors", "answer"}."""
    with safe_open(path, framework="pt") as file:
        cases = json.loads(file.metadata()["cases"])
        return {name: case | {part: {key: file.get_tensor(stored) for key, stored in case[part].items()}
                              for part in ("tensors", "answer")} for name, case in cases.items()}


def _store(tensor: Tensor, stored: dict[str, Tensor]) -> str:
    tensor = tensor.detach().contiguous().clone()
    shape = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    name = hashlib.sha256(shape + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:12]
    stored[name] = tensor
    return name


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference, relative to the largest number of its tensor; infinite if names or shapes differ."""
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return math.inf
    return max(((ours[name].double() - theirs[name].double()).abs().max() /
                theirs[name].double().abs().max().clamp(min=1e-30)).item() for name in ours)
