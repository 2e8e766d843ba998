"""Byte-level BPE: merging, learning merges, and the files that hold a vocabulary."""

import json
import random
from collections import Counter

import pytest

from tokenizer import bpe, load_tokenizer
from tokenizer.bpe_merge import merge
from tokenizer.bpe_train import learn_merges
from tokenizer.pretokenize import RULES

TEXTS = ["The cat sat on the mat, and the other cat sat on the other mat.\n",
         "Low, lower, lowest; new, newer, newest.\n",
         "今天天气很好，我们今天去公园。公园里的人很多，天气很好。\n",
         "It's 12345 in 2024, isn't it? Yes, it's 12345!\n"] * 3
OTHERS = ["the cat isn't lower than 今天的天气", "", " ", "\n\n  x", "Zebra 🦓 é e\u0301 \x00\x7f", "a" * 200,
          "don't  '''  1234567", "公园公园公园"]


@pytest.fixture(scope="module", params=RULES)
def trained(request):
    return bpe.train(TEXTS, 340, split=request.param)


def gguf(merges, *, tokens=(), types=(), **fields):
    """A GGUF's vocabulary with the bytes, what these merges make, and further tokens."""
    made = [merge.replace(" ", "") for merge in merges]
    return {"model": "gpt2", "pre": "gpt-2", "tokens": [*bpe.ALPHABET, *made, *tokens],
            "types": [1] * (256 + len(made)) + list(types), "scores": None, "merges": merges, "bos_id": None,
            "eos_ids": [], "pad_id": None, "unk_id": None, "add_bos": False, "add_space_prefix": False,
            "chat_template": None} | fields


def changed(tokenizer, **fields):
    """The content of a tokenizer.json with some fields replaced; `model` is only added to."""
    spec = json.loads(tokenizer.files()["tokenizer.json"])
    spec["model"] |= fields.pop("model", {})
    return spec | fields


def pieces(tokenizer, text):
    return [tokenizer.piece(id) for id in tokenizer.encode(text)]


def merge_learned(ids, ranks, merged):
    return merge(ids, lambda left, right: ranks.get((left, right)), lambda left, right: merged[ranks[left, right]])


def merge_slowly(ids, ranks, merged):
    """The definition: look for the best pair, merge it, look again."""
    while True:
        known = [(ranks[pair], i) for i, pair in enumerate(zip(ids, ids[1:], strict=False)) if pair in ranks]
        if not known:
            return ids
        rank, i = min(known)
        ids[i:i + 2] = [merged[rank]]


def learn_slowly(words, number):
    """The definition: count all pairs, merge the most frequent everywhere, count again."""
    words = [(list(word), count) for word, count in words.items()]
    merges = []
    while len(merges) < number:
        counts = Counter()
        for word, count in words:
            for pair in zip(word, word[1:], strict=False):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        for word, _ in words:
            for i in range(len(word) - 1):
                if tuple(word[i:i + 2]) == best:
                    word[i:i + 2] = [256 + len(merges)]
        merges.append(best)
    return merges


# Merging


def test_worked_example_the_merge_learned_first_goes_first():
    tokenizer = bpe.from_vocabulary(gguf(["w e", "l o", "lo w"]))
    assert pieces(tokenizer, "lower") == ["lo", "we", "r"]          # leftmost first would give low e r
    assert pieces(tokenizer, "low") == ["low"]
    assert tokenizer.encode("low") == [258]


def test_worked_example_equal_pairs_merge_from_the_left():
    tokenizer = bpe.from_vocabulary(gguf(["a a", "aa aa"]))
    assert pieces(tokenizer, "aaaaaaa") == ["aaaa", "aa", "a"]


def test_worked_example_words_do_not_merge_across_their_borders():
    tokenizer = bpe.from_vocabulary(gguf(["e Ġ", "Ġ c", "Ġc a"]))
    assert pieces(tokenizer, "e ca") == ["e", "▁ca"]


