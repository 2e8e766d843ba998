"""A model in whatever form it lies on disk, recognised by its content: `open_source(path)` is the one door to all.

    Hugging Face   a folder with config.json and *.safetensors, or pytorch_model*.bin
    GGUF           a file that begins with the bytes «GGUF», one of several parts, or a folder with nothing else
    Meta           a folder with params.json and consolidated.*.pth, or one of its files
    llama2.c       a .bin file: a header of sizes, to which the file's length fits exactly; tokenizer.bin beside it
    single file    what `model.save("model.pt")` writes

All come out alike: a config with Hugging Face's keys, tensors by their names in memory with rotary pairs (i, i + K/2),
one at a time and in any order, and the small files of a model folder (tokenizer, chat template).

Try: let `_kind` go by the ending of the name; tests/test_sources.py (test_property_content_decides_not_the_name) fails.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer import chat, from_vocabulary, load_tokenizer
from tokenizer.base import Tokenizer, read_json
from tokenizer.gpt2_files import with_tokenizer_json
from weights.formats import gguf, huggingface, llama2c, meta, packed_elsewhere, relatives, single_file
from weights.formats.huggingface import Ledger
from weights.formats.joined import take_apart
from weights.formats.quantized_matrix import QuantizedMatrix, dtype_of, from_blocks, open_quantized
from weights.formats.tensor_files import StoredTensor, stored_tensors
from weights.formats.torch_file import load_torch_file

log = logging.getLogger(__name__)

# What a Hugging Face folder has beside config and tensors, and what comes along.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model")        # the last in T5's
TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "generation_config.json")
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
KEPT_FILES = (*TOKENIZER_FILES, "vocab.json", "merges.txt", *LICENCES)
_BESIDE = {"llama2c": ("tokenizer.bin",), "meta": ("params.json", "tokenizer.model")}
PERMUTED = "rows of q_proj and k_proj reordered to rotary pairs (i, i + K/2)"
KNOWN = ("known are Hugging Face folders (config.json), GGUF files (*.gguf), Meta folders (params.json, "
         "consolidated.*.pth), llama2.c files (.bin) and files written by model.save (.pt)")


@dataclass
class Source:
    """A model on disk, opened.

    kind     "hf", "gguf", "meta", "llama2c" or "pt"
    config   Hugging Face's keys, for config_from_dict
    ledger   name in memory, shape and dtype as read of each tensor
    read     gives the tensor of a name in the ledger; nothing is kept
    files    {name: content} of a model folder's small files: the tokenizer in the form of Hugging Face, and licences
    changes  what reading made of the file: {"permuted" | "tied" | "inferred": sentences}
    remarks  sentences for whoever converts it
    packed   gives a matrix as it is stored, in 8 or 4 bits; None for a tensor that is stored as numbers, or otherwise
    quantization  what config.json of a model in 8 or 4 bits says of itself (quantized_matrix.py); {} of others
    parts    of a GGUF that consists of several files: all of them, of which `path` is the first
    """

    path: Path
    kind: str
    config: dict[str, Any]
    ledger: Ledger
    read: Callable[[str], Tensor]
    files: dict[str, bytes]
    changes: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    packed: Callable[[str], QuantizedMatrix | None] = lambda name: None
    quantization: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors in the ledger's order, one at a time."""
        return ((name, self.read(name)) for name, _, _ in self.ledger)

    @property
    def dtype(self) -> torch.dtype:
        """That of most numbers, as read."""
        return huggingface.main_dtype(self.ledger)

    def paths(self) -> list[Path]:
        """The files that the model is made of: all of a folder; a file, and what is read beside it."""
        if self.path.is_dir():
            return [path for path in self.path.rglob("*") if path.is_file()]
        beside = [self.path.with_name(name) for name in _BESIDE.get(self.kind, ())]
        return [*(self.parts or [self.path]), *(path for path in beside if path.is_file())]

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Raises ValueError for a tokenizer that is damaged or of an unknown kind."""
        if not any(name in self.files for name in VOCABULARIES):
            return None
        read = {name: content for name, content in self.files.items() if name in TOKENIZER_FILES}
        try:
            return load_tokenizer(read | {"config.json": huggingface.to_json(self.config)})
        except ValueError as error:
            raise ValueError(f"{self.path}: {str(error).removeprefix('the model file/')}") from None


def open_source(path: str | Path) -> Source:
    """The model in a file or folder; reads what describes it, and no tensor yet.

    Raises FileNotFoundError or ValueError, naming the file, for what is missing, damaged, of another kind, or no Llama.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a model is a folder with config.json, or a file; {KNOWN}")
    source = _READERS[_kind(path)](path)
    layers = source.config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(source.ledger):     # before shapes of a billion layers are made
        raise ValueError(f"{path} has {layers:,} layers by its config and {len(source.ledger):,} tensors; fetch or "
                         "convert it again")
    return source


