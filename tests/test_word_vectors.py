import importlib
import json
import sys

import numpy as np
import pytest
import torch

import llama
from llama.datasets.words import Analogy, analogies, word_list
from llama.heads import HeadConfig, add_head
from llama.masks import bidirectional_mask
from llama.word_vectors import WordVectors, nearest

WORDS = ["小驼", "dog", " dog", "天气", "语言模型", "home"]


def pieces(tokenizer):
    """id -> text of what may be a neighbour, as the module's text says it."""
    found = {}
    for i in range(tokenizer.vocab_size):
        try:
            text = tokenizer.token_bytes(i).decode()
        except UnicodeDecodeError:
            continue
        text_alone = "".join(sign for sign in text if sign.isprintable()).strip()
        if i not in tokenizer.special_ids.values() and text_alone and tokenizer.encode_continuation(text) == [i]:
            found[i] = text
    return found


def test_two_ways_nearest_equals_a_sum_in_numpy(tiny_model):
    rows = tiny_model.embed_tokens.weight.detach().numpy().astype(np.float64)
    tokenizer = tiny_model.tokenizer
    several = [word for word in WORDS if len(tokenizer.encode_continuation(word)) > 1]
    assert several and len(several) < len(WORDS)
    for word in WORDS:
        ids = tokenizer.encode_continuation(word)
        u = rows[ids].mean(0)
        cosines = {text: rows[i] @ u / np.linalg.norm(rows[i]) / np.linalg.norm(u)
                   for i, text in pieces(tokenizer).items() if i not in ids}
        expected = sorted(cosines.items(), key=lambda item: -item[1])[:7]
        found = nearest(tiny_model, word, 7)
        assert [each.text for each in found] == [text for text, _ in expected]
        assert [each.similarity for each in found] == pytest.approx([value for _, value in expected], abs=1e-5)


def test_two_ways_an_analogy_equals_a_sum_in_numpy(tiny_model):
    rows = tiny_model.embed_tokens.weight.detach().numpy().astype(np.float64)
    unit = {word: (row := rows[tiny_model.tokenizer.encode_continuation(word)].mean(0)) / np.linalg.norm(row)
            for word in WORDS}
    a, b, c, *rest = WORDS
    target = unit[b] - unit[a] + unit[c]
    expected = sorted(((unit[word] @ target / np.linalg.norm(target), word) for word in rest), reverse=True)
    found = WordVectors(tiny_model, WORDS).analogy(a, b, c)
    assert [each.text for each in found] == [word for _, word in expected]
    assert [each.similarity for each in found] == pytest.approx([value for value, _ in expected], abs=1e-5)


@pytest.mark.parametrize("attention", ["", "causal", "full"])
def test_two_ways_states_equal_those_of_each_word_alone(tiny_model, attention):
    if attention:
        add_head(tiny_model, HeadConfig(("a", "b"), attention=attention), generator=torch.Generator().manual_seed(0))
    start, states = tiny_model.tokenizer.eos_ids[0], []
    for word in WORDS:
        ids = torch.tensor([[start, *tiny_model.tokenizer.encode_continuation(word)]])
        mask = bidirectional_mask(torch.tensor([ids.shape[1]]), ids.shape[1]) if attention == "full" else None
        with torch.no_grad():
            states.append(tiny_model.hidden(ids, mask=mask)[0, -1])
    expected = torch.nn.functional.normalize(torch.stack(states), dim=-1)
    torch.testing.assert_close(WordVectors(tiny_model, WORDS, states=True).table, expected, atol=1e-5, rtol=1e-4)


def test_property_what_no_text_holds_is_no_neighbour(tiny_model, monkeypatch):
    tokenizer, everything = tiny_model.tokenizer, tiny_model.tokenizer.vocab_size
    found = [each.text for each in nearest(tiny_model, "小驼", everything)]
    assert {*found, "小驼"} == set(pieces(tokenizer).values()) and not set(found) & set(tokenizer.special_ids)
    dead, zero = found[0], found[1]
    encode = tokenizer.encode_continuation
    monkeypatch.setattr(tokenizer, "encode_continuation", lambda text: [0, 0] if text == dead else encode(text))
    with torch.no_grad():
        tiny_model.embed_tokens.weight[encode(zero)] = 0
    assert [each.text for each in nearest(tiny_model, "小驼", everything)] == found[2:]


def test_property_of_equals_the_earlier_comes_first_and_a_blank_is_put_before_words(tiny_model):
    ids = [tiny_model.tokenizer.encode_continuation(word)[0] for word in ("a", "b", "c")]
    with torch.no_grad():
        tiny_model.embed_tokens.weight[ids[1:]] = tiny_model.embed_tokens.weight[ids[0]].clone()
    assert [each.text for each in WordVectors(tiny_model, ["c", "a", "b", "x"]).nearest("a")][:2] == ["c", "b"]
    assert WordVectors(tiny_model, ["dog"], blank=True).ids == WordVectors(tiny_model, [" dog"]).ids


