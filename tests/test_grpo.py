import copy
import json
import math
import random
from dataclasses import replace

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.lora import LoRAConfig, add_lora
from llama.methods import grpo
from llama.methods.grpo import (
    GRPO,
    GRPOConfig,
    Question,
    advantages,
    draw_questions,
    k3,
    right_format,
    right_sum,
    token_loss,
)
from llama.quantization.swap import quantize
from llama.tasks.generation import TextGenerationTask
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig
from tokenizer import bpe

SUM = Question("2+3=", "What is 2 + 3?", 5)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """A model that has seen sums of which one in three is right, for a few seconds."""
    drawn = random.Random(0)
    lines = [f"{a}+{b}={a + b if i % 3 == 0 else drawn.randint(0, 4)}" for i in range(300)
             for a, b in [(drawn.randint(0, 2), drawn.randint(0, 2))]]
    path = tmp_path_factory.mktemp("sums") / "sums.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=260), bpe.train(["0"], 260, special=("<|endoftext|>",)))
    Trainer(model, TextGenerationTask(), LanguageModelingDataset(path, block_size=64, documents="line"),
            config=TrainConfig(max_steps=40, epochs=99, batch_size=8, lr=1e-2)).train()
    return model.eval()


# ---- the formulas ----------------------------------------------------------------------------------------------------


def test_worked_example_advantages_by_hand():
    """(1, 0, 0, 1) has the mean 1/2 and the deviation √(1/3); a group that is all right says nothing."""
    found = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    torch.testing.assert_close(found[0], torch.tensor([1.0, -1.0, -1.0, 1.0]) * 0.5 * math.sqrt(3), rtol=1e-3, atol=0.0)
    assert not found[1].any()


@pytest.mark.parametrize(("ratio", "advantage", "gain"), [(1.5, 1.0, 1.2), (0.5, 1.0, 0.5), (1.5, -1.0, -1.5),
                                                          (0.5, -1.0, -0.8), (1.1, 2.0, 2.2)])
def test_worked_example_the_clip_by_hand(ratio, advantage, gain):
    """Beyond 1 ± 0.2 nothing more is gained by moving on, but a step in the wrong direction still counts."""
    logps, old = torch.tensor([math.log(ratio)]), torch.zeros(1)
    assert token_loss(logps, old, torch.tensor([advantage])).item() == pytest.approx(-gain)
    assert token_loss(logps, old, torch.tensor([advantage]), clip=0.0).item() == pytest.approx(-ratio * advantage)


def test_worked_example_k3_by_hand():
    """π = 1/2, π₀ = 1/4: the ratio is 1/2, and 1/2 - log 1/2 - 1 = 0.1931; it counts β times in the loss."""
    logps, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert k3(logps, reference).item() == pytest.approx(math.log(2) - 0.5)
    loss = token_loss(logps, logps, torch.tensor([3.0]), reference, kl=0.1)
    assert loss.item() == pytest.approx(0.1 * (math.log(2) - 0.5) - 3.0)


def test_property_k3_is_the_divergence_in_the_mean():
    p, q = (torch.randn(5, generator=torch.Generator().manual_seed(i)).log_softmax(0) for i in range(2))
    assert (p.exp() * k3(p, q)).sum().item() == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-6)
    assert (k3(p, q) >= 0).all()


def test_two_ways_gradients_equal_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logps, old, advantage, reference = torch.randn(4, 6, dtype=torch.float64, generator=generator).mul(0.5)
    assert torch.autograd.gradcheck(
        lambda x: token_loss(x, old, advantage, reference, kl=0.2), logps.clone().requires_grad_())


def test_worked_example_rewards():
    assert [right_sum(text, SUM) for text in ("5", " 5, I think", "It is 5.", "15", "no", "-5")] == [1, 1, 1, 0, 0, 0]
    written = ("<answer>5</answer>\n", "<answer>five</answer>", "<answer>5", "5</answer>", "5", "")
    assert [round(3 * right_format(text, SUM)) for text in written] == [3, 2, 2, 2, 1, 0]


def test_property_what_is_held_out_is_never_learned():
    learned, held = (draw_questions(400, 9, 0, reward="arithmetic", held_out=held) for held in (False, True))
    assert {each.raw for each in learned}.isdisjoint(each.raw for each in held)
    assert learned[:3] == draw_questions(3, 9, 0, reward="arithmetic", held_out=False)


