import json

import pytest
import torch
from safetensors.torch import save_file

from llama.checkpoint import PretrainedLlama, config_dict, fingerprint, load_model, plain_tensors, save_model
from llama.pretrained import get_model, get_tokenizer
from weights import passage
from weights.convert import convert
from weights.formats import meta
from weights.formats.single_file import SINGLE_FILE
from weights.formats.sources import open_source, template_remark, with_template
from weights.formats.torch_file import save_torch_file

FORMS = {"hf": ("folder", ""), "meta": ("release", "meta"), "gguf": ("x.gguf", ""), "llama2c": ("x.bin", ""),
         "pt": ("x.pt", "")}


@pytest.fixture(scope="module")
def forms(tiny_tokenizer, tmp_path_factory):
    """{kind: path} of the same tiny model."""
    from llama.config import preset

    folder = tmp_path_factory.mktemp("forms")
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size)).eval()
    model.tokenizer = tiny_tokenizer
    save_model(model, folder / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passage, "TOKENS", 12)
        return {kind: convert(folder / "source", folder / kind / name, to=to) for kind, (name, to) in FORMS.items()}


@pytest.mark.parametrize("kind", FORMS)
def test_property_content_decides_not_the_name(forms, tmp_path, kind):
    renamed = tmp_path / ("b.pt" if kind != "pt" else "b.gguf")
    renamed.symlink_to(forms[kind])
    assert open_source(renamed).kind == kind


@pytest.mark.parametrize("kind", FORMS)
def test_two_ways_every_form_gives_the_same_model(forms, kind):
    first, other = load_model(forms["hf"]), load_model(forms[kind])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    tokens = torch.arange(20)[None]
    assert torch.equal(first(tokens), other(tokens))
    assert get_model(forms[kind], dtype=torch.bfloat16).dtype == torch.bfloat16
    assert other.source == forms[kind] and (other.tokenizer is None) == (kind == "llama2c")
    if kind in ("hf", "pt"):                                        # others have no key for context or initialisation
        assert fingerprint(forms[kind]) == fingerprint(forms["hf"])


@pytest.mark.parametrize("kind", FORMS)
def test_two_ways_a_tokenizer_alone_is_that_of_its_model(forms, kind, tmp_path):
    if kind == "llama2c":
        with pytest.raises(ValueError, match="x.bin: this model brings no tokenizer"):
            get_tokenizer(forms[kind])
        return
    tokenizer = load_model(forms[kind]).tokenizer
    assert get_tokenizer(forms[kind]).files() == tokenizer.files()
    tokenizer.save(tmp_path / "alone")
    assert get_tokenizer(tmp_path / "alone").vocab_size == tokenizer.vocab_size
    with pytest.raises(FileNotFoundError, match="no tokenizer file or folder '.*nowhere'"):
        get_tokenizer("weights/nowhere")


@pytest.mark.parametrize("kind", FORMS)
def test_two_ways_one_by_one_and_in_order(forms, kind):
    source = open_source(forms[kind])
    assert [name for name, _, _ in source.ledger] == [name for name, _ in source.tensors()]
    for name, shape, dtype in reversed(source.ledger):
        assert (tuple(source.read(name).shape), source.read(name).dtype) == (shape, dtype)


def test_worked_example_what_is_said(forms):
    assert open_source(forms["meta"]).changes["tied"] == ["output.weight equals tok_embeddings.weight: one tied matrix"]
    assert open_source(forms["gguf"]).remarks == [
        "x.gguf: tensors in F32 (20); rows of q_proj and k_proj reordered to rotary pairs (i, i + K/2)"]
    assert "rope_theta 10,000" in open_source(forms["llama2c"]).changes["inferred"][0]
    assert open_source(forms["hf"]).changes == {}


def test_worked_example_a_shard_stands_for_its_folder(forms):
    assert open_source(forms["meta"] / "consolidated.00.pth").kind == "meta"
    assert meta.open_meta(forms["meta"]).sizes.H == 4


