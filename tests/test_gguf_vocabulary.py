import pytest
from test_gguf import METADATA, Array, changed, save

from weights.formats import gguf_vocabulary
from weights.formats.gguf_file import open_gguf, write_file
from weights.formats.gguf_vocabulary import vocabulary


def test_worked_example_vocabulary(tmp_path):
    values = vocabulary(open_gguf(save(tmp_path / "file")))
    assert values == {
        "model": "gpt2", "pre": "smollm", "tokens": METADATA["tokenizer.ggml.tokens"],
        "types": [3, 3, 3, 1, 1, 1, 1, 1, 1], "scores": None, "merges": ["a b"], "bos_id": 1,
        "eos_ids": [2, 0],                                          # </s> is an ordinary piece here, so it ends nothing
        "pad_id": 2, "unk_id": None, "add_bos": False, "add_space_prefix": False, "chat_template": None}  # fmt: skip


def test_worked_example_sentencepiece_vocabulary(tmp_path):
    metadata = changed(
        tokenizer__ggml__model="llama", tokenizer__ggml__pre=None, tokenizer__ggml__merges=None,
        tokenizer__ggml__tokens=Array(8, ["<unk>", "<s>", "</s>", "▁a"]), tokenizer__chat_template="{{ x }}",
        tokenizer__ggml__token_type=Array(5, [2, 3, 3, 1]), tokenizer__ggml__scores=Array(6, [0.0, 0.0, 0.0, -1.5]),
        tokenizer__ggml__padding_token_id=None, tokenizer__ggml__unknown_token_id=0)
    values = vocabulary(open_gguf(save(tmp_path / "file", metadata)))
    assert values["scores"] == [0.0, 0.0, 0.0, -1.5] and values["merges"] is None and values["pre"] is None
    assert values["add_bos"] and values["add_space_prefix"] and values["eos_ids"] == [2] and values["unk_id"] == 0
    assert values["chat_template"] == "{{ x }}" and values["pad_id"] is None


def again(tmp_path, values, rows):
    write_file(tmp_path / "again", gguf_vocabulary.metadata(values, rows), [], [])
    return vocabulary(open_gguf(tmp_path / "again"))


SENTENCEPIECE = {
    "model": "llama", "pre": None, "tokens": ["<unk>", "<s>", "</s>", "▁a"], "types": [2, 3, 3, 1],
    "scores": [0.0, 0.0, 0.0, -1.5], "merges": None, "bos_id": 1, "eos_ids": [2], "pad_id": None, "unk_id": 0,
    "add_bos": True, "add_space_prefix": False, "chat_template": "{{ 骆驼 }}"}  # fmt: skip


def test_two_ways_written_and_read(tmp_path):
    byte_level = vocabulary(open_gguf(save(tmp_path / "file")))
    assert again(tmp_path, byte_level, 9) == byte_level
    assert again(tmp_path, SENTENCEPIECE, 4) == SENTENCEPIECE
    two = SENTENCEPIECE | {"tool_template": "{{ tools }}"}
    assert again(tmp_path, two, 4) == two


def test_worked_example_filled_up_to_the_rows_of_the_embedding(tmp_path):
    values = again(tmp_path, SENTENCEPIECE, 6)
    assert values["tokens"][4:] == ["[PAD4]", "[PAD5]"] and values["types"][4:] == [5, 5]
    assert values["scores"][3:] == [-1.5, 0.0, 0.0]


def test_refusal_of_vocabularies_that_a_file_cannot_hold():
    with pytest.raises(ValueError, match="the vocabulary has 4 tokens, but the embedding only 3 rows"):
        gguf_vocabulary.metadata(SENTENCEPIECE, 3)
    with pytest.raises(ValueError, match="of kind 'llama', but has no scores"):
        gguf_vocabulary.metadata(SENTENCEPIECE | {"scores": None}, 4)
    with pytest.raises(ValueError, match="4 tokens end a text, but a GGUF names 3; ▁a would be forgotten"):
        gguf_vocabulary.metadata(SENTENCEPIECE | {"eos_ids": [2, 0, 1, 3]}, 4)


@pytest.mark.parametrize("none", [-1, 2**32 - 1, 99])
@pytest.mark.parametrize("role", ["bos", "eos", "padding", "unknown", "eot"])
def test_worked_example_roles_of_no_token_are_passed_over(role, none, tmp_path, caplog):
    """As llama.cpp does; −1 is a usual way to say none."""
    file = open_gguf(save(tmp_path / "file"))
    file.metadata[f"tokenizer.ggml.{role}_token_id"] = none
    values = vocabulary(file)
    assert none not in (values["bos_id"], *values["eos_ids"], values["pad_id"], values["unk_id"])
    said = f"the {role} token is 99, but the vocabulary has 9 tokens; it is passed over"
    assert said in caplog.text if none == 99 else not caplog.records


@pytest.mark.parametrize("type", [1, 3, 4])
@pytest.mark.parametrize("mark", ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "[EOT]"])
def test_worked_example_ends_are_known_by_their_spelling_whatever_their_type(mark, type, tmp_path):
    tokens = ["a", "b", "c", "d", "e", "f", "g", "h", mark]
    for types in ([1] * 8 + [type], None):
        change = dict(tokenizer__ggml__tokens=Array(8, tokens), tokenizer__ggml__eos_token_id=0,
                      tokenizer__ggml__token_type=types and Array(5, types))
        assert vocabulary(open_gguf(save(tmp_path / "file", changed(**change))))["eos_ids"] == [0, 8]


@pytest.mark.parametrize("change, words", [
    (dict(tokenizer__ggml__model="t5"), "its vocabulary is of kind 't5'"),
    (dict(tokenizer__ggml__tokens=None), "the metadata lacks tokenizer.ggml.tokens"),
    (dict(tokenizer__ggml__token_type=Array(5, [1])), "tokenizer.ggml.token_type has 1 entries for 9 tokens"),
    (dict(tokenizer__ggml__token_type=Array(5, [-1] + [1] * 8)), "token 0 is of type -1; types are from 0 to 6"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_refusal_of_metadata(tmp_path, change, words):
    file = open_gguf(save(tmp_path / "model.gguf", changed(**change)))
    with pytest.raises(ValueError, match=f"model.gguf.*{words}"):
        vocabulary(file)
