import pytest
import torch

from llama.lora import LoRAConfig, add_lora
from llama.methods.r_drop import RDrop
from llama.tasks.classification import ClassificationTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.task import Sample, Task
from llama.training.objective import Plain, states_of

SAMPLES = [Sample(list(range(5, 5 + n)), [False] + [True] * (n - 1)) for n in (17, 11)]
DATA = [{"text": "天气很好。", "labels": ["a", "b"]}, {"text": "The dog sleeps.", "labels": []}]


def with_dropout(model):
    add_lora(model, LoRAConfig(rank=2, dropout=0.5), generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def kl(p, q):
    """By torch's own: of log-probabilities (N, C)."""
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")


def test_two_ways_the_loss_equals_its_equation(tiny_model):
    model, task = with_dropout(tiny_model), Task()
    batch = task.collate(SAMPLES)
    torch.manual_seed(3)
    loss, count = RDrop(model, task, alpha=2.0)(batch)
    torch.manual_seed(3)
    one, two = (model.lm_head(states_of(model, task, batch)).log_softmax(-1) for _ in range(2))
    nll = [-each.gather(1, task.targets(batch)[:, None]).sum() for each in (one, two)]
    expected = sum(nll) / 2 + 2.0 / 4 * (kl(one, two) + kl(two, one))
    assert count == 26 and kl(one, two) > 0.1 and loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_two_ways_the_gradient_equals_finite_differences(tiny_model):
    model = with_dropout(tiny_model)
    objective, batch = RDrop(model, Task(), alpha=2.0, readable=True), Task().collate(SAMPLES)
    weight = next(p for n, p in model.named_parameters() if "lora_B" in n)

    def loss(place, step):
        with torch.no_grad():
            weight.view(-1)[place] += step
        torch.manual_seed(3)
        return objective(batch)[0]

    loss(0, 0.0).backward()
    gradient = weight.grad.flatten()
    place = gradient.abs().argmax()
    assert gradient[place].item() == pytest.approx((loss(place, 1e-3) - loss(place, -2e-3)).item() / 2e-3, rel=2e-2)


@pytest.mark.parametrize("task", [ClassificationTask(multi_label=True), QuestionAnsweringTask()])
def test_property_other_answers_than_one_of_many_have_their_own_probabilities(tiny_model, task):
    """Of each label yes and no; of an answer's begin and end each row of the window: they add up to 1."""
    data = DATA if isinstance(task, ClassificationTask) else [
        {"question": q, "context": "小驼今天来了。", "answers": []} for q in ("谁来了？", "Who?")]
    task.prepare(tiny_model, data)
    batch = task.collate(task.samples(data, tiny_model.tokenizer))
    targets, scores = task.targets(batch), task.scores(tiny_model, batch)
    total = task.log_probs(scores, targets).exp().sum().item()
    assert total == pytest.approx(4.0, rel=1e-5)                    # 2 texts of 2 labels; 2 windows of 2 ends


def test_property_without_dropout_nothing_is_added(tiny_model):
    batch = Task().collate(SAMPLES)
    tiny_model.train()
    assert RDrop(tiny_model, Task(), alpha=5.0)(batch)[0].item() == pytest.approx(
        Plain(tiny_model, Task())(batch)[0].item(), rel=1e-6)
