import torch

from llama.methods.noise import Noisy, lengths
from llama.tasks.task import Sample, Task
from llama.training.objective import Plain
from llama.training.packing import pack

SAMPLES = [Sample(list(range(5, 5 + n)), [False] + [True] * (n - 1)) for n in (41, 11, 5)]


def read_by_blocks(model, batch, alpha):
    """What the first block reads, (B, T, D), and without noise."""
    found = []
    hook = model.layers[0].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    Noisy(Plain(model, Task()), alpha)(batch)
    Plain(model, Task())(batch)
    hook.remove()
    return found


def test_worked_example_the_size_of_the_noise(tiny_model):
    """Uniform within ± α / √(T D) of each example's own T, padded or packed."""
    torch.manual_seed(0)
    D = tiny_model.config.hidden_size
    tiny_model.train()
    for batch in (Task().collate(SAMPLES), pack(Task(), SAMPLES)):
        noisy, clean = read_by_blocks(tiny_model, batch, alpha=5.0)
        noise = (noisy - clean).detach()
        rows = [noise[0], noise[1, :10], noise[2, :4]] if len(noise) > 1 else noise[0].split([40, 10, 4])
        for row, T in zip(rows, (40, 10, 4), strict=True):
            bound = 5.0 / (T * D) ** 0.5
            assert 0.97 * bound < row.abs().max() <= bound * 1.001 and abs(row.mean()) < 0.1 * bound


def test_property_evaluation_hears_none(tiny_model):
    noisy, clean = read_by_blocks(tiny_model.eval(), Task().collate(SAMPLES), alpha=5.0)
    assert torch.equal(noisy, clean)


def test_worked_example_lengths_of_padded_and_packed_samples():
    assert lengths(Task().collate(SAMPLES)).tolist() == lengths(pack(Task(), SAMPLES)).tolist() == [40, 10, 4]
