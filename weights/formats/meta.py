"""Meta's release folder, in and out: params.json and consolidated.00.pth … NN.pth, joined or split.

A shard is a dict of tensors as `torch.save` writes it, read by `torch.load(weights_only=True, mmap=True)` alone: a
pickle that would run code is refused. With n shards, each holds 1/n of every matrix: rows of wq, wk, wv, w1, w3 and
output, columns of wo and w2, of tok_embeddings rows (Llama 3) or columns (Llama 1 and 2), and norms whole. Reading,
the axis follows from the shapes. What params.json says and leaves out: meta_params.py.

Try: split `self_attn.o_proj` along axis 0 in NAMES; tests/test_meta.py (test_two_ways_four_shards_hold_quarters) fails,
though reading it back joins what was split: only Meta's code would multiply by the wrong quarter.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weights.formats import huggingface
from weights.formats.atomic_write import atomic_file, atomic_folder
from weights.formats.huggingface import Ledger, checked_bytes
from weights.formats.meta_params import PARAMS, check, inferred, read_params, unsaid, write_params
from weights.formats.plain_llama import HEAD, Sizes, plain_sizes, to_half_split, to_interleaved
from weights.formats.torch_file import load_torch_file, spooled, torch_save

NAMES = {                               # Hugging Face's parts, Meta's, and the axis along which Meta splits them
    "embed_tokens": ("tok_embeddings", 0),                         # 1 for the first Llamas, see `_axis`
    "input_layernorm": ("attention_norm", None),
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "post_attention_layernorm": ("ffn_norm", None),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "norm": ("norm", None),
    "lm_head": ("output", 0),
}  # fmt: skip
EMBEDDING, OUTPUT, TABLE = "tok_embeddings.weight", "output.weight", "rope.freqs"

__all__ = ["Meta", "changes", "config", "open_meta", "read_tensor", "read_tensors", "remarks", "tensor_ledger",
           "unsaid", "write_meta"]


@dataclass(frozen=True)
class Meta:
    path: Path
    params: dict[str, Any]
    shards: list[dict[str, Tensor]]     # by Meta's names, mapped from the files
    sizes: Sizes
    axes: dict[str, int | None]         # along which axis a tensor of Meta's name is split; None = in no way
    tied: bool


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_meta(path: str | Path) -> Meta:
    """Map the shards of a folder, or of the folder that one of its .pth files lies in, and see that they fit.

    Raises FileNotFoundError or ValueError, naming the file, for what is missing, damaged, or no Llama of Meta's.
    """
    path = Path(path)
    folder, files = _shard_files(path)
    params = huggingface.read_json(folder / PARAMS)
    params = params["model"] if isinstance(params.get("model"), dict) else params
    return join(path, params, [_shard(file) for file in files])


def _shard(file: Path) -> dict[str, Tensor]:
    try:
        return load_torch_file(file, "file of tensors alone, as torch.save writes it")
    except OSError as error:
        if error.filename:
            raise
        raise ValueError(f"{file}: cut short; fetch or copy it again") from None       # torch seeks beyond its end


def _shard_files(path: Path) -> tuple[Path, list[Path]]:
    if path.is_file() and not re.fullmatch(r"consolidated\.\d+\.pth", path.name):
        return path.parent, [path]
    folder = path.parent if path.is_file() else path
    files = sorted(folder.glob("consolidated.[0-9]*.pth")) or sorted(folder.glob("*.pth"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no consolidated.00.pth; give the folder that Meta's release lies in")
    if len(files) > 1:
        for number, file in enumerate(files):
            if file.name != (expected := f"consolidated.{number:02d}.pth"):
                raise FileNotFoundError(f"{folder / expected} is missing, but {file.name} is there; copy all shards")
    return folder, files


def join(path: Path, params: dict[str, Any], shards: list[dict[str, Tensor]]) -> Meta:
    """Find the sizes, and along which axis each tensor is split, from the shapes in the shards.

    Raises ValueError for what does not fit together, or has no place in a Llama.
    """
    check(path, params)
    _check_shards(path, shards)
    sizes = _sizes(path, params, shards)
    wanted = {stored_name(name): shape for name, shape in sizes.shapes().items()}
    if unknown := [name for name in shards[0] if name not in wanted and name != TABLE]:
        raise ValueError(f"{path}: {unknown[0]} has no place in a Llama; the model is of a kind not built here")
    axes = {}
    for name, shape in wanted.items():
        if name in shards[0]:
            axes[name] = _found_axis(path, name, [tuple(shard[name].shape) for shard in shards], shape)
            if axes[name] is None and not all(torch.equal(shard[name], shards[0][name]) for shard in shards[1:]):
                raise ValueError(f"{path}: the shards' copies of {name} differ; they are not parts of one model")
        elif name != OUTPUT:
            raise ValueError(f"{path}: lacks {name}; fetch or copy it again")
    return Meta(path, params, shards, sizes, axes, _is_tied(shards, axes))


def _check_shards(path: Path, shards: list[dict[str, Tensor]]) -> None:
    first = shards[0]
    for number, shard in enumerate(shards):
        for name, tensor in shard.items():
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
                what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(f"{path}: {name} is {what}; read here are tensors of float32, float16 and bfloat16")
        if shard.keys() != first.keys():
            name = min(shard.keys() ^ first.keys())
            raise ValueError(f"{path}: {name} lies in some shards only; shard {number} is of another model")
        if other := [name for name in shard if shard[name].dtype != first[name].dtype]:
            raise ValueError(f"{path}: {other[0]} is {shard[other[0]].dtype} in shard {number}, but "
                             f"{first[other[0]].dtype} in shard 0; they are not parts of one model")


def _sizes(path: Path, params: dict[str, Any], shards: list[dict[str, Tensor]]) -> Sizes:
    D, L, H, G = params["dim"], params["n_layers"], params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    if (last := f"layers.{L - 1}.attention_norm.weight") not in shards[0]:         # before shapes of a billion layers
        raise ValueError(f"{path}: lacks {last}, though {PARAMS} says {L:,} layers; fetch or copy it again")
    gates, embeddings = ([shard[name].shape for shard in shards if name in shard and shard[name].dim() == 2]
                         for name in (stored_name("layers.0.mlp.gate_proj.weight"), EMBEDDING))
    if not gates or not embeddings:
        raise ValueError(f"{path}: lacks {EMBEDDING} or layers.0.feed_forward.w1.weight; fetch or copy it again")
    V = params.get("vocab_size") or -1
    if V == -1:
        split_by_columns = sum(columns for _, columns in embeddings) == D
        V = embeddings[0][0] if split_by_columns else sum(rows for rows, _ in embeddings)
    sizes = Sizes(D, sum(rows for rows, _ in gates), L, H, G, V)
    if reason := sizes.misfit():
        raise ValueError(f"{path}: {reason}")
    for key, found in (("head_dim", sizes.K), ("hidden_dim", sizes.F)):             # of Mistral's, which repeat shapes
        if params.get(key) not in (None, found):
            raise ValueError(f"{path}: {PARAMS} says {key} = {params[key]}, but by its shapes it is {found}; it is of "
                             "another model, or of a kind not built here")
    return sizes


def _found_axis(path: Path, name: str, shapes: list[tuple[int, ...]], whole: tuple[int, ...]) -> int | None:
    if all(shape == whole for shape in shapes):
        return None
    for axis in range(len(whole)):
        rest = {shape[:axis] + shape[axis + 1:] for shape in shapes if len(shape) == len(whole)}
        if rest == {whole[:axis] + whole[axis + 1:]} and sum(shape[axis] for shape in shapes) == whole[axis]:
            return axis
    found = " and ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
    raise ValueError(f"{path}: {name} is {found} in {len(shapes)} shard(s), which do not join to {list(whole)}, as "
                     f"{PARAMS} asks; a shard is missing, or {PARAMS} is of another model")


def _is_tied(shards: list[dict[str, Tensor]], axes: dict[str, int | None]) -> bool:
    """Whether the head is the embedding: Meta's files of Llama 3.2 hold the same numbers twice."""
    if OUTPUT not in axes:
        return True
    heads, embeddings = ([shard[name] for shard in shards] for name in (OUTPUT, EMBEDDING))
    width = min(heads[0].shape[1], embeddings[0].shape[1])
    alike = heads[0].dtype == embeddings[0].dtype and torch.equal(heads[0][0, :width], embeddings[0][0, :width])
    # One row decides for nearly every model, so that gigabytes are compared only where they are likely to be equal.
    return alike and torch.equal(_whole_tensor(heads, axes[OUTPUT]), _whole_tensor(embeddings, axes[EMBEDDING]))


