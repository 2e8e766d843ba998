"""Where model folders become models, and models become folders; also single files and the state of a training run.

A model folder is Hugging Face's: config.json, model.safetensors (or shards), tokenizer and generation files. A single
file, `model.save("model.pt")`, holds config, tensors and tokenizer in what `torch.load(weights_only=True)` reads. Both
are written; GGUF files, Meta's folders and llama2.c's files are read as well, through weights/formats/sources.py.
Everything is written beside its destination first and renamed when whole, so that a killed run leaves no half file.

Try: load a folder whose config.json says one layer fewer; tests/test_checkpoint.py shows what is refused, and how.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama.config import LlamaConfig
from llama.generation import complete_text
from llama.heads import HeadConfig, add_head, check_editable, head_config, head_of
from llama.model import Llama
from llama.quantization.layers import Quantized
from llama.quantization.loading import iter_lossless, iter_quantized
from llama.quantization.swap import bits_of, check_llama, replace_layer
from llama.relatives.families import config_from_dict, config_to_dict
from llama.relatives.gpt import GPT, GPTConfig
from llama.relatives.t5 import T5, T5Config
from llama.siblings import put_in_parts
from tokenizer.base import Tokenizer
from weights.formats import huggingface, relatives
from weights.formats.huggingface import misfit, some_names
from weights.formats.quantized_matrix import PARTS, QuantizedMatrix, quantization_config
from weights.formats.single_file import SINGLE_FILE
from weights.formats.sources import open_source
from weights.formats.torch_file import save_torch_file

log = logging.getLogger(__name__)


class Pretrained(nn.Module):
    """A model with what its files hold beside it, for the short API and for adapters, which name their base.

    tokenizer  None for a model that has none
    source     the folder or file that it was loaded from; None for one that is of no file (any more)
    step       what generation calls instead of `forward` where it can (fast/compiled_step.py); None for nothing
    """

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None, source: Path | None = None):
        super().__init__(config)                                    # of the model that this is mixed into
        self.tokenizer, self.source = tokenizer, source
        self.step: Any = None

    def generate(self, prompt: str, **options: Any) -> str:
        """The text that follows `prompt`. Options: max_new_tokens, temperature, top_k, … (see llama.generation)."""
        return complete_text(self, self.tokenizer, prompt, **options)

    def save(self, path: str | Path) -> None:
        """A folder, or with the ending `.pt` a single file (see `save_model`)."""
        save_model(self, path)


class PretrainedLlama(Pretrained, Llama):
    def __init__(self, config: LlamaConfig, tokenizer: Tokenizer | None = None, source: Path | None = None):
        super().__init__(config, tokenizer, source)
        put_in_parts(self)


class PretrainedGPT(Pretrained, GPT):
    pass


class PretrainedT5(Pretrained, T5):
    pass


KINDS: dict[type, Any] = {LlamaConfig: PretrainedLlama, GPTConfig: PretrainedGPT, T5Config: PretrainedT5}


def new_model(config: Any, tokenizer: Tokenizer | None = None) -> Any:
    """A model of this shape, with random weights: a Llama, or the relative whose config it is."""
    return KINDS[type(config)](config, tokenizer)


def load_model(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
               bits: int = 0, errors: dict[str, float] | None = None,
               lossless: bool = False, put: Callable[[Tensor], Tensor] | None = None) -> PretrainedLlama:
    """The model in a folder or file of any form known here, with its tokenizer, tensor by tensor onto `device`.

    dtype     of all parameters; None takes that of most numbers in the files (what they pack becomes float32)
    bits      8 or 4 rounds each matrix as it is read (see llama.quantize.iter_quantized), so that the model is never
              there in floats; a folder that was saved in 8 or 4 bits comes as it is, without being asked
    errors    gets the relative error of each layer that is rounded
    lossless  without bits, matrices that 4 or 8 bits hold without any loss are held in those
    put       where each tensor is to lie, as soon as it is read (fast/huge_pages.py); None moves it to `device`

    Raises ValueError for a file that is damaged or no model, listing the tensors that are missing or unknown, and where
    a model in 8 bits is asked for in 4, or one in 4 bits in 8.
    """
    source = open_source(path)
    if source.quantization and bits not in (0, source.quantization["bits"]):
        raise ValueError(f"{path} holds {source.quantization['bits']} bits a weight and cannot be had in {bits}; take "
                         "the model that it was made from")
    model = build_on_meta(source.config)                                # a 7B is never held twice
    if bits or source.quantization:
        check_llama(model)
        tensors = iter_quantized(source, bits, errors=errors)
    else:
        tensors = iter_lossless(source) if lossless and isinstance(model, Llama) else source.tensors()
    load_tensors(model, tensors, dtype=dtype or source.dtype, place=source.path,
                 put=put or (lambda tensor: tensor.to(device)))
    tokenizer = source.tokenizer
    if tokenizer and tokenizer.vocab_size > model.config.vocab_size:
        log.warning("%s: the tokenizer has %d ids, the model only %d rows; texts with the others are refused", path,
                    tokenizer.vocab_size, model.config.vocab_size)
    model.tokenizer, model.source = tokenizer, source.path
    return model.eval()


def load_tensors(model: Llama, tensors: Iterable[tuple[str, Tensor | QuantizedMatrix]], *, dtype: torch.dtype | None,
                 place: Path, put: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
    """Replace every parameter of `model` by the tensor of its name, strictly; a layer whose matrix is packed by its
    quantised kind. `put` says where each is to lie; `place` is named in errors.
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
        if not isinstance(tensor, QuantizedMatrix) and not (tensor.is_floating_point() and tensor.itemsize > 1):
            raise ValueError(f"{place}: {name} is stored as {str(tensor.dtype).removeprefix('torch.')} and config.json "
                             "does not say how it was quantised (quantization_config); take the folder anew")
        refuse_non_finite(name, tensor, place)
        owner, _, leaf = name.rpartition(".")
        found.add(name)
        if isinstance(tensor, QuantizedMatrix):
            layer = replace_layer(model, owner, tensor.map(put), dtype or torch.float32)
            if tied and owner == "embed_tokens":
                replace_layer(model, "lm_head", layer.packed, layer.dtype)
            continue
        tensor = huggingface.cast(f"{place}: {name}", tensor, dtype or tensor.dtype)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(put(tensor)))
    missing = expected.keys() - found - ({"lm_head.weight"} if tied else set())
    if missing or unknown:
        raise ValueError(f"{place}: the file does not fit its config.json: it {misfit(missing, unknown)}")
    model.tie_weights()


