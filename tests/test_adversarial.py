import pytest
import torch

from llama.fast.custom_autograd import use_custom_autograd
from llama.lora import LoRAConfig, add_lora
from llama.methods.adversarial import Adversarial, AdversarialConfig, climbed
from llama.quantization.swap import quantize
from llama.tasks.classification import ClassificationTask
from llama.tasks.task import Sample, Task
from llama.training.activation_checkpointing import checkpoint_activations
from llama.training.objective import Plain
from llama.training.packing import pack, sample_of_position

TEXTS = [list(range(5, 17)), list(range(20, 26)), list(range(40, 48))]   # no id twice: a row of the table is a position
SAMPLES = [Sample(ids, [False] * 2 + [True] * (len(ids) - 2)) for ids in TEXTS]


def untied(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model.train()


def gradients(objective, batch):
    objective.model.zero_grad()
    loss, _ = objective(batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in objective.model.named_parameters() if p.grad is not None}


def test_two_ways_fgm_equals_a_table_that_was_moved(tiny_model):
    """One example without a repeated id: then δ can be added to rows of the embedding."""
    model, batch = untied(tiny_model), Task().collate(SAMPLES[:1])
    loss, found = gradients(Adversarial(Plain(model, Task()), AdversarialConfig("fgm", epsilon=0.1)), batch)
    clean, expected = gradients(Plain(model, Task(), readable=True), batch)
    table, read = model.embed_tokens.weight, batch["tokens"][0]
    before, gradient = table.detach().clone(), expected["embed_tokens.weight"][read]
    with torch.no_grad():
        table[read] += 0.1 * before[read].norm() * gradient / gradient.norm()
    moved, second = gradients(Plain(model, Task(), readable=True), batch)
    assert moved > clean + 0.01 and loss == pytest.approx((clean + moved) / 2, rel=1e-5)
    for name, value in found.items():
        torch.testing.assert_close(value, (expected[name] + second[name]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["fgm", "pgd", "freelb"])
def test_property_an_example_is_perturbed_as_if_it_were_alone(tiny_model, kind):
    """… padded, and packed, too."""
    model = untied(tiny_model)
    objective = Adversarial(Plain(model, Task()), AdversarialConfig(kind, epsilon=0.2))
    alone = [gradients(objective, Task().collate([sample])) for sample in SAMPLES]
    for batch in (Task().collate(SAMPLES), pack(Task(), SAMPLES)):
        loss, found = gradients(objective, batch)
        assert loss == pytest.approx(sum(each for each, _ in alone), rel=1e-5)
        for name, value in found.items():
            torch.testing.assert_close(value, sum(each[name] for _, each in alone), rtol=1e-3, atol=1e-5)


def test_property_the_more_steps_the_higher_the_loss_within_the_ball(tiny_model):
    model, batch = untied(tiny_model), Task().collate(SAMPLES)
    losses = [gradients(Adversarial(Plain(model, Task()), AdversarialConfig("pgd", epsilon=0.3, steps=steps)), batch)[0]
              for steps in (1, 3, 8)]
    assert gradients(Plain(model, Task()), batch)[0] < losses[0] < losses[1] < losses[2] + 1e-4


def test_two_ways_fgm_is_freelb_of_two_points(tiny_model):
    model, batch = untied(tiny_model), Task().collate(SAMPLES)
    fgm, freelb = (gradients(Adversarial(Plain(model, Task()), AdversarialConfig(kind, steps=2)), batch)
                   for kind in ("fgm", "freelb"))
    assert fgm[0] == freelb[0] and all(torch.equal(fgm[1][name], freelb[1][name]) for name in fgm[1])


def test_worked_example_a_step_and_the_border_of_the_ball():
    """x = (3, 4) has norm 5; padding has no gradient, and counts nowhere."""
    x, gradient = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 2.0], [0.0, 0.0]]])
    sample = torch.tensor([[0, 0]])
    first = climbed(torch.zeros(1, 2, 2), gradient, x, sample, alpha=0.3, epsilon=0.4)
    torch.testing.assert_close(first, torch.tensor([[[0.0, 1.5], [0.0, 0.0]]]))
    second = climbed(first, gradient, x, sample, alpha=0.3, epsilon=0.4)
    torch.testing.assert_close(second, torch.tensor([[[0.0, 2.0], [0.0, 0.0]]]))


