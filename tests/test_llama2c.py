"""llama2.c's .bin files: bytes by hand, the way there and back, what the format cannot hold, damaged files."""

import math
import struct

import numpy as np
import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import LlamaConfig, preset
from llama.config_json import config_from_dict, config_to_dict
from weights.formats import llama2c

CONFIG = preset("test", vocab_size=64, max_position_embeddings=48)         # D 32, L 2, H 4, G 2, F 64, tied


def model_of(config):
    torch.manual_seed(0)
    return PretrainedLlama(config).eval()


def plain(model):
    tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def write(path, tensors, config=CONFIG, **options):
    ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    llama2c.write_llama2c(path, config_to_dict(config), ledger, iter(tensors.items()), **options)
    return path


# ---- bytes by hand ---------------------------------------------------------------------------------------------------

D, F, L, H, G, V, CONTEXT = 4, 2, 1, 2, 1, 3, 2                            # K = 2: one rotary pair a head
NORMS = {"input_layernorm": [1.0, 2, 3, 4], "post_attention_layernorm": [5.0, 6, 7, 8]}
SHAPES = {"self_attn.q_proj": (4, 4), "self_attn.k_proj": (2, 4), "self_attn.v_proj": (2, 4),
          "self_attn.o_proj": (4, 4), "mlp.gate_proj": (2, 4), "mlp.down_proj": (4, 2), "mlp.up_proj": (2, 4)}


def floats(*values):
    return np.asarray(values, "<f4").tobytes()


def numbers(part):
    """Whole numbers by which each matrix is known: 100 and on for q, 200 for k …"""
    start = 100 * (list(SHAPES).index(part) + 1)
    return list(range(start, start + math.prod(SHAPES[part])))


def version_0(*, tied=True):
    angles = [0.0, 1.0]                                                    # θ^0 = 1 radian a position
    return b"".join([
        struct.pack("<7i", D, F, L, H, G, V if tied else -V, CONTEXT),
        floats(*range(12)),                                                # embedding
        floats(*NORMS["input_layernorm"]),
        *[floats(*numbers(part)) for part in list(SHAPES)[:4]],
        floats(*NORMS["post_attention_layernorm"]),
        *[floats(*numbers(part)) for part in list(SHAPES)[4:]],            # w1, w2, w3: gate, down, up
        floats(9, 10, 11, 12),                                             # the last norm
        floats(*np.cos(angles)), floats(*np.sin(angles)),
        b"" if tied else floats(*range(50, 62)),
    ])  # fmt: skip


def version_1():
    header = struct.pack("<Ii7iB", 0x616B3432, 1, D, F, L, H, G, V, CONTEXT, 1).ljust(256, b"\0")
    return header + b"".join([floats(*NORMS["input_layernorm"]), floats(*NORMS["post_attention_layernorm"]),
                              floats(9, 10, 11, 12), floats(*range(12)), *[floats(*numbers(part)) for part in SHAPES]])


def version_2():
    """Every matrix holds q = 127, -1, 127, -1 … in groups of 2, scaled by 1, 2, 3 …"""
    header = struct.pack("<Ii7iBi", 0x616B3432, 2, D, F, L, H, G, V, CONTEXT, 1, 2).ljust(256, b"\0")
    parts = [header, floats(*NORMS["input_layernorm"]), floats(*NORMS["post_attention_layernorm"]),
             floats(9, 10, 11, 12)]
    for shape in [(3, 4), *SHAPES.values()]:
        groups = math.prod(shape) // 2
        parts += [np.array([127, -1] * groups, np.int8).tobytes(), floats(*range(1, groups + 1))]
    return b"".join(parts)


