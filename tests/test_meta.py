"""Meta's release folder: shards joined and split, rotary pairs, refusals. params.json: test_meta_params.py."""

import json
import math
import os
import struct
import weakref

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import LlamaConfig, preset
from llama.config_json import config_from_dict, config_to_dict
from weights.formats import meta

CONFIG = preset("test", vocab_size=64, tie_word_embeddings=False)          # D 32, L 2, H 4, G 2, F 64


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PretrainedLlama(CONFIG).eval()


def ledger_of(tensors):
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]


def write(folder, tensors, config=CONFIG, **options):
    meta.write_meta(folder, config_to_dict(config), ledger_of(tensors), iter(tensors.items()), **options)
    return folder


def by_metas_names(D=8, F=12, L=1, H=2, G=1, V=6):
    """A model of Meta's by hand: names and shapes as its code makes them, numbers that tell rows apart."""
    K = D // H
    shapes = {"tok_embeddings.weight": (V, D)}
    for i in range(L):
        shapes |= {f"layers.{i}.attention.wq.weight": (D, D), f"layers.{i}.attention.wk.weight": (G * K, D),
                   f"layers.{i}.attention.wv.weight": (G * K, D), f"layers.{i}.attention.wo.weight": (D, D),
                   f"layers.{i}.feed_forward.w1.weight": (F, D), f"layers.{i}.feed_forward.w2.weight": (D, F),
                   f"layers.{i}.feed_forward.w3.weight": (F, D), f"layers.{i}.attention_norm.weight": (D,),
                   f"layers.{i}.ffn_norm.weight": (D,)}
    shapes |= {"norm.weight": (D,), "output.weight": (V, D)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


PARAMS = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": -1, "norm_eps": 1e-5}


def save(folder, shards, params=PARAMS):
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    for number, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{number:02d}.pth")
    return folder


# ---- layout ----------------------------------------------------------------------------------------------------------


def test_worked_example_names_rows_and_params(tmp_path):
    tensors = by_metas_names()
    rows = torch.arange(8.0)[:, None].expand(8, 8).contiguous()
    tensors |= {"layers.0.attention.wq.weight": rows, "layers.0.attention.wk.weight": rows[:4].clone(),
                "rope.freqs": torch.ones(2)}
    file = meta.open_meta(save(tmp_path / "release", [tensors]))
    read = dict(meta.read_tensors(file))
    assert read["layers.0.self_attn.q_proj.weight"][:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]     # two heads of K 4
    assert read["layers.0.self_attn.k_proj.weight"][:, 0].tolist() == [0, 2, 1, 3]                 # one
    assert torch.equal(read["layers.0.mlp.gate_proj.weight"], tensors["layers.0.feed_forward.w1.weight"])
    assert torch.equal(read["layers.0.mlp.down_proj.weight"], tensors["layers.0.feed_forward.w2.weight"])
    assert torch.equal(read["layers.0.mlp.up_proj.weight"], tensors["layers.0.feed_forward.w3.weight"])
    assert torch.equal(read["lm_head.weight"], tensors["output.weight"])
    assert [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in read.items()] == meta.tensor_ledger(file)
    config = config_from_dict(meta.config(file))
    assert config == LlamaConfig(6, 8, 12, 1, 2, 1, max_position_embeddings=2048, rope_theta=10_000.0)
    told = meta.changes(file)
    assert [sentence.split(":")[0] for sentence in told["inferred"]] == [
        "context of 2,048 positions", "rope_theta 10,000", "vocabulary of 6", "feed-forward size 12"]
    assert "tied" not in told and "joined" not in told


@pytest.mark.parametrize("embedding_axis", [0, 1], ids=["Llama 3", "Llama 2"])
def test_worked_example_two_shards_join_as_their_shapes_say(tmp_path, embedding_axis):
    whole = by_metas_names(G=2)
    axes = {"tok_embeddings": embedding_axis, "wo": 1, "w2": 1}     # all others 0
    shards = [{name: tensor.chunk(2, axes.get(name.split(".")[-2], 0))[i].clone() if tensor.dim() == 2 else tensor
               for name, tensor in whole.items()} for i in range(2)]
    one = meta.open_meta(save(tmp_path / "one", [whole], PARAMS | {"n_kv_heads": 2}))
    two = meta.open_meta(save(tmp_path / "two", shards, PARAMS | {"n_kv_heads": 2}))
    assert meta.config(one) == meta.config(two)
    assert meta.tensor_ledger(one) == meta.tensor_ledger(two)
    for (name, a), (_, b) in zip(meta.read_tensors(one), meta.read_tensors(two), strict=True):
        assert torch.equal(a, b), name
    joined = " ".join(meta.changes(two)["joined"])
    assert f"by {('rows: output, tok_embeddings', 'columns: tok_embeddings')[embedding_axis]}" in joined


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 2])
def test_two_ways_written_and_read_again_byte_for_byte(tmp_path, model, shards, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    file = meta.open_meta(write(tmp_path / "out", tensors, shards=shards, files={"tokenizer.model": b"xyz"}))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *[f"consolidated.{i:02d}.pth" for i in range(shards)], "params.json", "tokenizer.model"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    first = torch.load(tmp_path / "out" / "consolidated.00.pth", weights_only=True)
    assert first["tok_embeddings.weight"].shape == (64, 32 // shards)      # θ 10,000: by columns, as Llama 1 and 2 do
    read = dict(meta.read_tensors(file))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name].view(torch.uint8), tensors[name].view(torch.uint8)) for name in tensors)
    assert meta.config(file) | {"max_position_embeddings": 256} == meta.config(file) | {
        key: value for key, value in config_to_dict(CONFIG).items() if key in meta.config(file)}
    assert meta.unsaid(config_to_dict(CONFIG)) == [
        "params.json has no key for the context of 256 positions; readers of this shape take 2,048"]


