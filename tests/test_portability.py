"""What other systems do otherwise, held by reading the sources: encodings, file names, line ends, what Unix alone has.

What can be emulated is run: a C locale, other code pages, carriage returns, a clone in a folder with blanks and Chinese
letters. What is only reasoned about stands in docs/compat.md.
"""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama.checkpoint import load_model, save_model
from llama.datasets.columns import ColumnDataset
from llama.datasets.instructions import InstructionDataset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.records import RecordDataset
from llama.datasets.squad import SquadDataset
from llama.lora import load_adapter
from llama.runtime import cli
from tests.mutants import copied
from tokenizer.tiktoken_ranks import from_ranks

HOME = Path(__file__).resolve().parent.parent
FOLDERS = ("llama", "tokenizer", "weights/formats", "examples", "tests")
PATTERNS = ("*.py", "weights/*.py", *(f"{folder}/**/*.py" for folder in FOLDERS))       # models lie in weights/, too
SOURCES = {path.relative_to(HOME).as_posix(): path for pattern in PATTERNS for path in HOME.glob(pattern)}

# What Windows lacks. The file asks first: by hasattr, by the system's name, or by catching the ImportError.
UNIX = {"os.fork", "os.getuid", "os.geteuid", "os.sysconf", "os.killpg", "os.setsid", "os.mkfifo", "signal.SIGHUP",
        "signal.SIGKILL", "signal.SIGALRM", "signal.alarm", "select.poll", "mmap.MAP_PRIVATE", "mmap.MADV_HUGEPAGE",
        "fcntl", "resource", "pwd", "grp", "pty", "termios", "tty"}
ASKED = re.compile(r"hasattr\(|os\.name|sys\.platform|except ImportError|suppress\(ImportError\)")
ALLOWED = {("llama/training/memory_estimate.py", "os.sysconf"),     # only behind a file in /proc
           ("weights/formats/atomic_write.py", "os.rename")}        # of folders, to names that are free


def of_call(node):
    """What is wrong with a call wherever it stands."""
    words = {keyword.arg: keyword.value for keyword in node.keywords}
    before, _, name = ast.unparse(node.func).rpartition(".")
    if None in words or "encoding" in words:                        # `**more` may hold it
        return
    if name in ("read_text", "write_text") and len(node.args) <= (name == "write_text"):
        yield f"{name} without an encoding"
    elif name in ("open", "fdopen"):
        place = 0 if before and name == "open" else 1               # a path's own `open` begins with the mode
        mode = node.args[place] if len(node.args) > place else words.get("mode", ast.Constant("r"))
        if "b" not in mode.value if isinstance(mode, ast.Constant) else place:      # else another class's own `open`
            yield f"{name} without an encoding"
    elif name in ("TemporaryFile", "NamedTemporaryFile") and "b" not in ast.unparse((*node.args, ast.Constant("b"))[0]):
        yield f"{name} without an encoding"
    elif before == "subprocess" and {"text", "universal_newlines"} & words.keys():
        yield f"subprocess.{name} of text without an encoding"
    elif name in ("glob", "rglob") and node.args and re.search(r"/['\"]$", ast.unparse(node.args[0])):
        yield "a pattern that ends in a slash finds files, too, before Python 3.11"


def findings(name, text):
    tree, product = ast.parse(text), not name.startswith("tests/")
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (f"{name}:{node.lineno}: {what}" for what in of_call(node))
        elif isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and product and re.match(r"/(tmp|var|dev/shm)\b", str(node.value)):
            yield f"{name}:{node.lineno}: {node.value!r} is no folder on Windows"
    if product:
        used = {each for each in used if (name, each) not in ALLOWED}
        if not ASKED.search(text):
            yield from (f"{name}: {each}, which Windows lacks" for each in sorted(UNIX & used))
        if "os.rename" in used:
            yield f"{name}: os.rename replaces no file on Windows; take os.replace"


@pytest.mark.parametrize("name", SOURCES)
def test_property_no_line_depends_on_the_system(name):
    assert not list(findings(name, SOURCES[name].read_text(encoding="utf-8")))


@pytest.mark.parametrize("line", [
    "open(x)", "open(x, 'w')", "path.open()", "path.read_text()", "path.write_text(x)", "os.fdopen(x, 'w')",
    "open(x, mode)", "tempfile.TemporaryFile('w+')", "subprocess.run(x, text=True)", "path.glob('*/')",
    "path.glob(f'{x}-*/')", "x = '/tmp/x'", "os.fork()", "import fcntl", "os.rename(x, y)"])
def test_property_the_reading_finds_what_would_differ(line):
    assert len(list(findings("x.py", line))) == 1


@pytest.mark.parametrize("line", [
    "open(x, 'rb')", "path.open(encoding='utf-8')", "path.read_text('utf-8')", "path.write_text(x, encoding='utf-8')",
    "tempfile.TemporaryFile()", "subprocess.run(x, encoding='utf-8')", "path.glob('*/config.json')", "os.open(x, y)",
    "self.open(model)",     "if hasattr(os, 'fork'): os.fork()", "tarfile.open(x)", "open(x, **more)"])
