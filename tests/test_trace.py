"""Every tensor beside its line: the links, the names, the numbers and the letters."""

import gc
import json
import sys
import weakref
from pathlib import Path

import pytest
import torch
from test_model import SHAPES, _tokens
from test_siblings import SIBLINGS
from torch.nn import functional

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.fast.agreement import use_fused_blocks
from llama.heads import HeadConfig, add_head
from llama.lora import LoRAConfig, add_lora
from llama.quantization.swap import quantize
from llama.trace import main, trace

HOME = Path(__file__).resolve().parent.parent
IDS = [5, 17, 300, 17]                                              # as many as the preset "test" has query heads


def check_links(records):
    texts = {file: (HOME / file).read_text(encoding="utf-8") for file in {record.file for record in records}}
    for record in records:
        lines = texts[record.file].splitlines()
        code = record.code.splitlines()
        assert [line.strip() for line in lines[record.line - 1 :][: len(code)]] == [line.strip() for line in code]
        *around, own = record.name.split(".")
        if record.function == "__init__":
            assert f"self.{own} = " in record.code or f"self.{around[-1]} = " in record.code, record
        else:
            assert own.strip("]").replace("lm_head", "self.head(") in record.code, record      # whichever head it is
        assert f"def {record.function}(" in texts[record.file]


@pytest.mark.parametrize("shape", [*SHAPES, *SIBLINGS])
def test_property_every_link_leads_to_a_line_that_holds_the_name(shape):
    tensors, parameters = trace(PretrainedLlama((SHAPES | SIBLINGS)[shape]), IDS)
    check_links(tensors + parameters)
    names = {record.name for record in tensors}
    for layer in ("layers.0", "layers.1"):
        assert {f"{layer}.self_attn.naive_attention.scores", f"{layer}.self_attn.naive_attention.softmax",
                f"{layer}.mlp.silu", f"{layer}.mlp.down_proj", f"{layer}.x"} <= names
    assert tensors[-1].name == "_loss.loss" and tensors[-1].gradient_norm == 1.0
    assert (f"llama/{'model' if shape in SHAPES else 'siblings'}.py" in
            {record.file for record in tensors if record.module == "layers.0"})


@pytest.mark.parametrize("swap", ["lora", "8 bits", "4 bits"])
def test_property_swapped_modules_are_read_in_their_own_files(tiny_model, swap):
    if swap == "lora":
        add_lora(tiny_model, LoRAConfig(rank=2))
    else:
        quantize(tiny_model, bits=int(swap[0]), report=False)
    tensors, parameters = trace(tiny_model, IDS)
    check_links(tensors + parameters)
    assert any(record.file.startswith("llama/lora" if swap == "lora" else "llama/quantization") for record in tensors)
    if swap == "lora":
        learned = {record.name: record for record in parameters if record.name.endswith("lora_B")}
        assert learned and all(record.gradient_norm > 0 and record.code.startswith("self.lora_B = ")
                               for record in learned.values())
        assert not any(parameter.requires_grad for name, parameter in tiny_model.named_parameters()
                       if "lora" not in name)


def test_two_ways_statistics_and_gradients_equal_those_of_hooks_and_a_backward_pass(tiny_model):
    tensors, parameters = trace(tiny_model, IDS)
    kept = {}

    def keep(module, inputs, output):
        output.retain_grad()
        kept[names[module]] = output

    names = {module: name for name, module in tiny_model.named_modules() if name.endswith("_proj")}
    for module in names:
        module.register_forward_hook(keep)
    tokens = torch.tensor([IDS])
    functional.cross_entropy(tiny_model(tokens)[0, :-1], tokens[0, 1:]).backward()
    found = {record.name.replace(".project.", "."): record for record in tensors}
    assert len(kept) == 14
    for name, output in kept.items():
        record = found[name]
        assert record.shape == tuple(output.shape) and record.dtype == "float32" and not record.others
        assert (record.mean, record.std, record.min, record.max, record.gradient_norm) == pytest.approx(
            (output.mean().item(), output.std(correction=0).item(), output.min().item(), output.max().item(),
             output.grad.norm().item()), rel=1e-4, abs=1e-7)
    for record in parameters:
        assert record.gradient_norm == pytest.approx(tiny_model.get_parameter(record.name).grad.norm().item(), rel=1e-4)


