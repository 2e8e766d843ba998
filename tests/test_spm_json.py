"""SentencePiece vocabularies in a tokenizer.json. Ids by the library tokenizers are compared in test_token_ids.py."""

import json

import pytest

from tokenizer import load_tokenizer, tokenizer_file
from tokenizer.chat import FORMATS
from tokenizer.spm import SentencePieceTokenizer
from tokenizer.spm_json import JSONPieceTokenizer

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "l", "o", "w", "lo", "▁lo", "low"]
MERGES = [["l", "o"], ["▁", "lo"], ["lo", "w"]]
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {
    "type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}


def metaspace(scheme):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def spec(*, merges=MERGES, normalizer=PREPEND, pre_tokenizer=None, **model):
    """A tokenizer.json as Llama 2's."""
    return {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "added_tokens": [{"id": id, "content": PIECES[id], "special": True} for id in range(3)],
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "merges": merges,
                      "vocab": {piece: id for id, piece in enumerate(PIECES)}} | model}


def pieces(tokenizer, text):
    return [tokenizer.piece(id) for id in tokenizer.encode(text)]


def test_worked_example_by_hand():
    tokenizer = load_tokenizer({"tokenizer.json": json.dumps(spec()).encode()})
    assert type(tokenizer) is JSONPieceTokenizer and tokenizer.adds_bos
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert pieces(tokenizer, "low lo") == ["▁lo", "w", "▁lo"]
    assert pieces(tokenizer, "lé") == ["▁", "l", "\\xc3", "\\xa9"]
    assert tokenizer.decode(tokenizer.encode("low lé")) == "low lé"
    assert load_tokenizer(tokenizer.files()).files() == tokenizer.files()


def test_worked_example_where_the_first_word_gets_a_space():
    cases = {"prepend": spec(), "never": spec(normalizer=PREPEND["normalizers"][1])}
    cases |= {scheme: spec(normalizer=None, pre_tokenizer=metaspace(scheme)) for scheme in ("always", "first")}
    tokenizers = {name: JSONPieceTokenizer(content) for name, content in cases.items()}
    assert {name: pieces(tokenizer, "lo") for name, tokenizer in tokenizers.items()} == {
        "prepend": ["▁lo"], "never": ["lo"], "always": ["▁lo"], "first": ["▁lo"]}
    assert {name: pieces(tokenizer, " lo") for name, tokenizer in tokenizers.items()} == {
        "prepend": ["▁", "▁lo"], "never": ["▁lo"], "always": ["▁lo"], "first": ["▁lo"]}
    assert {name: [tokenizer.piece(id) for id in tokenizer.encode("lo<s>lo", allow_special=True)]
            for name, tokenizer in tokenizers.items()} == {
        "prepend": ["▁lo", "<s>", "▁lo"], "never": ["lo", "<s>", "lo"], "always": ["▁lo", "<s>", "▁lo"],
        "first": ["▁lo", "<s>", "lo"]}
    for name, tokenizer in tokenizers.items():
        assert tokenizer.decode(tokenizer.encode("lo<s>lo", allow_special=True)) == "lo<s>lo"
        if name != "always":                                        # which drops a space that is there already
            assert tokenizer.decode(tokenizer.encode("lo<s> lo", allow_special=True)) == "lo<s> lo"


META = metaspace("always")


@pytest.mark.parametrize("normalizer, pre_tokenizer, like", [
    (PREPEND, {"type": "Sequence", "pretokenizers": []}, (PREPEND, None)),
    ({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [step]} for step in
                                          PREPEND["normalizers"]]}, None, (PREPEND, None)),
    ({"type": "Sequence", "normalizers": []}, {"type": "Sequence", "pretokenizers": [META]}, (None, META)),
    (None, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "split": False}, (None, META)),
    (None, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False, "split": False},
     (None, metaspace("never")))])
def test_two_ways_one_pipeline_is_spelt(normalizer, pre_tokenizer, like):
    """As the library tokenizers reads them, compared there on texts with added tokens of every flag."""
    one, other = JSONPieceTokenizer(spec(normalizer=normalizer, pre_tokenizer=pre_tokenizer)), JSONPieceTokenizer(
        spec(normalizer=like[0], pre_tokenizer=like[1]))
    for text in ("low lo", " lo", "lo<s> lo", "", "  "):
        assert one.encode(text, allow_special=True) == other.encode(text, allow_special=True)


@pytest.mark.parametrize("split, expected", [(True, ["▁lo", "▁", "▁lo"]), (False, ["▁lo", "▁▁", "lo"])])
def test_worked_example_a_metaspace_that_cuts_words_apart(split, expected):
    """Ids of the library tokenizers 0.23.3; `split` is true where a file does not say it."""
    content = spec(normalizer=None, merges=[["▁", "▁"], *MERGES], pre_tokenizer={
        key: value for key, value in META.items() if key != "split" or not split})
    content["model"]["vocab"]["▁▁"] = len(PIECES)
    assert pieces(JSONPieceTokenizer(content), "lo  lo") == expected


def test_worked_example_a_chat_begins_with_a_space_only_where_text_after_a_control_token_does():
    for scheme, begins in (("always", "▁"), ("first", "[")):
        tokenizer = JSONPieceTokenizer(spec(normalizer=None, pre_tokenizer=metaspace(scheme)))
        ids, _ = FORMATS["llama-2"].encode([{"role": "user", "content": "lo"}], tokenizer)
        assert ids[0] == 1 and tokenizer.piece(ids[1]) == begins


