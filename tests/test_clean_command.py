"""`python -m llama.clean`: texts of files in, texts and a report out; whole, or nothing."""

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama.clean import __main__ as clean
from llama.clean.near_duplicates import NearDuplicates
from llama.clean.sources import Texts
from llama.clean.steps import CleanConfig, Cleaner, held_out
from llama.datasets.language_modeling import LanguageModelingDataset
from weights.catalogue import CATALOGUE
from weights.formats.paths import home, resolve

HOME = Path(__file__).resolve().parent.parent
NEWS = [f"{chr(0x4E00 + 7 * i)}地今天发生第{i}件事，记者从现场报道，人人都说{chr(0x5200 + 11 * i)}好。"
        for i in range(300)]


@pytest.fixture
def news(tmp_path):
    path = tmp_path / "news.txt"
    path.write_text("\n\n".join(NEWS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["clean", *map(str, arguments)])
        clean.main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run


def _documents(path):
    return [example["text"] for example in LanguageModelingDataset(path)]


def _records(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _there(folder):
    return sorted(path.name for path in folder.iterdir())


def test_worked_example_a_report_says_what_became_of_every_text(run, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in [
        {"text": "今天天气好１", "label": "a"}, {"text": "今天天气好1", "label": "b"}, {"text": " "},
        {"text": "\ufeff明天\r\n下雨", "id": 3}]), encoding="utf-8")
    told = json.loads(run(data, "--output", "new/out.jsonl", "--half-width", "--json"))
    assert _records("new/out.jsonl") == [{"text": "今天天气好1", "label": "a"}, {"text": "明天\n下雨", "id": 3}]
    assert told["read"] == {"texts": 4, "characters": 20} and told["kept"] == {"texts": 2, "characters": 11}
    assert told["dropped"] == {"too short": {"texts": 1, "examples": [f"{data}:3"]},
                               "duplicate": {"texts": 1, "examples": [f"{data}:2 «今天天气好1»"]}}
    assert told["changed"]["half width"]["texts"] == 1
    assert told["scripts"] == {"Chinese": 0.8182, "digits": 0.0909, "blanks": 0.0909}
    assert told["written"] == {"new/out.jsonl": told["kept"]}
    shown = run(data, "--output", "new/out.txt", "--half-width")
    assert f"dropped   too short         1  {data}:3\n          duplicate         1  {data}:2 «今天天气好1»\n" in shown
    assert "kept      2 texts, 11 characters (50.0% of the texts, 55.0% of the characters)\n" in shown
    assert (tmp_path / "new" / "out.txt").read_text(encoding="utf-8") == "今天天气好1\n\n明天\n下雨\n\n"


@pytest.mark.parametrize("flags", [[], ["--min-characters", "28"], ["--near-duplicates", "0.5"], ["--min-han", "0.9"],
                                   ["--keep-duplicates"], ["--boilerplate", "2", "--max-symbols", "0.2"]])
def test_property_what_is_read_is_kept_or_dropped(run, news, flags, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("\n\n".join([*NEWS[::3], "short", "!?!?!? !?!?", NEWS[5][:-3], "版权所有", "版权所有 。"]),
                    encoding="utf-8")
    told = json.loads(run(news, more, "--output", "out.jsonl", "--split", "0.1", "--json", *flags))
    assert told["read"]["texts"] == 300 + 105
    assert told["read"]["texts"] == told["kept"]["texts"] + sum(each["texts"] for each in told["dropped"].values())
    for unit in ("texts", "characters"):
        assert told["kept"][unit] == sum(each[unit] for each in told["written"].values())
    assert told["kept"]["texts"] == sum(len(_records(path)) for path in told["written"])
    assert told["kept"]["characters"] == sum(len(each["text"]) for path in told["written"] for each in _records(path))


def test_two_ways_text_and_lines_of_json_packed_and_plain_hold_the_same(run, news):
    for name in ("a.txt", "a.jsonl", "a.txt.gz", "a.txt.xz", "a.jsonl.bz2"):
        run(news, "--output", name)
        assert [text.text for text in Texts(name)] == NEWS
    assert _documents("a.txt") == _documents("a.jsonl") == _documents("a.txt.gz") == NEWS


def test_property_the_same_files_become_the_same_bytes(run, news, tmp_path):
    arguments = [news, "--split", "0.1", "--near-duplicates", "0.8", "--output"]
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        run(*arguments, name)
        time.sleep(0.01)
    assert Path("a.jsonl.gz").read_bytes() == Path("b.jsonl.gz").read_bytes()
    assert gzip.decompress(Path("a-held-out.jsonl.gz").read_bytes()).count(b"\n") > 10


def test_property_a_split_takes_whole_texts_and_nothing_alike_is_on_both_sides(run, tmp_path):
    """What differs in blanks, width and punctuation goes with its like, and where near-duplicates are looked for, no
    two that are alike are left.
    """
    alike = [text for news in NEWS for text in (news, f" {news}！", news.replace("第", "　第"))]
    Path("a.txt").write_text("\n\n".join(alike), encoding="utf-8")
    run("a.txt", "--output", "b.txt", "--split", "0.2", "--keep-duplicates")
    learned, held = _documents("b.txt"), _documents("b-held-out.txt")
    assert len(learned) + len(held) == 900 and 0.1 < len(held) / 900 < 0.3 and len(held) % 3 == 0
    assert {text[0] for text in learned} & {text[0] for text in held} == set()
    run("a.txt", "--output", "c.txt", "--split", "0.2", "--near-duplicates", "0.6")
    learned, held, near = _documents("c.txt"), _documents("c-held-out.txt"), NearDuplicates(0.6)
    assert len(learned) > 5 < len(held) and not any(near.seen(text) for text in [*learned, *held])


def test_property_the_split_is_of_the_text_and_not_of_its_place():
    assert [held_out(text, 0.3) for text in NEWS] == [held_out(f"　{text} ", 0.3) for text in NEWS]
    small, large = ({text for text in NEWS if held_out(text, share)} for share in (0.1, 0.3))
    assert small < large and not held_out("甲", 0.0)


def test_worked_example_characters_by_fetched_tables(run, tmp_path, monkeypatch):
    assert resolve("data/opencc", "data") in (home() / CATALOGUE["opencc"].folder, Path("data/opencc"))
    Path("a.txt").write_text("漢語", encoding="utf-8")
    monkeypatch.setattr("weights.formats.paths.home", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="t2s.json: there is no such file; python -m weights.fetch opencc"):
        run("a.txt", "--output", "b.txt", "--characters", "t2s")
    (tmp_path / "data" / "opencc" / "config").mkdir(parents=True)
    (tmp_path / "data" / "opencc" / "words.txt").write_text("漢\t汉\n語\t语\n", encoding="utf-8")
    (tmp_path / "data" / "opencc" / "config" / "t2s.json").write_text(json.dumps(
        {"conversion_chain": [{"dict": {"type": "text", "file": "words.txt"}}]}), encoding="utf-8")
    run("a.txt", "--output", "b.txt", "--characters", "t2s")
    assert _documents("b.txt") == ["汉语"]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command, words", [
    ("news.txt --output a.csv", "--output a.csv: texts are written as .jsonl or .txt, also packed as .gz, .xz, .bz2"),
    ("news.txt --output news.txt --overwrite", "news.txt is one of the files that are read, and would be replaced"),
    ("news.txt --output link.txt --overwrite", "link.txt is one of the files that are read"),
    ("news.txt old.txt --output old.txt", "old.txt is one of the files that are read"),
    ("news.txt x-held-out.txt --output x.txt --split 0.1 --overwrite", "x-held-out.txt is one of the files that"),
    ("news.txt --output x.txt --split 0.1", "x-held-out.txt exists already; give --overwrite to replace it"),
    ("news.txt --output old.txt", "old.txt exists already; give --overwrite to replace it, or another --output"),
    ("news.txt --output b.txt --min-characters 99", "b.txt would be empty: of 300 texts 0 were kept .dropped: too sho"),
    ("news.txt --output b.txt --split 1e-9", "b-held-out.txt would be empty: of 300 texts 300 were kept; .* --split"),
    ("news.txt news.txt --output b.txt", "news.txt is named twice; name it once"),
    ("blank.txt --output b.txt", "no text was found in blank.txt; give files that hold some"),
    ("blank.txt bad.jsonl --skip-bad --output b.txt", "no text was found in blank.txt, bad.jsonl: bad.jsonl:1: this"),
])
def test_refusal_in_a_sentence_and_nothing_is_written(run, news, tmp_path, command, words):
    os.link(news, "link.txt")
    for name, content in (("old.txt", "旧"), ("x-held-out.txt", "旧"), ("blank.txt", "\n \n"), ("bad.jsonl", "{")):
        Path(name).write_text(content, encoding="utf-8")
    before = _there(tmp_path)
    with pytest.raises(ValueError, match=words):
        run(*command.split())
    assert _there(tmp_path) == before and Path("old.txt").read_text(encoding="utf-8") == "旧"