def test_two_ways_agree_heap_and_search_anew():
    for seed in range(300):
        draw = random.Random(seed)
        ranks, merged, symbols = {}, [], [0, 1, 2]
        for _ in range(draw.randint(1, 12)):
            pair = (draw.choice(symbols), draw.choice(symbols))
            if pair not in ranks:
                ranks[pair] = len(merged)
                merged.append(symbols[-1] + 1)
                symbols.append(symbols[-1] + 1)
        ids = draw.choices([0, 1, 2], k=draw.randint(0, 40))
        assert merge_learned(ids, ranks, merged) == merge_slowly(ids, ranks, merged)


def test_property_decoding_gives_the_text_back(trained):
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(chr(draw.choice([draw.randrange(128), draw.randrange(0x3000, 0x9FFF), draw.randrange(0x10000,
                                        0x20000)])) for _ in range(draw.randint(0, 20)))
        if trained._nfc:
            text = "".join(char for char in text if char.isascii())
        assert trained.decode(trained.encode(text)) == text


def test_property_long_words_take_no_longer_a_letter_than_short_ones(trained):
    """Searching anew after each merge would take days here."""
    for text in ("a" * 50_000, " " * 50_000, "\n" * 50_000, "天" * 50_000, "ca" * 50_000):
        assert trained.decode(trained.encode(text)) == text


def test_property_the_cache_changes_nothing(trained):
    first = [trained.encode(text) for text in OTHERS]
    trained._words.clear()
    assert [trained.encode(text) for text in reversed(OTHERS)] == first[::-1]


# Learning


def test_worked_example_of_learning_by_hand():
    words = {b"low": 5, b"lower": 2, b"new": 6}
    assert learn_merges(words, 4) == [(ord("l"), ord("o")), (256, ord("w")), (ord("e"), ord("w")), (ord("n"), 258)]


def test_worked_example_of_learning_counts_overlapping_pairs_but_merges_them_once():
    assert learn_merges({b"aaa": 2, b"bc": 3}, 3) == [(ord("a"), ord("a")), (ord("b"), ord("c")), (256, ord("a"))]


def test_two_ways_agree_learning_at_once_and_counting_anew():
    for seed in range(200):
        draw = random.Random(seed)
        words = {bytes(draw.choices(b"abc", k=draw.randint(1, 12))): draw.randint(1, 5)
                 for _ in range(draw.randint(0, 12))}
        assert learn_merges(words, 30) == learn_slowly(words, 30), words


def test_property_the_same_texts_in_any_order_give_the_same_vocabulary(trained):
    again = bpe.train(reversed(TEXTS), 340, split=trained._rule.name)
    assert again.files() == trained.files()


def test_property_special_tokens_come_first_and_ends_are_known():
    tokenizer = bpe.train(TEXTS, 300)
    assert tokenizer.special_ids == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert tokenizer.eos_ids == (0, 2) and tokenizer.bos_id is None and tokenizer.vocab_size == 300


def test_property_nothing_is_learned_from_what_occurs_once():
    assert bpe.train(["abcdefg"], 1000, special=()).vocab_size == 256


def test_refusal_of_vocabularies_that_cannot_be_learned():
    with pytest.raises(ValueError, match="200 is too small: 256 bytes and 3 special tokens are 259"):
        bpe.train(TEXTS, 200)
    with pytest.raises(ValueError, match="split rule 'whitespace' is not known; known are gpt2"):
        bpe.train(TEXTS, 300, split="whitespace")
    with pytest.raises(ValueError, match="'the'.* also words of the texts"):
        bpe.train(["the the the the"] * 9, 300, special=("the",))
    with pytest.raises(ValueError, match=r"U\+D83D at character 1"):
        bpe.train(["x\ud83d"], 300)


# Files


def test_two_ways_agree_saved_and_loaded(trained, tmp_path):
    trained.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert [loaded.encode(text) for text in OTHERS] == [trained.encode(text) for text in OTHERS]
    assert loaded.files() == trained.files() == load_tokenizer(trained.files()).files()
    assert (loaded.eos_ids, loaded.special_ids) == (trained.eos_ids, trained.special_ids)


