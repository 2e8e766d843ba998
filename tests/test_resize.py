"""Rows for a grown vocabulary: what they start as, and that nothing else moves."""

import json

import pytest
import torch
from conftest import TEXT

import llama
from llama import resize
from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import preset
from llama.lora import LoRAConfig, add_lora
from llama.lora.swap import new_rows
from llama.quantization.swap import quantize
from llama.resize import resize_embeddings
from tokenizer import bpe
from tokenizer.bpe_extend import extend_bpe

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
CHINESE = ["我们去北京，北京的天气很好，今天去。"] * 4


@pytest.fixture(scope="module")
def grown(tiny_tokenizer):
    return extend_bpe(tiny_tokenizer, CHINESE, 12)


def build(tokenizer, *, tied=True, rows=0):
    torch.manual_seed(0)
    shape = preset("test", vocab_size=rows or tokenizer.vocab_size, tie_word_embeddings=tied)
    return PretrainedLlama(shape, tokenizer).eval()


@TIED
def test_worked_example_of_a_mean(tied, tiny_tokenizer, grown):
    model = build(tiny_tokenizer, tied=tied)
    before = [module.weight.detach().clone() for module in (model.embed_tokens, model.lm_head)]
    report = resize_embeddings(model, grown)
    V, new = tiny_tokenizer.vocab_size, grown.vocab_size
    assert report.rows == (V, new) and report.pieces == new - V == 12 and model.config.vocab_size == new
    for weight, module in zip(before, (model.embed_tokens, model.lm_head), strict=True):
        assert torch.equal(module.weight[:V], weight)
        for id in range(V, new):
            parts = tiny_tokenizer.spelling(grown.token_bytes(id))
            assert len(parts) > 1
            torch.testing.assert_close(module.weight[id], sum(weight[part] for part in parts) / len(parts))
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied and model.tokenizer is grown


@TIED
def test_property_old_text_gets_the_logits_that_it_got(tied, tiny_tokenizer, grown, tmp_path):
    model = build(tiny_tokenizer, tied=tied)
    ids = torch.tensor([tiny_tokenizer.encode(TEXT[0])])
    with torch.no_grad():
        before = model(ids)
        resize_embeddings(model, grown, pad_to=64)
        assert torch.equal(torch.tensor([grown.encode(TEXT[0])]), ids)
        torch.testing.assert_close(model(ids)[..., : before.shape[-1]], before, rtol=0, atol=1e-6)
    assert len(model.embed_tokens.weight) == len(model.lm_head.weight) == 448 == model.config.vocab_size
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert torch.equal(again.embed_tokens.weight, model.embed_tokens.weight)
    assert again.tokenizer.files() == grown.files() and again.tokenizer.first_new_id == tiny_tokenizer.vocab_size


def test_property_rows_without_a_piece_are_taken_first(tiny_tokenizer, grown):
    """Qwen's models have some three hundred: the number of rows is a multiple of 128 already."""
    model = build(tiny_tokenizer, rows=tiny_tokenizer.vocab_size + 5)
    resize_embeddings(model, grown)
    assert len(model.embed_tokens.weight) == grown.vocab_size
    model = build(tiny_tokenizer, rows=512)
    before, V = model.embed_tokens.weight.detach().clone(), tiny_tokenizer.vocab_size
    resize_embeddings(model, grown, init="mean-of-all")
    assert torch.equal(model.embed_tokens.weight[grown.vocab_size :], before[grown.vocab_size :])
    torch.testing.assert_close(model.embed_tokens.weight[V], before[:V].mean(0))


def test_property_all_rows_are_new_of_a_vocabulary_that_grew_twice(tiny_tokenizer, grown, tmp_path):
    """--train-new-rows learns them all, and not those of the last time alone."""
    twice = extend_bpe(grown, ["春天来了，春天来了。"] * 4, 5)
    model = build(tiny_tokenizer)
    resize_embeddings(model, twice)
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert twice.first_new_id == grown.vocab_size
    assert new_rows(again)["embed_tokens"] == tuple(range(tiny_tokenizer.vocab_size, twice.vocab_size))
    assert again.tokenizer.encode("春天的北京") == twice.encode("春天的北京")
    resize_embeddings(again, again.tokenizer, pad_to=64)            # without a new piece
    assert again.tokenizer.first_new_id == tiny_tokenizer.vocab_size


def test_worked_example_of_random_rows(tiny_tokenizer, grown):
    rows = []
    for seed in (0, 0, 1):
        model = build(tiny_tokenizer)
        resize_embeddings(model, grown, init="random", seed=seed)
        rows.append(model.embed_tokens.weight[tiny_tokenizer.vocab_size :])
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert abs(rows[0].std().item() / model.config.initializer_range - 1) < 0.2


def test_property_a_step_of_the_rows_before_is_gone(tiny_tokenizer, grown):
    model = build(tiny_tokenizer)
    model.step = "built for fewer rows"
    resize_embeddings(model, grown)
    assert model.step is None


def test_refusal_of_what_gets_no_rows(tiny_tokenizer, grown):
    model = build(tiny_tokenizer)
    with pytest.raises(ValueError, match="id .* is b.* for the tokenizer, and b.* for the model"):
        resize_embeddings(model, bpe.train([text.upper() for text in TEXT] * 8, 420))
    with pytest.raises(ValueError, match="none are taken away"):
        resize_embeddings(build(grown), tiny_tokenizer)
    with pytest.raises(ValueError, match="init is 'zero'; new rows start as one of mean"):
        resize_embeddings(model, grown, init="zero")
    add_lora(model, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="the model has adapters"):
        resize_embeddings(model, grown)
    few = build(tiny_tokenizer)
    quantize(few, bits=8)
    with pytest.raises(ValueError, match="in 8 or 4 bits, which get no new rows"):
        resize_embeddings(few, grown)
    assert llama.resize_embeddings is resize_embeddings


def test_two_ways_the_command_writes_what_the_function_makes(tiny_tokenizer, grown, tmp_path, monkeypatch, capsys):
    model = build(tiny_tokenizer)
    save_model(model, tmp_path / "base")
    grown.save(tmp_path / "grown")
    monkeypatch.setattr("sys.argv", ["resize", str(tmp_path / "base"), str(tmp_path / "grown"), "--output",
                                     str(tmp_path / "out"), "--pad-to", "16", "--json"])
    resize.main()
    out = capsys.readouterr()
    resize_embeddings(model, grown, pad_to=16)
    again = load_model(tmp_path / "out")
    assert torch.equal(again.embed_tokens.weight, model.embed_tokens.weight)
    assert json.loads(out.out)["rows"] == [tiny_tokenizer.vocab_size, 416] and "loaded again from disk" in out.err
    monkeypatch.setattr("sys.argv", ["resize", str(tmp_path / "base"), str(tmp_path / "base"), "--output",
                                     str(tmp_path / "same")])
    with pytest.raises(ValueError, match="has no piece that .*base lacks, so there is no row to add"):
        resize.main()
    assert not (tmp_path / "same").exists()
