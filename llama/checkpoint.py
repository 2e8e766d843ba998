"""Where model folders become models, and models become folders; also single files and the state of a training run.

A model folder is Hugging Face's: config.json, model.safetensors (or shards), tokenizer and generation files. A single
file, `model.save("model.pt")`, holds config, tensors and tokenizer in what `torch.load(weights_only=True)` reads.
Everything is written beside its destination first and renamed when whole, so that a killed run leaves no half file.

Try: load a folder whose config.json says one layer fewer; tests/test_checkpoint.py shows what is refused, and how.
"""

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama.config import PRESETS, LlamaConfig, preset, unknown_name
from llama.model import Llama
from tokenizer import load_tokenizer
from weights import huggingface
from weights.fetch import MODELS, fetch
from weights.paths import home, resolve

log = logging.getLogger(__name__)

SINGLE_FILE = "llama single file, version 1"


def get_model(name_or_folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
              seed: int = 0) -> Llama:
    """A model by folder, by the name of a fetched (or fetchable) model, or with random weights by a preset's name.

    dtype  None keeps what the files hold
    seed   of the random weights

    Raises ValueError, with the nearest names, for anything else.
    """
    name = str(name_or_folder)
    if (path := resolve(name, "weights")).exists():
        return load_model(path, device=device, dtype=dtype)
    if name in MODELS:
        log.warning("%s is not here yet: fetching it once", name)
        return load_model(fetch(name), device=device, dtype=dtype)
    if name in PRESETS:
        log.warning("%s is a shape: its weights are random (seed %d)", name, seed)
        torch.manual_seed(seed)
        with torch.device(device):
            return Llama(preset(name)).to(dtype)
    if "/" in name or "\\" in name or Path(name).suffix in (".pt", ".gguf", ".safetensors"):
        raise FileNotFoundError(f"{name}: there is no such model file or folder")
    there = [folder.name for folder in (home() / "weights").glob("*/") if (folder / "config.json").exists()]
    raise ValueError(unknown_name(name, sorted({*PRESETS, *MODELS, *there})))


def load_model(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Llama:
    """The model in a folder or a single file, with its tokenizer, tensor by tensor onto `device` in `dtype`.

    Raises ValueError for a file that is damaged or no model, and listing the tensors that are missing or unknown.
    """
    path = Path(path)
    if path.is_dir():
        config = LlamaConfig.from_dict(huggingface.read_config(path))
        tensors: Iterable[tuple[str, Tensor]] = huggingface.read_tensors(path)
        tokenizer = load_tokenizer(path) if _has_tokenizer(path) else None
    else:
        content = _read_single_file(path)
        config = LlamaConfig.from_dict(content["config"])
        tensors = content["tensors"].items()
        tokenizer = load_tokenizer(content["tokenizer"]) if content["tokenizer"] else None

    with torch.device("meta"):                                      # shapes without memory: a 7B is never held twice
        model = Llama(config)
    load_tensors(model, tensors, device=device, dtype=dtype, place=path)
    if tokenizer and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"{path}: the tokenizer has {tokenizer.vocab_size} ids, "
                         f"the model only {config.vocab_size} rows")
    model.tokenizer, model.source = tokenizer, path
    return model.eval()


def load_tensors(model: Llama, tensors: Iterable[tuple[str, Tensor]], *, device: torch.device | str,
                 dtype: torch.dtype | None, place: Path) -> None:
    """Replace every parameter of `model` by the tensor of its name, strictly. `place` is named in errors."""
    expected = dict(model.named_parameters(remove_duplicate=False))
    tied = model.config.tie_word_embeddings
    found, unknown = set(), []
    for name, tensor in tensors:
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue                                                # old files hold what follows from the config
        if name not in expected:
            unknown.append(name)
            continue
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{place}: {name} has the shape {tuple(tensor.shape)}, "
                             f"config.json asks for {tuple(expected[name].shape)}")
        owner, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(tensor.to(device=device, dtype=dtype or tensor.dtype))
        setattr(model.get_submodule(owner), leaf, parameter)
        found.add(name)
    missing = expected.keys() - found - ({"lm_head.weight"} if tied else set())
    if missing or unknown:
        raise ValueError(f"{place}: the file does not fit its config.json: it {misfit(missing, unknown)}")
    model.tie()


