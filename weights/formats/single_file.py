"""The single file of `model.save("model.pt")`: config, tensors and tokenizer in what `torch.load` reads as plain data.

    {"format": SINGLE_FILE, "config": {…}, "tensors": {name: tensor}, "tokenizer": {file name: bytes}}

Reading and writing such files, safely and whole: torch_file.py.

Try: leave `check_value` out of `open_single`; tests/test_checkpoint.py
(test_refusal_of_content_of_another_type) fails.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizer.checked_json import ANYTHING, Field, check_value, mapped, record
from weights.formats.atomic_write import scratch_folder
from weights.formats.huggingface import Ledger, checked_bytes
from weights.formats.torch_file import load_torch_file, save_torch_file, spooled

SINGLE_FILE = "llama single file, version 1"
_TENSOR = Field("a tensor", lambda value: isinstance(value, Tensor))
_BYTES = Field("bytes", lambda value: isinstance(value, bytes))
CONTENT = record({"config": mapped(ANYTHING), "tensors": mapped(_TENSOR), "tokenizer": mapped(_BYTES)})


def open_single(path: str | Path) -> dict[str, Any]:
    """The content of a file written by `model.save`, its tensors mapped. Raises ValueError for any other file."""
    content = load_torch_file(Path(path), "model file written by model.save")
    if content.get("format") != SINGLE_FILE:
        raise ValueError(f"{path}: this is no model file written by model.save; it lacks format '{SINGLE_FILE}'")
    return check_value(content, CONTENT, str(path))


def write_single(path: str | Path, config: dict[str, Any], ledger: Ledger, tensors: Iterable[tuple[str, Tensor]], *,
                 files: dict[str, bytes]) -> None:
    """Write a single file, whole or not at all, from tensors that come one at a time; needs its size on disk twice."""
    path, tensors = Path(path), iter(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent, path.name) as scratch:
        mapped = {}
        with open(scratch / "tensors", "wb") as file:
            for name, shape, dtype in ledger:
                mapped[name] = spooled(file, checked_bytes(tensors, (name, shape, dtype)), dtype).reshape(shape)
        save_torch_file(path, {"format": SINGLE_FILE, "config": config, "tensors": mapped, "tokenizer": files})
        mapped.clear()                                              # Windows deletes no file that is still mapped