def _whole_tensor(pieces: list[Tensor], axis: int | None) -> Tensor:
    return pieces[0] if axis is None else torch.cat(pieces, axis)


def config(meta: Meta) -> dict[str, Any]:
    """params.json under Hugging Face's keys, with what it leaves to Meta's code (see `changes`).

    Raises ValueError where the rotary factor can neither be read nor inferred.
    """
    more = read_params(meta.path, meta.params, meta.sizes)
    return meta.sizes.config(**more, tie_word_embeddings=meta.tied)


def tensor_ledger(meta: Meta) -> Ledger:
    """Name in memory, joined shape and dtype of every tensor, in the order of the file; a tied head is left out."""
    shapes = meta.sizes.shapes()
    memory_names = {stored_name(name): name for name in shapes}
    return [(memory_names[name], shapes[memory_names[name]], tensor.dtype) for name, tensor in meta.shards[0].items()
            if name != TABLE and not (meta.tied and name == OUTPUT)]


def read_tensors(meta: Meta) -> Iterator[tuple[str, Tensor]]:
    """The tensors one at a time, in the ledger's order: joined, renamed, rotary pairs as Hugging Face has them."""
    return ((name, read_tensor(meta, name)) for name, _, _ in tensor_ledger(meta))


def read_tensor(meta: Meta, name: str) -> Tensor:
    """One tensor by its name in memory; mapped from the file where nothing is to be done to it."""
    stored = stored_name(name)
    tensor = _whole_tensor([shard[stored] for shard in meta.shards], meta.axes[stored])
    heads = meta.sizes.rotated_heads(name)
    return to_half_split(tensor, heads) if heads else tensor