def test_property_the_reading_leaves_the_rest_alone(line):
    assert not list(findings("x.py", line))


def test_property_names_that_every_system_can_have():
    """None that Windows forbids, none that differ by case alone, as macOS and Windows see no difference there."""
    if not (HOME / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no clone, or there is no git")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, check=True).stdout.decode()
    names = names.rstrip("\0").split("\0")
    assert len({name.lower() for name in names}) == len(names)
    forbidden = r'[<>:"|?*\\\x00-\x1f]|[. ](/|$)|(^|/)(con|prn|aux|nul|com\d|lpt\d)(\.|/|$)'
    assert not [name for name in names if re.search(forbidden, name, re.IGNORECASE)]
    asked = ["eol", "text", "--", "examples/identity.jsonl", "llama/model.py", "tests/fixtures/models.safetensors"]
    kept = subprocess.run(["git", "check-attr", *asked], cwd=HOME, capture_output=True, check=True).stdout.decode()
    assert kept.count("eol: lf") == 3 and kept.count("text: auto") == 2 and kept.count("text: unset") == 1


# Other encodings, line ends and folders

@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk"])
def test_property_streams_are_utf8_whatever_the_console(encoding, monkeypatch):
    """What comes through a pipe is what goes into one; without `cli.run` it is other signs, or a UnicodeError."""
    streams = [io.TextIOWrapper(io.BytesIO(content), encoding) for content in ("你是谁 é →\n".encode(), b"", b"")]
    for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: print(input()) or print("你好 \ud800", file=sys.stderr))
    assert ended.value.code == 0
    streams[2].flush()
    assert [stream.buffer.getvalue().decode().rstrip() for stream in streams[1:]] == ["你是谁 é →", "你好 ?"]


LINES = {
    "a.txt": (LanguageModelingDataset, "One\ntwo\n\n第三\n"),
    "b.txt": (lambda path: LanguageModelingDataset(path, documents="line"), "One\n第二\n"),
    "c.jsonl": (LanguageModelingDataset, '{"text": "one\\r\\ntwo"}\n\n{"text": "三"}\n'),
    "d.tsv": (RecordDataset, "text\tlabel\none\ta\n二\tb\n"),
    "e.csv": (RecordDataset, 'text,label\n"one, ""two""",a\n"over\ntwo lines",b\n'),
    "f.jsonl": (InstructionDataset, '{"instruction": "one", "output": "二"}\n'),
    "g.json": (InstructionDataset, '[{"instruction": "one",\n "output": "二"}\n]\n'),
    "h.conll": (ColumnDataset, "张 B-PER\n三 I-PER\n\n来 O\n"),
    "i.json": (SquadDataset, '{"data": [{"title": "t", "paragraphs": [\n{"context": "鱼在海", "qas": [{"id": "1", '
                             '"question": "在哪", "answers": [{"text": "海", "answer_start": 2}]}]}]}]}\n'),
    "j.tiktoken": (lambda path: from_ranks(path.read_bytes(), split="llama3").vocabulary(), "YQ== 0\nYg== 1\nYWI= 2\n"),
}


@pytest.mark.parametrize("name", LINES)
def test_two_ways_carriage_returns_change_nothing(name, tmp_path):
    read, text = LINES[name]
    path, found = tmp_path / name, []
    for end in (b"\n", b"\r\n"):
        path.write_bytes(text.encode().replace(b"\n", end))
        found.append(read(path))
    ours, theirs = (each if isinstance(each, dict) else list(each) for each in found)
    assert ours == theirs and ours


DOORS = """
import json, pathlib, runpy, sys
for door, *flags in json.loads(sys.argv[1]):
    sys.argv = [door, "--model", "模 型", "--device", "cpu", *flags]
    try:
        runpy.run_path(str(pathlib.Path(__file__).with_name(door)), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
"""


def test_two_ways_a_clone_in_a_folder_with_blanks_and_chinese_letters(tiny_model, tmp_path):
    """Tuned, saved, proven, found by its name and used, by the doors of that clone."""
    clone = copied(tmp_path / "小 驼 (copy)")
    save_model(tiny_model, clone / "weights" / "模 型")
    (clone / "数 据.jsonl").write_text('{"instruction": "你是谁", "output": "小驼"}\n', encoding="utf-8")

    (clone / "doors.py").write_text(DOORS, encoding="utf-8")
    tune = ["finetune.py", "--lora", "--data", str(clone / "数 据.jsonl"), "--max-steps", "1", "--max-length", "256"]
    write = ["generate.py", "--adapter", "数 据", "--prompt", "你好", "--max-new-tokens", "4", "--temperature", "0"]
    done = subprocess.run([sys.executable, clone / "doors.py", json.dumps([tune, write])], cwd=tmp_path,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    model = load_model(clone / "weights" / "模 型")
    load_adapter(model, clone / "adapters" / "数 据")
    assert done.stdout.endswith(f"你好{model.generate('你好', max_new_tokens=4, temperature=0.0)}\n")