@pytest.mark.parametrize("content", [version_0(), version_0(tied=False), version_1()], ids=["v0", "v0 untied", "v1"])
def test_worked_example_float32(tmp_path, content):
    (tmp_path / "model.bin").write_bytes(content)
    file = llama2c.open_llama2c(tmp_path / "model.bin")
    read = dict(llama2c.read_tensors(file))
    assert [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in read.items()] == llama2c.tensor_ledger(file)
    assert read["embed_tokens.weight"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert read["layers.0.input_layernorm.weight"].tolist() == [1, 2, 3, 4]
    assert read["layers.0.post_attention_layernorm.weight"].tolist() == [5, 6, 7, 8]
    assert read["norm.weight"].tolist() == [9, 10, 11, 12]
    for part in SHAPES:                                                    # of K 2, halves are neighbours
        assert read[f"layers.0.{part}.weight"].flatten().tolist() == numbers(part)
    assert ("lm_head.weight" in read) == (content == version_0(tied=False))
    if "lm_head.weight" in read:
        assert read["lm_head.weight"].flatten().tolist() == list(range(50, 62))
    assert config_from_dict(llama2c.config(file)) == LlamaConfig(
        V, D, F, L, H, G, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, rope_theta=10_000.0,
        tie_word_embeddings="lm_head.weight" not in read)
    assert file.tokenizer == tmp_path / "tokenizer.bin"


def test_worked_example_int8(tmp_path):
    (tmp_path / "model.bin").write_bytes(version_2())
    file = llama2c.open_llama2c(tmp_path / "model.bin")
    assert (file.version, file.group_size, file.tied) == (2, 2, True)
    assert llama2c.read_tensor(file, "norm.weight").tolist() == [9, 10, 11, 12]
    for name in ("embed_tokens.weight", "layers.0.mlp.down_proj.weight", "layers.0.self_attn.q_proj.weight"):
        flat = llama2c.read_tensor(file, name).flatten().tolist()
        assert flat == [value for scale in range(1, len(flat) // 2 + 1) for value in (127 * scale, -scale)]


@pytest.mark.parametrize("content", [version_0(), version_0(tied=False), version_2()], ids=["v0", "v0 untied", "v2"])
def test_two_ways_read_and_written_again_byte_for_byte(tmp_path, content):
    (tmp_path / "model.bin").write_bytes(content)
    file = llama2c.open_llama2c(tmp_path / "model.bin")
    llama2c.write_llama2c(tmp_path / "again.bin", llama2c.config(file), llama2c.tensor_ledger(file),
                          llama2c.read_tensors(file), version=file.version)
    assert (tmp_path / "again.bin").read_bytes() == content


def test_worked_example_rows_of_rotary_pairs(tmp_path):
    model = model_of(CONFIG)
    rows = torch.arange(32.0)[:, None].expand(32, 32).contiguous()
    tensors = plain(model) | {"layers.0.self_attn.q_proj.weight": rows,
                              "layers.0.self_attn.k_proj.weight": rows[:16].contiguous()}
    content = write(tmp_path / "model.bin", tensors).read_bytes()
    q = 28 + 4 * (64 * 32 + 2 * 32)                                        # header, embedding, norms of two layers
    k = q + 4 * 2 * 32 * 32
    neighbours = [0, 4, 1, 5, 2, 6, 3, 7]                                  # of the first head, K 8
    assert np.frombuffer(content, "<f4", 32 * 8, q)[::32].tolist() == neighbours
    assert np.frombuffer(content, "<f4", 32 * 16, k)[::32].tolist() == [*neighbours, *(8 + i for i in neighbours)]


# ---- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_two_ways_a_model_survives_float32(tmp_path, tied, dtype):
    config = preset("test", vocab_size=64, tie_word_embeddings=tied)
    tensors = {name: tensor.to(dtype) for name, tensor in plain(model_of(config)).items()}
    file = llama2c.open_llama2c(write(tmp_path / "model.bin", tensors, config))
    read = dict(llama2c.read_tensors(file))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name].float()) for name in tensors)
    assert config_from_dict(llama2c.config(file) | {"initializer_range": config.initializer_range}) == config


