from pathlib import Path

import pytest

from llama.fast.table import TABLE, markdown

HOME = Path(__file__).resolve().parent.parent
COMPUTES_NOTHING = ("__init__", "agreement", "numbers", "table", "huge_pages")


def test_two_ways_the_page_shows_the_table():
    assert markdown() in (HOME / "docs" / "fast.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("place, below", [(place, below) for row in TABLE for place, below in (
    (row.definition, "llama"), (row.fast, "llama"), (row.test, "tests"))])
def test_property_every_name_of_the_table_is_defined_in_its_file(place, below):
    file, name = place.split(": ")
    text = (HOME / below / file).read_text(encoding="utf-8")
    assert any(f"{kind} {name}{end}" in text for kind in ("def", "class") for end in ("(", ":"))


def test_property_every_file_with_a_fast_version_has_a_row():
    files = {path.stem for path in (HOME / "llama" / "fast").glob("*.py")} - set(COMPUTES_NOTHING)
    assert files == {row.fast.split(": ")[0].removeprefix("fast/").removesuffix(".py") for row in TABLE
                     if row.fast.startswith("fast/")}
