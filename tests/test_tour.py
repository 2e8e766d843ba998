"""The tour keeps its promises: code, numbers, pictures and broken runs are those of the program as it stands."""

import importlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from docs.tour import draw, renew, runs

HERE = renew.HERE
PAGES = renew.pages()
EXERCISES = sorted((HERE / "exercises").glob("test_*.py"))
NEEDED = ("code", "example", "prints", "edit", "test")


def _name(path):
    return path.name


@pytest.mark.parametrize("page", [*PAGES, *renew.pages("zh")], ids=_name)
def test_two_ways_pages_equal_what_they_were_made_from(page):
    assert renew.renewed(page) == page.read_text(encoding="utf-8"), (
        f"{page.name} no longer is what the program says; python -m docs.tour.renew puts it right")


@pytest.mark.parametrize("index", renew.INDEXES, ids=_name)
def test_two_ways_the_index_lists_the_pages(index):
    assert renew.renewed_index(index) == index.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_property_every_page_is_whole_in_both_languages(page):
    def marks(path):
        return [found[:2] for found in renew.MARKED.findall(path.read_text(encoding="utf-8"))]

    assert marks(page) == marks(page.with_suffix(".zh.md"))
    assert set(NEEDED) <= {kind for kind, _ in marks(page)}
    number = page.name[:2]
    for path in (page, page.with_suffix(".zh.md")):
        text = path.read_text(encoding="utf-8")
        assert f"(pictures/{page.stem}.svg)" in text
        assert re.search(rf"^python -m pytest docs/tour/exercises/test_{number}_\w+\.py$", text, re.M)
        assert "```text\n```" not in text and "(solutions/" in text


@pytest.mark.parametrize("name", draw.DRAWINGS)
def test_two_ways_pictures_equal_what_is_drawn(name):
    drawn = draw.DRAWINGS[name]().svg()
    assert drawn == (draw.PICTURES / f"{name}.svg").read_text(encoding="utf-8"), "python -m docs.tour.draw"
    assert len(drawn.encode()) < 15_000
    ElementTree.fromstring(drawn)


def test_property_every_page_has_its_picture_and_every_picture_its_page():
    assert sorted(draw.DRAWINGS) == [page.stem for page in PAGES]
    assert sorted(draw.DRAWINGS) == sorted(path.stem for path in draw.PICTURES.iterdir())


def _outcomes(test_file, monkeypatch, solved):
    """What each test of an exercise raises, of the stub as it is or with the solution in its place."""
    source = test_file.read_text(encoding="utf-8")
    name = re.search(r"from docs\.tour\.exercises\.(\w+) import", source)[1]
    module = importlib.import_module(f"docs.tour.{'solutions' if solved else 'exercises'}.{name}")
    names = {}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, f"docs.tour.exercises.{name}", module)
        exec(compile(source, str(test_file), "exec"), names)
    outcomes = {}
    for key, test in names.items():
        if key.startswith("test_"):
            try:
                test()
                outcomes[key] = None
            except (AssertionError, NotImplementedError) as error:
                outcomes[key] = error
    return outcomes


@pytest.mark.parametrize("exercise", EXERCISES, ids=_name)
def test_property_a_solution_passes_and_the_stub_does_not(exercise, monkeypatch):
    solved = _outcomes(exercise, monkeypatch, True)
    assert len(solved) >= 2 and not any(solved.values()), solved
    stub = _outcomes(exercise, monkeypatch, False)
    assert all(isinstance(error, NotImplementedError) for error in stub.values()), stub


def test_property_every_page_has_its_exercise():
    assert [path.name[5:7] for path in EXERCISES] == [page.name[:2] for page in PAGES]
    for folder in ("exercises", "solutions"):
        assert len([path for path in (HERE / folder).glob("*.py") if not path.name.startswith("test_")]) == len(PAGES)


def test_property_kept_runs_are_of_these_edits():
    old = [name for name in runs.RUNS if runs.stale(name)]
    assert not old, f"python -m docs.tour.runs has to run anew for {old}"
    assert set(runs.kept()) == set(runs.RUNS)
    for name, run in runs.kept().items():
        assert run["before"] and run["after"] and run["before"] != run["after"], name


def test_refusal_of_marks_that_name_nothing(tmp_path):
    for place, words in (("llama/model.py NoSuch", "defines no NoSuch"),
                         ('llama/model.py MLP.forward from "nothing" to "nothing"', "no lines that begin so")):
        with pytest.raises(ValueError, match=words):
            renew.source_of(place)
    with pytest.raises(ValueError, match="has no edit 'of this name'"):
        renew.mutant("of this name")
    page = Path(tmp_path / "01-a.md")
    page.write_text("# 1\n\n\n<!-- code: llama/model.py MLP.forward -->\n\nno block\n", encoding="utf-8")
    with pytest.raises(ValueError, match="1 marks, but 0 with a block"):
        renew.renewed(page)


def test_worked_example_source_without_its_docstring_and_between_two_lines():
    assert renew.source_of("llama/model.py MLP.forward") == (
        "def forward(self, x: Tensor) -> Tensor:\n"
        "    return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))\n")
    assert '"""' not in renew.source_of("llama/model.py apply_rotary")
    assert renew.source_of('llama/model.py Block.forward from "x = x +" to "return"').count("\n") == 2
