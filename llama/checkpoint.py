"""Where model folders become models, and models become folders; also single files and the state of a training run.

A model folder is Hugging Face's: config.json, model.safetensors (or shards), tokenizer and generation files. A single
file, `model.save("model.pt")`, holds config, tensors and tokenizer in what `torch.load(weights_only=True)` reads. Both
are written; GGUF files, Meta's folders and llama2.c's files are read as well, through weights/sources.py.
Everything is written beside its destination first and renamed when whole, so that a killed run leaves no half file.

Try: load a folder whose config.json says one layer fewer; tests/test_checkpoint.py shows what is refused, and how.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama.config import PRESETS, LlamaConfig, preset, unknown_name
from llama.fuse import check_unfused
from llama.heads import config_dict, described, head_config
from llama.model import Llama
from llama.quantize import bits_of, install, matrices_packed, noting_4_bits, quantize
from llama.quantized_layers import Quantized
from weights import huggingface
from weights.fetch import MODELS, fetch
from weights.packed import PARTS, Packed, entry
from weights.paths import home, resolve
from weights.single_file import SINGLE_FILE, read_whole, write_whole
from weights.sources import open_source

log = logging.getLogger(__name__)

__all__ = ["fingerprint", "get_model", "load_model", "load_tensors", "misfit", "plain_tensors", "read_whole",
           "save_model", "write_whole"]


def get_model(name_or_folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
              seed: int = 0, bits: int = 0, fine: bool = False, errors: dict[str, float] | None = None,
              exact: dict[str, Packed] | None = None) -> Llama:
    """A model by folder or file, by the name of a fetched (or fetchable) one, or by a preset's, with random weights.

    dtype  None takes that of most numbers in the files
    seed   of the random weights
    bits   8 or 4 for a quantised model, and with it `fine` and `errors`; `exact` without (see `load_model`)

    Raises ValueError, with the nearest names, for anything else.
    """
    name = str(name_or_folder)
    if (path := resolve(name, "weights")).exists():
        return load_model(path, device=device, dtype=dtype, bits=bits, fine=fine, errors=errors, exact=exact)
    if name in MODELS:
        log.warning("%s is not here yet: fetching it once", name)
        return load_model(fetch(name), device=device, dtype=dtype, bits=bits, fine=fine, errors=errors, exact=exact)
    if name in PRESETS:
        log.warning("%s is a shape: its weights are random (seed %d)", name, seed)
        torch.manual_seed(seed)
        with torch.device(device):
            model = Llama(preset(name)).to(dtype)
        if bits:
            (errors if errors is not None else {}).update(quantize(model, bits=bits, fine=fine))
        return model
    if "/" in name or "\\" in name or Path(name).suffix in (".pt", ".pth", ".gguf", ".bin", ".safetensors"):
        raise FileNotFoundError(f"{name}: there is no such model file or folder")
    there = [folder.name for folder in (home() / "weights").glob("*/") if (folder / "config.json").exists()]
    raise ValueError(unknown_name(name, sorted({*PRESETS, *MODELS, *there})))


def load_model(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
               bits: int = 0, fine: bool = False, errors: dict[str, float] | None = None,
               exact: dict[str, Packed] | None = None) -> Llama:
    """The model in a folder or file of any form known here, with its tokenizer, tensor by tensor onto `device`.

    dtype   of all parameters; None takes that of most numbers in the files (what they pack becomes float32)
    bits    8 or 4 rounds each matrix as it is read (see llama.quantize.matrices_packed), so that the model is never
            there in floats; a folder that was saved in 8 or 4 bits comes as it is, without being asked
    fine    with 8 bits, each matrix in groups of 32 (see llama.quantize)
    errors  gets the relative error of each layer that is rounded
    exact   gets, by layer, the matrices of a model of floats that 4 bits hold without any loss, for `fuse`

    Raises ValueError for a file that is damaged or no model, listing the tensors that are missing or unknown, and where
    a model in 8 bits is asked for in 4, or one in 4 bits in 8.
    """
    source = open_source(path)
    if source.quantization and bits not in (0, source.quantization["bits"]):
        raise ValueError(f"{path} holds {source.quantization['bits']} bits a weight and cannot be had in {bits}; take "
                         "the model that it was made from")
    model = described(source.config)                                # a 7B is never held twice
    packs = bits or source.quantization
    tensors = matrices_packed(source, bits, fine=fine, errors=errors) if packs else source.tensors()
    if exact is not None and not packs:
        tensors = noting_4_bits(source, tensors, exact)
    load_tensors(model, tensors, device=device, dtype=dtype or source.dtype, place=source.path)
    tokenizer = source.tokenizer
    if tokenizer and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"{path}: the tokenizer has {tokenizer.vocab_size} ids, "
                         f"the model only {model.config.vocab_size} rows")
    model.tokenizer, model.source = tokenizer, source.path
    return model.eval()


def load_tensors(model: Llama, tensors: Iterable[tuple[str, Tensor | Packed]], *, device: torch.device | str,
                 dtype: torch.dtype | None, place: Path) -> None:
    """Replace every parameter of `model` by the tensor of its name, strictly; a layer whose matrix is packed by its
    quantised kind. `place` is named in errors.
    """
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
        found.add(name)
        if isinstance(tensor, Packed):
            layer = install(model, owner, tensor.to(device), dtype or torch.float32)
            if tied and owner == "embed_tokens":
                install(model, "lm_head", layer.packed, layer.dtype)
            continue
        parameter = nn.Parameter(tensor.to(device=device, dtype=dtype or tensor.dtype))
        setattr(model.get_submodule(owner), leaf, parameter)
    missing = expected.keys() - found - ({"lm_head.weight"} if tied else set())
    if missing or unknown:
        raise ValueError(f"{place}: the file does not fit its config.json: it {misfit(missing, unknown)}")
    model.tie()


def save_model(model: Llama, path: str | Path, *, overwrite: bool = True) -> None:
    """Write a model folder, or a single file if `path` ends in `.pt`, whole or not at all.

    One in 8 or 4 bits is written as it is, in a way that other programs refuse (see weights/packed.py).

    Raises ValueError for a model with LoRA layers: merge them, or save the adapter alone (llama.lora).
    """
    path = Path(path)
    check_unfused(model)
    tensors = plain_tensors(model)
    files = model.tokenizer.files() if model.tokenizer else {}
    config = config_dict(model)
    if bits := bits_of(model):
        made_from = fingerprint(model.source) if model.source else ""
        config["quantization_config"] = entry(bits, model.dtype, made_from)
        # The larger numbers first, or some would lie where no program can map them: at odd addresses.
        tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    if path.suffix == ".pt":
        content = {"format": SINGLE_FILE, "config": config, "tensors": tensors, "tokenizer": files}
        write_whole(path, content)
    else:
        ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
        config |= _dtype_fields(model.dtype) | _special_ids(model.tokenizer)
        if head_config(model) and model.tokenizer and config["pad_token_id"] is None:
            config["pad_token_id"] = next(iter(model.tokenizer.eos_ids), None)          # or others read one row alone
        path.parent.mkdir(parents=True, exist_ok=True)
        huggingface.write_folder(path, config, ledger, iter(tensors.items()), files=files, overwrite=overwrite)


def plain_tensors(model: Llama) -> dict[str, Tensor]:
    """The tensors of a model as its files hold them: every parameter by name, a tied head left out."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    if model.config.tie_word_embeddings:
        for part in PARTS:
            tensors.pop(f"lm_head.{part}", None)
    expected = described(config_dict(model)).state_dict().keys()
    packed = {f"{path}.{part}" for path, module in model.named_modules() if isinstance(module, Quantized)
              for part in PARTS}
    if foreign := tensors.keys() - expected - packed:
        raise ValueError(f"the model holds more than a plain Llama ({_some(foreign)}); "
                         "merge its adapter for good (llama.lora.merge_lora) or save the adapter alone (save_adapter)")
    return tensors


def fingerprint(path: str | Path) -> str:
    """sha256 over the config and the beginning of every tensor: tells in a second whether a base is the same base.

    Values are rounded to bfloat16 first, so that a float32 folder and its bfloat16 copy are the same.
    """
    source = open_source(path)
    if recorded := source.quantization.get("fingerprint"):          # of the model that was rounded to this one
        return recorded
    shape = LlamaConfig.from_dict(source.config).to_dict()
    pieces = [json.dumps(shape, sort_keys=True).encode()]
    for name, tensor in source.tensors():
        start = tensor.flatten()[:1024].to(torch.bfloat16).view(torch.int16)
        pieces.append(f"{name} {tuple(tensor.shape)}".encode() + start.numpy().tobytes())
    return hashlib.sha256(b"".join(sorted(pieces))).hexdigest()


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
