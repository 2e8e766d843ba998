import struct
import weakref

import numpy as np
import pytest
import torch

from weights.formats.gguf import config, format_of, packed, read_tensor, read_tensors, tensor_ledger, write_gguf
from weights.formats.gguf_file import blocks, open_gguf
from weights.formats.gguf_vocabulary import vocabulary

# ---- a tiny writer: what llama.cpp writes, byte by byte

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30


class Array(list):
    """Values of one type; `kind` as GGUF numbers its types."""

    def __init__(self, kind, values):
        super().__init__(values)
        self.kind = kind


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value):
    """(type number, bytes) of a metadata value; whole numbers are uint32, others float32."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, string(value)
    codes = {0: "B", 4: "I", 5: "i", 6: "f", 7: "?", 12: "d"}
    items = [string(v) if value.kind == 8 else struct.pack("<" + codes[value.kind], v) for v in value]
    return 9, struct.pack("<IQ", value.kind, len(value)) + b"".join(items)


def pack(metadata, tensors, *, version=3, alignment=32):
    """The bytes of a GGUF. tensors: {name: (shape as torch has it, format number, bytes)}"""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, raw = typed(value)
        head += string(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data))
        data += raw
    return head + b"\0" * (-len(head) % alignment) + data


D, H, G, K, F, V, L = 64, 4, 2, 16, 96, 9, 2

METADATA = {
    "general.architecture": "llama", "llama.embedding_length": D, "llama.attention.head_count": H,
    "llama.attention.head_count_kv": G, "llama.feed_forward_length": F, "llama.block_count": L,
    "llama.context_length": 256, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 500_000.0,
    "llama.rope.dimension_count": K, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": Array(8, "<|endoftext|> <|im_start|> <|im_end|> a b c ab </s> Ġ".split()),
    "tokenizer.ggml.token_type": Array(5, [3, 3, 3, 1, 1, 1, 1, 1, 1]),
    "tokenizer.ggml.merges": Array(8, ["a b"]), "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.padding_token_id": 2,
}  # fmt: skip


def llama_tensors(seed=0, *, kind=F32, tied=False, D=D, F=F, V=V, L=L):
    """Random tensors under GGUF's names: {name: (shape, format, bytes)}; norms are float32 as in real files."""
    random = np.random.default_rng(seed)
    matrices = {"attn_q": (H * K, D), "attn_k": (G * K, D), "attn_v": (G * K, D), "attn_output": (D, H * K),
                "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}
    shapes = {"token_embd.weight": (V, D)}
    for n in range(L):
        shapes |= {f"blk.{n}.{name}.weight": (D,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{n}.{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {"output_norm.weight": (D,)} | ({} if tied else {"output.weight": (V, D)})
    return {name: stored(random.standard_normal(shape).astype("<f4"), kind if len(shape) == 2 else F32)
            for name, shape in shapes.items()}


def stored(x, kind):
    """float32 numbers as (shape, format, bytes); Q8_0 is rounded to the nearest, Q4_* take any nibbles and scales."""
    if kind == F32:
        raw = x.tobytes()
    elif kind == F16:
        raw = x.astype("<f2").tobytes()
    elif kind == BF16:
        raw = (x.view("<u4") >> 16).astype("<u2").tobytes()
    elif kind == Q8_0:
        rows = x.reshape(-1, 32)
        scale = (np.abs(rows).max(1) / 127).astype("<f2")
        q = np.round(rows / scale.astype("f4")[:, None]).clip(-127, 127).astype("i1")
        raw = b"".join(d.tobytes() + row.tobytes() for d, row in zip(scale, q, strict=True))
    else:
        halves = 1 if kind == Q4_0 else 2
        raw = b"".join(row[:halves].astype("<f2").tobytes() + row[2:6].tobytes() for row in x.reshape(-1, 32))
    return x.shape, kind, raw


def save(path, metadata=METADATA, tensors=None, **more):
    path.write_bytes(pack(metadata, llama_tensors() if tensors is None else tensors, **more))
    return path


def in_parts(folder, count=3):
    """METADATA and its tensors in parts, as llama.cpp splits a file: what is not in the first has no other metadata."""
    folder.mkdir(exist_ok=True)
    tensors, paths = list(llama_tensors().items()), []
    for number in range(count):
        own = dict(tensors[number * len(tensors) // count : (number + 1) * len(tensors) // count])
        split = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        name = f"m-{number + 1:05d}-of-{count:05d}.gguf"
        paths.append(save(folder / name, split | (METADATA if number == 0 else {}), own))
    return paths


def changed(**values):
    """METADATA with keys replaced (dots written __); None takes a key away."""
    values = {key.replace("__", "."): value for key, value in values.items()}
    return {key: value for key, value in (METADATA | values).items() if value is not None}


# ---- a Llama in it


def test_worked_example_names_and_ledger(tmp_path):
    file = open_gguf(save(tmp_path / "file", tensors=llama_tensors(kind=F16)))
    ledger, tensors = tensor_ledger(file), dict(read_tensors(file))
    assert [(name, tuple(x.shape), x.dtype) for name, x in tensors.items()] == ledger
    assert ledger[0] == ("embed_tokens.weight", (V, D), torch.float16)
    assert ("layers.1.mlp.down_proj.weight", (D, F), torch.float16) in ledger
    assert ("layers.0.post_attention_layernorm.weight", (D,), torch.float32) in ledger
    assert ledger[-1] == ("lm_head.weight", (V, D), torch.float16)
    assert len(ledger) == 9 * L + 3


def turned(x, positions, *, neighbours):
    """Rotary embedding by complex numbers; pairs are (2i, 2i+1) or (i, i+K/2). x (T, K) -> complex (T, K/2)"""
    pairs = torch.complex(x[:, 0::2], x[:, 1::2]) if neighbours else torch.complex(x[:, : K // 2], x[:, K // 2 :])
    angles = positions[:, None] * 10_000.0 ** -(torch.arange(K // 2) / (K // 2))
    return pairs * torch.polar(torch.ones_like(angles), angles)


def stored_numbers(file, name):
    return file.tensors[name].format.unpack(blocks(file, name)).reshape(file.tensors[name].shape)


def test_two_ways_reordered_rows_give_equal_attention(tmp_path):
    raw = llama_tensors(seed=1)
    file = open_gguf(save(tmp_path / "file", tensors=raw))
    ours = dict(read_tensors(file))
    x, positions = torch.randn(5, D, generator=torch.Generator().manual_seed(0)), torch.arange(5.0) * 7
    group = H // G
    for head in range(H):
        def scores(wq, wk, head=head, *, neighbours):
            q = turned(x @ wq[head * K : (head + 1) * K].T, positions, neighbours=neighbours)
            k = turned(x @ wk[head // group * K : (head // group + 1) * K].T, positions, neighbours=neighbours)
            return (q @ k.conj().T).real

        theirs = scores(stored_numbers(file, "blk.1.attn_q.weight"), stored_numbers(file, "blk.1.attn_k.weight"),
                        neighbours=True)
        same = scores(ours["layers.1.self_attn.q_proj.weight"], ours["layers.1.self_attn.k_proj.weight"],
                      neighbours=False)
        torch.testing.assert_close(theirs, same, rtol=1e-5, atol=1e-4)


BIASES = ("attn_q", "attn_k", "attn_v", "attn_output")


def biased(tensors, parts=BIASES):
    """The tensors with a bias for each part, which is the first column of its weight."""
    for n in range(L):
        for part in parts:
            shape, _, raw = tensors[f"blk.{n}.{part}.weight"]
            column = np.frombuffer(raw, "<f4").reshape(shape)[:, 0]
            tensors[f"blk.{n}.{part}.bias"] = (shape[:1], F32, column.tobytes())
    return tensors


def test_two_ways_biases_are_reordered_like_the_rows_they_belong_to(tmp_path):
    tensors = dict(read_tensors(open_gguf(save(tmp_path / "file", tensors=biased(llama_tensors())))))
    for name in tensors:
        if name.endswith(".bias"):
            assert torch.equal(tensors[name], tensors[name.removesuffix("bias") + "weight"][:, 0])


def test_property_rows_of_qwen2_stay_as_they_are(tmp_path):
    metadata = {key.replace("llama.", "qwen2."): value for key, value in METADATA.items()}
    metadata["general.architecture"] = "qwen2"
    file = open_gguf(save(tmp_path / "file", metadata, biased(llama_tensors(), BIASES[:3])))
    assert config(file)["model_type"] == "qwen2"
    for part in ("weight", "bias"):
        assert torch.equal(read_tensor(file, f"layers.1.self_attn.q_proj.{part}"),
                           stored_numbers(file, f"blk.1.attn_q.{part}"))


@pytest.mark.parametrize("kind", [F32, BF16, Q8_0, Q4_0, Q4_1])
def test_two_ways_packed_and_unpacked(tmp_path, kind):
    tensors = biased(llama_tensors()) if kind == F32 else llama_tensors(kind=kind)
    file = open_gguf(save(tmp_path / "file", tensors=tensors))
    for name, shape, dtype in tensor_ledger(file):
        format, stored = packed(file, name)
        assert stored.dtype == torch.uint8 and stored.shape == (*shape[:-1], shape[-1] // format.numbers, format.bytes)
        tensor = read_tensor(file, name)
        assert torch.equal(format.unpack(stored.numpy()).reshape(shape), tensor) and tensor.dtype == dtype


# ---- written here


def model(path):
    """Config, vocabulary, ledger and tensors of a file, as write_gguf takes them."""
    file = open_gguf(path)
    return config(file), vocabulary(file), tensor_ledger(file), read_tensors(file)


@pytest.mark.parametrize("encoding, kind", [("F32", F32), ("F16", F16), ("BF16", BF16), ("Q8_0", Q8_0)])
@pytest.mark.parametrize("of", ["llama", "llama with biases", "qwen2"])
def test_two_ways_written_and_read(tmp_path, encoding, kind, of):
    metadata, tensors = METADATA, llama_tensors(kind=kind)
    if of != "llama":
        parts = BIASES if of == "llama with biases" else BIASES[:3]
        extra = biased(llama_tensors(), parts)
        tensors |= {name: extra[name] for name in extra if name.endswith("bias")}
    if of == "qwen2":
        metadata = {key.replace("llama.", "qwen2."): value for key, value in METADATA.items()}
        metadata["general.architecture"] = "qwen2"
    source = save(tmp_path / "source", metadata, tensors)
    write_gguf(tmp_path / "written", *model(source), encoding=encoding, name="an example")
    first, second = open_gguf(source), open_gguf(tmp_path / "written")
    assert config(first) == config(second) and vocabulary(first) == vocabulary(second)
    assert tensor_ledger(first) == tensor_ledger(second)
    for name in first.tensors:
        assert np.array_equal(blocks(first, name), blocks(second, name)), name
    assert second.metadata["general.name"] == "an example"
    assert all(info.offset % 32 == 0 for info in second.tensors.values())


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0"])
def test_worked_example_which_tensor_is_packed_how(tmp_path, encoding):
    source = save(tmp_path / "source", changed(llama__feed_forward_length=72), llama_tensors(F=72, tied=True))
    remarks = write_gguf(tmp_path / "written", *model(source), encoding=encoding)
    file = open_gguf(tmp_path / "written")
    formats = {name: info.format.name for name, info in file.tensors.items()}
    assert formats["token_embd.weight"] == "Q8_0" and formats["output_norm.weight"] == "F32"
    assert formats["blk.0.attn_q.weight"] == formats["blk.1.ffn_up.weight"] == encoding
    assert formats["blk.0.ffn_down.weight"] == "F16"
    assert (f"2 tensors in F16 and not {encoding}, because 32 does not divide their rows: "
            "layers.0.mlp.down_proj.weight …") in remarks
    assert file.metadata["general.file_type"] == {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7}[encoding]
    assert file.metadata["general.quantization_version"] == 2
    up = "layers.1.mlp.up_proj.weight"
    error = read_tensor(file, up) - read_tensor(open_gguf(source), up)
    assert 0 < error.abs().max() < (0.05 if encoding == "Q8_0" else 0.4)


WIDE = changed(llama__embedding_length=256, llama__feed_forward_length=512, llama__attention__key_length=K,
               llama__attention__value_length=K)


@pytest.mark.parametrize("encoding, most, kind", [("Q4_K_M", "Q4_K", 15), ("Q5_K_M", "Q5_K", 17), ("Q6_K", "Q6_K", 18)])
def test_worked_example_which_tensor_is_of_which_k_format(tmp_path, encoding, most, kind):
    source = save(tmp_path / "source", WIDE, llama_tensors(D=256, F=512))
    remarks = write_gguf(tmp_path / "written", *model(source), encoding=encoding)
    file = open_gguf(tmp_path / "written")
    formats = {name: info.format.name for name, info in file.tensors.items()}
    assert formats["token_embd.weight"] == formats["output.weight"] == "Q6_K" and formats["output_norm.weight"] == "F32"
    assert {formats[f"blk.{n}.{part}.weight"] for n in (0, 1) for part in ("attn_q", "attn_k", "ffn_up")} == {most}
    assert formats["blk.0.attn_output.weight"] == {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0"}[most]   # rows of 64
    assert f"2 tensors in {formats['blk.0.attn_output.weight']} and not {most}, because 256 does" in " ".join(remarks)
    assert file.metadata["general.file_type"] == kind and file.metadata["general.quantization_version"] == 2
    for name in ("layers.0.mlp.down_proj.weight", "layers.1.self_attn.k_proj.weight"):
        exact, found = read_tensor(open_gguf(source), name), read_tensor(file, name)
        assert 0 < (exact - found).norm() / exact.norm() < {"Q6_K": 0.02, "Q5_K": 0.04, "Q4_K": 0.08}[most]


@pytest.mark.parametrize("layers, finer", [(8, [0, 3, 6, 7]), (30, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]),
                                           (2, [1])])
def test_worked_example_half_of_the_layers_are_finer(layers, finer):
    for part in ("self_attn.v_proj", "mlp.down_proj"):
        formats = [format_of(f"layers.{n}.{part}.weight", (256, 256), "Q4_K_M", layers).name for n in range(layers)]
        assert [n for n, name in enumerate(formats) if name == "Q6_K"] == finer
    assert format_of("layers.0.mlp.up_proj.weight", (256, 256), "Q4_K_M", layers).name == "Q4_K"


def test_worked_example_a_tied_head_is_not_written_twice(tmp_path):
    values, words, ledger, _ = model(save(tmp_path / "source"))
    tensors = list(read_tensors(open_gguf(tmp_path / "source")))
    remarks = write_gguf(tmp_path / "written", values | {"tie_word_embeddings": True}, words, ledger, tensors)
    assert "output.weight" not in open_gguf(tmp_path / "written").tensors
    assert "the head is tied to the embedding and not written a second time" in remarks
    with pytest.raises(ValueError, match="there is no lm_head.weight, and the config does not tie it"):
        write_gguf(tmp_path / "written", values, words, ledger[:-1], tensors[:-1])


def test_worked_example_rotary_table_of_llama3(tmp_path):
    values, words, ledger, tensors = model(save(tmp_path / "source"))
    values["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 8192}
    write_gguf(tmp_path / "written", values, words, ledger, tensors)
    file = open_gguf(tmp_path / "written")
    table = stored_numbers(file, "rope_freqs.weight")
    assert table[0] == 1 and table[-1] == 8 and table.shape == (K // 2,)
    assert config(file) == values and tensor_ledger(file) == ledger


def test_property_one_tensor_at_a_time(tmp_path):
    values, words, ledger, tensors = model(save(tmp_path / "source"))
    alive, most = set(), 0

    def counted():
        nonlocal most
        for name, _, _ in ledger:
            tensor = read_tensor(open_gguf(tmp_path / "source"), name)
            alive.add(name)
            most = max(most, len(alive))
            weakref.finalize(tensor, alive.discard, name)
            yield name, tensor
            del tensor

    write_gguf(tmp_path / "written", values, words, ledger, counted(), encoding="Q8_0")
    assert most == 1


def test_refusal_to_write(tmp_path):
    values, words, ledger, tensors = model(save(tmp_path / "source"))
    tensors = list(tensors)
    infinite = [(name, x.index_fill(0, torch.tensor(0), 1e9) if "down" in name else x) for name, x in tensors]
    for change, error in [
        ({"encoding": "Q4_K"}, "GGUF encoding Q4_K is not written here; known are F32, F16"),
        ({"tensors": tensors[:5]}, "expected layers.0.self_attn.v_proj.weight .*, got nothing more"),
        ({"tensors": tensors[1:]}, "expected embed_tokens.weight .*, got layers.0"),
        ({"tensors": tensors + tensors[:1]}, "embed_tokens.weight comes after the ledger's last tensor"),
        ({"tensors": infinite, "encoding": "F16"}, "layers.0.mlp.down_proj.weight cannot be written as F16: it holds"),
        ({"ledger": [*ledger, ("score.weight", (2, D), torch.float32)]}, "score.weight has no place in a GGUF"),
        ({"ledger": [*ledger, ("norm.bias", (D,), torch.float32)]}, "norm.bias has no place in a GGUF"),
    ]:
        given = {"ledger": ledger, "tensors": tensors} | change
        with pytest.raises(ValueError, match=error):
            write_gguf(tmp_path / "written", values, words, given.pop("ledger"), given.pop("tensors"), **given)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


# ---- files that lie, or are of another kind


@pytest.mark.parametrize("extra, words", [
    ({"blk.0.attn_norm.bias": ((D,), F32, b"\0" * 4 * D)}, "tensor blk.0.attn_norm.bias has no place in a Llama"),
    ({"blk.0.ffn_gate_inp.weight": ((D,), F32, b"\0" * 4 * D)}, "tensor blk.0.ffn_gate_inp.weight has no place"),
    ({"t": ((1, 256), 16, b"\0" * 66)}, "IQ2_XXS is not read yet; take a file in one of F32, F16, BF16, Q8_0"),
    ({"t": ((1, 128), 12, b"\0" * 72)}, "t has rows of 128, but Q4_K packs 256 numbers into a block"),
    ({"t": ((2, 2**40), 14, b"\0" * 210)}, "t ends at byte .* it was cut short"),
    ({"t": ((1, 32), 99, b"\0" * 144)}, "number format 99 is not read yet"),
    ({"t": ((33,), Q4_0, b"\0" * 36)}, "t has rows of 33, but Q4_0 packs 32 numbers into a block"),
    ({"t": ((1, 1, 1, 1, 1), F32, b"\0" * 4)}, "t has 5 axes"),
    ({"t": ((0,), F32, b"")}, "t has an empty axis"),
    ({"t": ((2**60, 2**60), F32, b"")}, "t ends at byte .* it was cut short"),
], ids=["bias", "router", "IQ2_XXS", "half a block", "huge Q6_K", "unknown format", "odd row", "5 axes", "empty",
        "huge"])  # fmt: skip
def test_refusal_of_tensors(tmp_path, extra, words):
    with pytest.raises(ValueError, match=f"model.gguf.*{words}"):
        tensor_ledger(open_gguf(save(tmp_path / "model.gguf", tensors=llama_tensors() | extra)))


def test_refusal_of_numbers_that_are_none(tmp_path):
    tensors = llama_tensors(kind=Q8_0)
    shape, kind, raw = tensors["blk.1.attn_k.weight"]
    tensors["blk.1.attn_k.weight"] = (shape, kind, b"\0\x7c" + raw[2:])                   # an infinite scale
    file = open_gguf(save(tmp_path / "model.gguf", tensors=tensors))
    with pytest.raises(ValueError, match="model.gguf: layers.1.self_attn.k_proj.weight holds numbers that are not fin"):
        dict(read_tensors(file))


def test_refusal_of_rows_that_heads_cannot_share(tmp_path):
    tensors = llama_tensors() | {"blk.0.attn_q.weight": ((6, D), F32, b"\0" * 4 * 6 * D)}
    with pytest.raises(ValueError, match="blk.0.attn_q.weight has 6 rows, which 4 heads cannot share evenly"):
        dict(read_tensors(open_gguf(save(tmp_path / "file", tensors=tensors))))


def test_property_no_way_of_cutting_or_flipping_a_file_gives_another_error(tmp_path):
    """Every prefix, and a byte changed at many places: read, or refused with a ValueError that names the file."""
    whole, path = pack(METADATA, llama_tensors(D=64, L=1)), tmp_path / "bad.gguf"
    head = len(pack(METADATA, {})) + 700
    random = np.random.default_rng(0)
    variants = [whole[:n] for n in range(0, head, 13)] + [whole[:-1]]
    for place in random.integers(0, head, 300):
        variants.append(whole[:place] + bytes([random.integers(256)]) + whole[place + 1 :])
    for content in variants:
        path.write_bytes(content)
        try:
            file = open_gguf(path)
            config(file), vocabulary(file), tensor_ledger(file), dict(read_tensors(file))
        except ValueError as error:
            assert str(error).startswith(f"{path}:"), error
