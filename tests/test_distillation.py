import copy

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.methods.distillation import DistillConfig, Distilled, ModelTeacher, check_teacher, divergence
from llama.tasks.classification import ClassificationTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask
from llama.tasks.task import Sample, Task
from llama.training.objective import Plain, states_of
from llama.training.packing import pack
from tokenizer import bpe

SAMPLES = [Sample(list(range(5, 5 + n)), [False] * 3 + [True] * (n - 3)) for n in (17, 11)]
LABELS = [{"text": "天气很好。", "label": "a"}, {"text": "The dog sleeps.", "label": "b"}]


def distilled(model, teacher, task=None, **config):
    task = task or Task()
    return Distilled(model.train(), task, ModelTeacher(teacher, task), DistillConfig(**config))


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric"])
def test_two_ways_the_loss_equals_torchs_own_divergence(tiny_model, tiny_teacher, kind):
    task, batch = Task(), Task().collate(SAMPLES)
    loss, count = distilled(tiny_model, tiny_teacher, divergence=kind, temperature=2.0, weight=0.3)(batch)
    p, q = ((model.head(states_of(model, task, batch)) / 2).log_softmax(-1) for model in (tiny_teacher, tiny_model))
    kl = {"forward": torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"),
          "reverse": torch.nn.functional.kl_div(p, q, log_target=True, reduction="sum")}
    kl["symmetric"] = (kl["forward"] + kl["reverse"]) / 2
    expected = 0.7 * Plain(tiny_model, task)(batch)[0] + 0.3 * 4 * kl[kind]
    assert count == 22 and kl[kind] > 1 and loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_two_ways_the_gradient_is_that_of_the_equation(tiny_model, tiny_teacher):
    """τ² KL(p‖q) has the gradient τ (q - p) on the student's logits, and so Wᵀ of that on its states."""
    task, batch, tau = Task(), Task().collate(SAMPLES), 3.0
    states = states_of(tiny_model, task, batch).detach().requires_grad_()
    objective = distilled(tiny_model, tiny_teacher, temperature=tau, weight=1.0)
    objective.states = lambda batch: states
    objective(batch)[0].backward()
    with torch.no_grad():
        p, q = ((model.head(each) / tau).softmax(-1) for model, each in (
            (tiny_teacher, states_of(tiny_teacher, task, batch)), (tiny_model, states)))
        expected = tau * (q - p) @ tiny_model.lm_head.weight
    torch.testing.assert_close(states.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["reverse", "symmetric"])
def test_two_ways_other_gradients_equal_finite_differences(kind):
    torch.manual_seed(0)
    p = torch.randn(3, 7, dtype=torch.float64).log_softmax(-1)
    z = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: divergence(p, z.log_softmax(-1), kind), z)


def test_property_a_teacher_that_is_the_student_has_nothing_to_say(tiny_model):
    batch = Task().collate(SAMPLES)
    for kind in ("forward", "reverse", "symmetric"):
        loss, _ = distilled(tiny_model, copy.deepcopy(tiny_model), divergence=kind, weight=1.0, hidden=1.0)(batch)
        assert loss.item() == pytest.approx(0.0, abs=1e-4)


def test_two_ways_packed_equals_padded_and_states_are_matched(tiny_model, tiny_tokenizer):
    torch.manual_seed(7)
    wide = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size), tiny_tokenizer).eval()
    batch = Task().collate(SAMPLES)
    objective = distilled(tiny_model, wide, hidden=0.5)
    padded, packed = objective(batch)[0], objective(pack(Task(), SAMPLES))[0]
    s, t = (states_of(model, Task(), batch) for model in (tiny_model, wide))
    without = distilled(tiny_model, wide)(batch)[0]
    assert padded.item() == pytest.approx((without + 0.5 * (s - t).square().mean(-1).sum()).item(), rel=1e-5)
    assert packed.item() == pytest.approx(padded.item(), rel=1e-5)


@pytest.mark.parametrize("task", [ClassificationTask, NERTask, QuestionAnsweringTask])
def test_two_ways_of_labels_it_is_the_divergence_of_their_probabilities(tiny_model, tiny_teacher, task):
    """By their names: the teacher has them in another order."""
    data = {ClassificationTask: LABELS,
            NERTask: [{"text": "小驼在北京", "tokens": list("小驼在北京"), "starts": list(range(5)),
                       "tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]}],
            QuestionAnsweringTask: [{"question": "谁？", "context": "小驼来了。", "answers": []}]}[task]
    own = task()
    own.prepare(tiny_model, data)
    other = task()
    if task is not QuestionAnsweringTask:
        other.labels = own.labels[::-1]
    other.prepare(tiny_teacher, data)
    torch.nn.init.normal_(tiny_teacher.head.weight)
    batch = own.collate(own.samples(data, tiny_model.tokenizer))
    objective = distilled(tiny_model, tiny_teacher, own, weight=1.0)
    check_teacher(tiny_teacher, tiny_model, own, objective.config)
    q, p = (own.log_probs(own.scores(model, batch)[:, order], own.targets(batch)) for model, order in (
        (tiny_model, slice(None)), (tiny_teacher, [other.labels.index(each) for each in own.labels])))
    assert objective(batch)[0].item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-4)


def test_refusals_of_teachers_that_speak_of_something_else(tiny_model, tiny_teacher):
    with pytest.raises(ValueError, match="states have 16 numbers and the student's 32"):
        check_teacher(tiny_teacher, tiny_model, Task(), DistillConfig(hidden=1.0))
    task = ClassificationTask()
    task.prepare(tiny_model, LABELS)
    with pytest.raises(ValueError, match="the teacher has no head of labels, and the student one; tune the teacher"):
        check_teacher(tiny_teacher, tiny_model, task, DistillConfig())
    ClassificationTask(("a", "c")).prepare(tiny_teacher, [LABELS[0]])
    with pytest.raises(ValueError, match="the teacher's labels are a, c, and the student's a, b; they must be the"):
        check_teacher(tiny_teacher, tiny_model, task, DistillConfig())
    tiny_teacher.tokenizer = bpe.train(["other words"] * 4, 270)
    with pytest.raises(ValueError, match=r"the teacher's vocabulary is another \(2\d\d pieces against the student's 4"):
        check_teacher(tiny_teacher, tiny_model, task, DistillConfig())