def holds_model(path: str | Path) -> bool:
    """Whether a file or folder is of one of these forms."""
    try:
        return bool(_kind(Path(path)))
    except (ValueError, OSError):
        return False


def _kind(path: Path) -> str:
    if path.is_dir():
        if (path / "config.json").is_file():
            return "hf"
        if (path / "params.json").is_file() or any(path.glob("*.pth")):
            return "meta"
        if gguf.model_in(path):
            return "gguf"
        raise ValueError(f"{path} holds neither config.json nor params.json, so it is no model folder; {KNOWN}")
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return "gguf"
    if start == b"PK\3\4":                                          # a zip, as torch.save writes it
        found = load_torch_file(path, "file of tensors, as torch.save writes it")
        return "pt" if "format" in found else "meta"
    if llama2c.recognised(path):
        return "llama2c"
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} holds tensors and no config; give the folder it lies in")
    raise ValueError(f"{path} is no model that is known here, or a damaged one; {KNOWN}")


# ---- one reader a form -----------------------------------------------------------------------------------------------


def _open_folder(folder: Path) -> Source:
    config = huggingface.read_config(folder)
    files = _present(folder, KEPT_FILES)
    if config.get("model_type") == "gpt2":
        files = with_tokenizer_json(files)
    remarks, changes = [], {}
    if not any(name in files for name in VOCABULARIES):
        remarks = [f"{folder} holds no tokenizer.json and no tokenizer.model; add one before generating text"]
    if config.get("model_type") not in huggingface.WITHOUT_ROPE and "rope_theta" not in config \
            and "rope_theta" not in (config.get("rope_parameters") or {}):
        changes["inferred"] = ["rope_theta: config.json names none, so 10,000, as the first Llamas mean it"]
        remarks.append("config.json names no rope_theta: 10,000 is written, as the first Llamas mean it")
    kind, tensors = config.get("model_type"), stored_tensors(folder)
    if isinstance(packing := config.get("quantization_config"), dict) and "quant_method" in packing:
        tensors = packed_elsewhere.unpack(packing, tensors, folder)
        changes["unpacked"] = [f"matrices packed by {packing['quant_method']} are read as the numbers they stand for"]
        remarks += changes["unpacked"]
        config = {name: value for name, value in config.items() if name != "quantization_config"}
    config, tensors = take_apart(config, tensors, folder)
    if config.get("model_type") != kind:
        changes["joined"] = [f"matrices of {kind} taken apart: it is read as a {config['model_type']}"]
        remarks += changes["joined"]
    tensors = relatives.to_memory(config, tensors)
    if config.get("tie_word_embeddings", config.get("model_type") in huggingface.WITHOUT_ROPE) and _HEAD in tensors:
        config, said = _tied(config, tensors)
        changes["tied"] = [said]
    ledger = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
    return _unpacked(Source(folder, "hf", config, ledger, lambda name: tensors[name].read(), files, changes, remarks))


_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


