import json
import math
import sys

import pytest
import torch

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import RopeScaling, preset
from weights import certificate as module
from weights import convert as command
from weights import passage as built_in
from weights.certificate import block_by_block, read_as_user, read_naively, verify
from weights.convert import convert
from weights.formats import huggingface, tensor_files
from weights.formats.plain_llama import to_interleaved
from weights.formats.sources import open_source
from weights.passage import passage


@pytest.fixture(scope="module")
def learned(tiny_tokenizer, tmp_path_factory):
    """A folder of a tiny model that knows the built-in text by heart, so that its rotary order can be told."""
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size, num_hidden_layers=1))
    model.tokenizer = tiny_tokenizer
    rows = passage(tiny_tokenizer, model.config).rows
    adam = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        loss = sum(torch.nn.functional.cross_entropy(model(row[None, :-1])[0], row[1:]) for row in rows)
        adam.zero_grad()
        loss.backward()
        adam.step()
    folder = tmp_path_factory.mktemp("learned") / "model"
    save_model(model.eval(), folder)
    return folder


@pytest.fixture
def folder(tiny_model, tmp_path, monkeypatch):
    """A folder of the untrained tiny model; few tokens, for speed."""
    monkeypatch.setattr(built_in, "TOKENS", 24)
    save_model(tiny_model, tmp_path / "source")
    return tmp_path / "source"


# ---- what a certificate says


def test_worked_example_of_a_certificate(learned, tmp_path, capsys):
    made = convert(learned, tmp_path / "made", dtype=torch.bfloat16)
    told = json.loads((made / "certificate.json").read_text(encoding="utf-8"))
    assert told["verdict"] == "passed" and told["text"]["how"] == "256 tokens of the built-in text"
    assert (told["source"]["name"], told["destination"]["name"]) == (learned.name, "made")
    assert told["source"]["files"].keys() == {path.name for path in learned.iterdir()}
    assert told["destination"]["files"].keys() == {path.name for path in made.iterdir()} - {"certificate.json"}
    entry = told["tensors"][0]
    assert (entry["name"], entry["rule"]) == ("embed_tokens.weight", "cast to bfloat16")
    assert [entry[side]["dtype"] for side in ("source", "destination")] == ["float32", "bfloat16"]
    assert told["logits"].keys() >= {"float32", "bfloat16"} and told["logits"]["limit"] is None
    assert 0 < told["logits"]["float32"]["mean_difference"] < told["logits"]["float32"]["max_difference"] < 1
    assert told["perplexity"]["rotary_pairs_in_halves"] * 1.05 < told["perplexity"]["rotary_pairs_of_neighbours"]
    assert told["perplexity"]["tells_the_rotary_order"] and told["tokenizer"]["decodes_to_the_text"]
    said = capsys.readouterr().err
    assert "certificate passed: 11 tensors bit for bit (cast to bfloat16); logits in float32: max |Δ|" in said


def test_two_ways_block_by_block_and_loaded_whole(folder, monkeypatch):
    text = passage(None, load_model(folder).config)
    whole = read_as_user(folder, text, None)
    monkeypatch.setattr(module, "WHOLE", 0)
    assert torch.equal(read_as_user(folder, text, None), whole)
    model = block_by_block(open_source(folder), torch.float32)
    model(text.rows[0][None])
    assert all(parameter.is_meta for parameter in model.parameters())              # nothing stays in memory


def test_two_ways_the_naive_reading_and_the_model(learned):
    text = passage(open_source(learned).tokenizer, load_model(learned).config)
    reading = read_naively(open_source(learned), text)
    assert (reading.logits - read_as_user(learned, text, None)).abs().max() < 1e-3
    assert reading.perplexity < 30


# ---- what it refuses


def test_refusal_of_rows_in_the_other_rotary_order(learned, tmp_path):
    source = open_source(learned)
    H, G = source.config["num_attention_heads"], source.config["num_key_value_heads"]
    heads = {"q_proj": H, "k_proj": G}
    tensors = {name: to_interleaved(tensor, heads[name.split(".")[-2]]) if name.split(".")[-2] in heads else tensor
               for name, tensor in source.tensors()}
    huggingface.write_folder(tmp_path / "misread", source.config, source.ledger, tensors.items(), files=source.files)
    with pytest.raises(ValueError, match=r"has the perplexity \d+\.\d\d, but \d+\.\d\d with the other order"):
        convert(tmp_path / "misread", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("seed", range(3))
def test_property_untrained_models_have_no_rotary_order(seed, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(built_in, "TOKENS", 40)
    torch.manual_seed(seed)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size, initializer_range=1.0))
    model.tokenizer = tiny_tokenizer
    save_model(model, tmp_path / "source")
    source = open_source(tmp_path / "source")
    assert not read_naively(source, passage(source.tokenizer, model.config)).tells


def test_refusal_of_a_destination_that_is_not_the_source(folder, tmp_path, monkeypatch):
    write = huggingface.write_folder

    def with_another(change):
        def written(path, config, ledger, tensors, **more):
            write(path, *change(config, ledger, tensors), **more)
        return written

    changes = {
        "rope_theta went in as 10000.0 and comes out as 5.0": lambda c, ledger, t: (
            c | {"rope_theta": 5.0, "rope_parameters": None}, ledger, t),
        "norm.weight was not written as it was read": lambda c, ledger, t: (
            c, ledger, ((name, tensor * (2 if name == "norm.weight" else 1)) for name, tensor in t)),
    }
    for words, change in changes.items():
        monkeypatch.setattr(huggingface, "write_folder", with_another(change))
        with pytest.raises(RuntimeError, match=words):
            convert(folder, tmp_path / "made")
        assert not (tmp_path / "made").exists()


