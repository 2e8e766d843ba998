import json
import os
import sys
import tracemalloc
import weakref
from pathlib import Path

import pytest
import torch
from test_gguf import BF16, F16, METADATA, Q4_1, Q8_0, WIDE, Array, K, in_parts, llama_tensors, pack, save

from llama.checkpoint import PretrainedLlama, fingerprint, load_model, save_model
from llama.config import preset
from llama.config_json import config_from_dict
from tokenizer import chat, from_vocabulary, load_tokenizer
from weights import convert as module
from weights import passage
from weights.certificate import verify
from weights.convert import convert
from weights.formats import gguf, huggingface, tensor_files
from weights.formats.sources import open_source
from weights.passage import TEXT

CHATML = chat.FORMATS["chatml"].template


@pytest.fixture
def packed(tmp_path):
    """A GGUF of a tiny Llama in Q8_0, with ChatML's template."""
    path = tmp_path / "packed"                                     # no .gguf: content decides, not the name
    path.write_bytes(pack(METADATA | {"tokenizer.chat_template": CHATML}, llama_tensors(kind=Q8_0, tied=True)))
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    """Certificates over a few positions: what they prove is tests/test_certificate.py's matter."""
    monkeypatch.setattr(passage, "TOKENS", 12)
    monkeypatch.setattr(os, "fsync", lambda file: None)            # disks that are waited for, many times a test


# ---- from a GGUF


def test_worked_example_a_gguf_becomes_a_folder(packed, tmp_path, capsys):
    folder = convert(packed, tmp_path / "deep" / "model")
    assert sorted(contents(folder)) == ["certificate.json", "config.json", "generation_config.json",
                                        "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    config = huggingface.read_config(folder)
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500_000.0}
    assert (config["rope_theta"], config["bos_token_id"], config["eos_token_id"]) == (500_000.0, 1, [2, 0])
    said = capsys.readouterr().err
    assert "tensors in Q8_0 (15), F32 (5); rows of q_proj and k_proj reordered" in said
    assert "20 tensors" in said and "as it was" in said and "head tied to the embedding" in said
    assert "chat format: chatml" in said


def test_two_ways_converted_tensors_are_those_of_the_file(packed, tmp_path):
    folder = convert(packed, tmp_path / "model")
    file = dict(gguf.read_tensors(gguf.open_gguf(packed)))
    written = dict(tensor_files.read_tensors(folder))
    assert file.keys() == written.keys()
    assert all(torch.equal(file[name], written[name]) for name in file)


def test_two_ways_the_tokenizer_of_the_folder_reads_as_the_files(packed, tmp_path):
    tokenizer = load_tokenizer(convert(packed, tmp_path / "model"))
    assert tokenizer.encode("abc") == [6, 5]                        # «ab» is the one merge of the file
    assert (tokenizer.bos_id, set(tokenizer.eos_ids), tokenizer.pad_id) == (1, {2, 0}, 2)
    assert tokenizer.chat_format == "chatml"