def _tied(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> tuple[dict[str, Any], str]:
    """What a stored head means where config.json ties it to the embedding; `tensors` are put right. In a sentence."""
    head = tensors.pop(_HEAD)
    if _EMBEDDING not in tensors:
        tensors[_EMBEDDING] = head
        return config, f"of the tied pair {_HEAD} is stored, and is the embedding too"
    if head.shape == tensors[_EMBEDDING].shape and torch.equal(head.read(), tensors[_EMBEDDING].read()):
        return config, f"the stored {_HEAD} is left out: config.json ties it to the embedding"
    tensors[_HEAD] = head
    said = f"the stored {_HEAD} is not the embedding, though config.json ties them: what is stored is taken"
    log.warning("%s: %s", head.file.parent, said)
    return config | {"tie_word_embeddings": False}, said


def _unpacked(source: Source) -> Source:
    """A model in 8 or 4 bits as one of numbers; what is stored can still be had by `packed`. Others as they are."""
    config = dict(source.config)
    if not (values := config.pop("quantization_config", None)):
        return source
    ledger, read, packed = open_quantized(source.ledger, source.read, dtype_of(values, source.path), source.path)
    return replace(source, config=config, ledger=ledger, read=read, packed=packed, quantization=values)


def _present(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files of these names in a folder. A link that leads out of it is not followed: a folder that is converted is
    often published, and what it then held would be somebody's private file. (Downloads are links into a store beside.)
    """
    inside = [folder.resolve(), *(store.resolve() for store in [folder.parent.parent / "blobs"]
                                  if folder.absolute().parent.name == "snapshots")]
    found = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise ValueError(f"{path} is a link to {path.resolve()}, outside of the model's folder; put the file "
                             "itself there, or take the link away")
        found[name] = path.read_bytes()
    return found


def _open_gguf(path: Path) -> Source:
    file = gguf.open_gguf(gguf.model_in(path) if path.is_dir() else path)
    path = file.path
    config, vocabulary = gguf.config(file), gguf.vocabulary(file)
    try:
        files = from_vocabulary(vocabulary).files()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    counts = Counter(info.format.name for info in file.tensors.values())
    formats = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
    return Source(path, "gguf", config | _special_ids(vocabulary), gguf.tensor_ledger(file),
                  partial(gguf.read_tensor, file), files, *_told(path, config, f"tensors in {formats}"),
                  packed=lambda name: from_blocks(*gguf.packed(file, name)), parts=file.paths)


def _special_ids(vocabulary: dict[str, Any]) -> dict[str, Any]:
    ends = vocabulary["eos_ids"]
    return {"bos_token_id": vocabulary["bos_id"], "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
            "pad_token_id": vocabulary["pad_id"]}


def _told(path: Path, config: dict[str, Any], form: str) -> tuple[dict[str, list[str]], list[str]]:
    if config["model_type"] in ("qwen2", "qwen3", "olmo2"):        # whose rows no form reorders
        changes, remark = {}, f"{path.name}: {form}"
    else:
        changes, remark = {"permuted": [PERMUTED]}, f"{path.name}: {form}; {PERMUTED}"
    if config.get("tie_word_embeddings"):
        changes["tied"] = ["the head is the embedding: the file holds no other, or the same"]
    return changes, [remark]


def _open_single(path: Path) -> Source:
    content = single_file.open_single(path)
    tensors, files = content["tensors"], content["tokenizer"]
    if strange := [name for name in files if name not in KEPT_FILES]:
        raise ValueError(f"{path}: its tokenizer names a file {strange[0]!r:.80}, and no model folder has one of that "
                         "name; nothing of it is written")
    ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    return _unpacked(Source(path, "pt", content["config"], ledger, lambda name: tensors[name], files))


def _open_meta(path: Path) -> Source:
    release = meta.open_meta(path)
    folder = path if path.is_dir() else path.parent
    files = _present(folder, LICENCES)
    if found := _present(folder, TOKENIZER_FILES):
        files |= load_tokenizer(found).files() if any(name in found for name in VOCABULARIES) else found
    return Source(path, "meta", meta.config(release), meta.tensor_ledger(release), partial(meta.read_tensor, release),
                  files, meta.changes(release), [f"{path.name}: {told}" for told in meta.remarks(release)])


def _open_llama2c(path: Path) -> Source:
    file = llama2c.open_llama2c(path)
    config = llama2c.config(file)
    packed = f"int8 in groups of {file.group_size}" if file.group_size else "float32"
    changes, remarks = _told(path, config, f"llama2.c's version {file.version}, {packed}")
    changes["inferred"] = ["rope_theta 10,000 and rms_norm_eps 1e-5: the file names none, llama2.c's code has these"]
    files: dict[str, bytes] = {}
    if file.tokenizer.is_file():
        files = load_tokenizer(file.tokenizer).files()
    return Source(path, "llama2c", config, llama2c.tensor_ledger(file), partial(llama2c.read_tensor, file), files,
                  changes, remarks + [f"{path.name}: {told}" for told in changes["inferred"]])


_READERS: dict[str, Callable[[Path], Source]] = {
    "hf": _open_folder, "gguf": _open_gguf, "meta": _open_meta, "llama2c": _open_llama2c, "pt": _open_single}


# ---- chat templates --------------------------------------------------------------------------------------------------

_SETTINGS, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


def with_template(files: dict[str, bytes], template: str) -> dict[str, bytes]:
    """A folder's files with another chat template."""
    settings = read_json(files, _SETTINGS) | {"chat_template": template}
    # Readers would prefer a template in a file of its own to the one just written.
    return {name: content for name, content in files.items() if name != _TEMPLATE} | {
        _SETTINGS: huggingface.to_json(settings)}


def template_remark(files: dict[str, bytes]) -> list[str]:
    """Whether the model brings a chat template, and whether it is one of ours."""
    if not any(name in files for name in VOCABULARIES):
        return []
    template = files[_TEMPLATE].decode(errors="replace") if _TEMPLATE in files else \
        read_json(files, _SETTINGS).get("chat_template")
    if not template:
        return ["no chat template in the source; --chat-format NAME writes one"]
    name = chat.name_of(template) if isinstance(template, str) else None
    return [f"chat format: {name or 'the template of the source'}"]