def test_two_ways_agree_merges_as_strings_and_as_pairs(trained):
    merges = [merge.split(" ") for merge in changed(trained)["model"]["merges"]]
    as_pairs = bpe.BPETokenizer(changed(trained, model={"merges": merges}))
    assert [as_pairs.encode(text) for text in OTHERS] == [trained.encode(text) for text in OTHERS]


def test_two_ways_agree_gguf_and_tokenizer_json(trained):
    spec = changed(trained)
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    from_gguf = bpe.from_vocabulary(gguf([]) | {
        "pre": trained._rule.gguf_names[0], "tokens": tokens, "types": [3] * 3 + [1] * (len(tokens) - 3),
        "merges": spec["model"]["merges"], "bos_id": 1, "eos_ids": [2, 0], "pad_id": 2})
    assert [from_gguf.encode(text) for text in OTHERS] == [trained.encode(text) for text in OTHERS]
    assert (from_gguf.bos_id, from_gguf.eos_ids, from_gguf.pad_id, from_gguf.adds_bos) == (1, (2, 0), 2, False)
    assert from_gguf.special_ids == trained.special_ids


def test_worked_example_a_beginning_that_the_file_adds_is_remembered():
    vocabulary = gguf(["a b"], tokens=["<|begin_of_text|>"], types=[3], bos_id=257, add_bos=True)
    tokenizer = bpe.from_vocabulary(vocabulary)
    assert tokenizer.adds_bos and tokenizer.encode("ab", bos=True) == [257, 256]
    alone = load_tokenizer({"tokenizer.json": tokenizer.files()["tokenizer.json"]})
    assert alone.adds_bos and alone.bos_id == 257


# What tokenizer.json may ask for


def test_worked_example_ignore_merges_takes_whole_words_first():
    spec = json.loads(bpe.from_vocabulary(gguf(["a b", "b c"], tokens=["abc"], types=[1])).files()["tokenizer.json"])
    assert bpe.BPETokenizer(spec).encode("abc") == [256, ord("c")]
    spec["model"]["ignore_merges"] = True
    assert bpe.BPETokenizer(spec).encode("abc abcd") == [258, ord(" "), 256, ord("c"), ord("d")]


def test_property_a_control_token_spelled_like_a_word_is_no_word():
    tokenizer = bpe.train(TEXTS, 300, special=("PAD",))
    tokenizer = bpe.BPETokenizer(changed(tokenizer, model={"ignore_merges": True}))
    assert tokenizer.encode("PAD", allow_special=True) == [0] and 0 not in tokenizer.encode("PAD")


def test_worked_example_bytes_that_a_vocabulary_lacks_vanish_or_become_unknown(trained):
    spec = changed(trained)
    del spec["model"]["vocab"]["Ĝ"]                                 # U+001C, which SmolLM2 lacks
    assert bpe.BPETokenizer(spec).decode(bpe.BPETokenizer(spec).encode("a\x1cb")) == "ab"
    for unknown, text in (("<|im_start|>", "a<|im_start|>b"), ("<|endoftext|>", "ab")):        # which ends no text so
        spec["model"]["unk_token"] = unknown
        assert bpe.BPETokenizer(spec).decode(bpe.BPETokenizer(spec).encode("a\x1cb")) == text


def test_worked_example_qwen_composes_characters():
    composing, plain = bpe.train(TEXTS, 300, split="qwen2"), bpe.train(TEXTS, 300, split="llama3")
    assert composing.decode(composing.encode("e\u0301")) == "\u00e9"
    assert plain.decode(plain.encode("e\u0301")) == "e\u0301"


