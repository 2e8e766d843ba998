import json

import pytest

from llama.tasks.tagging import Entity
from llama.training.results import shortened, table, write_predictions


def test_worked_example_table():
    assert table({"loss": 1.0, "perplexity": 2.71828}) == "loss                1.0000\nperplexity          2.7183"


def test_property_predictions_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [{"predicted": [Entity("北京", "LOC", 0, 2)]}])
    written = path.read_text(encoding="utf-8")
    assert json.loads(written) == {"predicted": [{"text": "北京", "type": "LOC", "start": 0, "end": 2}]}
    with pytest.raises(TypeError):
        write_predictions(path, [{"predicted": "a"}, {"predicted": object()}])
    assert path.read_text(encoding="utf-8") == written and list(tmp_path.iterdir()) == [path]


def test_worked_example_a_long_text_in_one_line():
    assert shortened("a\nb\x1b" + "c" * 300) == "a b " + "c" * 196 + " …"
