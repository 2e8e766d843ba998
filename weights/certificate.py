"""What proves a conversion: `certificate.json` in a folder, or beside a file as NAME.certificate.json.

Source and destination are read by two programs that share no arithmetic: the source by `llama/reference.py`, in
float32, a tensor at a time; the destination by `llama.load_model`, as a user loads it. Then:

    files       sha256 of each, on both sides
    tensors     name, shape, dtype and sha256 on both sides; numbers must be those of the source, cast or packed
    config      whatever decides the arithmetic must come out as it went in
    logits      on a built-in text: largest and mean difference
    perplexity  on that text with rotary pairs (i, i + K/2), and with (2i, 2i + 1): a file whose rows are in the other
                order than its form says still writes fluently for some 20 tokens; here it is refused
    tokenizer   the ids of that text on both sides, and whether they decode to it

`verify` repeats it without the source: it holds for any changed byte, and for missing and added files.

Try: set `LAYOUT` to 1000; tests/test_certificate.py (test_refusal_of_rows_in_the_other_rotary_order) fails, and a
misread file would get a certificate.
"""

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama import reference
from llama.checkpoint import build_on_meta, load_model
from llama.config import RopeScaling
from llama.config_json import config_from_dict, config_to_dict
from llama.model import Llama
from tokenizer.base import Tokenizer
from weights.formats.atomic_write import final
from weights.formats.huggingface import to_json
from weights.formats.sources import Source, open_source
from weights.passage import TEXT, Passage

NAME = "certificate.json"
VERSION = 1
FIELDS = {"destination", "tensors", "text", "tokenizer", "logits", "verdict"}        # what is needed to verify
LAYOUT = 1.05                   # the other rotary order may not be better than this
CHANCE = 0.25                   # a perplexity above this part of V says nothing about the order
LIMIT = 2e-4                    # of the largest logit: what summing in another order may change in float32
WHOLE = 8_000_000_000           # bytes in float32 up to which a destination is loaded whole, else block by block
NO_ARITHMETIC = ("initializer_range", "max_position_embeddings")   # fields that a form may lose


# ---- the source, read the naive way ----------------------------------------------------------------------------------


@dataclass
class Reading:
    """Logits (T, V) of the source in float32, and its perplexity under both rotary orders.

    tells  whether the better of the two is so far from chance that it tells which order the rows are in
    """

    logits: Tensor
    perplexity: float
    other: float
    tells: bool


@torch.no_grad()
def read_naively(source: Source, text: Passage) -> Reading:
    """Raises ValueError where the other rotary order is better by more than 5 %, so that the rows must lie so."""
    config = config_from_dict(source.config)

    def logits(pairs: str) -> Tensor:
        weight = lambda name: source.read(name).float()            # noqa: E731  one tensor alive at a time
        return torch.cat([reference.logits(config, weight, row, pairs=pairs) for row in text.rows])

    own = logits("halves")
    here, there = _perplexity(own, text), _perplexity(logits("neighbours"), text)
    reading = Reading(own, here, there, min(here, there) < CHANCE * config.vocab_size)
    if reading.tells and reading.perplexity > LAYOUT * reading.other:
        raise ValueError(
            f"{source.path}: read as its form says, the built-in text has the perplexity {reading.perplexity:.2f}, but "
            f"{reading.other:.2f} with the other order of rotary pairs: whoever wrote it left the rows of q_proj and "
            "k_proj in that order; nothing was written")
    return reading


def _perplexity(logits: Tensor, text: Passage) -> float:
    pieces = logits.split([len(row) for row in text.rows])
    losses = [F.cross_entropy(piece[:-1], row[1:], reduction="none")
              for piece, row in zip(pieces, text.rows, strict=True)]
    return float(torch.cat(losses).mean().exp())


# ---- the destination, as a user loads it -----------------------------------------------------------------------------


@torch.no_grad()
def read_as_user(path: Path, text: Passage, dtype: torch.dtype | None) -> Tensor:
    """Logits (T, V) float32 of the model at `path`, computed in `dtype` (None: in that of the file)."""
    source = open_source(path)
    size = 4 * sum(torch.Size(shape).numel() for _, shape, _ in source.ledger)
    model = load_model(path, dtype=dtype) if size <= WHOLE else block_by_block(source, dtype or source.dtype)
    return torch.cat([model(row[None])[0].float() for row in text.rows])


