"""tiktoken's rank files: what they leave unsaid, and that they come out as they went in."""

import base64
import json

import pytest

from tokenizer import bpe, from_vocabulary, load_tokenizer, tiktoken_ranks, tokenizer_file
from tokenizer.pretokenize import RULES

TEXTS = ["The cat sat on the mat, and the other cat sat on the other mat.\n", "Low, lower, lowest; new, newest.\n",
         "今天天气很好，我们今天去公园。公园里的人很多，天气很好。\n"] * 3
OTHERS = ["the cat isn't lower than 今天的天气", "", " ", "\n\n  x", "Zebra 🦓 é \x00\x7f", "a" * 200, "公园公园"]


@pytest.fixture(scope="module", params=RULES)
def trained(request):
    return bpe.train(TEXTS, 340, split=request.param)


def lines(tokens):
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def of(tokenizer):
    """The rank file of a vocabulary learned here, whose first ids are special tokens."""
    return lines(tokenizer.token_bytes(id) for id in range(3, tokenizer.vocab_size))


def merge_by_rank(word, ranks):
    """The definition: of all neighbours that make a token, merge those that make the lowest, the leftmost first."""
    parts = [word[i:i + 1] for i in range(len(word))]
    while True:
        known = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks]
        if not known:
            return [ranks[part] for part in parts]
        _, i = min(known)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def test_two_ways_agree_merges_and_ranks(trained):
    by_rank = tiktoken_ranks.from_ranks(of(trained), split=trained._rule.name, special=tuple(trained.special_ids))
    for text in OTHERS + TEXTS:
        assert by_rank.encode(text) == [id - 3 for id in trained.encode(text)]
    assert by_rank.special_ids["<|im_end|>"] == trained.vocab_size - 1


def test_two_ways_agree_merging_by_rank_and_by_derived_merges():
    """abc can be made in two ways, of which a rank file allows both."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"bc", b"ab", b"abc", b"cd", b"abcd", b"dab"]
    known = {token: rank for rank, token in enumerate(tokens)}
    tokenizer = tiktoken_ranks.from_ranks(lines(tokens), split="gpt2")
    for word in ("abc", "abcd", "cdabcd", "xabcdabc", "ababab", "dabcab", "bcdabcd"):
        assert tokenizer.encode(word) == ([known[word.encode()]] if word.encode() in known else
                                          merge_by_rank(word.encode(), known)), word


def test_two_ways_agree_a_rank_file_read_and_written(trained):
    file = of(trained)
    tokenizer = tiktoken_ranks.from_ranks(file, split=trained._rule.name, special=tuple(trained.special_ids))
    assert tokenizer_file(tokenizer, "ranks") == ("tokenizer.model", file)
    through_gguf = from_vocabulary(tokenizer.vocabulary())
    assert tiktoken_ranks.rank_file(through_gguf.vocabulary()) == file
    assert [through_gguf.encode(text) for text in OTHERS] == [tokenizer.encode(text) for text in OTHERS]


def test_worked_example_llama_3s_rank_file_is_followed_by_its_control_tokens():
    split, special = tiktoken_ranks._PUBLISHED[128_000]
    assert (split, len(special)) == ("llama3", 256)
    assert {special.index(f"<|{name}|>") + 128_000: name for name in (
        "begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id")} == {
        128_000: "begin_of_text", 128_001: "end_of_text", 128_006: "start_header_id", 128_007: "end_header_id",
        128_008: "eom_id", 128_009: "eot_id"}


def test_worked_example_files_beside_it_name_the_tokens_that_follow(monkeypatch):
    monkeypatch.setitem(tiktoken_ranks._PUBLISHED, 256, ("gpt2", ("<|a|>", "<|b|>")))
    file = lines(bytes([byte]) for byte in range(256))
    assert load_tokenizer({"x.tiktoken": file}).special_ids == {"<|a|>": 256, "<|b|>": 257}
    config = {"added_tokens_decoder": {"257": {"content": "<|end|>", "special": True},
                                       "258": {"content": "<think>", "special": False}}, "eos_token": "<|end|>"}
    tokenizer = load_tokenizer({"x.tiktoken": file, "tokenizer_config.json": json.dumps(config).encode()})
    assert tokenizer.special_ids == {"<|a|>": 256, "<|end|>": 257} and tokenizer.eos_ids == (257,)
    assert tokenizer.encode("a<think>") == [97, 258]
    assert load_tokenizer(tokenizer.files()).special_ids == tokenizer.special_ids


def test_refusal_of_rank_files_that_say_too_little():
    with pytest.raises(ValueError, match="rank file of 1 tokens does not say how text is split.*128,000"):
        tiktoken_ranks.from_ranks(b"IQ== 0\n")
    with pytest.raises(ValueError, match="line 2 of the rank file is not a token in base64 and its rank: 'abc'"):
        tiktoken_ranks.from_ranks(b"IQ== 0\nabc\n")
    with pytest.raises(ValueError, match="line 2 of the rank file has rank 7"):
        tiktoken_ranks.from_ranks(b"IQ== 0\nIg== 7\n")


def test_refusal_of_vocabularies_that_ranks_cannot_say(trained):
    with pytest.raises(ValueError, match="control or added tokens among the others; write tokenizer.json"):
        tokenizer_file(trained, "ranks")
    vocabulary = bpe.train(TEXTS, 340, special=()).vocabulary()
    with pytest.raises(ValueError, match="merges them in another"):
        tiktoken_ranks.rank_file(vocabulary | {"merges": vocabulary["merges"][::-1]})
    with pytest.raises(ValueError, match="kind 'llama' has no ranks"):
        tiktoken_ranks.rank_file({"model": "llama"})
