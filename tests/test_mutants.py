"""The mutants of `make mutants` follow the code: each has its place, and the test that must catch it."""

import pytest

from tests.mutants import HOME, MUTANTS, Mutant, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_property_every_mutant_has_one_place_and_a_test(mutant):
    assert (HOME / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    file, _, test = mutant.test.partition("::")
    assert f"def {test}(" in (HOME / file).read_text(encoding="utf-8")


def test_property_names_differ():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_refusal_of_a_mutant_whose_place_has_gone(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n", encoding="utf-8")
    for old in ("x = 1", "x = 2"):
        with pytest.raises(ValueError, match="not once; let it follow the code"):
            mutated(tmp_path, Mutant("m", "a.py", old, "x = 3", "tests/test_a.py::test_a"))
