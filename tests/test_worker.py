import sys
from pathlib import Path

import pytest

from llama.runtime import worker
from llama.runtime.worker import Engine, peak_memory

SCRIPT = """
def works(settings):
    print("a library that talks", flush=True)
    if settings["refuse"]:
        import sys
        sys.exit(print("this model is none of ours; give another", file=sys.stderr) or 2)
    def double(x):
        print("and goes on talking")
        if x < 0:
            raise ArithmeticError("below zero")
        return {"twice": 2 * x}
    return {"double": double}
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return lambda refuse: [sys.executable, "-I", str(Path(worker.__file__)), str(script), f'{{"refuse": {refuse}}}']


def test_two_ways_asked_and_called(command):
    with Engine("doubler", command("false")) as process:
        assert [process.ask("double", x=x)["twice"] for x in (1, 5, 3)] == [2, 10, 6]
        assert process.ask("memory")["bytes"] > 1_000_000
        with pytest.raises(RuntimeError, match="doubler ended with 1: .*ArithmeticError: below zero"):
            process.ask("double", x=-1)
        with pytest.raises(RuntimeError, match="doubler ended with 1"):
            process.ask("double", x=1)
    assert process.process.returncode is not None


def test_refusal_is_the_engines_own_sentence(command):
    with pytest.raises(ValueError, match="^this model is none of ours; give another$"), Engine("it", command("true")):
        pass


def test_property_peak_memory_grows_by_what_is_touched():
    before = peak_memory()
    held = b"x" * 300_000_000
    assert peak_memory() - before > 100_000_000 or before > 1_000_000_000, len(held)
