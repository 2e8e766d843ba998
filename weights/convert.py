"""The command `python -m weights.convert SOURCE DESTINATION`: a GGUF file or a Hugging Face folder → a folder of ours.

What a source is, is read from its content. Tensors pass through one at a time, so memory stays near the largest of
them, and the destination appears when all of it is written, or not at all.

Try: in `_cast`, make a list of the tensors first; tests/test_convert.py (test_property_one_tensor_at_a_time) fails, and
a 7B model would ask for 27 GB.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer import chat, from_vocabulary
from weights import gguf, huggingface
from weights.huggingface import HEADS, Ledger
from weights.paths import shown

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# What a folder has beside config and tensors, and what its copy keeps as it is.
KEPT_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
              "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")


@dataclass
class Source:
    config: dict[str, Any]
    ledger: Ledger
    tensors: Iterator[tuple[str, Tensor]]
    files: dict[str, bytes]
    remarks: list[str] = field(default_factory=list)


def convert(source: str | Path, destination: str | Path, *, dtype: torch.dtype | None = None, chat_format: str = "",
            overwrite: bool = False) -> Path:
    """Write the model in `source` as a folder of ours and tell on stderr what was done.

    dtype        of the written numbers; None keeps those of the source (what a GGUF packs becomes float32)
    chat_format  a name in tokenizer.chat.FORMATS, to take the place of the source's chat template
    overwrite    replace an existing model folder, once the new one is complete

    Raises FileNotFoundError or ValueError, naming the file, for a source that is damaged or no Llama, and for a
    destination that may not be written.
    """
    source, destination = Path(source), Path(destination)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; SOURCE is a .gguf file or a folder with config.json")
    if source.resolve().is_relative_to(destination.resolve()):
        raise ValueError(f"{source} lies in {destination}, which would be replaced; give another destination")
    huggingface.refuse_existing(destination, overwrite=overwrite)
    read = _from_folder(source, chat_format) if source.is_dir() else _from_gguf(source, chat_format)
    _check(read.config, read.ledger, source)
    ledger = [(name, shape, _cast_dtype(stored, dtype)) for name, shape, stored in read.ledger]
    destination.parent.mkdir(parents=True, exist_ok=True)
    huggingface.write_folder(destination, read.config, ledger, _cast(read.tensors, ledger), files=read.files,
                             overwrite=overwrite)
    for remark in [*read.remarks, _summary(ledger)]:
        _say(remark)
    return destination


# ---- sources ---------------------------------------------------------------------------------------------------------


def _from_gguf(path: Path, chat_format: str) -> Source:
    file = gguf.open_gguf(path)
    config, vocabulary = gguf.config(file), gguf.vocabulary(file)
    if chat_format:
        vocabulary["chat_template"] = _format(chat_format).template
    ends = vocabulary["eos_ids"]
    config |= {"bos_token_id": vocabulary["bos_id"], "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
               "pad_token_id": vocabulary["pad_id"]}
    remarks = [f"{path.name}: {_formats(file)}; rows of q_proj and k_proj reordered to rotary pairs (i, i + K/2)",
               *_on_template(vocabulary["chat_template"])]
    files = _tokenizer_files(vocabulary, path)
    return Source(config, gguf.tensor_ledger(file), gguf.read_tensors(file), files, remarks)


def _formats(file: gguf.GGUF) -> str:
    """«tensors in Q4_1 (210), F32 (61)»"""
    counts = Counter(info.format.name for info in file.tensors.values())
    return "tensors in " + ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def _tokenizer_files(vocabulary: dict[str, Any], path: Path) -> dict[str, bytes]:
    try:
        return from_vocabulary(vocabulary).files()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _from_folder(folder: Path, chat_format: str) -> Source:
    config = huggingface.read_config(folder)
    if config.get("model_type") != "llama":
        raise ValueError(f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}; only 'llama' is read")
    if config.get("quantization_config"):
        raise ValueError(f"{folder / 'config.json'}: the tensors are quantised (quantization_config); "
                         "convert the model they were made from")
    files = {name: (folder / name).read_bytes() for name in KEPT_FILES if (folder / name).is_file()}
    settings = huggingface.read_json(folder / _SETTINGS) if _SETTINGS in files else {}
    if chat_format:
        settings["chat_template"] = _format(chat_format).template
        files[_SETTINGS] = huggingface.to_json(settings)
        files.pop(_TEMPLATE, None)                                 # readers would prefer it to the one just written
    template = files[_TEMPLATE].decode(errors="replace") if _TEMPLATE in files else settings.get("chat_template")
    if "tokenizer.json" in files or "tokenizer.model" in files:
        remarks = _on_template(template)
    else:
        remarks = [f"{folder} holds no tokenizer.json and no tokenizer.model; add one before generating text"]
    if "rope_theta" not in config and "rope_theta" not in (config.get("rope_parameters") or {}):
        remarks.append("config.json names no rope_theta: 10,000 is written, as the first Llamas mean it")
    ledger, tensors = huggingface.tensor_ledger(folder), huggingface.read_tensors(folder)
    if config.get("tie_word_embeddings"):                          # a head stored beside the embedding it is tied to
        ledger = [entry for entry in ledger if entry[0] != _HEAD]
        tensors = (pair for pair in tensors if pair[0] != _HEAD)
    return Source(config, ledger, tensors, files, remarks)


_SETTINGS, _TEMPLATE, _HEAD = "tokenizer_config.json", "chat_template.jinja", "lm_head.weight"


def _format(name: str) -> chat.ChatFormat:
    if name not in chat.FORMATS:
        raise ValueError(f"--chat-format {name} is not known; known are {', '.join(chat.FORMATS)}")
    return chat.FORMATS[name]


def _on_template(template: Any) -> list[str]:
    """A remark on a template that our own chat cannot use; it is kept all the same, for other tools."""
    if not template:
        return ["no chat template in the source; --chat-format NAME writes one"]
    try:
        return [f"chat format: {chat.recognise(template).name}"] if isinstance(template, str) else []
    except ValueError:
        return [f"the chat template is kept, but is none of ours ({', '.join(chat.FORMATS)}): "
                "--chat-format NAME replaces it"]


# ---- what goes through -----------------------------------------------------------------------------------------------


def _check(config: dict[str, Any], ledger: Ledger, place: Path) -> None:
    """Raise ValueError unless the tensors are those of the config's Llama; heads of tasks may be among them."""
    shapes = {name: shape for name, shape, _ in ledger}
    heads = {name for name in shapes if name.startswith(HEADS)}
    wanted = set()
    for name, shape in _llama_shapes(config, place, head=heads <= {_HEAD}):
        if name not in shapes:
            raise ValueError(f"{place}: lacks the tensor {name}; fetch or copy it again")
        if shapes[name] != shape:
            raise ValueError(f"{place}: {name} has shape {list(shapes[name])}, but its config asks for {list(shape)}")
        wanted.add(name)
    if unknown := sorted(shapes.keys() - wanted - heads):
        raise ValueError(f"{place}: holds {unknown[0]}, which has no place in a Llama; "
                         "the model is of a kind not built here")


