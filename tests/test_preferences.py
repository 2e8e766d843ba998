import copy
import functools
import json
import math

import pytest
import torch
from torch import nn

import finetune
from llama import evaluate
from llama.datasets.preferences import PreferenceDataset
from llama.lora import LoRAConfig, add_lora
from llama.methods.preferences import (
    Preference,
    PreferenceConfig,
    begin,
    dpo,
    loglikelihoods,
    orpo,
    remember_reference,
    simpo,
)
from llama.quantization.swap import quantize
from llama.tasks.instruction import InstructionTask
from llama.tasks.preference import PreferenceTask
from llama.trainer import Trainer
from llama.training.inspect_samples import show_sample
from llama.training.optimizer import TrainConfig

PAIRS = [{"messages": [{"role": "user", "content": asked}], "chosen": {"role": "assistant", "content": chosen},
          "rejected": {"role": "assistant", "content": rejected}, "place": f"here:{number}"}
         for number, (asked, chosen, rejected) in enumerate([
             ("The dog?", "sleeps.", "goes home, and the fox sleeps."), ("天气", "今天天气很好。", "好。"),
             ("The fox?", "jumps over the dog.", "no"), ("Emoji", "numbers 12345", "and   spaces.")])]


def write(path, records):
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
    return path


def batch_of(task, model, pairs=PAIRS):
    return task.collate(task.samples(pairs, model.tokenizer))


# ---- the data --------------------------------------------------------------------------------------------------------


def test_worked_example_every_form_of_a_pair(tmp_path):
    user, good, bad = ({"role": role, "content": text} for role, text in
                       (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "What?")))
    old = [{"from": "human", "value": "Hi"}]
    gpt = [{"from": "gpt", "value": text} for text in ("Hello!", "What?")]
    found = PreferenceDataset(write(tmp_path / "a.jsonl", [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"conversations": old, "chosen": gpt[0], "rejected": gpt[1]},
        {"messages": [user], "chosen": good, "rejected": "What?"},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"chosen_messages": [user, good], "rejected_messages": [user, bad]}]))
    for example in found:
        assert {key: example[key] for key in ("messages", "chosen", "rejected")} == {
            "messages": [user], "chosen": good, "rejected": bad}


@pytest.mark.parametrize(("record", "words"), [
    ({"prompt": "Hi", "chosen": "Hello!"}, "a.jsonl:1: the record has prompt, chosen; a pair has 'chosen'"),
    ({"prompt": "Hi", "chosen": "!", "rejected": "!"}, "are the same answer, so nothing is preferred"),
    ({"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "!"}],
      "rejected": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "?"}]},
     "answer different conversations")])
def test_refuses_what_is_no_pair(tmp_path, record, words):
    with pytest.raises(ValueError, match=words):
        PreferenceDataset(write(tmp_path / "a.jsonl", [record]))


def test_worked_example_a_batch_is_chosen_rows_then_rejected_rows(tiny_model):
    task, tokenizer = PreferenceTask("chatml"), tiny_model.tokenizer
    pairs = task.samples(PAIRS, tokenizer)
    batch, B = task.collate(pairs), len(PAIRS)
    for b, example in enumerate(PAIRS):
        for row, side in ((b, "chosen"), (B + b, "rejected")):
            learned = batch["targets"][row]
            said = tokenizer.decode(learned[learned != -100].tolist())
            assert said == example[side]["content"] + "<|im_end|>"
    assert task.count(task.targets(batch)) == B and batch["reference"].isnan().all()
    shown = "\n".join(show_sample(part, tokenizer, colour=False) for part in pairs[0].parts)
    assert "here:0, as the model sees it" in shown and "here:0, rejected, as the model sees it" in shown
    assert pairs[0].reads == sum(part.reads for part in InstructionTask("chatml").samples(
        [{"messages": [*PAIRS[0]["messages"], PAIRS[0][side]]} for side in ("chosen", "rejected")], tokenizer))


@pytest.mark.parametrize("lengths", [(3, 40), (40, 3), (40, 30)])
def test_property_both_answers_answer_the_same(tiny_model, lengths):
    """A question that is too long loses its middle, and both answers see what is left of it."""
    tokenizer = tiny_model.tokenizer
    example = {"messages": [{"role": "user", "content": " ".join(f"fox {i}" for i in range(60))}], "place": "here"} | {
        name: {"role": "assistant", "content": "dog " * length + name} for name, length in zip(
            ("chosen", "rejected"), lengths, strict=True)}
    pair = PreferenceTask("chatml", max_length=100).encode(example, tokenizer)
    begins = [part.loss_mask.index(True) for part in (pair, pair.rejected)]
    assert begins[0] == begins[1] and pair.ids[: begins[0]] == pair.rejected.ids[: begins[0]] and pair.cut > 0
    assert max(len(pair.ids), len(pair.rejected.ids)) <= 100


# ---- the losses ------------------------------------------------------------------------------------------------------


