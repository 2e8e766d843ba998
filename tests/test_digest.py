import hashlib
import itertools
import random

import pytest
import torch

from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.token_file import TokenFile, write_tokens
from llama.tasks.generation import TextGenerationTask
from llama.tasks.labelled import Labelled
from llama.tasks.task import Sample
from llama.training.digest import digest, samples_digest


def test_worked_example_kind_length_and_content():
    numbers = torch.tensor([1.0, -2.0])
    assert digest(numbers) == hashlib.sha256(b"torch.float32 (2,) " + numbers.numpy().tobytes()).digest()
    assert digest(["a", 7]) == hashlib.sha256(b"list of 2 str of 3 'a'int of 1 7").digest()


def test_property_no_two_values_share_a_digest():
    ones = torch.ones(4)
    values = [None, True, 1, 1.0, "1", b"1", [], (), {}, "", [1], (1,), [1, 2], [[1], [2]], [[1, 2]], [12], [[], 1, 2],
              {"a": 1}, ["a", 1], [("a", 1)], {"a": {"b": 1}}, {"a": "b", "c": 1}, float("nan"), float("inf"), -0.0, 0.,
              ones, ones[:3], ones.reshape(2, 2), ones.bool(), ones.to(torch.uint8), ones.bfloat16(), ones.half(),
              ones.double(), torch.tensor(1.0), torch.zeros(0), torch.zeros(0, 2), {"a": ones}, {"b": ones}, [ones]]
    for one, other in itertools.combinations(values, 2):
        assert digest(one) != digest(other), (one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_property_every_bit_of_a_tensor_counts(dtype):
    numbers = torch.arange(-40, 40).to(dtype).reshape(8, 10)
    before, chance = digest({"w": numbers}), random.Random(0)
    for _ in range(50):
        flipped = numbers.clone()
        flipped.reshape(-1).view(torch.uint8)[chance.randrange(numbers.nbytes)] ^= 1 << chance.randrange(8)
        assert digest({"w": flipped}) != before
    assert digest({"w": numbers.T.contiguous().T}) == before        # how it lies in memory is no part of it


def test_property_of_samples_all_counts_but_their_place():
    samples = [Sample([1, 2, 3], [False, True, True], "a:1"), Labelled([4, 5], [True, True], "a:2", goals=[0, 1])]
    same = [Sample([1, 2, 3], [False, True, True], "b:7"), Labelled([4, 5], [True, True], "", goals=[0, 1])]
    assert samples_digest(samples) == samples_digest(same)
    for other in ([samples[1], samples[0]], samples[:1], [], [Sample([1, 2, 4], [False, True, True]), samples[1]],
                  [Sample([1, 2, 3], [False, False, True]), samples[1]],
                  [samples[0], Labelled([4, 5], [True, True], goals=[1, 1])]):
        assert samples_digest(other) != samples_digest(samples)


def test_property_of_a_text_every_id_and_how_it_is_cut_count(tmp_path, tiny_tokenizer):
    def blocks(text, size=8):
        write_tokens(tmp_path / "x.tokens", [text], tiny_tokenizer)
        return TextGenerationTask().samples(TokenFile(tmp_path / "x.tokens", block_size=size), tiny_tokenizer)

    expected = samples_digest(blocks("The dog sleeps, and the fox goes home."))
    assert samples_digest(blocks("The dog sleeps, and the fox goes home.")) == expected
    assert samples_digest(blocks("The dog sleeps, and the fox goes home!")) != expected
    assert samples_digest(blocks("The dog sleeps, and the fox goes home.", 9)) != expected
    data = [LanguageModelingDataset([text], block_size=8) for text in ("The dog sleeps.", "The fox sleeps.")]
    one, other = (samples_digest(TextGenerationTask().samples(each, tiny_tokenizer)) for each in data)
    assert one != other


def test_refusal_of_what_is_no_plain_value():
    with pytest.raises(TypeError, match="set is no plain value"):
        digest({"a": {1}})