def save_model(model: Llama, path: str | Path, *, overwrite: bool = True) -> None:
    """Write a model folder, or a single file if `path` ends in `.pt`, whole or not at all.

    Raises ValueError for a model with LoRA layers: merge them, or save the adapter alone (llama.lora).
    """
    path = Path(path)
    tensors = plain_tensors(model)
    files = model.tokenizer.files() if model.tokenizer else {}
    if path.suffix == ".pt":
        content = {"format": SINGLE_FILE, "config": model.config.to_dict(), "tensors": tensors, "tokenizer": files}
        write_whole(path, content)
    else:
        ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
        config = model.config.to_dict() | _dtype_fields(model.dtype) | _special_ids(model.tokenizer)
        path.parent.mkdir(parents=True, exist_ok=True)
        huggingface.write_folder(path, config, ledger, iter(tensors.items()), files=files, overwrite=overwrite)


def plain_tensors(model: Llama) -> dict[str, Tensor]:
    """The tensors of a model as its files hold them: every parameter by name, a tied head left out."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    with torch.device("meta"):
        expected = Llama(model.config).state_dict().keys()
    if foreign := tensors.keys() - expected:
        raise ValueError(f"the model holds more than a plain Llama ({_some(foreign)}); "
                         "merge its adapter for good (llama.lora.merge_lora) or save the adapter alone (save_adapter)")
    return tensors


def fingerprint(path: str | Path) -> str:
    """sha256 over the config and the beginning of every tensor: tells in a second whether a base is the same base.

    Values are rounded to bfloat16 first, so that a float32 folder and its bfloat16 copy are the same.
    """
    path = Path(path)
    if path.is_dir():
        config, tensors = huggingface.read_config(path), huggingface.read_tensors(path)
    else:
        content = _read_single_file(path)
        config, tensors = content["config"], content["tensors"].items()
    shape = LlamaConfig.from_dict(config).to_dict()
    pieces = [json.dumps(shape, sort_keys=True).encode()]
    for name, tensor in tensors:
        start = tensor.flatten()[:1024].to(torch.bfloat16).view(torch.int16)
        pieces.append(f"{name} {tuple(tensor.shape)}".encode() + start.numpy().tobytes())
    return hashlib.sha256(b"".join(sorted(pieces))).hexdigest()


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """torch.save that replaces `path` only when every byte is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_whole(path: Path, what: str) -> dict[str, Any]:
    """What `write_whole` wrote, read as plain data: a file from elsewhere cannot run code here."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
        raise ValueError(f"{path}: this is no {what}, or a damaged one") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: this is no {what}: it holds a {type(content).__name__}")
    return content


def _read_single_file(path: Path) -> dict[str, Any]:
    if path.exists() and path.open("rb").read(4) == b"GGUF":
        raise ValueError(f"{path}: a GGUF is converted first: python -m weights.convert {path} weights/{path.stem}")
    content = read_whole(path, "model file written by model.save")
    if content.get("format") != SINGLE_FILE:
        raise ValueError(f"{path}: this is no model file written by model.save; it lacks format '{SINGLE_FILE}'")
    return content


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def _dtype_fields(dtype: torch.dtype) -> dict[str, str]:
    name = str(dtype).removeprefix("torch.")
    return {"torch_dtype": name, "dtype": name}                     # older and newer readers each know one


def _special_ids(tokenizer: Any) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    ends = list(tokenizer.eos_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": tokenizer.pad_id}


def misfit(missing: Iterable[str], unknown: Iterable[str]) -> str:
    """«lacks a, b and also holds c»: how names found differ from names expected."""
    return " and ".join([f"lacks {_some(missing)}"] * bool(missing) + [f"also holds {_some(unknown)}"] * bool(unknown))


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