def test_worked_example_a_sentencepiece_vocabulary_becomes_a_model_file(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    metadata = {key: value for key, value in METADATA.items() if not key.startswith("tokenizer.")} | {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": Array(8, pieces),
        "tokenizer.ggml.scores": Array(6, [0.0] * 259 + [-2.0, -3.0, -4.0, -1.0]),
        "tokenizer.ggml.token_type": Array(5, [2, 3, 3] + [6] * 256 + [1] * 4),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    (tmp_path / "file").write_bytes(pack(metadata, llama_tensors(V=len(pieces))))
    folder = convert(tmp_path / "file", tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    assert (folder / "tokenizer.model").exists() and tokenizer.eos_ids == (2,)
    assert tokenizer.encode("ab骆", bos=True) == [1, 262, 261, *(3 + byte for byte in "骆".encode())]


@pytest.mark.parametrize("kind, stored", [(F16, torch.float16), (BF16, torch.bfloat16), (Q4_1, torch.float32)],
                         ids=["F16", "BF16", "Q4_1"])
def test_property_without_dtype_numbers_stay_as_stored(tmp_path, kind, stored):
    (tmp_path / "file").write_bytes(pack(METADATA, llama_tensors(kind=kind)))
    folder = convert(tmp_path / "file", tmp_path / "model")
    dtypes = {name: dtype for name, _, dtype in tensor_files.tensor_ledger(folder)}
    assert dtypes["layers.0.mlp.up_proj.weight"] == dtypes["lm_head.weight"] == stored
    assert dtypes["norm.weight"] == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_ways_dtype_casts_every_tensor(packed, tmp_path, dtype):
    written = dict(tensor_files.read_tensors(convert(packed, tmp_path / "model", dtype=dtype)))
    whole = dict(gguf.read_tensors(gguf.open_gguf(packed)))
    assert all(torch.equal(whole[name].to(dtype), written[name]) for name in whole)
    assert huggingface.read_config(tmp_path / "model")["dtype"] == str(dtype).removeprefix("torch.")


def test_refusal_of_numbers_beyond_float16(tmp_path):
    tensors = llama_tensors()
    shape, kind, raw = tensors["blk.0.ffn_up.weight"]
    tensors["blk.0.ffn_up.weight"] = shape, kind, torch.tensor([1e6]).numpy().tobytes() + raw[4:]
    (tmp_path / "file").write_bytes(pack(METADATA, tensors))
    with pytest.raises(ValueError, match="layers.0.mlp.up_proj.weight holds 1e[+]06, beyond float16's 65504"):
        convert(tmp_path / "file", tmp_path / "model", dtype=torch.float16)
    assert not (tmp_path / "model").exists()


# ---- from a folder


def test_two_ways_a_folder_in_shards_becomes_one_file(packed, tmp_path):
    first = convert(packed, tmp_path / "first")
    tensors = dict(tensor_files.read_tensors(first))
    ledger = tensor_files.tensor_ledger(first)
    files = {name: raw for name, raw in contents(first).items() if name.startswith(("token", "generation"))}
    huggingface.write_folder(tmp_path / "sharded", huggingface.read_config(first), ledger, tensors.items(),
                             files=files | {"README.md": b"not copied", "LICENSE": b"kept"}, max_shard_size=20_000)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    second = contents(convert(tmp_path / "sharded", tmp_path / "second"))
    assert second.pop("LICENSE") == b"kept"
    second_tensors = dict(tensor_files.read_tensors(tmp_path / "second"))
    assert all(torch.equal(tensors[name], second_tensors[name]) for name in tensors)
    for name in ("model.safetensors", "certificate.json"):
        del second[name]
    assert second == {name: raw for name, raw in contents(first).items() if name in second}


def zeros():
    """The tensors of SMALL by name."""
    model = PretrainedLlama(config_from_dict(SMALL))
    return {name: torch.zeros(parameter.shape) for name, parameter in model.named_parameters()}


def plain_folder(path, config=None, tensors=None, files=None):
    """A Hugging Face folder written with other tools' habits: yesterday's keys, names and files as given."""
    tensors = zeros() if tensors is None else tensors
    ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    huggingface.write_folder(path, {}, ledger, tensors.items(), files=files)
    (path / "config.json").write_text(json.dumps(SMALL if config is None else config), encoding="utf-8")
    return path


SMALL = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 2, "rope_theta": 10_000.0}


def test_property_unknown_fields_and_templates_are_kept_with_a_remark(packed, tmp_path, capsys):
    files = {"tokenizer_config.json": b'{"chat_template": "{{ odd }}", "x": 1}',
             "tokenizer.json": contents(convert(packed, tmp_path / "first"))["tokenizer.json"]}
    source = plain_folder(tmp_path / "source", SMALL | {"mood": "good"}, files=files)
    folder = convert(source, tmp_path / "model")
    assert huggingface.read_config(folder)["mood"] == "good"
    assert {name: contents(folder)[name] for name in files} == files
    assert "chat format: the template of the source" in capsys.readouterr().err


def test_worked_example_chat_format_replaces_the_template(packed, tmp_path):
    files = {"tokenizer_config.json": b'{"x": 1}', "chat_template.jinja": b"{{ odd }}"}
    source = plain_folder(tmp_path / "source", files=files)
    written = contents(convert(source, tmp_path / "model", chat_format="llama-3"))
    template = chat.FORMATS["llama-3"].template
    assert json.loads(written["tokenizer_config.json"]) == {"x": 1, "chat_template": template}
    assert "chat_template.jinja" not in written
    written = contents(convert(packed, tmp_path / "other", chat_format="llama-3"))
    assert json.loads(written["tokenizer_config.json"])["chat_template"] == template
    with pytest.raises(ValueError, match="the chat format 'vicuna' is not known; known are chatml, alpaca"):
        convert(packed, tmp_path / "third", chat_format="vicuna")


def test_property_a_stored_copy_of_a_tied_head_is_dropped(tmp_path):
    source = plain_folder(tmp_path / "source", SMALL | {"tie_word_embeddings": True})
    assert "lm_head.weight" in dict(tensor_files.read_tensors(source))
    assert "lm_head.weight" not in dict(tensor_files.read_tensors(convert(source, tmp_path / "model")))


def test_property_heads_of_tasks_come_along(tmp_path):
    tensors = zeros() | {"score.weight": torch.ones(3, 8)}
    del tensors["lm_head.weight"]
    source = plain_folder(tmp_path / "source", tensors=tensors)
    assert dict(tensor_files.read_tensors(convert(source, tmp_path / "model")))["score.weight"].sum() == 24


def test_property_a_config_without_theta_gets_the_first_llamas_and_a_line_that_says_so(tmp_path, capsys):
    config = {key: value for key, value in SMALL.items() if key != "rope_theta"}
    folder = convert(plain_folder(tmp_path / "source", config), tmp_path / "model")
    assert huggingface.read_config(folder)["rope_parameters"]["rope_theta"] == 10_000.0
    assert "names no rope_theta: 10,000 is written" in capsys.readouterr().err


@pytest.mark.parametrize("change, words", [
    ({"model_type": "gpt2"}, "config.json says model_type 'gpt2'"),
    ({"quantization_config": {"bits": 4}}, "the tensors are quantised in a way not known here"),
    ({"num_hidden_layers": 2}, "lacks the tensor layers.1.input_layernorm.weight"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000; it must be a whole number from 1 to"),
    ({"num_key_value_heads": 1}, r"k_proj.weight has shape \[8, 8\], but its config asks for \[4, 8\]"),
    ({"num_hidden_layers": 10**9}, "has 1,000,000,000 layers by its config and 12 tensors"),
    ({"hidden_size": "wide"}, "source.config.json: hidden_size is 'wide'"),
    ({"num_attention_heads": None}, "source: num_attention_heads is None"),
    ({"head_dim": "x"}, "source.config.json: head_dim is 'x'"),
    ({"rope_scaling": 3}, "rope_scaling is 3; it must be an object"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_refusal_of_a_folder_that_is_no_llama(tmp_path, change, words):
    source = plain_folder(tmp_path / "source", SMALL | change)
    with pytest.raises(ValueError, match=words):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_refusal_of_tensors_that_have_no_place(tmp_path):
    source = plain_folder(tmp_path / "source", tensors=zeros() | {"layers.0.self_attn.q_proj.bias": torch.zeros(8)})
    with pytest.raises(ValueError, match="holds layers.0.self_attn.q_proj.bias, which has no place in a Llama"):
        convert(source, tmp_path / "model")


def test_refusal_of_a_tokenizer_that_cannot_be_read(tmp_path):
    source = plain_folder(tmp_path / "source", files={"tokenizer.json": b"{}"})
    with pytest.raises(ValueError, match="source: tokenizer.json: the content is {}; it must be an object with model"):
        convert(source, tmp_path / "model")


# ---- from any form to any other, and back


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A folder of a model that every form can hold: θ = 10,000 and ε = 1e-5, as in llama2.c."""
    save_model(tiny_model, tmp_path / "source")
    return tmp_path / "source"


def same(first, second, dtype=None):
    a, b = (dict(tensor_files.read_tensors(path)) for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name].to(dtype or a[name].dtype), b[name]) for name in a)


@pytest.mark.parametrize("name, more", [
    ("there.gguf", {}), ("there.pt", {}), ("there.bin", {}), ("there", {"to": "meta"}),
    ("there", {"to": "meta", "shards": 2}), ("there", {"max_shard_size": 20_000}),
], ids=lambda value: str(value))  # fmt: skip
@pytest.mark.parametrize("tied", [True, False])
def test_two_ways_there_and_back_is_the_same_to_the_bit(tiny_model, folder, tmp_path, name, more, tied):
    if not tied:
        model = PretrainedLlama(preset("test", vocab_size=tiny_model.config.vocab_size, tie_word_embeddings=False))
        model.tokenizer = tiny_model.tokenizer
        save_model(model, folder)
    there = convert(folder, tmp_path / "other" / name, **more)
    back = convert(there, tmp_path / "back")
    assert same(folder, back)
    if name != "there.bin":                                         # llama2.c's tokenizers are SentencePiece's
        before, after = load_tokenizer(folder), load_tokenizer(back)
        assert before.encode(TEXT) == after.encode(TEXT)
        assert (before.special_ids, before.eos_ids, before.bos_id) == (after.special_ids, after.eos_ids, after.bos_id)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "other", "source"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name, more", [("there.gguf", {}), ("there.pt", {}), ("there", {"to": "meta"})],
                         ids=["gguf", "pt", "meta"])
def test_two_ways_halves_there_and_back(folder, tmp_path, name, more, dtype):
    first = convert(folder, tmp_path / "first", dtype=dtype)
    back = convert(convert(first, tmp_path / name, **more), tmp_path / "back", dtype=dtype)
    assert same(first, back) and same(folder, back, dtype)


def test_two_ways_a_gguf_in_parts_and_in_one_file(tmp_path):
    whole = convert(save(tmp_path / "whole.gguf"), tmp_path / "first")
    parts = in_parts(tmp_path / "parts")
    for source in (parts[1], tmp_path / "parts"):
        made = convert(source, tmp_path / "second", overwrite=True)
        assert same(whole, made)
        certificate = json.loads((made / "certificate.json").read_text(encoding="utf-8"))
        assert [*certificate["source"]["files"]] == [path.name for path in parts]
    with pytest.raises(ValueError, match="m-00002-of-00003.gguf is a part of .*m-00001.* and would be replaced"):
        convert(parts[0], parts[1], overwrite=True)
    joined = convert(parts[2], tmp_path / "joined.gguf")
    assert gguf.open_gguf(joined).metadata["general.name"] == "m"
    assert fingerprint(parts[2]) == fingerprint(joined) == fingerprint(tmp_path / "whole.gguf")
    assert load_model(parts[2]).source == parts[0]


@pytest.mark.parametrize("quantization, form", [(name, name) for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")]
                         + [("Q6_K", "Q8_0"), ("Q5_K_M", "Q5_1"), ("Q4_K_M", "Q5_0")])         # rows of 64
def test_worked_example_a_packed_gguf(folder, tmp_path, quantization, form, capsys):
    made = open_source(convert(folder, tmp_path / "made.gguf", quantization=quantization))
    assert f"packed as {form}" in capsys.readouterr().err
    up, packed = (dict(source.tensors())["layers.0.mlp.up_proj.weight"] for source in (open_source(folder), made))
    step = {"Q8_0": 1 / 127, "Q5_0": 1 / 16, "Q5_1": 2 / 31, "Q4_0": 1 / 8, "Q4_1": 2 / 15}[form] * up.abs().max()
    assert 0 < (up - packed).abs().max() < step


@pytest.mark.parametrize("quantization", ["Q6_K", "Q5_K_M", "Q4_K_M"])
def test_two_ways_k_formats_as_certified_and_as_read(tmp_path, quantization, capsys):
    """Rows of q and k are reordered in the file, so that its blocks are packed in another order than certified."""
    source = save(tmp_path / "source", WIDE, llama_tensors(D=256, F=512))
    verify(convert(source, tmp_path / "made.gguf", quantization=quantization))
    assert "Q6_K" in (said := capsys.readouterr().err) and "certificate passed: 21 tensors bit for bit" in said


def test_worked_example_llama2c_in_eight_bits(folder, tmp_path):
    made = open_source(convert(folder, tmp_path / "made.bin", quantization="Q8_0"))
    assert made.remarks[0].startswith("made.bin: llama2.c's version 2, int8 in groups of 32; rows")


def test_two_ways_a_sentencepiece_vocabulary_goes_everywhere(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    words = {"model": "llama", "pre": None, "tokens": pieces, "types": [2, 3, 3] + [6] * 256 + [1] * 4,
             "scores": [0.0] * 259 + [-2.0, -3.0, -4.0, -1.0], "merges": None, "bos_id": 1, "eos_ids": [2],
             "pad_id": None, "unk_id": 0, "add_bos": True, "add_space_prefix": True, "chat_template": None}
    model = PretrainedLlama(preset("test", vocab_size=len(pieces)))
    model.tokenizer = from_vocabulary(words)
    save_model(model, tmp_path / "source")
    ids = model.tokenizer.encode("a ab 骆\n")
    for number, (name, to) in enumerate([("x.bin", ""), ("x", "meta"), ("x.gguf", ""), ("x.pt", ""), ("x", "")]):
        made = convert(tmp_path / "source", tmp_path / str(number) / name, to=to)
        assert open_source(made).tokenizer.encode("a ab 骆\n") == ids
    assert {path.name for path in (tmp_path / "0").iterdir()} == {"x.bin", "x.bin.certificate.json", "tokenizer.bin"}
    assert (tmp_path / "1" / "x" / "tokenizer.model").is_file()
    with pytest.raises(ValueError, match="tokenizer.bin exists, and would be taken for the tokenizer of y.bin"):
        convert(tmp_path / "source", tmp_path / "0" / "y.bin")


def test_property_biases_of_qwen_2_come_through(tiny_model, tmp_path):
    model = PretrainedLlama(preset("test", vocab_size=tiny_model.config.vocab_size, qkv_bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    model.tokenizer = tiny_model.tokenizer
    save_model(model, tmp_path / "source")
    assert same(tmp_path / "source", convert(convert(tmp_path / "source", tmp_path / "x.gguf"), tmp_path / "back"))
    for name, to in (("x", "meta"), ("x.bin", "")):
        with pytest.raises(ValueError, match="bias"):
            convert(tmp_path / "source", tmp_path / name, to=to)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name, more, words", [
    ("x", {"quantization": "Q8_0"}, "--quantization Q8_0 packs GGUF and llama2.c files"),
    ("x.bin", {"quantization": "Q4_0"}, "llama2.c packs to 8 bits only"),
    ("x.gguf", {"quantization": "Q8_0", "dtype": torch.float16}, "--dtype and --quantization Q8_0 both say"),
    ("x.bin", {"dtype": torch.bfloat16}, "--dtype bfloat16: llama2.c files hold float32"),
    ("x", {"shards": 2}, "--shards 2 is for --to meta; a destination of kind hf has none of a given number"),
    ("x.pt", {"max_shard_size": 9}, "--max-shard-size is for --to hf"),
    ("x", {"to": "meta", "shards": 3}, "3 shards cannot share 4 heads"),
    ("x.safetensors", {}, "x.safetensors is named like a file, .* of kind hf is a folder; give .*/x, in which model"),
    ("x.pth", {"to": "meta"}, "x.pth is named like a file, .* of kind meta is a folder; give .*/x, in which consoli"),
], ids=lambda value: value[:14] if isinstance(value, str) else "")  # fmt: skip
def test_refusal_of_flags_that_do_not_go_together(packed, tmp_path, name, more, words):
    with pytest.raises(ValueError, match=words):
        convert(packed, tmp_path / name, **more)
    assert list(tmp_path.iterdir()) == [packed]


@pytest.mark.parametrize("size, count", [("5GB", 5_000_000_000), ("1.5M", 1_500_000), ("70k", 70_000), ("9", 9)])
def test_worked_example_of_sizes(size, count):
    assert module._bytes(size) == count
    for wrong in ("", "GB", "0", "-1GB", "5 gigabytes"):
        with pytest.raises(ValueError, match="must be a size such as 5GB"):
            module._bytes(wrong)


# ---- whole, or not at all; one tensor at a time


@pytest.mark.parametrize("length", [100, 5_000, -1], ids=["header", "tensors", "last byte"])
def test_refusal_of_a_source_cut_short_leaves_nothing(packed, tmp_path, length):
    packed.write_bytes(packed.read_bytes()[:length])
    with pytest.raises(ValueError, match="packed: .*cut short"):
        convert(packed, tmp_path / "model")
    assert list(tmp_path.iterdir()) == [packed]


@pytest.mark.skipif(os.name == "nt", reason="Windows tells no living writer from a dead one")
def test_property_what_a_killed_conversion_left_is_swept_also_where_the_next_is_refused(packed, tmp_path):
    (tmp_path / "x.gguf").touch()
    for left in ("..0a1b2c3d.partial", ".x.gguf.0a1b2c3d.partial"):
        (tmp_path / left).mkdir()
    with pytest.raises(ValueError, match="exists; give another name, or --overwrite"):
        convert(packed, tmp_path / "x.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"x.gguf", packed.name}


def test_refusal_of_destinations(packed, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist; SOURCE is a model's file or folder"):
        convert(tmp_path / "nothing", tmp_path / "model")
    folder = convert(packed, tmp_path / "model")
    with pytest.raises(ValueError, match="model exists; give another name, or --overwrite"):
        convert(packed, folder)
    with pytest.raises(ValueError, match="lies in .*, which would be replaced"):
        convert(folder, folder, overwrite=True)
    with pytest.raises(ValueError, match="lies in .*, which would be replaced"):
        convert(packed, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="x.gguf lies in .*model, and would become a part of it"):
        convert(folder, folder / "x.gguf")
    convert(packed, folder, overwrite=True)


def test_property_one_tensor_at_a_time(tmp_path, monkeypatch):
    """At most the one being written and the one it was cast from are alive, and numpy held little more than that."""
    layers, width = 12, 128
    metadata = METADATA | {
        "llama.block_count": layers, "llama.embedding_length": width, "llama.feed_forward_length": 2048,
        "llama.attention.key_length": K, "llama.attention.value_length": K}  # fmt: skip
    (tmp_path / "file").write_bytes(pack(metadata, llama_tensors(kind=Q8_0, D=width, F=2048, L=layers)))
    alive, most = set(), 0

    def counted(file, name, read=gguf.read_tensor):
        nonlocal most
        tensor = read(file, name)
        alive.add(name)
        most = max(most, len(alive))
        weakref.finalize(tensor, alive.discard, name)
        return tensor

    monkeypatch.setattr(gguf, "read_tensor", counted)
    monkeypatch.setattr(passage, "TOKENS", 2)
    with torch.device("meta"):
        PretrainedLlama(preset("test"))  # what torch imports at first use is not counted
    tracemalloc.start()
    convert(tmp_path / "file", tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most <= 2
    largest, total = 4 * width * 2048, (tmp_path / "model" / "model.safetensors").stat().st_size
    assert total > 30 * largest and peak < 3 * largest, (peak, largest)


# ---- the command


def test_worked_example_of_the_command(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert", str(packed), str(tmp_path / "model"), "--dtype", "bfloat16"])
    module.main()
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'model'}\n" and "cast to bfloat16" in printed.err


def test_refusal_by_the_command_is_one_sentence_and_exit_code_2(program, packed, tmp_path):
    packed.write_bytes(packed.read_bytes()[:-1])
    done = program("-m", "weights.convert", packed, tmp_path / "model", cwd=tmp_path, code=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1) and "cut short" in done.stderr
