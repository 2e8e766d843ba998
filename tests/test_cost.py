import argparse
import json
import math
from dataclasses import replace

import pytest
import torch

import finetune
import train
from llama import cost
from llama.checkpoint import PretrainedLlama, save_model
from llama.commands import flags
from llama.config import preset
from llama.fast.custom_autograd import use_custom_autograd
from llama.freeze import freeze
from llama.lora import LoRAConfig, add_lora, save_adapter
from llama.quantize import quantize
from llama.tasks.generation import TextGenerationTask
from llama.trainer import Trainer
from llama.training import memory_estimate, what_fits
from llama.training.memory_estimate import Layer, activation_bytes_per_token, layers_of, training_memory
from llama.training.objective import Plain
from llama.training.optimizer import MasterWeights, TrainConfig
from tests.together import TALK, InstructionTask

SIZES = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2,
         "vocab_size": 64}


def test_worked_example_what_a_block_keeps_of_a_token():
    block = Layer(D=96, H=6, G=2, K=16, F=256, size=2, learned=True, adapted={})
    assert activation_bytes_per_token(block) == {
        "norms": 2 * (96 * 4 + 4) + 2 * 96 * 2, "inputs of products": 2 * 96 * 2,
        "attention": (96 + 32 + 32 + 96) * 2 + 6 * 4, "SwiGLU": 4 * 256 * 2, "adapters": 0}
    adapted = replace(block, learned=False, adapted={"q_proj": (96, 8), "o_proj": (96, 8)}, dropout=True)
    assert activation_bytes_per_token(adapted) == {
        "norms": 2 * (96 * 4 + 4), "inputs of products": 96 * 2, "attention": 256 * 2 + 24, "SwiGLU": 3 * 256 * 2,
        "adapters": 2 * 8 * 2, "dropout": 2 * 96 * 3}
    assert activation_bytes_per_token(replace(block, quick=True)) == {
        "norms": 2 * (96 * 2 + 4), "inputs of products": 2 * 96 * 2, "attention": 256 * 2, "SwiGLU": 3 * 256 * 2,
        "adapters": 0}


def test_worked_example_the_terms_of_a_step():
    model = PretrainedLlama(preset("test", **SIZES, num_hidden_layers=2, tie_word_embeddings=True))
    numbers = 64 * 96 + 2 * (2 * 96 * 96 + 2 * 96 * 32 + 3 * 96 * 256 + 2 * 96) + 96
    tokens = 1000
    ends = tokens * (4 * 96 + 4 + 2 * 2 * 96)
    block = 4128                                                    # of a token, as above
    terms = training_memory(model, tokens=tokens, rows=900, dtype=torch.bfloat16, program=10**6)
    assert terms == {
        "program": 10**6 + memory_estimate.LIBRARY_OVERHEAD, "weights": 2 * numbers, "float32 masters": 4 * numbers,
        "optimiser": 8 * numbers, "kept for backward": 2 * tokens * block + ends,
        "holes between": round(memory_estimate.FRAGMENTATION["full"][0] * (2 * tokens * block + ends)),
        "scores": 900 * 64 * 2 + 2 * 900 * 64 * 4 + 2 * 2 * 96 * (900 + 64),            # logits, float32, gradients
        "gradients beyond": 0}
    frugal = training_memory(model, tokens=tokens, rows=900, dtype=torch.bfloat16, checkpointed="blocks",
                             optimizer="sgd", quick_loss=False)
    assert frugal["kept for backward"] == 2 * tokens * 2 * 96 + tokens * block + ends and frugal["optimiser"] == 0
    assert frugal["scores"] == 900 * 64 * 20
    mlps = training_memory(model, tokens=tokens, rows=900, dtype=torch.bfloat16, checkpointed="mlps")
    assert terms["kept for backward"] - mlps["kept for backward"] == tokens * 4 * 256 * 2
    few = training_memory(model, tokens=1, rows=1, dtype=None)
    assert sum(few.values()) - few["program"] == numbers * (4 + 8 + 4)  # gradients outweigh one token