def test_worked_example_added_tokens_that_are_text_are_found_in_any_text(trained):
    size = trained.vocab_size
    added = [*changed(trained)["added_tokens"], {"id": size, "content": "<think>", "special": False},
             {"id": size + 1, "content": "<|forgotten|>", "special": False}]
    tokenizer = bpe.BPETokenizer(changed(trained, added_tokens=added))
    assert size in tokenizer.encode("<think>x") and tokenizer.decode([size], skip_special=True) == "<think>"
    assert size + 1 not in tokenizer.encode("<|forgotten|>")        # it looks like a control token, so it is one


def test_worked_example_other_spellings_of_what_a_file_does(trained):
    """An empty Sequence, NFC in one, what does not match thrown away: as nothing, NFC and a plain Split."""
    def ids(**change):
        return [bpe.BPETokenizer(changed(trained, **change)).encode(text) for text in OTHERS]
    none = {"type": "Sequence", "normalizers": []}
    assert ids(normalizer=none) == ids(normalizer=None)
    nested = {"type": "Sequence", "normalizers": [none, {"type": "NFC"}]}
    assert ids(normalizer=nested) == ids(normalizer={"type": "NFC"})
    split = RULES["llama3"].written_as
    removed = split | {"pretokenizers": [split["pretokenizers"][0] | {"behavior": "Removed", "invert": True},
                                         split["pretokenizers"][1]]}
    assert ids(pre_tokenizer=removed) == ids(pre_tokenizer=split)


def test_worked_example_tokens_that_files_beside_the_vocabulary_add(trained):
    size = trained.vocab_size
    beside = {"added_tokens.json": json.dumps({"<think>": size}).encode(),
              "tokenizer_config.json": json.dumps({"added_tokens_decoder": {str(size + 1): {
                  "content": "<|tool|>", "special": True, "rstrip": True}}}).encode()}
    tokenizer = load_tokenizer(trained.files() | beside)
    word = trained.encode("hello")
    assert tokenizer.encode("<think>hello") == [size, *word]
    assert tokenizer.encode("<|tool|> \n hello", allow_special=True) == [size + 1, *word]
    assert size + 1 not in tokenizer.encode("<|tool|>")
    assert load_tokenizer(tokenizer.files()).encode("<think>hello") == [size, *word]


def test_worked_example_the_post_processor_says_whether_texts_begin_with_a_token(trained):
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>"}}, {"Sequence": {}}]}
    in_order = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    around = {"type": "RobertaProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", 1]}
    for post, says, expected in ((template, False, True), (in_order, None, True), (around, False, True),
                                 (None, True, False), ({"type": "ByteLevel"}, True, False), (None, None, False)):
        config = {"bos_token": "<|im_start|>"} | ({} if says is None else {"add_bos_token": says})
        files = {"tokenizer.json": json.dumps(changed(trained, post_processor=post)).encode(),
                 "tokenizer_config.json": json.dumps(config).encode()}
        assert load_tokenizer(files).adds_bos == expected


def test_worked_example_split_rules_by_other_names_and_by_none(trained, caplog):
    vocabulary = trained.vocabulary()
    assert bpe.from_vocabulary(vocabulary | {"pre": "deepseek-r1-qwen"})._rule.name == "qwen2"
    assert bpe.from_vocabulary(vocabulary | {"pre": "smaug-bpe"})._rule.name == "llama3"
    assert bpe.from_vocabulary(vocabulary | {"pre": "granite-docling"})._rule.name == "gpt2"
    for none in (None, "", "default"):
        assert bpe.from_vocabulary(vocabulary | {"pre": none})._rule.name == "gpt2"
    marked = [*vocabulary["tokens"], "<|begin_of_text|>"]
    assert bpe.from_vocabulary(vocabulary | {"pre": None, "tokens": marked, "types": [*vocabulary["types"], 3]}
                               )._rule.name == "llama3"
    assert "does not say how text is split (tokenizer.ggml.pre); by its tokens, as gpt2 does" in caplog.text


