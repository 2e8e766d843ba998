"""The other engines of `python -m llama.benchmark --peers`: transformers and llama.cpp, in the judges' interpreter.

They read the same model: transformers its folder, llama.cpp files that are written here from it. Their scripts lie in
tests/parity and import nothing of this project.

Try: write every file with the encoding F16; tests/test_peers.py (test_two_ways_traffic_is_what_lies_in_the_file) fails.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama.config import LlamaConfig
from llama.config_json import config_from_dict
from llama.runtime import worker
from weights.fetch import CATALOGUE, MODELS
from weights.formats.gguf import write_gguf
from weights.formats.gguf_file import open_gguf
from weights.formats.paths import home
from weights.formats.sources import Source, open_source

PARITY = ".venv-parity/bin/python"
PEERS = {
    "transformers float32": ("peer_transformers.py", "float32"),
    "transformers bfloat16": ("peer_transformers.py", "bfloat16"),
    "llama.cpp F16": ("peer_llamacpp.py", "F16"),
    "llama.cpp Q8_0": ("peer_llamacpp.py", "Q8_0"),
    "llama.cpp Q4_0": ("peer_llamacpp.py", "Q4_0"),
    "llama.cpp Q4_1": ("peer_llamacpp.py", "Q4_1"),
    "llama.cpp Q4_1 as fetched": ("peer_llamacpp.py", ""),
}


def peers_python(name: str) -> str:
    """The interpreter of the other engines. Raises ValueError if it, or their scripts, are missing."""
    path = Path(name) if Path(name).exists() else home() / name
    if not path.is_file():
        raise ValueError(f"--peers: there is no {name}; make parity makes it, or give --peers the Python of any "
                         "environment that has requirements-parity.txt")
    if not (home() / "tests" / "parity").is_dir():
        raise ValueError(f"--peers: {home()} has no tests/parity, where the other engines' scripts are; run this in a "
                         "clone of the repository")
    return str(path.absolute())                                     # not resolved: a venv is known by its link


def chosen_peers(names: str) -> list[str]:
    """Raises ValueError for a name that is none of PEERS; no name is all of them."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in PEERS]:
        raise ValueError(f"--against {names}: there is no {unknown[0]}; there are {', '.join(PEERS)}")
    return chosen or list(PEERS)


def peer_commands(model: Path, folder: Path, python: str, *, context: int, threads: int) -> dict[str, list[str]]:
    """What starts each of the other engines that can run this model, for texts of up to `context` tokens.

    llama.cpp gets files that are written here, into `folder`.
    """
    commands, source, parity = {}, open_source(model), home() / "tests" / "parity"
    for name, (script, kind) in PEERS.items():
        settings: dict[str, Any] = {"threads": threads}
        if script == "peer_transformers.py":
            if source.kind != "hf":
                continue
            settings |= {"folder": str(model), "dtype": kind}
        else:
            file = written_gguf(source, folder, kind) if kind else fetched_gguf(model)
            if file is None:
                continue
            config = config_from_dict(source.config)
            settings |= {"file": str(file), "context": context} | gguf_traffic(file, config)
        commands[name] = [python, "-I", str(Path(worker.__file__)), str(parity / script),
                          json.dumps(settings)]
    return commands


def written_gguf(source: Source, folder: Path, encoding: str) -> Path:
    path = folder / f"{encoding}.gguf"
    write_gguf(path, source.config, source.tokenizer.vocabulary(), source.ledger, source.tensors(), encoding=encoding,
               name=source.path.name)
    return path


def fetched_gguf(model: Path) -> Path | None:
    """The packed file that a fetched model was made of, if it is still here."""
    for name in MODELS:
        packed = home() / CATALOGUE[name].members[0].path
        if model.resolve() == (home() / CATALOGUE[name].folder).resolve() and packed.is_file():
            return packed
    return None


def gguf_of(command: Sequence[str]) -> str:
    """The GGUF that a peer's command runs; "" for one that runs none."""
    return json.loads(command[-1]).get("file", "") if "worker.py" in " ".join(command) else ""


def gguf_traffic(file: Path, config: LlamaConfig) -> dict[str, int]:
    """Bytes read for a token and for each one before it, whose keys and values llama.cpp keeps in 16 bits."""
    sizes = {name: info.size for name, info in open_gguf(file).tensors.items()}
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight")
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return {"weights": sum(sizes.values()), "cache": cache}