# Far beyond what anything learns, and so far below float32's 3.4e38 that no query and no key can get there.
LARGEST_WEIGHT = 1e15


def refuse_non_finite(name: str, tensor: Tensor | QuantizedMatrix, place: str | Path) -> None:
    """Raise ValueError for numbers that are not finite, or so large that what is computed would not be.

    NaN in q_proj or k_proj would not even show: torch's attention on CPUs gives zeros for such rows, and the model
    writes text without that layer.
    """
    parts = tensor.tensors().values() if isinstance(tensor, QuantizedMatrix) else [tensor]
    for part in parts:
        if part.is_floating_point() and part.numel():
            least, most = map(float, part.aminmax())
            if not -LARGEST_WEIGHT <= least <= most <= LARGEST_WEIGHT:
                what = f"{max(-least, most):g}, which nothing learns" if math.isfinite(most - least) else \
                    "numbers that are not finite (NaN or infinity)"
                raise ValueError(f"{place}: {name} holds {what}; the file is damaged, or its training went wrong: take "
                                 "another")


def save_model(model: PretrainedLlama, path: str | Path, *, overwrite: bool = True) -> None:
    """Write a model folder, or a single file if `path` ends in `.pt`, whole or not at all.

    One in 8 or 4 bits is written as it is, in a way that other programs refuse (see
    weights/formats/quantized_matrix.py).

    Raises ValueError for a model with LoRA layers: merge them, or save the adapter alone (llama.lora).
    """
    path = Path(path)
    check_editable(model)
    tensors = plain_tensors(model)
    files = model.tokenizer.files() if model.tokenizer else {}
    config = config_dict(model)
    if bits := bits_of(model):
        made_from = fingerprint(model.source) if model.source else ""
        config["quantization_config"] = quantization_config(bits, model.dtype, made_from)
        # The larger numbers first, or some would lie where no program can map them: at odd addresses.
        tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    if path.suffix == ".pt":
        content = {"format": SINGLE_FILE, "config": config, "tensors": tensors, "tokenizer": files}
        save_torch_file(path, content)
    else:
        ledger, named = relatives.to_disk(config, tensors)
        config = _dtype_fields(model.dtype) | _special_ids(model.tokenizer) | config
        if head_config(model) and model.tokenizer and config["pad_token_id"] is None:
            config["pad_token_id"] = next(iter(model.tokenizer.eos_ids), None)          # or others read one row alone
        path.parent.mkdir(parents=True, exist_ok=True)
        huggingface.write_folder(path, config, ledger, named, files=files, overwrite=overwrite)