def test_worked_example_a_word_that_is_a_token_and_that_no_merge_makes(trained):
    """By llama.cpp: of two names for one split rule, one takes such a word whole, the other merges."""
    vocabulary = trained.vocabulary()
    tokens = [*vocabulary["tokens"][:-1], "Quux"]
    merges = [merge for merge in vocabulary["merges"] if merge.replace(" ", "") != vocabulary["tokens"][-1]]
    for name, whole in (("llama-bpe", True), ("falcon3", True), ("smaug-bpe", False), ("dbrx", False),
                        ("tekken", True), ("gpt-4o", False), ("qwen2", False)):
        read = bpe.from_vocabulary(vocabulary | {"pre": name, "tokens": tokens, "merges": merges})
        assert (read.encode("Quux") == [len(tokens) - 1]) == whole, name


@pytest.mark.parametrize("change, words", [
    ({"model": {"type": "Unigram"}}, "type Unigram; only BPE"),
    ({"model": {"byte_fallback": True}}, "SentencePiece vocabulary .* read it with load_tokenizer"),
    ({"model": {"dropout": 0.1}}, "dropout 0.1"),
    ({"model": {"merges": ["a"]}}, "merge 0 of the vocabulary is 'a'"),
    ({"model": {"merges": ["a b", "x ab"]}}, "merge .* of the vocabulary is"),
    ({"model": {"vocab": []}}, "tokenizer.json: model.vocab is \\[\\]; it must be an object"),
    ({"normalizer": {"type": "Lowercase"}}, "normalizer {'type': 'Lowercase'}"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, '"pre_tokenizer": {"type": "Whitespace"}'),
])
def test_refusal_of_what_would_change_ids(trained, change, words):
    with pytest.raises(ValueError, match=words):
        bpe.BPETokenizer(changed(trained, **change))


def test_two_ways_agree_a_tokenizer_and_one_built_of_its_vocabulary(trained):
    vocabulary = trained.vocabulary()
    again = bpe.from_vocabulary(vocabulary)
    assert [again.encode(text) for text in OTHERS] == [trained.encode(text) for text in OTHERS]
    assert again.vocabulary() == vocabulary and vocabulary["pre"] == trained._rule.gguf_names[0]
    assert vocabulary["types"][:4] == [3, 3, 3, 1] and vocabulary["eos_ids"] == [0, 2]


def test_two_ways_agree_vocabulary_of_a_gguf_read_and_written():
    vocabulary = gguf(["a b"], tokens=["<|begin_of_text|>", "<think>", "[PAD259]"], types=[3, 4, 5], pre="llama-bpe",
                      bos_id=257, eos_ids=[257], add_bos=True, chat_template="{{ x }}")
    assert bpe.from_vocabulary(vocabulary).vocabulary() == vocabulary


def test_refusal_of_vocabularies_that_a_gguf_cannot_say():
    plain = bpe.train(TEXTS, 340, split="gpt2")
    with pytest.raises(ValueError, match="cannot say that text is put into the form NFC .* rule 'gpt-2'"):
        bpe.BPETokenizer(changed(plain, normalizer={"type": "NFC"})).vocabulary()
    spec = json.loads(bpe.from_vocabulary(gguf(["a b", "b c"], tokens=["abc"], types=[1])).files()["tokenizer.json"])
    spec["model"]["ignore_merges"] = True
    with pytest.raises(ValueError, match="how the word 'abc' is written"):
        bpe.BPETokenizer(spec).vocabulary()


def test_refusal_of_a_gguf_without_merges():
    with pytest.raises(ValueError, match="has no merges"):
        bpe.from_vocabulary(gguf([]) | {"merges": None})


def test_refusal_of_an_id_far_beyond_the_number_of_tokens():
    spec = json.loads(bpe.train(["ab" * 9], 270).files()["tokenizer.json"])
    for far in (4 * 10**8, 10**6):
        spec["added_tokens"][0]["id"] = far
        with pytest.raises(ValueError, match=f"has 2.. tokens and the id {far:,}, so it is damaged"):
            bpe.BPETokenizer(spec)