def test_two_ways_four_shards_hold_quarters(tmp_path):
    config = preset("test", vocab_size=64, num_key_value_heads=4, rope_theta=500_000.0)         # tied, as Llama 3.2 is
    torch.manual_seed(1)
    tensors = PretrainedLlama(config).state_dict()
    del tensors["lm_head.weight"]
    folder = write(tmp_path / "out", tensors, config, shards=4)
    shard = torch.load(folder / "consolidated.03.pth", weights_only=True)
    assert torch.equal(shard["tok_embeddings.weight"], tensors["embed_tokens.weight"][48:])
    assert torch.equal(shard["output.weight"], tensors["embed_tokens.weight"][48:])             # Meta's code wants both
    assert torch.equal(shard["layers.1.feed_forward.w2.weight"], tensors["layers.1.mlp.down_proj.weight"][:, 48:])
    assert torch.equal(shard["layers.1.attention.wo.weight"], tensors["layers.1.self_attn.o_proj.weight"][:, 24:])
    assert torch.equal(shard["layers.1.attention.wv.weight"], tensors["layers.1.self_attn.v_proj.weight"][24:])
    assert torch.equal(shard["layers.1.attention_norm.weight"], tensors["layers.1.input_layernorm.weight"])
    file = meta.open_meta(folder)
    read = dict(meta.read_tensors(file))
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert meta.config(file)["tie_word_embeddings"]
    assert meta.changes(file)["tied"] == ["output.weight equals tok_embeddings.weight: one tied matrix"]


def test_property_one_file_of_a_folder_stands_for_all(tmp_path, model):
    folder = write(tmp_path / "out", model.state_dict(), shards=2)
    assert len(meta.open_meta(folder / "consolidated.01.pth").shards) == 2
    single = write(tmp_path / "single", model.state_dict())
    (single / "consolidated.00.pth").rename(single / "consolidated.pth")
    for path in (single, single / "consolidated.pth"):
        assert torch.equal(meta.read_tensor(meta.open_meta(path), "norm.weight"), model.norm.weight)