def _fuses_grouped_queries():
    q, k = torch.ones(1, 4, 8, 16), torch.ones(1, 2, 8, 16)
    return torch._fused_sdp_choice(q, k, k, is_causal=True, enable_gqa=True) != 0           # the definition's


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("learns", ["full", "lora"])
@pytest.mark.parametrize("quick", [True, False], ids=["by hand", "readable"])
def test_two_ways_kept_for_backward(quick, learns, dtype):
    """A third block more: what autograd then keeps more, counted by storage, is what the formula says of a block."""
    if not quick and not _fuses_grouped_queries():
        pytest.skip("this torch fuses no attention of grouped queries on CPUs: it keeps all scores (docs/compat.md)")
    kept, B, T = [], 2, 128
    for L in (2, 3):
        torch.manual_seed(0)
        model = PretrainedLlama(preset("test", **SIZES, num_hidden_layers=L))
        if learns == "lora":
            model.to(dtype)
            add_lora(model, LoRAConfig(rank=8))
        else:
            MasterWeights(model, dtype)
        if quick:
            use_custom_autograd(model)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        seen: dict[int, torch.UntypedStorage] = {}              # held, or an address would come twice

        def see(tensor, own=own, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage
            return tensor

        tokens = torch.randint(0, 64, (B, T))
        objective = Plain(model, TextGenerationTask()).train()      # tries its fast loss, which is not counted
        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            loss, _ = objective({"tokens": tokens, "targets": tokens})
        kept.append(sum(storage.nbytes() for storage in seen.values()))
        size, layers = dtype.itemsize, layers_of(model, size=dtype.itemsize)
    expected = B * T * sum(activation_bytes_per_token(layers[-1]).values())
    casts = sum(size * p.numel() for n, p in model.layers[0].named_parameters() if "lora_" in n
                and (size < 4 or quick and "lora_B" in n))         # by hand, B is kept with its scale
    assert kept[1] - kept[0] == pytest.approx(expected + casts, rel=0.001)


def test_property_blocks_below_the_lowest_that_learns_keep_nothing():
    model = PretrainedLlama(preset("test", **SIZES, num_hidden_layers=4))
    assert len(layers_of(model, size=4)) == 4
    freeze(model, layers=3, embeddings=True)
    assert [layer.learned for layer in layers_of(model, size=4)] == [True]
    model = PretrainedLlama(preset("test", **SIZES, num_hidden_layers=4))
    add_lora(model, LoRAConfig(rank=2, layers=(2,), targets=("q_proj",)))
    assert [layer.adapted for layer in layers_of(model, size=4)] == [{"q_proj": (96, 2)}, {}]


def _trainer(model, **config):
    return Trainer(model, InstructionTask(chat_format="chatml"), TALK, config=TrainConfig(**config))


def test_worked_example_the_largest_batch_and_a_limit_in_minutes(tiny_model):
    trainer = _trainer(tiny_model, batch_size=8, epochs=3, minutes=1e-6, pack="off")
    targets = sum(s.targets for s in trainer.samples)
    assert memory_estimate.largest_batch(trainer) == (8 * max(s.reads for s in trainer.samples), targets)
    trainer.packs = True
    assert memory_estimate.largest_batch(trainer) == (sum(s.reads for s in trainer.samples), targets)
    found = memory_estimate.time_two_steps(trainer)
    assert found["steps"] == 3 and found["seconds"] == pytest.approx(6e-5) and found["seconds_a_step"] > 0


def test_worked_example_what_an_hour_buys_and_what_is_left_out_by_a_limit():
    costs = {"memory": dict.fromkeys(("loading", "training", "saving"), 0), "parameters": 10, "learned": 5, "terms": {},
             "steps": 900, "steps_per_epoch": 300, "seconds_a_step": 6.0, "seconds": 1800.0, "artefact": 0,
             "disk": {}, "free_disk": 0}
    rows = {line[:24].strip(): line[24:] for line in what_fits.table(costs, math.inf).splitlines()}
    assert rows["an hour"] == "600 steps, 2 times through the data"
    assert rows["all"] == "300 of 900 steps, 30 min 0 s, and evaluations"
    rows = what_fits.table(costs | {"seconds": 5400.0}, math.inf)
    assert "900 steps, 1 h 30 min, and evaluations" in rows


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "model"])
def test_two_ways_what_is_written_is_as_large_as_was_said(lora, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if lora:
        add_lora(tiny_model, LoRAConfig(rank=64))
    what_fits.dry_run(_trainer(tiny_model, batch_size=4), optimizer="adamw", dtype=None, program=0,
                      output=tmp_path, as_json=True)
    said = json.loads(capsys.readouterr().out)["dry_run"]
    assert not list(tmp_path.iterdir())
    (save_adapter if lora else save_model)(tiny_model, tmp_path / "x")
    assert next((tmp_path / "x").glob("*.safetensors")).stat().st_size == pytest.approx(said["artefact"], rel=0.05)
    assert said["parameters"] == sum(p.numel() for p in tiny_model.parameters())
    assert said["memory"]["peak"] == max(said["memory"].values()) >= sum(said["terms"].values())


@pytest.mark.parametrize("bits", [8, 4])
def test_two_ways_a_model_of_few_bits_has_as_many_parameters(bits, tiny_model):
    expected = sum(p.numel() for p in tiny_model.parameters())
    assert memory_estimate.count(tiny_model) == expected
    quantize(tiny_model, bits=bits)
    assert memory_estimate.count(tiny_model) == expected


def test_property_masters_are_predicted_though_the_model_is_lowered_already(tiny_model):
    numbers = sum(p.numel() for p in tiny_model.parameters())
    assert _trainer(tiny_model).masters.bytes() == 0
    trainer = Trainer(tiny_model, InstructionTask(chat_format="chatml"), TALK, dtype=torch.bfloat16)
    terms = memory_estimate.predict(trainer, optimizer="adamw", dtype=torch.bfloat16, program=0, loading=0)["terms"]
    assert terms["float32 masters"] == 4 * numbers and terms["weights"] == 2 * numbers


def test_worked_example_a_row_of_the_comparison():
    MB = memory_estimate.MB
    row = {"run": "LoRA", "predicted": 90 * MB, "measured": 100 * MB, "training_predicted": 120 * MB,
           "training_measured": 100 * MB}
    assert cost.line(row).split() == ["LoRA", "training", "120", "MB", "100", "MB", "+20.0%", "with", "saving", "90.0",
                                      "MB", "100", "MB", "-10.0%", "beyond", "15", "%"]


def test_refusal_a_dry_run_of_many_or_of_half_a_run(monkeypatch):
    asked = argparse.Namespace(dry_run=True, inspect=None, resume=True)
    with pytest.raises(ValueError, match="--dry-run is about a run that has not begun; leave --resume out"):
        flags.check_alone(asked)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match="look at one process; leave torchrun out"):
        flags.check_alone(asked)


@pytest.mark.parametrize("door", ["finetune.py", "train.py"])
def test_property_a_dry_run_of_a_door_writes_nothing(door, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model, tmp_path / "model")
    (tmp_path / "a.txt").write_text("The quick brown fox. " * 40, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    flags = (["--model", "model", "--task", "generation", "--lora", "--max-length", "32"] if door == "finetune.py" else
             ["--tokenizer", "model", "--hidden-size", "48", "--num-hidden-layers", "1", "--block-size", "32"])
    monkeypatch.setattr("sys.argv", [door, *flags, "--data", "a.txt", "--output", "out", "--dry-run", "--json"])
    (finetune if door == "finetune.py" else train).main()
    said = json.loads(capsys.readouterr().out)["dry_run"]
    assert sorted(tmp_path.rglob("*")) == before
    assert said["steps"] > 1 and said["seconds"] > 0 and said["memory"]["peak"] > said["terms"]["program"]
