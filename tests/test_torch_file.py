import errno

import pytest
import torch

from weights.formats.torch_file import load_torch_file, save_torch_file, torch_save

CONTENT = {"large": torch.arange(100_000), "small": [torch.ones(3) for _ in range(20)], "text": "x" * 5000}


class Disk:
    """A file on a disk of which `room` bytes are left."""

    def __init__(self, room):
        self.room, self.content = room, b""

    def write(self, content):
        self.content += bytes(content)
        if len(self.content) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(content)

    def flush(self):
        pass


def test_refusal_a_full_disk_is_told_as_the_system_does_wherever_it_happens():
    whole = Disk(10**9)
    torch_save(CONTENT, whole)
    for room in (*range(0, len(whole.content), len(whole.content) // 40), len(whole.content) - 1):
        with pytest.raises(OSError, match="No space left on device"):
            torch_save(CONTENT, Disk(room))


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="limits of a process are a matter of POSIX")
@pytest.mark.parametrize("most", [0, 100, 60_000, 800_500])
def test_property_a_full_disk_leaves_the_older_file(most, tmp_path):
    import resource

    path = tmp_path / "last.pt"
    save_torch_file(path, CONTENT)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(RuntimeError, match="last.pt cannot be written: File too large; nothing of it was kept"):
            save_torch_file(path, CONTENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert torch.equal(load_torch_file(path, "state")["large"], CONTENT["large"])


def test_property_a_failure_of_torch_itself_passes_as_it_is(tmp_path, monkeypatch):
    def fail(content, file):
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        save_torch_file(tmp_path / "x.pt", {})
    assert not list(tmp_path.iterdir())


def test_worked_example_parameters_are_read_as_the_numbers_they_hold(tmp_path):
    """As programs save what is no state_dict(): torch would warn wherever such a tensor becomes a number."""
    torch.save({"weight": torch.nn.Parameter(torch.ones(3)), "step": 5}, tmp_path / "file")
    content = load_torch_file(tmp_path / "file", "file")
    assert type(content["weight"]) is torch.Tensor and not content["weight"].requires_grad and content["step"] == 5