def test_refusal_of_a_model_that_computes_otherwise(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda path, dtype: (model := load_model(path, dtype=dtype))
                        and model.norm.weight.data.mul_(2) is not None and model)
    with pytest.raises(RuntimeError, match="its logits differ from the source's by up to .*, above the limit"):
        convert(folder, tmp_path / "made")
    assert not (tmp_path / "made").exists()


# ---- verified again


@pytest.mark.parametrize("name", ["made", "made.pt", "made.gguf"])
def test_refusal_of_any_changed_byte(folder, tmp_path, name):
    made = convert(folder, tmp_path / name)
    verify(made)
    files = [*made.iterdir()] if made.is_dir() else [made, made.with_name(name + ".certificate.json")]
    for path in files:
        raw = bytearray(path.read_bytes())
        for at in (0, len(raw) // 2, len(raw) - 1):
            raw[at] ^= 1
            path.write_bytes(raw)
            with pytest.raises(RuntimeError, match=path.name):
                verify(made)
            raw[at] ^= 1
        path.write_bytes(raw)
    verify(made)


def test_refusal_of_missing_and_added_files(folder, tmp_path):
    made = convert(folder, tmp_path / "made")
    (made / "inner").mkdir()
    (made / "inner" / "note.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(RuntimeError, match="inner/note.txt was not there when the folder was certified"):
        verify(made)
    (made / "inner" / "note.txt").unlink()
    (made / "tokenizer.json").unlink()
    with pytest.raises(RuntimeError, match="tokenizer.json is missing; the certificate names it"):
        verify(made)
    (made / "certificate.json").unlink()
    with pytest.raises(FileNotFoundError, match="certificate.json does not exist, so there is nothing to verify by"):
        verify(made)


def test_refusal_of_files_that_are_read_otherwise_than_they_were(folder, tmp_path, monkeypatch):
    """The same bytes, and another program: what a later version of this one could do."""
    made = convert(folder, tmp_path / "made")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="embed_tokens.weight is read otherwise"):
        patch.setattr(tensor_files, "_read", lambda *place, read=tensor_files._read: read(*place) * 2)
        verify(made)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="logits differ by .* from those"):
        patch.setattr(module, "load_model", lambda path, dtype: PretrainedLlama(load_model(path).config).eval())
        verify(made)


def test_worked_example_of_the_command(folder, tmp_path, monkeypatch, capsys):
    made = convert(folder, tmp_path / "made")
    monkeypatch.setattr(sys, "argv", ["convert", "--verify", str(made)])
    capsys.readouterr()
    command.main()
    assert capsys.readouterr().err.startswith("certificate passed: ")
    for more, named in (([str(tmp_path / "other")], "destination"), (["--to", "pt", "--overwrite"], "to, overwrite")):
        monkeypatch.setattr(sys, "argv", ["convert", "--verify", str(made), *more])
        with pytest.raises(ValueError, match=f"--verify converts nothing, .* leave out {named}$"):
            command.main()


def test_property_a_model_for_another_task_has_no_logits_to_compare(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "source")
    source = open_source(tmp_path / "source")
    ledger = [*source.ledger, ("score.weight", (3, 32), torch.float32)]
    tensors = [*source.tensors(), ("score.weight", torch.ones(3, 32))]
    huggingface.write_folder(tmp_path / "scored", source.config, ledger, tensors, files=source.files)
    made = convert(tmp_path / "scored", tmp_path / "made")
    assert verify(made)["logits"] is None


def test_property_rotary_scaling_comes_through(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(built_in, "TOKENS", 24)
    model = PretrainedLlama(preset("test", rope_scaling=RopeScaling("llama3", factor=8.0))).eval()
    model.tokenizer = None
    save_model(model, tmp_path / "source")
    assert verify(convert(tmp_path / "source", tmp_path / "made"))["config"]["rope_scaling"]["factor"] == 8.0


@pytest.mark.parametrize("scaling", [
    RopeScaling("ntk", factor=3.0),                                 # whose θ has more digits than float32
    RopeScaling("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=0.1 * math.log(4) + 1),
], ids=["ntk", "yarn"])  # fmt: skip
def test_property_numbers_of_a_config_may_be_kept_in_float32(scaling, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(built_in, "TOKENS", 24)
    model = PretrainedLlama(preset("test", vocab_size=tiny_model.config.vocab_size, rope_scaling=scaling)).eval()
    model.tokenizer = tiny_model.tokenizer
    save_model(model, tmp_path / "source")
    assert verify(convert(tmp_path / "source", tmp_path / "x.gguf"))["logits"]["limit"] is not None


def test_property_rows_without_a_token_are_told(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(built_in, "TOKENS", 24)
    ids = tiny_model.tokenizer.vocab_size
    model = PretrainedLlama(preset("test", vocab_size=ids + 5)).eval()
    model.tokenizer = tiny_model.tokenizer
    save_model(model, tmp_path / "source")
    told = verify(convert(tmp_path / "source", tmp_path / "x.gguf"))
    assert told["changes"]["padded"] == [f"the embedding has {ids + 5:,} rows, the tokenizer {ids:,} ids"]