def test_worked_example_dpo_by_hand():
    """Rewards 0.5 (-2 + 3) = 0.5 and 0.5 (-5 + 4) = -0.5: the loss is log(1 + e^-1) = 0.3133."""
    loss, rewards = dpo(torch.tensor([[-2.0, -5.0]]), torch.tensor([[-3.0, -4.0]]), 0.5)
    assert rewards.tolist() == [[0.5, -0.5]] and loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert dpo(torch.ones(1, 2), torch.ones(1, 2), 0.1)[0].item() == pytest.approx(math.log(2))


def test_worked_example_simpo_by_hand():
    """Rewards 2 · -2/4 = -1 and 2 · -6/3 = -4, so the loss is -log σ(3 - 1) = log(1 + e^-2) = 0.1269."""
    loss, rewards = simpo(torch.tensor([[-2.0, -6.0]]), torch.tensor([[4, 3]]), 2.0, 1.0)
    assert rewards.tolist() == [[-1.0, -4.0]] and loss.item() == pytest.approx(math.log1p(math.exp(-2)))


def test_worked_example_orpo_by_hand():
    """p = 1/2 and 1/5 a token: odds 1 and 1/4, so -log σ(log 4) = log(1 + 1/4), and -log p₊ = log 2."""
    loss, _ = orpo(torch.tensor([[2 * math.log(0.5), 3 * math.log(0.2)]]), torch.tensor([[2, 3]]), 0.1)
    assert loss.item() == pytest.approx(math.log(2) + 0.1 * math.log(1.25))
    assert orpo(torch.zeros(1, 2), torch.ones(1, 2), 0.1)[0].isfinite()                 # a model that is quite sure


@pytest.mark.parametrize("kind", ["dpo", "simpo", "orpo"])
def test_two_ways_gradients_equal_finite_differences(kind):
    logps = -torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5 - 0.1
    tokens, reference = torch.tensor([[2, 3], [4, 1], [5, 5]]), torch.full((3, 2), -2.0, dtype=torch.float64)
    of = {"dpo": lambda x: dpo(x, reference, 0.3)[0], "simpo": lambda x: simpo(x, tokens, 2.0, 0.5)[0],
          "orpo": lambda x: orpo(x, tokens, 0.1)[0]}[kind]
    assert torch.autograd.gradcheck(of, logps.requires_grad_())


def test_two_ways_loglikelihoods_in_chunks_equal_logits_at_once(monkeypatch):
    monkeypatch.setattr("llama.methods.preferences.LOGITS_AT_ONCE", 33)
    head, targets = nn.Linear(8, 11, bias=False), torch.randint(0, 11, (10,))
    hidden = torch.randn(10, 8, requires_grad=True)
    found, expected = loglikelihoods(hidden, targets, head), head(hidden).log_softmax(-1)[range(10), targets]
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((each * torch.arange(10)).sum(), hidden)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["dpo", "simpo", "orpo"])
def test_two_ways_the_objective_equals_whole_logits(tiny_model, kind):
    """Of logits of every position, sequence by sequence, without padding."""
    task, config = PreferenceTask("chatml"), PreferenceConfig(preference_loss=kind)
    objective = Preference(tiny_model, task, config=config)
    pairs = task.samples(PAIRS, tiny_model.tokenizer)
    remember_reference(objective, pairs, tiny_model.tokenizer, batch_size=3)
    with torch.no_grad():
        tiny_model.layers[0].mlp.up_proj.weight.mul_(1.5)
    total = 0.0
    for pair in pairs:
        sums, counts = [], []
        for part in (pair, pair.rejected):
            logits = tiny_model(torch.tensor([part.ids[:-1]]))[0].log_softmax(-1)
            learned = [i for i, learn in enumerate(part.loss_mask) if learn]
            sums.append(sum(logits[i - 1, part.ids[i]] for i in learned))
            counts.append(len(learned))
        logps, tokens = torch.stack(sums)[None], torch.tensor([counts])
        reference = torch.tensor([task.reference[pair.key]])
        total += (dpo(logps, reference, 0.1) if kind == "dpo" else simpo(logps, tokens, 2.0, 1.0) if kind == "simpo"
                  else orpo(logps, tokens, 0.1))[0]
    loss, count = objective(task.collate(pairs))
    assert count == len(PAIRS)
    torch.testing.assert_close(loss, total[0], rtol=1e-4, atol=1e-4)
    if kind == "dpo":
        assert abs(loss.item() / count - math.log(2)) > 1e-5        # the model is no longer what it was


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "way"), [("dpo", "full"), ("dpo", "int8"), ("simpo", "lora"), ("orpo", "lora")])
def test_property_what_is_learned_ranks_the_pairs(tiny_model, kind, way):
    if way == "int8":
        quantize(tiny_model, bits=8, report=False)
    if way != "full":
        add_lora(tiny_model, LoRAConfig(rank=4), generator=torch.Generator().manual_seed(0))
    config = TrainConfig(max_steps=8, epochs=8, batch_size=2, accumulate=2, lr=1e-2, schedule="constant",
                         eval_every=8)
    trainer = Trainer(tiny_model, PreferenceTask("chatml"), PAIRS, PAIRS, config=config,
                      objective=functools.partial(Preference, config=PreferenceConfig(preference_loss=kind)))
    assert not trainer.packs
    begin(trainer)
    result = trainer.train()
    before, after = result["eval_before"], result["eval"]
    assert after["accuracy"] == 1.0 and after["margin"] > before["margin"] and after["loss"] < before["loss"]
    if kind == "dpo":
        assert before["loss"] == pytest.approx(math.log(2), abs=1e-4) and before["margin"] == pytest.approx(0, abs=1e-4)