def test_worked_example_letters_of_axes_also_where_two_sizes_are_equal(tiny_model):
    """T = H = 4: only what grows with the text is T."""
    letters = {record.name: " ".join(record.letters) for record in trace(tiny_model, IDS)[0]
               if record.module.startswith("layers.0") or not record.module}
    attention = "layers.0.self_attn."
    assert {name: letters[name] for name in (
        "hidden.positions", "hidden.x", "layers.0.self_attn.project.k_proj", f"{attention}_heads.transpose",
        f"{attention}project.q", f"{attention}project.k", f"{attention}apply_rotary.first",
        f"{attention}naive_attention.scores", f"{attention}naive_attention.transpose", f"{attention}flatten",
        "layers.0.mlp.silu", "lm_head", "_loss.loss", "hidden.cos", "layers.0.input_layernorm.rsqrt")} == {
        "hidden.positions": "T", "hidden.x": "B T D", "layers.0.self_attn.project.k_proj": "B T G·K",
        f"{attention}_heads.transpose": "B G T K", f"{attention}project.q": "B H T K",
        f"{attention}project.k": "B G T K", f"{attention}apply_rotary.first": "B G T K/2",
        f"{attention}naive_attention.scores": "B H T T", f"{attention}naive_attention.transpose": "B H K T",
        f"{attention}flatten": "B T D", "layers.0.mlp.silu": "B T F", "lm_head": "B T V", "_loss.loss": "",
        "hidden.cos": "T K", "layers.0.input_layernorm.rsqrt": "B T 1"}


@pytest.mark.parametrize("change", [{"sliding_window": 4}, {"max_position_embeddings": 4}])
def test_property_a_text_that_fills_window_or_context_is_read_along_too(change):
    tensors, _ = trace(PretrainedLlama(preset("test", **change)), IDS)
    assert {record.letters for record in tensors if record.name.endswith("attention.scores")} == {tuple("BHTT")}


def test_worked_example_a_mask_before_and_after_it_is_written(tiny_model):
    zeros, filled = [record for record in trace(tiny_model, IDS)[0]
                     if record.name in ("layers.0.self_attn.additive_mask.zeros",
                                        "layers.0.self_attn.additive_mask.masked_fill_")]
    assert (zeros.max, zeros.others, filled.max, filled.others) == (0, 0, 0, 6)


def test_property_reading_along_changes_nothing(tiny_model):
    tiny_model.norm.weight.requires_grad_(False)
    before, tracer = tiny_model(_tokens(1, 4) % 300), sys.gettrace()
    trace(tiny_model.train(), IDS)
    assert sys.gettrace() is tracer and tiny_model.training
    assert not any("attend" in vars(layer.self_attn) for layer in tiny_model.layers)
    assert [name for name, parameter in tiny_model.named_parameters() if not parameter.requires_grad] == ["norm.weight"]
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert torch.equal(tiny_model(_tokens(1, 4) % 300), before)


def test_property_nothing_of_the_pass_stays_in_memory():
    """A server reads along on a copy, whose gigabytes must not wait for a collector of cycles."""
    model = PretrainedLlama(preset("test"))
    gone = weakref.ref(model.norm.weight)
    gc.disable()
    try:
        trace(model, IDS)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_refusal_of_what_has_no_loss(tiny_model):
    with pytest.raises(ValueError, match="a text of one token has none to predict"):
        trace(tiny_model, [1])
    use_fused_blocks(tiny_model)
    with pytest.raises(ValueError, match="this model is fused"):
        trace(tiny_model, IDS)
    add_head(tiny_model, HeadConfig(("a", "b")))
    with pytest.raises(ValueError, match="writes no text"):
        trace(tiny_model, IDS)


def test_two_ways_the_command_says_what_python_does(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("tiny")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["trace", "--model", "tiny", "--device", "cpu", "The dog", *arguments])
        main()
        return capsys.readouterr().out

    said = json.loads(run("--json", "--all"))
    tensors, parameters = trace(tiny_model, said["ids"])
    for given, expected in ((said["tensors"], tensors), (said["parameters"], parameters)):
        assert [record["name"] for record in given] == [record.name for record in expected]
        assert [record["line"] for record in given] == [record.line for record in expected]
    assert {record["module"].split(".")[1] for record in json.loads(run("--json", "--layer", "1"))["tensors"]
            if record["module"].startswith("layers.")} == {"1"}
    shown = run()
    scores = next(record for record in tensors if record.name.endswith("naive_attention.scores"))
    assert f"{scores.file}:{scores.line}  naive_attention, in layers.0.self_attn\n    {scores.code}\n" in shown
    assert "layers.1.mlp" not in shown and "|gradient| 1 " not in shown.splitlines()[0]
    for wrong, words in ((("--layer", "2"), "has the layers 0 to 1"), (("--layer", "0", "--all"), "give one of them")):
        with pytest.raises(ValueError, match=words):
            run(*wrong)
