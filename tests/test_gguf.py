import struct

import numpy as np
import pytest
import torch

from weights import gguf
from weights.gguf import config, open_gguf, read_tensors, tensor_ledger, vocabulary
from weights.gguf_file import unpack

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


def changed(**values):
    """METADATA with keys replaced (dots written __); None takes a key away."""
    values = {key.replace("__", "."): value for key, value in values.items()}
    return {key: value for key, value in (METADATA | values).items() if value is not None}


# ---- the container


def test_worked_example_bytes_of_a_file(tmp_path):
    raw = (b"GGUF" b"\x03\0\0\0" b"\x01\0\0\0\0\0\0\0" b"\x01\0\0\0\0\0\0\0"            # version, 1 tensor, 1 pair
           b"\x05\0\0\0\0\0\0\0hello" b"\x04\0\0\0" b"\x2a\0\0\0"                          # hello = 42 (uint32)
           b"\x01\0\0\0\0\0\0\0t" b"\x02\0\0\0" b"\x03\0\0\0\0\0\0\0" b"\x02\0\0\0\0\0\0\0"  # t: 3 fastest, 2 slowest
           b"\0\0\0\0" b"\0\0\0\0\0\0\0\0")                                               # F32, offset 0
    raw += b"\0" * (96 - len(raw)) + struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    (tmp_path / "file").write_bytes(raw)
    file = open_gguf(tmp_path / "file")
    assert file.metadata == {"hello": 42}
    assert unpack(file, "t").tolist() == [[1, 2, 3], [4, 5, 6]]


def test_worked_example_metadata_of_every_type(tmp_path):
    numbers = {0: ("B", 255), 1: ("b", -1), 2: ("H", 65535), 3: ("h", -2), 4: ("I", 2**32 - 1), 5: ("i", -3),
               6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**64 - 1), 11: ("q", -4), 12: ("d", 0.1)}
    raw = b"GGUF" + struct.pack("<IQQ", 2, 0, 2 * len(numbers) + 2)
    for kind, (code, value) in numbers.items():
        raw += string(f"one {kind}") + struct.pack("<I" + code, kind, value)
        raw += string(f"many {kind}") + struct.pack(f"<IIQ2{code}", 9, kind, 2, value, value)
    raw += string("text") + struct.pack("<I", 8) + string("骆驼")
    raw += string("texts") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("")
    (tmp_path / "file").write_bytes(raw)
    metadata = open_gguf(tmp_path / "file").metadata
    for kind, (_, value) in numbers.items():
        assert metadata[f"one {kind}"] == value and type(metadata[f"one {kind}"]) is type(value)
        assert metadata[f"many {kind}"].tolist() == [value, value]
    assert metadata["text"] == "骆驼" and metadata["texts"] == ["a", ""]


def blocks(*parts):
    return b"".join(np.asarray(values, code).tobytes() for code, values in parts)


NIBBLES = [16 * (15 - i) + i for i in range(16)]                   # lower halves 0…15, upper halves 15…0


