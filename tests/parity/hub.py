"""A hub as Hugging Face's own client sees it, and as weights/hub.py does: the server of our tests answers both, so that
it is also shown to be a hub in the eyes of that client.
"""

import hashlib
import os
from collections.abc import Iterator
from unittest import mock

from tests.hub_server import COMMIT, HubServer
from tests.parity.judges import Check, Judges
from weights.hub import Repository, ask, listing_of, with_sum

JUDGE = "judge_hub.py"
FILES = {"config.json": b'{"a": 1}', "LICENSE": b"", "tokenizer.model": bytes(range(256)),
         "model.safetensors": bytes(range(256)) * 400}


def checks(judges: Judges) -> Iterator[Check]:
    server = HubServer(FILES, large=["tokenizer.model", "model.safetensors"])
    try:
        theirs = judges.ask(JUDGE, what="files", endpoint=server.url(), name="ORG/NAME", commit=COMMIT,
                            folder=str(judges.folder / "hub"))
        with mock.patch.dict(os.environ, {"HF_ENDPOINT": server.url(), "HF_TOKEN": "", "NO_PROXY": "*"}):
            ours = files(Repository.of("hf:ORG/NAME"))
    finally:
        server.close()
    differ = sum(ours.get(name) != theirs.get(name) for name in FILES)
    yield Check("hub: commit, size, sum and content of each file", "huggingface_hub", f"{len(FILES)} files",
                f"{differ} differ", not differ)


def files(repository: Repository) -> dict[str, list]:
    """Of each file: commit, size, sum as its headers tell it, sha256 of what comes."""
    found = {}
    for file in listing_of(repository).files:
        with ask(repository, repository.file_url(COMMIT, file.name)) as response:
            content = hashlib.sha256(response.read()).hexdigest()
        told = with_sum(repository, COMMIT, file)
        found[file.name] = [listing_of(repository).commit, told.size, told.sum, content]
    return found
