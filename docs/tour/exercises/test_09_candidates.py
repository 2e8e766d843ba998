import torch

from docs.tour.exercises.candidates import candidates
from llama.config import preset
from llama.model import Llama


def test_worked_example_of_the_page():
    head = torch.tensor([[1.0, 0.0], [0.8, 0.8], [0.0, 1.0], [-1.0, 0.2], [0.3, -1.0]])
    hidden = torch.tensor([[[5.0, 5.0], [0.9, 1.1]], [[0.0, 0.0], [-1.0, 0.0]]])
    assert candidates(hidden, head, 2).tolist() == [[1, 2], [3, 2]]


def test_two_ways_equals_the_model_s_logits():
    model, tokens = Llama(preset("test")), torch.randint(512, (3, 5))
    with torch.no_grad():
        expected = model(tokens)[:, -1].argsort(-1, descending=True)[:, :4]
        assert torch.equal(candidates(model.hidden(tokens), model.lm_head.weight, 4), expected)