def stored_name(name: str) -> str:
    """Meta's name of a tensor: layers.3.self_attn.q_proj.weight is layers.3.attention.wq.weight."""
    layer, part = re.fullmatch(r"(layers\.\d+\.)?(.+)\.weight", name).groups()
    return f"{layer or ''}{NAMES[part][0]}.weight"


def changes(meta: Meta) -> dict[str, list[str]]:
    """What reading makes of the files, in sentences: "joined", "permuted", "tied", "inferred"."""
    told = {"permuted": ["rows of q_proj and k_proj reordered from neighbouring rotary pairs (2i, 2i + 1) to "
                         "(i, i + K/2)"],
            "inferred": inferred(meta.params, meta.sizes)}
    if len(meta.shards) > 1:
        parts = [sorted({name.split(".")[-2] for name in meta.axes if meta.axes[name] == axis}) for axis in (0, 1)]
        told["joined"] = [f"{len(meta.shards)} shards joined by {word}: {', '.join(names)}"
                          for word, names in zip(("rows", "columns"), parts, strict=True) if names]
    if meta.tied:
        told["tied"] = ["output.weight equals tok_embeddings.weight: one tied matrix" if OUTPUT in meta.axes else
                        "there is no output.weight: the embedding is the head"]
    return {kind: sentences for kind, sentences in told.items() if sentences}