def plain_tensors(model: Llama) -> dict[str, Tensor]:
    """The tensors of a model as its files hold them: every parameter by name, a tied head left out."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    if model.config.tie_word_embeddings:
        for part in PARTS:
            tensors.pop(f"lm_head.{part}", None)
    expected = build_on_meta(config_dict(model)).state_dict().keys()
    packed = {f"{path}.{part}" for path, module in model.named_modules() if isinstance(module, Quantized)
              for part in PARTS}
    if foreign := tensors.keys() - expected - packed:
        raise ValueError(f"the model holds more than a plain Llama ({some_names(foreign)}); "
                         "merge its adapter for good (llama.lora.merge_lora) or save the adapter alone (save_adapter)")
    return tensors


def fingerprint(path: str | Path) -> str:
    """sha256 over the config and the beginning of every tensor: tells in a second whether a base is the same base.

    Values are rounded to bfloat16 first, so that a float32 folder and its bfloat16 copy are the same.
    """
    source = open_source(path)
    if recorded := source.quantization.get("fingerprint"):          # of the model that was rounded to this one
        return recorded
    shape = config_to_dict(config_from_dict(source.config))
    pieces = [json.dumps(shape, sort_keys=True).encode()]
    for name, tensor in source.tensors():
        start = tensor.flatten()[:1024].to(torch.bfloat16).view(torch.int16)
        pieces.append(f"{name} {tuple(tensor.shape)}".encode() + start.numpy().tobytes())
    return hashlib.sha256(b"".join(sorted(pieces))).hexdigest()


def _dtype_fields(dtype: torch.dtype) -> dict[str, str]:
    name = str(dtype).removeprefix("torch.")
    return {"torch_dtype": name, "dtype": name}                     # older and newer readers each know one


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is None:                                           # said, or ids of a class's own models would hold
        return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    ends = list(tokenizer.eos_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": tokenizer.pad_id}


def config_dict(model: Llama) -> dict[str, Any]:
    """config.json of a model, whichever head it has."""
    head = head_of(model)
    if head is None:
        return config_to_dict(model.config)
    return head.config.to_dict(replace(model.config, tie_word_embeddings=head.tied))


def build_on_meta(values: Mapping[str, Any]) -> PretrainedLlama:
    """The model that a config.json describes, on the meta device: shapes without memory."""
    with torch.device("meta"):
        model = new_model(config_from_dict(dict(values)))
        if (head := HeadConfig.from_dict(values)) is not None:
            add_head(model, head)
    return model