def llama2c_logits(path, tokens):
    """The forward pass of llama2.c on version 0, position by position, on the file's own bytes."""
    data = path.read_bytes()
    D, F, L, H, G, V, context = struct.unpack("<7i", data[:28])
    flat, K = np.frombuffer(data, "<f4", offset=28).astype(np.float64), D // H
    place = 0

    def take(*shape):
        nonlocal place
        place += math.prod(shape)
        return flat[place - math.prod(shape) : place].reshape(shape)

    def norm(x, gain):
        return gain * x / np.sqrt((x * x).mean() + 1e-5)

    embedding, attention_norm = take(V, D), take(L, D)
    wq, wk, wv, wo = take(L, D, D), take(L, G * K, D), take(L, G * K, D), take(L, D, D)
    mlp_norm, w1, w2, w3, last_norm = take(L, D), take(L, F, D), take(L, D, F), take(L, F, D), take(D)
    cos, sin = take(context, K // 2), take(context, K // 2)
    keys, values, logits = [[] for _ in range(L)], [[] for _ in range(L)], []
    for position, token in enumerate(tokens):
        x = embedding[token]
        for i in range(L):
            y = norm(x, attention_norm[i])
            q, k, v = (wq[i] @ y).reshape(H, K), (wk[i] @ y).reshape(G, K), (wv[i] @ y).reshape(G, K)
            for heads in (q, k):
                even, odd = heads[:, 0::2].copy(), heads[:, 1::2].copy()
                heads[:, 0::2] = even * cos[position] - odd * sin[position]
                heads[:, 1::2] = even * sin[position] + odd * cos[position]
            keys[i].append(k)
            values[i].append(v)
            out = []
            for h in range(H):
                scores = np.array([past[h // (H // G)] @ q[h] for past in keys[i]]) / math.sqrt(K)
                weights = np.exp(scores - scores.max())
                out.append(weights / weights.sum() @ np.array([past[h // (H // G)] for past in values[i]]))
            x = x + wo[i] @ np.concatenate(out)
            y = norm(x, mlp_norm[i])
            gate = w1[i] @ y
            x = x + w2[i] @ (gate / (1 + np.exp(-gate)) * (w3[i] @ y))
        logits.append(embedding @ norm(x, last_norm))
    return torch.tensor(np.array(logits))


@torch.no_grad()
def test_two_ways_llama2cs_forward_pass(tmp_path):
    model = model_of(CONFIG)
    for name, parameter in model.named_parameters():
        if "proj" in name:
            parameter.mul_(4)                                              # sharp attention, so that positions matter
    tokens = torch.randint(64, (40,), generator=torch.Generator().manual_seed(2))
    logits = llama2c_logits(write(tmp_path / "model.bin", plain(model)), tokens.tolist())
    assert torch.allclose(logits.float(), model(tokens[None])[0], atol=2e-4)


def test_two_ways_int8_equals_the_formula(tmp_path):
    tensors = plain(model_of(CONFIG))
    tensors["layers.0.mlp.up_proj.weight"][3] = 0                          # groups of zeros have no scale
    file = llama2c.open_llama2c(write(tmp_path / "model.bin", tensors, version=2))
    assert file.group_size == 32                                           # of D 32 and F 64
    for name, read in llama2c.read_tensors(file):
        if name.endswith("norm.weight"):
            assert torch.equal(read, tensors[name])
            continue
        groups = tensors[name].reshape(-1, 32)
        scales = groups.abs().amax(1, keepdim=True) / 127
        expected = (groups / scales.where(scales > 0, torch.ones(()))).round() * scales
        assert torch.equal(read, expected.view_as(read))
        assert torch.equal(read, llama2c.packed(tensors[name], 32))


def test_property_packing_again_changes_nothing():
    generator = np.random.default_rng(0)
    once = llama2c.quantise(generator.standard_normal((20_000, 16)).astype(np.float32))
    twice = llama2c.quantise(once[0] * once[1][:, None])
    assert (once[0] == twice[0]).all() and (once[1] == twice[1]).all()


@pytest.mark.parametrize("D, F, size", [(4096, 11008, 64), (288, 768, 32), (32, 68, 4), (4, 3, 1)])
def test_worked_example_group_sizes(D, F, size):
    assert llama2c.group_size(D, F) == size


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, sentence", [
    ({"rope_theta": 500_000.0, "rope_parameters": None}, "rope_theta is 500000, and llama2.c knows 10000 only"),
    ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06, and llama2.c knows 1e-05 only"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": None},
     "rope_scaling 'linear' has no place in llama2.c's files"),
    ({"attention_bias": True}, "attention_bias is True, and llama2.c's files can hold False only"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"sliding_window": 16}, "sliding_window is 16, and llama2.c's files can hold 0 only"),
    ({"head_dim": 16}, "head_dim is 16, and llama2.c's files can hold 8 only"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"model_type": "qwen2"}, "model_type is 'qwen2', whose biases or norms llama2.c's files cannot hold"),
    ({"tie_word_embeddings": False}, "the tensor lm_head.weight is missing"),
    ({"num_hidden_layers": 1}, "layers.1.input_layernorm.weight has no place in llama2.c's files"),
    ({"num_key_value_heads": 1}, r"k_proj.weight has shape \[16, 32\], but the config asks for \[8, 32\]"),
    ({"vocab_size": None}, "the config lacks vocab_size"),
])  # fmt: skip
def test_refusal_of_what_the_format_cannot_hold(tmp_path, change, sentence):
    tensors = plain(model_of(CONFIG))
    ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items())]
    with pytest.raises(ValueError, match=sentence):
        llama2c.write_llama2c(tmp_path / "model.bin", config_to_dict(CONFIG) | change, ledger, iter([]))
    assert not list(tmp_path.iterdir())


