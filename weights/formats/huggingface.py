"""Hugging Face's model folder, in and out: config.json and *.safetensors, whole or in shards.

A .safetensors file is 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, and
the tensors' bytes one after the other. The library that defines the format reads it here; writing is done by hand,
because the library wants all tensors in memory at once, and a 7B model in float32 is 27 GB.

On disk the names begin with `model.`, except for heads; in memory they do not (see `stored_name`).

Try: write the header without its padding; tests/test_huggingface.py (test_worked_example_bytes_of_a_file) fails, and a
reader that maps the file would find float32 numbers at odd addresses.
"""

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tokenizer.checked_json import FLAG, TEXT, check_fields, listed, number, one_of, read_object, record, whole
from weights.formats.atomic_write import atomic_file, atomic_folder

Entry = tuple[str, tuple[int, ...], torch.dtype]                   # name, shape, dtype of one tensor
Ledger = list[Entry]                                               # what tensors there are, in the order they come

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADS = ("lm_head.", "score.", "qa_outputs.", "classifier.")
DEFAULT_ROPE_THETA = 10_000.0                                      # what a config without θ means
LARGEST_HEADER = 100_000_000                                       # the format's own limit, in bytes

# What readers look at in a config.json, and LlamaConfig and RopeScaling ask more of.
_ROPE = record({}, {"rope_theta": number(above=0), "rope_type": TEXT, "type": TEXT, "factor": number(),
                    "original_max_position_embeddings": whole(1), "partial_rotary_factor": number()})
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings", "original_max_position_embeddings")
SCALES = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")     # Granite's
CONFIG_FIELDS = {
    **dict.fromkeys(_SIZES, whole(1)), **dict.fromkeys(SCALES, number(above=0)), "model_type": TEXT,
    "rms_norm_eps": number(above=0), "tie_word_embeddings": FLAG, "architectures": listed(TEXT),
    "rope_theta": number(above=0), "rope_parameters": _ROPE, "rope_scaling": _ROPE, "sliding_window": whole(),
    "use_sliding_window": FLAG, "max_window_layers": whole(), "layer_types": listed(TEXT),
    "no_rope_layers": listed(one_of(0, 1)), "no_rope_layer_interval": whole(1),
    "quantization_config": record({}, {"quant_method": TEXT})}


def stored_name(name: str, below: str = "model.") -> str:
    """The name on disk: everything but a head belongs to the part that Hugging Face calls `model`; see `below_head`."""
    return name if name.startswith(HEADS) else below + name


def memory_name(name: str) -> str:
    """The inverse of `stored_name`."""
    return name.removeprefix("model.").removeprefix("transformer.")


def below_head(architectures: list[str] | None) -> str:
    """What comes before the names of a class of models, but for its head. Some classes have another word for it."""
    for words, classes in _OTHER_WORDS.items():
        if classes.intersection(architectures or ()):
            return words
    return "model."


_OTHER_WORDS = {"transformer.": {"LlamaForQuestionAnswering", "Qwen2ForQuestionAnswering", "GPT2LMHeadModel",
                                 "GPT3LMHeadModel"}, "": {"T5ForConditionalGeneration"}}
WITHOUT_ROPE = ("gpt2", "gpt3", "t5")                              # kinds of config.json that know no θ


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype. Raises ValueError where one of its numbers would become infinite."""
    most = torch.finfo(dtype).max if dtype.is_floating_point else math.inf
    if tensor.is_floating_point() and tensor.numel() and most < torch.finfo(tensor.dtype).max:
        if most < (largest := max(map(abs, map(float, tensor.aminmax())))) < math.inf:
            kind = str(dtype).removeprefix("torch.")
            wider = "bfloat16" if dtype == torch.float16 else "float32"
            raise ValueError(f"{name} holds {largest:g}, beyond {kind}'s {most:g}; take --dtype {wider}")
    return tensor.to(dtype)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file whose content is an object. Raises ValueError, with the file's name, for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a model folder has a {path.name}")
    try:
        return read_object(path.read_bytes(), str(path))
    except ValueError as error:
        raise ValueError(f"{error}; fetch or convert it again") from None


def read_config(folder: str | Path) -> dict[str, Any]:
    """The folder's config.json as it is written, its CONFIG_FIELDS of the types that they must have.

    Raises FileNotFoundError or ValueError, both naming the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; a model is a folder with config.json and model.safetensors")
    config = read_json(folder / "config.json")
    check_fields(config, CONFIG_FIELDS, str(folder / "config.json"))
    return config


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_safetensors(path: str | Path, ledger: Ledger, tensors: Iterable[tuple[str, Tensor]],
                      metadata: dict[str, str] | None = None) -> None:
    """Write one file: the header from `ledger`, then the tensors, each let go before the next is asked for.

    The file appears under its name when it is complete and on the disk, or not at all. `metadata` is for the header;
    transformers asks for {"format": "pt"}, so that is always there.

    Raises ValueError if the tensors' names, shapes or dtypes differ from those of the ledger, or their order does.
    """
    with atomic_file(Path(path)) as file:
        _write_tensors(file, ledger, iter(tensors), metadata or {})