def test_property_a_word_in_parts_of_characters_is_warned_of_once(tiny_model, caplog):
    tokenizer, rare = tiny_model.tokenizer, "😀"
    parts = [id for id in tokenizer.encode_continuation(rare) if tokenizer.piece(id).startswith("\\x")]
    assert parts and all(map(tokenizer.is_part, parts)) and not tokenizer.is_part(tokenizer.encode_continuation("a")[0])
    vectors = WordVectors(tiny_model)
    vectors.nearest("a")
    vectors.accuracy([Analogy(rare, "a", "b", "c", "")])
    assert not caplog.messages
    vectors.nearest(rare)
    vectors.analogy("a", rare, "b")
    said = f"'{rare}' is spelled by {len(parts)} parts of characters"
    assert [message.partition(",")[0] for message in caplog.messages] == [said] * 2


def test_worked_example_the_share_of_analogies_that_are_right(tiny_model):
    """On a square, b is to the right of a and d to the right of c; e lies where nothing points."""
    places = {"a": (1, 0, 0), "b": (1, 1, 0), "c": (1, 0, 1), "d": (1, 1, 1), "e": (-1, 0, 0)}
    with torch.no_grad():
        for word, place in places.items():
            row = tiny_model.embed_tokens.weight[tiny_model.tokenizer.encode_continuation(word)[0]]
            row.zero_()
            row[:3] = torch.tensor(place, dtype=torch.float32)
    questions = [Analogy("a", "b", "c", "d", "right"), Analogy("a", "c", "b", "d", "up"),
                 Analogy("a", "b", "c", "e", "up")]
    assert WordVectors(tiny_model, places).accuracy(questions) == {
        "accuracy": 2 / 3, "questions": 3, "candidates": 5, "by_section": {"right": 1.0, "up": 0.5}}
    with pytest.raises(ValueError, match="'x' is the answer to a question of analogy and none of the candidates"):
        WordVectors(tiny_model, places).accuracy([Analogy("a", "b", "c", "x")])


def test_worked_example_files_of_words(tmp_path):
    path = tmp_path / "w.txt"
    path.write_text("# of mine\n北京\n\n New York \n北京\n", encoding="utf-8")
    assert word_list(path) == ["北京", "New York"]
    path.write_text("a b c d\n: capitals of\n\n# and\n北京\t中国\tNew York\tUSA\n", encoding="utf-8")
    assert analogies(path) == [("a", "b", "c", "d", ""), ("北京", "中国", "New York", "USA", "capitals of")]


def test_refusal_of_what_is_no_question(tmp_path, tiny_model):
    path = tmp_path / "q.txt"
    for text, words in ((": a\na b c d e\n", "q.txt:2: a question of analogy is four words, .* has 5"),
                        ("a\tb\t\td\n", "q.txt:1: .* has 3"), (": a\n", "holds no questions")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            analogies(path)
    path.write_text("#\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no words"):
        word_list(path)
    with pytest.raises(ValueError, match="a word is empty"):
        nearest(tiny_model, " ")
    tiny_model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer, so it knows no words"):
        nearest(tiny_model, "a")


def test_property_the_name_is_a_function_for_whoever_has_the_module(tiny_model):
    assert llama.nearest(tiny_model, "dog", 3) == nearest(tiny_model, "dog", 3)
    module = importlib.import_module("llama.nearest")
    assert llama.nearest is module and llama.nearest(tiny_model, "dog", 3) == nearest(tiny_model, "dog", 3)


def test_two_ways_the_command_says_what_python_does(tiny_model, tmp_path, monkeypatch, capsys):
    command = importlib.import_module("llama.nearest")
    monkeypatch.chdir(tmp_path)
    tiny_model.save("tiny")
    (tmp_path / "w.txt").write_text("\n".join(WORDS), encoding="utf-8")
    (tmp_path / "q.txt").write_text(": s\n小驼 dog 天气 home\n", encoding="utf-8")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nearest", "--model", "tiny", "--device", "cpu", *arguments])
        command.main()
        return capsys.readouterr().out

    lines = [json.loads(line) for line in run("dog", "--json", "--top", "3", "--analogy", "a", "b", "c").splitlines()]
    vectors = WordVectors(tiny_model)
    assert lines == [{"word": "dog", "nearest": [each._asdict() for each in vectors.nearest("dog", 3)]},
                     {"analogy": ["a", "b", "c"],
                      "nearest": [each._asdict() for each in vectors.analogy("a", "b", "c", 3)]}]
    told = run("小驼", "--list", "w.txt", "--top", "2", "--analogy", "dog", "home", "天气").splitlines()
    first = WordVectors(tiny_model, word_list("w.txt")).nearest("小驼", 1)[0]
    assert told[1] == f"  {first.similarity:7.4f}  «{first.text}»"
    assert (told[0], told[3]) == ("小驼", "home - dog + 天气")
    scores = json.loads(run("--analogies", "q.txt", "--json"))
    assert (scores["questions"], scores["candidates"]) == (1, 4)
    assert run("--analogies", "q.txt").splitlines()[0] == "1 questions among 4 words"
    with pytest.raises(ValueError, match="there is no word to look for"):
        run()