def test_two_ways_a_resumed_run_knows_what_the_model_said_before(tiny_model, tmp_path):
    start, ways = tiny_model, {}
    for name, steps in (("whole", [6]), ("halves", [3, 6])):
        for number, most in enumerate(steps):
            model = copy.deepcopy(start)
            config = TrainConfig(max_steps=most, epochs=9, batch_size=2, lr=1e-2, save_every=3, schedule="constant",
                                 warmup=0.0)
            trainer = Trainer(model, PreferenceTask("chatml"), PAIRS, PAIRS, config=config, output=tmp_path / name,
                              objective=Preference, resume=number > 0)
            if number:                                              # the model that is here has learned already
                assert trainer.step == 3
            begin(trainer, resume=number > 0)
            ways[name] = trainer.train()["eval"]
    assert ways["whole"] == pytest.approx(ways["halves"], rel=1e-4)
    (tmp_path / "halves.training" / "reference.json").unlink()
    with pytest.raises(ValueError, match="reference.json cannot be read, and it says what the model said before"):
        begin(Trainer(model, PreferenceTask("chatml"), PAIRS, PAIRS, config=config, output=tmp_path / "halves",
                      objective=Preference, resume=True), resume=True)


def test_refuses_pairs_of_which_nothing_is_known_and_tasks_without_pairs(tiny_model):
    task = PreferenceTask("chatml")
    with pytest.raises(ValueError, match="call remember_reference before the first step"):
        Preference(tiny_model, task)(batch_of(task, tiny_model))
    with pytest.raises(ValueError, match="a loss over pairs needs a PreferenceTask, and this is a InstructionTask"):
        Preference(tiny_model, InstructionTask("chatml"))
    with pytest.raises(ValueError, match="--pack: a pair of answers is two rows of a batch"):
        Trainer(tiny_model, task, PAIRS, config=TrainConfig(pack="on"), objective=Preference)


@pytest.fixture
def door(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("model")
    write(tmp_path / "pairs.jsonl", [{"prompt": each["messages"][0]["content"], "chosen": each["chosen"]["content"],
                                      "rejected": each["rejected"]["content"]} for each in PAIRS])

    def door(main, *flags):
        monkeypatch.setattr("sys.argv", ["door", "--model", "model", "--data", "pairs.jsonl", "--task", "preference",
                                         "--chat-format", "chatml", "--device", "cpu", "--max-length", "200",
                                         *flags])
        main()
        out = capsys.readouterr()
        return json.loads(out.out.splitlines()[-1]) if out.out.startswith("{") else out.out, out.err
    return door


def test_two_ways_the_commands_learn_and_score_pairs(door):
    """What training says of its test data is what evaluating the adapter says, against the model without it."""
    held = ["--test-data", "pairs.jsonl", "--eval-data", "pairs.jsonl"]
    learned, said = door(finetune.main, "--lora", "--max-steps", "8", "--epochs", "9", "--lr", "0.01", "--output", "a",
                         "--dtype", "float32", *held)
    assert learned["test"]["accuracy"] == 1.0 and "rejected, as the model sees it" in said
    scores, _ = door(evaluate.main, "--adapter", "a", "--json", "--dtype", "float32")
    assert scores == pytest.approx(learned["test"], rel=1e-3)
    scores, _ = door(evaluate.main, "--preference-loss", "simpo", "--json")
    assert scores["margin"] == pytest.approx(scores["chosen_reward"] - scores["rejected_reward"])
    with pytest.raises(ValueError, match="only an adapter still has; name it with --adapter"):
        door(evaluate.main)
    with pytest.raises(ValueError, match="--preference-loss, --beta and --margin are about pairs"):
        door(finetune.main, "--lora", "--task", "instruction", "--beta", "0.3")
    dry, _ = door(finetune.main, "--lora", "--dry-run", "--json", "--output", "b")
    assert dry["dry_run"]["memory"]["peak"] > 0
    shown, _ = door(finetune.main, "--inspect", "1")
    assert "pairs.jsonl:1, rejected, as the model sees it" in shown and "check rejected" in shown
