import math
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import EXAMPLES, _task

from llama.checkpoint import save_model
from llama.lora import LoRAConfig, add_lora
from llama.quantization.swap import quantize
from llama.runtime import room
from llama.runtime.room import SURE, OutOfMemory
from llama.trainer import Trainer
from llama.training import what_fits
from llama.training.optimizer import TrainConfig
from llama.training.what_fits import advice, disk_of, more_memory, remark, saved_by


def _trainer(model, output=None, eval_data=None, **config):
    return Trainer(model, _task(), EXAMPLES, eval_data, config=TrainConfig(**config), output=output)


def test_two_ways_a_run_has_on_its_disk_what_was_foretold(tiny_model, tmp_path):
    trainer = _trainer(tiny_model, tmp_path / "x", EXAMPLES, epochs=3, batch_size=3, save_every=1, save_epochs=True)
    needs = disk_of(trainer)
    trainer.train()
    results = sum(path.stat().st_size for path in tmp_path.glob("x*/model.safetensors"))
    assert results == pytest.approx(needs["results"], rel=0.03)
    state, best = (max(path.stat().st_size for path in tmp_path.glob(f"x.training/{kind}-*.pt"))
                   for kind in ("last", "best"))
    assert 3 * state == pytest.approx(needs["states"], rel=0.1)    # two generations, and one in writing
    assert 3 * best == pytest.approx(needs["the best"], rel=0.1)


def test_worked_example_states_of_adapters_are_small_and_saved_once(tiny_model):
    whole = disk_of(_trainer(tiny_model))
    assert whole["the best"] == 0 and whole["states"] == 3 * 4 * sum(p.numel() for p in tiny_model.parameters())
    add_lora(tiny_model, LoRAConfig(rank=2))
    assert sum(disk_of(_trainer(tiny_model)).values()) < whole["states"] / 5


def test_refusal_before_the_first_step_where_the_disk_has_no_room(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"this run \(results .*, states .*\) needs .* on the disk of .*x, and 0.0 MB "
                                         r"are free; make room, leave --save-epochs out, or give --output"):
        _trainer(tiny_model, tmp_path / "x", save_epochs=True)
    assert not (tmp_path / "x").exists()


def test_property_named_flags_fit(tiny_model):
    """Each flag that is named brings the estimate under what is free, and where nothing fits nothing is named."""
    add_lora(tiny_model, LoRAConfig(rank=2))
    trainer = _trainer(tiny_model, batch_size=4, pack="off")
    needed = more_memory(trainer)
    small = more_memory(trainer, batch_size=1)
    assert small < needed and more_memory(trainer, checkpointed="blocks") < needed
    said = advice(trainer, small * SURE)
    assert "--batch-size 1 --accumulate 4 (the same updates)" in said and "--batch-size 2" not in said
    assert "--batch-size 2 --accumulate 2" in advice(trainer, math.inf)     # it seemed to fit, and did not
    mlps = more_memory(trainer, checkpointed="mlps")
    assert ("--checkpoint-mlps" in advice(trainer, mlps * SURE)) == (mlps < 0.9 * needed / SURE)
    assert "no flag alone makes it fit" in advice(trainer, 1000)
    room = needed - saved_by(tiny_model, 8)
    assert ("--quantize int8" in advice(trainer, room * SURE)) == (room < 0.9 * needed / SURE)
    assert "--quantize" not in advice(_trainer(tiny_model, batch_size=4), 1000)


def test_two_ways_what_fewer_bits_save(tiny_model):
    foretold = {bits: saved_by(tiny_model, bits) for bits in (8, 4)}
    before = sum(p.nbytes for p in tiny_model.parameters())
    quantize(tiny_model, bits=8, report=False)
    assert before - sum(p.nbytes for p in tiny_model.parameters()) == pytest.approx(foretold[8], rel=0.05)
    assert foretold[4] > foretold[8]


def test_worked_example_a_remark_before_the_first_step(tiny_model, monkeypatch, capsys):
    trainer = _trainer(tiny_model, batch_size=2, max_steps=1)
    assert remark(trainer) == ""
    monkeypatch.setattr(what_fits, "free_memory", lambda device: 1e4)
    trainer.train()
    assert re.search(r"a step of this run takes about \d.* MB more memory by the estimate, and 0.0 MB are free: by the "
                     "estimate of .* no flag alone", capsys.readouterr().err)


def test_refusal_out_of_memory_in_a_step_says_which_flags_would_fit(tiny_model, tmp_path, monkeypatch):
    trainer = _trainer(tiny_model, tmp_path / "x", batch_size=2)
    monkeypatch.setattr(trainer.objective, "forward", lambda batch: torch.empty(2**60))
    with pytest.raises(OutOfMemory, match="out of memory while taking training step 1 on batches of 2 samples, where "
                                          ".* more were asked for: by the estimate of"):
        trainer.train()


def test_refusal_evaluating_and_loading_say_so_too(tiny_model, tmp_path, monkeypatch):
    from llama import pretrained
    from llama.training.evaluation import evaluate

    trainer = _trainer(tiny_model)
    monkeypatch.setattr(trainer.task, "accumulate", lambda *_: torch.empty(2**60))
    with pytest.raises(OutOfMemory, match="evaluating batches of 4 samples, .*: --batch-size 2 takes about half"):
        evaluate(trainer.objective, trainer.samples, tiny_model.tokenizer, batch_size=4)
    save_model(tiny_model, tmp_path / "m")
    monkeypatch.setattr(pretrained, "load_model", lambda *_, **__: torch.empty(2**60))
    monkeypatch.setattr(pretrained, "free_memory", lambda device: 250_000)
    with pytest.raises(OutOfMemory, match=r"loading .*m, .* it takes 0.\d MB, and 0.2 MB were free; these would fit: "
                                          r"--dtype bfloat16 \(0.\d MB\), --quantize int8"):
        pretrained.get_model(tmp_path / "m")


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_two_ways_stored_bytes(bits, tiny_model, tmp_path):
    from llama.pretrained import stored_bytes

    save_model(tiny_model, tmp_path / "floats")
    foretold = stored_bytes(tmp_path / "floats", bits=bits)
    if bits:
        quantize(tiny_model, bits=bits, report=False)
    save_model(tiny_model, tmp_path / "x")
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "x" / "model.safetensors").values())
    assert stored == pytest.approx(foretold, rel=0.05)
    assert stored_bytes("no such thing") == 0 and stored_bytes("test") > 0
