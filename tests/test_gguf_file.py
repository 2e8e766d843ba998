import struct

import numpy as np
import pytest
import torch
from test_gguf import F32, METADATA, save, string

from weights.formats.gguf import read_tensors
from weights.formats.gguf_blocks import NAMED
from weights.formats.gguf_file import blocks, open_gguf, write_file


def test_worked_example_bytes_of_a_file(tmp_path):
    raw = (b"GGUF" b"\x03\0\0\0" b"\x01\0\0\0\0\0\0\0" b"\x01\0\0\0\0\0\0\0"            # version, 1 tensor, 1 pair
           b"\x05\0\0\0\0\0\0\0hello" b"\x04\0\0\0" b"\x2a\0\0\0"                          # hello = 42 (uint32)
           b"\x01\0\0\0\0\0\0\0t" b"\x02\0\0\0" b"\x03\0\0\0\0\0\0\0" b"\x02\0\0\0\0\0\0\0"  # t: 3 fastest, 2 slowest
           b"\0\0\0\0" b"\0\0\0\0\0\0\0\0")                                               # F32, offset 0
    raw += b"\0" * (96 - len(raw)) + struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    (tmp_path / "file").write_bytes(raw)
    file = open_gguf(tmp_path / "file")
    assert file.metadata == {"hello": 42}
    assert blocks(file, "t").view("<f4").squeeze(-1).tolist() == [[1, 2, 3], [4, 5, 6]]
    x = np.arange(1, 7, dtype="<f4").reshape(2, 3)
    write_file(tmp_path / "written", {"hello": 42}, [("t", (2, 3), NAMED["F32"])], [[x[:1], x[1:]]])
    assert (tmp_path / "written").read_bytes() == raw + b"\0" * 8                     # up to the alignment


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
    write_file(tmp_path / "written", {"s": "骆驼", "a": ["a", ""], "i": 7, "b": True, "f": 0.5,
                                      "n": np.array([1, -2], np.int32), "x": np.array([0.25], np.float32)}, [], [])
    written = open_gguf(tmp_path / "written").metadata
    assert [written[key] for key in "saibf"] == ["骆驼", ["a", ""], 7, True, 0.5] and type(written["b"]) is bool
    assert written["n"].tolist() == [1, -2] and written["x"].tolist() == [0.25] and written["n"].dtype == np.int32
    for kind, (_, value) in numbers.items():
        assert metadata[f"one {kind}"] == value and type(metadata[f"one {kind}"]) is type(value)
        assert metadata[f"many {kind}"].tolist() == [value, value]
    assert metadata["text"] == "骆驼" and metadata["texts"] == ["a", ""]


@pytest.mark.parametrize("alignment", [1, 8, 64])
def test_two_ways_versions_and_alignments_read_the_same(tmp_path, alignment):
    plain = dict(read_tensors(open_gguf(save(tmp_path / "plain"))))
    metadata = METADATA | {"general.alignment": alignment}
    other = dict(read_tensors(open_gguf(save(tmp_path / "other", metadata, version=2, alignment=alignment))))
    assert all(torch.equal(plain[name], other[name]) for name in plain)


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


def test_refusal_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.gguf does not exist"):
        open_gguf(tmp_path / "nothing.gguf")
