import io
import struct
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch

from weights.formats.plain_pickle import strange_call
from weights.formats.torch_file import load_torch_file, save_torch_file

LATIN = b"c_codecs\nencode\nX\1\0\0\0aX\6\0\0\0latin1\x86R"
HEX = b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R"
NUMBERS = b"ctorch\nFloatTensor\nJ\0\xca\x9a;\x85R"                  # 10^9 of them, of 30 bytes


def archive(path, pickled, **more):
    """What torch.save would write around a pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        for name, content in {"data.pkl": pickled, "byteorder": "little", "version": "3\n", **more}.items():
            made.writestr(f"archive/{name}", content)
    return path


def saved(path, content):
    save_torch_file(path, content)
    return zipfile.ZipFile(path).read("archive/data.pkl")


def test_property_what_torch_writes_of_tensors_and_plain_values_calls_nothing_else(tmp_path):
    layer = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    for content in ({"a": torch.ones(3), "b": b"\xff\0x", "c": [1, (2.5, None, True)], "d": "文", "e": torch.float16},
                    layer.state_dict(), dict(layer.named_parameters()), {"optimizer": optimizer.state_dict()},
                    OrderedDict(a=torch.ones(2, dtype=torch.bfloat16).t(), long=10**30)):
        assert strange_call(saved(tmp_path / "x.pt", content)) == ""
        load_torch_file(tmp_path / "x.pt", "file")


@pytest.mark.parametrize("pickled, called", [
    (LATIN, ""), (HEX, "_codecs encode"), (LATIN.replace(b"X\1\0\0\0a", HEX), "_codecs encode"),
    (NUMBERS, "torch FloatTensor"), (b"cbuiltins\nbytearray\nJ\0\xca\x9a;\x85R", "builtins bytearray"),
    (b"ccollections\nOrderedDict\n" + NUMBERS + b"\x85R", "torch FloatTensor"),
    (b"ccollections\nOrderedDict\nN\x85R", "collections OrderedDict"), (b"ccollections\nOrderedDict\n)R", ""),
    (b"ctorch\nSize\nq\0h\0)R", "torch Size"), (b"cos\nsystem\nX\2\0\0\0ls\x85R", "os system"),
    (b"ccollections\nCounter\n)\x81", "NEWOBJ"), (b"(cos\nsystem\nX\2\0\0\0lso", "OBJ"), (b"N0", "POP")])
def test_refusal_calls_that_tensors_and_plain_values_need_not(pickled, called):
    assert strange_call(b"\x80\2" + pickled + b".") == called


def test_refusal_a_file_of_few_bytes_that_would_be_gigabytes(tmp_path):
    doubled = HEX
    for _ in range(40):                                             # 2^40 bytes
        doubled = b"c_codecs\nencode\n" + doubled + b"X\3\0\0\0hex\x86R"
    for pickled in (NUMBERS, doubled, b"cbuiltins\nset\n" + NUMBERS + b"\x85R"):
        with pytest.raises(ValueError, match=r"x.pt: its content calls '\w+ \w+', which tensors and plain values need"):
            load_torch_file(archive(tmp_path / "x.pt", b"\x80\2}X\1\0\0\0a" + pickled + b"s."), "file")


def test_refusal_lists_that_unfold_to_more_than_the_file_holds(tmp_path):
    nested = b"]q\1"
    for level in range(1, 12):                                      # 10^11 items, by ten references each
        nested += bytes([ord("s"), ord("X"), 1, 0, 0, 0, 96 + level]) + b"]q" + bytes([level + 1, ord("(")]) + \
            (b"h" + bytes([level])) * 10 + b"e"
    with pytest.raises(ValueError, match="x.pt: its lists hold one another, and unfold to more than the file holds"):
        load_torch_file(archive(tmp_path / "x.pt", b"\x80\2}X\1\0\0\0_" + nested + b"s."), "file")


def test_refusal_an_archive_of_two_directories(tmp_path):
    """Python takes the last one, torch that of the place which the end names, with what nobody has looked at."""
    made, evil = io.BytesIO(), b"\x80\2}X\0\0\4\0" + b"a" * 2**18 + b"Ns."
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as both:
        warnings.simplefilter("ignore")                             # one name twice
        both.writestr("archive/data.pkl", evil, zipfile.ZIP_DEFLATED)
        both.writestr("archive/data.pkl", b"\x80\2}.", zipfile.ZIP_STORED)
        both.writestr("archive/version", "3\n")
    whole = made.getvalue()
    start, end = struct.unpack_from("<I", whole, len(whole) - 6)[0], len(whole) - 22
    first, second = start, start + 62                               # 46 bytes and a name of 16
    theirs, ours = bytearray(whole[:end]), bytearray(whole[:end])
    theirs[second + 54 : second + 58] = ours[first + 54 : first + 58] = b"else"
    struct.pack_into("<H", ours, first + 10, zipfile.ZIP_STORED)
    ours[first + 24 : first + 28] = ours[first + 20 : first + 24]
    place = struct.unpack_from("<I", ours, second + 42)[0] - (end - start)                  # Python adds that
    struct.pack_into("<I", ours, second + 42, place)
    (tmp_path / "x.pt").write_bytes(theirs + ours[start:end] + whole[end:])
    assert len(next(iter(torch.load(tmp_path / "x.pt", weights_only=True)))) == 2**18       # were it not refused
    with pytest.raises(ValueError, match="x.pt: this is no file, or a damaged one"):
        load_torch_file(tmp_path / "x.pt", "file")