@pytest.mark.parametrize("stops", [KeyboardInterrupt, ValueError("a.txt:7: wrong"), OSError(28, "No space left"),
                                   SystemExit])
def test_property_whatever_stops_it_nothing_is_left(news, tmp_path, stops):
    outputs = [tmp_path / "out.txt.gz", tmp_path / "out-held-out.txt.gz"]
    outputs[0].write_bytes(b"older")
    cleaner, calls = Cleaner(CleanConfig()), itertools.count()

    def stopped(text, place):
        if next(calls) == 200:
            raise stops
        return cleaner(text, place)

    stopped.read, stopped.kept, stopped.steps = cleaner.read, cleaner.kept, cleaner.steps
    with pytest.raises((BaseException,)) as raised:
        clean.clean(Texts(news), stopped, outputs, 0.2)
    if isinstance(stops, OSError):
        assert str(raised.value) == f"{outputs[0]} cannot be written: No space left; nothing of it was kept"
    assert _there(tmp_path) == ["news.txt", "out.txt.gz"] and outputs[0].read_bytes() == b"older"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_property_ctrl_c_and_a_full_disk_leave_no_file(tmp_path):
    """The command itself, stopped once it has begun to write."""
    big = tmp_path / "big.txt"
    big.write_text("\n\n".join(f"{text}{i}" for i in range(100) for text in NEWS), encoding="utf-8")
    command = [sys.executable, "-m", "llama.clean", str(big), "--output", "out.txt", "--near-duplicates", "0.9"]
    environment = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    for signals, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        working = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, encoding="utf-8")
        while not any(name.endswith(".partial") for name in os.listdir(tmp_path)):
            assert working.poll() is None
            time.sleep(0.01)
        working.send_signal(signals)
        assert working.communicate() == (None, "\n") and working.returncode == code
        assert _there(tmp_path) == ["big.txt"]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); import runpy, sys; " \
              f"sys.argv = {command[2:]!r}; runpy.run_module('llama.clean', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", limited.replace(", '--near-duplicates', '0.9'", "")], cwd=tmp_path,
                          env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and done.stderr.endswith(
        "out.txt cannot be written: File too large; nothing of it was kept\n") and done.stderr.count("\n") == 1
    assert _there(tmp_path) == ["big.txt"]


def test_property_a_terminal_sees_how_far_it_is_and_a_log_does_not(news, monkeypatch, capsys):
    monkeypatch.setattr("llama.clean.sources.EVERY", 0)
    assert len(list(Texts(news).watched("cleaning"))) == 300 and capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert len(list(Texts(news).watched("cleaning"))) == 300
    shown = capsys.readouterr().err
    assert "cleaning, MB 0/1 17 texts · " in shown and shown.endswith("\r\x1b[K")
