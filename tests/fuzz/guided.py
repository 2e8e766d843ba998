"""The same mutants chosen by atheris, which prefers those that reach new lines: a process for a reader.

    python -m tests.fuzz.guided READER FOLDER [flags of libFuzzer]

Everything runs in this process, so the first fault ends it. FOLDER holds the valid files, written before.
"""

import random
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llama", "tokenizer", "weights"]):
    import torch

    from tests.fuzz.__main__ import outcome
    from tests.fuzz.mutate import mutant
    from tests.fuzz.readers import readers


def main() -> None:
    name, flags = sys.argv[1], [sys.argv[0], *sys.argv[3:]]
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp())
    reader = next(reader for reader in readers(place) if reader.name == name)
    corpus, folder = place / "corpus", place / "mutant"
    corpus.mkdir()
    shutil.copy(reader.folder / reader.file, corpus)
    shutil.copytree(reader.folder, folder)

    def read(content: bytes) -> None:
        (folder / reader.file).write_bytes(content)
        said = outcome(reader, folder)
        if said.startswith("fault"):
            raise AssertionError(said)

    def change(content: bytes, limit: int, seed: int) -> bytes:
        return mutant(content, reader.kind, random.Random(seed))[:limit]

    atheris.Setup([*flags, "-max_len=2000000", str(corpus)], read, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