@pytest.mark.parametrize("bits", [0, 8])
def test_two_ways_lora_on_frozen_embeddings_by_fast_gradients_and_recomputed(tiny_model, bits):
    """Over a base of floats or few bits; FreeLB holds its graphs and goes through each twice."""
    if bits:
        quantize(tiny_model, bits=bits, report=False)
    add_lora(tiny_model, LoRAConfig(rank=2))
    for name, parameter in tiny_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tiny_model.double().train()
    batch, config = Task().collate(SAMPLES), AdversarialConfig("freelb", epsilon=0.2)
    loss, expected = gradients(Adversarial(Plain(tiny_model, Task(), readable=True), config), batch)
    use_custom_autograd(tiny_model)
    checkpoint_activations(tiny_model)
    fast, found = gradients(Adversarial(Plain(tiny_model, Task()), config), batch)
    assert fast == pytest.approx(loss, rel=1e-5) and found and all("lora_" in name for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_property_a_random_start_lies_within_the_ball(tiny_model):
    model, batch = untied(tiny_model), Task().collate(SAMPLES)
    objective = Adversarial(Plain(model, Task()), AdversarialConfig("pgd", epsilon=0.2, start=0.5))
    sample, sizes = sample_of_position(batch), torch.tensor([len(ids) - 1 for ids in TEXTS])
    start = objective._start(batch)
    x = model.embed_tokens(batch["tokens"])
    for row, size in zip(sample[:, 0].tolist(), sizes.tolist(), strict=True):
        part = start[row, :size].norm() / x[row, :size].norm()
        assert part.item() == pytest.approx(0.1, rel=0.2)


def test_property_scores_and_losses_of_evaluation_are_clean(tiny_model):
    task = ClassificationTask()
    data = [{"text": "天气很好。", "label": "a"}, {"text": "The dog sleeps.", "label": "b"}]
    task.prepare(tiny_model, data)
    batch = task.collate(task.samples(data, tiny_model.tokenizer))
    plain = Plain(tiny_model, task)
    objective = Adversarial(plain, AdversarialConfig())
    tiny_model.eval()
    assert objective(batch)[0] == plain(batch)[0] and torch.equal(objective.scores(batch), plain.scores(batch))
    tiny_model.train()
    assert objective(batch)[0] > plain(batch)[0] and not tiny_model.embed_tokens._forward_hooks
    objective.task = Task()                                         # as texts are watched
    assert plain.task is objective.task and objective.model is tiny_model


def test_refusal_a_climb_of_one_point():
    with pytest.raises(ValueError, match="freelb with 1 step learns unperturbed examples alone"):
        AdversarialConfig("freelb", steps=1)


def test_property_what_has_learned_so_withstands_more(tiny_model):
    """Two labels, learned by heart: an attack of half the norm undoes the plain loss, and not that of FGM."""
    texts = [("天气很好。", "a"), ("The dog sleeps.", "b"), ("小驼是模型", "a"), ("the fox goes home", "b")]
    task, before = ClassificationTask(), {}
    data = [{"text": text, "label": label} for text, label in texts]
    task.prepare(tiny_model, data)
    batch, plain = task.collate(task.samples(data, tiny_model.tokenizer)), Plain(tiny_model.train(), task)
    start, losses = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}, {}
    for name, objective in (("plain", plain), ("fgm", Adversarial(plain, AdversarialConfig("fgm", epsilon=0.5)))):
        tiny_model.load_state_dict(start)
        optimizer = torch.optim.Adam(tiny_model.parameters(), lr=3e-3)
        for _ in range(25):
            gradients(objective, batch)
            optimizer.step()
        attack = Adversarial(plain, AdversarialConfig("pgd", epsilon=0.5, steps=5))
        before[name], losses[name] = plain(batch)[0].item() / 4, attack(batch)[0].item() / 4
    assert max(before.values()) < 0.1 and losses["plain"] > 0.5 and losses["fgm"] < 0.1
