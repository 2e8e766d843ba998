"""Tensors in large pages: the same numbers, moved in place, ties kept; and that the system does give such pages."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.fast import huge_pages
from llama.fast.huge_pages import in_huge_pages, move_to_huge_pages

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture(autouse=True)
def new_chunk(monkeypatch):
    monkeypatch.setattr(huge_pages, "_free", torch.empty(0, dtype=torch.uint8))


@pytest.mark.parametrize("chunk", [1 << 12, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_two_ways_copies_equal_and_do_not_touch_each_other(chunk, dtype, monkeypatch):
    monkeypatch.setattr(huge_pages, "CHUNK", chunk)
    torch.manual_seed(0)
    tensors = [torch.randn(shape).mul(50).to(dtype) for shape in ((3, 5), (64, 64), (0, 4), (1,), (700, 3), (2, 3, 4))]
    copies = [in_huge_pages(x) for x in tensors]
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(tensors, copies, strict=True))
    assert all(y.data_ptr() % huge_pages.ALIGNED == 0 for y in copies)
    copies[1].zero_()
    assert all(torch.equal(x, y) for x, y in zip(tensors[2:], copies[2:], strict=True))


def test_property_a_model_is_moved_and_stays_tied(monkeypatch):
    model = PretrainedLlama(preset("test"))
    before = {name: (parameter.clone(), parameter.data_ptr()) for name, parameter in model.named_parameters()}
    move_to_huge_pages(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert (parameter.data_ptr() != before[name][1]) == hasattr(mmap, "MADV_HUGEPAGE")
    assert model.lm_head.weight is model.embed_tokens.weight


def test_property_without_large_pages_nothing_is_copied(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    x = torch.ones(4)
    assert in_huge_pages(x) is x


@pytest.mark.skipif(not MODE.exists() or "[never]" in MODE.read_text(encoding="utf-8"), reason="none on this system")
def test_property_linux_gives_large_pages():
    x = in_huge_pages(torch.ones(16 << 20, dtype=torch.uint8))
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if place := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(place[1], 16) <= x.data_ptr() < int(place[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) * 1024
    assert found >= 2 << 20
