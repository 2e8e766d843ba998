"""Where the tensors of a Hugging Face folder lie: in .safetensors or .bin files, whole or in shards.

    model.safetensors         or model.safetensors.index.json and the shards that it names
    pytorch_model.bin         or pytorch_model.bin.index.json, the same; read as plain data (torch_file.py)

The library that defines .safetensors reads it. A tensor is looked for where the index says it lies, and where it is not
there, in the other shards: an index is often written by hand, and what counts is that everything is there once.

Try: read names alone from an index, and never from the files; tests/test_tensor_files.py
(test_property_what_the_shards_hold_counts) fails.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenizer.checked_json import TEXT, check_fields, mapped
from weights.formats.huggingface import DTYPES, HEADS, Ledger, memory_name, read_json
from weights.formats.torch_file import load_torch_file

log = logging.getLogger(__name__)

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
FORMS = (SAFETENSORS, f"{SAFETENSORS}.index.json", BIN, f"{BIN}.index.json")       # the first that is there is read


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file; `read` gives it, and nothing is kept."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """All tensors of a folder by their names in memory, in the order of the files; reads the headers alone.

    Raises FileNotFoundError where there are none or a shard is missing; ValueError, naming the file, for what is
    damaged, and for a tensor that an index promises and no shard holds.
    """
    folder = Path(folder)
    form = next((form for form in FORMS if (folder / form).is_file()), None)
    if form is None:
        raise FileNotFoundError(f"{folder} holds neither {', nor '.join(FORMS)}; copy the tensors there")
    if not form.endswith(".json"):
        return {memory_name(name): tensor for name, tensor in tensors_of(folder / form).items()}
    return _in_shards(folder / form)


def tensor_ledger(folder: str | Path) -> Ledger:
    """Name, shape and dtype of every tensor in the folder, in the order of `read_tensors`."""
    return [(name, tensor.shape, tensor.dtype) for name, tensor in stored_tensors(folder).items()]


def read_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """The folder's tensors one at a time, as (name in memory, tensor in the stored dtype)."""
    return ((name, tensor.read()) for name, tensor in stored_tensors(folder).items())


def _in_shards(index: Path) -> dict[str, StoredTensor]:
    values = read_json(index)
    check_fields(values, {"weight_map": mapped(TEXT)}, str(index))
    if not (placed := values.get("weight_map")):
        raise ValueError(f"{index}: has no weight_map, which says what file holds what tensor; fetch it again")
    shards: dict[str, dict[str, StoredTensor]] = {}
    for shard in sorted(set(placed.values())):
        if Path(shard).name != shard or shard == "..":
            raise ValueError(f"{index}: a shard is called {shard!r:.80}, which is no file of this folder")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index.parent / shard} is missing, but {index.name} names it; fetch or copy it "
                                    "again")
        shards[shard] = tensors_of(index.parent / shard)
    found: dict[str, StoredTensor] = {}
    for shard, tensors in shards.items():
        for name, tensor in tensors.items():
            if (memory := memory_name(name)) not in found or placed.get(name) == shard:
                if memory in found and not torch.equal(found[memory].read(), tensor.read()):
                    log.warning("%s: %s lies in two shards, in two versions; that of %s is taken, as the index says",
                                index.parent, name, shard)
                found[memory] = tensor
    lost = [name for name in placed if memory_name(name) not in found and not _computed(name)
            and not name.startswith(HEADS)]                         # a tied head that is not stored: see `sources`
    if lost:
        raise ValueError(f"{index.parent / placed[lost[0]]} lacks {lost[0]}, which {index.name} says it holds, and so "
                         "do the other shards; fetch it again")
    return found


def tensors_of(path: Path) -> dict[str, StoredTensor]:
    """What one file holds, by the names in it; a .bin is read as plain data, anything else as .safetensors.

    Raises ValueError, naming the file, for what is damaged, and for a pickle of anything else.
    """
    return _of_bin(path) if path.suffix == ".bin" else _of_safetensors(path)


def _computed(name: str) -> bool:
    """First Llamas' files hold this table, which is computed from the config and no parameter of the model."""
    return name.endswith("rotary_emb.inv_freq")


def _of_safetensors(path: Path) -> dict[str, StoredTensor]:
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                piece = file.get_slice(name)
                if _computed(name):
                    continue
                if (dtype := piece.get_dtype()) not in DTYPES:
                    raise ValueError(f"{path}: {name} is stored as {dtype}; known are {', '.join(DTYPES)}")
                found[name] = StoredTensor(path, tuple(piece.get_shape()), DTYPES[dtype], partial(_read, path, name))
    except (SafetensorError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None
    return found


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).removeprefix("Error while deserializing header: ")
    return ValueError(f"{path}: damaged or cut short ({reason}); fetch or copy it again")


def _of_bin(path: Path) -> dict[str, StoredTensor]:
    """A dictionary of tensors as torch.save wrote it, mapped from the file."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in load_torch_file(path, "file of tensors, as torch.save writes it").items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: {name!r:.80} is a {type(tensor).__name__} and no tensor; save the model's "
                             "state_dict() alone")
        if not _computed(name):
            found[name] = StoredTensor(path, tuple(tensor.shape), tensor.dtype, _itself(tensor))
    return found


def _itself(tensor: Any) -> Callable[[], Tensor]:
    return lambda: tensor
