"""The answers of other libraries, kept in tests/fixtures, and ours to the same questions.

    python -m tests.parity --judges .venv-parity/bin/python --write-fixtures

asks them anew (`make parity` installs them). Questions are answered by the functions of the same name in tests/parity.
"""

import importlib
from pathlib import Path

import pytest
import torch

from tests.parity.judges import difference, read_kept
from tests.parity.training import FEW, far_apart

FIXTURES = Path(__file__).parent / "fixtures"


def cases(area):
    return read_kept(FIXTURES / f"{area}.safetensors")


def ours(area, case):
    return getattr(importlib.import_module(f"tests.parity.{area}"), case["what"])(
        case["request"] | {"tensors": case["tensors"]})


@pytest.mark.parametrize("name", cases("parts"))
def test_two_ways_parts_equal_transformers(name):
    case = cases("parts")[name]
    limit = 1e-4 if case["tensors"]["x"].dtype == torch.float32 else 1e-2
    assert difference(ours("parts", case), case["answer"]) < limit


@pytest.mark.parametrize("name", cases("models"))
def test_two_ways_whole_models_equal_transformers(name):
    case = cases("models")[name]
    assert difference(ours("models", case), case["answer"]) < 1e-4


@pytest.mark.parametrize("name", cases("relatives"))
def test_two_ways_gpt2_and_t5_equal_transformers(name):
    case = cases("relatives")[name]
    assert difference(ours("relatives", case), case["answer"]) < 1e-4


@pytest.mark.parametrize("name", cases("training"))
def test_two_ways_ten_training_steps_equal_transformers_and_peft(name):
    case = cases("training")[name]
    found, answer = ours("training", case), case["answer"]
    assert found.keys() == answer.keys()
    assert torch.allclose(found["loss"], answer["loss"], rtol=1e-5, atol=0)
    if case["request"]["optimizer"] == "sgd":
        assert difference(found, answer) < 1e-4
    else:
        count = sum(tensor.numel() for tensor in answer.values())
        assert far_apart(found, answer, case["request"]["lr"]) <= FEW * count


@pytest.mark.parametrize("name", cases("sampling"))
def test_two_ways_distributions_equal_transformers(name):
    case = cases("sampling")[name]
    assert torch.allclose(ours("sampling", case)["mass"], case["answer"]["mass"], rtol=0, atol=1e-6)


def test_property_fixtures_stay_small():
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 1.5 * 2**20
