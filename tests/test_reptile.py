"""A start for new labels: llama/methods/reptile.py."""

import json
import random

import pytest
import torch

from llama.methods import reptile
from llama.methods.reptile import (
    ReptileConfig,
    accuracy,
    begin,
    divide,
    draw_task,
    few_shot,
    learned,
    read,
    reptile_step,
    tune,
)

CONFIG = ReptileConfig(ways=2, shots=(1, 2), queries=2, held_out=2, outer_steps=3, inner_shots=2, inner_steps=2,
                       batch_size=4, test_steps=2, episodes=2, max_length=16)
EXAMPLES = [{"text": f"{word} {n} dog", "label": word} for word in ("天气", "很好", "lazy", "fox", "home")
            for n in range(5)]


@pytest.fixture
def pool(tiny_tokenizer):
    return read(EXAMPLES, tiny_tokenizer, 16)


def _theta(objective):
    return [parameter.detach().clone() for parameter in learned(objective)]


def _largest(these, those):
    return max((a - b).abs().max().item() for a, b in zip(these, those, strict=True))


def test_worked_example_a_step_goes_part_of_the_way(tiny_model, pool):
    """θ + ε (φ − θ), φ by the same steps on the same task."""
    objective = begin("as it is", tiny_model, pool, CONFIG, 0)
    before = _theta(objective)
    samples = sum(draw_task(pool, 2, 2, random.Random(1)), [])
    tune(objective, samples, steps=2, lr=CONFIG.lr, batch_size=4, drawn=random.Random(2))
    tuned = _theta(objective)
    with torch.no_grad():
        for parameter, old in zip(learned(objective), before, strict=True):
            parameter.copy_(old)
    reptile_step(objective, samples, rate=0.25, config=CONFIG, drawn=random.Random(2))
    assert _largest(tuned, before) > 1e-4
    right = [old + 0.25 * (new - old) for old, new in zip(before, tuned, strict=True)]
    assert _largest(_theta(objective), right) < 1e-7


def test_property_tasks_hold_each_label_under_a_number_that_says_nothing(pool):
    seen = set()
    for seed in range(20):
        task = draw_task(pool, 2, 3, random.Random(seed))
        assert [len(each) for each in task] == [3, 3]
        for number, each in enumerate(task):
            assert {sample.goals[0] for sample in each} == {number}
            [label] = {sample.example["label"] for sample in each}
            assert len({sample.example["text"] for sample in each}) == 3
            seen.add((label, number))
    assert len(seen) == 2 * len(pool)                               # each label under each number


def test_property_new_labels_are_learned_anew_each_time(tiny_model, pool):
    objective = begin("as it is", tiny_model, pool, CONFIG, 0)
    before = _theta(objective)
    found = few_shot(objective, pool, 2, CONFIG, random.Random(0))
    assert 0 <= found <= 1 and _largest(_theta(objective), before) == 0


def test_property_a_task_is_learned(tiny_model, pool):
    objective = begin("as it is", tiny_model, pool, CONFIG, 0)
    samples = sum(draw_task(pool, 2, 4, random.Random(0)), [])
    tune(objective, samples, steps=30, lr=3e-3, batch_size=4, drawn=random.Random(0))
    assert accuracy(objective, samples, 3) == 1


@pytest.mark.parametrize("start", reptile.STARTS)
@pytest.mark.parametrize("how", [{}, {"layers": 1}, {"lora": True}], ids=str)
def test_property_every_start_has_a_head_for_the_tasks_and_leaves_what_is_frozen(tiny_model, pool, start, how):
    embeddings = tiny_model.embed_tokens.weight.detach().clone()
    below = tiny_model.layers[0].mlp.down_proj.weight.detach().clone()
    seen, new = divide(pool, CONFIG, 0)
    objective = begin(start, tiny_model, seen, CONFIG, 0, **how)
    assert objective.task.labels == ("0", "1")
    few_shot(objective, new, 1, CONFIG, random.Random(0))
    if how:
        assert torch.equal(tiny_model.embed_tokens.weight, embeddings)
    if how == {"layers": 1}:
        assert torch.equal(tiny_model.layers[0].mlp.down_proj.weight, below)


def test_property_held_out_labels_are_not_seen(pool):
    seen, new = divide(pool, CONFIG, 0)
    assert len(seen) == 3 and len(new) == 2 and not seen.keys() & new.keys() and {**seen, **new} == pool
    assert any(divide(pool, CONFIG, seed)[1].keys() != new.keys() for seed in range(1, 5))


@pytest.mark.parametrize(("changed", "words"), [
    ({"held_out": 4}, "of 5 labels 4 are held out; --ways 2"), ({"ways": 3}, "--ways 3"),
    ({"shots": (4,)}, "has 5 examples, fewer than 6")])
def test_refusal_of_too_few(pool, changed, words):
    with pytest.raises(ValueError, match=words):
        divide(pool, ReptileConfig(**{**vars(CONFIG), **changed}), 0)


def test_property_an_interrupted_comparison_goes_on(tiny_model, tmp_path, monkeypatch, capsys):
    data = tmp_path / "r.jsonl"
    data.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in EXAMPLES), encoding="utf-8")
    model = tmp_path / "model"
    tiny_model.save(str(model))
    argv = ["x", "--data", str(data), "--model", str(model), "--seeds", "1", "--output", str(tmp_path / "kept.json"),
            "--ways", "2", "--held-out", "2", "--shots", "1", "--queries", "2", "--outer-steps", "1", "--inner-steps",
            "1", "--inner-shots", "2", "--episodes", "1", "--test-steps", "1", "--max-length", "16"]
    monkeypatch.setattr("sys.argv", argv)
    reptile.main()
    shown = capsys.readouterr()
    assert "chance 0.500" in shown.out and "k = 1" in shown.out and "[3/3] Reptile, seed 0" in shown.err
    assert len(json.loads((tmp_path / "kept.json").read_text("utf-8"))) == 3
    reptile.main()
    again = capsys.readouterr()
    assert again.out == shown.out and "[1/" not in again.err


def test_worked_example_the_table_marks_what_does_not_overlap():
    kept = {f"{start} {seed}": {"start": start, "seed": seed, "accuracy": {"1": value + seed / 100}}
            for start, value in zip(reptile.STARTS, (0.2, 0.3, 0.5), strict=True) for seed in range(3)}
    lines = reptile.table(kept, [1], 5).splitlines()
    assert "0.210 ± 0.010 ▼" in lines[2] and lines[3].endswith("0.310 ± 0.010") and "0.510 ± 0.010 ▲" in lines[4]