def remarks(meta: Meta) -> list[str]:
    """The sentences of `changes`, one after the other."""
    return [sentence for sentences in changes(meta).values() for sentence in sentences]


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_meta(folder: str | Path, config: dict[str, Any], ledger: Ledger, tensors: Iterable[tuple[str, Tensor]], *,
               shards: int = 1, files: dict[str, bytes] | None = None, overwrite: bool = False) -> None:
    """Write a folder that Meta's code reads with `shards` processes, whole or not at all.

    One tensor is in memory at a time; until the end, the folder takes its size on disk twice. What is without a key in
    params.json is told by `unsaid`.

    Raises ValueError for what Meta's files cannot hold (by name), for a number of shards that does not divide the
    model's heads, for a folder that may not be replaced, and for tensors that are not those of the ledger.
    """
    sizes = plain_sizes(config, ledger, "Meta's files")
    params = write_params(config, sizes)
    _refuse_shards(sizes, shards)
    huggingface.refuse_existing(Path(folder), overwrite=overwrite, holds=PARAMS)
    with atomic_folder(folder) as partial:
        for name, content in {PARAMS: huggingface.to_json(params), **(files or {})}.items():
            with atomic_file(partial / name) as file:
                file.write(content)
        _write_shards(partial, params, sizes, ledger, iter(tensors), shards,
                      tied=bool(config.get("tie_word_embeddings")))


def _refuse_shards(sizes: Sizes, shards: int) -> None:
    if shards < 1 or sizes.H % shards or sizes.G % shards:
        raise ValueError(f"{shards} shards cannot share {sizes.H} heads and {sizes.G} key-value heads evenly; give a "
                         "number that divides both")
    for what, size in (("hidden", sizes.D), ("feed-forward", sizes.F), ("vocabulary", sizes.V)):
        if size % shards:
            raise ValueError(f"{shards} shards cannot share the {what} size {size:,} evenly; give a number that divides"
                             " it")


def _write_shards(folder: Path, params: dict[str, Any], sizes: Sizes, ledger: Ledger,
                  tensors: Iterator[tuple[str, Tensor]], shards: int, *, tied: bool) -> None:
    """Spool the parts of each tensor to one file a shard as they come, and let torch.save copy them from there."""
    spools = [folder / f"{number:02d}.spool" for number in range(shards)]
    contents: list[dict[str, Tensor]] = [{} for _ in spools]
    files = [open(spool, "wb") for spool in spools]
    try:
        for name, shape, dtype in ledger:
            tensor = torch.frombuffer(checked_bytes(tensors, (name, shape, dtype)), dtype=dtype).reshape(shape)
            heads = sizes.rotated_heads(name)
            tensor = to_interleaved(tensor, heads) if heads else tensor
            for written in (name, HEAD) if tied and name == "embed_tokens.weight" else (name,):
                axis = _axis(written, params)
                parts = [tensor] * shards if axis is None else tensor.tensor_split(shards, axis)
                for content, file, part in zip(contents, files, parts, strict=True):
                    numbers = memoryview(part.contiguous().reshape(-1).view(torch.uint8).numpy())
                    content[stored_name(written)] = spooled(file, numbers, dtype).reshape(part.shape)
            del tensor, parts, part, numbers                       # the next one is made before names are bound anew
    finally:
        for file in files:
            file.close()
    if extra := next(tensors, None):
        raise ValueError(f"{extra[0]} comes after the ledger's last tensor; tensors must come as their ledger says")
    for number, (content, spool) in enumerate(zip(contents, spools, strict=True)):
        with atomic_file(folder / f"consolidated.{number:02d}.pth") as file:
            torch_save(content, file)
        content.clear()                                            # Windows deletes no file that is still mapped
        spool.unlink()


def _axis(name: str, params: dict[str, Any]) -> int | None:
    """Where Meta's code of the time splits; the code of Llama 1 and 2 has no rope_theta, and embeds by columns."""
    part = re.sub(r"^layers\.\d+\.|\.weight$", "", name)
    return 1 if part == "embed_tokens" and "rope_theta" not in params else NAMES[part][1]
