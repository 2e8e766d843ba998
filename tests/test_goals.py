import pytest

from llama.benchmark.goals import (
    LIMITS,
    RATIOS,
    engine_table,
    excess,
    limit_table,
    met,
    ratio,
    ratio_table,
    table,
)
from llama.benchmark.modes import MODES
from llama.benchmark.peers import PEERS


def test_worked_example_ratio_of_pairs():
    found = ratio([10, 20, 90], [5, 5, 30])                         # 2, 4, 3; the medians alone would give 20 / 5
    assert (found.median, found.low, found.high) == (3, 2, 4)
    assert str(found) == "3.00 × (2.00–4.00)"


def test_refusal_of_figures_that_make_no_pairs():
    with pytest.raises(ValueError, match="2 of our figures and 1 of theirs"):
        ratio([1, 2], [1])


@pytest.mark.parametrize("value, floor, stretch, smaller, verdict", [
    (1.8, 1.8, 2.2, False, "floor"), (2.2, 1.8, 2.2, False, "stretch"), (1.79, 1.8, 2.2, False, "no"),
    (550, 550, 400, True, "floor"), (399, 550, 400, True, "stretch"), (551, 550, 400, True, "no"),
    (0.89, None, 0.9, False, "no"), (5, 1, None, False, "floor")])
def test_worked_example_met(value, floor, stretch, smaller, verdict):
    assert met(value, floor, stretch, smaller=smaller) == verdict


ENGINES = {
    "float32": {"decode": [20, 21, 22], "prefill": [300, 400], "memory": 1_100_000_000, "perplexity": 8.0,
                "traffic": 500_000_000, "start": [3.0]},
    "int8": {"decode": [90, 100, 80], "prefill": [900], "batch 8": [250.0], "memory": 500_000_000, "perplexity": 8.02,
             "traffic": 140_000_000},
    "int8-saved": {"decode": [90], "prefill": [900], "memory": 440_000_000, "traffic": 1, "start": [1.0, 4.0, 2.0]},
    "int4": {"refused": "--quantize int4 needs columns in groups of 32"}}


def test_worked_example_tables():
    shown = engine_table(ENGINES, batches=[8], bandwidth=28e9).splitlines()
    assert shown[0].startswith("|            | decode tok/s | of the roof | prefill tok/s | batch 8 tok/s | peak MB")
    assert [cell.strip() for cell in shown[3].split("|")[1:-1]] == [
        "int8", "90.0", "45%", "900", "250", "500", "", "8.020", "+0.25 %"]
    assert shown[-1] == "int4: --quantize int4 needs columns in groups of 32" and len(shown) == 7
    limits = limit_table(ENGINES)
    assert "| memory     | int8-saved | 440 MB              | 450   | 350     | floor |" in limits
    assert "| start      | int8-saved | 2.00 s              | 2.5   | 1.5     | floor |" in limits
    assert "| perplexity | int8       | 0.25 % over float32 | 0.5   | 0.15    | floor |" in limits
    assert "bf16" not in limits                                     # not measured here
    turn = {"work": "decode", "mode": "int8", "against": "transformers bfloat16", "ours": [90, 100], "theirs": [30, 25],
            "floor": 2.5, "stretch": 3.8}
    assert "| 3.50 × (3.00–4.00) | 2.50  | 3.80    | floor |" in ratio_table([turn])


def test_property_columns_of_a_table_are_aligned():
    assert table(["a", "bcd"], [["efg", "h"]]) == "| a   | bcd |\n| --- | --- |\n| efg | h   |"


def test_worked_example_excess():
    assert excess(ENGINES, "perplexity", "int8", "float32") == pytest.approx(0.25)
    assert excess(ENGINES, "perplexity", "int4", "float32") is None


def test_property_aims_name_engines_that_there_are():
    aims = [aim for some in RATIOS.values() for aim in some]
    assert {aim.mode for aim in aims} <= MODES.keys() and {aim.against for aim in aims} <= {*PEERS, *MODES}
    assert {limit.mode for limit in LIMITS} <= MODES.keys()
    assert {limit.base for limit in LIMITS} <= {*MODES, *PEERS, ""}