def block_by_block(source: Source, dtype: torch.dtype) -> Llama:
    """The model of the product, with parameters that are read when a block is entered and dropped when it is left."""
    with torch.device("meta"):
        model = build_on_meta(source.config).eval()
    tied = model.config.tie_word_embeddings

    def enter(module: nn.Module, prefix: str) -> None:
        for name, _ in list(module.named_parameters()):
            stored = "embed_tokens.weight" if tied and prefix == "lm_head" else f"{prefix}.{name}"
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(source.read(stored).to(dtype), requires_grad=False))

    blocks = {f"layers.{i}": layer for i, layer in enumerate(model.layers)}
    others = {name: getattr(model, name) for name in ("embed_tokens", "norm", "lm_head")}
    for prefix, module in (blocks | others).items():
        module.register_forward_pre_hook(lambda module, _, prefix=prefix: enter(module, prefix))
        module.register_forward_hook(lambda module, *_: module.to("meta") and None)
    return model


# ---- making it -------------------------------------------------------------------------------------------------------


@dataclass
class Written:
    """One tensor on its way: what was read, and what a reader of the destination must find."""

    name: str
    shape: tuple[int, ...]
    rule: str                   # "as it was", "cast to bfloat16", "packed as Q8_0"
    source: str                 # sha256 of the numbers as read
    expected: str               # sha256 of the numbers that the destination must give
    source_dtype: torch.dtype


