import torch

from llama.config import preset
from tokenizer.pretokenize import RULES
from weights.passage import TEXT, passage


def test_property_the_text_has_enough_tokens_in_any_vocabulary(tiny_tokenizer):
    config = preset("test")
    assert all(len(list(rule.split(TEXT))) > 256 for rule in RULES.values())    # no token is longer than a word
    assert passage(tiny_tokenizer, config).how == "256 tokens of the built-in text"
    for V in (2, 3, 262_144):
        text = passage(None, preset("test", vocab_size=V))
        ids = torch.cat(text.rows)
        assert text.how == "256 ids derived from their position" and len(ids) == 256
        assert 0 <= ids.min() and ids.max() < V and len(ids.unique()) > min(V, 256) * 0.6
    rows = passage(None, preset("test", max_position_embeddings=100)).rows
    assert [len(row) for row in rows] == [100, 100, 56]
