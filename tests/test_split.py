import itertools
import random

import pytest

import llama
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.split import grouped, shingles, split

WORDS = "alpha beta gamma delta 今天 天气 很好 我们 去 公园 散步".split()


def _texts(seed, count=60):
    """Some of them edited copies of others."""
    rng, texts = random.Random(seed), []
    for _ in range(count):
        if texts and rng.random() < 0.4:
            words = rng.choice(texts).split(" ")
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        else:
            words = [rng.choice(WORDS) for _ in range(rng.randint(1, 8))]
        texts.append(" ".join(words))
    return texts


def _alike(a, b):
    a, b = shingles(a), shingles(b)
    return len(a & b) / len(a | b)


def test_worked_example_what_of_a_text_is_compared():
    assert shingles("It's  ＮＯＷ, ok") == {"itsno", "tsnow", "snowo", "nowok"}
    assert shingles("好！") == {"好"} and shingles(" ?! ") == {"?!"} and shingles("") == {""}
    assert _alike("我们今天去公园散步，真好！", "我们今天去公园散步 真好") == 1
    assert _alike("一二三四五六七八九十甲乙丙丁戊己庚辛壬癸", "一二三四五六七八九十甲乙丙丁戊己庚辛壬子") == 15 / 17


@pytest.mark.parametrize("similar", [0.3, 0.5, 0.8, 1.0])
def test_two_ways_pairs_equal_those_of_comparing_all_with_all(similar):
    for seed in range(12):
        texts = _texts(seed)
        expected = [{i} for i in range(len(texts))]
        for i, j in itertools.combinations(range(len(texts)), 2):
            if _alike(texts[i], texts[j]) >= similar and expected[i] is not expected[j]:
                expected[i] |= expected[j]
                for member in expected[j]:
                    expected[member] = expected[i]
        assert [set(group) for group in grouped(texts, similar=similar)] == sorted(
            {id(group): group for group in expected}.values(), key=min)


def test_worked_example_keys_join_groups_in_turn():
    texts = ["今天天气很好。", "明日有雨雪吗？", "今天天气很好！", "山高月小水落石出", "甲乙丙丁戊己"]
    assert grouped(texts, ["a", "a", None, "b", None]) == [[0, 1, 2], [3], [4]]
    assert grouped(texts, ["a", "a", None, "b", None], similar=2) == [[0, 1], [2], [3], [4]]


def test_property_nothing_leaks_whatever_the_seed():
    for seed in range(8):
        data = [{"text": text, "document": i // 3, "number": i} for i, text in enumerate(_texts(seed, 120))]
        parts = split(data, 0.6, 0.2, 0.2, seed, similar=0.8)
        assert sorted(example["number"] for part in parts for example in part) == list(range(120))
        assert [len(part) <= 24 for part in parts[1:]] == [True, True]
        for one, other in itertools.combinations(parts, 2):
            assert not {example["document"] for example in one} & {example["document"] for example in other}
            assert max(_alike(a["text"], b["text"]) for a in one for b in other) < 0.8


def test_property_shares_are_met_and_the_order_of_the_data_changes_nothing():
    data = [{"text": f"{i:05} {i * i:07}"} for i in range(400)]
    parts = split(data)
    assert [len(part) for part in parts] == [360, 20, 20]
    assert [part == sorted(part, key=data.index) for part in parts] == [True] * 3
    again = split(random.Random(1).sample(data, 400))
    texts = lambda parts: [{example["text"] for example in part} for part in parts]      # noqa: E731
    assert texts(again) == texts(parts) == texts(split(data)) != texts(split(data, seed=1))


def test_worked_example_parts_are_of_the_kind_of_their_data(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"{i:06}" for i in range(40)), encoding="utf-8")
    train, validation, test = llama.split(LanguageModelingDataset(path, block_size=7, overlap=2))
    assert (len(train), len(validation), len(test)) == (36, 2, 2)
    assert isinstance(test, LanguageModelingDataset) and (test.block_size, test.overlap) == (7, 2)


def test_worked_example_which_field_is_compared():
    chats = [{"messages": [{"role": "user", "content": "今天天气怎么样？"}, {"role": "assistant", "content": str(i)}]}
             for i in range(4)]
    pairs = [{"source": "Hello there!", "target": str(i)} for i in range(4)]
    for data in (chats, pairs):
        assert [len(part) for part in split(data, 0.5, 0.5, 0, similar=2)] == [2, 2, 0]
        with pytest.raises(ValueError, match="validation should get 0.5 of 4 examples .* they form 1 groups"):
            split(data, 0.5, 0.5, 0)
    titled = [{"context": f"{i:05}", "title": "T" if i < 3 else ""} for i in range(6)]
    assert [len(part) for part in split(titled, 0.5, 0.5, 0)] == [3, 3, 0]
    assert [len(part) for part in split(pairs, 0.75, 0.25, 0, text="target")] == [3, 1, 0]
    assert [len(part) for part in split(pairs, 0.5, 0.5, 0, text=lambda pair: pair["target"] + "!")] == [2, 2, 0]


def test_refusal_of_shares_and_data_that_cannot_be_divided():
    data = [{"text": "a"}, {"text": "b"}]
    with pytest.raises(ValueError, match="the shares are train 0.9, validation 0.2, test 0.05; they must"):
        split(data, validation=0.2)
    with pytest.raises(ValueError, match="they must not be negative"):
        split(data, 1.5, -0.5, 0)
    with pytest.raises(ValueError, match="validation should get 0.05 of 2 examples and gets none"):
        split(data)
    with pytest.raises(ValueError, match="a dict cannot be divided; split the examples that it is made of"):
        split({"text": "a"})
    with pytest.raises(ValueError, match="f:3: it has none of text, source, context to compare; say with text which"):
        split([{"place": "f:3", "body": "a"}])
    with pytest.raises(ValueError, match="similar is 0; it must be above 0"):
        split(data, similar=0)
