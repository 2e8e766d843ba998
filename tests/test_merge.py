import json
import sys

import pytest
import torch
from test_lora import bits, same, stir

import finetune
from llama import merge
from llama.checkpoint import load_model, save_model
from llama.lora import LoRAConfig, add_lora, has_lora, merge_lora, save_adapter, unmerge_lora
from llama.merge import merge_report
from llama.training.verify_saved import probe_outputs


def _logits(model):
    return probe_outputs(model, text=False).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [LoRAConfig(rank=2), LoRAConfig(rank=2, dora=True, targets=("q_proj", "lm_head")),
                                    LoRAConfig(rank=2, modules_to_save=("embed_tokens",))],
                         ids=["layers", "dora, head", "whole"])
def test_two_ways_the_report_is_what_merging_does(config, dtype, tiny_model):
    tiny_model.to(dtype)
    add_lora(tiny_model, config)
    learning = bits(stir(tiny_model))
    beside = _logits(tiny_model)
    report = merge_report(tiny_model)
    assert report.float32 < 1e-5
    assert report.rounded == (_logits(tiny_model) - beside).abs().max().item()
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert report.rounded < (1e-5 if dtype == torch.float32 else 0.1)
    assert report.untied == ("lm_head" in config.targets) == ("now two" in str(report))
    assert not has_lora(tiny_model) and not any(module._forward_hooks or module._forward_pre_hooks
                                                for module in tiny_model.modules())
    unmerge_lora(tiny_model)
    assert same(bits(tiny_model), learning) and torch.equal(_logits(tiny_model), beside)


def test_two_ways_merged_in_float32_computes_what_a_float32_model_does(tiny_model):
    """The weights of a bfloat16 model, cast while they are used, give the logits of the model cast as a whole."""
    tiny_model.to(torch.bfloat16)
    with merge._computing_in(tiny_model, torch.float32):
        cast_in_passing = _logits(tiny_model)
    assert tiny_model.dtype == torch.bfloat16
    rounded = _logits(tiny_model)
    assert torch.equal(cast_in_passing, _logits(tiny_model.float())) and not torch.equal(cast_in_passing, rounded)


def test_worked_example_the_command(tiny_model, tmp_path, monkeypatch, capsys):
    save_model(tiny_model.bfloat16(), tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_lora(model, LoRAConfig(rank=2, targets=("v_proj", "lm_head")))
    save_adapter(stir(model), tmp_path / "adapter")
    monkeypatch.setattr(sys, "argv", ["merge", "--model", str(tmp_path / "base"), "--adapter", str(
        tmp_path / "adapter"), "--output", str(tmp_path / "merged"), "--json"])
    merge.main()
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["dtype"] == "bfloat16" and report["untied"] and report["float32"] < 1e-5
    assert "embeddings and head were one matrix and are now two" in said.err
    assert "the same text as before saving" in said.err
    merged = load_model(tmp_path / "merged")
    merge_lora(model)
    assert same(bits(merged), bits(model)) and not merged.config.tie_word_embeddings
    with pytest.raises(ValueError, match="exists already; give --overwrite"):
        merge.main()


def test_property_merging_at_once_keeps_the_dtype_of_the_base_as_merging_later_does(tiny_model, tmp_path, monkeypatch):
    """While it is tuned, the base of LoRA computes in bfloat16."""
    save_model(tiny_model, tmp_path / "base")
    (tmp_path / "data.jsonl").write_text('{"instruction": "Hi", "output": "Hello!"}\n', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--model", str(tmp_path / "base"), "--lora", "--merge", "--dtype",
                                      "bfloat16", "--data", str(tmp_path / "data.jsonl"), "--chat-format", "chatml",
                                      "--max-length", "64", "--output", str(tmp_path / "adapter")])
    finetune.main()
    merged = load_model(tmp_path / "adapter-merged")
    assert merged.dtype == torch.float32
    assert torch.equal(merged.embed_tokens.weight, tiny_model.embed_tokens.weight)
