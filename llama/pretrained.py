"""A model, or its tokenizer alone, by name: here already, fetched, or of a published shape with random weights.

Try: ask for a name that is almost right; tests/test_checkpoint.py shows the sentence that answers.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint import PretrainedLlama, load_model, new_model
from llama.config import unknown_name
from llama.quantization.swap import BYTES, EMBEDDING_AND_HEAD, quantize
from llama.relatives.families import PRESETS, SMALL, for_vocabulary, preset
from llama.runtime.room import SURE, free_memory, memory_for, size
from tokenizer import load_tokenizer
from tokenizer.base import Tokenizer
from weights.fetch import MODELS, brings_tokenizer, fetch, is_model
from weights.formats.huggingface import Ledger
from weights.formats.paths import home, resolve
from weights.formats.sources import VOCABULARIES, holds_model, open_source

log = logging.getLogger(__name__)

OURS = "zh-small"                                                   # whose tokenizer small relatives read by


def get_model(name_or_folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
              seed: int = 0, bits: int = 0, errors: dict[str, float] | None = None,
              lossless: bool = False, put: Callable[[Tensor], Tensor] | None = None) -> PretrainedLlama:
    """A model by folder or file, by the name of a fetched (or fetchable) one, by its address on a hub (hf:ORG/NAME), or
    by a preset's name, with random weights.

    A relative's own name, gpt3 or t5, is a small one to train, with the tokenizer that comes with the clone.

    dtype  None takes that of most numbers in the files
    seed   of the random weights
    bits   8 or 4 for a quantised model, and with it `errors`; `lossless` without; all as in `load_model`

    Raises ValueError, with the nearest names, for anything else.
    """
    name = str(name_or_folder)
    options = {"device": device, "dtype": dtype, "bits": bits, "errors": errors, "lossless": lossless,
               "put": put}
    free = free_memory(torch.device(device))
    with memory_for(f"loading {name}", lambda: _lighter(name, dtype, bits, free)):
        if (path := resolve(name, "weights")).exists():
            return load_model(path, **options)
        if is_model(name):
            path = fetch(name, kind="weights")
            return load_model(path, **options)
        if name in PRESETS or name in SMALL:
            log.warning("%s is a shape: its weights are random (seed %d)", name, seed)
            tokenizer = get_tokenizer(OURS) if name in SMALL and resolve(OURS, "weights").exists() else None
            shape = for_vocabulary(preset(name), tokenizer) if tokenizer else preset(name)
            torch.manual_seed(seed)
            with torch.device(device):
                model = new_model(shape, tokenizer).to(dtype)
            if bits:
                (errors if errors is not None else {}).update(quantize(model, bits=bits))
            return model
    if "/" in name or "\\" in name or Path(name).suffix in (".pt", ".pth", ".gguf", ".bin", ".safetensors"):
        raise FileNotFoundError(f"{name}: there is no such model file or folder")
    there = [folder.name for folder in (home() / "weights").glob("[!.]*") if folder.is_dir() and holds_model(folder)]
    raise ValueError(unknown_name(name, sorted({*PRESETS, *SMALL, *MODELS, *there})))


def get_tokenizer(name_or_folder: str | Path) -> Tokenizer:
    """A tokenizer by its file or folder, or that of a model as `get_model` takes it, of which no tensor is read.

    Raises FileNotFoundError or ValueError for anything else.
    """
    name = str(name_or_folder)
    path = resolve(name, "weights")
    if not path.exists() and brings_tokenizer(name):
        path = fetch(name, kind="weights")
    by_itself = path.is_dir() and any((path / file).is_file() for file in VOCABULARIES)
    if by_itself or not holds_model(path):
        return load_tokenizer(path)
    if (tokenizer := open_source(path).tokenizer) is None:
        raise ValueError(f"{path}: this model brings no tokenizer; give the file or folder of one")
    return tokenizer


def stored_bytes(name: str | Path, *, dtype: torch.dtype | None = None, bits: int = 0) -> float:
    """What a model takes on the disk, and about as much in memory: as it is stored, or in another dtype or in bits.

    Nothing for one that is still to be fetched.
    """
    def each(name: str, shape: tuple[int, ...], stored: torch.dtype) -> float:
        if bits and len(shape) == 2:
            return BYTES[8 if name.startswith(EMBEDDING_AND_HEAD) else bits]
        return (dtype or stored).itemsize

    return sum(math.prod(shape) * each(name, shape, stored) for name, shape, stored in _ledger(str(name)))


def _ledger(name: str) -> Ledger:
    if (path := resolve(name, "weights")).exists():
        return open_source(path).ledger
    if name not in PRESETS:
        return []
    with torch.device("meta"):
        return [(each, tuple(parameter.shape), parameter.dtype) for each, parameter in
                new_model(preset(name)).named_parameters()]


def _lighter(name: str, dtype: torch.dtype | None, bits: int, free: float) -> str:
    """Which flags would let a model fit that did not, of those with which it takes less."""
    taken = stored_bytes(name, dtype=dtype, bits=bits)
    ways = {"--dtype bfloat16": stored_bytes(name, dtype=torch.bfloat16), "--quantize int8": stored_bytes(name, bits=8),
            "--quantize int4": stored_bytes(name, bits=4)}
    fit = [f"{flag} ({size(less)})" for flag, less in ways.items() if less < 0.9 * taken and less * SURE < free]
    takes = f"it takes {size(taken)}, and {size(free)} were free"
    return f"{takes}; these would fit: {', '.join(fit)}" if fit else f"{takes}; take a smaller model, or more memory"
