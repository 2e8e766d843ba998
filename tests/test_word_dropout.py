import torch

from llama.tasks.classification import ClassificationTask
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig
from llama.training.word_dropout import kept, word_dropout

TOKENS = torch.arange(3, 43).view(2, 20)


def test_property_tokens_are_missing_in_training_mode_and_within_alone(tiny_model):
    whole = tiny_model.embed_tokens(TOKENS)
    with word_dropout(tiny_model, 0.4):
        assert torch.equal(tiny_model.embed_tokens(TOKENS), whole)                      # eval mode
        tiny_model.train()
        some = tiny_model.embed_tokens(TOKENS)
    missing = (some == 0).all(-1)
    assert missing.any() and not missing.all() and torch.equal(some[~missing], whole[~missing])
    assert torch.equal(tiny_model.embed_tokens(TOKENS), whole)
    with word_dropout(tiny_model, 0.0):
        assert torch.equal(tiny_model.embed_tokens(TOKENS), whole)


def test_property_rows_lose_different_parts():
    torch.manual_seed(0)
    missing = 1 - kept((400, 500), 0.2, torch.device("cpu")).float().mean(1)
    assert abs(missing.mean() - 0.2) < 0.01 and missing.min() < 0.03 and missing.max() > 0.37


def test_worked_example_a_run_that_drops_words(tiny_model):
    """It learns, and the model is whole again behind it."""
    data = [{"text": "天气很好。", "label": "a"}, {"text": "The dog sleeps.", "label": "b"}]
    losses = []
    for part in (0.0, 0.5):
        config = TrainConfig(word_dropout=part, max_steps=1, batch_size=2, lr=1e-9)
        losses.append(Trainer(tiny_model, ClassificationTask(), data, config=config).train()["train"]["loss"])
    assert losses[0] != losses[1] and not tiny_model.embed_tokens._forward_hooks
