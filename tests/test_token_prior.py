"""New rows whose pieces are foretold as often as they occur."""

import pytest
import torch
from torch.nn import functional

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import preset
from llama.lora import LoRAConfig, add_lora
from llama.lora.swap import new_rows
from llama.resize import main, resize_embeddings
from llama.token_prior import UNSEEN, hold_frequencies, match_frequencies
from tokenizer.bpe_extend import extend_bpe

TEXTS = ["我们去北京，北京的天气很好，今天去。" * 5, "the fox, and 北京"]


@pytest.fixture(scope="module")
def grown(tiny_tokenizer):
    return extend_bpe(tiny_tokenizer, TEXTS, 12)


def build(tokenizer, *, tied=False):
    torch.manual_seed(0)
    return PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size, tie_word_embeddings=tied), tokenizer).eval()


@pytest.mark.parametrize("init", ["mean", "random"])
def test_property_each_new_piece_is_foretold_as_often_as_it_occurs(init, tiny_tokenizer, grown):
    model = build(tiny_tokenizer)
    with torch.no_grad():
        model.norm.weight.add_(torch.randn(model.norm.weight.shape) * 0.1)
        model.embed_tokens.weight.add_(1)                           # so that states are alike, as a trained model's
    report = resize_embeddings(model, grown, init=init, texts=TEXTS)
    ids = [id for text in TEXTS for id in grown.encode(text)]
    new = range(tiny_tokenizer.vocab_size, grown.vocab_size)
    wanted = torch.bincount(torch.tensor(ids), minlength=new.stop).float()
    wanted[new.start :] += UNSEEN
    wanted[0] += UNSEEN
    with torch.no_grad():
        foretold = model(torch.tensor([ids])).softmax(-1)[0].mean(0)
    assert report.counted == len(ids) and f"frequent in {len(ids):,} tokens" in str(report)
    torch.testing.assert_close(foretold[new.start :], (wanted / wanted.sum())[new.start :], rtol=0.02, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_property_nothing_but_new_rows_of_the_head_moves_and_those_along_one_line(tied, tiny_tokenizer, grown):
    plain, moved = build(tiny_tokenizer, tied=tied), build(tiny_tokenizer, tied=tied)
    resize_embeddings(plain, grown)
    resize_embeddings(moved, grown, texts=TEXTS)
    V = tiny_tokenizer.vocab_size
    assert torch.equal(moved.lm_head.weight[:V], plain.lm_head.weight[:V])
    assert torch.equal(moved.embed_tokens.weight, plain.embed_tokens.weight) != tied
    assert torch.linalg.matrix_rank(moved.lm_head.weight[V:] - plain.lm_head.weight[V:], rtol=1e-4) == 1
    assert (moved.lm_head.weight is moved.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_property_held_rows_hear_nothing_of_what_all_places_share(tied, tiny_tokenizer, grown):
    model = build(tiny_tokenizer, tied=tied)
    resize_embeddings(model, grown, texts=TEXTS)
    add_lora(model, LoRAConfig(targets=(), rows=new_rows(model)))
    ids = torch.tensor([id for text in TEXTS for id in grown.encode(text)])[:128]
    states = model.hidden(ids[None])[0].detach()
    rows = model.lm_head.part.rows

    def gradient():
        rows.grad = None
        functional.cross_entropy(model(ids[None])[0, :-1], ids[1:]).backward()
        return rows.grad

    free = gradient()
    hold_frequencies(model, ids)
    held, unit = gradient(), functional.normalize(states.mean(0), dim=0)
    torch.testing.assert_close(held, free - (free @ unit)[:, None] * unit)
    assert (held @ unit).abs().max() < 1e-6 < (free @ unit).abs().max() and held.norm() > 0


def test_property_a_text_without_new_pieces_makes_them_unlikely(tiny_tokenizer, grown):
    model, V = build(tiny_tokenizer), tiny_tokenizer.vocab_size
    resize_embeddings(model, grown, texts=["the lazy dog " * 40])
    with torch.no_grad():
        assert model(torch.tensor([grown.encode("the lazy dog")])).softmax(-1)[..., V:].sum(-1).max() < 0.1


def test_refusal_of_texts_that_hold_nothing(tiny_tokenizer, grown):
    model = build(tiny_tokenizer)
    for texts in ([""], ["", ""]):
        with pytest.raises(ValueError, match="hold nothing to count"):
            resize_embeddings(model, grown, texts=texts)
    assert model.config.vocab_size == tiny_tokenizer.vocab_size and model.tokenizer is tiny_tokenizer


def test_worked_example_one_token_is_enough(tiny_tokenizer, grown):
    model = build(tiny_tokenizer)
    resize_embeddings(model, grown)
    before = model.lm_head.weight.detach().clone()
    new = range(tiny_tokenizer.vocab_size, grown.vocab_size)
    match_frequencies(model, torch.tensor([new.start]), new)
    raised = ((model.lm_head.weight - before) @ model.norm.weight)[new.start :]
    assert model.lm_head.weight.isfinite().all() and raised.abs().argmax() == 0


def test_two_ways_the_command_writes_what_the_function_makes(tiny_tokenizer, grown, tmp_path, monkeypatch, capsys):
    model = build(tiny_tokenizer)
    save_model(model, tmp_path / "base")
    grown.save(tmp_path / "grown")
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["resize", str(tmp_path / "base"), str(tmp_path / "grown"), "--output",
                                     str(tmp_path / "out"), "--texts", str(tmp_path / "text.txt")])
    main()
    resize_embeddings(model, grown, texts=TEXTS)
    assert torch.equal(load_model(tmp_path / "out").lm_head.weight, model.lm_head.weight)
    assert "frequent in" in capsys.readouterr().err