def write_folder(folder: str | Path, config: dict[str, Any], ledger: Ledger, tensors: Iterable[tuple[str, Tensor]], *,
                 files: dict[str, bytes] | None = None, max_shard_size: int = 5_000_000_000,
                 overwrite: bool = False) -> None:
    """Write a whole model folder, or nothing: config.json, the tensors, and `files` as they are.

    Names are those of memory; on disk they get their `model.`. The dtype in config.json is that of most numbers in the
    ledger; of a quantised model, the config says it. Above `max_shard_size` bytes of tensors there are shards with an
    index. An existing folder is refused, or with `overwrite` replaced: it disappears only once the new one is complete.

    Raises ValueError if `folder` exists and may not be replaced, or if the tensors are not those of the ledger.
    """
    refuse_existing(Path(folder), overwrite=overwrite)
    dtype = str(main_dtype(ledger)).removeprefix("torch.")
    config = for_all_readers(config) | ({} if config.get("quantization_config") else
                                        {"torch_dtype": dtype, "dtype": dtype})
    with atomic_folder(folder) as partial:
        for name, content in {"config.json": to_json(config), **(files or {})}.items():
            with atomic_file(partial / name) as file:
                file.write(content)
        below = below_head(config.get("architectures"))
        renamed = ((stored_name(name, below), tensor) for name, tensor in tensors)
        _write_shards(partial, [(stored_name(name, below), *rest) for name, *rest in ledger], renamed, max_shard_size)


def for_all_readers(config: dict[str, Any]) -> dict[str, Any]:
    """The config with rotary fields under yesterday's keys (rope_theta, rope_scaling) and today's (rope_parameters).

    A reader of one kind silently takes 10,000 for θ on a file of the other, and writes nonsense after a few sentences.
    """
    if config.get("model_type") in WITHOUT_ROPE:
        return config
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise ValueError("config.json: rope_parameters and rope_scaling must be objects or null")
    theta = old.get("rope_theta") or new.get("rope_theta") or config.get("rope_theta") or DEFAULT_ROPE_THETA
    scaling = {key: value for key, value in (old or new).items() if key != "rope_theta"}         # as config_json.py
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    scaling = None if kind == "default" else scaling | {"rope_type": kind, "type": kind}
    return config | {"rope_theta": theta, "rope_scaling": scaling,
                     "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": theta}}


def refuse_existing(folder: Path, *, overwrite: bool, holds: str = "config.json") -> None:
    """Raise ValueError unless a model folder may be written here; cheap, so that it can be asked before long work.

    holds  the file by which an older folder of the kind is known; no other is ever replaced
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ValueError(f"{folder} is a file or a link; give the name of a folder to make")
    if not overwrite and any(folder.iterdir()):
        raise ValueError(f"{folder} exists; give another name, or --overwrite to replace it")
    if any(folder.iterdir()) and not (folder / holds).is_file():
        raise ValueError(f"{folder} holds no {holds}, so it is no model folder; it is not overwritten")


def to_json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _write_tensors(file: BinaryIO, ledger: Ledger, tensors: Iterator[tuple[str, Tensor]],
                   metadata: dict[str, str]) -> None:
    header, end = {"__metadata__": {"format": "pt"} | metadata}, 0
    for name, shape, dtype in ledger:
        if name in header:
            raise ValueError(f"{name} comes twice; each tensor is stored once")
        start, end = end, end + _bytes(shape, dtype)
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)                                # the format asks for tensors at multiples of 8
    assert len(text) <= LARGEST_HEADER, len(text)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for expected in ledger:
        file.write(checked_bytes(tensors, expected))


def checked_bytes(tensors: Iterator[tuple[str, Tensor]], expected: Entry) -> memoryview:
    """The next tensor's bytes, without a copy on the CPU; nothing here outlives the call, so one tensor is alive."""
    name, tensor = next(tensors, (None, torch.empty(0)))
    if name is None:
        raise ValueError(f"the tensors end before {_described(*expected)}; they must be those of their ledger")
    if (got := (name, tuple(tensor.shape), tensor.dtype)) != expected:
        raise ValueError(f"expected {_described(*expected)}, got {_described(*got)}; "
                         "tensors must come as their ledger says")
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _write_shards(folder: Path, ledger: Ledger, tensors: Iterator[tuple[str, Tensor]], max_shard_size: int) -> None:
    shards = _split(ledger, max_shard_size)
    if len(shards) == 1:
        write_safetensors(folder / WHOLE, ledger, tensors)
    else:
        placed = {}
        for number, shard in enumerate(shards, start=1):
            shard_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_safetensors(folder / shard_name, shard, islice(tensors, len(shard)))
            placed |= {name: shard_name for name, _, _ in shard}
        total = sum(_bytes(shape, dtype) for _, shape, dtype in ledger)
        with atomic_file(folder / INDEX) as file:
            file.write(to_json({"metadata": {"total_size": total}, "weight_map": placed}))
    if extra := next(tensors, None):
        raise ValueError(f"{extra[0]} comes after the ledger's last tensor; tensors must come as their ledger says")


def _split(ledger: Ledger, max_shard_size: int) -> list[Ledger]:
    """Consecutive parts of at most `max_shard_size` bytes, or of one tensor where that alone is larger."""
    shards: list[Ledger] = [[]]
    room = max_shard_size
    for entry in ledger:
        size = _bytes(*entry[1:])
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_size
        shards[-1].append(entry)
        room -= size
    return shards


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def main_dtype(ledger: Ledger) -> torch.dtype:
    """The dtype of most numbers."""
    sizes: Counter[torch.dtype] = Counter()
    for _, shape, dtype in ledger:
        sizes[dtype] += torch.Size(shape).numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _described(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{name} {list(shape)} {str(dtype).removeprefix('torch.')}"


def misfit(missing: Iterable[str], unknown: Iterable[str]) -> str:
    """«lacks a, b and also holds c»: how names found differ from names expected."""
    lacks, holds = f"lacks {some_names(missing)}", f"also holds {some_names(unknown)}"
    return " and ".join([lacks] * bool(missing) + [holds] * bool(unknown))


def some_names(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
