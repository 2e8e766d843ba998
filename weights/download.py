"""From a hub to a folder, whole or not at all: which files, room for them, parts that are gone on from, sums, a record.

The files that a model or an adapter is read from, and no others: nothing in a folder, no program. Each is kept only if
it has the size and the sum that the hub gives for it; the folder gets its name when all are there, with fetched.json,
which says of what commit they are. What had come before a connection was cut, or Ctrl-C, lies in weights/.cache/hub and
is gone on from.

Try: leave out the comparison of sums in `_download`; tests/test_download.py (test_refusal_of_a_wrong_sum) fails.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import json
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama.runtime.progress import Progress
from llama.runtime.room import check_disk, size
from llama.runtime.terminal import say
from weights.formats.atomic_write import alone, atomic_folder
from weights.formats.paths import home, shown
from weights.formats.sources import KEPT_FILES
from weights.hub import WAITS, Cut, File, Listing, Repository, ask, listing_of, with_sum

# What is fetched: beside these, the first of the weights that there is, in the order in which folders are read.
SMALL_FILES = {*KEPT_FILES, "config.json", "adapter_config.json", "chat_template.json", "quantize_config.json"}
SMALL = re.compile(r"[\w.-]+\.tiktoken|(LICEN[CS]E|NOTICE|USE_POLICY)([-_]\w+)?(\.txt|\.md)?", re.ASCII | re.IGNORECASE)
MODEL_WEIGHTS = (r"model\.safetensors", r"model(-\d+-of-\d+\.safetensors|\.safetensors\.index\.json)",
                 r"pytorch_model\.bin", r"pytorch_model(-\d+-of-\d+\.bin|\.bin\.index\.json)")
ADAPTER_WEIGHTS = (r"adapter_model\.safetensors", r"adapter_model\.bin")

RECORD = "fetched.json"
BLOCK = 1 << 20


def wanted(names: list[str]) -> tuple[list[str], str]:
    """Of all files, those that a model is read from, and the folder of its kind: "weights", "adapters", or "".

    >>> wanted(["model.safetensors", "pytorch_model.bin", "config.json", "modeling.py", "onnx/model.onnx"])
    (['config.json', 'model.safetensors'], 'weights')
    """
    small = [name for name in names if name in SMALL_FILES or SMALL.fullmatch(name)]
    for config, kind, forms in (("config.json", "weights", MODEL_WEIGHTS),
                                ("adapter_config.json", "adapters", ADAPTER_WEIGHTS)):
        for form in forms:
            tensors = [name for name in names if re.fullmatch(form, name, re.ASCII)]
            if config in names and any(not name.endswith(".json") for name in tensors):
                return sorted({*small, *tensors}), kind
    return [], ""


# ---- fetching --------------------------------------------------------------------------------------------------------


def here(repository: Repository) -> Path | None:
    """The folder that holds it at this revision, if it has been fetched; its files may have been changed since."""
    for kind in ("weights", "adapters"):
        folder = home() / kind / repository.name.rpartition("/")[2]
        record = _record(folder)
        if record.get("repository") == f"{repository.key}:{repository.name}" and (
                repository.revision == record.get("revision")
                or len(repository.revision) >= 7 and str(record.get("commit")).startswith(repository.revision)):
            return folder
    return None


def fetched(address: str) -> Path | None:
    """The same for an address, or what may be none."""
    with contextlib.suppress(ValueError):
        return here(Repository.of(address))
    return None


def fetch(address: str, *, kind: str = "", force: bool = False) -> Path:
    """The folder of a model or an adapter on a hub; nothing is asked of the hub where it has been fetched before.

    kind   "weights" or "adapters", if only that will do
    force  fetch it again, in place of what was fetched

    Raises ValueError where it cannot be had, RuntimeError where no connection lasts.
    """
    repository = Repository.of(address)
    if not force and (folder := here(repository)):
        say(f"{address} is here already: {shown(folder)}, commit {_record(folder)['commit'] or 'unknown'}")
        _check_kind(folder.parent.name, kind, address)
        return folder
    listing = listing_of(repository)
    there = {file.name: file for file in listing.files}
    names, found = wanted(list(there))
    if not found:
        raise ValueError(_no_model(repository, list(there)))
    _check_kind(found, kind, address)
    folder = home() / found / repository.name.rpartition("/")[2]
    _refuse_others(folder, repository, force=force)
    files = [with_sum(repository, listing.commit, there[name]) for name in names]
    listing = dataclasses.replace(listing, files=tuple(sorted(files, key=lambda file: file.size)))
    say(f"{address}: {len(files)} files, {size(listing.size)}, of commit {listing.commit[:12] or 'unknown'}, to "
        f"{shown(folder)}; licence: {listing.licence} ({repository.page})")
    parts = home() / "weights" / ".cache" / "hub" / f"{repository.key}--{repository.name.replace('/', '--')}"
    parts.mkdir(parents=True, exist_ok=True)
    with alone(parts):
        _download(repository, listing, parts)
        with atomic_folder(folder) as partial:
            for file in files:
                shutil.move(parts / file.part, partial / file.name)
            (partial / RECORD).write_text(json.dumps(_to_record(repository, listing), indent=1, ensure_ascii=False)
                                          + "\n", encoding="utf-8")
        shutil.rmtree(parts, ignore_errors=True)
    say(f"{address} is ready: {shown(folder)}")
    return folder


def _check_kind(found: str, kind: str, address: str) -> None:
    if kind and found != kind:
        what, flag = ("an adapter", "--adapter, and the model below it to --model") if found == "adapters" else \
            ("a model", "--model")
        raise ValueError(f"{address} is {what}; give it to {flag}")


def _no_model(repository: Repository, names: list[str]) -> str:
    packed = [name for name in names if name.endswith(".gguf")]
    if packed:
        return (f"{repository.name} holds GGUF files, of which one is a model; get one from {repository.page} and give "
                f"it to --model: {', '.join(packed[:5])}{', …' if packed[5:] else ''}")
    return (f"{repository.name} holds neither a model (config.json with model*.safetensors or pytorch_model*.bin) nor "
            f"an adapter (adapter_config.json with adapter_model.safetensors); see {repository.page}")


def _refuse_others(folder: Path, repository: Repository, *, force: bool) -> None:
    """Nothing is replaced but what was fetched from this repository, and that only if asked."""
    if not folder.exists():
        return
    record = _record(folder)
    if record.get("repository") != f"{repository.key}:{repository.name}":
        what = f"{record['repository']}, something else" if record else "nothing that was fetched from a hub"
        raise ValueError(f"{shown(folder)} is there and holds {what}; rename it, and fetch {repository.name} then")
    if not force:
        raise ValueError(f"{shown(folder)} holds {repository.name} at {record['revision']} (commit "
                         f"{record['commit']}); name that revision, or have the other in its place: python -m "
                         f"weights.fetch --force {shlex.quote(repository.address)}")


def _download(repository: Repository, listing: Listing, parts: Path) -> None:
    """All files, whole and right, small ones first; what earlier calls left is gone on from."""
    for path in parts.iterdir():
        if path.name not in [file.part for file in listing.files]:  # of another commit
            path.unlink()
    missing = listing.size - sum(path.stat().st_size for path in parts.iterdir())
    check_disk(parts, missing, repository.name, "make room there, and give the same command again")
    progress = Progress(listing.size // 10**6, "MB")
    done, began = 0, listing.size - missing
    for file in listing.files:
        for come in _grow(repository, repository.file_url(listing.commit, file.name), file, parts / file.part):
            speed = (done + come - began) / max(time.monotonic() - progress.started, 1e-3)
            progress.show((done + come) // 10**6, file.name, left=(listing.size - done - come) / max(speed, 1.0))
        done += file.size
        progress.clear()
        if (got := _sum(parts / file.part, file)) != file.sum:
            (parts / file.part).unlink()
            raise ValueError(f"{file.name} has come with the sum {got}, not {file.sum} as {repository.endpoint} "
                             "promised, and was not kept; give the same command again, and if it stays so, name "
                             f"another mirror in {repository.hub.elsewhere[0]}")


def _grow(repository: Repository, url: str, file: File, part: Path) -> Iterator[int]:
    """Append to `part` until it is as long as the file, over any number of connections; gives its size now and then.

    Raises RuntimeError after a few connections that brought nothing.
    """
    part.touch()
    waits, most = iter(WAITS), part.stat().st_size
    while (come := part.stat().st_size) != file.size:
        before = come if come < file.size else 0                    # longer than it may be: from the beginning
        with contextlib.suppress(Cut), ask(repository, url, start=before) as response:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {before}-"):
                before = 0                                          # the whole file, whatever was asked for
            come = before
            with open(part, "r+b") as kept:
                kept.truncate(before)
                kept.seek(before)
                for block in _blocks(response):
                    come += kept.write(block)
                    if come > file.size:                            # it will never end, or is something else
                        break
                    yield come
        if come > file.size:
            part.unlink()
            raise ValueError(f"{file.name} is longer than the {file.size:,} bytes that {repository.endpoint} promised, "
                             "and was not kept; give the same command again")
        if come > most:                                             # a hub that knows no Range begins anew each time
            waits, most = iter(WAITS), come
        elif (wait := next(waits, None)) is None:
            raise RuntimeError(f"{file.name} came to {come:,} of {file.size:,} bytes, and no connection brings more; "
                               "look at the network, and give the same command again: what has come is kept")
        else:
            time.sleep(wait)


def _blocks(response: Any) -> Iterator[bytes]:
    """What comes until the connection ends, rightly or not."""
    try:
        while block := response.read(BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise Cut(error) from None


def _sum(path: Path, file: File) -> str:
    """sha256 of the content, or git's name of it: sha1 of «blob SIZE», a zero byte, and the content."""
    digest = hashlib.sha256() if len(file.sum) == 64 else hashlib.sha1(f"blob {file.size}\0".encode())
    with open(path, "rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _to_record(repository: Repository, listing: Listing) -> dict[str, Any]:
    return {"repository": f"{repository.key}:{repository.name}", "revision": repository.revision,
            "commit": listing.commit, "licence": listing.licence, "from": repository.endpoint,
            "files": {file.name: {"size": file.size, "sha256" if len(file.sum) == 64 else "git-sha1": file.sum}
                      for file in listing.files}}


def _record(folder: Path) -> dict[str, Any]:
    """What `_to_record` has written there; {} where it has not."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if isinstance(record, dict) and {"repository", "revision", "commit"} <= record.keys():
            return record
    return {}
