"""What one reads is what runs: edits of definitions show in what the doors print, with default flags."""

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import RopeScaling, preset
from llama.fast.agreement import readable, use_custom_gradients, use_fused_blocks
from llama.fast.custom_autograd import FusedMLP
from llama.fast.fused_block import FusedBlock
from llama.lora import LoRAConfig, add_lora
from llama.model import MLP, Attention, naive_attention
from tests.learners import EDITS, HOME, copy_of_the_code, shows, what_comes_out, write_material

QUICK = ("blocks that do nothing", "another scale of attention", "LoRA twice as strong")     # the others: make mutants


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learner")
    write_material(folder)
    return folder, copy_of_the_code(folder)


@pytest.mark.parametrize("name", QUICK)
def test_property_an_edit_of_a_definition_shows_at_its_door(name, material):
    folder, code = material
    place, door = next(edit for edit in EDITS if edit[0].name == name)
    before, said = what_comes_out(code, folder, door)
    assert before and "other numbers" not in said
    assert shows(place, door, code, folder, before)


@pytest.mark.parametrize("place", [place for place, _ in EDITS], ids=lambda place: place.name)
def test_property_every_edit_has_one_place(place):
    assert (HOME / place.file).read_text(encoding="utf-8").count(place.old) == 1
    assert place.new != place.old


VARIANTS = {"plain": {}, "Qwen's biases": {"qkv_bias": True}, "window": {"sliding_window": 100},
            "dynamic": {"rope_scaling": RopeScaling("dynamic", 4.0)}, "untied": {"tie_word_embeddings": False}}


def model_of(changes, dtype=torch.float32):
    torch.manual_seed(0)
    return PretrainedLlama(preset("test", **changes)).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_two_ways_fast_versions_are_taken_where_nothing_was_edited(name, dtype, capsys):
    model = model_of(VARIANTS[name], dtype)
    use_fused_blocks(model)
    assert all(isinstance(layer, FusedBlock) for layer in model.layers)
    readable(model)
    assert not any(isinstance(layer, FusedBlock) for layer in model.layers)
    if dtype == torch.float32:
        use_custom_gradients(model)
        assert type(model.layers[0].mlp) is FusedMLP
    assert capsys.readouterr().err == ""


def test_two_ways_fast_versions_are_taken_for_adapters(capsys):
    model = model_of({})
    add_lora(model, LoRAConfig(rank=2))
    use_custom_gradients(model)
    assert type(model.layers[0].mlp) is FusedMLP
    assert capsys.readouterr().err == ""


def test_refusal_of_a_swap_that_would_hide_an_edit(monkeypatch, capsys):
    whole = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x: 0.9 * whole(self, x))
    model = model_of({})
    use_fused_blocks(model)
    use_custom_gradients(model)
    assert not any(isinstance(layer, FusedBlock) for layer in model.layers) and type(model.layers[0].mlp) is MLP
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("what stands in the file runs, slower" in line for line in said)


def test_property_the_check_leaves_the_random_numbers_of_the_run_alone():
    model = model_of({})
    before = torch.get_rng_state()
    use_fused_blocks(model)
    readable(model)
    use_custom_gradients(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_ways_readable_runs_the_definition_of_attention():
    model = model_of({})
    readable(model)
    assert all(layer.self_attn.attend is naive_attention for layer in model.layers)
    assert Attention.attend is not naive_attention