def test_property_text_never_becomes_a_control_token():
    """Files made of a model may hold merges that spell one, as «<» «s>»."""
    content = spec(merges=[*MERGES, ["<", "s>"]])
    content["model"]["vocab"] |= {"<": len(PIECES), "s>": len(PIECES) + 1, "s": len(PIECES) + 2, ">": len(PIECES) + 3}
    content["model"]["merges"].append(["s", ">"])
    tokenizer = JSONPieceTokenizer(content)
    assert pieces(tokenizer, "<s>") == ["▁", "<", "s>"]


def test_two_ways_agree_pairs_and_scores():
    tokenizer = JSONPieceTokenizer(spec())
    vocabulary = tokenizer.vocabulary()
    assert [vocabulary["scores"][PIECES.index(piece)] for piece in ("lo", "▁lo", "low", "w")] == [0, -1, -2, -3]
    through_a_model = load_tokenizer({"tokenizer.model": tokenizer_file(tokenizer, "SentencePiece")[1]})
    for text in ("low lo", "", " lo", "wolow  lolo", "lé<s>"):
        assert through_a_model.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("content, words", [
    (spec(merges=[["l", "o"], ["o", "w"]]), "merge 1 of the vocabulary .* make a third"),
    (spec(pre_tokenizer=metaspace("always")), "writes spaces in a way not known here"),
    (spec(normalizer={"type": "NFKC"}), "writes spaces in a way not known here"),
    (spec(dropout=0.1), "dropout 0.1"),
    (spec(vocab={"a": 0}, merges=[]), "no piece <0x00>"),
    (spec(vocab=[]), "tokenizer.json: model.vocab is \\[\\]; it must be an object"),
])
def test_refusal_of_what_would_change_ids(content, words):
    with pytest.raises(ValueError, match=words):
        JSONPieceTokenizer(content)


def test_refusal_of_merges_that_scores_cannot_say():
    without_a_cut = JSONPieceTokenizer(spec(vocab=spec()["model"]["vocab"] | {"ow": len(PIECES)},
                                            merges=[*MERGES, ["o", "w"]]))                # low is also l + ow
    with pytest.raises(ValueError, match="no scores say the same"):
        without_a_cut.vocabulary()
    with pytest.raises(ValueError, match="unless one is there"):
        JSONPieceTokenizer(spec(normalizer=None, pre_tokenizer=metaspace("first"))).vocabulary()


def with_think(scheme, *, normalized):
    """A vocabulary with <x>, an added token that is text, found before or after the text is normalised."""
    content = spec() if scheme == "prepend" else spec(normalizer=None, pre_tokenizer=metaspace(scheme))
    content["added_tokens"].append({"id": len(PIECES), "content": "<x>", "special": False, "normalized": normalized})
    return JSONPieceTokenizer(content)


@pytest.mark.parametrize("scheme, normalized, expected", [
    ("prepend", False, {"<x>lo": ["<x>", "▁lo"], "<x> lo": ["<x>", "▁", "▁lo"], "lo<x>": ["▁lo", "<x>"],
                        "lo<x>w": ["▁lo", "<x>", "▁", "w"]}),
    ("prepend", True, {"<x>lo": ["<x>", "lo"], "<x> lo": ["<x>", "▁lo"], "lo <x>w": ["▁lo", "<x>", "w"]}),
    ("first", True, {"<x>lo": ["<x>", "lo"], "<x> lo": ["<x>", "▁lo"], "lo<x>w": ["▁lo", "<x>", "w"]}),
    ("always", True, {"<x>lo": ["<x>", "▁lo"], "<x> lo": ["<x>", "▁lo"], "lo<x>w": ["▁lo", "<x>", "▁", "w"]})])
def test_worked_example_spaces_around_an_added_token(scheme, normalized, expected):
    """A token that is looked for in normalised text is itself normalised there: ▁<x>, which takes its space along."""
    tokenizer = with_think(scheme, normalized=normalized)
    assert {text: pieces(tokenizer, text) for text in expected} == expected


def test_property_a_model_file_of_an_earlier_model_gives_way(caplog):
    content = spec()
    old = load_tokenizer({"tokenizer.json": json.dumps(content).encode()}).model_file()
    content["added_tokens"].append({"id": len(PIECES), "content": "<x>", "special": False})
    folder = {"tokenizer.json": json.dumps(content).encode(), "tokenizer.model": old}
    tokenizer = load_tokenizer(folder)
    assert type(tokenizer) is JSONPieceTokenizer and len(PIECES) in tokenizer.encode("<x>")
    assert "tokenizer.json has other tokens than tokenizer.model, and is taken" in caplog.text
    told = {"added_tokens.json": json.dumps({"<x>": len(PIECES)}).encode()}
    assert type(load_tokenizer(folder | told)) is SentencePieceTokenizer               # the same, said elsewhere


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_refusal_of_a_unigram_vocabulary_names_its_kind(byte_fallback):
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": byte_fallback}
    with pytest.raises(ValueError, match="a vocabulary of type Unigram; only BPE is read here; the tokenizer.model"):
        load_tokenizer({"tokenizer.json": json.dumps({"model": model}).encode()})
