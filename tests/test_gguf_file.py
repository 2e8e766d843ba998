import struct

import numpy as np
import pytest
import torch
from test_gguf import F32, METADATA, in_parts, save, string

from weights.formats.gguf import read_tensors
from weights.formats.gguf_blocks import NAMED
from weights.formats.gguf_file import blocks, model_in, open_gguf, write_file


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


def test_two_ways_a_model_in_parts_and_in_one_file(tmp_path):
    whole = open_gguf(save(tmp_path / "whole"))
    parts = in_parts(tmp_path / "parts")
    assert [path.name for path in parts] == [f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for opened in (*parts, model_in(tmp_path / "parts")):           # any of them is all of them
        file = open_gguf(opened)
        assert file.path == parts[0] and file.paths == tuple(parts)
        assert list(file.tensors) == list(whole.tensors)
        assert file.metadata["llama.block_count"] == whole.metadata["llama.block_count"]
        assert len({info.path for info in file.tensors.values()}) == 3
        for name in whole.tensors:
            assert isinstance(blocks(file, name).base, np.memmap)
            assert np.array_equal(blocks(file, name), blocks(whole, name))


@pytest.mark.parametrize("change, words", [
    (lambda parts: parts[1].unlink(), "m-00002-of-00003.gguf is missing, and m-00001-of-00003.gguf is but one of 3"),
    (lambda parts: parts[0].rename(parts[0].with_name("model.gguf")),
     "model.gguf: one of 3 parts .*must be named like model-00001-of-00003.gguf"),
    (lambda parts: parts[1].write_bytes(parts[2].read_bytes()),
     "m-00002-of-00003.gguf: is part 3 of 3 by its content .*and part 2 of 3 by its name"),
    (lambda parts: save(parts[1], {}), "m-00002-of-00003.gguf: is part 0 of 1 by its content"),
    (lambda parts: save(parts[1], {"split.no": 1, "split.count": 3}, {}),
     "m-00001-of-00003.gguf: its 3 parts hold .* and should hold 21 .split.tensors.count"),
    (lambda parts: save(parts[1], {"split.no": 1, "split.count": 3}), "m-00002-of-00003.gguf: tensor .* in another"),
    (lambda parts: parts[1].write_bytes(parts[1].read_bytes()[:-40]), "m-00002-of-00003.gguf: .* was cut short"),
], ids=["missing", "other name", "other part", "no part", "too few", "twice", "cut"])  # fmt: skip
def test_refusal_of_parts_that_do_not_belong_together(tmp_path, change, words):
    parts = in_parts(tmp_path)
    change(parts)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        open_gguf(next(path for path in (parts[0], tmp_path / "model.gguf") if path.exists()))


def test_refusal_of_a_folder_with_several_models(tmp_path):
    assert model_in(tmp_path) is None
    in_parts(tmp_path)
    assert model_in(tmp_path).name == "m-00001-of-00003.gguf"
    save(tmp_path / "other.gguf")
    with pytest.raises(ValueError, match="holds 2 models; give one of them, such as .*m-00001-of-00003.gguf"):
        model_in(tmp_path)


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