def digest(pieces: Iterable[Tensor]) -> str:
    """sha256 of a tensor's numbers, row after row, in its own dtype, little-endian; it may come in pieces."""
    running = hashlib.sha256()
    for piece in pieces:
        running.update(memoryview(piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return running.hexdigest()


def certify(source: Source, path: Path, written: list[Written], *, text: Passage, reading: Reading | None,
            remarks: list[str]) -> dict[str, Any]:
    """The certificate of the destination at `path`. Raises RuntimeError, naming what differs, if it is none.

    reading  None for a model without the head of a language model
    remarks  of the writer: how numbers were packed, what the form cannot hold
    """
    made = open_source(path)
    certificate: dict[str, Any] = {
        "certificate": VERSION,
        "made_by": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "source": {"name": source.path.absolute().name, "kind": source.kind, "files": hashes(source)},
        "destination": {"name": final(path).name, "kind": made.kind, "files": hashes(made)},
        "changes": {key: [*source.changes.get(key, []), *(f"destination: {text}" for text in made.changes.get(key, []))]
                    for key in ("permuted", "tied", "inferred")} | {"padded": _padded(source, made)},
        "remarks": remarks,
        "config": _same_config(source, made),
        "tensors": _same_tensors(written, made),
        "text": {"how": text.how, "rows": [len(row) for row in text.rows], "ids": torch.cat(text.rows).tolist()},
        "tokenizer": _same_tokenizer(source.tokenizer, made.tokenizer),
    }
    if reading is None:
        return certificate | {"logits": None, "verdict": "passed"}
    exact = all(entry.rule in ("as it was", "cast to float32") for entry in written)
    own = read_as_user(path, text, torch.float32)
    compared = {"float32": _compared(reading.logits, own)}
    if made.dtype != torch.float32:
        compared[_name(made.dtype)] = _compared(reading.logits, read_as_user(path, text, None))
    limit = LIMIT * max(1.0, float(reading.logits.abs().max()))
    worst = compared["float32"]["max_difference"]
    if not worst < (limit if exact else float("inf")):              # also NaN
        raise RuntimeError(f"{final(path).name}: its logits differ from the source's by up to {worst:.2e}, above the "
                           f"limit of {limit:.2e}; nothing was kept")
    return certificate | {
        "logits": compared | {"limit": limit if exact else None, "samples": _samples(own), "tolerance": limit},
        "perplexity": {"rotary_pairs_in_halves": reading.perplexity, "rotary_pairs_of_neighbours": reading.other,
                       "destination": _perplexity(own, text), "tells_the_rotary_order": reading.tells},
        "verdict": "passed",
    }


def _padded(source: Source, made: Source) -> list[str]:
    """Where a tokenizer has fewer ids than the embedding has rows, on both sides."""
    counts = [(where, side.config["vocab_size"], side.tokenizer.vocab_size if side.tokenizer else 0)
              for where, side in (("", source), ("destination: ", made))]
    return [f"{where}the embedding has {rows:,} rows, the tokenizer {ids:,} ids" for where, rows, ids in counts
            if 0 < ids < rows]


def _same_config(source: Source, made: Source) -> dict[str, Any]:
    ours, theirs = config_from_dict(source.config), config_from_dict(made.config)
    for each in fields(ours):
        before, after = getattr(ours, each.name), getattr(theirs, each.name)
        if _as_computed(before) != _as_computed(after) and each.name not in NO_ARITHMETIC:
            raise RuntimeError(f"{final(made.path).name}: {each.name} went in as {before} and comes out as {after}; "
                               "nothing was kept")
    return config_to_dict(theirs)


def _as_computed(value: Any) -> Any:
    """A field as the arithmetic takes it: some files keep numbers in float32, and YaRN's temperature has many names."""
    if isinstance(value, RopeScaling):
        scaling = {each.name: _as_computed(getattr(value, each.name)) for each in fields(value)}
        computed = _as_computed(value.attention_scaling)
        return scaling | dict.fromkeys(("attention_factor", "mscale", "mscale_all_dim"), computed)
    return torch.tensor(value).item() if isinstance(value, float) else value


def _same_tensors(written: list[Written], made: Source) -> list[dict[str, Any]]:
    names = {name for name, _, _ in made.ledger}
    if names != {entry.name for entry in written}:
        odd = min(names ^ {entry.name for entry in written})
        raise RuntimeError(f"{final(made.path).name}: {odd} is on one side only; nothing was kept")
    entries = []
    for entry in written:
        tensor = made.read(entry.name)
        found = digest([tensor])
        if found != entry.expected:
            raise RuntimeError(f"{final(made.path).name}: {entry.name} was not written as it was read ({entry.rule}); "
                               "nothing was kept")
        entries.append({"name": entry.name, "shape": list(entry.shape), "rule": entry.rule,
                        "source": {"dtype": _name(entry.source_dtype), "sha256": entry.source},
                        "destination": {"dtype": _name(tensor.dtype), "sha256": found}})
    return entries


def _same_tokenizer(ours: Tokenizer | None, theirs: Tokenizer | None) -> dict[str, Any] | None:
    if ours is None or theirs is None:
        return None
    before, after = ours.encode(TEXT), theirs.encode(TEXT)
    if before != after:
        raise RuntimeError("the tokenizer that was written gives other ids for the built-in text than the source's; "
                           "nothing was kept")
    if (identity := ours.decode(before) == TEXT) != (theirs.decode(after) == TEXT):
        raise RuntimeError("the tokenizer that was written decodes in another way than the source's; nothing was kept")
    return {"ids": len(before), "equal": True, "decodes_to_the_text": identity, **_fingerprint(ours)}


def _fingerprint(tokenizer: Tokenizer) -> dict[str, str]:
    """The ids of the built-in text, and the text itself, which another version of this file may have changed."""
    return {"text_sha256": hashlib.sha256(TEXT.encode()).hexdigest(),
            "ids_sha256": digest([torch.tensor(tokenizer.encode(TEXT))])}


def _compared(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    difference = (ours - theirs).abs()
    return {"max_difference": float(difference.max()), "mean_difference": float(difference.mean()),
            "same_best_token": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())}


def _samples(logits: Tensor) -> list[list[float]]:
    """Logits at 16 positions × 16 ids, evenly spread: enough to notice any other weights."""
    T, V = logits.shape
    rows, columns = torch.linspace(0, T - 1, 16).long(), torch.linspace(0, V - 1, 16).long()
    return logits[rows][:, columns].tolist()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def verdict(certificate: dict[str, Any]) -> str:
    """One line for a person."""
    rules = sorted({entry["rule"] for entry in certificate["tensors"]})
    parts = [f"{len(certificate['tensors'])} tensors bit for bit ({', '.join(rules)})"]
    if certificate["logits"]:
        for dtype, found in certificate["logits"].items():
            if isinstance(found, dict):
                parts.append(f"logits in {dtype}: max |Δ| {found['max_difference']:.1e}, "
                             f"mean {found['mean_difference']:.1e}, same best token at "
                             f"{found['same_best_token']:.1%} of {len(certificate['text']['ids'])} positions")
        p = certificate["perplexity"]
        chance = "" if p["tells_the_rotary_order"] else " (both near chance, which tells no order)"
        parts.append(f"perplexity {p['destination']:.2f}, source {p['rotary_pairs_in_halves']:.2f}, "
                     f"with the other rotary order {p['rotary_pairs_of_neighbours']:.2f}{chance}")
    if certificate["tokenizer"]:
        same = "decode to the text" if certificate["tokenizer"]["decodes_to_the_text"] else "as the source's"
        parts.append(f"tokenizer: {certificate['tokenizer']['ids']} ids equal, {same}")
    return f"certificate {certificate['verdict']}: " + "; ".join(parts)


# ---- files -----------------------------------------------------------------------------------------------------------


def place(destination: Path) -> Path:
    """Where the certificate of a folder or file lies."""
    return destination / NAME if destination.is_dir() else destination.with_name(f"{destination.name}.{NAME}")


def hashes(source: Source) -> dict[str, dict[str, Any]]:
    folder = source.path if source.path.is_dir() else source.path.parent
    return {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(source.paths())}


def _sha256(path: Path) -> str:
    running = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            running.update(piece)
    return running.hexdigest()


def sealed(certificate: dict[str, Any]) -> bytes:
    """The file's bytes; the last field is the sha256 of what the file would be without it."""
    return to_json(certificate | {"seal": hashlib.sha256(to_json(certificate)).hexdigest()})


def _unsealed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, so there is nothing to verify by; convert again to get one")
    raw = path.read_bytes()
    try:
        certificate = json.loads(raw)
        certificate.pop("seal")
        whole = sealed(certificate) == raw
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole or certificate.get("certificate") != VERSION or not FIELDS <= certificate.keys():
        raise RuntimeError(f"{path}: the certificate itself was changed, or is of another version")
    return certificate


def verify(path: str | Path) -> dict[str, Any]:
    """Prove the destination of an earlier conversion again, and give its certificate.

    Raises RuntimeError, naming the file or tensor, for any byte that differs, and for missing and added files;
    FileNotFoundError without a certificate.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    certificate = _unsealed(place(path))
    _same_files(path, certificate["destination"]["files"])
    made = open_source(path)
    for entry in certificate["tensors"]:
        if digest([made.read(entry["name"])]) != entry["destination"]["sha256"]:
            raise RuntimeError(f"{path}: {entry['name']} is read otherwise than when it was certified")
    if certificate["tokenizer"]:
        now, then = _fingerprint(made.tokenizer), certificate["tokenizer"]
        if now["text_sha256"] == then["text_sha256"] and now["ids_sha256"] != then["ids_sha256"]:
            raise RuntimeError(f"{path}: the tokenizer gives other ids than when it was certified")
    if certificate["logits"]:
        ids, rows = torch.tensor(certificate["text"]["ids"]), certificate["text"]["rows"]
        now = _samples(read_as_user(path, Passage(list(ids.split(rows)), ""), torch.float32))
        worst = float((torch.tensor(now) - torch.tensor(certificate["logits"]["samples"])).abs().max())
        if not worst <= certificate["logits"]["tolerance"]:
            raise RuntimeError(f"{path}: logits differ by {worst:.2e} from those that were certified")
    return certificate


def _same_files(path: Path, recorded: dict[str, dict[str, Any]]) -> None:
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        present = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()} - {NAME}
        if added := sorted(present - recorded.keys()):
            raise RuntimeError(f"{path / added[0]} was not there when the folder was certified")
    for name, facts in recorded.items():
        if not (folder / name).is_file():
            raise RuntimeError(f"{folder / name} is missing; the certificate names it")
        if _sha256(folder / name) != facts["sha256"]:
            raise RuntimeError(f"{folder / name} was changed: its sha256 is not the one in the certificate")
