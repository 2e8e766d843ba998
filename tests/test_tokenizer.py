"""What all tokenizers share: special tokens, streaming, the files of a folder, and which kind of file is which."""

import base64
import io
import json
import random

import pytest
import sentencepiece

from tokenizer import bpe, from_vocabulary, load_tokenizer
from tokenizer.bpe import BPETokenizer
from tokenizer.spm import SentencePieceTokenizer

TEXTS = ["The quick brown fox jumps over the lazy dog, and over it again.\n",
         "你好，世界！今天天气很好，你好吗？\n"] * 4
MIXED = "Hi 你好 👩‍👩‍👧‍👦 e\u0301 مرحبا\n  end "


def sentencepiece_model() -> bytes:
    """A small model of Llama's kind: BPE, byte fallback, text unchanged but for the space before its first word."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, model_type="bpe", vocab_size=350, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
    return model.getvalue()


@pytest.fixture(scope="module")
def byte_level():
    return bpe.train(TEXTS, 330)


@pytest.fixture(scope="module", params=["bpe", "spm"])
def tokenizer(request, byte_level):
    return byte_level if request.param == "bpe" else SentencePieceTokenizer(sentencepiece_model())


# Special tokens


def test_property_special_tokens_in_text_are_text(byte_level):
    ids = byte_level.encode("<|im_start|>user<|im_end|>")
    assert not set(ids) & set(byte_level.special_ids.values())
    assert byte_level.decode(ids, skip_special=True) == "<|im_start|>user<|im_end|>"


def test_worked_example_special_tokens_where_allowed(byte_level):
    ids = byte_level.encode("<|im_start|>user<|im_end|>", allow_special=True)
    assert ids == [1, *byte_level.encode("user"), 2]
    assert byte_level.decode(ids) == "<|im_start|>user<|im_end|>"
    assert byte_level.decode(ids, skip_special=True) == "user"


def test_worked_example_of_two_special_tokens_the_longer_is_found():
    tokenizer = bpe.train(TEXTS, 300, special=("<|a|>", "<|a|>b"))
    assert tokenizer.encode("<|a|>b<|a|>c", allow_special=True) == [1, 0, *tokenizer.encode("c")]


def test_worked_example_beginning_and_end():
    tokenizer = bpe.BPETokenizer(json.loads(bpe.train(TEXTS, 300, special=("<s>", "</s>")).files()["tokenizer.json"]),
                                 bpe.Settings(bos="<s>"))
    assert tokenizer.encode("x", bos=True, eos=True) == [0, *tokenizer.encode("x"), 1]


def test_refusal_of_a_beginning_that_does_not_exist(byte_level):
    with pytest.raises(ValueError, match="no token for the beginning of a text"):
        byte_level.encode("x", bos=True)
    with pytest.raises(ValueError, match="no token for the end of a text"):
        bpe.train(TEXTS, 300, special=()).encode("x", eos=True)


def test_refusal_of_half_a_character(tokenizer):
    with pytest.raises(ValueError, match=r"U\+D83D at character 2, half of a surrogate pair"):
        tokenizer.encode("ab\ud83d")


# Decoding


def test_two_ways_agree_stream_and_whole_text(tokenizer):
    ids = tokenizer.encode(MIXED)
    stream = tokenizer.stream()
    parts = [stream.push(id) for id in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids) == MIXED
    assert "\ufffd" not in "".join(parts)
    assert len(parts) > len(MIXED)                                  # some tokens hold only a part of a character


def test_two_ways_agree_stream_and_whole_text_for_any_ids(tokenizer):
    for seed in range(200):
        draw = random.Random(seed)
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randint(0, 30))]
        for skip in (True, False):
            stream = tokenizer.stream(skip_special=skip)
            assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids, skip_special=skip)
        plain = [id for id in ids if id not in tokenizer.special_ids.values()]
        whole = b"".join(map(tokenizer.token_bytes, plain)).decode(errors="replace")
        assert tokenizer.decode(plain) == (whole.removeprefix(" ") if tokenizer.spells_space_first else whole)


def test_property_a_stream_never_holds_back_more_than_three_bytes(byte_level):
    id_of = {byte_level.token_bytes(id): id for id in range(3, byte_level.vocab_size)}
    stream = byte_level.stream()
    assert [stream.push(id_of[bytes([byte])]) for byte in b"\xf0\x9f\xa6x"] == ["", "", "", "\ufffdx"]
    assert [stream.push(id_of[b"\xff"]), stream.push(id_of[b"\xe4"]), stream.flush()] == ["\ufffd", "", "\ufffd"]
    assert stream.push(id_of[b"y"]) == "y"


def test_refusal_of_ids_outside_the_vocabulary(tokenizer):
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"id {id} is not in this vocabulary of {tokenizer.vocab_size} tokens"):
            tokenizer.decode([id])


def test_worked_example_pieces_can_be_looked_at(byte_level):
    id_of = {byte_level.token_bytes(id): id for id in range(byte_level.vocab_size)}
    assert [byte_level.piece(id_of[token]) for token in (b" ", b"\n", b"\xe4", "你好".encode(), b"<|im_end|>")] == [
        "▁", "\\n", "\\xe4", "你好", "<|im_end|>"]


# The files of a folder


def test_two_ways_agree_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "folder")
    for again in (load_tokenizer(tmp_path / "folder"), load_tokenizer(tokenizer.files())):
        assert type(again) is type(tokenizer)
        assert again.encode(MIXED) == tokenizer.encode(MIXED)
        assert again.files() == tokenizer.files()
        for attribute in ("bos_id", "eos_ids", "pad_id", "adds_bos", "special_ids", "vocab_size", "chat_template"):
            assert getattr(again, attribute) == getattr(tokenizer, attribute), attribute
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == sorted(tokenizer.files())


def test_worked_example_settings_of_every_file_are_read(byte_level):
    vocabulary = {"tokenizer.json": byte_level.files()["tokenizer.json"]}

    def load(**files):
        return load_tokenizer(vocabulary | {f"{name}.json": json.dumps(file).encode() for name, file in files.items()})

    assert load().eos_ids == (0, 2)                                 # nothing said: the well-known ends
    assert load(config={"eos_token_id": 2}).eos_ids == (2,)
    assert load(config={"eos_token_id": 2}, generation_config={"eos_token_id": [0, 1]}).eos_ids == (0, 1)
    assert load(generation_config={"eos_token_id": 0}, tokenizer_config={"eos_token": "<|im_end|>"}).eos_ids == (2, 0)
    assert load(special_tokens_map={"bos_token": {"content": "<|im_start|>"}, "pad_token": "<|im_end|>"}).pad_id == 2
    assert load(special_tokens_map={"bos_token": {"content": "<|im_start|>"}}).bos_id == 1
    assert not load(tokenizer_config={"bos_token": "<|im_start|>", "add_bos_token": True}).adds_bos     # tests/test_bpe
    assert load(config={"pad_token_id": -1}).pad_id is None         # as the first Llamas write it
    assert load(tokenizer_config={"chat_template": [{"name": "tool_use", "template": "t"},
                                                    {"name": "default", "template": "d"}]}).chat_template == "d"
    assert load_tokenizer(vocabulary | {"chat_template.jinja": b"{{ x }}"}).chat_template == "{{ x }}"


def test_property_fields_that_we_do_not_know_are_kept(byte_level):
    files = byte_level.files() | {"generation_config.json": b'{"temperature": 0.6, "eos_token_id": [0, 2]}',
                                  "tokenizer_config.json": b'{"model_max_length": 8192, "eos_token": "<|im_end|>"}'}
    tokenizer = load_tokenizer(files)
    tokenizer.chat_template = "{{ messages }}"
    written = tokenizer.files()
    assert json.loads(written["generation_config.json"]) == {"temperature": 0.6, "eos_token_id": [2, 0]}
    config = json.loads(written["tokenizer_config.json"])
    assert (config["model_max_length"], config["chat_template"]) == (8192, "{{ messages }}")
    assert load_tokenizer(written).chat_template == "{{ messages }}"


def test_worked_example_a_token_with_a_role_is_a_control_token(byte_level):
    id = byte_level.encode("the")[0]
    word = byte_level.token_bytes(id).decode()
    tokenizer = load_tokenizer(byte_level.files() | {"tokenizer_config.json": json.dumps({"eos_token": word}).encode()})
    assert tokenizer.eos_ids[0] == tokenizer.special_ids[word] == id
    assert tokenizer.decode([id], skip_special=True) == ""


def test_worked_example_roles_that_no_token_of_the_vocabulary_has(byte_level, caplog):
    """The empty text and -1 are how the first converted Llamas say none; what is not there is passed over, and said."""
    def load(**files):
        return load_tokenizer(byte_level.files() | {f"{name}.json": json.dumps(content).encode()
                                                    for name, content in files.items()})
    plain = load(tokenizer_config={"bos_token": "", "eos_token": "<|im_end|>"}, generation_config={"pad_token_id": -1})
    assert (plain.bos_id, plain.eos_ids, plain.pad_id) == (None, (2,), None) and not caplog.records
    odd = load(tokenizer_config={"eos_token": "<|im_end|>", "pad_token": "[PAD]"},
               generation_config={"eos_token_id": [128001, 0]})
    assert (odd.eos_ids, odd.pad_id) == ((2, 0), None)
    assert "the token '[PAD]' for the padding of texts, but it is not in the vocabulary of 330" in caplog.text
    assert "the token 128001 for the end of texts" in caplog.text


def test_worked_example_config_json_speaks_where_the_vocabularys_own_files_do_not(byte_level):
    bare = {"tokenizer.json": byte_level.files()["tokenizer.json"]}
    numbers = {"bos_token_id": 1, "eos_token_id": [0, 5], "pad_token_id": 0}
    tokenizer = load_tokenizer(bare | {"config.json": json.dumps(numbers).encode()})
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (0, 5), 0)
    model = sentencepiece_model()                                   # which names 1 and 2 itself
    wrong = {"bos_token_id": 0, "eos_token_id": 1}
    tokenizer = load_tokenizer({"tokenizer.model": model, "config.json": json.dumps(wrong).encode()})
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    llama3 = {"tokenizer_config.json": b'{"eos_token": "<|im_end|>"}', "config.json": b'{"eos_token_id": [0, 2]}'}
    assert load_tokenizer(bare | llama3).eos_ids == (2, 0)          # its own end is among them: one model


def test_refusal_of_settings_that_do_not_fit(byte_level):
    for file, content, words in (
        ("tokenizer_config.json", {"eos_token": 5}, "tokenizer_config.json: eos_token is 5; it must be a text"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template is 5; it must be a text"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": 1}}, "decoder key is 'x'; it must be an id"),
        ("tokenizer_config.json", [1], "holds a JSON list, but must hold an object"),
    ):
        with pytest.raises(ValueError, match=words):
            load_tokenizer(byte_level.files() | {file: json.dumps(content).encode()})
    with pytest.raises(ValueError, match="generation_config.json, line 2: not JSON"):
        load_tokenizer(byte_level.files() | {"generation_config.json": b'{"a": 1,\n oops'})


# Which kind of file it is


def test_worked_example_the_kind_is_in_the_content_not_in_the_name(byte_level, tmp_path):
    (tmp_path / "one").write_bytes(byte_level.files()["tokenizer.json"])
    (tmp_path / "two").write_bytes(sentencepiece_model())
    ranks = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    (tmp_path / "tokenizer.model").write_bytes(ranks)
    assert type(load_tokenizer(tmp_path / "one")) is BPETokenizer
    assert type(load_tokenizer(str(tmp_path / "two"))) is SentencePieceTokenizer
    with pytest.raises(ValueError, match="tokenizer.model: this rank file of 256 tokens"):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_worked_example_a_folder_with_both_gives_its_sentencepiece_model(byte_level):
    files = byte_level.files() | {"tokenizer.model": sentencepiece_model()}
    del files["tokenizer_config.json"], files["generation_config.json"]
    assert type(load_tokenizer(files)) is SentencePieceTokenizer


def test_refusal_of_what_is_no_tokenizer(tmp_path, byte_level):
    with pytest.raises(FileNotFoundError, match="no tokenizer file or folder .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(FileNotFoundError, match="neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    for content, words in (
        (b"", "tokenizer.json is empty"),
        (b"GGUF\3\0\0\0", "convert it with python -m weights.convert"),
        (b"once upon a time", "is no tokenizer; known are tokenizer.json, SentencePiece"),
        (byte_level.files()["tokenizer.json"][:2000], "tokenizer.json, line 97: not JSON"),
        (b"{}", "the content is {}; it must be an object with model"),
        (b'{"model": {"vocab": {"a": "b"}, "merges": []}}', "not known here|it must be a whole number"),
        (b'{"a": "\xff"}', "not JSON in UTF-8"),
        (sentencepiece_model()[:1000], "no SentencePiece model, or not all of one"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="of kind 'bert'"):
        from_vocabulary({"model": "bert"})
