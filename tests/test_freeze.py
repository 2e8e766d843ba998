import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.freeze import freeze, trainable_parameters, unfreeze
from llama.lora import LoRAConfig, add_lora, set_active

TOKENS = torch.arange(24).reshape(2, 12) * 5 % 512


def build(*, tied=False, layers=4):
    torch.manual_seed(0)
    return PretrainedLlama(preset("test", tie_word_embeddings=tied, num_hidden_layers=layers))


def learning(model):
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}


def named(model, *parts):
    return {name for name, _ in model.named_parameters(remove_duplicate=False)
            if any(name.startswith(part) or f".{part}." in f".{name}." for part in parts)}


def bits(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters(remove_duplicate=False)}


def step(model, optimizer):
    optimizer.zero_grad()
    model(TOKENS).logsumexp(-1).mean().backward()
    optimizer.step()


CHOICES = [
    ({"layers": 3}, ("layers.0.", "layers.1.", "layers.2.")),
    ({"layers": -1}, ("layers.3.",)),
    ({"layers": 4, "embeddings": True}, ("layers.", "embed_tokens.")),
    ({"embeddings": True}, ("embed_tokens.",)),
    ({"pattern": "q_proj"}, ("q_proj",)),
    ({"pattern": "layers.1"}, ("layers.1.",)),
    ({"pattern": "layers.[02].mlp.*"}, ("layers.0.mlp.", "layers.2.mlp.")),
    ({"pattern": "norms"}, ("norm", "input_layernorm", "post_attention_layernorm")),
    ({"pattern": "blocks,head", "embeddings": True}, ("layers.", "lm_head.", "embed_tokens.")),
    ({"all_but": "norms"}, ("embed_tokens", "lm_head", "self_attn", "mlp")),
    ({"all_but": "norms,head"}, ("embed_tokens", "self_attn", "mlp")),
    ({"all_but": "head"}, ("embed_tokens", "layers.", "norm.")),
]


@pytest.mark.parametrize("choice, frozen", CHOICES, ids=[str(choice) for choice, _ in CHOICES])
def test_worked_example_what_freezes(choice, frozen):
    model = build()
    everything = learning(model)
    freeze(model, **choice)
    assert learning(model) == everything - named(model, *frozen) != everything
    unfreeze(model)
    assert learning(model) == everything


def test_property_frozen_parameters_do_not_move_by_a_bit():
    model = build()
    freeze(model, layers=2, embeddings=True)
    before, frozen = bits(model), named(model, "layers.0.", "layers.1.", "embed_tokens.")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        step(model, optimizer)
    after = bits(model)
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen


def test_property_an_optimiser_made_before_moves_nothing():
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    step(model, optimizer)
    freeze(model, pattern="mlp")
    before = bits(model)
    optimizer.step()
    assert all(torch.equal(value, before[name]) == ("mlp" in name) for name, value in bits(model).items())


def test_property_freezing_adds_up():
    model = build()
    freeze(model, layers=1)
    freeze(model, layers=-1)
    assert learning(model) == set(bits(model)) - named(model, "layers.0.", "layers.3.")


def test_property_a_tied_head_and_embeddings_go_together(caplog):
    model = build(tied=True)
    freeze(model, embeddings=True)
    assert not learning(model) & {"lm_head.weight", "embed_tokens.weight"}
    assert "embed_tokens.weight and lm_head.weight are one matrix (tied): both freeze" in caplog.text
    model = build(tied=True)
    freeze(model, all_but="head")
    assert learning(model) == {"lm_head.weight", "embed_tokens.weight"}
    assert "(tied): both learn" in caplog.text
    caplog.clear()
    freeze(build(tied=True), layers=2)
    assert not caplog.text


def test_worked_example_the_table_of_what_learns():
    model = build(tied=True)
    freeze(model, layers=3, embeddings=True)
    # 512 · 32; a block: q, o 32 · 32, k, v 32 · 16, gate, up, down 32 · 64; 9 norms of 32, of which 3 learn
    assert trainable_parameters(model).splitlines() == [
        "part                          parameters         learning",
        "embeddings, head (tied)           16,384                0    0.00%",
        "blocks 0–2 (3)                    27,648                0    0.00%",
        "block 3                            9,216            9,216  100.00%",
        "norms                                288               96   33.33%",
        "total                             53,536            9,312   17.39%",
    ]


def test_worked_example_the_table_under_lora():
    model = build()
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj",)), name="small")
    rows = {line[:15].strip(): line[15:].split() for line in trainable_parameters(model).splitlines()}
    assert rows["adapter 'small'"] == ["512", "512", "100.00%"]     # 4 blocks · (2 · 32 + 32 · 2)
    assert rows["blocks 0–3 (4)"][1] == rows["embeddings"][1] == rows["head"][1] == rows["norms"][1] == "0"
    assert rows["total"] == ["70,432", "512", "0.73%"]


@pytest.mark.parametrize("choice, words", [
    ({"layers": 5}, "5 blocks cannot be frozen: the model has 4"),
    ({"layers": -5}, "5 blocks cannot be frozen: the model has 4"),
    ({"pattern": "q_prj"}, "no parameter's name fits 'q_prj'; near are q_proj"),
    ({"all_but": "norm,hed"}, "no parameter's name fits 'hed'; near are head"),
    ({"pattern": "*"}, "nothing would be left to learn"),
    ({"pattern": "blocks,norms,head", "embeddings": True}, "nothing would be left to learn"),
    ({"layers": 1, "all_but": "norms"}, "all_but='norms' freezes everything else already"),
    ({}, "nothing to freeze was named"),
])
def test_refusal_of_choices_that_make_no_sense(choice, words):
    model = build()
    with pytest.raises(ValueError) as error:
        freeze(model, **choice)
    assert words in str(error.value)
    assert learning(model) == set(bits(model))


def test_property_under_lora_part_of_the_adapter_freezes():
    model = build()
    add_lora(model, LoRAConfig(rank=2))
    whole = learning(model)
    freeze(model, layers=2)
    assert learning(model) == {name for name in whole if name.startswith(("layers.2.", "layers.3."))}
    with pytest.raises(ValueError, match="the base below an adapter stays frozen"):
        unfreeze(model)
    set_active(model, ["default"])
    assert learning(model) == whole