def test_refusal_of_what_cannot_be_written(tmp_path):
    tensors = plain(model_of(CONFIG))
    with pytest.raises(ValueError, match="version 1 of llama2.c is not written here"):
        write(tmp_path / "model.bin", tensors, version=1)
    tensors["layers.1.mlp.up_proj.weight"][0, 0] = math.inf
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight holds numbers that are not finite"):
        write(tmp_path / "model.bin", tensors, version=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content, sentence", [
    (b"", "0 bytes are too few for the header"),
    (version_2()[:100], "100 bytes are too few for the header"),
    (version_0()[:-1], r"has 427 bytes, but its header asks for 428"),
    (version_0() + b"\0", r"has 429 bytes, but its header asks for 428"),
    (version_2()[:-1], "but its header asks for"),
    (struct.pack("<7i", 0, *[1] * 6), "its sizes are .*; each must be at least 1"),
    (struct.pack("<7i", 12, 2, 1, 4, 1, 3, 2), "hidden size 12 for 4 heads; rotary embedding asks for an even number"),
    (struct.pack("<7i", 4, 2, 2**31 - 1, 2, 1, 3, 2), "has 28 bytes, but its header asks for"),
    (struct.pack("<7i", 4, 2, 1, 2, 1, 3, 0), "a context of 0"),
    (struct.pack("<Ii", 0x616B3432, 3).ljust(256, b"\0"), "llama2.c's version 3 is not known here"),
    (version_2()[:37] + struct.pack("<i", 5) + version_2()[41:], "groups of 5 do not fill its matrices"),
    (version_2()[:37] + struct.pack("<i", 0) + version_2()[41:], "groups of 0 do not fill its matrices"),
])  # fmt: skip
def test_refusal_of_damaged_files(tmp_path, content, sentence):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        llama2c.open_llama2c(tmp_path / "model.bin")


def test_refusal_tables_of_another_theta(tmp_path):
    path = write(tmp_path / "model.bin", plain(model_of(CONFIG)))
    content, table = bytearray(path.read_bytes()), 2 * 48 * 4 * 4          # cosines and sines, K/2 = 4
    content[-table:] = bytes(table)
    path.write_bytes(content)
    assert llama2c.open_llama2c(path)                                      # no tables: llama2.c computes them
    angles = torch.outer(torch.arange(48), 500_000.0 ** -(torch.arange(0, 8, 2) / 8))
    content[-table:] = torch.cat([angles.cos(), angles.sin()]).numpy().tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its rotary tables are not those of θ = 10,000"):
        llama2c.open_llama2c(path)


def test_property_recognised_by_content(tmp_path):
    for name, content in (("a", version_0()), ("b", version_1()), ("c", version_2()[:50])):
        (tmp_path / name).write_bytes(content)
        assert llama2c.recognised(tmp_path / name)
    for name, content in (("d", b"GGUF" * 100), ("e", version_0()[:-4]), ("f", b"")):
        (tmp_path / name).write_bytes(content)
        assert not llama2c.recognised(tmp_path / name)
    assert not llama2c.recognised(tmp_path / "none")