def test_property_one_tensor_at_a_time(tmp_path, model):
    references, most = [], 0

    def watched():
        nonlocal most
        for name, tensor in model.state_dict().items():
            copy = tensor.clone()
            references.append(weakref.ref(copy))
            most = max(most, sum(reference() is not None for reference in references))
            yield name, copy
            del copy

    meta.write_meta(tmp_path / "out", config_to_dict(CONFIG), ledger_of(model.state_dict()), watched(), shards=2)
    assert most == 1


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def metas_logits(folder, tokens):
    """A forward pass on Meta's own names, with rotation as a product of complex numbers of neighbouring features."""
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    weight = torch.load(folder / "consolidated.00.pth", weights_only=True)
    D, H, G, eps = params["dim"], params["n_heads"], params["n_kv_heads"], params["norm_eps"]
    K, T = D // H, len(tokens)
    angles = torch.outer(torch.arange(T), params.get("rope_theta", 10_000.0) ** -(torch.arange(0, K, 2) / K))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]                               # (T, 1, K/2)

    def norm(x, gain):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain

    def rotate(x):                                                                             # (T, heads, K)
        return torch.view_as_real(torch.view_as_complex(x.reshape(T, -1, K // 2, 2).contiguous()) * turn).flatten(2)

    x = weight["tok_embeddings.weight"][tokens]
    for i in range(params["n_layers"]):
        w = {name.removeprefix(f"layers.{i}.").removesuffix(".weight"): tensor for name, tensor in weight.items()}
        y = norm(x, w["attention_norm"])
        q, k = (rotate((y @ w[name].T).view(T, heads, K)) for name, heads in (("attention.wq", H), ("attention.wk", G)))
        v = (y @ w["attention.wv"].T).view(T, G, K)
        heads = []
        for h in range(H):
            scores = q[:, h] @ k[:, h // (H // G)].T / math.sqrt(K)
            scores = scores + torch.full((T, T), -math.inf).triu(1)
            heads.append(scores.softmax(-1) @ v[:, h // (H // G)])
        x = x + torch.cat(heads, -1) @ w["attention.wo"].T
        y = norm(x, w["ffn_norm"])
        x = x + (torch.nn.functional.silu(y @ w["feed_forward.w1"].T) * (y @ w["feed_forward.w3"].T)
                 ) @ w["feed_forward.w2"].T
    return norm(x, weight["norm.weight"]) @ weight["output.weight"].T


@torch.no_grad()
def test_two_ways_complex_rotation_of_neighbours(tmp_path, model):
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(4)                                       # sharp attention, so that positions matter
    folder = write(tmp_path / "out", model.state_dict())
    tokens = torch.randint(64, (40,), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(metas_logits(folder, tokens), model(tokens[None])[0], atol=2e-4)


# ---- refusals --------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_refusal_a_pickle_with_code_in_it(tmp_path):
    folder = save(tmp_path / "evil", [by_metas_names() | {"norm.weight": Bomb(tmp_path / "harm")}])
    with pytest.raises(ValueError, match=r"consolidated\.00\.pth: its content calls .\w+ mkdir., which tensors"):
        meta.open_meta(folder)
    assert not (tmp_path / "harm").exists()


def test_refusal_damaged_and_missing_shards(tmp_path, model):
    folder = write(tmp_path / "out", model.state_dict(), shards=2)
    second = folder / "consolidated.01.pth"
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth: (this is no file .*, or a damaged one|cut short)"):
        meta.open_meta(folder)
    second.unlink()
    with pytest.raises(ValueError, match=r"tok_embeddings.weight is \[64, 16\] in 1 shard\(s\), which do not join to"):
        meta.open_meta(folder)
    second.write_bytes(content)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.02.pth")
    with pytest.raises(FileNotFoundError, match=r"\.00\.pth is missing, but consolidated\.01\.pth is there"):
        meta.open_meta(folder)
    with pytest.raises(FileNotFoundError, match="holds no consolidated.00.pth"):
        meta.open_meta(tmp_path)


WQ = "layers.0.attention.wq.weight"


@pytest.mark.parametrize("change, params, sentence", [
    ({WQ: torch.ones(4, 8)}, {}, r"wq.weight is \[4, 8\] in 1 shard\(s\), which do not join to \[8, 8\]"),
    ({WQ: torch.ones(8, 8, dtype=torch.int8)}, {}, "wq.weight is torch.int8; read here are tensors of float32"),
    ({WQ: {"a": 1}}, {}, "wq.weight is dict; read here are tensors"),
    ({"layers.0.attention.wq.bias": torch.ones(8)}, {}, "wq.bias has no place in a Llama"),
    ({}, {"vocab_size": 7}, r"tok_embeddings.weight is \[6, 8\] .* join to \[7, 8\], as params.json asks"),
    ({}, {"n_layers": 2}, "lacks layers.1.attention_norm.weight, though params.json says 2 layers"),
    ({}, {"n_kv_heads": 3}, "2 heads are no multiple of 3 key-value heads"),
    ({}, {"n_heads": 8}, "hidden size 8 for 8 heads; rotary embedding asks for an even number"),
    ({}, {"moe_args": {"num_experts": 8}}, "params.json says moe_args = .*, which is not built here"),
])  # fmt: skip
def test_refusal_of_what_does_not_fit(tmp_path, change, params, sentence):
    with pytest.raises(ValueError, match=sentence):
        meta.open_meta(save(tmp_path / "release", [by_metas_names() | change], PARAMS | params))


def test_refusal_shards_of_two_models(tmp_path, model):
    folder = write(tmp_path / "out", model.state_dict(), shards=2)
    second = torch.load(folder / "consolidated.01.pth", weights_only=True)
    torch.save(second | {"norm.weight": torch.zeros(32)}, folder / "consolidated.01.pth")
    with pytest.raises(ValueError, match="the shards' copies of norm.weight differ"):
        meta.open_meta(folder)
    torch.save({name: tensor.half() for name, tensor in second.items()}, folder / "consolidated.01.pth")
    with pytest.raises(ValueError, match="is torch.float16 in shard 1, but torch.float32 in shard 0"):
        meta.open_meta(folder)
    second.pop("norm.weight")
    torch.save(second, folder / "consolidated.01.pth")
    with pytest.raises(ValueError, match="norm.weight lies in some shards only"):
        meta.open_meta(folder)


@pytest.mark.parametrize("shards, sentence", [
    (4, "4 shards cannot share 4 heads and 2 key-value heads evenly"), (0, "0 shards cannot share 4 heads")])
def test_refusal_shards_that_do_not_divide(tmp_path, model, shards, sentence):
    with pytest.raises(ValueError, match=sentence):
        write(tmp_path / "out", model.state_dict(), shards=shards)
    assert not list(tmp_path.iterdir())


def test_refusal_tensors_that_stop_half_way_leave_nothing(tmp_path, model):
    tensors = model.state_dict()
    half = list(tensors.items())[:5]
    with pytest.raises(ValueError, match="the tensors end before"):
        meta.write_meta(tmp_path / "out", config_to_dict(CONFIG), ledger_of(tensors), iter(half))
    with pytest.raises(ValueError, match="norm.weight comes after the ledger's last tensor"):
        meta.write_meta(tmp_path / "out", config_to_dict(CONFIG), ledger_of(tensors),
                        iter([*tensors.items(), ("norm.weight", tensors["norm.weight"])]))
    assert not list(tmp_path.iterdir())


def test_refusal_an_existing_folder(tmp_path, model):
    folder = write(tmp_path / "out", model.state_dict())
    with pytest.raises(ValueError, match="exists; give another name, or --overwrite"):
        write(folder, model.state_dict())
    write(folder, model.state_dict(), shards=2, overwrite=True)
    assert len(list(folder.glob("*.pth"))) == 2
    assert struct.unpack("<I", (folder / "consolidated.00.pth").read_bytes()[:4])[0] == 0x04034B50       # a zip