def _llama_shapes(config: dict[str, Any], place: Path, *, head: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor; lazily, since a damaged file may claim billions of layers."""
    V, D, F, L, H = (_size(config, place, name) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"))
    G = _size(config, place, "num_key_value_heads", H)
    K = _size(config, place, "head_dim", D // H)
    yield "embed_tokens.weight", (V, D)
    for layer in range(L):
        yield f"layers.{layer}.input_layernorm.weight", (D,)
        yield f"layers.{layer}.self_attn.q_proj.weight", (H * K, D)
        yield f"layers.{layer}.self_attn.k_proj.weight", (G * K, D)
        yield f"layers.{layer}.self_attn.v_proj.weight", (G * K, D)
        yield f"layers.{layer}.self_attn.o_proj.weight", (D, H * K)
        yield f"layers.{layer}.post_attention_layernorm.weight", (D,)
        yield f"layers.{layer}.mlp.gate_proj.weight", (F, D)
        yield f"layers.{layer}.mlp.up_proj.weight", (F, D)
        yield f"layers.{layer}.mlp.down_proj.weight", (D, F)
    yield "norm.weight", (D,)
    if head and not config.get("tie_word_embeddings"):
        yield _HEAD, (V, D)


def _size(config: dict[str, Any], place: Path, name: str, default: int | None = None) -> int:
    value = default if config.get(name) is None else config[name]
    if type(value) is not int or value < 1:
        raise ValueError(f"{place}: {name} is {value!r} in the config; it must be a whole number of at least 1")
    return value


def _cast_dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted and stored.is_floating_point else stored


def _cast(tensors: Iterator[tuple[str, Tensor]], ledger: Ledger) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in the ledger's dtype, with a live line for whoever watches."""
    for done, (name, _, dtype) in enumerate(ledger, start=1):
        if sys.stderr.isatty():
            end = "\r" if done < len(ledger) else "\r\x1b[K"
            print(f"\x1b[K{done}/{len(ledger)} {name}", end=end, file=sys.stderr, flush=True)
        yield _cast_one(next(tensors), dtype)


def _cast_one(pair: tuple[str, Tensor], dtype: torch.dtype) -> tuple[str, Tensor]:
    name, tensor = pair
    cast = tensor.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(cast).all() and torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds {tensor.abs().max():g}, beyond float16's 65504; take --dtype bfloat16")
    return name, cast


def _summary(ledger: Ledger) -> str:
    numbers = [torch.Size(shape).numel() for _, shape, _ in ledger]
    size = sum(count * dtype.itemsize for count, (_, _, dtype) in zip(numbers, ledger, strict=True))
    dtypes = " and ".join(sorted({str(dtype).removeprefix("torch.") for _, _, dtype in ledger}))
    heads = [name for name, _, _ in ledger if name.startswith(HEADS)]
    head = f"head: {', '.join(heads)}" if heads else "head tied to the embedding"
    return f"{len(ledger)} tensors, {sum(numbers):,} parameters in {dtypes}, {size:,} bytes, {head}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    from llama.cli import Parser

    parser = Parser("python -m weights.convert", __doc__.splitlines()[0])
    parser.add_argument("source", metavar="SOURCE", help="a .gguf file or a Hugging Face folder")
    parser.add_argument("destination", metavar="DESTINATION", help="the folder to make, such as weights/NAME")
    parser.add_argument("--dtype", choices=DTYPES, help="number format to write; without it, that of the source")
    parser.add_argument("--chat-format", choices=chat.FORMATS, help="replace the source's chat template by this one")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
    flags = parser.parse_args()
    folder = convert(flags.source, flags.destination, dtype=DTYPES.get(flags.dtype),
                     chat_format=flags.chat_format or "", overwrite=flags.overwrite)
    print(shown(folder))


if __name__ == "__main__":
    from llama.cli import run

    run(main)
