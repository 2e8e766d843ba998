"""`make compat`: what is asked for, what cannot be had, and how outcomes are counted. No environment is made here."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests import compat

TESTS = """
import pytest

def test_good():
    pass

@pytest.mark.skip(reason="an extra | is missing")
@pytest.mark.parametrize("x", [1, 2])
def test_left_out(x):
    pass

def test_bad():
    assert False

@pytest.fixture
def broken():
    raise ValueError

def test_with_a_broken_fixture(broken):
    pass
"""


def test_worked_example_outcomes(tmp_path):
    (tmp_path / "test_x.py").write_text(TESTS, encoding="utf-8")
    subprocess.run([sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=report.xml"],
                   cwd=tmp_path, capture_output=True)
    assert compat.outcome(tmp_path / "report.xml") == compat.Outcome(
        1, ("test_x.py::test_bad", "test_x.py::test_with_a_broken_fixture"), Counter({"an extra | is missing": 2}))


def test_worked_example_what_pip_is_asked_for():
    assert compat.requirements("2.6.0", oldest=True)[:3] == ["torch==2.6.0", "numpy==1.26", "sentencepiece==0.2.3"]
    newest = compat.requirements(compat.NEWEST, oldest=False)
    assert newest[:2] == ["torch", "numpy>=1.26"] and "pytest>=8" in newest


def test_property_pairs_cover_what_is_promised():
    """From the floor of pyproject.toml on; the oldest first, for it takes the oldest of all packages."""
    text = (compat.HOME / "pyproject.toml").read_text(encoding="utf-8")
    python, torch = compat.PAIRS[0]
    assert f'requires-python = ">={python}"' in text and f'"torch>={torch.removesuffix(".0")},' in text
    assert {python for python, _ in compat.PAIRS} == {"3.10", "3.11", "3.12", "3.13"}
    assert {torch for _, torch in compat.PAIRS} == {"2.6.0", "2.9.1", compat.NEWEST}
    for line in compat.requirements(torch, oldest=False)[1:4]:
        assert f'"{line}"' in text                                  # one floor, not two


def test_refusal_of_what_is_not_there_is_a_row(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["compat", "--python", "3.99", "--torch", "2.6.0"])
    assert compat.main() == 1
    assert "not to be had: nothing called python3.99 starts here" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script for sh")
def test_refusal_of_what_pip_does_not_find(monkeypatch, tmp_path):
    """pip is asked where it finds nothing: no index, and an empty folder. The environment is a stand-in for one, whose
    making takes half a minute: an interpreter that is this one.
    """
    stands_in = tmp_path / "stands_in.py"
    stands_in.write_text(f"""if True:
        import os, sys
        os.makedirs(sys.argv[3] + "/bin")
        with open(sys.argv[3] + "/bin/python", "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\\nexec "{sys.executable}" "$@"\\n')
        os.chmod(file.name, 0o700)""", encoding="utf-8")
    monkeypatch.setattr(compat, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(compat, "starts", lambda python: [sys.executable, str(stands_in)])
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(tmp_path)), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    with pytest.raises(compat.NotToBeHad, match="^pip: .*torch==2.6.0"):
        compat.environment("3.11", "2.6.0")
    assert not list((tmp_path / "environments").iterdir())
