import json

import pytest
import torch

from llama.benchmark.measure_training import Setting, random_tensors, works
from llama.checkpoint import build_on_meta, save_model
from llama.config import preset
from llama.config_json import config_to_dict
from weights.formats.quantized_matrix import QuantizedMatrix


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.json"
    path.write_text(json.dumps([[[1, 2, 3, 4], [False, True, True, True]], [[5, 6], [False, True]]]), encoding="utf-8")
    return str(path)


def test_worked_example_what_is_counted(tiny_model, samples, tmp_path):
    save_model(tiny_model, tmp_path / "model")
    asked = works(Setting(model=str(tmp_path / "model"), samples=samples, batch_size=2))
    answer = asked["train"](steps=[[0, 1], [1]])
    assert answer["tokens"] == 3 + 1 + 1 and answer["seconds"] > 0 and len(answer["losses"]) == 2
    norms = sum(p.numel() for name, p in tiny_model.named_parameters() if "norm" in name)
    learned = sum(p.numel() for p in tiny_model.parameters())
    assert asked["shape"]() == {"multiplied": learned - norms, "learned": learned}


@pytest.mark.parametrize("bits", [8, 4])
def test_property_a_shape_in_few_bits_is_never_there_in_floats(bits, samples):
    model = build_on_meta(config_to_dict(preset("test")))
    tensors = dict(random_tensors(model, bits=bits))
    assert all(isinstance(tensor, QuantizedMatrix) == (model.get_parameter(name).dim() == 2)
               for name, tensor in tensors.items())
    asked = works(Setting(model="test", samples=samples, adapter="new", bits=bits, batch_size=1))
    losses = asked["train"](steps=[[0], [0], [0]])["losses"]
    assert losses[2] < losses[0]
    assert asked["saved"]()["size"] > 1000


def test_two_ways_random_tensors_of_one_kind_are_copies_not_views():
    tensors = dict(random_tensors(build_on_meta(config_to_dict(preset("test"))), bits=0))
    first, second = tensors["layers.0.mlp.up_proj.weight"], tensors["layers.1.mlp.up_proj.weight"]
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()