@pytest.mark.parametrize("kind, raw, numbers", [
    (F32, blocks(("<f4", [1.5, -2.0])), [1.5, -2.0]),
    (F16, blocks(("<f2", [1.5, -2.0])), [1.5, -2.0]),
    (BF16, b"\xc0\x3f" b"\x00\xc0", [1.5, -2.0]),
    (Q8_0, blocks(("<f2", [0.25]), ("i1", range(-128, 128, 8))), [0.25 * q for q in range(-128, 128, 8)]),
    (Q4_0, blocks(("<f2", [0.5]), ("u1", NIBBLES)), [0.5 * (q - 8) for q in [*range(16), *range(15, -1, -1)]]),
    (Q4_1, blocks(("<f2", [0.5, -3.0]), ("u1", NIBBLES)), [0.5 * q - 3 for q in [*range(16), *range(15, -1, -1)]]),
], ids=["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])  # fmt: skip
def test_worked_example_of_each_format(tmp_path, kind, raw, numbers):
    (tmp_path / "file").write_bytes(pack({}, {"t": ((3, len(numbers)), kind, raw * 3)}))
    tensor = unpack(open_gguf(tmp_path / "file"), "t")
    assert tensor.tolist() == [numbers] * 3
    assert tensor.dtype == {F16: torch.float16, BF16: torch.bfloat16}.get(kind, torch.float32)


@pytest.mark.parametrize("alignment", [1, 8, 64])
def test_two_ways_versions_and_alignments_read_the_same(tmp_path, alignment):
    plain = dict(read_tensors(open_gguf(save(tmp_path / "plain"))))
    metadata = METADATA | {"general.alignment": alignment}
    other = dict(read_tensors(open_gguf(save(tmp_path / "other", metadata, version=2, alignment=alignment))))
    assert all(torch.equal(plain[name], other[name]) for name in plain)


# ---- a Llama in it


def test_worked_example_config(tmp_path):
    assert config(open_gguf(save(tmp_path / "file"))) == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": V, "hidden_size": D,
        "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": G,
        "head_dim": K, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "rope_scaling": None, "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False}  # fmt: skip
    tied = open_gguf(save(tmp_path / "tied", tensors=llama_tensors(tied=True)))
    assert config(tied)["tie_word_embeddings"] is True
    bare = changed(llama__attention__head_count_kv=None, llama__rope__freq_base=None, llama__rope__dimension_count=None)
    values = config(open_gguf(save(tmp_path / "bare", bare)))
    assert (values["num_key_value_heads"], values["rope_theta"], values["head_dim"]) == (H, 10_000.0, K)


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

        theirs = scores(unpack(file, "blk.1.attn_q.weight"), unpack(file, "blk.1.attn_k.weight"), neighbours=True)
        same = scores(ours["layers.1.self_attn.q_proj.weight"], ours["layers.1.self_attn.k_proj.weight"],
                      neighbours=False)
        torch.testing.assert_close(theirs, same, rtol=1e-5, atol=1e-4)


def test_worked_example_order_of_rows():
    rows = torch.tensor([[0.0], [3], [1], [4], [2], [5]])                                     # K = 6 as GGUF has it
    assert gguf._halves_together(rows, 1).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert gguf._halves_together(torch.cat([rows, rows + 6]), 2).flatten().tolist() == list(range(12))


@pytest.mark.parametrize("keys", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_worked_example_linear_scaling(tmp_path, keys):
    values = config(open_gguf(save(tmp_path / "file", METADATA | {keys: 4.0})))
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def llama3_factors(factor, original=8192, theta=500_000.0, high=4.0):
    """The divisors of the frequencies, frequency by frequency, as the definition of Llama 3.1's scaling has it."""
    divisors = []
    for i in range(K // 2):
        wavelength = 2 * np.pi * theta ** (2 * i / K)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / 1.0:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - 1.0) / (high - 1.0)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": ((K // 2,), F32, np.array(divisors, "<f4").tobytes())}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_two_ways_llama3_scaling_is_recovered_from_its_table(tmp_path, factor):
    file = open_gguf(save(tmp_path / "file", tensors=llama_tensors() | llama3_factors(factor)))
    assert config(file)["rope_scaling"] == {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                                            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    assert "rope_freqs.weight" not in dict(read_tensors(file)) and len(tensor_ledger(file)) == 9 * L + 3


def test_refusal_of_other_rotary_scalings(tmp_path):
    with pytest.raises(ValueError, match="rope_freqs.weight is not the table of Llama 3.1's"):
        config(open_gguf(save(tmp_path / "file", tensors=llama_tensors() | llama3_factors(8.0, high=2.0))))
    yarn = METADATA | {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    with pytest.raises(ValueError, match="rotary scaling 'yarn' is not built here"):
        config(open_gguf(save(tmp_path / "file", yarn)))


# ---- its vocabulary


def test_worked_example_vocabulary(tmp_path):
    values = vocabulary(open_gguf(save(tmp_path / "file")))
    assert values == {
        "model": "gpt2", "pre": "smollm", "tokens": METADATA["tokenizer.ggml.tokens"],
        "types": [3, 3, 3, 1, 1, 1, 1, 1, 1], "scores": None, "merges": ["a b"], "bos_id": 1,
        "eos_ids": [2, 0],                                          # </s> is an ordinary piece here, so it ends nothing
        "pad_id": 2, "unk_id": None, "add_bos": False, "add_space_prefix": False, "chat_template": None}  # fmt: skip


def test_worked_example_sentencepiece_vocabulary(tmp_path):
    metadata = changed(
        tokenizer__ggml__model="llama", tokenizer__ggml__pre=None, tokenizer__ggml__merges=None,
        tokenizer__ggml__tokens=Array(8, ["<unk>", "<s>", "</s>", "▁a"]), tokenizer__chat_template="{{ x }}",
        tokenizer__ggml__token_type=Array(5, [2, 3, 3, 1]), tokenizer__ggml__scores=Array(6, [0.0, 0.0, 0.0, -1.5]),
        tokenizer__ggml__padding_token_id=None, tokenizer__ggml__unknown_token_id=0)
    values = vocabulary(open_gguf(save(tmp_path / "file", metadata)))
    assert values["scores"] == [0.0, 0.0, 0.0, -1.5] and values["merges"] is None and values["pre"] is None
    assert values["add_bos"] and values["add_space_prefix"] and values["eos_ids"] == [2] and values["unk_id"] == 0
    assert values["chat_template"] == "{{ x }}" and values["pad_id"] is None


# ---- files that lie, or are of another kind


@pytest.mark.parametrize("change, words", [
    (dict(general__architecture="qwen2"), "its architecture is 'qwen2'; only 'llama' is read here"),
    (dict(general__architecture=None), "its architecture is 'None'"),
    (dict(llama__expert_count=8), "a mixture of experts"),
    (dict(split__count=3), "one part of several"),
    (dict(llama__block_count=None), "the metadata lacks llama.block_count"),
    (dict(llama__block_count=0), "llama.block_count is 0; it must be at least 1"),
    (dict(llama__block_count="two"), "llama.block_count is a str, but should be a int"),
    (dict(llama__rope__dimension_count=8), "llama.rope.dimension_count is 8, but queries and keys are 16 wide"),
    (dict(llama__attention__head_count_kv=Array(4, [2, 2])), "llama.attention.head_count_kv is a ndarray"),
    (dict(tokenizer__ggml__model="t5"), "its vocabulary is of kind 't5'"),
    (dict(tokenizer__ggml__tokens=None), "the metadata lacks tokenizer.ggml.tokens"),
    (dict(tokenizer__ggml__token_type=Array(5, [1])), "tokenizer.ggml.token_type has 1 entries for 9 tokens"),
    (dict(tokenizer__ggml__bos_token_id=99), "the bos token is 99, but the vocabulary has 9 tokens"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_refusal_of_metadata(tmp_path, change, words):
    file = open_gguf(save(tmp_path / "model.gguf", changed(**change)))
    with pytest.raises(ValueError, match=f"model.gguf.*{words}"):
        config(file)
        vocabulary(file)


@pytest.mark.parametrize("extra, words", [
    ({"blk.0.attn_q.bias": ((D,), F32, b"\0" * 4 * D)}, "tensor blk.0.attn_q.bias has no place in a Llama"),
    ({"blk.0.ffn_gate_inp.weight": ((D,), F32, b"\0" * 4 * D)}, "tensor blk.0.ffn_gate_inp.weight has no place"),
    ({"t": ((1, 32), 12, b"\0" * 144)}, "Q4_K is not read yet; take a file in one of F32, F16, Q4_0"),
    ({"t": ((1, 32), 99, b"\0" * 144)}, "number format 99 is not read yet"),
    ({"t": ((33,), Q4_0, b"\0" * 36)}, "t has rows of 33, but Q4_0 packs 32 numbers into a block"),
    ({"t": ((1, 1, 1, 1, 1), F32, b"\0" * 4)}, "t has 5 axes"),
    ({"t": ((0,), F32, b"")}, "t has an empty axis"),
    ({"t": ((2**60, 2**60), F32, b"")}, "t ends at byte .* it was cut short"),
], ids=["bias", "router", "Q4_K", "unknown format", "odd row", "5 axes", "empty", "huge"])  # fmt: skip
def test_refusal_of_tensors(tmp_path, extra, words):
    with pytest.raises(ValueError, match=f"model.gguf.*{words}"):
        tensor_ledger(open_gguf(save(tmp_path / "model.gguf", tensors=llama_tensors() | extra)))


def test_refusal_of_rows_that_heads_cannot_share(tmp_path):
    tensors = llama_tensors() | {"blk.0.attn_q.weight": ((6, D), F32, b"\0" * 4 * 6 * D)}
    with pytest.raises(ValueError, match="blk.0.attn_q.weight has 6 rows, which 4 heads cannot share evenly"):
        dict(read_tensors(open_gguf(save(tmp_path / "file", tensors=tensors))))


def header(tensors, pairs, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


@pytest.mark.parametrize("content, words", [
    (b"", "cut short or damaged at byte 0 of 0"),
    (b"PK\x03\x04 a zip", "no GGUF file"),
    (header(0, 0, version=1), "a version 1 GGUF"),
    (b"GGUF\0\0\0\x03", "a big-endian GGUF"),
    (header(2**62, 0), "cut short or damaged"),
    (header(0, 2**62), "cut short or damaged"),
    (header(0, 1, struct.pack("<Q", 2**63)), "cut short or damaged"),
    (header(0, 1, string("k") + struct.pack("<IIQ", 9, 8, 2**61)), "cut short or damaged"),
    (header(0, 1, string("k") + struct.pack("<IIQ", 9, 12, 2**61)), "cut short or damaged"),
    (header(0, 1, string("k") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 20), "an array of type 9"),
    (header(0, 1, string("k") + struct.pack("<I", 77) + b"\0" * 20), "metadata of type 77"),
    (header(0, 1, string(b"\xff") + struct.pack("<II", 4, 0)), "is not UTF-8"),
    (header(0, 2, (string("k") + struct.pack("<II", 4, 0)) * 2), "metadata k comes twice"),
    (header(2, 0, (string("t") + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2 + b"\0" * 32), "tensor t comes twice"),
    (header(0, 1, string("general.alignment") + struct.pack("<II", 4, 0)), "general.alignment is 0"),
    (header(2, 0, b"".join(string(name) + struct.pack("<IQIQ", 1, 100, F32, 0) for name in "ab") + b"\0" * 450),
     "its tensors overlap"),
], ids=["empty", "zip", "version 1", "big-endian", "tensors", "pairs", "string", "strings", "numbers", "nested",
        "type", "text", "twice", "tensor twice", "alignment", "overlap"])  # fmt: skip
def test_refusal_of_hostile_headers_within_bounded_memory(tmp_path, content, words):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.gguf.*{words}"):
        open_gguf(tmp_path / "bad.gguf")


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


def test_refusal_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.gguf does not exist"):
        open_gguf(tmp_path / "nothing.gguf")
