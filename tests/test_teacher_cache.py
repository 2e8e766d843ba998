import pytest
import torch

from llama.methods.distillation import DistillConfig, Distilled, ModelTeacher
from llama.methods.teacher_cache import CachedTeacher, TeacherCache, keys_of
from llama.tasks.classification import ClassificationTask
from llama.tasks.task import Sample, Task
from llama.training.packing import pack
from tests.test_distillation import LABELS, SAMPLES


def about(model, k, **more):
    return {"teacher": "them", "top_k": k, "temperature": 2.0, "labels": None, "rows": model.config.vocab_size} | more


def filled(path, teacher, task, samples, k, **more):
    cache = TeacherCache(path, about(teacher, k, **more))
    cache.fill(ModelTeacher(teacher, task), task, samples, batch_size=2)
    return TeacherCache(path, about(teacher, k, **more))            # from the disk


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_two_ways_a_cache_of_all_ids_equals_the_teacher_itself(tiny_model, tiny_teacher, tmp_path, kind):
    """… and one of fewer says less, the fewer the less, packed or padded, in any order."""
    task, V = Task(), tiny_model.config.vocab_size
    config = DistillConfig(divergence=kind, temperature=2.0, weight=1.0)
    online = Distilled(tiny_model.train(), task, ModelTeacher(tiny_teacher, task), config)
    expected = online(task.collate(SAMPLES))[0].item()
    losses = []
    for k in (V, 100, 4):
        cache = filled(tmp_path / f"{k}", tiny_teacher, task, SAMPLES, k)
        objective = Distilled(tiny_model, task, CachedTeacher(cache, task), config)
        losses.append(objective(task.collate(SAMPLES[::-1]))[0].item())
        assert objective(pack(task, SAMPLES))[0].item() == pytest.approx(losses[-1], rel=1e-5)
    assert losses[0] == pytest.approx(expected, rel=1e-5) and losses[0] > losses[1] > losses[2] > 0


def test_two_ways_labels_from_a_cache_equal_the_teacher_itself(tiny_model, tiny_teacher, tmp_path):
    task = ClassificationTask()
    task.prepare(tiny_model, LABELS)
    ClassificationTask().prepare(tiny_teacher, LABELS)
    samples = task.samples(LABELS, tiny_model.tokenizer)
    cache = filled(tmp_path / "labels", tiny_teacher, task, samples, 32, labels=["a", "b"], temperature=None)
    batch, config = task.collate(samples), DistillConfig(temperature=3.0)
    online, cached = (Distilled(tiny_model.train(), task, each, config)(batch)[0].item()
                      for each in (ModelTeacher(tiny_teacher, task), CachedTeacher(cache, task)))
    assert cached == pytest.approx(online, rel=1e-6)


def test_property_a_killed_run_goes_on_with_what_is_missing(tiny_model, tiny_teacher, tmp_path):
    task, path = Task(), tmp_path / "cache"
    filled(path, tiny_teacher, task, SAMPLES, 8)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])                                   # killed within the second sample
    cache = TeacherCache(path, about(tiny_teacher, 8))
    assert len(cache.missing(task, SAMPLES)) == 1
    asked = []
    hook = tiny_teacher.embed_tokens.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].shape))
    cache.fill(ModelTeacher(tiny_teacher, task), task, SAMPLES)
    hook.remove()
    assert len(path.read_bytes()) == len(whole) and not cache.missing(task, SAMPLES)
    assert [shape[0] for shape in asked] == [1] and path.read_bytes()[: len(whole) // 2] == whole[: len(whole) // 2]


def test_property_other_rows_are_another_sample():
    one, two = SAMPLES[0], Sample(SAMPLES[0].ids, [False] * 5 + SAMPLES[0].loss_mask[5:])
    longer = Sample([*one.ids, 9], [*one.loss_mask, True])
    keys = [keys_of(Task(), Task().collate([each]))[0] for each in (one, two, longer)]
    assert len(set(keys)) == 3
    assert keys_of(Task(), Task().collate([two, longer])) == keys_of(Task(), pack(Task(), [two, longer])) == keys[1:]


def test_refusals_of_another_file_another_run_and_a_sample_that_is_not_there(tiny_model, tiny_teacher, tmp_path):
    path, task = tmp_path / "cache", Task()
    cache = filled(path, tiny_teacher, task, SAMPLES[:1], 8)
    with pytest.raises(ValueError, match="was written with another temperature: 2.0, and this run has 1.0; give"):
        TeacherCache(path, about(tiny_teacher, 8, temperature=1.0))
    objective = Distilled(tiny_model.train(), task, CachedTeacher(cache, task), DistillConfig())
    with pytest.raises(ValueError, match="lacks a sample of this run: give --teacher, too"):
        objective(task.collate(SAMPLES))
    path.write_text("a poem\n", encoding="utf-8")
    with pytest.raises(ValueError, match="this is no teacher cache"):
        TeacherCache(path, about(tiny_teacher, 8))
    assert torch.is_grad_enabled()