def test_worked_example_templates():
    files = {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ odd }}"}
    assert template_remark(files) == ["chat format: the template of the source"]
    assert with_template(files, "x").keys() == {"tokenizer.json", "tokenizer_config.json"}
    assert "--chat-format NAME writes one" in template_remark({"tokenizer.json": b"{}"})[0]
    assert template_remark({}) == []


@pytest.mark.parametrize("content, words", [
    (b"", "is no model that is known here"), (b"\0" * 5000, "is no model that is known here"),
    (b"GGUF", "cut short"), (b"PK\3\4 and more", "this is no file of tensors"),
], ids=["empty", "zeros", "GGUF", "zip"])  # fmt: skip
def test_refusal_of_files_that_are_no_models(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        open_source(tmp_path / "x")


def test_refusal_of_other_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; .* known are Hugging Face folders"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds neither config.json nor params.json, so it is no model folder; known"):
        open_source(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="holds tensors and no config; give the folder it lies in"):
        open_source(tmp_path / "x.safetensors")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises((ValueError, FileNotFoundError), match="params.json"):
        open_source(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["/tmp/x", "../../.bashrc", "tokenizer.json/../../x", "notes.txt"])
def test_refusal_of_a_single_file_that_names_other_files(name, tmp_path, tiny_model):
    """Its keys become paths when it is converted."""
    content = {"format": SINGLE_FILE, "config": config_dict(tiny_model), "tensors": plain_tensors(tiny_model),
               "tokenizer": {name: b"x"}}
    save_torch_file(tmp_path / "x.pt", content)
    with pytest.raises(ValueError, match="no model folder has one of that name"):
        open_source(tmp_path / "x.pt")


def test_refusal_of_a_link_that_leads_out_of_a_folder(tmp_path, tiny_model):
    save_model(tiny_model, tmp_path / "model")
    (tmp_path / "private").write_text("secret", encoding="utf-8")
    (tmp_path / "model" / "LICENSE").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match="LICENSE is a link to .*private, outside of the model's folder"):
        open_source(tmp_path / "model")
    stored = tmp_path / "hub" / "models--x"
    (stored / "snapshots").mkdir(parents=True)
    (stored / "blobs").mkdir()
    (tmp_path / "model").rename(stored / "snapshots" / "0a1b")
    (stored / "snapshots" / "0a1b" / "LICENSE").unlink()
    (stored / "blobs" / "77").write_text("Apache", encoding="utf-8")
    (stored / "snapshots" / "0a1b" / "LICENSE").symlink_to(stored / "blobs" / "77")          # as downloads are kept
    assert open_source(stored / "snapshots" / "0a1b").files["LICENSE"] == b"Apache"


# Folders that contradict themselves, or leave out what follows


def folder_of(tmp_path, tied, **tensors):
    values = {"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
              "num_attention_heads": 2, "rope_theta": 1e4, "tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    save_file(tensors | {"model.norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    return open_source(tmp_path)


def test_worked_example_a_head_beside_the_embedding_that_it_is_tied_to(tmp_path, caplog):
    rows = torch.arange(32.0).view(8, 4)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    same = folder_of(tmp_path, True, **{head: rows, embedding: rows.clone()})
    assert [name for name, _, _ in same.ledger] == ["embed_tokens.weight", "norm.weight"] and not caplog.records
    other = folder_of(tmp_path, True, **{head: rows + 1, embedding: rows})
    assert not other.config["tie_word_embeddings"] and torch.equal(other.read("lm_head.weight"), rows + 1)
    assert "the stored lm_head.weight is not the embedding, though config.json ties them" in caplog.text
    alone = folder_of(tmp_path, True, **{head: rows})
    assert alone.config["tie_word_embeddings"] and torch.equal(alone.read("embed_tokens.weight"), rows)