# ---- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"kl": 0.02, "updates": 2}], ids=["plain", "kl, two updates"])
def test_property_the_reward_rises(sums, options, monkeypatch):
    """Of a rule that is found soon, by whatever answers a processor's roundings lead to: begin with a 3."""
    monkeypatch.setitem(grpo.REWARDS, "arithmetic", lambda text, question: float(text.startswith("3")))
    config = GRPOConfig(largest=2, steps=14, prompts=6, group=8, new_tokens=3, lr=3e-3, eval_prompts=4, **options)
    result = GRPO(copy.deepcopy(sums), config).train()
    assert result["train"]["reward_last"] > result["train"]["reward_first"] + 0.15, result
    assert result["eval"].keys() == {"reward"}


@pytest.mark.parametrize("way", ["full", "lora", "int8"])
def test_property_better_answers_become_likelier(sums, way):
    model = copy.deepcopy(sums)
    if way == "int8":
        quantize(model, bits=8, report=False)
    if way != "full":
        add_lora(model, LoRAConfig(rank=4), generator=torch.Generator().manual_seed(0))
    run = GRPO(model, GRPOConfig(largest=2, prompts=6, group=8, new_tokens=3, lr=3e-3, updates=3, eval_prompts=0))
    answers, rewards = run._draw()
    answers = [replace(answer, advantage=1.0 - 2 * (answer.ids[4] % 2)) for answer in answers]
    gains = []
    for _ in range(2):
        logps = run._logps(answers)
        gains.append(sum(answer.advantage * sum(each) / len(each) for answer, each in zip(answers, logps, strict=True)))
        told = run._learn(answers, rewards)
    assert gains[1] > gains[0] + 0.1 and told["reward"] == pytest.approx(rewards.mean().item())


def test_two_ways_a_resumed_run_equals_an_uninterrupted_one(sums, tmp_path):
    found = {}
    for name, parts in (("whole", [4]), ("halves", [2, 4])):
        for number, steps in enumerate(parts):
            model = copy.deepcopy(sums)
            add_lora(model, LoRAConfig(rank=2, dropout=0.1), generator=torch.Generator().manual_seed(0))
            config = GRPOConfig(largest=2, steps=steps, prompts=2, group=4, new_tokens=3, lr=1e-2, kl=0.1, save_every=2,
                                eval_prompts=3)
            run = GRPO(model, config, output=tmp_path / name, resume=number > 0)
            result = run.train()
        found[name] = (run.rewards, run._learned(), result["eval_before"], result["eval"])
    assert found["whole"][0] == found["halves"][0] and found["whole"][2:] == found["halves"][2:]
    assert all(torch.equal(each, found["halves"][1][name]) for name, each in found["whole"][1].items())
    lines = [json.loads(line) for line in (tmp_path / "halves.training" / "metrics.jsonl").open(encoding="utf-8")]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all("reward" in line for line in lines)
    with pytest.raises(ValueError, match="is of a run with another kl; resume with kl = 0.1"):
        GRPO(model, GRPOConfig(largest=2, prompts=2, group=4, new_tokens=3, lr=1e-2, kl=0.2),
             output=tmp_path / "halves", resume=True)


def test_property_the_id_that_ends_an_answer_is_learned(sums):
    run = GRPO(copy.deepcopy(sums), GRPOConfig(largest=2, prompts=4, group=4, new_tokens=4, eval_prompts=0))
    answers, rewards = run._draw()
    ended = [answer for answer in answers if answer.ids[-1] in run.ends]
    assert rewards.shape == (4, 4) and len(ended) > 8
    assert all(answer.loss_mask == [False] * 4 + [True] * (len(answer.ids) - 4) for answer in answers)
    assert not any(token in run.ends for answer in answers for token in answer.ids[4:-1])


def test_refuses_what_cannot_be_meant(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words, flags in (("mean nothing without --lora", ["--rank", "4"]),
                         ("take pissa or olora here", ["--lora", "--lora-init", "loftq"]),
                         ("--resume needs --output", ["--resume"])):
        monkeypatch.setattr("sys.argv", ["grpo", *flags])
        with pytest.raises(ValueError, match=words):
            grpo.main()
